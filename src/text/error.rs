//! What can go wrong between a string and a row of token ids.

use std::path::PathBuf;

use crate::util::mistaken_for;

/// Errors of text handling.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file of the model folder could not be read.
    #[error("could not read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is larger than anything of its kind.
    #[error("`{}` has {bytes} bytes, at most {limit} are accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file is not what its name promises.
    #[error("`{}` is not {expected}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected, with its article.
        expected: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The tokenizer refused a text or ids.
    #[error("the tokenizer could not {action}: {reason}")]
    Tokenize {
        /// `encode` or `decode`.
        action: &'static str,
        /// What it said.
        reason: String,
    },
    /// A tokenizer whose tokens have no spelling of their own.
    #[error(
        "answers cannot be constrained with this tokenizer: it has {found}; supported are `ByteLevel`, `Metaspace`, and \
         sequences of `Replace`, `ByteFallback`, `Fuse` and `Strip`"
    )]
    TokenBytes {
        /// Its decoder.
        found: String,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab} ids")]
    UnknownId {
        /// The id.
        id: i64,
        /// How many ids the tokenizer knows.
        vocab: i64,
    },
    /// Plain text turned into a control token, which would let a user's words steer the model's layout.
    #[error(
        "the tokenizer turns plain text into control token {id} (`{token}`); this tokenizer cannot keep instructions apart from layout"
    )]
    ControlToken {
        /// The id.
        id: i64,
        /// The token.
        token: String,
    },
    /// The model folder has no chat template.
    #[error(
        "`{}` has no chat template (neither `chat_template.jinja` nor `chat_template` in `tokenizer_config.json`); an instruction-tuned model is needed",
        folder.display()
    )]
    NoTemplate {
        /// The model folder.
        folder: PathBuf,
    },
    /// A system message for a model that has no place for one.
    #[error("this model has no chat template and no place for a system message; leave `model.system` out")]
    NoSystem,
    /// The chat template failed, or refused the conversation.
    #[error("the chat template failed: {reason}")]
    Template {
        /// What it said.
        reason: String,
    },
    /// The chat template cannot be split around the audio.
    #[error(
        "the chat template shows the user's message {found} times, expected 1; audio cannot be placed in it"
    )]
    Layout {
        /// How often the user's message appears in the rendered prompt.
        found: usize,
    },
    /// No end-of-answer token is declared.
    #[error(
        "neither `generation_config.json` nor `config.json` in `{}` names an `eos_token_id`; answers would never end",
        folder.display()
    )]
    NoEos {
        /// The model folder.
        folder: PathBuf,
    },
    /// A task file says something that does not hold together.
    #[error("task file `{}`: {reason}", path.display())]
    Task {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A task that no file declares.
    #[error("task `{name}` is not known; known tasks: {known}")]
    UnknownTask {
        /// The task asked for.
        name: String,
        /// The tasks there are, separated by commas.
        known: String,
    },
    /// Several tasks that cannot be asked at once.
    #[error("tasks `{list}`: {reason}")]
    TaskList {
        /// The tasks asked for.
        list: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A place in a task's prompt cannot be filled.
    #[error("task `{task}`: {reason}")]
    Placeholder {
        /// The task.
        task: String,
        /// Which placeholder, and what would fill it.
        reason: String,
    },
    /// A form of answers that cannot be read or kept.
    #[error("the {kind} cannot be used: {reason}")]
    Structure {
        /// Its language.
        kind: &'static str,
        /// What is wrong with it and what was expected.
        reason: String,
    },
    /// A label that a task's answers cannot be made of.
    #[error("task `{task}`: {reason}")]
    Label {
        /// The task.
        task: String,
        /// Which label, and why.
        reason: String,
    },
}

/// Reads a whole file, but no more than `limit` bytes of it.
pub(crate) fn read_bounded(path: &std::path::Path, limit: u64) -> Result<Vec<u8>, TextError> {
    use std::io::Read as _;
    let read_error = |source| TextError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = std::fs::File::open(path).map_err(read_error)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > limit {
        let bytes = std::fs::metadata(path).map_or(limit + 1, |metadata| metadata.len());
        return Err(TextError::TooLarge {
            path: path.to_path_buf(),
            bytes,
            limit,
        });
    }
    match mistaken_for(&bytes) {
        Some(found) => Err(TextError::Malformed {
            path: path.to_path_buf(),
            expected: "what its name says",
            reason: format!("it is {found}"),
        }),
        None => Ok(bytes),
    }
}

/// Reads a bounded file as UTF-8 text.
pub(crate) fn read_text(path: &std::path::Path, limit: u64) -> Result<String, TextError> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|error| TextError::Malformed {
        path: path.to_path_buf(),
        expected: "UTF-8 text",
        reason: error.to_string(),
    })
}

/// The first characters of a stranger's words, safe to print.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}
