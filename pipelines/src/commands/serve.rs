//! `speechverse serve`: the pipeline, until a signal.

use anyhow::Context;
use speechverse::config::Settings;
use speechverse::telemetry::logs;

use super::{Failure, runtime};
use crate::cli::Serve;
use crate::output;
use crate::role::Role;
use crate::serving::Pipeline;
use crate::shutdown;

pub(super) fn serve(args: &Serve) -> Result<(), Failure> {
    let mut settings = Settings::load(&args.config).map_err(Failure::usage)?;
    let _telemetry =
        logs::init(&settings.log, &settings.trace).map_err(|error| Failure::Usage(anyhow::anyhow!(error)))?;
    settings.kafka.embedded |= args.embedded_broker;
    runtime()?.block_on(run(args.role, settings))
}

async fn run(role: Role, settings: Settings) -> Result<(), Failure> {
    let pipeline = tokio::select! {
        started = Pipeline::start_as(role, settings) => started.context("the pipeline did not start")?,
        () = shutdown::signal() => return Err(anyhow::anyhow!("stopped before the start was complete").into()),
    };
    let addresses = pipeline.addresses();
    let ready = output::line(format!(
        "ready bootstrap={} http=http://{} adapter={}",
        addresses.bootstrap, addresses.http, addresses.adapter
    ));
    if let Err(error) = ready {
        tracing::warn!(%error, "the line that says `ready` is lost; requests are answered all the same");
    }
    let broken = tokio::select! {
        () = shutdown::signal() => None,
        reason = pipeline.broken() => Some(reason),
    };
    tracing::info!("stopping: finishing what is in flight; once more to stop at once");
    tokio::spawn(async {
        shutdown::signal().await;
        tracing::warn!("stopped at once; unfinished records are read again after the next start");
        std::process::exit(1);
    });
    let stopped = pipeline.stop().await;
    match broken {
        Some(reason) => Err(anyhow::anyhow!("{reason}").into()),
        None => Ok(stopped?),
    }
}
