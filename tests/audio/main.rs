//! Sound as other programs write it, and as users have reported it: decoded here and compared with ffmpeg.
//!
//! `reported` stands on files that are committed; `matrix` has ffmpeg and sox make containers, codecs and
//! defects, and is skipped by name where they are missing; `mutations` changes bytes at random and watches
//! memory and time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "figures of a run, for who runs it by hand")]

#[path = "matrix.rs"]
mod matrix;
#[path = "mutations.rs"]
mod mutations;
#[path = "reported.rs"]
mod reported;

use std::path::PathBuf;

use speechverse::audio::{AudioError, AudioLimits, Waveform, decode};

/// A committed file.
fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/audio")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn decode_plain(bytes: &[u8]) -> Result<Waveform, AudioError> {
    decode(bytes, None, &AudioLimits::default())
}

/// Pearson's correlation of the part that both have.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    let mean = |samples: &[f32]| samples.iter().map(|s| f64::from(*s)).sum::<f64>() / len as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    ab / (aa * bb).sqrt()
}
