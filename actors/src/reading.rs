//! What was read of a stream's utterance in progress, and which words of it are confirmed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use speechverse::inference::Generation;
use speechverse::text::agreed_tokens;

/// Segments whose confirmed words are remembered: answers to earlier ones may still wait for their turn.
const REMEMBERED_SEGMENTS: usize = 16;

/// The readings of one stream. Clones are the same stream.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// One reading is on its way.
    is_busy: AtomicBool,
    /// The utterance in progress has probably ended, and is being answered.
    is_answered: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    segment: u64,
    /// What is confirmed of segments.
    confirmed: BTreeMap<u64, Confirmed>,
    /// The language model's last hypothesis, and where the sound ended of which it is, seconds.
    before: (Vec<i64>, f64),
    /// What was published last.
    published: (String, String),
    /// How many partial answers were published.
    count: u64,
}

/// Tokens with which the answer to a segment begins for good.
#[derive(Debug, Default)]
struct Confirmed {
    tokens: Generation,
    /// How many of them were spoken before which moment of the stream, seconds, in order.
    spoken: Vec<(f64, usize)>,
}

/// A segment whose answer begins with the words that were confirmed while it was spoken.
#[derive(Clone, Debug)]
pub struct ReadSegment {
    /// The readings of its stream.
    pub reading: Reading,
    /// Which segment.
    pub number: u64,
    /// Where it ends, seconds, if speech went on there: what was confirmed may have been spoken after that.
    pub cut_seconds: Option<f64>,
}

impl ReadSegment {
    /// The confirmed tokens that were spoken before its end.
    pub fn confirmed(&self) -> Generation {
        let Some(cut) = self.cut_seconds else {
            return self.reading.confirmed(self.number);
        };
        let state = self.reading.state();
        let Some(confirmed) = state.confirmed.get(&self.number) else {
            return Generation::default();
        };
        let spoken = confirmed.spoken.iter().rev().find(|(end, _)| *end <= cut);
        first_tokens(&confirmed.tokens, spoken.map_or(0, |(_, tokens)| *tokens))
    }
}

/// Says that a reading is on its way, until it is dropped.
#[derive(Debug)]
pub struct ReadingTurn {
    reading: Reading,
}

/// Something new to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Which partial answer of the stream it is, from 0.
    pub number: u64,
    /// The words so far.
    pub text: String,
    /// What the text begins with for good.
    pub confirmed: String,
}

impl Reading {
    /// The next reading's turn, unless one is on its way.
    pub fn turn(&self) -> Option<ReadingTurn> {
        let busy = self.shared.is_busy.swap(true, Ordering::AcqRel);
        (!busy).then(|| ReadingTurn {
            reading: self.clone(),
        })
    }

    /// Whether the utterance in progress is being answered: readings that are not finished would only delay
    /// the answer.
    pub fn set_answered(&self, is_answered: bool) {
        self.shared.is_answered.store(is_answered, Ordering::Release);
    }

    /// Tokens with which the answer to a segment begins for good.
    pub fn confirmed(&self, segment: u64) -> Generation {
        let state = self.state();
        let confirmed = state.confirmed.get(&segment);
        confirmed.map_or_else(Generation::default, |confirmed| confirmed.tokens.clone())
    }

    /// A poisoned lock is sound: each change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Goes on to a segment; whether it is the present one.
    fn enter(&mut self, segment: u64) -> bool {
        if segment > self.segment {
            *self = Self {
                segment,
                confirmed: std::mem::take(&mut self.confirmed),
                count: self.count,
                ..Self::default()
            };
        }
        segment == self.segment
    }
}

impl ReadingTurn {
    /// Whether the utterance is being answered already, so that it need not be read.
    pub fn is_answered(&self) -> bool {
        self.reading.shared.is_answered.load(Ordering::Acquire)
    }

    /// As [`Reading::confirmed`].
    pub fn confirmed(&self, segment: u64) -> Generation {
        self.reading.confirmed(segment)
    }

    /// Takes the language model's hypothesis of the segment so far, whose sound ends at `end_seconds` of the
    /// stream and which begins with what is confirmed. On what it and the one before agree is confirmed from
    /// now on; it was spoken before the earlier one's sound ended.
    pub fn agree(
        &self,
        segment: u64,
        end_seconds: f64,
        hypothesis: &Generation,
        begins_word: impl Fn(i64) -> bool,
    ) {
        let mut state = self.reading.state();
        if !state.enter(segment) {
            return;
        }
        let (before, before_seconds) = std::mem::take(&mut state.before);
        let agreed = agreed_tokens(&before, &hypothesis.ids, &begins_word);
        let confirmed = state.confirmed.entry(segment).or_default();
        let next = hypothesis.ids.get(confirmed.tokens.ids.len());
        // One that spells the last confirmed word on would change it.
        let keeps_words = confirmed.tokens.ids.is_empty() || next.is_some_and(|id| begins_word(*id));
        if keeps_words && agreed > confirmed.tokens.ids.len() && hypothesis.log_probs.len() >= agreed {
            confirmed.tokens = first_tokens(hypothesis, agreed);
            confirmed.spoken.push((before_seconds, agreed));
        }
        if state.confirmed.len() > REMEMBERED_SEGMENTS {
            state.confirmed.pop_first();
        }
        state.before = (hypothesis.ids.clone(), end_seconds);
    }

