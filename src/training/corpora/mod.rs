//! Corpora of labelled recordings: from folders as their publishers sort them to manifests, and the proof
//! that what is tested was never learned.
//!
//! | file | one thought |
//! |---|---|
//! | [`pack`] | a folder of corpora: who says what, under which licence, and which voices are kept apart |
//! | [`spoken`] | the normal form of a sentence |
//! | [`rows`] | the rows that each recording gives: rows of manifests, task by task |
//! | [`import()`] | writes the manifests |
//! | [`check()`] | no test voice, test sentence or test recording is in training |

pub mod check;
pub mod import;
pub mod pack;
pub mod rows;
pub mod spoken;

pub use check::{Conflict, LeakReport, check};
pub use import::{ImportReport, ImportedManifest, import};

use sha2::{Digest, Sha256};

use crate::util::hex;

/// The SHA-256 of a text in hexadecimal: what every seeded choice is made by, so that a choice depends on its
/// recording alone.
fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// A number below `count` (at least 1) that depends on `key` alone.
fn pick(key: &str, count: usize) -> usize {
    let bits = u64::from_str_radix(&digest(key)[..12], 16).expect("twelve hexadecimal digits are a number");
    usize::try_from(bits % count.max(1) as u64).expect("it is below a usize")
}

/// `items` in an order that depends on `key` and the items alone.
fn shuffled(key: &str, items: &[String]) -> Vec<String> {
    let mut ordered = items.to_vec();
    ordered.sort_by_cached_key(|item| digest(&format!("{key}/{item}")));
    ordered
}

#[cfg(test)]
mod tests;
