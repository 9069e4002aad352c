//! The one way from sound to answer. Serving, `ask`, `eval`, validation and the promotion gate all answer
//! through it.
//!
//! | file | contents |
//! |---|---|
//! | [`Engine`] | `add_request`, `step() -> events`, `abort`: both halves together |
//! | [`FeatureExtractor`] | first half: windows of long clips, batches by length, mixed encoder features |
//! | [`Generator`] | second half: prompts, adapter versions, grammars, answers |
//! | `evidence` | what summary and CTC head say of labels, and of whether anything is said |
//! | [`Scheduler`] | continuous batching over cache slots; failures end only the sequences at fault |
//! | `prefill_plan` | which prompts, or parts of prompts, one step reads |
//! | `prefix_cache` | keys and values of what all prompts begin with |
//! | [`Generation`] | a generated answer, and what speaks for it |
//! | [`SpokenWord`] | when the words of a transcript are said |
//! | `sequence` | one answer on its way from prompt to end |
//! | [`sampling`] | greedy, beam search, sampling, penalties |
//! | [`grammar`] | output grammars: answers from a list, slots, fixed parts |
//! | [`speech_llm`] | audio positions inside the prompt of a language model |
//! | [`VoiceDetector`] | speech detected; long recordings cut into windows |
//!
//! Errors and panics belong to a request: they end it with an event, and no other.

mod clip_features;
pub mod config;
mod engine;
mod error;
mod evidence;
mod features;
mod generation;
mod generator;
pub mod grammar;
mod options;
mod prefill_plan;
mod prefix_cache;
mod recent_features;
mod request;
pub mod sampling;
mod scheduler;
mod sequence;
pub mod speech_llm;
mod voice;
mod word_times;

pub use clip_features::Features;
pub use engine::{BorrowedEngine, Engine, Output};
pub use error::InferenceError;
pub use features::{Clip, FeatureExtractor, hidden_states, windows};
pub use generation::Generation;
pub use generator::Generator;
pub use options::{BEAMS_MAX, BeamSettings, DecodeOptions, EarlyStopping, Sampling, Strategy};
pub use request::{ByWindow, DRAFT_TOKENS_MAX, EngineConfig, Event, GenerateRequest, Input};
pub use sampling::{JointCtc, JointLabels, TranscriptPart, repeated_tail};
pub use scheduler::{Scheduler, SchedulerSizes, StepOutput};
pub use sequence::{Loras, Prompt, RequestId};
pub use voice::{AudioWindow, SpeechWindows, VoiceDetector, VoiceState};
pub use word_times::SpokenWord;
