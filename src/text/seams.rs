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

/// Several transcripts as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinedText {
    /// What was said.
    pub text: String,
    /// Of each word: which window it is from, and which word of that window it is.
    pub words: Vec<(usize, usize)>,
}

/// One text of all windows, in order.
///
/// Where a window begins inside the one before, a run of words that the end of the one and the begin of the
/// other have in common is written once, and what stands beyond it on either side (words that the cut went
/// through) comes from the window in whose middle it was said. It is the run that is longest, less the words
/// that are left out for it: a speaker may say a longer one again further away. Where they have nothing in
/// common, both are written whole: rather a word twice than a word lost.
pub fn join_windows<'t>(windows: impl IntoIterator<Item = WindowText<'t>>) -> String {
    join_words(windows).text
}

/// As [`join_windows`], and says where each word is from.
pub fn join_words<'t>(windows: impl IntoIterator<Item = WindowText<'t>>) -> JoinedText {
    let (mut words, mut places): (Vec<&str>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
    for (number, window) in windows.into_iter().enumerate() {
        let next: Vec<&str> = window.text.split_whitespace().collect();
        let mut skip = 0;
        if window.overlaps
            && let Some((keep, left_out)) = seam(&words, &next)
        {
            words.truncate(keep);
            places.truncate(keep);
            skip = left_out;
        }
        words.extend(&next[skip..]);
        places.extend((skip..next.len()).map(|at| (number, at)));
    }
    JoinedText {
        text: words.join(" "),
        words: places,
    }
}

/// How many words of `before` are kept, and how many of `after` are left out.
fn seam(before: &[&str], after: &[&str]) -> Option<(usize, usize)> {
    let first = before.len().saturating_sub(SEAM_WORDS);
    let tail: Vec<String> = before[first..].iter().map(|word| plain(word)).collect();
    let head: Vec<String> = after.iter().take(SEAM_WORDS).map(|word| plain(word)).collect();
    // Where it begins on either side, and how many words.
    let mut best: Option<(usize, usize, usize)> = None;
    // Words that are written once, less those that are left out for it, and the former alone.
    let gain = |(from, to, shared): (usize, usize, usize)| {
        let left_out = tail.len() - from - shared + to;
        (shared.cast_signed() - left_out.cast_signed(), shared)
    };
    for from in 0..tail.len() {
        for to in 0..head.len() {
            let pairs = tail[from..].iter().zip(&head[to..]);
            let shared = pairs
                .take_while(|(one, other)| one == other && !one.is_empty())
                .count();
            let found = (from, to, shared);
            let is_sure = shared > 1 || shared == 1 && tail[from].chars().count() >= LONE_WORD_LETTERS;
            if is_sure && best.is_none_or(|best| gain(found) > gain(best)) {
                best = Some(found);
            }
        }
    }
    let (from, to, shared) = best?;
    Some((first + from + shared, to + shared))
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
    fn each_word_says_where_it_is_from() {
        let windows = [("until the ev", false), ("until the evening", true)];
        let joined = join_words(windows.map(|(text, overlaps)| WindowText { text, overlaps }));

        assert_eq!(
            (joined.text.as_str(), joined.words),
            ("until the evening", vec![(0, 0), (0, 1), (1, 2)])
        );
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
    fn what_a_speaker_says_again_is_no_overlap() {
        assert_eq!(
            joined(&[
                (
                    "we went to the market and then we went to the beach with our dogs and",
                    false
                ),
                ("beach with our dogs and then we went to the hotel", true)
            ]),
            "we went to the market and then we went to the beach with our dogs and then we went to the hotel"
        );
        assert_eq!(
            joined(&[
                (
                    "my number is zero one two three four five six seven one two three",
                    false
                ),
                ("two three four five nine", true)
            ]),
            "my number is zero one two three four five six seven one two three four five nine"
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
