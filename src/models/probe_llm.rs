//! `probe llm`: one language model run on given ids, for comparison with a reference.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::ModelError;
use super::llama::Llama;

/// Runs the model of a folder on `ids` in f32 on the CPU and names its outputs.
///
/// # Shapes
/// `logits` `[T, V]`; `hidden.0 … hidden.N` `[T, H]`, numbered and defined as the `hidden_states` of the
/// transformers library.
///
/// # Errors
/// [`ModelError`] when the model does not load or an id does not exist.
pub fn llm(folder: &Path, ids: &[i64]) -> Result<Vec<(String, Tensor)>, ModelError> {
    let model = Llama::open(folder, Device::Cpu, Kind::Float)?;
    outputs(&model, ids)
}

/// The named outputs of a loaded model, see [`llm`].
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
