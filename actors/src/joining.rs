//! Recordings that are answered window by window: whose answers are there, and one answer of all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use speechverse::inference::Generation;
use speechverse::wire::dead_letter::Rejection;

use crate::context::{Joined, RequestContext, WindowAnswer, WindowOwner};

/// The answers to the windows of one recording. Clones are the same recording.
///
/// The recording's context is here from the moment that it is known until the outcome: the joined answer, or
/// the first failure of a window. Where nobody asks for it any more, it goes the way of all contexts.
#[derive(Clone, Debug, Default)]
pub struct Joining {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By number: the answer, once it is there, and whether the window begins inside the one before.
    windows: Vec<(Option<WindowAnswer>, bool)>,
    context: Option<RequestContext>,
    /// No further window will come.
    is_closed: bool,
    failure: Option<Rejection>,
}

impl Joining {
    /// Announces a window, before it is sent; its number.
    pub fn expect(&self, overlaps: bool) -> usize {
        let mut shared = self.shared();
        shared.windows.push((None, overlaps));
        shared.windows.len() - 1
    }

    /// The number that the next announced window gets.
    pub fn next_number(&self) -> usize {
        self.shared().windows.len()
    }

    /// Gives the recording's context into its keeping.
    pub fn keep(&self, context: RequestContext) {
        let mut shared = self.shared();
        if shared.failure.is_none() {
            shared.context = Some(context);
        } // else it is dropped, and its record handed on by that
    }

    /// No further window will come. The whole, where all answers are there.
    pub fn close(&self) -> Option<Joined> {
        let mut shared = self.shared();
        shared.is_closed = true;
        shared.whole()
    }

    /// Why the recording cannot be answered, if a window failed.
    pub fn failure(&self) -> Option<Rejection> {
        self.shared().failure.clone()
    }

    /// Takes the recording's context out: it is given up.
    pub fn give_up(&self, why: Rejection) -> Option<RequestContext> {
        WindowOwner::failed(self, why)
    }

    /// A poisoned lock is sound: each change is one assignment.
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WindowOwner for Joining {
    fn answered(&self, number: usize, answer: WindowAnswer) -> Option<Joined> {
        let mut shared = self.shared();
        if let Some((place, _)) = shared.windows.get_mut(number) {
            *place = Some(answer);
        }
        shared.whole()
    }

    fn failed(&self, why: Rejection) -> Option<RequestContext> {
        let mut shared = self.shared();
        shared.failure.get_or_insert(why);
        shared.windows.clear();
        shared.context.take()
    }

    fn is_over(&self) -> bool {
        self.shared().failure.is_some()
    }
}

impl Shared {
    fn whole(&mut self) -> Option<Joined> {
        let all = self.windows.iter().all(|(answer, _)| answer.is_some());
        if !self.is_closed || !all || self.failure.is_some() {
            return None;
        }
        let mut context = self.context.take()?;
        let answers: Vec<(WindowAnswer, bool)> = std::mem::take(&mut self.windows)
            .into_iter()
            .filter_map(|(answer, overlaps)| Some((answer?, overlaps)))
            .collect();
        for (answer, _) in &answers {
            context.times.add(&answer.times);
        }
        context.no_speech = answers.is_empty();
        let windows = answers
            .into_iter()
            .map(|(answer, overlaps)| (answer.generation, answer.text, overlaps));
        let (generation, text) = Generation::join_windows(windows.collect());
        Some(Joined {
            context,
            generation,
            text,
        })
    }
}
