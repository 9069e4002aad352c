//! How much memory and time it takes to load checkpoints of full size: random ones, made for the purpose.
//!
//! ```text
//! # random bf16 weights, sharded
//! cargo run --release --example load -- make DIR t5-xl|t5-large|t5-base [SHARD-BYTES]
//! # loads, runs once, prints the peak resident memory
//! cargo run --release --example load -- open DIR [f32|bf16 [ENCODER-DIR]]
//! ```
//!
//! `open` runs in a process of its own, because a peak is never forgotten. `scripts/bench/load.py` does both
//! and cleans up.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::{Map, json};
use speechverse::models::encoders::whisper::Window;
use speechverse::models::llms::t5::{T5, T5Config};
use speechverse::models::{open_encoder, open_language_model};
use speechverse::nn::accel::{
    DeviceChoice, Placement, PrecisionChoice, ensure_passive_openmp, keep_freed_memory,
};
use speechverse::weights::Checkpoint;
use tch::{Kind, Tensor};

#[expect(clippy::print_stdout, reason = "an example prints its result")]
fn main() -> anyhow::Result<()> {
    ensure_passive_openmp();
    keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["make", folder, size, rest @ ..] => {
            let shard_bytes = rest.first().map_or(Ok(2_000_000_000), |bytes| bytes.parse())?;
            make(Path::new(folder), size, shard_bytes)
        }
        ["open", folder, rest @ ..] => {
            let precision: PrecisionChoice = rest.first().unwrap_or(&"bf16").parse()?;
            let before = resident("VmHWM")?;
            let start = Instant::now();
            let placement = Placement::resolve(DeviceChoice::Cpu, precision)?;
            let encoder = (rest.get(1))
                .map(|folder| open_encoder(Path::new(folder), Window::Padded, &placement))
                .transpose()?;
            let model = open_language_model(Path::new(folder), &placement)?;
            let (loaded, at_load) = (start.elapsed().as_secs_f64(), resident("VmHWM")?);
            let prompt = model.embed(&[5; 8])?;
            let scores = model.prompt_logits(&prompt, None)?;
            if let Some(encoder) = &encoder {
                let layers = encoder.info().layers + 1;
                let mix = Tensor::full([1, layers], 1.0 / layers as f64, (Kind::Float, placement.device));
                encoder.encode(&[&[0.1; 16_000]], &mix)?;
            }
            let (ran, peak) = (start.elapsed().as_secs_f64() - loaded, resident("VmHWM")?);
            let element = placement.kind().elt_size_in_bytes();
            let mut in_use = bytes_in_use(Path::new(folder), element)?;
            if let Some(folder) = rest.get(1) {
                in_use += bytes_in_use(Path::new(folder), element)?;
            }
            let share = |bytes: u64| bytes as f64 / in_use as f64;
            println!(
                "{}",
                json!({"precision": precision.to_string(), "tensor_bytes": in_use, "peak_before": before,
                    "peak_after_load": at_load, "peak_after_run": peak, "load_seconds": loaded, "run_seconds": ran,
                    "peak_over_tensors": share(peak), "peak_over_tensors_without_program": share(peak - before),
                    "scores": scores.size()})
            );
            Ok(())
        }
        _ => bail!(
            "usage: load make DIR t5-xl|t5-large|t5-base [SHARD-BYTES] | open DIR [f32|bf16 [ENCODER-DIR]]"
        ),
    }
}

/// Writes a T5 1.1 whose tensors are those that the code declares.
fn make(folder: &Path, size: &str, shard_bytes: usize) -> anyhow::Result<()> {
    let (width, heads, inner, layers) = match size {
        "t5-xl" => (2048, 32, 5120, 24),
        "t5-large" => (1024, 16, 2816, 24),
        "t5-base" => (768, 12, 2048, 12),
        other => bail!("`{other}` is none of t5-xl, t5-large and t5-base"),
    };
    let config = json!({"model_type": "t5", "d_model": width, "d_kv": 64, "num_heads": heads, "d_ff": inner,
        "num_layers": layers, "num_decoder_layers": layers, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": false, "is_encoder_decoder": true, "decoder_start_token_id": 0, "eos_token_id": 1});
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let (tensors, _) = T5::outline(&T5Config::open(folder)?);

    let mut shards: Vec<Vec<(&String, &Vec<i64>)>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in &tensors {
        let bytes = tensor.1.iter().product::<i64>() as usize * 2;
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().context("there is always one")?.push(tensor);
    }
    let mut places = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        for (tensor, _) in shard {
            places.insert((*tensor).clone(), name.clone().into());
        }
        write_shard(&folder.join(&name), shard)?;
    }
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        json!({"metadata": {}, "weight_map": places}).to_string(),
    )?;
    Ok(())
}

fn write_shard(path: &Path, tensors: &[(&String, &Vec<i64>)]) -> anyhow::Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<i64>() * 2;
        header.insert(
            (*name).clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let mut header = serde_json::to_string(&header)?;
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // Numbers within ±0.06, exponents and signs at random: xorshift64, Marsaglia 2003.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ end as u64;
    for _ in 0..end / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&(state & 0xbd7f_bd7f_bd7f_bd7f | 0x3800_3800_3800_3800).to_le_bytes())?;
    }
    file.write_all(&vec![0; (end % 8) as usize])?;
    file.flush()?;
    Ok(())
}

/// Bytes of a checkpoint's tensors at `element` bytes each.
fn bytes_in_use(folder: &Path, element: usize) -> anyhow::Result<u64> {
    let checkpoint = Checkpoint::open(folder)?;
    let numbers: usize = (checkpoint.tensors())
        .map(|tensor| tensor.shape.iter().product::<usize>())
        .sum();
    Ok((numbers * element) as u64)
}

/// A figure of `/proc/self/status`, bytes.
fn resident(key: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = (status.lines())
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .context("the kernel does not tell")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}
