//! Runs a training configuration: `cargo run --example train_demo -- configs/curriculum/demo.toml [--resume]`.

use std::path::Path;

use speechverse::config::training::TrainingConfig;
use speechverse::training::{Control, TrainArgs, TrainEvent, run};

#[expect(clippy::print_stderr, reason = "a program for a terminal")]
fn main() -> anyhow::Result<()> {
    speechverse::nn::accel::ensure_passive_openmp();
    let mut arguments = std::env::args().skip(1);
    let file = arguments
        .next()
        .unwrap_or_else(|| "configs/curriculum/demo.toml".into());
    let resume = arguments.any(|argument| argument == "--resume");
    let config = TrainingConfig::load(Path::new(&file))?;
    let report = run(
        TrainArgs {
            config,
            resume,
            control: Control::new(),
        },
        &mut |event| match event {
            TrainEvent::Step {
                kind,
                step,
                loss,
                rate,
                grad_norm,
                audio_seconds_per_second,
                seconds,
                ..
            } => {
                if *step <= 5 || step % 20 == 0 {
                    eprintln!(
                        "{kind} {step}: loss {loss:.3} rate {rate:.2e} norm {grad_norm:.2} {audio_seconds_per_second:.0}x {seconds:.0}s ({:.2} s/step)",
                        seconds / *step as f64
                    );
                }
            }
            other => eprintln!("{other:?}"),
        },
    )?;
    eprintln!("{:?} {:?}", report.version, report.outcome.best);
    Ok(())
}
