//! What was read of a stream's utterance in progress.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use speechverse::text::LocalAgreement;

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
    agreement: LocalAgreement,
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
}

impl ReadingTurn {
    /// Takes a reading of the segment of this number; what is to be published of it, if it is new.
    pub fn read(&self, segment: u64, text: &str) -> Option<Read> {
        let mut state = (self.reading.shared.state.lock()).unwrap_or_else(PoisonError::into_inner);
        if segment < state.segment {
            return None; // its segment is over
        }
        if segment > state.segment {
            *state = State {
                segment,
                count: state.count,
                ..State::default()
            };
        }
        let read = state.agreement.read(text);
        if read.0.is_empty() || read == state.published {
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
        let read = |segment, text: &str| {
            let found = reading.turn()?.read(segment, text)?;
            Some((found.number, found.text, found.confirmed))
        };
        let partial =
            |number, text: &str, confirmed: &str| Some((number, text.to_owned(), confirmed.to_owned()));

        assert_eq!(read(0, ""), None);
        assert_eq!(read(0, "one two"), partial(0, "one two", ""));
        assert_eq!(read(0, "one two"), partial(1, "one two", "one"));
        assert_eq!(read(0, "one two"), None);
        assert_eq!(read(2, "three"), partial(2, "three", ""));
        assert_eq!(read(1, "late words"), None);
    }
}
