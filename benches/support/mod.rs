//! A plain harness: repeats a piece of work, prints the median and how far single runs lie from it.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Longest that one measurement takes, after warming up.
const MEASURED_FOR: Duration = Duration::from_secs(2);
const RUNS_MIN: usize = 11;
const RUNS_MAX: usize = 10_000;

/// Measurements of one program run; arguments on the command line choose by part of the name.
pub(crate) struct Harness {
    wanted: Vec<String>,
}

impl Harness {
    /// Prints the head of the table.
    #[expect(clippy::print_stdout, reason = "the table is the result")]
    pub(crate) fn from_arguments() -> Self {
        // `cargo bench` adds flags of its own harness.
        let wanted = std::env::args()
            .skip(1)
            .filter(|argument| !argument.starts_with("--"))
            .collect();
        println!("| what | median | 10 % | 90 % | runs |\n|---|---|---|---|---|");
        Self { wanted }
    }

    /// Measures `work` and prints a row; returns the median, or none where it was not asked for.
    #[expect(clippy::print_stdout, reason = "the table is the result")]
    pub(crate) fn measure<T>(&self, name: &str, mut work: impl FnMut() -> T) -> Option<Duration> {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            return None;
        }
        for _ in 0..3 {
            black_box(work());
        }
        let begun = Instant::now();
        let mut runs = Vec::new();
        while runs.len() < RUNS_MIN || (begun.elapsed() < MEASURED_FOR && runs.len() < RUNS_MAX) {
            let started = Instant::now();
            black_box(work());
            runs.push(started.elapsed());
        }
        runs.sort_unstable();
        let at = |share: usize| runs[(runs.len() - 1) * share / 100];
        println!(
            "| {name} | {:.1?} | {:.1?} | {:.1?} | {} |",
            at(50),
            at(10),
            at(90),
            runs.len()
        );
        Some(at(50))
    }
}
