//! Masked prediction: which label each hidden frame had, and what the network makes of it.
//!
//! Source: Chiu et al. (arXiv 2202.01855).

use tch::Tensor;

use super::masking::mask;
use crate::models::ModelError;
use crate::models::encoders::conformer::{Features, Predicted, Pretraining};
use crate::training::pretrain::config::MaskConfig;
use crate::util::random::SplitMix;

/// A batch of clips as a masked_batch.
#[derive(Debug)]
pub struct MaskedBatch {
    /// Features with holes.
    masked: Features,
    /// i64 `[N]`: hidden frames among the encoder frames of the batch.
    frames: Tensor,
    /// i64 `[N, K]`: their labels.
    codes: Tensor,
}

impl MaskedBatch {
    /// Makes one from clips, one generator a clip; `None` when chance hid nothing.
    ///
    /// # Errors
    /// [`ModelError`] when a clip cannot be encoded, or libtorch fails.
    pub fn new(
        network: &Pretraining,
        clips: &[&[f32]],
        config: &MaskConfig,
        random: &mut [SplitMix],
    ) -> Result<Option<Self>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let features = network.features(clips)?;
        let Some(masked) = mask(&features, config, random)? else {
            return Ok(None);
        };
        let quantizer = network.quantizer();
        let stacked = quantizer
            .stack(&features.values)?
            .f_index_select(0, &masked.stacks)?;
        Ok(Some(Self {
            codes: quantizer.labels(&stacked)?,
            masked: Features {
                values: masked.values,
                lengths: features.lengths,
            },
            frames: masked.frames,
        }))
    }

    /// Hidden frames `N`.
    pub fn frames(&self) -> u64 {
        self.frames.size()[0].unsigned_abs()
    }

    /// The labels, i64 `[N, K]`.
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// The network's output at the hidden frames, `[N, D]`.
    fn hidden(&self, network: &Pretraining, dropout: f64) -> Result<Tensor, ModelError> {
        let output = network
            .network()
            .forward(&self.masked.values, &self.masked.lengths, dropout); // [B, T, D]
        let width = network.config().hidden_size;
        Ok(output.f_reshape([-1, width])?.f_index_select(0, &self.frames)?)
    }

    /// Adds the gradients of `share` times the loss to the network's variables, and returns the loss.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails.
    pub fn learn(&self, network: &Pretraining, dropout: f64, share: f64) -> Result<f64, ModelError> {
        let hidden = self.hidden(network, dropout)?;
        Ok(network.heads().backward(&hidden, &self.codes, share)?)
    }

    /// Loss and accuracy, without learning.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails.
    pub fn predict(&self, network: &Pretraining) -> Result<Predicted, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let hidden = self.hidden(network, 0.0)?;
        Ok(network.heads().predict(&hidden, &self.codes)?)
    }
}
