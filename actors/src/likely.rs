//! Utterances that have probably ended: answered at once, and the answer kept back until the silence has
//! lasted. Where somebody speaks on, it is dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use speechverse::audio::Window;
use speechverse::wire::dead_letter::Rejection;

use crate::context::{Joined, RequestContext, WindowAnswer, WindowDone, WindowOwner};
use crate::joining::Joining;

/// A window that ends an utterance if nobody speaks on. Dropped before it is certain, it never was one.
#[derive(Debug)]
pub(crate) struct LikelyWindow {
    pub(crate) window: Window,
    owner: Arc<LikelyOwner>,
}

/// Whoever joins, behind the question whether the window is one.
#[derive(Debug)]
struct LikelyOwner {
    joining: Joining,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Likely(Option<Box<WindowDone>>),
    Certain,
    Withdrawn,
}

impl LikelyWindow {
    /// A window of a recording, and its owner, for its context. The recording does not expect it yet.
    pub(crate) fn new(window: Window, joining: &Joining) -> (Self, Arc<dyn WindowOwner>) {
        let owner = Arc::new(LikelyOwner {
            joining: joining.clone(),
            state: Mutex::new(State::Likely(None)),
        });
        (
            Self {
                window,
                owner: owner.clone(),
            },
            owner,
        )
    }

    /// The utterance has ended there. The answer, where it is made already; otherwise it is published when it
    /// is made. The recording must expect the window by now.
    pub(crate) fn confirm(self) -> Option<Box<WindowDone>> {
        match std::mem::replace(&mut *self.owner.state(), State::Certain) {
            State::Likely(done) => done,
            State::Certain | State::Withdrawn => None,
        }
    }
}

impl Drop for LikelyWindow {
    fn drop(&mut self) {
        let mut state = self.owner.state();
        if let State::Likely(done) = &mut *state {
            let done = done.take();
            *state = State::Withdrawn;
            drop(state);
            if let Some(done) = done {
                done.context.complete();
            }
        }
    }
}

impl LikelyOwner {
    /// A poisoned lock is sound: each change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_withdrawn(&self) -> bool {
        matches!(*self.state(), State::Withdrawn)
    }
}

impl WindowOwner for LikelyOwner {
    fn keep(&self, mut done: WindowDone) -> Option<WindowDone> {
        // Its work is over, and what it waits for may come from a partition that is paused for such work.
        done.context.let_go();
        let mut state = self.state();
        match &mut *state {
            State::Likely(kept) => *kept = Some(Box::new(done)),
            State::Certain => return Some(done),
            State::Withdrawn => drop(done.context.complete()),
        }
        None
    }

    fn answered(&self, number: usize, answer: WindowAnswer) -> Option<Joined> {
        self.joining.answered(number, answer)
    }

    fn failed(&self, why: Rejection) -> Option<RequestContext> {
        match self.is_withdrawn() {
            true => None,
            false => self.joining.failed(why),
        }
    }

    fn is_over(&self) -> bool {
        self.is_withdrawn() || self.joining.is_over()
    }
}
