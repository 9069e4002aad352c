//! `RecentFeatures`: features of the clips that were encoded last, so that a second instruction about the
//! same sound skips the encoder.

use lru::LruCache;
use sha2::{Digest, Sha256};

use super::clip_features::Features;

/// Digest of a clip's samples and of the layer mix.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct ClipKey([u8; 32]);

impl ClipKey {
    pub(super) fn new(samples: &[f32], mix: &[f32]) -> Self {
        let mut hash = Sha256::new();
        for samples in samples.chunks(4096) {
            let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
            hash.update(bytes);
        }
        // The number of samples parts them from the mix.
        hash.update((samples.len() as u64).to_le_bytes());
        for weight in mix {
            hash.update(weight.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// Features by clip, least recently used first to go, bounded in bytes.
#[derive(Debug)]
pub(super) struct RecentFeatures {
    bytes_max: usize,
    bytes: usize,
    entries: LruCache<ClipKey, Features>,
}

impl RecentFeatures {
    /// A cache of at most `bytes_max` bytes; 0 keeps nothing.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            entries: LruCache::unbounded(),
        }
    }

    /// Whether anything is ever kept.
    pub(super) fn is_enabled(&self) -> bool {
        self.bytes_max > 0
    }

    /// Features of a clip, storage shared.
    pub(super) fn get(&mut self, key: &ClipKey) -> Option<Features> {
        self.entries.get(key).map(Features::shallow_clone)
    }

    /// Keeps features; what was used longest ago makes place.
    pub(super) fn put(&mut self, key: ClipKey, features: &Features) {
        let size = bytes_of(features);
        if size > self.bytes_max {
            return;
        }
        if let Some(former) = self.entries.put(key, features.shallow_clone()) {
            self.bytes -= bytes_of(&former);
        }
        self.bytes += size;
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.entries.pop_lru()
        {
            self.bytes -= bytes_of(&oldest);
        }
    }
}

/// Bytes of the elements.
fn bytes_of(features: &Features) -> usize {
    [&features.frames, &features.statistics]
        .into_iter()
        .map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes())
        .sum()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    /// Features of `frames` frames of width 2 in f32, with one row of statistics: 8 bytes a frame and 16.
    fn features(frames: i64) -> Features {
        Features {
            frames: Tensor::full([frames, 2], frames as f64, (Kind::Float, Device::Cpu)),
            statistics: Tensor::zeros([1, 4], (Kind::Float, Device::Cpu)),
        }
    }

    fn key(number: u8) -> ClipKey {
        ClipKey([number; 32])
    }

    #[test]
    fn what_was_used_longest_ago_makes_place() {
        let mut cache = RecentFeatures::new(3 * (8 * 10 + 16));
        for number in 0..3 {
            cache.put(key(number), &features(10));
        }
        assert_eq!(cache.get(&key(0)).unwrap().frames, features(10).frames);

        cache.put(key(3), &features(10));

        assert!(cache.get(&key(1)).is_none());
        assert!(cache.get(&key(0)).is_some() && cache.get(&key(2)).is_some() && cache.get(&key(3)).is_some());
        assert_eq!(cache.bytes, cache.bytes_max);
    }

    #[test]
    fn the_account_of_bytes_follows_replaced_and_oversized_entries() {
        let mut cache = RecentFeatures::new(200);
        cache.put(key(0), &features(4));
        cache.put(key(0), &features(8));
        assert_eq!(cache.bytes, 8 * 8 + 16);

        cache.put(key(1), &features(1_000));

        assert!(cache.get(&key(1)).is_none());
        assert_eq!(cache.bytes, 8 * 8 + 16);
        assert!(!RecentFeatures::new(0).is_enabled());
    }
}
