//! How well the flag `unsupported` tells wrong transcripts from right ones.

use serde::{Deserialize, Serialize};

use super::run::Row;
use super::variants::ASR;
use crate::scoring::Metric;
use crate::scoring::errors::word_errors;

/// Word error rate above which a transcript counts as wrong.
const WRONG_ABOVE: f64 = 0.5;
/// Word error rate below which a transcript counts as right.
const RIGHT_BELOW: f64 = 0.1;

/// Answers, and how many of them are flagged.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Answers that are flagged.
    pub flagged: usize,
    /// All of them.
    pub answers: usize,
}

impl Share {
    fn add(&mut self, is_flagged: bool) {
        self.flagged += usize::from(is_flagged);
        self.answers += 1;
    }

    /// Per cent that are flagged; absent where there is no answer.
    #[expect(clippy::cast_precision_loss, reason = "counts of answers")]
    pub fn percent(&self) -> Option<f64> {
        (self.answers > 0).then(|| 100.0 * self.flagged as f64 / self.answers as f64)
    }
}

/// The flag `unsupported` on the transcripts of a dataset by one variant, or of all datasets.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Support {
    /// The variant that answered.
    #[serde(rename = "system")]
    pub variant: String,
    /// Manifest; absent for all of them together.
    #[serde(rename = "set")]
    pub dataset: Option<String>,
    /// Transcripts with a word error rate above 50 %.
    pub wrong: Share,
    /// Transcripts with a word error rate below 10 %.
    pub right: Share,
}

impl Support {
    /// Counts for each variant and dataset, then for each variant over all datasets. Transcripts without a
    /// word claim nothing and are left out, as are answers without `support`. `below`: the support under
    /// which an answer is flagged (`decoder.unsupported_below`).
    pub fn of(rows: &[Row], below: f64) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for is_total in [false, true] {
            for row in rows.iter().filter(|row| row.task == ASR) {
                let Some(support) = row.support.filter(|_| !row.hypothesis.trim().is_empty()) else {
                    continue;
                };
                let dataset = (!is_total).then(|| row.dataset.clone());
                let same = |one: &Self| one.variant == row.variant && one.dataset == dataset;
                let at = found.iter().position(same).unwrap_or_else(|| {
                    found.push(Self {
                        variant: row.variant.clone(),
                        dataset,
                        wrong: Share::default(),
                        right: Share::default(),
                    });
                    found.len() - 1
                });
                let spelt = |text| Metric::Wer.spelling(text);
                let rate = word_errors(&spelt(&row.reference), &spelt(&row.hypothesis)).rate();
                if rate > WRONG_ABOVE {
                    found[at].wrong.add(support < below);
                } else if rate < RIGHT_BELOW {
                    found[at].right.add(support < below);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(dataset: &str, reference: &str, hypothesis: &str, support: Option<f64>) -> Row {
        Row {
            task: ASR.to_owned(),
            variant: "v".to_owned(),
            dataset: dataset.to_owned(),
            reference: reference.to_owned(),
            hypothesis: hypothesis.to_owned(),
            support,
            ..Row::default()
        }
    }

    #[test]
    fn wrong_and_right_transcripts_are_counted_by_dataset_and_together() {
        let rows = [
            row("a", "red green blue", "Red, green blue!", Some(0.9)),
            row("a", "red green blue", "red green blue", Some(0.5)),
            row("a", "red green blue", "grey pink blue", Some(0.4)),
            row("a", "red green blue", "red green grey", Some(0.1)), // neither right nor wrong
            row("b", "", "something", Some(0.8)),
            row("b", "something", " ", Some(0.1)),
            row("b", "something", "else", None),
        ];

        let found = Support::of(&rows, 0.7);

        let share = |flagged, answers| Share { flagged, answers };
        let shares: Vec<_> = (found.iter())
            .map(|found| (found.dataset.as_deref(), found.wrong, found.right))
            .collect();
        assert_eq!(
            shares,
            [
                (Some("a"), share(1, 1), share(1, 2)),
                (Some("b"), share(0, 1), share(0, 0)),
                (None, share(1, 2), share(1, 2)),
            ]
        );
        assert_eq!(
            (found[2].wrong.percent(), found[1].right.percent()),
            (Some(50.0), None)
        );
    }
}
