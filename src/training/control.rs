//! `Control`: a handle by which others pause or stop a training run between two steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::util::Clock;

/// How long a paused run sleeps before it looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Longest that one step waits for work that goes first: under constant load, training is slow but not
/// starved.
const YIELD_MAX: Duration = Duration::from_secs(2);

/// Pauses and stops a run between two steps. Clones steer the same run.
#[derive(Clone, Debug, Default)]
pub struct Control {
    shared: Arc<Shared>,
    /// Whether this handle never reports a stop.
    ignores_stop: bool,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    /// Holders of [`Yield`] guards: work that goes first.
    ahead: AtomicU64,
    /// How long runs have waited for the end of a pause, nanoseconds.
    paused_ns: AtomicU64,
    clock: Clock,
}

/// While one of these lives, training waits at its next step: serving has work.
#[derive(Debug)]
pub struct Yield {
    shared: Arc<Shared>,
}

impl Drop for Yield {
    fn drop(&mut self) {
        self.shared.ahead.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Control {
    /// A run that neither pauses nor stops.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to end after the present step, with a checkpoint.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    /// Whether the run was asked to end.
    pub fn is_stopped(&self) -> bool {
        !self.ignores_stop && self.shared.stop.load(Ordering::Acquire)
    }

    /// A handle for work that must not be left half done: it waits as others do, but is not asked to stop.
    pub(crate) fn ignore_stop(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            ignores_stop: true,
        }
    }

    /// Asks the run to wait after the present step until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.shared.pause.store(true, Ordering::Release);
    }

    /// Lets a paused run go on.
    pub fn resume(&self) {
        self.shared.pause.store(false, Ordering::Release);
    }

    /// Whether the run waits or will wait at its next step.
    pub fn is_paused(&self) -> bool {
        self.shared.pause.load(Ordering::Acquire) || self.shared.ahead.load(Ordering::Acquire) > 0
    }

    /// Makes training wait while the guard lives.
    pub fn yield_to_serving(&self) -> Yield {
        self.shared.ahead.fetch_add(1, Ordering::AcqRel);
        Yield {
            shared: Arc::clone(&self.shared),
        }
    }

    /// One whose waits are measured by this clock.
    #[cfg(test)]
    pub(super) fn by(clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock,
                ..Shared::default()
            }),
            ignores_stop: false,
        }
    }

    /// What waits are measured by.
    pub(super) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// How long runs have waited for the end of a pause, all in all, the present wait included; without waits
    /// for work that goes first.
    pub(super) fn paused_time(&self) -> Duration {
        Duration::from_nanos(self.shared.paused_ns.load(Ordering::Acquire))
    }

    /// Called by the run between steps: waits while paused.
    pub(crate) fn wait(&self) {
        self.wait_by(|| std::thread::sleep(POLL_INTERVAL));
    }

    /// As [`wait`](Self::wait); `pause` lets some time pass between two looks. Returns how long it waited.
    fn wait_by(&self, mut pause: impl FnMut()) -> Duration {
        let shared = &self.shared;
        let start = shared.clock.now();
        let mut now = start;
        loop {
            let paused = shared.pause.load(Ordering::Acquire);
            let gives_way = shared.ahead.load(Ordering::Acquire) > 0 && now - start < YIELD_MAX;
            if shared.stop.load(Ordering::Acquire) || !(paused || gives_way) {
                return now - start;
            }
            pause();
            let before = std::mem::replace(&mut now, shared.clock.now());
            if paused {
                let passed = u64::try_from((now - before).as_nanos()).unwrap_or(u64::MAX);
                shared.paused_ns.fetch_add(passed, Ordering::AcqRel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_to_wait_for() {
        panic!("there is nothing to wait for")
    }

    #[test]
    fn a_run_waits_while_something_goes_first_and_no_longer() {
        let clock = Clock::manual();
        let control = Control::by(clock.clone());
        let mut guards: Vec<Yield> = (0..6).map(|_| control.yield_to_serving()).collect();

        let waited = control.wait_by(|| {
            clock.advance(POLL_INTERVAL);
            guards.pop();
        });

        assert_eq!(waited, 6 * POLL_INTERVAL);
        assert_eq!(control.wait_by(nothing_to_wait_for), Duration::ZERO);
    }

    #[test]
    fn a_run_gives_way_for_a_limited_time_and_waits_for_the_end_of_a_pause() {
        let clock = Clock::manual();
        let control = Control::by(clock.clone());
        let _guard = control.yield_to_serving();
        assert_eq!(control.wait_by(|| clock.advance(POLL_INTERVAL)), YIELD_MAX);
        assert_eq!(control.paused_time(), Duration::ZERO, "serving went first");

        control.pause();
        let long = YIELD_MAX * 100;
        let waited = control.wait_by(|| {
            clock.advance(long);
            control.resume();
        });

        assert_eq!((waited, control.paused_time()), (long, long));
        control.pause();
        control.ignore_stop().wait_by(|| {
            clock.advance(long);
            control.resume();
        });
        assert_eq!(control.paused_time(), 2 * long);
    }

    #[test]
    fn a_stopped_run_does_not_wait_for_the_end_of_a_pause() {
        let control = Control::new();
        control.pause();
        control.stop();

        control.wait_by(nothing_to_wait_for);
        assert!(control.is_paused() && control.is_stopped());
        assert!(!control.ignore_stop().is_stopped());
        control.ignore_stop().wait_by(nothing_to_wait_for);
    }
}
