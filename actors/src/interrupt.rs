//! Barge-in: a new utterance of a session ends the answers that are in progress for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use speechverse::wire::request::Request;

/// Whether a request's answer is to be ended with what there is of it. Clones are the same request's.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    is_set: Arc<AtomicBool>,
}

impl Interrupt {
    /// Whether somebody has spoken again.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Somebody has.
    pub fn set(&self) {
        self.is_set.store(true, Ordering::Release);
    }
}

/// The unfinished requests of each session.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    sessions: HashMap<(Option<String>, String), Vec<Weak<AtomicBool>>>,
    /// How many were entered since those that are over were last dropped.
    entered: usize,
}

impl Interrupts {
    /// So many are entered before those that are over are dropped.
    const SWEEP_EVERY: usize = 1_024;

    /// Enters the interrupt of a request, to be had by its session.
    pub(crate) fn enter(&mut self, request: &Request, interrupt: Interrupt) -> Interrupt {
        let Some(session) = request.session.clone() else {
            return interrupt;
        };
        self.entered += 1;
        if self.entered >= Self::SWEEP_EVERY {
            self.entered = 0;
            self.sessions.retain(|_, requests| {
                requests.retain(|request| request.strong_count() > 0);
                !requests.is_empty()
            });
        }
        let requests = self
            .sessions
            .entry((request.source.clone(), session))
            .or_default();
        requests.retain(|request| request.strong_count() > 0);
        requests.push(Arc::downgrade(&interrupt.is_set));
        interrupt
    }

    /// Ends what is in progress for the session of a request; how many requests that are.
    pub(crate) fn interrupt(&mut self, request: &Request) -> usize {
        let Some(session) = request.session.clone() else {
            return 0;
        };
        let found = self.sessions.remove(&(request.source.clone(), session));
        let unfinished = found
            .into_iter()
            .flatten()
            .filter_map(|request| request.upgrade());
        unfinished
            .map(|is_set| is_set.store(true, Ordering::Release))
            .count()
    }
}
