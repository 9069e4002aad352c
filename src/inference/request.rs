//! What engines are asked, what they report, and their sizes.

use std::sync::Arc;

use super::scheduler::SchedulerSizes;
use super::{DecodeOptions, Features, Generation, InferenceError, RequestId};
use crate::audio::config::{AudioConfig, SpeechConfig};
use crate::models::adapter::AdapterSnapshot;
use crate::text::{JointLayout, OutputGrammar, Spoken};

/// What an answer is about.
#[derive(Debug)]
pub enum Input {
    /// Sound.
    Audio {
        /// Mono, 16 kHz, in [-1, 1].
        samples: Vec<f32>,
        /// The adapter version that the answer is pinned to.
        adapter: AdapterSnapshot,
    },
    /// Sound that a [`FeatureExtractor`](super::FeatureExtractor) has encoded.
    Features {
        /// What the encoder made of it.
        features: Features,
        /// The adapter version that the answer is pinned to.
        adapter: AdapterSnapshot,
    },
    /// Text that stands where sound would.
    Text {
        /// The text.
        text: String,
        /// The version whose low-rank parts read it; absent for the language model as published.
        adapter: Option<AdapterSnapshot>,
    },
}

/// One question.
#[derive(Debug)]
pub struct GenerateRequest {
    /// What it is about.
    pub input: Input,
    /// What to do with it.
    pub instruction: String,
    /// What the answer may be; free text when absent.
    pub grammar: Option<OutputGrammar>,
    /// Most answer tokens, instead of the engine's own. More than these are an upper bound: the answer gets
    /// as many of them as its slot has positions for.
    pub tokens_max: Option<usize>,
    /// The task, where it is a known one. In a transcript with a free grammar the CTC head has a say, if the
    /// adapter has one; in the choice of a label the summary has, or the embedding of what is said, if the
    /// adapter's is aligned with the task.
    pub task: Option<String>,
    /// What has to be said for the labels that the answer is constrained to: then the CTC head has a say in
    /// their choice.
    pub spoken: Option<Spoken>,
    /// How the answers of several tasks are laid out; absent for one. Then `task` and `spoken` do not count:
    /// what is said of them above holds for each part.
    pub joint: Option<Arc<JointLayout>>,
}

impl GenerateRequest {
    /// About how many positions its sound or text takes in the prompt, at least 1: of sound a quarter of the
    /// encoder's frames, as in the paper's form, of text one for four bytes.
    pub(super) fn positions_about(&self) -> usize {
        let count = match &self.input {
            Input::Features { features, .. } => features.frames.size().first().copied().unwrap_or(0) / 4,
            Input::Text { text, .. } => i64::try_from(text.len() / 4).unwrap_or(i64::MAX),
            Input::Audio { .. } => 0,
        };
        usize::try_from(count).unwrap_or(0).max(1)
    }
}

/// What a step reports about a request. A request ends with exactly one [`Event::Finished`] or
/// [`Event::Failed`], unless it is aborted.
#[derive(Debug)]
pub enum Event {
    /// The answer has advanced.
    Token {
        /// Which request.
        id: RequestId,
        /// Its tokens so far; see [`Generator::partial`](super::Generator::partial) for what they are.
        tokens: usize,
    },
    /// The answer is complete.
    Finished {
        /// Which request.
        id: RequestId,
        /// Its tokens and their log-probabilities.
        generation: Generation,
        /// Its text, without control tokens and white space around it.
        text: String,
    },
    /// There is no answer.
    Failed {
        /// Which request.
        id: RequestId,
        /// Why.
        error: InferenceError,
    },
}

/// Tokens that a step checks ahead unless it is set otherwise.
pub const DRAFT_TOKENS_MAX: usize = 16;

/// By which settings long sound is cut into windows.
#[derive(Clone, Debug, PartialEq)]
pub struct ByWindow {
    /// How speech is found, and how long a window may be.
    pub speech: SpeechConfig,
    /// What is silence.
    pub audio: AudioConfig,
}

/// Sizes of an engine and how it answers.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Sequences side by side; a beam search takes several. At least one answer always has its slots.
    pub slots: usize,
    /// Positions of a slot, prompt and answer together. How strictly the two are distinguished is the
    /// language model's affair, see [`LanguageModel::new_cache`](crate::models::LanguageModel::new_cache).
    pub positions_max: usize,
    /// How many of them are the answer's.
    pub answer_positions: usize,
    /// Most windows in one pass of the encoder.
    pub batch_windows_max: usize,
    /// How answers are generated.
    pub options: DecodeOptions,
    /// How transcripts of long sound are made window by window; absent: every clip is answered as one. For
    /// whoever drives the engine, which itself answers what it is asked.
    pub by_window: Option<ByWindow>,
    /// Most positions of prompts that one step reads; 0 for no limit. See
    /// [`SchedulerSizes::prefill_positions_max`].
    pub prefill_positions_max: usize,
    /// Most tokens of transcripts that one step checks ahead; 0 for none. See
    /// [`SchedulerSizes::draft_tokens_max`].
    pub draft_tokens_max: usize,
    /// Sets the memory of all slots aside at the beginning, as a service must; otherwise it grows with what
    /// is asked.
    pub preallocate: bool,
}

impl EngineConfig {
    /// For work offline: `rows` clips or sequences at once, and as many positions as the language model has.
    pub fn offline(rows: usize, options: DecodeOptions) -> Self {
        Self {
            slots: rows.max(options.slots()),
            positions_max: usize::MAX >> 1,
            answer_positions: usize::MAX >> 2,
            batch_windows_max: rows.max(1),
            options,
            by_window: None,
            prefill_positions_max: 0,
            draft_tokens_max: DRAFT_TOKENS_MAX,
            preallocate: false,
        }
    }

    pub(super) fn scheduler_sizes(&self) -> SchedulerSizes {
        SchedulerSizes {
            slots: self.slots.max(self.options.slots()),
            prompt_positions: self.positions_max.saturating_sub(self.answer_positions),
            answer_positions: self.answer_positions,
            prefill_positions_max: self.prefill_positions_max,
            draft_tokens_max: self.draft_tokens_max,
            preallocate: self.preallocate,
        }
    }
}
