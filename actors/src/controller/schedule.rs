//! `Schedule`: what says when the next training cycle is due, and whether training is paused. It is kept in a
//! file, so that a restart changes neither.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use speechverse::registry::replace_file;
use speechverse::training::trainer_config::TrainerConfig;
use speechverse::util::Clock;
use tracing::{error, warn};

/// Name of the file in `trainer.runs_dir`.
const FILE: &str = "schedule.json";

/// When the last cycle was ordered, what came since then, and whether training is paused. Clones are the
/// same, so that a controller that is started again goes on where the one before was.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Absent in a process that does not train: the file may be another's.
    path: Option<PathBuf>,
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// When the last cycle was ordered; before the first one, when the schedule began.
    last_cycle: Timestamp,
    /// How long ago that was at `begun`. From there on time is measured, whatever becomes of the time of day.
    age: Duration,
    begun: Instant,
    /// Samples that came since the last cycle and before this process started.
    earlier_samples: u64,
    /// What the store had stored when the last cycle was ordered.
    stored_at_cycle: u64,
    paused: bool,
    /// What the file says.
    written: Option<Saved>,
    /// Whether it was logged that the file cannot be written.
    logged: bool,
}

/// What the file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Saved {
    last_cycle: Timestamp,
    new_samples: u64,
    paused: bool,
}

