//! Bars with intervals, one picture for each table and task.

use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::report::{Report, Score};
use crate::training::TrainingError;

const WIDTH: u32 = 900;
/// Left of the bars: the names.
const NAMES: i32 = 330;
/// Right of them: the numbers.
const NUMBERS: i32 = 180;
const TOP: i32 = 46;
const BAR: i32 = 26;

/// Draws the main scores of each table and task as SVG files in `folder`; returns their names.
///
/// # Errors
/// [`TrainingError::Plot`] when a picture cannot be written.
pub fn draw(report: &Report, folder: &Path) -> Result<Vec<PathBuf>, TrainingError> {
    let mut pictures: Vec<(String, Vec<&Score>)> = Vec::new();
    for score in report.scores.iter().filter(|score| score.main) {
        let name = format!("{}-{}.svg", score.table.name(), file_name(&score.task));
        match pictures.iter_mut().find(|(known, _)| *known == name) {
            Some((_, scores)) => scores.push(score),
            None => pictures.push((name, vec![score])),
        }
    }
    let mut paths = Vec::new();
    for (name, scores) in pictures {
        let path = folder.join(name);
        bars(&path, &scores).map_err(|error| TrainingError::Plot {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        paths.push(path);
    }
    Ok(paths)
}

/// Task names come from manifests; only harmless characters go into file names.
fn file_name(task: &str) -> String {
    let harmless = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '-'
        }
    };
    task.chars().take(64).map(harmless).collect()
}

fn bars(path: &Path, scores: &[&Score]) -> Result<(), Box<dyn std::error::Error>> {
    let rows = i32::try_from(scores.len())?;
    let height = TOP + rows * BAR + 16;
    let root = SVGBackend::new(path, (WIDTH, u32::try_from(height)?)).into_drawing_area();
    root.fill(&WHITE)?;
    let (first, metric) = (scores[0], scores[0].metric);
    let arrow = if metric.lower_is_better() {
        " (less is better)"
    } else {
        ""
    };
    root.draw(&Text::new(
        format!("{}, {}: {metric}{arrow}", first.table.title(), first.task),
        (12, 14),
        ("sans-serif", 18),
    ))?;
    let ends = scores
        .iter()
        .flat_map(|score| [score.score, score.interval.map(|interval| interval.high)]);
    let longest = ends.flatten().fold(0.0, f64::max);
    // A round scale; error rates may exceed 100.
    let scale = if longest > 50.0 {
        (longest / 100.0).ceil() * 100.0
    } else {
        (longest / 10.0).ceil().max(1.0) * 10.0
    };
    let width = f64::from(i32::try_from(WIDTH)? - NAMES - NUMBERS);
    #[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
    let at = |score: f64| NAMES + (score / scale * width).round() as i32;
    let mut variants: Vec<&str> = Vec::new();
    for (number, score) in scores.iter().enumerate() {
        let colour = variants
            .iter()
            .position(|variant| *variant == score.variant)
            .unwrap_or_else(|| {
                variants.push(&score.variant);
                variants.len() - 1
            });
        let top = TOP + i32::try_from(number)? * BAR;
        let middle = top + BAR / 2;
        let name: String = format!("{} · {}", score.dataset, score.variant)
            .chars()
            .take(52)
            .collect();
        root.draw(&Text::new(name, (12, middle - 7), ("sans-serif", 13)))?;
        if let Some(value) = score.score {
            let area = [(at(0.0), top + 4), (at(value), top + BAR - 4)];
            root.draw(&Rectangle::new(area, Palette99::pick(colour).mix(0.7).filled()))?;
        }
        if let Some(interval) = score.interval {
            let (low, high) = (at(interval.low), at(interval.high));
            for line in [
                [(low, middle), (high, middle)],
                [(low, middle - 5), (low, middle + 5)],
                [(high, middle - 5), (high, middle + 5)],
            ] {
                root.draw(&PathElement::new(line, BLACK))?;
            }
        }
        let label = super::markdown::with_interval(score);
        root.draw(&Text::new(
            label,
            (i32::try_from(WIDTH)? - NUMBERS + 12, middle - 7),
            ("sans-serif", 13),
        ))?;
    }
    root.draw(&PathElement::new(
        [(NAMES, TOP), (NAMES, TOP + rows * BAR)],
        BLACK.mix(0.5),
    ))?;
    root.present()?;
    Ok(())
}