    /// Bytes of the text of the segment that was published last.
    pub fn published_bytes(&self, segment: u64) -> usize {
        let state = self.reading.state();
        if state.segment == segment {
            state.published.0.len()
        } else {
            0
        }
    }

    /// Takes a reading of the segment, and the text of what is confirmed; what is to be published of it, if
    /// it is new.
    pub fn read(&self, segment: u64, text: String, confirmed: String) -> Option<Read> {
        let mut state = self.reading.state();
        let read = (text, confirmed);
        if !state.enter(segment) || read.0.is_empty() || read == state.published {
            return None;
        }
        state.published = read.clone();
        state.count += 1;
        Some(Read {
            number: state.count - 1,
            text: read.0,
            confirmed: read.1,
        })
    }
}

/// The first tokens of a hypothesis, which has as many.
fn first_tokens(hypothesis: &Generation, count: usize) -> Generation {
    Generation {
        ids: hypothesis.ids[..count].to_vec(),
        log_probs: hypothesis.log_probs[..count].to_vec(),
        ..Generation::default()
    }
}

impl Drop for ReadingTurn {
    fn drop(&mut self) {
        self.reading.shared.is_busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reading_is_on_its_way_at_a_time() {
        let reading = Reading::default();
        let turn = reading.turn().unwrap();

        assert!(reading.clone().turn().is_none());
        reading.set_answered(true);
        assert!(turn.is_answered());
        drop(turn);

        assert!(reading.turn().is_some());
    }

    #[test]
    fn only_what_is_new_is_told_and_a_segment_begins_anew() {
        let reading = Reading::default();
        let read = |segment, text: &str, confirmed: &str| {
            let turn = reading.turn()?;
            let found = turn.read(segment, text.to_owned(), confirmed.to_owned())?;
            Some((found.number, found.text, found.confirmed))
        };
        let partial =
            |number, text: &str, confirmed: &str| Some((number, text.to_owned(), confirmed.to_owned()));

        assert_eq!(read(0, "", ""), None);
        assert_eq!(read(0, "one two", ""), partial(0, "one two", ""));
        assert_eq!(read(0, "one two", "one"), partial(1, "one two", "one"));
        let published = [0, 1].map(|segment| reading.turn().unwrap().published_bytes(segment));
        assert_eq!(published, [7, 0]);
        assert_eq!(read(0, "one two", "one"), None);
        assert_eq!(read(2, "three", ""), partial(2, "three", ""));
        assert_eq!(read(1, "late words", ""), None);
    }

    #[test]
    fn on_what_two_hypotheses_agree_is_confirmed_and_stays() {
        let reading = Reading::default();
        let turn = reading.turn().unwrap();
        let agree = |segment, ids: &[i64]| {
            let hypothesis = Generation {
                ids: ids.to_vec(),
                log_probs: vec![-0.5; ids.len() + 1],
                ..Generation::default()
            };
            turn.agree(segment, 1.0, &hypothesis, |id| id >= 10);
            turn.confirmed(segment)
        };

        assert!(agree(0, &[10, 11, 1, 12, 13, 14]).ids.is_empty());
        assert_eq!(agree(0, &[10, 11, 1, 12, 13, 14, 15]).ids, [10, 11, 1]);
        let confirmed = agree(0, &[10, 11, 1, 20, 21]);
        assert_eq!((confirmed.ids, confirmed.log_probs.len()), (vec![10, 11, 1], 3));
        assert_eq!(agree(0, &[10]).ids, [10, 11, 1], "nothing is taken back");
        // Twice the same, and `2` spells the last confirmed word on.
        let longer = [10, 11, 1, 2, 20, 21, 22, 23];
        agree(0, &longer);
        assert_eq!(
            agree(0, &longer).ids,
            [10, 11, 1],
            "a confirmed word stays as it is"
        );
        assert!(
            agree(1, &[10, 11, 1, 12, 13, 14]).ids.is_empty(),
            "another segment"
        );
        assert!(agree(1, &[20, 15, 16, 17]).ids.is_empty());
        let late = agree(0, &[10, 11, 1, 20, 21, 22, 23]);
        assert_eq!(
            late.ids,
            [10, 11, 1],
            "it is over, and its answer may still be made"
        );
    }

    #[test]
    fn a_segment_that_is_cut_begins_with_what_was_spoken_before_the_cut() {
        let reading = Reading::default();
        let turn = reading.turn().unwrap();
        for (end_seconds, words) in [(1.0, 5), (2.0, 8), (3.0, 10)] {
            let hypothesis = Generation {
                ids: (10..10 + words).collect(),
                log_probs: vec![-0.5; 11],
                ..Generation::default()
            };
            turn.agree(0, end_seconds, &hypothesis, |id| id >= 10);
        }
        let confirmed = |cut_seconds| {
            let segment = ReadSegment {
                reading: reading.clone(),
                number: 0,
                cut_seconds,
            };
            let confirmed = segment.confirmed();
            assert_eq!(confirmed.ids.len(), confirmed.log_probs.len());
            confirmed.ids.len()
        };

        assert_eq!(
            confirmed(None),
            5,
            "all but the last three of the hypothesis at 2 s"
        );
        assert_eq!(confirmed(Some(2.5)), 5);
        assert_eq!(confirmed(Some(1.9)), 2, "those of the hypothesis at 1 s");
        assert_eq!(confirmed(Some(0.9)), 0);
    }
}
