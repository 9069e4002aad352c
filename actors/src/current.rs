//! `CurrentAdapter`: the version that new utterances are pinned to. A swap changes what comes after it, never
//! what is under way.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use speechverse::models::adapter::AdapterSnapshot;
use speechverse::telemetry::metrics;

/// The adapter version that new utterances are pinned to, shared by the ingest, the trainer and the
/// controller.
#[derive(Clone, Debug)]
pub struct CurrentAdapter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    serving: RwLock<AdapterSnapshot>,
    /// Held while the registry's pointer and `serving` change together.
    change: Mutex<()>,
}

/// What a change came to: names of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The version until now.
    pub from: String,
    /// The version from now on.
    pub to: String,
}

impl CurrentAdapter {
    /// Begins with `snapshot`.
    pub fn new(snapshot: AdapterSnapshot) -> Self {
        metrics::adapter_serving(snapshot.version(), None);
        Self(Arc::new(Shared {
            serving: RwLock::new(snapshot),
            change: Mutex::new(()),
        }))
    }

    /// The version of this moment; cheap.
    pub fn get(&self) -> AdapterSnapshot {
        let serving = self.0.serving.read();
        serving.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pins new utterances to what `decide` returns. `decide` moves the registry's pointer: both change as
    /// one step, so that of two changes at the same time the later one stands in both. Blocks for as long as
    /// `decide` does.
    ///
    /// # Errors
    /// Those of `decide`; nothing has changed then.
    pub fn change<E>(&self, decide: impl FnOnce() -> Result<AdapterSnapshot, E>) -> Result<Swap, E> {
        let _alone = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = decide()?;
        let to = snapshot.version().to_owned();
        let mut serving = self.0.serving.write().unwrap_or_else(PoisonError::into_inner);
        metrics::adapter_serving(snapshot.version(), Some(serving.version()));
        let from = std::mem::replace(&mut *serving, snapshot).version().to_owned();
        Ok(Swap { from, to })
    }
}
