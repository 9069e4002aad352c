//! The `[model]` and `[adapter]` tables: which frozen networks, on what, joined how.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::nn::accel::{DeviceChoice, PrecisionChoice};

/// The `[model]` table: the two frozen networks and where they run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder of the speech encoder in the Hugging Face layout.
    pub encoder: PathBuf,
    /// Folder of the language model in the Hugging Face layout.
    pub llm: PathBuf,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: DeviceChoice,
    /// `auto`, `f32`, `bf16` or `int8` (the language model's weights alone): what the frozen networks compute
    /// in.
    pub precision: PrecisionChoice,
    /// CPU threads of one tensor operation; 0 takes as many as there are cores.
    pub threads: usize,
    /// System message before every prompt; absent: the one that the model's own template puts there.
    pub system: Option<String>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            encoder: PathBuf::from("models/whisper-base"),
            llm: PathBuf::from("models/smollm2-135m-instruct"),
            device: DeviceChoice::Auto,
            precision: PrecisionChoice::Auto,
            threads: 0,
            system: None,
        }
    }
}

/// How the encoder's layers become one sequence of features.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerMix {
    /// The paper's form: `(1/L) · Σ w(l)·h(l)` over layers 1 to L, free scalars that start at 1.
    #[default]
    Paper,
    /// The last layer alone; nothing to learn.
    Last,
    /// S3PRL's form: softmax of scalars that start at 0, over states 0 to L.
    Softmax,
}

/// What the language model reads of a clip.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// The paper's form: every frame of the downsampler, 12.5 a second.
    #[default]
    Frames,
    /// One position for each run of equal tokens on the CTC head's greedy path, the mean of its frames;
    /// blanks are dropped. Needs a CTC head. Source of the idea: Wu et al. 2023 (arXiv 2307.03917).
    CtcSegments,
    /// As `CtcSegments`, of each frame's posteriors over the tokens (without the blank) as weights of the
    /// language model's embeddings: it reads its own vectors, mixed by what the head is unsure of. Source:
    /// LegoSLM (arXiv 2505.11352).
    CtcPosteriors,
}

/// What stands between two blocks of the downsampler.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Nothing, as in the paper.
    #[default]
    None,
    /// The Gaussian error linear unit, in its exact form.
    Gelu,
}

/// The `[adapter]` table: what may be chosen about the learnable joint.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterSettings {
    /// Form of the layer mix.
    pub mix: LayerMix,
    /// Stride of each convolution block; their product is the reduction in time. Absent: two blocks that
    /// bring the encoder's rate to 12.5 Hz, `[2, 2]` for 50 frames a second and `[2, 1]` for 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strides: Option<Vec<i64>>,
    /// Width of the convolutions in frames; odd, so that padding is symmetric.
    pub kernel: i64,
    /// What stands between two blocks. Absent: as in the adapter to start from, nothing in a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// What the language model reads of a clip. Absent: as with the adapter to start from, every frame with a
    /// fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Positions>,
    /// Residual blocks after the last convolution block, at its rate: norm, convolution, GELU, linear map. A
    /// fresh block changes nothing. Absent: as in the adapter to start from, none in a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual_blocks: Option<i64>,
    /// Puts one position before the others that is made of the mean and the deviation of every hidden state
    /// of the encoder over the clip: what a voice or a noise is like as a whole, which CTC segments do not
    /// hold. Absent: as in the adapter to start from, none in a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<bool>,
    /// Makes an embedding of what is said of the CTC segments (convolution, pooling over time, linear map),
    /// near the texts of the right labels. It is no position of the language model. Needs `positions` of CTC
    /// segments, in either form. Absent: as in the adapter to start from, none in a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentence: Option<bool>,
}

impl Default for AdapterSettings {
    fn default() -> Self {
        Self {
            mix: LayerMix::Paper,
            strides: None,
            kernel: 3,
            activation: None,
            residual_blocks: None,
            positions: None,
            summary: None,
            sentence: None,
        }
    }
}

impl AdapterSettings {
    /// What is wrong between or within fields, if anything.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn validate(&self) -> Result<(), String> {
        if let Some(strides) = &self.strides {
            if strides.is_empty() || strides.len() > 8 {
                return Err(format!(
                    "`adapter.strides` has {} entries, expected 1 to 8",
                    strides.len()
                ));
            }
            if let Some(stride) = strides.iter().find(|stride| !(1..=8).contains(*stride)) {
                return Err(format!("`adapter.strides` holds {stride}, expected 1 to 8"));
            }
        }
        if let Some(blocks) = self.residual_blocks.filter(|blocks| !(0..=16).contains(blocks)) {
            return Err(format!("`adapter.residual_blocks` is {blocks}, expected 0 to 16"));
        }
        if self.sentence == Some(true) && self.positions.is_some_and(|read| read == Positions::Frames) {
            return Err(
                "`adapter.sentence` needs `adapter.positions` = \"ctc_segments\" or \"ctc_posteriors\""
                    .to_owned(),
            );
        }
        if !(1..=15).contains(&self.kernel) || self.kernel % 2 == 0 {
            return Err(format!(
                "`adapter.kernel` is {}, expected an odd number from 1 to 15",
                self.kernel
            ));
        }
        Ok(())
    }
}
