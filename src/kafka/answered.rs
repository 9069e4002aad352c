//! What is answered beyond a committed offset, as text in the offset's metadata.
//!
//! A committed offset says "everything before me is finished". Work finishes out of order, so some records
//! behind it are finished too. The group's offsets have a metadata field for each partition; this text in it
//! names them, and whoever reads the partition next passes them over.

use std::fmt::Write as _;

/// Most bytes of text; a broker takes 4,096 unless configured otherwise (`offset.metadata.max.bytes`).
pub(super) const MEMORY_BYTES_MAX: usize = 4_000;
/// What the text begins with.
const PREFIX: &str = "answered=";
/// What stands before the exceptions.
const EXCEPT: &str = ";except=";

/// The records from a position up to `upto` are finished, except for some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// The first offset of which nothing is known.
    upto: i64,
    /// Offsets before `upto` that are not finished, ascending.
    except: Vec<i64>,
}

impl Answered {
    /// Everything before `upto` is finished but the offsets of `except`, which ascend.
    pub(super) fn new(upto: i64, except: Vec<i64>) -> Self {
        Self { upto, except }
    }

    /// Whether the record at `offset` is finished.
    pub(super) fn contains(&self, offset: i64) -> bool {
        offset < self.upto && self.except.binary_search(&offset).is_err()
    }

    /// The first offset of which nothing is known.
    pub(super) fn upto(&self) -> i64 {
        self.upto
    }

    /// The lowest offset that is not finished.
    pub(super) fn position(&self) -> i64 {
        self.except.first().copied().unwrap_or(self.upto)
    }

    /// Unfinished offsets from `from` on.
    pub(super) fn except_from(&self, from: i64) -> &[i64] {
        &self.except[self.except.partition_point(|offset| *offset < from)..]
    }

    /// The text for the metadata of a committed [`position`](Self::position), at most `bytes_max` long, and
    /// the offset up to which it knows: lower than [`upto`](Self::upto) where the rest does not fit.
    pub(super) fn to_text(&self, bytes_max: usize) -> (String, i64) {
        let position = self.position();
        // Each exception costs its distance from the one before it; the number of `upto` is counted at its
        // longest.
        let mut left = bytes_max.saturating_sub(PREFIX.len() + EXCEPT.len() + 20);
        let (mut exceptions, mut before) = (String::new(), position);
        let mut upto = self.upto;
        for offset in &self.except {
            let distance = format!("{},", offset - before);
            if distance.len() > left {
                upto = *offset;
                break;
            }
            left -= distance.len();
            exceptions.push_str(&distance);
            before = *offset;
        }
        if upto <= position + i64::from(!self.except.is_empty()) {
            return (String::new(), position); // nothing behind the position is finished
        }
        let mut text = format!("{PREFIX}{}", upto - position);
        let _ = write!(text, "{EXCEPT}{}", exceptions.trim_end_matches(',')); // a String takes everything
        (text, upto)
    }

    /// Reads the metadata of the committed offset `position`; `None` where it is not ours.
    pub(super) fn parse(position: i64, text: &str) -> Option<Self> {
        let (upto, exceptions) = text.strip_prefix(PREFIX)?.split_once(EXCEPT)?;
        let upto = position.checked_add(upto.parse().ok().filter(|distance| *distance >= 0)?)?;
        let mut except = Vec::new();
        let mut last = position;
        for distance in exceptions.split(',').filter(|distance| !distance.is_empty()) {
            last = last.checked_add(distance.parse().ok().filter(|distance| *distance >= 0)?)?;
            if last >= upto || except.last() == Some(&last) {
                return None;
            }
            except.push(last);
        }
        Some(Self { upto, except })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_names_what_is_finished_behind_the_position() {
        let answered = Answered::new(120, vec![100, 103, 117]);

        let (text, upto) = answered.to_text(MEMORY_BYTES_MAX);

        assert_eq!((text.as_str(), upto), ("answered=20;except=0,3,14", 120));
        assert_eq!(Answered::parse(100, &text), Some(answered));
    }

    #[test]
    fn nothing_behind_the_position_is_no_text() {
        for answered in [Answered::new(7, vec![]), Answered::new(8, vec![7])] {
            assert_eq!(answered.to_text(MEMORY_BYTES_MAX), (String::new(), 7));
        }
    }

    #[test]
    fn metadata_of_others_is_passed_over() {
        for text in [
            "",
            "app=7",
            "answered=x;except=",
            "answered=3;except=5",
            "answered=-3;except=",
            "answered=9;except=1,0",
            "answered=9223372036854775807;except=",
        ] {
            assert_eq!(Answered::parse(5, text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_fits_is_read_back_and_the_rest_counts_as_unknown(
            position in 0_i64..1_000_000,
            gaps in proptest::collection::vec(1_i64..300, 0..200),
            tail in 1_i64..50,
            bytes_max in 0_usize..600,
        ) {
            let mut except = vec![position];
            for gap in gaps {
                except.push(except[except.len() - 1] + gap);
            }
            let answered = Answered::new(except[except.len() - 1] + tail, except);

            let (text, upto) = answered.to_text(bytes_max);
            let read = Answered::parse(position, &text).unwrap_or(Answered::new(position, vec![]));

            prop_assert!(text.len() <= bytes_max);
            prop_assert!(upto <= answered.upto());
            for offset in position..answered.upto() {
                prop_assert_eq!(read.contains(offset), offset < upto && answered.contains(offset), "{}", offset);
            }
        }
    }
}
