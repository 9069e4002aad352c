//! `Clock`: where time comes from, so that a test can let an hour pass at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

/// The system's clock, or one that a test moves. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    manual: Option<Arc<Manual>>,
}

#[derive(Debug)]
struct Manual {
    start: Instant,
    start_time: Timestamp,
    advanced_ms: AtomicU64,
    jumped_ms: AtomicI64,
    moved: Notify,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still until [`Clock::advance`] moves it.
    pub fn manual() -> Self {
        Self {
            manual: Some(Arc::new(Manual {
                start: Instant::now(),
                start_time: Timestamp::now(),
                advanced_ms: AtomicU64::new(0),
                jumped_ms: AtomicI64::new(0),
                moved: Notify::new(),
            })),
        }
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        match &self.manual {
            None => Instant::now(),
            Some(manual) => manual.start + Duration::from_millis(manual.advanced_ms.load(Ordering::Acquire)),
        }
    }

    /// The time of day now. The system's may jump; a manual clock's moves with [`Clock::advance`] and
    /// [`Clock::jump`].
    pub fn time(&self) -> Timestamp {
        match &self.manual {
            None => now(),
            Some(manual) => {
                let jumped = SignedDuration::from_millis(manual.jumped_ms.load(Ordering::Acquire));
                manual.start_time + (self.now() - manual.start) + jumped
            }
        }
    }

    /// Sets the time of day of a manual clock ahead or back, and nothing else.
    pub fn jump(&self, by: SignedDuration) {
        if let Some(manual) = &self.manual {
            let by = i64::try_from(by.as_millis()).unwrap_or_default();
            manual.jumped_ms.fetch_add(by, Ordering::AcqRel);
        }
    }

    /// Moves a manual clock and wakes who sleeps by it; the system's clock cannot be moved.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.manual {
            let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            manual.advanced_ms.fetch_add(by, Ordering::AcqRel);
            manual.moved.notify_waiters();
        }
    }

    /// Returns when so much time has passed by this clock. Safe to cancel.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    /// Returns when this clock shows that time. Safe to cancel.
    pub async fn sleep_until(&self, until: Instant) {
        let Some(manual) = &self.manual else {
            tokio::time::sleep_until(until.into()).await;
            return;
        };
        loop {
            let moved = manual.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.now() >= until {
                return;
            }
            moved.await;
        }
    }
}

/// The system's time of day, with the jumps that a test orders.
fn now() -> Timestamp {
    #[cfg(feature = "testsuite")]
    return Timestamp::now() + super::jumps::jumped();
    #[cfg(not(feature = "testsuite"))]
    Timestamp::now()
}

/// Something that is due at once and then again and again, by a clock.
#[derive(Debug)]
pub struct Ticks {
    clock: Clock,
    period: Duration,
    due: Instant,
}

impl Ticks {
    /// The first tick is due now, each other one `period` after the one before was taken.
    pub fn new(clock: Clock, period: Duration) -> Self {
        Self {
            due: clock.now(),
            clock,
            period,
        }
    }

    /// Waits for the next tick and takes it. Safe to cancel: a tick that was not taken stays due.
    pub async fn next(&mut self) {
        // A timer is not ready when it is first asked, even if its time is past: whoever cancels often would
        // never see it.
        if self.clock.now() < self.due {
            self.clock.sleep_until(self.due).await;
        }
        self.due = self.clock.now() + self.period;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_stands_still_until_it_is_moved_and_then_wakes_its_sleepers() {
        let clock = Clock::manual();
        let (before, time) = (clock.now(), clock.time());
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(3600)).await }
        });
        tokio::task::yield_now().await; // it falls asleep

        clock.advance(Duration::from_secs(3599));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));

        sleeper.await.unwrap();
        assert_eq!(clock.now() - before, Duration::from_secs(3600));
        assert_eq!(clock.time(), time + Duration::from_secs(3600));
    }

    /// Takes a tick that is due; otherwise cancels the waiting for it.
    async fn is_due(ticks: &mut Ticks) -> bool {
        tokio::select! {
            biased;
            () = ticks.next() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn ticks_that_nobody_took_are_one_and_it_stays_due_when_its_taker_is_cancelled() {
        let clock = Clock::manual();
        let mut ticks = Ticks::new(clock.clone(), Duration::from_secs(2));
        assert!(is_due(&mut ticks).await, "the first is due at once");
        for _ in 0..2 {
            assert!(!is_due(&mut ticks).await);
            clock.advance(Duration::from_secs(1));
        }

        clock.advance(Duration::from_secs(5));

        assert!(is_due(&mut ticks).await);
        assert!(!is_due(&mut ticks).await, "seven seconds after the start");
        clock.advance(Duration::from_secs(2));
        assert!(is_due(&mut ticks).await);
    }

    #[tokio::test]
    async fn the_clock_of_the_system_goes_by_itself() {
        let clock = Clock::system();
        let before = clock.now();

        clock.sleep(Duration::from_millis(2)).await;

        assert!(clock.now() - before >= Duration::from_millis(2));
    }
}
