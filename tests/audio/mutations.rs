//! Bytes changed at random: no panic that is not caught, no hang, no memory beyond a bound.
//!
//! `SPEECHVERSE_MUTATIONS` says how many inputs; `cargo test` tries 2,000. By hand, over every container
//! family: `SPEECHVERSE_MUTATIONS=100000 cargo test --release -p speechverse --test audio mutations --
//! --nocapture`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use speechverse::audio::{AudioLimits, decode};

use super::fixture;

thread_local! {
    /// Bytes that this thread holds, and the most it held since the last look.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Counts what each thread allocates.
struct Counting;

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + bytes;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: every call goes to `System` unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const FAMILIES: [&str; 22] = [
    "tone-16000-1-s16.wav",
    "tone-8000-2-s24-extensible.wav",
    "tone-16000-1-rf64.wav",
    "tone-16000-1-adpcm.wav",
    "reported/ima.wav",
    "reported/mp3-in.wav",
    "tone-44100-2.flac",
    "tone-44100-2-piped.flac",
    "tone-44100-2-flac.ogg",
    "tone-44100-2-oggenc.ogg",
    "tone-16000-1-opus.ogg",
    "reported/no-eos-flag.ogg",
    "reported/speech.opus.ogg",
    "tone-44100-2-lame.mp3",
    "tone-16000-1-untagged.mp3",
    "reported/cut-copy.mp3",
    "reported/id3v2-between.mp3",
    "tone-16000-1.mp2",
    "tone-16000-1.aac",
    "reported/speech.aac",
    "reported/speech.m4a",
    "reported/speech.webm",
];

/// xorshift64: the same inputs every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Changes, removes and inserts bytes, most often where headers stand, and cuts some files off.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(8) {
            let reach = if self.below(3) == 0 {
                bytes.len().min(256)
            } else {
                bytes.len()
            };
            let at = self.below(reach);
            let run = self.below(64);
            match self.below(6) {
                0 => bytes[at] = 0xff,
                1 => bytes[at] = 0,
                2 => bytes[at] = self.below(256) as u8,
                3 => bytes[at] ^= 1 << self.below(8),
                4 => drop(bytes.drain(at..(at + run).min(bytes.len() - 1).max(at))),
                _ => {
                    let inserted: Vec<u8> = (0..run).map(|_| self.below(256) as u8).collect();
                    bytes.splice(at..at, inserted);
                }
            }
        }
        if self.below(5) == 0 {
            bytes.truncate(1 + self.below(bytes.len()));
        }
    }
}

#[test]
fn damaged_bytes_of_every_container_stay_within_time_and_memory() {
    let count =
        std::env::var("SPEECHVERSE_MUTATIONS").map_or(2_000, |count| count.parse().expect("a number"));
    let limits = AudioLimits {
        seconds_max: 20.0,
        decoded_samples_max: 1 << 22,
        ..AudioLimits::default()
    };
    let originals = FAMILIES.map(fixture);
    let mut random = Random(0x5eed_5eed_5eed_5eed);
    let (mut decoded, mut refused) = (0, 0);
    let (mut slowest, mut largest) = ((Duration::ZERO, ""), (0, ""));
    for number in 0..count {
        let name = FAMILIES[number % FAMILIES.len()];
        let mut bytes = originals[number % FAMILIES.len()].clone();
        random.damage(&mut bytes);
        let before = HELD.with(|held| {
            held.set((held.get().0, held.get().0));
            held.get().0
        });

        let started = Instant::now();
        let result = decode(&bytes, None, &limits);
        let took = started.elapsed();

        let peak = HELD.with(|held| held.get().1) - before;
        assert!(
            took < Duration::from_secs(20),
            "input {number}, of {name}: {took:?}"
        );
        assert!(peak < 64 << 20, "input {number}, of {name}: {peak} bytes");
        slowest = slowest.max((took, name));
        largest = largest.max((peak, name));
        match result {
            Ok(waveform) => {
                decoded += 1;
                assert!(waveform.samples.iter().all(|sample| sample.is_finite()));
                assert!(waveform.damage.undecoded_seconds.is_finite());
            }
            Err(_) => refused += 1,
        }
    }
    println!("{decoded} decoded, {refused} refused; slowest {slowest:?}, most memory {largest:?}");
}
