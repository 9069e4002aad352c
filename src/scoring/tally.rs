//! `Tally`: what each utterance adds to a score, so that a corpus can be scored again and again from sums.
//!
//! Intervals are percentile bootstraps (Efron 1979): utterances are drawn with replacement, as many as there
//! are, the score is computed anew from the drawn utterances' counts, and the interval holds the middle 95 %
//! of such scores, with linear interpolation between neighbours. Comparisons draw the same utterances for
//! both systems (Koehn 2004). The draws depend on a seed and the number of utterances alone, so a report can
//! be made again.

use serde::{Deserialize, Serialize};

use super::bleu::{BleuCounts, ORDER};
use super::chrf::{ChrfCounts, ORDERS};
use super::classes::{ClassCounts, mean};
use super::slots::SlotCounts;
use crate::util::random::SplitMix;

/// Resamples behind an interval.
pub const RESAMPLES: usize = 1000;
/// Share of resampled scores inside an interval.
pub const LEVEL: f64 = 0.95;

/// How a score comes from sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Formula {
    /// Errors, length.
    ErrorRate,
    /// As [`BleuCounts`]: lengths, hits, totals.
    Bleu,
    /// As [`ChrfCounts`].
    Chrf,
    /// Sum, count.
    Mean,
    /// Hits, answered, wanted, for each of so many classes.
    Recall(usize),
    /// Likewise.
    ClassF1(usize),
    /// As [`SlotCounts`].
    SlotF1,
}

/// The middle of a distribution of scores.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How one system's score differs from another's on the same utterances.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Comparison {
    /// This score minus the other.
    pub difference: f64,
    /// Its bootstrap interval.
    pub interval: Interval,
    /// Two-sided p-value of "no difference": twice the smaller share of resamples on one side of zero, at
    /// most 1.
    pub p: f64,
}

/// Sufficient statistics of a score, utterance by utterance.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    formula: Formula,
    /// Where each utterance's entries begin; one more at the end.
    starts: Vec<usize>,
    /// Which sum, and what to add; zeros left out.
    entries: Vec<(usize, f64)>,
}

impl Tally {
    pub(super) fn new(formula: Formula) -> Self {
        Self {
            formula,
            starts: vec![0],
            entries: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, entries: impl IntoIterator<Item = (usize, f64)>) {
        self.entries
            .extend(entries.into_iter().filter(|(_, value)| *value != 0.0));
        self.starts.push(self.entries.len());
    }

    /// Utterances.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The score, 0 to 100 (error rates may exceed 100); absent where it is not defined, as for no
    /// utterances.
    pub fn score(&self) -> Option<f64> {
        self.score_of(0..self.len())
    }

    /// The score's interval over `resamples` draws; absent where there is no score.
    pub fn interval(&self, resamples: usize, seed: u64) -> Option<Interval> {
        middle(
            self.draws(resamples, seed)
                .filter_map(|draw| self.score_of(draw))
                .collect(),
        )
    }

    /// Compares with another system's tally of the same utterances in the same order; absent where the
    /// numbers of utterances differ or one has no score.
    pub fn compare(&self, other: &Self, resamples: usize, seed: u64) -> Option<Comparison> {
        if self.len() != other.len() {
            return None;
        }
        let difference = self.score()? - other.score()?;
        let differences: Vec<f64> = self
            .draws(resamples, seed)
            .filter_map(|draw| {
                let draw: Vec<usize> = draw.collect();
                Some(self.score_of(draw.iter().copied())? - other.score_of(draw)?)
            })
            .collect();
        let share = |side: &dyn Fn(f64) -> bool| {
            differences.iter().filter(|difference| side(**difference)).count() as f64
                / differences.len().max(1) as f64
        };
        let p = (2.0 * share(&|d| d <= 0.0).min(share(&|d| d >= 0.0))).min(1.0);
        Some(Comparison {
            difference,
            interval: middle(differences)?,
            p,
        })
    }

    /// Utterances drawn with replacement, once for each resample.
    fn draws(&self, resamples: usize, seed: u64) -> impl Iterator<Item = impl Iterator<Item = usize>> {
        let count = self.len();
        let mut generator = SplitMix::new(&[seed, count as u64]);
        (0..resamples).map(move |_| {
            let mut generator = SplitMix::new(&[generator.bits()]);
            (0..count).map(move |_| generator.below(count))
        })
    }

    fn score_of(&self, utterances: impl IntoIterator<Item = usize>) -> Option<f64> {
        let mut sums = vec![0.0; self.formula.width()];
        let mut any = false;
        for utterance in utterances {
            any = true;
            for (at, value) in &self.entries[self.starts[utterance]..self.starts[utterance + 1]] {
                sums[*at] += value;
            }
        }
        if any { self.formula.score(&sums) } else { None }
    }
}

impl Formula {
    fn width(self) -> usize {
        match self {
            Self::ErrorRate | Self::Mean => 2,
            Self::Bleu => 2 + 2 * ORDER,
            Self::Chrf => 3 * ORDERS,
            Self::Recall(classes) | Self::ClassF1(classes) => 3 * classes,
            Self::SlotF1 => 3,
        }
    }

    fn score(self, sums: &[f64]) -> Option<f64> {
        match self {
            Self::ErrorRate => Some(100.0 * sums[0] / sums[1].max(1.0)),
            Self::Mean => Some(100.0 * sums[0] / sums[1]),
            Self::Bleu => {
                let counts = BleuCounts {
                    hypothesis: count(sums[0]),
                    reference: count(sums[1]),
                    hits: std::array::from_fn(|order| count(sums[2 + order])),
                    totals: std::array::from_fn(|order| count(sums[2 + ORDER + order])),
                };
                Some(counts.score())
            }
            Self::Chrf => {
                let orders =
                    std::array::from_fn(|order| std::array::from_fn(|which| count(sums[3 * order + which])));
                Some(ChrfCounts { orders }.score())
            }
            Self::Recall(_) => percent(mean(classes(sums).filter_map(|class| class.recall()))),
            Self::ClassF1(_) => percent(mean(classes(sums).filter_map(|class| class.f1()))),
            Self::SlotF1 => {
                let counts = SlotCounts {
                    hits: sums[0],
                    wrong: sums[1],
                    missed: sums[2],
                };
                percent(counts.f1())
            }
        }
    }
}

fn percent(share: Option<f64>) -> Option<f64> {
    share.map(|share| 100.0 * share)
}

fn classes(sums: &[f64]) -> impl Iterator<Item = ClassCounts> {
    sums.chunks_exact(3).map(|class| ClassCounts {
        hits: count(class[0]),
        answered: count(class[1]),
        wanted: count(class[2]),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sums of whole, non-negative counts"
)]
fn count(sum: f64) -> u64 {
    sum as u64
}

/// The middle [`LEVEL`] of some scores; absent for none.
fn middle(mut scores: Vec<f64>) -> Option<Interval> {
    if scores.is_empty() {
        return None;
    }
    scores.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    Some(Interval {
        low: quantile(&scores, tail),
        high: quantile(&scores, 1.0 - tail),
    })
}

/// A quantile of sorted scores, linear between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the length"
    )]
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}
