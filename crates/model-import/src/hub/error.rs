//! What can go wrong between the Hugging Face hub and a model folder.

use std::path::PathBuf;

/// Why a model of the hub was not fetched. Whole files that arrived before stay in the cache.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is not one of the hub's.
    #[error(
        "`{name}` is not the name of a model on the hub: expected `organisation/name` or `organisation/name@revision`, \
         each part of letters, digits, `-`, `_` and `.`"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// A variable of the environment does not fit.
    #[error("environment variable `{variable}`: {reason}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What was found and what is expected.
        reason: String,
    },
    /// No answer from the hub.
    #[error(
        "cannot get `{url}`: {reason}; check the network, or set HF_ENDPOINT to a mirror. What is in the cache \
         can be used without a network: set HF_HUB_OFFLINE=1"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The client's words.
        reason: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache lacks the model.
    #[error(
        "HF_HUB_OFFLINE is set, and `{repo}` at revision `{revision}` is not whole in the cache `{}`: {missing} is \
         missing; unset HF_HUB_OFFLINE to fetch it",
        cache.display()
    )]
    NotCached {
        /// The model.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The hub's cache on this machine.
        cache: PathBuf,
        /// The first file that is not there.
        missing: String,
    },
    /// 401 or 403.
    #[error(
        "the hub refuses `{url}` (HTTP {status}): the model is private, asks for its terms to be accepted on its page, \
         or does not exist; {}",
        if *token { "the token that was sent does not give access to it" } else { "no token was sent: set HF_TOKEN" }
    )]
    Refused {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// Whether a token was sent.
        token: bool,
    },
    /// 404.
    #[error("the hub has no `{url}` (HTTP 404): check the spelling of model and revision")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// Any other answer that is not the one expected.
    #[error("`{url}` answered {found}, expected {expected}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What came.
        found: String,
        /// What should have come.
        expected: String,
    },
    /// The hub's list of the model's files cannot be used.
    #[error("the list of files of `{repo}` cannot be used: {reason}")]
    Listing {
        /// The model.
        repo: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model is not published as safetensors.
    #[error(
        "`{repo}` has neither `model.safetensors` nor `model.safetensors.index.json`{}",
        if *pickle {
            "; it has pickle files, which are never fetched because they can run code: ask its authors for \
             safetensors, or look for another revision (`@refs/pr/N`)"
        } else {
            ""
        }
    )]
    NoSafetensors {
        /// The model.
        repo: String,
        /// Whether there are pickle files instead.
        pickle: bool,
    },
    /// More bytes than this program takes.
    #[error("{what} of `{repo}` has {bytes} bytes; at most {bytes_max} are fetched")]
    TooLarge {
        /// The model.
        repo: String,
        /// A file, or all of them.
        what: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The file that came is not as long as the hub's list says.
    #[error("`{url}` gave {found} bytes, the hub's list of files says {expected}")]
    Size {
        /// What was asked for.
        url: String,
        /// From the list.
        expected: u64,
        /// Counted.
        found: u64,
    },
    /// The file that came is not the one that the hub's list names.
    #[error(
        "`{url}` has the digest {found}, the hub's list of files says {expected}; what came was thrown away, \
         so run the same command again, and report this if it persists"
    )]
    Digest {
        /// What was asked for.
        url: String,
        /// From the list.
        expected: String,
        /// Computed.
        found: String,
    },
}

impl HubError {
    /// Whether the same request may succeed a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Answer { found, .. } => found.starts_with("HTTP 5") || found == "HTTP 429",
            Self::Size { expected, found, .. } => found < expected,
            _ => false,
        }
    }
}
