//! Sizes and form of a speech adapter, and the tensors they imply.

use serde::{Deserialize, Serialize};

use crate::models::config::{Activation, AdapterSettings, LayerMix, Positions};
use crate::models::{EncoderInfo, LanguageModelInfo, ModelError};

/// Sizes and form of a [`SpeechAdapter`](super::SpeechAdapter). Written into the adapter file, so that a file
/// says what it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Width `D` of the encoder's states.
    pub encoder_width: i64,
    /// Layers `L` of the encoder; there are `L + 1` states.
    pub encoder_layers: i64,
    /// Width `H` of the language model.
    pub llm_width: i64,
    /// Form of the layer mix.
    pub mix: LayerMix,
    /// Stride of each convolution block.
    pub strides: Vec<i64>,
    /// Width of the convolutions, frames, odd.
    pub kernel: i64,
    /// What stands between two blocks. Files of older versions do not say: nothing.
    #[serde(default)]
    pub activation: Activation,
    /// Residual blocks behind the last convolution, before its norm. Files of older versions do not say:
    /// none.
    #[serde(default)]
    pub residual_blocks: i64,
    /// What the language model reads. Files of older versions do not say: every frame.
    #[serde(default)]
    pub positions: Positions,
    /// Whether a position of the whole clip comes before the others. Files of older versions do not say: no.
    #[serde(default)]
    pub summary: bool,
    /// Whether the last training of the adapter had a CTC loss, so that its CTC head reads the frames as they
    /// are. After a stage without one the head no longer fits. Files of older versions do not say: no.
    #[serde(default)]
    pub ctc_trained: bool,
    /// Tasks whose labels the summary was aligned with, in order, so that it can score them. Files of older
    /// versions do not say: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub summary_tasks: Vec<String>,
    /// Whether there is an embedding of what is said. Files of older versions do not say: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sentence: bool,
    /// Tasks whose labels that embedding was aligned with, in order, so that it can score them. Files of
    /// older versions do not say: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sentence_tasks: Vec<String>,
}

/// Larger than any published network; keeps a lying file from asking for absurd memory.
const WIDTH_MAX: i64 = 65_536;
const LAYERS_MAX: i64 = 1024;
/// Width of the narrow layer between a clip's statistics and its position.
const SUMMARY_WIDTH: i64 = 128;
/// Width of the convolution between a clip's segments and the embedding of what is said.
const SENTENCE_WIDTH: i64 = 128;
/// Positions of the language model for each second of sound: the paper's.
const POSITIONS_PER_SECOND: f64 = 12.5;

