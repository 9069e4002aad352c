//! How long sound takes to decode: `cargo run --release --example decode_audio -- FILE…`.
//!
//! Prints the median and the quickest of 61 rounds for each file, files by turns. It compiles against earlier
//! versions too, which is how two of them are compared on one machine.

use std::time::Instant;

use speechverse::audio::{AudioLimits, decode};

const ROUNDS: usize = 61;

#[expect(clippy::print_stdout, reason = "the figures are what the program is for")]
fn main() -> anyhow::Result<()> {
    let limits = AudioLimits::default();
    let mut files = Vec::new();
    for path in std::env::args().skip(1) {
        files.push((path.clone(), std::fs::read(path)?, Vec::with_capacity(ROUNDS)));
    }
    for _ in 0..ROUNDS {
        for (path, bytes, times) in &mut files {
            let started = Instant::now();
            let decoded = decode(bytes, None, &limits);
            times.push(started.elapsed().as_secs_f64() * 1e3);
            anyhow::ensure!(decoded.is_ok(), "{path} is not decoded: {decoded:?}");
        }
    }
    for (path, _, mut times) in files {
        times.sort_by(f64::total_cmp);
        println!(
            "{path}: median {:.3} ms, quickest {:.3} ms",
            times[ROUNDS / 2],
            times[0]
        );
    }
    Ok(())
}