impl Schedule {
    /// Goes on as the file says; without one, or with a damaged one, begins anew: no sample is new, and the
    /// interval begins now. To be opened before anything is stored.
    pub fn open(config: &TrainerConfig, clock: Clock) -> Self {
        let path = config.enabled.then(|| config.runs_dir.join(FILE));
        let now = clock.time();
        let written = path.as_deref().and_then(read);
        let saved = written.unwrap_or(Saved {
            last_cycle: now,
            new_samples: 0,
            paused: false,
        });
        let last_cycle = saved.last_cycle.min(now); // a later one is of a clock that was wrong
        let state = State {
            last_cycle,
            age: Duration::try_from(now.duration_since(last_cycle)).unwrap_or_default(),
            begun: clock.now(),
            earlier_samples: saved.new_samples,
            stored_at_cycle: 0,
            paused: saved.paused,
            written,
            logged: false,
        };
        Self {
            path,
            clock,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Whether training is paused by an order.
    pub(super) fn is_paused(&self) -> bool {
        self.state().paused
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.state().paused = paused;
    }

    /// Samples that came since the last cycle, where the store has stored so many in this process.
    pub(super) fn new_samples(&self, stored: u64) -> u64 {
        self.state().new_samples(stored)
    }

    /// How long ago the last cycle was ordered.
    pub(super) fn since_last_cycle(&self) -> Duration {
        let state = self.state();
        state.age + (self.clock.now() - state.begun)
    }

    /// A cycle is ordered, which uses what is stored by now.
    pub(super) fn cycle_ordered(&self, stored: u64) {
        let mut state = self.state();
        (state.last_cycle, state.age) = (self.clock.time(), Duration::ZERO);
        state.begun = self.clock.now();
        (state.earlier_samples, state.stored_at_cycle) = (0, stored);
    }

    /// Writes the file where it says something else; on a thread that may block. What cannot be written is
    /// logged once, and tried again by the next call.
    pub(super) async fn save(&self, stored: u64) {
        let Some(path) = self.path.clone() else { return };
        if self.state().is_written(stored) {
            return;
        }
        let schedule = self.clone();
        let write = move || schedule.state().write(&path, stored);
        if let Err(error) = tokio::task::spawn_blocking(write).await {
            error!(%error, "the schedule of training was not written");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new_samples(&self, stored: u64) -> u64 {
        self.earlier_samples + stored.saturating_sub(self.stored_at_cycle)
    }

    fn to_save(&self, stored: u64) -> Saved {
        Saved {
            last_cycle: self.last_cycle,
            new_samples: self.new_samples(stored),
            paused: self.paused,
        }
    }

    fn is_written(&self, stored: u64) -> bool {
        self.written == Some(self.to_save(stored))
    }

    fn write(&mut self, path: &Path, stored: u64) {
        let saved = self.to_save(stored);
        match replace(path, &saved) {
            Ok(()) => (self.written, self.logged) = (Some(saved), false),
            Err(reason) if !self.logged => {
                self.logged = true;
                warn!(
                    path = %path.display(), reason,
                    "the schedule of training cannot be kept, a restart would forget it"
                );
            }
            Err(_) => {}
        }
    }
}

fn replace(path: &Path, saved: &Saved) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    }
    let json = json!({
        "last_cycle": saved.last_cycle.to_string(),
        "new_samples": saved.new_samples,
        "paused": saved.paused,
    });
    replace_file(path, format!("{json:#}\n").as_bytes()).map_err(|error| error.to_string())
}

/// What a file says; none, with a warning, where that cannot be known.
fn read(path: &Path) -> Option<Saved> {
    let reason = match std::fs::read(path) {
        Ok(bytes) => match parse(&bytes) {
            Some(saved) => return Some(saved),
            None => "it is damaged".to_owned(),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    warn!(
        path = %path.display(), reason,
        "the schedule of training begins anew; if training was paused, order `pause` again"
    );
    None
}

fn parse(bytes: &[u8]) -> Option<Saved> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    Some(Saved {
        last_cycle: value.get("last_cycle")?.as_str()?.parse().ok()?,
        new_samples: value.get("new_samples")?.as_u64()?,
        paused: value.get("paused")?.as_bool()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn config(folder: &Path) -> TrainerConfig {
        TrainerConfig {
            runs_dir: folder.join("runs"),
            ..TrainerConfig::default()
        }
    }

    #[tokio::test]
    async fn a_schedule_that_is_opened_again_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (config, clock) = (config(folder.path()), Clock::manual());
        let first = Schedule::open(&config, clock.clone());
        clock.advance(HOUR);
        first.cycle_ordered(4);
        clock.advance(HOUR);
        assert_eq!((first.new_samples(9), first.since_last_cycle()), (5, HOUR));
        first.set_paused(true);
        first.save(9).await;

        let second = Schedule::open(&config, clock.clone());
        clock.advance(HOUR);

        assert!(second.is_paused());
        assert_eq!((second.new_samples(3), second.since_last_cycle()), (8, 2 * HOUR));
        second.cycle_ordered(3);
        second.set_paused(false);
        assert_eq!(second.new_samples(3), 0);
        second.save(3).await;
        let third = Schedule::open(&config, clock);
        assert!(!third.is_paused());
        assert_eq!(
            (third.new_samples(0), third.since_last_cycle()),
            (0, Duration::ZERO)
        );
        assert_eq!(std::fs::read_dir(&config.runs_dir).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_damaged_file_begins_the_schedule_anew_and_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let (config, clock) = (config(folder.path()), Clock::manual());
        let path = config.runs_dir.join(FILE);
        std::fs::create_dir_all(&config.runs_dir).unwrap();
        let negative = r#"{"last_cycle": "2026-01-01T00:00:00Z", "new_samples": -1, "paused": true}"#;
        for damaged in ["", "{", "[]", r#"{"paused": true}"#, negative] {
            std::fs::write(&path, damaged).unwrap();

            let schedule = Schedule::open(&config, clock.clone());

            assert!(!schedule.is_paused(), "{damaged}");
            assert_eq!(
                (schedule.new_samples(2), schedule.since_last_cycle()),
                (2, Duration::ZERO)
            );
            schedule.save(2).await;
            assert_eq!(Schedule::open(&config, clock.clone()).new_samples(0), 2);
        }
    }

    #[tokio::test]
    async fn a_cycle_in_times_to_come_was_now() {
        let folder = tempfile::tempdir().unwrap();
        let (config, clock) = (config(folder.path()), Clock::manual());
        let ahead = Clock::manual();
        ahead.advance(1000 * HOUR);
        Schedule::open(&config, ahead).save(0).await;

        let schedule = Schedule::open(&config, clock.clone());
        schedule.save(0).await;
        clock.advance(HOUR);

        assert_eq!(Schedule::open(&config, clock).since_last_cycle(), HOUR);
    }

    #[tokio::test]
    async fn a_process_that_does_not_train_keeps_no_file_and_one_that_cannot_write_it_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.enabled = false;
        Schedule::open(&config, Clock::manual()).save(3).await;
        assert!(!config.runs_dir.exists());

        config.enabled = true;
        std::fs::write(&config.runs_dir, "no folder").unwrap();
        let schedule = Schedule::open(&config, Clock::manual());
        schedule.save(3).await;
        schedule.save(4).await;

        assert_eq!(schedule.new_samples(4), 4);
    }
}