impl AdapterConfig {
    /// The adapter between two networks. Strides that are not set follow from the encoder's rate.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when a setting or a size is out of range, or no two strides bring the encoder's
    /// rate to 12.5 Hz.
    pub fn new(
        settings: &AdapterSettings,
        encoder: &EncoderInfo,
        llm: &LanguageModelInfo,
    ) -> Result<Self, ModelError> {
        let config = Self {
            encoder_width: encoder.width,
            encoder_layers: encoder.layers,
            llm_width: llm.width,
            mix: settings.mix,
            strides: match &settings.strides {
                Some(strides) => strides.clone(),
                None => strides_for(encoder)?,
            },
            kernel: settings.kernel,
            activation: settings.activation.unwrap_or_default(),
            residual_blocks: settings.residual_blocks.unwrap_or_default(),
            positions: settings.positions.unwrap_or_default(),
            summary: settings.summary.unwrap_or_default(),
            ctc_trained: false,
            summary_tasks: Vec::new(),
            sentence: settings.sentence.unwrap_or_default(),
            sentence_tasks: Vec::new(),
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that all sizes are usable.
    ///
    /// # Errors
    /// [`ModelError::Shape`] with the first that is not.
    pub fn validate(&self) -> Result<(), ModelError> {
        let settings = AdapterSettings {
            mix: self.mix,
            strides: Some(self.strides.clone()),
            kernel: self.kernel,
            residual_blocks: Some(self.residual_blocks),
            positions: Some(self.positions),
            sentence: Some(self.sentence),
            ..AdapterSettings::default()
        };
        settings.validate().map_err(|problem| ModelError::Shape {
            what: "adapter settings",
            expected: problem,
            found: self.strides.iter().copied().chain([self.kernel]).collect(),
        })?;
        let sizes = [
            ("adapter's encoder width", self.encoder_width, WIDTH_MAX),
            ("adapter's encoder layers", self.encoder_layers, LAYERS_MAX),
            ("adapter's llm width", self.llm_width, WIDTH_MAX),
        ];
        for (what, value, max) in sizes {
            if !(1..=max).contains(&value) {
                return Err(ModelError::Shape {
                    what,
                    expected: format!("1 to {max}"),
                    found: vec![value],
                });
            }
        }
        Ok(())
    }

    /// Frames of the downsampler that `frames` encoder frames become: `T → ceil(T / stride)`, block after
    /// block.
    pub fn positions(&self, frames: i64) -> i64 {
        self.strides
            .iter()
            .fold(frames.max(0), |frames, stride| (frames + stride - 1) / stride)
    }

    /// Every variable of the adapter itself (without a CTC head): name and shape.
    pub fn variables(&self) -> Vec<(String, Vec<i64>)> {
        let mut variables = Vec::new();
        match self.mix {
            LayerMix::Paper => variables.push(("mix.weight".to_owned(), vec![self.encoder_layers])),
            LayerMix::Softmax => variables.push(("mix.weight".to_owned(), vec![self.encoder_layers + 1])),
            LayerMix::Last => {}
        }
        let mut width = self.encoder_width;
        for block in 0..self.strides.len() {
            let name = |part: &str| format!("downsample.{block}.{part}");
            variables.push((name("conv.weight"), vec![self.llm_width, width, self.kernel]));
            variables.push((name("conv.bias"), vec![self.llm_width]));
            variables.push((name("norm.weight"), vec![self.llm_width]));
            variables.push((name("norm.bias"), vec![self.llm_width]));
            width = self.llm_width;
        }
        let width = self.llm_width;
        for block in 0..self.residual_blocks {
            let name = |part: &str| format!("residual.{block}.{part}");
            variables.push((name("norm.weight"), vec![width]));
            variables.push((name("norm.bias"), vec![width]));
            variables.push((name("conv.weight"), vec![width, width, self.kernel]));
            variables.push((name("conv.bias"), vec![width]));
            variables.push((name("linear.weight"), vec![width, width]));
            variables.push((name("linear.bias"), vec![width]));
        }
        if self.summary {
            let name = |part: &str| format!("summary.{part}");
            let statistics = 2 * (self.encoder_layers + 1) * self.encoder_width;
            variables.push((name("inner.linear.weight"), vec![SUMMARY_WIDTH, statistics]));
            variables.push((name("inner.linear.bias"), vec![SUMMARY_WIDTH]));
            variables.push((name("outer.linear.weight"), vec![width, SUMMARY_WIDTH]));
            variables.push((name("outer.linear.bias"), vec![width]));
            variables.push((name("norm.weight"), vec![width]));
            variables.push((name("norm.bias"), vec![width]));
        }
        if self.sentence {
            let name = |part: &str| format!("sentence.{part}");
            variables.push((name("norm.weight"), vec![width]));
            variables.push((name("norm.bias"), vec![width]));
            variables.push((name("conv.weight"), vec![SENTENCE_WIDTH, width, self.kernel]));
            variables.push((name("conv.bias"), vec![SENTENCE_WIDTH]));
            variables.push((name("linear.weight"), vec![width, 2 * SENTENCE_WIDTH]));
            variables.push((name("linear.bias"), vec![width]));
        }
        variables
    }

    /// Numbers that the adapter itself (without a CTC head) learns.
    pub fn parameter_count(&self) -> i64 {
        self.variables()
            .iter()
            .map(|(_, shape)| shape.iter().product::<i64>())
            .sum()
    }
}

/// The paper's two blocks: 4 in time for a 50 Hz encoder, 2 for one of 25 Hz.
fn strides_for(encoder: &EncoderInfo) -> Result<Vec<i64>, ModelError> {
    let rate = encoder.frames_per_second;
    [[2, 2], [2, 1]]
        .into_iter()
        .find(|[first, second]| rate == POSITIONS_PER_SECOND * (first * second) as f64)
        .map(Vec::from)
        .ok_or_else(|| ModelError::Shape {
            what: "the encoder's frame rate, hertz",
            expected: "50 or 25, or `adapter.strides` in the settings".to_owned(),
            found: vec![rate as i64],
        })
}

#[cfg(test)]
impl AdapterConfig {
    /// The paper's form with a mix of the layers, between networks of these sizes.
    pub(crate) fn paper(encoder_width: i64, encoder_layers: i64, llm_width: i64) -> Self {
        Self {
            encoder_width,
            encoder_layers,
            llm_width,
            mix: LayerMix::Paper,
            strides: vec![2, 2],
            kernel: 3,
            activation: Activation::None,
            positions: Positions::Frames,
            residual_blocks: 0,
            summary: false,
            ctc_trained: false,
            summary_tasks: Vec::new(),
            sentence: false,
            sentence_tasks: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> AdapterConfig {
        AdapterConfig {
            mix: LayerMix::Last,
            ..AdapterConfig::paper(1024, 24, 2048)
        }
    }

    #[test]
    fn a_file_of_an_older_version_is_of_the_papers_form() {
        let old = r#"{"encoder_width":1024,"encoder_layers":24,"llm_width":2048,"mix":"last","strides":[2,2],"kernel":3}"#;

        assert_eq!(serde_json::from_str::<AdapterConfig>(old).unwrap(), paper());
    }

    #[test]
    fn parameter_counts_are_those_of_the_paper() {
        let wavlm = paper();
        let best_rq = AdapterConfig {
            encoder_width: 768,
            mix: LayerMix::Paper,
            strides: vec![2, 1],
            ..paper()
        };

        assert_eq!(wavlm.parameter_count(), 6_293_504 + 12_584_960 + 8_192);
        assert_eq!(best_rq.parameter_count(), 4_720_640 + 12_584_960 + 8_192 + 24);
    }

    #[test]
    fn positions_follow_the_frame_arithmetic_of_the_paper() {
        assert_eq!(paper().positions(49), 13);
        assert_eq!(paper().positions(1499), 375);
        assert_eq!(paper().positions(0), 0);
        assert_eq!(paper().positions(1), 1);
    }

    #[test]
    fn strides_follow_the_encoders_rate_unless_they_are_set() {
        let made = |frames_per_second, strides| {
            let encoder = EncoderInfo {
                layers: 24,
                width: 768,
                frames_per_second,
                max_samples: None,
            };
            let llm = LanguageModelInfo {
                width: 2048,
                vocab: 10,
                layers: 1,
                max_positions: 10,
            };
            let settings = AdapterSettings {
                strides,
                ..AdapterSettings::default()
            };
            AdapterConfig::new(&settings, &encoder, &llm).map(|config| config.strides)
        };

        assert_eq!(made(50.0, None).unwrap(), [2, 2]);
        assert_eq!(made(25.0, None).unwrap(), [2, 1]);
        assert_eq!(made(50.0, Some(vec![4])).unwrap(), [4]);
        let error = made(33.3, None).unwrap_err().to_string();
        assert!(error.contains("`adapter.strides`"), "{error}");
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let error = AdapterConfig {
            llm_width: 1 << 40,
            ..paper()
        }
        .validate()
        .unwrap_err()
        .to_string();

        assert!(error.contains("llm width"), "{error}");
        assert!(AdapterConfig { kernel: 4, ..paper() }.validate().is_err());
        assert!(
            AdapterConfig {
                strides: vec![0],
                ..paper()
            }
            .validate()
            .is_err()
        );
    }
}
