//! Text around the model: tokenizer, chat template, prompts, tasks and normalisation.
//!
//! | file | one thought |
//! |---|---|
//! | [`Tokenizer`] | strings to ids and back, piece by piece; a user's words never become control tokens |
//! | [`ChatTemplate`] | the model's own Jinja template, rendered as the transformers library does |
//! | [`PromptLayout`] | the model's layout split around the audio: `[prefix][audio][suffix]`, then the answer |
//! | [`TaskTable`] | what the program is asked to do: default instructions, training prompts, labels |
//! | [`answer`] | how answers are written, read back, and constrained |
//! | [`JointLayout`] | several tasks in one prompt and one answer |
//! | [`join_windows`] | transcripts of windows of one recording become one |
//! | [`normalize`] | what two spellings of one sentence have in common |

mod agreement;
pub mod answer;
mod chat_template;
mod error;
#[cfg(test)]
mod golden_tests;
pub mod joint;
pub mod normalize;
mod prompt;
mod seams;
pub mod tasks;
#[cfg(any(test, feature = "testsuite"))]
pub mod tiny;
mod token_bytes;
mod tokenizer;

pub use agreement::agreed_tokens;
pub use answer::{AnswerFormat, GrammarPiece, OutputGrammar, ParsedAnswer};
pub use answer::{Network, NetworkNode, STRUCTURE_BYTES_MAX, Structure, StructureKind};
pub use chat_template::{ChatMessage, ChatTemplate};
pub use error::TextError;
pub use joint::JointLayout;
pub use prompt::{PromptIds, PromptLayout, end_of_answer_ids};
pub use seams::{JoinedText, WindowText, join_windows, join_words};
pub use tasks::{ResolvedPrompt, Spoken, Task, TaskLabel, TaskMetric, TaskTable, TemplateVariables};
pub use token_bytes::TokenBytes;
pub use tokenizer::{TokenStream, Tokenizer};
