//! `speechverse check-config` and `doctor`: is everything in order, and what is there.

use std::path::Path;
use std::time::Duration;

use speechverse::config::Settings;
use speechverse::kafka::admin::broker_metadata;
use speechverse::kafka::check_properties;
use speechverse::nn::accel::{Placement, configure_threads, cpu_capability, load_cuda};
use speechverse::text::TaskTable;
use speechverse::weights::{Checkpoint, check_folder};

use super::{Failure, runtime};
use crate::adapters;
use crate::cli::{Doctor, SettingsFile};
use crate::output::{self, OutputError};

pub(super) fn check_config(args: &SettingsFile) -> Result<(), Failure> {
    let settings = Settings::load(&args.config).map_err(Failure::usage)?;
    check_properties(&settings.kafka).map_err(Failure::usage)?;
    TaskTable::load(&settings.service.tasks_dir).map_err(Failure::usage)?;
    output::line(settings.to_toml().trim_end())?;
    Ok(())
}

/// Findings, good and bad.
struct Report {
    problems: usize,
    written: Result<(), OutputError>,
}

impl Report {
    fn good(&mut self, what: &str, finding: impl std::fmt::Display) {
        self.line(format!("ok       {what}: {finding}"));
    }

    fn note(&mut self, what: &str, finding: impl std::fmt::Display) {
        self.line(format!("note     {what}: {finding}"));
    }

    fn bad(&mut self, what: &str, finding: impl std::fmt::Display) {
        self.problems += 1;
        self.line(format!("PROBLEM  {what}: {finding}"));
    }

    fn line(&mut self, text: String) {
        if self.written.is_ok() {
            self.written = output::line(text);
        }
    }
}

pub(super) fn doctor(args: &Doctor) -> Result<(), Failure> {
    let mut report = Report {
        problems: 0,
        written: Ok(()),
    };
    report.good("program", format!("speechverse {}", env!("CARGO_PKG_VERSION")));
    report.good("cpu", cpu_capability());
    report.good("cuda", load_cuda());
    let settings = match Settings::load(&args.settings.config) {
        Ok(settings) => {
            report.good("settings", args.settings.config.display());
            settings
        }
        Err(error) => {
            report.bad("settings", &error);
            Settings::default()
        }
    };
    match Placement::resolve(settings.model.device, settings.model.precision) {
        Ok(placement) => report.good("networks compute", &placement),
        Err(error) => report.bad("networks compute", error),
    }
    let threads = configure_threads(settings.model.threads);
    let policy = std::env::var("OMP_WAIT_POLICY").unwrap_or_else(|_| "default".into());
    report.good(
        "threads",
        format!("{threads} for one operation, OpenMP waits by policy {policy}"),
    );
    match TaskTable::load(&settings.service.tasks_dir) {
        Ok(tasks) => report.good("tasks", tasks.names().collect::<Vec<_>>().join(", ")),
        Err(error) => report.bad("tasks", error),
    }
    for (role, folder) in [
        ("encoder", &settings.model.encoder),
        ("language model", &settings.model.llm),
    ] {
        check_model(&mut report, role, folder);
    }
    match adapters::identities(&settings).and_then(|identities| adapters::open(&settings, None, &identities))
    {
        Ok((_, loaded)) => report.good("adapter", &loaded.manifest.version),
        Err(error) => report.bad("adapter", format!("{error:#}")),
    }
    if let Err(error) = check_properties(&settings.kafka) {
        report.bad("kafka properties", error);
    }
    if settings.kafka.embedded {
        report.note("broker", "the embedded one, started by `serve`");
    } else {
        match runtime()?.block_on(broker_metadata(&settings.kafka, Duration::from_secs(5))) {
            Ok(cluster) => report.good(
                "broker",
                format!(
                    "{} brokers, {} topics, answered in {:?}",
                    cluster.brokers.len(),
                    cluster.topics.len(),
                    cluster.answered_in
                ),
            ),
            Err(error) => report.note(
                "broker",
                format!("{error} (needed by `serve` unless `--embedded-broker`)"),
            ),
        }
    }
    report.written?;
    match report.problems {
        0 => Ok(()),
        1 => Err(anyhow::anyhow!("1 problem, see above").into()),
        problems => Err(anyhow::anyhow!("{problems} problems, see above").into()),
    }
}

fn check_model(report: &mut Report, role: &str, folder: &Path) {
    let needs_tokenizer = role == "language model";
    match check_folder(folder, needs_tokenizer).and_then(|()| Checkpoint::open(folder)) {
        Ok(checkpoint) => report.good(
            role,
            format!("{}, {} tensors", folder.display(), checkpoint.tensors().count()),
        ),
        Err(error) => report.bad(role, format!("{error}; get the demo models with `models fetch`")),
    }
}
