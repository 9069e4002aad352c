//! Labels that are decided by whether words are said.

/// What has to be said for the labels of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// One label where these words are said, another one where they are not.
    Words {
        /// The words.
        words: String,
        /// The label where they are said.
        said: String,
        /// The label where they are not.
        unsaid: String,
    },
    /// Each label is itself what is said; `none`: something else.
    Labels,
}
