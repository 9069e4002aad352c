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
pub(super) struct Answered {
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
    ///
    /// As records before a given `upto` are finished, the text that knows them becomes no longer.
    pub(super) fn to_text(&self, bytes_max: usize) -> (String, i64) {
        let position = self.position();
        let (mut exceptions, mut before) = (String::new(), position);
        let mut best = (String::new(), position); // nothing behind the position is known
        for (index, offset) in self.except.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(exceptions, "{comma}{}", offset - before); // a String takes everything
            before = *offset;
            let digits = bytes_max.saturating_sub(PREFIX.len() + EXCEPT.len() + exceptions.len());
            if digits == 0 {
                break;
            }
            let farthest = 10_i64.saturating_pow(u32::try_from(digits).unwrap_or(u32::MAX)) - 1;
            let next = self.except.get(index + 1).copied().unwrap_or(self.upto);
            let distance = (next - position).min(farthest);
            if position + distance > offset + 1 {
                best = (
                    format!("{PREFIX}{distance}{EXCEPT}{exceptions}"),
                    position + distance,
                );
            }
        }
        best
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

            let mut except = answered.except.clone();
            except.remove(position as usize % except.len());
            let (_, later) = Answered::new(answered.upto(), except).to_text(text.len());
            prop_assert!(later >= upto || text.is_empty(), "{} of {} still fit", later, upto);
        }
    }
}
