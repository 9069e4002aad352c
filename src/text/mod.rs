//! Text around the model: tokenizer, chat template, prompts, tasks, normalisation and word error rate.
//!
//! | file | one thought |
//! |---|---|
//! | [`Tokenizer`] | strings to ids and back, piece by piece; a user's words never become control tokens |
//! | [`ChatTemplate`] | the model's own Jinja template, rendered as the transformers library does |
//! | [`PromptLayout`] | the chat layout split around the audio: `[prefix][audio][suffix]`, then the answer |
//! | [`TaskTable`] | what the program is asked to do: default instructions, training prompts, labels |
//! | [`normalize`] | what two spellings of one sentence have in common |
//! | [`wer`] | word error rate over a corpus |

pub mod answer;
mod chat_template;
mod error;
#[cfg(test)]
mod golden_tests;
pub mod normalize;
mod prompt;
mod spelling;
mod tasks;
#[cfg(any(test, feature = "testsuite"))]
pub mod tiny;
mod tokenizer;
pub mod wer;

pub use answer::{AnswerPiece, AnswerShape};
pub use chat_template::{ChatMessage, ChatTemplate};
pub use error::TextError;
pub use prompt::{PromptIds, PromptLayout, end_of_answer_ids};
pub use spelling::Spelling;
pub use tasks::{Task, TaskLabel, TaskMetric, TaskTable};
pub use tokenizer::{TokenStream, Tokenizer};
