//! Which prompts, or parts of prompts, one step reads.
//!
//! In the order in which they were added: a prompt is never overtaken by a later one, however short, so that
//! a long one is never starved. Source of the idea: chunked prefills, Sarathi-Serve (Agrawal et al., OSDI
//! 2024).

/// A prompt that is not in the cache to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unread {
    /// Place of its sequence among the running ones.
    pub(super) at: usize,
    /// Positions of the prompt.
    pub(super) positions: i64,
    /// How many of them are in the cache.
    pub(super) read: i64,
}

/// What one step reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PrefillPlan {
    /// Sequences whose prompts are read whole, in passes that several share.
    pub(super) whole: Vec<usize>,
    /// Sequences that read a part of their prompts, and how many positions.
    pub(super) chunks: Vec<(usize, i64)>,
}

impl PrefillPlan {
    /// The first of `unread` that together have at most `positions_max` positions, counted as a pass computes
    /// them: each prompt as long as the longest that is read whole beside it. A prompt that alone is longer
    /// is read in parts of `positions_max` where `chunked` says that the model can, and otherwise whole, in a
    /// step of its own. One that has begun goes on behind what is read.
    pub(super) fn new(unread: impl IntoIterator<Item = Unread>, positions_max: i64, chunked: bool) -> Self {
        let mut plan = Self::default();
        let (mut rows, mut longest, mut in_chunks) = (0i64, 0i64, 0i64);
        for prompt in unread {
            let whole = prompt.read == 0 && prompt.positions <= positions_max || !chunked;
            if whole {
                rows += 1;
                longest = longest.max(prompt.positions);
            }
            let part = if whole {
                0
            } else {
                (prompt.positions - prompt.read).min(positions_max)
            };
            in_chunks += part;
            let all = rows.saturating_mul(longest).saturating_add(in_chunks);
            let is_first = plan.whole.is_empty() && plan.chunks.is_empty();
            if all > positions_max && !is_first {
                break;
            }
            match whole {
                true => plan.whole.push(prompt.at),
                false => plan.chunks.push((prompt.at, part)),
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan for prompts of `(positions, read)`.
    fn plan(prompts: &[(i64, i64)], positions_max: i64, chunked: bool) -> PrefillPlan {
        let unread = (prompts.iter().enumerate()).map(|(at, (positions, read))| Unread {
            at,
            positions: *positions,
            read: *read,
        });
        PrefillPlan::new(unread, positions_max, chunked)
    }

    fn expected(whole: &[usize], chunks: &[(usize, i64)]) -> PrefillPlan {
        PrefillPlan {
            whole: whole.to_vec(),
            chunks: chunks.to_vec(),
        }
    }

    #[test]
    fn without_a_limit_all_prompts_are_read_whole_and_together() {
        let prompts = [(5000, 0), (1, 0), (300, 0)];
        for chunked in [false, true] {
            assert_eq!(plan(&prompts, i64::MAX, chunked), expected(&[0, 1, 2], &[]));
        }
    }

    #[test]
    fn prompts_that_fit_together_with_their_padding_share_a_step() {
        assert_eq!(plan(&[(4, 0), (4, 0), (4, 0)], 8, true), expected(&[0, 1], &[]));
        // 2 + 5 positions are 7, but 10 with padding.
        assert_eq!(plan(&[(2, 0), (5, 0), (1, 0)], 8, true), expected(&[0], &[]));
        assert_eq!(plan(&[(8, 0)], 8, true), expected(&[0], &[]));
    }

    #[test]
    fn a_longer_prompt_is_read_in_parts_and_what_its_last_part_leaves_is_for_the_next() {
        let at = |read| plan(&[(20, read), (3, 0), (9, 0)], 8, true);
        assert_eq!(at(0), expected(&[], &[(0, 8)]));
        assert_eq!(at(8), expected(&[], &[(0, 8)]));
        assert_eq!(at(16), expected(&[1], &[(0, 4)]));
        // What comes behind a long prompt waits until that has a whole part.
        assert_eq!(plan(&[(3, 0), (20, 0), (1, 0)], 8, true), expected(&[0], &[]));
    }

    #[test]
    fn a_prompt_that_has_begun_goes_on_behind_what_is_read() {
        assert_eq!(plan(&[(7, 3)], 8, true), expected(&[], &[(0, 4)]));
        assert_eq!(plan(&[(7, 3)], i64::MAX, true), expected(&[], &[(0, 4)]));
    }

    #[test]
    fn where_parts_cannot_be_read_a_long_prompt_has_a_step_of_its_own() {
        assert_eq!(plan(&[(20, 0), (3, 0)], 8, false), expected(&[0], &[]));
        assert_eq!(plan(&[(3, 0), (20, 0)], 8, false), expected(&[0], &[]));
    }
}
