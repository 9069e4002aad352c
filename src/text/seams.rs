//! Transcripts of windows of one recording, joined: words that two windows share are written once.

/// Words on each side of a seam among which shared ones are looked for: more than are said in the seconds
/// that two windows share.
const SEAM_WORDS: usize = 16;
/// Shortest shared word that is believed to be shared when it is the only one, letters.
const LONE_WORD_LETTERS: usize = 4;

/// A transcript of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowText<'t> {
    /// What was said.
    pub text: &'t str,
    /// Whether the window begins inside the one before it.
    pub overlaps: bool,
}

/// One text of all windows, in order.
///
/// Where a window begins inside the one before, the longest run of words that the end of the one and the
/// begin of the other have in common is written once, and what stands beyond it on either side (words that
/// the cut went through) comes from the window in whose middle it was said. Where they have nothing in
/// common, both are written whole: rather a word twice than a word lost.
pub fn join_windows<'t>(windows: impl IntoIterator<Item = WindowText<'t>>) -> String {
    let mut words: Vec<&str> = Vec::new();
    for window in windows {
        let mut next: Vec<&str> = window.text.split_whitespace().collect();
        if window.overlaps
            && let Some((keep, skip)) = seam(&words, &next)
        {
            words.truncate(keep);
            next.drain(..skip);
        }
        words.append(&mut next);
    }
    words.join(" ")
}

/// How many words of `before` are kept, and how many of `after` are left out.
fn seam(before: &[&str], after: &[&str]) -> Option<(usize, usize)> {
    let first = before.len().saturating_sub(SEAM_WORDS);
    let tail: Vec<String> = before[first..].iter().map(|word| plain(word)).collect();
    let head: Vec<String> = after.iter().take(SEAM_WORDS).map(|word| plain(word)).collect();
    let mut best: Option<(usize, usize, usize)> = None;
    for from in 0..tail.len() {
        for to in 0..head.len() {
            let pairs = tail[from..].iter().zip(&head[to..]);
            let shared = pairs
                .take_while(|(one, other)| one == other && !one.is_empty())
                .count();
            // Of equally long ones, that which leaves out the fewest words.
            let left_out = |from: usize, to: usize, shared: usize| tail.len() - from - shared + to;
            let is_better = best.is_none_or(|(other_from, other_to, most)| {
                shared > most
                    || shared == most && left_out(from, to, shared) < left_out(other_from, other_to, most)
            });
            if shared > 0 && is_better {
                best = Some((from, to, shared));
            }
        }
    }
    let (from, to, shared) = best?;
    let is_sure = shared > 1 || tail[from].chars().count() >= LONE_WORD_LETTERS;
    is_sure.then_some((first + from + shared, to + shared))
}

/// A word as it is compared: without case and punctuation.
fn plain(word: &str) -> String {
    word.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(windows: &[(&str, bool)]) -> String {
        join_windows(windows.iter().map(|(text, overlaps)| WindowText {
            text,
            overlaps: *overlaps,
        }))
    }

    #[test]
    fn windows_that_are_cut_in_pauses_stand_one_after_the_other() {
        let found = joined(&[("the cat ", false), ("", false), (" the cat sat", false)]);

        assert_eq!(found, "the cat the cat sat");
    }

    #[test]
    fn shared_words_are_written_once_and_cut_words_come_from_the_window_that_heard_them_whole() {
        let found = joined(&[
            ("we walked along the river until the ev", false),
            ("long the river, until the evening came", true),
        ]);

        assert_eq!(found, "we walked along the river until the evening came");
    }

    #[test]
    fn nothing_in_common_loses_no_word() {
        assert_eq!(
            joined(&[("one two", false), ("three four", true)]),
            "one two three four"
        );
        assert_eq!(joined(&[("it is a", false), ("a dog", true)]), "it is a a dog");
        assert_eq!(joined(&[("", false), ("three", true)]), "three");
    }

    #[test]
    fn one_long_word_is_enough_and_what_repeats_is_joined_where_least_is_left_out() {
        assert_eq!(
            joined(&[("see the mountain", false), ("mountain is high", true)]),
            "see the mountain is high"
        );
        assert_eq!(
            joined(&[
                ("no no no never again", false),
                ("never again never again he said", true)
            ]),
            "no no no never again never again he said"
        );
    }

    #[test]
    fn words_that_differ_do_not_hide_the_longest_run() {
        let found = joined(&[
            ("a b c delta echo foxtrot gulf", false),
            ("delta echo foxtrot golf hotel", true),
        ]);

        assert_eq!(found, "a b c delta echo foxtrot golf hotel");
    }
}
