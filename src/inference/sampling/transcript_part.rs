//! Where the transcript stands in an answer of several parts.

use std::ops::Range;
use std::sync::Arc;

use crate::text::joint::{ESCAPE, SEPARATOR};
use crate::text::{TextError, TokenBytes, Tokenizer};

/// A transcript that is the first part of an answer.
#[derive(Clone, Debug)]
pub struct TranscriptPart {
    /// What stands before it; white space before that is passed over.
    heading: String,
    /// The tokens of the heading, as the tokenizer writes them.
    pub(super) heading_ids: Vec<i64>,
    /// The tokens that spell the separator behind it, with a blank and without.
    pub(super) separators: Vec<i64>,
    /// What tokens spell.
    token_bytes: Arc<TokenBytes>,
}

impl TranscriptPart {
    /// The part under this heading, of answers in the tokens of `tokenizer`.
    ///
    /// # Errors
    /// [`TextError`] when the tokenizer fails, or does not tell what its tokens spell.
    pub fn new(tokenizer: &Tokenizer, heading: &str) -> Result<Self, TextError> {
        let heading = format!("{heading}:");
        let mut separators = Vec::new();
        for separator in [format!(" {SEPARATOR}"), SEPARATOR.to_string()] {
            // More tokens than one are a blank and the other separator.
            if let [id] = tokenizer.encode_plain(&separator)?.as_slice() {
                separators.push(*id);
            }
        }
        Ok(Self {
            heading_ids: tokenizer.encode_plain(&heading)?,
            heading,
            separators,
            token_bytes: tokenizer.token_bytes()?,
        })
    }

    /// Whether a token ends the part, unless its separator is escaped by what is before it.
    pub(super) fn ends(&self, id: i64) -> bool {
        has_separator(self.spelt(id), &mut false)
    }

    /// Which tokens of the answer `ids` stand behind the heading and before the end of the part; none where
    /// the answer does not begin with the heading.
    pub(super) fn range(&self, ids: &[i64]) -> Option<Range<usize>> {
        let heading = self.heading.as_bytes();
        let (mut spelt, mut start) = (Vec::new(), None);
        for (at, id) in ids.iter().enumerate() {
            spelt.extend_from_slice(self.spelt(*id));
            let written = spelt.trim_ascii_start();
            if let Some(rest) = written.strip_prefix(heading) {
                // A token may spell the end of the heading and the separator.
                start = (!has_separator(rest, &mut false)).then_some(at + 1);
                break;
            }
            if !heading.starts_with(written) {
                break;
            }
        }
        let start = start?;
        let mut is_escaped = false;
        let mut words = ids[start..].iter();
        let count = words.position(|id| has_separator(self.spelt(*id), &mut is_escaped));
        Some(start..count.map_or(ids.len(), |count| start + count))
    }

    fn spelt(&self, id: i64) -> &[u8] {
        self.token_bytes.bytes(id).unwrap_or_default()
    }
}

/// Whether there is a separator that is not escaped; `is_escaped`: whether the first byte is, and then
/// whether the one behind the last is.
fn has_separator(bytes: &[u8], is_escaped: &mut bool) -> bool {
    bytes.iter().any(|byte| {
        let found = *byte == SEPARATOR as u8 && !*is_escaped;
        *is_escaped = *byte == ESCAPE as u8 && !*is_escaped;
        found
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The part under `ASR`, of a vocabulary in which these tokens spell something.
    pub(in crate::inference::sampling) fn part(
        heading_ids: &[i64],
        separators: &[i64],
        spelt: &[(i64, &str)],
    ) -> TranscriptPart {
        let tokens = spelt.iter().map(|(id, spelt)| (spelt.as_bytes().into(), *id));
        TranscriptPart {
            heading: "ASR:".to_owned(),
            heading_ids: heading_ids.to_vec(),
            separators: separators.to_vec(),
            token_bytes: Arc::new(TokenBytes::new(tokens.collect(), 32)),
        }
    }

    #[test]
    fn the_transcript_stands_between_heading_and_separator_however_they_are_spelt() {
        let spelt = [
            (1, "AS"),
            (2, "R:"),
            (3, " two"),
            (4, " |"),
            (5, "|"),
            (6, "ASR"),
            (7, ":\""),
            (8, ":|"),
            (9, " "),
            (10, "\\"),
            (11, "ASR: one"),
        ];
        let part = part(&[1, 2], &[4, 5], &spelt);

        for (ids, expected) in [
            (&[][..], None),
            (&[1], None),
            (&[3, 1, 2], None),
            (&[1, 2], Some(2..2)),
            (&[9, 9, 1, 2, 3, 3], Some(4..6)),
            (&[1, 2, 3, 4, 3], Some(2..3)),
            (&[1, 2, 5], Some(2..2)),
            (&[6, 7, 3], Some(2..3)),
            (&[6, 8, 3], None),
            (&[11, 3], Some(1..2)),
            (&[1, 2, 3, 10, 5, 3, 5], Some(2..6)),
            (&[1, 2, 3, 10, 10, 5, 3], Some(2..5)),
        ] {
            assert_eq!(part.range(ids), expected, "{ids:?}");
        }
        assert!(part.ends(4) && part.ends(8) && !part.ends(3));
    }
}
