//! What is answered beyond a committed offset, as text in the offset's metadata.
//!
//! A committed offset says "everything before me is finished". Work finishes out of order, so some records
//! behind it are finished too. The group's offsets have a metadata field for each partition; this text in it
//! names them, and whoever reads the partition next passes them over.
//!
//! Where they fit, the unfinished offsets are listed one by one: `answered=20;except=0,3,14`. Otherwise, as
//! beside a long stream, the text has run lengths, of unfinished offsets and of finished ones in turn, in
//! Base64 VLQ as source maps have it, without a sign: `answered-runs=`, then a byte for a run of up to 31,
//! two for one of up to 1,023. A version that does not know a form takes it for the metadata of somebody
//! else.

use std::fmt::Write as _;
use std::ops::Range;

/// Most bytes of text; a broker takes 4,096 unless configured otherwise (`offset.metadata.max.bytes`).
pub(super) const MEMORY_BYTES_MAX: usize = 4_000;
/// What a list begins with.
const LIST: &str = "answered=";
/// What stands before its exceptions.
const EXCEPT: &str = ";except=";
/// What run lengths begin with.
const RUNS: &str = "answered-runs=";
/// Digits of a run length, 5 bits each, the lowest first; the second half says that another one follows.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Bits of a digit.
const DIGIT_BITS: usize = 5;
/// Most digits of a run length.
const LENGTH_DIGITS_MAX: usize = 12;

/// The records from a position up to `upto` are finished, except for some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answered {
    /// The first offset of which nothing is known.
    upto: i64,
    /// Runs before `upto` that are not finished, ascending; none is empty, and none touches the next.
    except: Vec<Range<i64>>,
}

