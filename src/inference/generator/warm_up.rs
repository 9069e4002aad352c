//! The first request, which nobody waits for.

use std::borrow::Borrow;

use tch::{Kind, Tensor};

use super::Generator;
use crate::inference::speech_llm::SpeechLlm;
use crate::inference::{Event, Features, GenerateRequest, Generation, InferenceError, Input};
use crate::models::adapter::AdapterSnapshot;
use crate::text::tasks::TRANSCRIPT;

impl<L: Borrow<SpeechLlm>> Generator<L> {
    /// Answers one short request of silence with `adapter`, so that the first real one finds libtorch's
    /// kernels chosen, memory touched and the version loaded.
    ///
    /// # Errors
    /// What the request failed with: networks and version do not work together.
    pub fn warm_up(&mut self, adapter: &AdapterSnapshot) -> Result<(), InferenceError> {
        self.transcribe_silence(adapter).map(|_| ())
    }

    /// By both networks, also where the adapter alone would say that nothing is said.
    pub(super) fn transcribe_silence(
        &mut self,
        adapter: &AdapterSnapshot,
    ) -> Result<Option<Generation>, InferenceError> {
        let frames = 50; // one second of most encoders
        let (states, width) = (
            adapter.config().encoder_layers + 1,
            adapter.config().encoder_width,
        );
        let device = self.model().llm().embedding_table().device();
        let wanted = self.add_request(GenerateRequest {
            input: Input::Features {
                features: Features {
                    frames: Tensor::f_zeros([frames, width], (Kind::Float, device))?,
                    statistics: Tensor::f_zeros([states, 2 * width], (Kind::Float, device))?,
                },
                adapter: adapter.clone(),
            },
            instruction: "Transcribe the speech.".to_owned(),
            grammar: None,
            tokens_max: Some(2), // a prefill and a decode step
            task: Some(TRANSCRIPT.to_owned()),
            spoken: None,
            joint: None,
        });
        let nothing_said_above = std::mem::replace(&mut self.options.nothing_said_above, 0.0);
        let mut answer = Ok(None);
        while self.has_unfinished() {
            for event in self.step() {
                match event {
                    Event::Finished { id, generation, .. } if id == wanted => answer = Ok(Some(generation)),
                    Event::Failed { id, error } if id == wanted => answer = Err(error),
                    _ => {}
                }
            }
        }
        self.options.nothing_said_above = nothing_said_above;
        answer
    }
}
