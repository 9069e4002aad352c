//! `speechverse pretrain`: a speech encoder from recordings without labels.

use anyhow::Context;
use speechverse::training::Control;
use speechverse::training::pretrain::config::PretrainConfig;
use speechverse::training::pretrain::{PretrainArgs, PretrainEvent, pretrain as run};

use super::Failure;
use super::train::{View, stop_on_signal};
use crate::cli::Pretrain;
use crate::output;

pub(super) fn pretrain(args: &Pretrain) -> Result<(), Failure> {
    let config = PretrainConfig::load(&args.config).map_err(Failure::usage)?;
    let control = Control::new();
    stop_on_signal(&control)?;
    let view = View::new();
    let args = PretrainArgs {
        config,
        resume: args.resume,
        control,
    };
    let outcome = run(args, &mut |event| show(&view, event))
        .context("pre-training failed; `--resume` goes on from its last checkpoint")?;
    view.bar.finish_and_clear();
    if outcome.stopped {
        return Err(anyhow::anyhow!("stopped before its end; `--resume` goes on").into());
    }
    if let Some(best) = &outcome.best {
        output::line(format!("validation loss {:.4} at step {}", best.loss, best.step))?;
    }
    output::line(format!(
        "encoder in {}: name it as `model.encoder`",
        outcome.encoder.display()
    ))?;
    Ok(())
}

fn show(view: &View, event: &PretrainEvent) {
    match event {
        PretrainEvent::Step {
            step,
            loss,
            rate,
            audio_seconds_per_second,
            seconds,
            ..
        } => {
            #[expect(clippy::cast_precision_loss, reason = "a step count")]
            let each = seconds / *step as f64;
            view.step(
                *step,
                format!("step {step}  loss {loss:.3}  rate {rate:.1e}  {audio_seconds_per_second:.0}x real time  {each:.2} s/step"),
            );
        }
        other => view.note(other),
    }
}
