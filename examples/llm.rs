//! Tries a language model folder without the rest of the program.
//!
//! ```text
//! cargo run --example llm -- probe DIR OUT.safetensors 1,2,3     outputs in f32, for comparison with a reference
//! cargo run --example llm -- lora  DIR OUT-FOLDER 1,2,3         a random LoRA set for peft, with the logits it gives
//! cargo run --example llm -- chat  DIR "What is the capital of France?"
//! cargo run --example llm -- speed DIR [f32|bf16] [BATCH]        tokens per second, greedy, 64 tokens each
//! ```

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use speechverse::models::LanguageModel;
use speechverse::models::decoding::{DecodeOptions, decode_alike};
use speechverse::models::llama::Llama;
use speechverse::models::probe_llm;
use speechverse::nn::lora::{LoraConfig, LoraSet};
use speechverse::text::{ChatMessage, ChatTemplate, Tokenizer, end_of_answer_ids};
use tch::{Device, Kind, Tensor};

#[expect(clippy::print_stdout, reason = "an example prints its result")]
fn main() -> anyhow::Result<()> {
    speechverse::nn::accel::ensure_passive_openmp();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["probe", folder, out, ids] => {
            let ids: Vec<i64> = (ids.split(','))
                .map(|id| {
                    id.trim()
                        .parse()
                        .with_context(|| format!("`{id}` is no token id"))
                })
                .collect::<Result<_, _>>()?;
            let outputs = probe_llm::llm(Path::new(folder), &ids, None)?;
            Tensor::write_safetensors(&outputs, out)?;
        }
        ["lora", folder, out, ids] => {
            let ids = parse_ids(ids)?;
            let model = Llama::open(Path::new(folder), Device::Cpu, Kind::Float)?;
            let config = LoraConfig {
                targets: ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
                    .map(str::to_owned)
                    .to_vec(),
                ..LoraConfig::default()
            };
            let lora = LoraSet::new(config, &model.lora_sites(), Device::Cpu)?;
            let _no_grad = tch::no_grad_guard();
            for mut tensor in lora.parameters().into_values() {
                let _ = tensor.normal_(0.0, 0.05);
            }
            lora.save(Path::new(out), folder)?;
            let embeds = model.embed(&ids)?.unsqueeze(0);
            let hidden = model.hidden(&embeds, &[ids.len() as i64], Some(&lora))?;
            let outputs = [
                ("logits", model.logits(&hidden).get(0)),
                ("ids", Tensor::from_slice(&ids)),
            ];
            Tensor::write_safetensors(&outputs, Path::new(out).join("logits.safetensors"))?;
        }
        ["chat", folder, question] => {
            let folder = Path::new(folder);
            let model = Llama::open(folder, Device::Cpu, Kind::Float)?;
            let tokenizer = Tokenizer::open(folder)?;
            let prompt = ChatTemplate::open(folder)?.render(&[ChatMessage::new("user", *question)], true)?;
            let prompt = model.embed(&tokenizer.encode(&prompt)?)?;
            let options = DecodeOptions {
                stop_loops: false,
                ..DecodeOptions::greedy(64)
            };
            let answer = decode_alike(&model, &[prompt], options, 1, &end_of_answer_ids(folder)?)?.remove(0);
            println!("{} {:?}", tokenizer.decode(&answer.ids)?, answer.score());
        }
        ["speed", folder, rest @ ..] => {
            let kind = match rest.first() {
                None | Some(&"f32") => Kind::Float,
                Some(&"bf16") => Kind::BFloat16,
                Some(other) => bail!("`{other}` is neither f32 nor bf16"),
            };
            let batch: usize = rest.get(1).map_or(Ok(1), |batch| batch.parse())?;
            tch::set_num_threads(2);
            let model = Llama::open(Path::new(folder), Device::Cpu, kind)?;
            let ids: Vec<i64> = (0..100).map(|id| 1000 + id).collect();
            let prompts: Vec<Tensor> = (0..batch).map(|_| model.embed(&ids)).collect::<Result<_, _>>()?;
            let answer = |tokens| {
                let options = DecodeOptions {
                    stop_loops: false,
                    ..DecodeOptions::greedy(tokens)
                };
                decode_alike(&model, &prompts, options, batch, &[])
            };
            answer(2)?;
            let start = Instant::now();
            answer(1)?;
            let prefill = start.elapsed().as_secs_f64();
            let (start, busy) = (Instant::now(), processor_seconds());
            answer(65)?;
            let step = (start.elapsed().as_secs_f64() - prefill) / 64.0;
            let busy = processor_seconds() - busy;
            println!(
                "{kind:?} batch {batch}: prefill of 100 positions {:.1} ms, step {:.2} ms, {:.1} tokens/s, {busy:.2} s of processor time for both",
                prefill * 1e3,
                step * 1e3,
                batch as f64 / step
            );
        }
        _ => bail!(
            "usage: llm probe DIR OUT IDS | lora DIR OUT IDS | chat DIR QUESTION | speed DIR [f32|bf16] [BATCH]"
        ),
    }
    Ok(())
}

fn parse_ids(ids: &str) -> anyhow::Result<Vec<i64>> {
    let parse = |id: &str| {
        id.trim()
            .parse()
            .with_context(|| format!("`{id}` is no token id"))
    };
    ids.split(',').map(parse).collect()
}

/// User and system time of this process so far, where the kernel tells (on a busy machine it says more than the clock).
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field)?.parse::<f64>().ok();
    const TICKS_PER_SECOND: f64 = 100.0; // what Linux reports to programs
    (ticks(11).unwrap_or(f64::NAN) + ticks(12).unwrap_or(f64::NAN)) / TICKS_PER_SECOND
}
