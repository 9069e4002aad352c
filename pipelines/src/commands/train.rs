//! `speechverse train`: a curriculum from manifests, offline.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use speechverse::training::config::TrainingConfig;
use speechverse::training::{Control, TrainArgs, TrainEvent, run};

use super::Failure;
use crate::cli::Train;
use crate::output;

pub(super) fn train(args: &Train) -> Result<(), Failure> {
    let config = TrainingConfig::load(&args.config).map_err(Failure::usage)?;
    let control = Control::new();
    stop_on_signal(&control)?;
    let view = View::new();
    let report = run(
        TrainArgs {
            config,
            resume: args.resume,
            control,
        },
        &mut |event| view.show(event),
    )
    .context("the training run failed; `--resume` goes on from its last checkpoint")?;
    view.bar.finish_and_clear();
    if let Some(best) = &report.outcome.best {
        let words = (best.wer).map_or(String::new(), |wer| {
            format!(", word error rate {:.1} %", 100.0 * wer)
        });
        output::line(format!("validation loss {:.4}{words}", best.loss))?;
    }
    if report.outcome.damaged > 0 {
        let count = report.outcome.damaged;
        output::line(format!(
            "{count} damaged recordings were trained on; the log names them"
        ))?;
    }
    match &report.version {
        Some(version) => output::line(format!("published {version}"))?,
        None => output::line(format!("kept in {}", report.outcome.output.display()))?,
    }
    if report.outcome.stopped {
        return Err(anyhow::anyhow!("stopped before its end; `--resume` goes on").into());
    }
    Ok(())
}

/// The first SIGINT or SIGTERM ends the run after the present step, with a checkpoint; the second at once.
pub(super) fn stop_on_signal(control: &Control) -> Result<(), Failure> {
    let control = control.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                crate::shutdown::signal().await;
                tracing::info!("stopping after this step; once more to stop at once");
                control.stop();
                crate::shutdown::signal().await;
                std::process::exit(1);
            });
        })
        .context("no thread for signals")?;
    Ok(())
}

/// A progress bar on a terminal, a line now and then otherwise.
pub(super) struct View {
    pub(super) bar: ProgressBar,
    terminal: bool,
}

impl View {
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal {
            ProgressBar::no_length()
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{elapsed_precise} {msg}").expect("a constant template");
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_secs(1));
        Self { bar, terminal }
    }

    fn show(&self, event: &TrainEvent) {
        match event {
            TrainEvent::Step {
                kind,
                step,
                loss,
                rate,
                audio_seconds_per_second,
                seconds,
                ..
            } => {
                let text = format!(
                    "{kind} step {step}  loss {loss:.3}  rate {rate:.1e}  {audio_seconds_per_second:.0}x real time  {:.2} s/step",
                    seconds / *step as f64
                );
                self.step(*step, text);
            }
            other => self.note(other),
        }
    }

    /// A step's line.
    pub(super) fn step(&self, step: u64, text: String) {
        const LINE_EVERY_STEPS: u64 = 20;
        if self.terminal {
            self.bar.set_message(text);
        } else if step <= 3 || step.is_multiple_of(LINE_EVERY_STEPS) {
            tracing::info!("{text}");
        }
    }

    /// An event worth a line of its own.
    pub(super) fn note(&self, event: &impl serde::Serialize) {
        let json = serde_json::to_string(event).unwrap_or_else(|error| error.to_string());
        self.bar.suspend(|| tracing::info!("{json}"));
    }
}
