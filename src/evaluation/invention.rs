//! How often words are answered where none were said.

use serde::{Deserialize, Serialize};

use super::run::Row;
use super::variants::ASR;

/// Transcripts of clips in which nothing is said, of one variant and dataset.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Invention {
    /// The variant that answered.
    #[serde(rename = "system")]
    pub variant: String,
    /// Manifest.
    #[serde(rename = "set")]
    pub dataset: String,
    /// Clips whose reference is empty.
    pub clips: usize,
    /// Those of them whose transcript is not.
    pub with_words: usize,
}

impl Invention {
    /// Counts for each variant and dataset that has such clips.
    pub fn of(rows: &[Row]) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let silent = |row: &&Row| row.task == ASR && row.reference.trim().is_empty();
        for row in rows.iter().filter(silent) {
            let same = |one: &Self| one.variant == row.variant && one.dataset == row.dataset;
            let at = found.iter().position(same).unwrap_or_else(|| {
                found.push(Self {
                    variant: row.variant.clone(),
                    dataset: row.dataset.clone(),
                    clips: 0,
                    with_words: 0,
                });
                found.len() - 1
            });
            found[at].clips += 1;
            found[at].with_words += usize::from(!row.hypothesis.trim().is_empty());
        }
        found
    }

    /// Per cent of the clips that got words.
    #[expect(clippy::cast_precision_loss, reason = "counts of answers")]
    pub fn percent(&self) -> f64 {
        100.0 * self.with_words as f64 / self.clips.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_where_none_were_said() {
        let row = |task: &str, dataset: &str, reference: &str, hypothesis: &str| Row {
            task: task.to_owned(),
            variant: "v".to_owned(),
            dataset: dataset.to_owned(),
            reference: reference.to_owned(),
            hypothesis: hypothesis.to_owned(),
            ..Row::default()
        };
        let rows = [
            row(ASR, "noise", "", "well"),
            row(ASR, "noise", " ", ""),
            row(ASR, "noise", "", "\n"),
            row(ASR, "noise", "words", "others"),
            row(ASR, "words", "words", "others"),
            row("keywords", "noise", "", "well"),
        ];

        let found = Invention::of(&rows);

        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].dataset.as_str(), found[0].clips, found[0].with_words),
            ("noise", 3, 1)
        );
        assert!((found[0].percent() - 100.0 / 3.0).abs() < 1e-9);
    }
}
