//! The classes of the CTC head: the tokens of transcripts.

use std::collections::BTreeSet;

/// Every token that occurs, in order: the classes after the blank.
pub fn classes_of<'a>(targets: impl IntoIterator<Item = &'a [i64]>) -> Vec<i64> {
    targets
        .into_iter()
        .flatten()
        .copied()
        .collect::<BTreeSet<i64>>()
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_the_tokens_that_occur_once_each_and_in_order() {
        assert_eq!(classes_of([[5, 3].as_slice(), &[], &[3, 9]]), [3, 5, 9]);
    }
}