impl Answered {
    /// Everything before `upto` is finished but the offsets of the runs `except`, which ascend.
    pub(super) fn new(upto: i64, except: impl IntoIterator<Item = Range<i64>>) -> Self {
        let mut runs: Vec<Range<i64>> = Vec::new();
        for run in except {
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
        Self { upto, except: runs }
    }

    /// Whether the record at `offset` is finished.
    pub(super) fn contains(&self, offset: i64) -> bool {
        let run = self.except.partition_point(|run| run.end <= offset);
        offset < self.upto && self.except.get(run).is_none_or(|run| offset < run.start)
    }

    /// The first offset of which nothing is known.
    pub(super) fn upto(&self) -> i64 {
        self.upto
    }

    /// The lowest offset that is not finished.
    pub(super) fn position(&self) -> i64 {
        self.except.first().map_or(self.upto, |run| run.start)
    }

    /// Runs of unfinished offsets from `from` on.
    pub(super) fn except_from(&self, from: i64) -> impl Iterator<Item = Range<i64>> {
        let first = self.except.partition_point(|run| run.end <= from);
        self.except[first..]
            .iter()
            .map(move |run| run.start.max(from)..run.end)
    }

    /// The text for the metadata of a committed [`position`](Self::position), at most `bytes_max` long, and
    /// the offset up to which it knows: lower than [`upto`](Self::upto) where the rest does not fit.
    ///
    /// As records at the position are finished, the text that knows the others becomes no longer. One that is
    /// finished in the middle of a run makes two runs of it.
    pub(super) fn to_text(&self, bytes_max: usize) -> (String, i64) {
        self.list(bytes_max).unwrap_or_else(|| self.runs(bytes_max))
    }

    /// Each run of unfinished offsets that finished ones follow, and where those end.
    fn followed(&self) -> impl Iterator<Item = (&Range<i64>, i64)> {
        let ends = self.except.iter().skip(1).map(|run| run.start).chain([self.upto]);
        self.except.iter().zip(ends).filter(|(run, end)| run.end < *end)
    }

    /// All of it as a list; `None` where that is too long.
    fn list(&self, bytes_max: usize) -> Option<(String, i64)> {
        let position = self.position();
        let Some(upto) = self.followed().last().map(|(_, end)| end) else {
            return Some((String::new(), position)); // nothing behind the position is known
        };
        let mut text = format!("{LIST}{}{EXCEPT}", upto - position);
        let (mut comma, mut before) = ("", position);
        for offset in self.followed().flat_map(|(run, _)| run.clone()) {
            let _ = write!(text, "{comma}{}", offset - before); // a String takes everything
            if text.len() > bytes_max {
                return None;
            }
            (comma, before) = (",", offset);
        }
        Some((text, upto))
    }

    /// As much of it as fits, as run lengths.
    fn runs(&self, bytes_max: usize) -> (String, i64) {
        let (mut text, mut fits, mut upto) = (RUNS.to_owned(), 0, self.position());
        for (run, end) in self.followed() {
            push_length(&mut text, run.end - run.start);
            let digits = bytes_max.saturating_sub(text.len()).min(LENGTH_DIGITS_MAX);
            if digits == 0 {
                break;
            }
            let finished = (end - run.end).min((1 << (DIGIT_BITS * digits)) - 1);
            push_length(&mut text, finished);
            (fits, upto) = (text.len(), run.end + finished);
            if upto < end {
                break;
            }
        }
        text.truncate(fits);
        (text, upto)
    }

    /// Reads the metadata of the committed offset `position`; `None` where it is not ours.
    pub(super) fn parse(position: i64, text: &str) -> Option<Self> {
        match text.strip_prefix(RUNS) {
            Some(lengths) => Self::parse_runs(position, lengths),
            None => Self::parse_list(position, text),
        }
    }

    fn parse_list(position: i64, text: &str) -> Option<Self> {
        let (upto, exceptions) = text.strip_prefix(LIST)?.split_once(EXCEPT)?;
        let upto = position.checked_add(upto.parse().ok().filter(|distance| *distance >= 0)?)?;
        let mut except: Vec<Range<i64>> = Vec::new();
        let mut last = position;
        for distance in exceptions.split(',').filter(|distance| !distance.is_empty()) {
            last = last.checked_add(distance.parse().ok().filter(|distance| *distance >= 0)?)?;
            if last >= upto || except.last().is_some_and(|before| before.start == last) {
                return None;
            }
            except.push(last..last + 1);
        }
        Some(Self::new(upto, except))
    }

    fn parse_runs(position: i64, lengths: &str) -> Option<Self> {
        let mut digits = lengths.bytes();
        let (mut upto, mut except) = (position, Vec::new());
        while digits.len() > 0 {
            let begin = upto;
            let end = begin.checked_add(length(&mut digits)?)?;
            upto = end.checked_add(length(&mut digits)?)?;
            except.push(begin..end);
        }
        Some(Self { upto, except })
    }
}

fn push_length(text: &mut String, mut length: i64) {
    loop {
        let (digit, rest) = (length as usize % (1 << DIGIT_BITS), length >> DIGIT_BITS);
        let more = usize::from(rest > 0) << DIGIT_BITS;
        text.push(char::from(DIGITS[digit | more]));
        if rest == 0 {
            return;
        }
        length = rest;
    }
}

/// Reads a run length, which is above 0.
fn length(digits: &mut std::str::Bytes<'_>) -> Option<i64> {
    let mut length = 0;
    for place in 0..LENGTH_DIGITS_MAX {
        let found = digits.next()?;
        let digit = DIGITS.iter().position(|digit| *digit == found)?;
        length += ((digit % (1 << DIGIT_BITS)) as i64) << (DIGIT_BITS * place);
        if digit >> DIGIT_BITS == 0 {
            return (length > 0).then_some(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use proptest::prelude::*;

    use super::*;

    fn answered(upto: i64, except: &[i64]) -> Answered {
        Answered::new(upto, except.iter().map(|offset| *offset..*offset + 1))
    }

    #[test]
    fn the_text_names_what_is_finished_behind_the_position() {
        let answered = answered(120, &[100, 103, 117]);

        let (text, upto) = answered.to_text(MEMORY_BYTES_MAX);

        assert_eq!((text.as_str(), upto), ("answered=20;except=0,3,14", 120));
        assert_eq!(Answered::parse(100, &text), Some(answered));
    }

    #[test]
    fn what_is_finished_behind_the_chunks_of_a_long_stream_is_named() {
        for chunks in [1_990, 2_000, 72_000] {
            let answered = Answered::new(chunks + 1_007, once(7..chunks + 7));

            let (text, upto) = answered.to_text(MEMORY_BYTES_MAX);

            assert_eq!(upto, chunks + 1_007, "{text}");
            assert_eq!(Answered::parse(7, &text), Some(answered));
        }
        let (text, _) = Answered::new(73_000, once(0..72_000)).to_text(MEMORY_BYTES_MAX);
        assert_eq!(text, "answered-runs=gqmCof"); // 72,000 and 1,000
    }

    #[test]
    fn a_stream_of_half_an_hour_beside_a_clip_a_second_is_named() {
        let seconds = 1_800;
        let answered = Answered::new(
            seconds * 11,
            (0..seconds).map(|second| second * 11..second * 11 + 10),
        );

        let (text, upto) = answered.to_text(MEMORY_BYTES_MAX);

        assert_eq!(upto, answered.upto());
        assert_eq!(Answered::parse(0, &text), Some(answered));
    }

    #[test]
    fn nothing_behind_the_position_is_no_text() {
        for answered in [
            answered(7, &[]),
            answered(8, &[7]),
            Answered::new(9_007, once(7..9_007)),
        ] {
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
            "answered-runs=B",
            "answered-runs=BA",
            "answered-runs=B-",
            "answered-runs=Bg",
            "answered-runs=B////////////B",
            "answered-runs=///////////f///////////f///////////f///////////f///////////f\
             ///////////f///////////f///////////f///////////f",
        ] {
            assert_eq!(Answered::parse(5, text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_fits_is_read_back_and_the_rest_counts_as_unknown(
            position in 0_i64..1_000_000,
            runs in proptest::collection::vec((1_i64..300, 1_i64..60), 0..200),
            first in 1_i64..60,
            tail in 1_i64..50,
            bytes_max in 0_usize..600,
        ) {
            let mut except: Vec<Range<i64>> = once(position..position + first).collect();
            for (finished, unfinished) in runs {
                let begin = except[except.len() - 1].end + finished;
                except.push(begin..begin + unfinished);
            }
            let answered = Answered::new(except[except.len() - 1].end + tail, except);

            let (text, upto) = answered.to_text(bytes_max);
            let read = Answered::parse(position, &text).unwrap_or(Answered::new(position, []));

            prop_assert!(text.len() <= bytes_max);
            prop_assert!(upto <= answered.upto());
            for offset in position..answered.upto() {
                prop_assert_eq!(read.contains(offset), offset < upto && answered.contains(offset), "{}", offset);
            }

            let (_, later) = Answered::new(answered.upto(), answered.except_from(position + 1)).to_text(text.len());
            prop_assert!(later >= upto || text.is_empty(), "{} of {} still fit", later, upto);
        }
    }
}
