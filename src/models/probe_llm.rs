//! `probe llm`: one language model run on given ids, for comparison with a reference.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::llms::llama::Llama;
use super::llms::t5::T5;
use super::{ModelError, config_file};

/// Runs the model of a folder on `ids` in f32 on the CPU and names its outputs, numbered and defined as the hidden
/// states of the transformers library.
///
/// `decoder_ids` are what an encoder–decoder's decoder has read, the start token first; absent, the start token alone.
///
/// # Shapes
/// Decoder-only: `logits` `[T, V]`, `hidden.0 … hidden.N` `[T, H]`. Encoder–decoder: `logits` `[L, V]`, `encoder` `[T, H]`,
/// `encoder.hidden.0 … N` `[T, H]`, `decoder.hidden.0 … N` `[L, H]`.
///
/// # Errors
/// [`ModelError`] when the model does not load, an id does not exist, or a decoder-only model is given decoder ids.
pub fn llm(
    folder: &Path,
    ids: &[i64],
    decoder_ids: Option<&[i64]>,
) -> Result<Vec<(String, Tensor)>, ModelError> {
    if ids.is_empty() || decoder_ids.is_some_and(<[i64]>::is_empty) {
        return Err(ModelError::EmptyBatch);
    }
    let (model_type, path) = config_file::model_type(folder)?;
    if model_type == "t5" {
        let model = T5::open(folder, Device::Cpu, Kind::Float)?;
        let start = [model.start_id()];
        return encoder_decoder(&model, ids, decoder_ids.unwrap_or(&start));
    }
    if decoder_ids.is_some() {
        let expected = "an encoder–decoder (`t5`) where decoder ids are given";
        return Err(config_file::unsupported(
            &path,
            "model_type",
            model_type,
            expected,
        ));
    }
    outputs(&Llama::open(folder, Device::Cpu, Kind::Float)?, ids)
}

fn encoder_decoder(
    model: &T5,
    ids: &[i64],
    decoder_ids: &[i64],
) -> Result<Vec<(String, Tensor)>, ModelError> {
    let states = model.states(ids, decoder_ids)?;
    let mut named = vec![("logits".to_owned(), states.logits)];
    if let Some(last) = states.encoder.last() {
        named.push(("encoder".to_owned(), last.copy()));
    }
    for (stack, states) in [("encoder", states.encoder), ("decoder", states.decoder)] {
        for (index, state) in states.into_iter().enumerate() {
            named.push((format!("{stack}.hidden.{index}"), state.to_kind(Kind::Float)));
        }
    }
    Ok(named)
}

/// The named outputs of a loaded decoder-only model, see [`llm`].
///
/// # Errors
/// [`ModelError`] when an id does not exist, or there are none or too many.
pub fn outputs(model: &Llama, ids: &[i64]) -> Result<Vec<(String, Tensor)>, ModelError> {
    if ids.is_empty() {
        return Err(ModelError::EmptyBatch);
    }
    let _no_grad = tch::no_grad_guard();
    let states = model.hidden_states(ids)?;
    let mut named = Vec::new();
    if let Some(last) = states.last() {
        named.push(("logits".to_owned(), model.logits(last)));
    }
    for (index, state) in states.into_iter().enumerate() {
        named.push((format!("hidden.{index}"), state.to_kind(Kind::Float)));
    }
    Ok(named)
}
