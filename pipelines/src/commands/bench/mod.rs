//! `speechverse bench serve`: what a service does under offered loads.
//!
//! Three parts: requests one after another, all at once, and at random or evenly spaced at shares of what
//! the second part showed. Latency is that of the client, from the moment at which a request was due until
//! its answer is read. The service may be any that answers on the topics; what only ours knows comes from
//! its metrics.

mod asking;
mod queue;
mod report;
mod served;

use std::time::{Duration, Instant};

use anyhow::Context;
use speechverse::config::Settings;

use super::{Failure, runtime};
use crate::cli::{Bench, BenchServe};
use asking::{Answered, Arrivals, Asking, Clip};
use report::Row;
use served::{Served, Usage};

pub(super) fn bench(command: &Bench) -> Result<(), Failure> {
    let Bench::Serve(args) = command;
    if !args.loads.iter().all(|load| *load > 0.0) || args.seconds <= 0.0 {
        return Err(Failure::Usage(anyhow::anyhow!(
            "`--loads` and `--seconds` have to be above 0"
        )));
    }
    let settings = Settings::load(&args.config).map_err(Failure::usage)?;
    let clips = asking::clips(&args.references)?;
    runtime()?.block_on(measure(args, settings, &clips))
}

async fn measure(args: &BenchServe, mut settings: Settings, clips: &[Clip]) -> Result<(), Failure> {
    let served = match &args.bootstrap {
        Some(bootstrap) => Served::running(bootstrap, args.http, args.process),
        None => Served::start(&args.config)
            .await
            .context("cannot start `serve`")?,
    };
    settings.kafka.bootstrap.clone_from(&served.bootstrap);
    let limit = Duration::from_secs(args.timeout);
    let mut asking = Asking::open(&settings.kafka, clips, limit).await?;

    asking.all_at_once(clips.len()).await?; // the first of each clip: code and memory are touched
    let mut rows = Vec::new();
    let part = Part::begin(&served, args);
    let answers = asking.one_by_one(args.unloaded).await?;
    let alone: Vec<f64> = answers
        .iter()
        .map(|answer| answer.latency.as_secs_f64())
        .collect();
    rows.push(part.end("one at a time", None, &answers));

    let part = Part::begin(&served, args);
    let answers = asking.all_at_once(args.saturation).await?;
    let saturated = part.end("all at once", None, &answers);
    let saturation = saturated.answered;
    rows.push(saturated);

    let arrivals = Arrivals::new(args.arrivals, args.seed);
    let mut times = arrivals.clone();
    for share in &args.loads {
        let rate = saturation * share;
        let part = Part::begin(&served, args);
        let answers = asking.at_rate(rate, args.seconds, &mut times).await?;
        let mut row = part.end(&format!("{:.0} %", share * 100.0), Some(rate), &answers);
        row.compare_with_queue(&alone, arrivals.clone());
        rows.push(row);
    }
    served.stop().await?;
    report::print(args, &rows)
}

/// A part of the measurement that is under way.
struct Part<'s> {
    served: &'s Served,
    good: Duration,
    before: Usage,
    began: Instant,
}

impl<'s> Part<'s> {
    fn begin(served: &'s Served, args: &BenchServe) -> Self {
        Self {
            served,
            good: Duration::from_millis(args.good_ms),
            before: served.usage(),
            began: Instant::now(),
        }
    }

    /// What it showed; `offered` requests a second, where they came at a rate.
    fn end(self, load: &str, offered: Option<f64>, answers: &[Answered]) -> Row {
        let took = self.began.elapsed();
        let after = self.served.usage();
        Row::new(load, offered, answers, took, self.good, [&self.before, &after])
    }
}
