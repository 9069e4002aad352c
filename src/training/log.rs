//! The run's log: events as JSON lines, and a plot of the losses.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::TrainingError;
use super::events::TrainEvent;

/// Appends events to `log.jsonl`.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    path: PathBuf,
}

impl EventLog {
    /// Opens the log, empty unless `keep`.
    ///
    /// # Errors
    /// [`TrainingError::Io`].
    pub fn open(path: &Path, keep: bool) -> Result<Self, TrainingError> {
        let file = OpenOptions::new()
            .create(true)
            .append(keep)
            .write(true)
            .truncate(!keep)
            .open(path)
            .map_err(TrainingError::io("open", path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Writes one event as one line, at once.
    ///
    /// # Errors
    /// [`TrainingError::Io`].
    pub fn write(&mut self, event: &impl serde::Serialize) -> Result<(), TrainingError> {
        let mut line = serde_json::to_vec(event).expect("events hold numbers and strings only");
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(TrainingError::io("write", &self.path))
    }
}

/// Draws training and validation losses (left axis) and word error rates (right) of a log as SVG.
///
/// # Errors
/// [`TrainingError::Io`] when the log cannot be read; [`TrainingError::Plot`] when the picture cannot be
/// written.
pub fn plot_losses(log: &Path, svg: &Path) -> Result<(), TrainingError> {
    let file = File::open(log).map_err(TrainingError::io("read", log))?;
    let (mut train, mut valid, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let mut starts: Vec<(f64, String)> = Vec::new();
    let (mut before, mut stage_now, mut last_step) = (0u64, usize::MAX, 0u64);
    let mut smooth: Option<f64> = None;
    for line in BufReader::new(file).lines() {
        let line = line.map_err(TrainingError::io("read", log))?;
        // A line cut by a crash is not worth a run.
        let Ok(event) = serde_json::from_str::<TrainEvent>(&line) else {
            continue;
        };
        match event {
            TrainEvent::Step {
                stage,
                kind,
                step,
                loss,
                ..
            } if loss.is_finite() => {
                if stage != stage_now {
                    if stage_now != usize::MAX {
                        before += last_step;
                    }
                    (stage_now, smooth) = (stage, None);
                    starts.push((as_f64(before), kind));
                }
                last_step = step;
                let mean = smooth.map_or(loss, |mean: f64| 0.95 * mean + 0.05 * loss);
                smooth = Some(mean);
                train.push((as_f64(before + step), mean));
            }
            TrainEvent::Validated { step, loss, wer, .. } => {
                let at = as_f64(before + step);
                if loss.is_finite() {
                    valid.push((at, loss));
                }
                if let Some(wer) = wer {
                    errors.push((at, (wer * 100.0).min(100.0)));
                }
            }
            _ => {}
        }
    }
    let curves = Curves {
        caption: "Training: loss (left), word error rate in % (right)",
        right_name: "word error rate",
        train,
        valid,
        right: errors,
        starts,
        level: None,
    };
    curves.draw(svg)
}

/// What a picture of a run shows; places are optimiser steps.
pub(super) struct Curves {
    pub(super) caption: &'static str,
    /// What the right axis counts, in per cent.
    pub(super) right_name: &'static str,
    pub(super) train: Vec<(f64, f64)>,
    pub(super) valid: Vec<(f64, f64)>,
    pub(super) right: Vec<(f64, f64)>,
    /// Where parts of the run begin.
    pub(super) starts: Vec<(f64, String)>,
    /// A loss to compare with, and its name.
    pub(super) level: Option<(f64, &'static str)>,
}

impl Curves {
    pub(super) fn draw(&self, svg: &Path) -> Result<(), TrainingError> {
        draw(svg, self).map_err(|error| TrainingError::Plot {
            path: svg.to_owned(),
            reason: error.to_string(),
        })
    }
}

fn draw(svg: &Path, curves: &Curves) -> Result<(), Box<dyn std::error::Error>> {
    let Curves {
        caption,
        right_name,
        train,
        valid,
        right: errors,
        starts,
        level,
    } = curves;
    let all = || train.iter().chain(valid);
    let right = all().chain(errors).map(|point| point.0).fold(1.0, f64::max);
    let lowest = level.map_or(0.1, |(at, _)| at.max(0.1));
    let top = all().map(|point| point.1).fold(lowest, f64::max) * 1.05;
    let root = SVGBackend::new(svg, (900, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption(*caption, ("sans-serif", 18))
        .x_label_area_size(36)
        .y_label_area_size(46)
        .right_y_label_area_size(46)
        .build_cartesian_2d(0.0..right, 0.0..top)?
        .set_secondary_coord(0.0..right, 0.0..100.0);
    chart
        .configure_mesh()
        .x_desc("optimiser steps")
        .y_desc("loss")
        .light_line_style(WHITE)
        .draw()?;
    chart
        .configure_secondary_axes()
        .y_desc(format!("{right_name}, %"))
        .draw()?;
    for (at, kind) in starts {
        chart.draw_series(LineSeries::new([(*at, 0.0), (*at, top)], BLACK.mix(0.4)))?;
        chart.draw_series(std::iter::once(Text::new(
            kind.clone(),
            (*at + right * 0.005, top * 0.98),
            ("sans-serif", 13),
        )))?;
    }
    chart
        .draw_series(LineSeries::new(train.iter().copied(), BLUE.mix(0.7)))?
        .label("training loss (smoothed)")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
    chart
        .draw_series(LineSeries::new(valid.iter().copied(), RED.stroke_width(2)))?
        .label("validation loss")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], RED));
    chart
        .draw_secondary_series(LineSeries::new(errors.iter().copied(), GREEN.stroke_width(2)))?
        .label(*right_name)
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], GREEN));
    if let Some((at, name)) = level {
        chart
            .draw_series(LineSeries::new([(0.0, *at), (right, *at)], BLACK.mix(0.6)))?
            .label(*name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK));
    }
    chart
        .configure_series_labels()
        .border_style(BLACK)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "step counts are small")]
pub(super) fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(stage: usize, step: u64, loss: f64) -> TrainEvent {
        TrainEvent::Step {
            stage,
            kind: format!("kind{stage}"),
            step,
            epoch: 0,
            loss,
            rate: 1e-3,
            grad_norm: 1.0,
            tokens_per_second: 1.0,
            audio_seconds_per_second: 1.0,
            seconds: 1.0,
            progress: 0.5,
        }
    }

    #[test]
    fn a_log_is_drawn_even_when_its_last_line_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let (log_path, svg) = (folder.path().join("log.jsonl"), folder.path().join("loss.svg"));
        let mut log = EventLog::open(&log_path, false).unwrap();
        for event in [
            step(0, 1, 5.0),
            step(0, 2, 4.0),
            step(1, 1, 3.0),
            step(1, 2, f64::NAN),
        ] {
            log.write(&event).unwrap();
        }
        log.file.write_all(b"{\"event\":\"st").unwrap();

        plot_losses(&log_path, &svg).unwrap();

        let picture = std::fs::read_to_string(svg).unwrap();
        assert!(picture.contains("<svg") && picture.contains("kind1") && picture.contains("validation loss"));
    }

    #[test]
    fn a_kept_log_grows_and_a_fresh_one_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        EventLog::open(&path, false)
            .unwrap()
            .write(&step(0, 1, 1.0))
            .unwrap();

        EventLog::open(&path, true)
            .unwrap()
            .write(&step(0, 2, 1.0))
            .unwrap();
        let kept = std::fs::read_to_string(&path).unwrap().lines().count();
        EventLog::open(&path, false).unwrap();

        assert_eq!(kept, 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }
}
