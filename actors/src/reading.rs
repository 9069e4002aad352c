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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    segment: u64,
    /// Tokens with which the answers to segments begin for good.
    confirmed: BTreeMap<u64, Generation>,
    /// The language model's last hypothesis.
    before: Vec<i64>,
    /// What was published last.
    published: (String, String),
    /// How many partial answers were published.
    count: u64,
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

    /// Tokens with which the answer to a segment begins for good.
    pub fn confirmed(&self, segment: u64) -> Generation {
        self.state().confirmed.get(&segment).cloned().unwrap_or_default()
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
    /// As [`Reading::confirmed`].
    pub fn confirmed(&self, segment: u64) -> Generation {
        self.reading.confirmed(segment)
    }

    /// Takes the language model's hypothesis of the segment so far, which begins with what is confirmed. On
    /// what it and the one before agree is confirmed from now on.
    pub fn agree(&self, segment: u64, hypothesis: &Generation, begins_word: impl Fn(i64) -> bool) {
        let mut state = self.reading.state();
        if !state.enter(segment) {
            return;
        }
        let agreed = agreed_tokens(&state.before, &hypothesis.ids, begins_word);
        let known = state
            .confirmed
            .get(&segment)
            .map_or(0, |confirmed| confirmed.ids.len());
        if agreed > known && hypothesis.log_probs.len() >= agreed {
            let confirmed = Generation {
                ids: hypothesis.ids[..agreed].to_vec(),
                log_probs: hypothesis.log_probs[..agreed].to_vec(),
                ..Generation::default()
            };
            state.confirmed.insert(segment, confirmed);
            if state.confirmed.len() > REMEMBERED_SEGMENTS {
                state.confirmed.pop_first();
            }
        }
        state.before = hypothesis.ids.clone();
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
            turn.agree(segment, &hypothesis, |id| id >= 10);
            turn.confirmed(segment)
        };

        assert!(agree(0, &[10, 11, 1, 12, 13, 14]).ids.is_empty());
        assert_eq!(agree(0, &[10, 11, 1, 12, 13, 14, 15]).ids, [10, 11, 1]);
        let confirmed = agree(0, &[10, 11, 1, 20, 21]);
        assert_eq!((confirmed.ids, confirmed.log_probs.len()), (vec![10, 11, 1], 3));
        assert_eq!(agree(0, &[10]).ids, [10, 11, 1], "nothing is taken back");
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
}
