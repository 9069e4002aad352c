//! What a request's time was spent on.

/// Milliseconds that an utterance spent in each stage so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTimes {
    /// Waiting in queues.
    pub queue_ms: f64,
    /// Decoding and resampling the sound.
    pub decode_audio_ms: f64,
    /// Speech encoder.
    pub encode_ms: f64,
    /// Adapter and the LLM's pass over the prompt.
    pub prefill_ms: f64,
    /// Generating the answer.
    pub generate_ms: f64,
}

impl StageTimes {
    /// Adds the time spent on a window to that of its recording.
    pub fn add(&mut self, window: &Self) {
        self.queue_ms += window.queue_ms;
        self.encode_ms += window.encode_ms;
        self.prefill_ms += window.prefill_ms;
        self.generate_ms += window.generate_ms;
    }
}
