//! `DecoderPlaces`: how much may wait between encoder and generator.

use std::sync::Arc;

use speechverse::wire::request::Priority;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many utterances may be between the encoder and a slot of the generator, by priority: what is encoded
/// takes memory of the device, and bulk must not stand in the way of what is interactive. Clones are the same
/// places.
#[derive(Clone, Debug)]
pub struct DecoderPlaces {
    interactive: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
}

impl DecoderPlaces {
    /// So many places for each priority.
    pub fn new(each: usize) -> Self {
        Self {
            interactive: Arc::new(Semaphore::new(each)),
            bulk: Arc::new(Semaphore::new(each)),
        }
    }

    fn of(&self, priority: Priority) -> &Arc<Semaphore> {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Bulk => &self.bulk,
        }
    }

    /// Whether a place is free.
    pub fn has_free(&self, priority: Priority) -> bool {
        self.of(priority).available_permits() > 0
    }

    /// A free place.
    pub fn try_take(&self, priority: Priority) -> Option<OwnedSemaphorePermit> {
        self.of(priority).clone().try_acquire_owned().ok()
    }

    /// Returns when a place of a `wanted` priority is free; at once where none is wanted. Safe to cancel.
    pub async fn free(&self, wanted: impl Fn(Priority) -> bool) {
        let free = async |priority| drop(self.of(priority).acquire().await);
        tokio::select! {
            () = free(Priority::Interactive), if wanted(Priority::Interactive) => {}
            () = free(Priority::Bulk), if wanted(Priority::Bulk) => {}
            else => {}
        }
    }
}
