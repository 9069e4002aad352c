//! Tries a language model folder without the rest of the program.
//!
//! ```text
//! # outputs in f32, for comparison with a reference
//! cargo run --example llm -- probe DIR OUT.safetensors 1,2,3
//! # a random LoRA set for peft, with the logits it gives (along the prompt; or of each answer token)
//! cargo run --example llm -- lora  DIR OUT-FOLDER 1,2,3 [4,5]
//! cargo run --example llm -- chat  DIR "What is the capital of France?"
//! cargo run --example llm -- speed DIR 1,2,3 BATCH THREADS TOKENS f32|bf16|int8 [cpu|cuda:N]
//! ```
//!
//! `speed` is driven by `scripts/bench/generate.py`: it prints the CPU's capability, then for each line on
//! standard input the seconds of one greedy generation, by the clock and of processor time, and the first
//! answer's ids.

use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use speechverse::inference::DecodeOptions;
use speechverse::models::{LanguageModel, open_language_model, probe};
use speechverse::nn::accel::{DeviceChoice, Placement, PrecisionChoice, configure_threads, cpu_capability};
use speechverse::nn::lora::{LoraConfig, LoraSet};
use speechverse::testing::generate_alike;
use speechverse::text::{ChatMessage, ChatTemplate, Tokenizer, end_of_answer_ids};
use tch::{Device, Tensor};

mod shared;
use shared::processor_seconds;

#[expect(clippy::print_stdout, reason = "an example prints its result")]
fn main() -> anyhow::Result<()> {
    speechverse::nn::accel::ensure_passive_openmp();
    speechverse::nn::accel::keep_freed_memory();
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
            let outputs = probe::llm(Path::new(folder), &ids, None)?;
            Tensor::write_safetensors(&outputs, out)?;
        }
        ["lora", folder, out, ids, rest @ ..] => {
            let ids = parse_ids(ids)?;
            let model = open(folder, PrecisionChoice::F32)?;
            let sites = model.lora_sites();
            let names: BTreeSet<&str> = (sites.iter())
                .filter_map(|site| site.path.rsplit('.').next())
                .collect();
            let config = LoraConfig {
                targets: names.into_iter().map(str::to_owned).collect(),
                ..LoraConfig::default()
            };
            let lora = LoraSet::new(config, &sites, Device::Cpu)?;
            let _no_grad = tch::no_grad_guard();
            for mut tensor in lora.parameters().into_values() {
                let _ = tensor.normal_(0.0, 0.05);
            }
            lora.save(Path::new(out), folder)?;
            let prompt = model.embed(&ids)?;
            let answer = rest.first().map_or(Ok(Vec::new()), |answer| parse_ids(answer))?;
            let logits = match answer.as_slice() {
                [] => model.prompt_logits(&prompt, Some(&lora))?,
                answer => model.teacher_forced_logits(&[prompt], &[answer], Some(&lora))?,
            };
            let mut outputs = vec![("logits", logits), ("ids", Tensor::from_slice(&ids))];
            if !answer.is_empty() {
                outputs.push(("answer", Tensor::from_slice(&answer)));
            }
            Tensor::write_safetensors(&outputs, Path::new(out).join("logits.safetensors"))?;
        }
        ["chat", folder, question] => {
            let model = open(folder, PrecisionChoice::F32)?;
            let folder = Path::new(folder);
            let tokenizer = Tokenizer::open(folder)?;
            let prompt = ChatTemplate::open(folder)?.render(&[ChatMessage::new("user", *question)], true)?;
            let prompt = model.embed(&tokenizer.encode(&prompt)?)?;
            let options = DecodeOptions {
                stop_loops: false,
                ..DecodeOptions::greedy(64)
            };
            let answer =
                generate_alike(model.as_ref(), &[prompt], options, 1, &end_of_answer_ids(folder)?)?.remove(0);
            println!("{} {:?}", tokenizer.decode(&answer.ids)?, answer.score());
        }
        ["speed", folder, ids, batch, threads, tokens, precision, rest @ ..] => {
            let device = rest.first().unwrap_or(&"cpu").parse()?;
            let placement = Placement::resolve(device, precision.parse()?)?;
            configure_threads(threads.parse()?);
            let model = open_language_model(Path::new(folder), &placement)?;
            let prompt = model.embed(&parse_ids(ids)?)?;
            let batch: usize = batch.parse()?;
            let prompts: Vec<Tensor> = (0..batch).map(|_| prompt.shallow_clone()).collect();
            let options = DecodeOptions {
                stop_loops: false,
                ..DecodeOptions::greedy(tokens.parse()?)
            };
            println!("{}", cpu_capability());
            for line in std::io::stdin().lock().lines() {
                line?;
                let (start, busy) = (Instant::now(), processor_seconds());
                let answers = generate_alike(model.as_ref(), &prompts, options, batch, &[])?;
                let (seconds, busy) = (start.elapsed().as_secs_f64(), processor_seconds() - busy);
                let ids: Vec<String> = answers[0].ids.iter().map(i64::to_string).collect();
                println!("{seconds} {busy} {}", ids.join(","));
            }
        }
        _ => bail!(
            "usage: llm probe DIR OUT IDS | lora DIR OUT IDS [ANSWER] | chat DIR QUESTION | speed DIR IDS BATCH THREADS TOKENS PRECISION [DEVICE]"
        ),
    }
    Ok(())
}

fn open(folder: &str, precision: PrecisionChoice) -> anyhow::Result<Box<dyn LanguageModel>> {
    let placement = Placement::resolve(DeviceChoice::Cpu, precision)?;
    Ok(open_language_model(Path::new(folder), &placement)?)
}

fn parse_ids(ids: &str) -> anyhow::Result<Vec<i64>> {
    let parse = |id: &str| {
        id.trim()
            .parse()
            .with_context(|| format!("`{id}` is no token id"))
    };
    ids.split(',').map(parse).collect()
}
