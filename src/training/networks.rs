//! The frozen networks of a run, loaded from settings.

use std::fmt;

use super::TrainingError;
use crate::inference::speech_llm::SpeechLlm;
use crate::inference::{BorrowedEngine, Engine, EngineConfig, InferenceError};
use crate::models::config::ModelConfig;
use crate::models::encoders::whisper::Window;
use crate::models::{SpeechEncoder, open_encoder};
use crate::nn::accel::{Placement, Precision, configure_threads};
use crate::registry::{ModelIdentity, identify};

/// Encoder and language model, frozen, with what they are. Belongs to one thread at a time.
pub struct Networks {
    /// The speech encoder.
    pub encoder: Box<dyn SpeechEncoder>,
    /// The language model with tokenizer and prompt layout.
    pub speech_llm: SpeechLlm,
    /// Which encoder.
    pub encoder_identity: ModelIdentity,
    /// Which language model.
    pub llm_identity: ModelIdentity,
    /// Device and precision, and why.
    pub placement: Placement,
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks")
            .field("encoder", &self.encoder_identity)
            .field("llm", &self.llm_identity)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

impl Networks {
    /// Loads both model folders to the device and in the precision that the settings and the machine allow,
    /// as serving does.
    ///
    /// # Errors
    /// [`TrainingError`] when a folder is missing or does not fit, or the device cannot be had.
    pub fn load(config: &ModelConfig) -> Result<Self, TrainingError> {
        Self::load_to(Placement::resolve(config.device, config.precision)?, config)
    }

    /// As [`load`](Self::load), in the precision in which batches are fastest
    /// ([`Placement::of_many_rows`]), unless weights are to be in 8-bit integers.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_to_train(config: &ModelConfig) -> Result<Self, TrainingError> {
        let placement = Placement::resolve(config.device, config.precision)?;
        let placement = match placement.precision {
            Precision::Int8 => placement,
            Precision::F32 | Precision::Bf16 => placement.of_many_rows(),
        };
        Self::load_to(placement, config)
    }

    fn load_to(placement: Placement, config: &ModelConfig) -> Result<Self, TrainingError> {
        configure_threads(config.threads);
        let encoder = open_encoder(&config.encoder, Window::Clip, &placement)?;
        let speech_llm = SpeechLlm::open(&config.llm, config.system.as_deref(), &placement)?;
        Ok(Self {
            encoder,
            speech_llm,
            encoder_identity: identify(&config.encoder)?,
            llm_identity: identify(&config.llm)?,
            placement,
        })
    }

    /// An inference engine over these networks.
    pub fn engine(&self, config: &EngineConfig) -> BorrowedEngine<'_> {
        Engine::new(self.encoder.as_ref(), &self.speech_llm, config)
    }
}

impl From<InferenceError> for TrainingError {
    fn from(error: InferenceError) -> Self {
        match error {
            InferenceError::Model(error) => Self::Model(error),
            InferenceError::Text(error) => Self::Text(error),
            error @ InferenceError::NoFeatures => Self::Settings {
                problem: error.to_string(),
            },
        }
    }
}
