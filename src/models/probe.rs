//! One network run on given input, with every value it makes laid open under the names of the command-line
//! contract: for comparison with reference implementations.

use std::path::Path;

use tch::{Kind, Tensor};

use super::encoders::whisper::Window;
use super::{ModelError, open_encoder, open_language_model};
use crate::nn::accel::Placement;

/// Runs the encoder of a model folder on one clip (mono, 16 kHz), on the CPU in f32.
///
/// Returns `hidden.0` to `hidden.L`, each `[T, D]`, numbered as the transformers library numbers
/// `hidden_states`, and `last`, its `last_hidden_state`. Only valid frames are returned: of Whisper the whole
/// window where it is padded, the clip's own where it is cut; of the others, which know no `window`, the
/// clip's own.
///
/// # Errors
/// [`ModelError`] when the folder cannot be loaded or the clip cannot be encoded.
pub fn encoder(model_dir: &Path, audio: &[f32], window: Window) -> Result<Vec<(String, Tensor)>, ModelError> {
    let encoder = open_encoder(model_dir, window, &Placement::reference())?;
    let hidden = encoder.hidden_states(&[audio])?;
    let length = hidden.lengths[0];
    let valid = |state: &Tensor| {
        state
            .get(0)
            .narrow(0, 0, length)
            .to_kind(Kind::Float)
            .contiguous()
    };

    let mut named: Vec<(String, Tensor)> = hidden
        .states
        .iter()
        .enumerate()
        .map(|(layer, state)| (format!("hidden.{layer}"), valid(state)))
        .collect();
    named.push(("last".to_owned(), valid(&hidden.last)));
    Ok(named)
}

/// Runs the language model of a folder on `ids`, on the CPU in f32, and names its outputs; see
/// [`LanguageModel::probe`](super::LanguageModel::probe).
///
/// # Errors
/// [`ModelError`] when the model does not load, an id does not exist, or a decoder-only model is given
/// decoder ids.
pub fn llm(
    folder: &Path,
    ids: &[i64],
    decoder_ids: Option<&[i64]>,
) -> Result<Vec<(String, Tensor)>, ModelError> {
    if ids.is_empty() || decoder_ids.is_some_and(<[i64]>::is_empty) {
        return Err(ModelError::EmptyBatch);
    }
    open_language_model(folder, &Placement::reference())?.probe(ids, decoder_ids)
}
