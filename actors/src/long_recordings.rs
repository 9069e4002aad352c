//! Long recordings: those that wait for their turn, and how many are worked through at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use speechverse::wire::request::Priority;
use tokio::runtime::Handle;
use tracing::error;

use crate::fair_queue::{FairQueue, QUANTUM_SECONDS, QueueEntry};
use crate::long_recording::LongRecording;

/// Recordings that wait in a [`FairQueue`], and the threads that work through those whose turn it is: equally
/// many for each priority, so that none waits for the end of a recording of the other one.
///
/// How long a recording is, is not known before it is measured, so each takes one turn of its key; their
/// windows take turns by audio seconds. Clones are the same; what waits is worked through also when only the
/// threads are left.
#[derive(Clone)]
pub(crate) struct LongRecordings {
    shared: Arc<Shared>,
}

struct Shared {
    /// Threads for each priority.
    each_max: usize,
    state: Mutex<State>,
}

struct State {
    waiting: FairQueue<LongRecording>,
    running_interactive: usize,
    running_bulk: usize,
}

/// One of the threads of a priority; when it is dropped, the next recording's turn has come.
struct Running {
    recordings: LongRecordings,
    priority: Priority,
    runtime: Handle,
}

impl LongRecordings {
    /// None yet; `each_max` of each priority are worked through at once.
    pub(crate) fn new(each_max: usize) -> Self {
        let state = State {
            waiting: FairQueue::new(0.0), // priorities do not share their threads
            running_interactive: 0,
            running_bulk: 0,
        };
        Self {
            shared: Arc::new(Shared {
                each_max,
                state: Mutex::new(state),
            }),
        }
    }

    /// Takes a recording, which is worked through when its turn has come. In the context of a runtime.
    pub(crate) fn push(&self, recording: LongRecording) {
        let entry = QueueEntry {
            audio_seconds: QUANTUM_SECONDS,
            ..recording.context.queue_entry()
        };
        self.state().waiting.push(entry, recording);
        self.start_next(&Handle::current());
    }

    /// Takes out those that wait and are not wanted any more at `now`.
    pub(crate) fn take_unwanted(&self, now: Instant) -> Vec<LongRecording> {
        self.state()
            .waiting
            .take_if(|_, recording| !recording.is_wanted(now))
    }

    fn start_next(&self, runtime: &Handle) {
        while let Some((recording, running)) = self.next(runtime) {
            let started = std::thread::Builder::new()
                .name("long-recording".to_owned())
                .spawn(move || {
                    recording.run(&running.runtime);
                    drop(running);
                });
            if let Err(error) = started {
                error!(%error, "no thread for a long recording, it goes back");
            }
        }
    }

    /// The recording whose turn it is, where a thread is free for it.
    fn next(&self, runtime: &Handle) -> Option<(LongRecording, Running)> {
        let mut state = self.state();
        let is_open = [Priority::Interactive, Priority::Bulk]
            .map(|priority| *state.running(priority) < self.shared.each_max);
        let recording = state.waiting.pop(|priority| match priority {
            Priority::Interactive => is_open[0],
            Priority::Bulk => is_open[1],
        })?;
        let priority = recording.context.request.priority;
        *state.running(priority) += 1;
        let running = Running {
            recordings: self.clone(),
            priority,
            runtime: runtime.clone(),
        };
        Some((recording, running))
    }

    /// A poisoned lock is sound: the counters are changed by single steps, the queue by calls that do not
    /// panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn running(&mut self, priority: Priority) -> &mut usize {
        match priority {
            Priority::Interactive => &mut self.running_interactive,
            Priority::Bulk => &mut self.running_bulk,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.recordings.state().running(self.priority) -= 1;
        self.recordings.start_next(&self.runtime);
    }
}
