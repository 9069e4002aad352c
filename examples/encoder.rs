//! Times a speech encoder's forward pass on demand; `scripts/bench/encoder.py` drives it beside the Python
//! reference.
//!
//! ```text
//! cargo run --release --example encoder -- DIR SAMPLES.f32 BATCH THREADS OUT.safetensors \
//!     [f32|bf16 [cpu|cuda:N]]
//! ```
//!
//! `SAMPLES.f32` holds mono 16 kHz samples as raw little-endian floats, and is encoded `BATCH` times side by
//! side. Prints the CPU's capability, then for each line on standard input the seconds of one pass, by the
//! clock and of processor time; at the end of input writes the last layer's features of the first row, so
//! that the two sides can be compared.

use std::io::BufRead as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use speechverse::models::encoders::whisper::Window;
use speechverse::models::open_encoder;
use speechverse::nn::accel::{
    DeviceChoice, Placement, PrecisionChoice, configure_threads, cpu_capability, ensure_passive_openmp,
    keep_freed_memory,
};
use tch::{Device, Kind, Tensor};

mod shared;
use shared::processor_seconds;

#[expect(clippy::print_stdout, reason = "an example prints its result")]
fn main() -> anyhow::Result<()> {
    ensure_passive_openmp();
    keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [dir, samples, batch, threads, out, rest @ ..] = arguments.as_slice() else {
        bail!("usage: encoder DIR SAMPLES.f32 BATCH THREADS OUT.safetensors [f32|bf16 [cpu|cuda:N]]");
    };
    let precision: PrecisionChoice = rest.first().unwrap_or(&"f32").parse()?;
    let device: DeviceChoice = rest.get(1).unwrap_or(&"cpu").parse()?;
    let placement = Placement::resolve(device, precision)?;
    configure_threads(threads.parse()?);
    let bytes = std::fs::read(samples).with_context(|| format!("cannot read `{samples}`"))?;
    let clip: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().expect("chunks of four")))
        .collect();
    let clips = vec![clip.as_slice(); batch.parse()?];
    // Whisper is compared as its reference runs: on its whole window.
    let encoder = open_encoder(Path::new(dir), Window::Padded, &placement)?;
    let last = Tensor::zeros(
        [clips.len() as i64, encoder.info().layers + 1],
        (Kind::Float, Device::Cpu),
    );
    let _ = last.narrow(1, encoder.info().layers, 1).fill_(1.0);

    let mut features = encoder.encode(&clips, &last)?.features;
    println!("{}", cpu_capability());
    for line in std::io::stdin().lock().lines() {
        line?;
        let (start, busy) = (Instant::now(), processor_seconds());
        features = encoder.encode(&clips, &last)?.features;
        if let Device::Cuda(number) = placement.device {
            tch::Cuda::synchronize(number as i64);
        }
        println!("{} {}", start.elapsed().as_secs_f64(), processor_seconds() - busy);
    }
    let first = features
        .get(0)
        .to_device(Device::Cpu)
        .to_kind(Kind::Float)
        .contiguous();
    Tensor::write_safetensors(&[("features", first)], out)?;
    Ok(())
}
