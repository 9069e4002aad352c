//! Probe of a speech encoder: every hidden state of one clip, under the names of the command-line contract.

use std::path::Path;

use tch::{Kind, Tensor};

use super::encoders::whisper::Window;
use super::{ModelError, open_encoder};
use crate::nn::accel::Placement;

/// Runs the encoder of a model folder on one clip (mono, 16 kHz), on the CPU in f32.
///
/// Returns `hidden.0` to `hidden.L`, each `[T, D]`, numbered as the transformers library numbers `hidden_states`, and
/// `last`, its `last_hidden_state`. Only valid frames are returned: of Whisper the whole window where it is padded, the
/// clip's own where it is cut; of the others, which know no `window`, the clip's own.
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
