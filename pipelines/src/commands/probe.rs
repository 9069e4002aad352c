//! `speechverse probe`: a network's outputs as safetensors, on the CPU in f32, to compare with a reference.

use std::path::Path;

use anyhow::Context;
use speechverse::audio::{AudioLimits, decode};
use speechverse::config::Settings;
use speechverse::inference::DecodeOptions;
use speechverse::models::encoders::whisper::Window;
use speechverse::models::probe;
use speechverse::nn::accel::{DeviceChoice, PrecisionChoice};
use tch::{Kind, Tensor};

use super::Failure;
use super::ask::Respondent;
use crate::cli::{Probe, WindowChoice};
use crate::output;

pub(super) fn probe(command: Probe) -> Result<(), Failure> {
    match command {
        Probe::Encoder {
            model,
            audio,
            out,
            window,
        } => {
            let window = match window {
                WindowChoice::Padded => Window::Padded,
                WindowChoice::Clip => Window::Clip,
            };
            let samples = read_audio(&audio)?;
            write(
                &probe::encoder(&model, &samples, window).context("cannot probe the encoder")?,
                &out,
            )
        }
        Probe::Llm {
            model,
            ids,
            decoder_ids,
            out,
        } => write(
            &probe::llm(&model, &ids, decoder_ids.as_deref()).context("cannot probe the language model")?,
            &out,
        ),
        Probe::SpeechLlm {
            config,
            audio,
            instruction,
            out,
        } => {
            let mut settings = Settings::load(&config).map_err(Failure::usage)?;
            settings.model.device = DeviceChoice::Cpu;
            settings.model.precision = PrecisionChoice::F32;
            let samples = read_audio(&audio)?;
            let mut respondent = Respondent::open(
                &settings,
                None,
                DecodeOptions::greedy(settings.decoder.tokens_max),
            )?;
            let (tensors, text) = respondent
                .probe(&samples, &instruction)
                .context("cannot probe the joined model")?;
            write(&tensors, &out)?;
            output::line(text)?;
            Ok(())
        }
    }
}

/// Reads an audio file as the pipeline would: mono, 16 kHz.
pub(super) fn read_audio(path: &Path) -> anyhow::Result<Vec<f32>> {
    let bytes = super::read_input(path)?;
    let waveform =
        decode(&bytes, None, &AudioLimits::default()).with_context(|| path.display().to_string())?;
    Ok(waveform.samples)
}

fn write(tensors: &[(String, Tensor)], out: &Path) -> Result<(), Failure> {
    let plain: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.to_kind(Kind::Float).contiguous()))
        .collect();
    Tensor::write_safetensors(&plain, out).with_context(|| format!("cannot write `{}`", out.display()))?;
    Ok(())
}
