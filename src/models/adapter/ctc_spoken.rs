//! What the CTC head says about words: the probability that they are among what is said, that they are all
//! that is said, and that nothing is.
//!
//! Source: the forward algorithm of CTC (Graves, Fernández, Gomez and Schmidhuber, 2006) over the states of
//! Knuth, Morris and Pratt's string search: the sum over all paths whose tokens contain the words, without
//! approximation.

use super::PrefixScorer;

/// Log-probabilities below this are taken for this one: what is impossible stays finite.
const LOWEST: f64 = -690.0;

/// Mass of paths by how many tokens of the words their last tokens are, `[n + 1]`, apart for those that end
/// with a blank.
struct Mass {
    on_token: Vec<f64>,
    on_blank: Vec<f64>,
}

impl PrefixScorer {
    /// Natural-log odds that `tokens` stand somewhere among the tokens said, as whole words: what follows
    /// them begins a word, or nothing follows. `begins_word` says it of a token. None where a token is no
    /// class of the head, or there is none.
    ///
    /// Two equal tokens in a row need a blank between them, as everywhere in CTC. A path whose last tokens
    /// are none of the words' needs no note of which they are: repeating them changes nothing.
    pub fn log_odds_within(&self, tokens: &[i64], begins_word: impl Fn(i64) -> bool) -> Option<f64> {
        let words: Vec<usize> = (tokens.iter())
            .map(|token| self.class(*token))
            .collect::<Option<_>>()?;
        if words.is_empty() {
            return None;
        }
        let fallback = fallbacks(&words);
        // Each class of the words once, and whether it begins a word.
        let mut own: Vec<(usize, bool)> = words
            .iter()
            .copied()
            .zip(tokens.iter().map(|token| begins_word(*token)))
            .collect();
        own.sort_unstable();
        own.dedup();
        let (beginning, inner) = self.others(&own, &begins_word);
        let next = |matched: usize, class: usize| {
            let mut matched = matched;
            loop {
                if words.get(matched) == Some(&class) {
                    return matched + 1;
                }
                if matched == 0 {
                    return 0;
                }
                matched = fallback[matched];
            }
        };

        let count = words.len();
        let mut mass = Mass {
            on_token: vec![0.0; count + 1],
            on_blank: vec![0.0; count + 1],
        };
        mass.on_blank[0] = 1.0;
        let mut found = 0.0;
        for frame in 0..self.frames() {
            let mut grown = Mass {
                on_token: vec![0.0; count + 1],
                on_blank: vec![0.0; count + 1],
            };
            for matched in 0..=count {
                let (token, blank) = (mass.on_token[matched], mass.on_blank[matched]);
                let both = token + blank;
                grown.on_blank[matched] = both * self.probability(0, frame);
                let last = matched.checked_sub(1).map(|at| words[at]);
                for (class, begins) in &own {
                    let here = self.probability(*class, frame);
                    let mut fresh = both;
                    if last == Some(*class) {
                        grown.on_token[matched] += token * here; // goes on
                        fresh = blank;
                    }
                    match matched == count && *begins {
                        true => found += fresh * here,
                        false => grown.on_token[next(matched, *class)] += fresh * here,
                    }
                }
                match matched == count {
                    true => found += both * beginning[frame],
                    false => grown.on_token[0] += both * beginning[frame],
                }
                grown.on_token[0] += both * inner[frame];
            }
            mass = grown;
        }
        let said = found + mass.on_token[count] + mass.on_blank[count];
        let unsaid: f64 = (mass.on_token[..count].iter().chain(&mass.on_blank[..count])).sum();
        Some(said.ln().max(LOWEST) - unsaid.ln().max(LOWEST))
    }

    /// Probability in each frame of all classes that are not `own`: those that begin a word, and the others.
    fn others(&self, own: &[(usize, bool)], begins_word: &impl Fn(i64) -> bool) -> (Vec<f64>, Vec<f64>) {
        let others = (self.tokens()).filter(|(_, class)| own.iter().all(|(known, _)| known != class));
        let others: Vec<(usize, bool)> = others.map(|(token, class)| (class, begins_word(token))).collect();
        let sums = self.each_frame().map(|frame| {
            let mut sums = (0.0, 0.0);
            for (class, begins) in &others {
                let sum = if *begins { &mut sums.0 } else { &mut sums.1 };
                *sum += f64::from(frame[*class]).exp();
            }
            sums
        });
        sums.unzip()
    }

    fn probability(&self, class: usize, frame: usize) -> f64 {
        self.at(class, frame).exp()
    }

    /// Natural-log probability that exactly `tokens` are said, less that of the likeliest path of all: near
    /// 0, even above it, where they are what the head reads. None where a token is no class of the head.
    pub fn exactly(&self, tokens: &[i64]) -> Option<f64> {
        tokens.iter().all(|token| self.class(*token).is_some()).then(|| {
            let prefix = self.prefix(tokens);
            let said = prefix.score() + self.score_end(&prefix);
            (said - self.likeliest_path()).max(LOWEST)
        })
    }

    /// Natural-log probability that nothing is said.
    pub fn nothing(&self) -> f64 {
        self.of(0).sum()
    }

    fn likeliest_path(&self) -> f64 {
        let likeliest = self.path().iter().enumerate();
        likeliest
            .map(|(frame, class)| self.at(usize::try_from(*class).unwrap_or(0), frame))
            .sum()
    }
}

/// How many tokens still match after so many did and the next one does not, `[n + 1]`.
fn fallbacks(words: &[usize]) -> Vec<usize> {
    let mut fallback = vec![0; words.len() + 1];
    let mut matched = 0;
    for at in 1..words.len() {
        while matched > 0 && words[at] != words[matched] {
            matched = fallback[matched];
        }
        if words[at] == words[matched] {
            matched += 1;
        }
        fallback[at + 1] = matched;
    }
    fallback
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of classes 1, 2 and 3; the last one continues a word.
    const TOKENS: [i64; 3] = [70, 40, 55];
    const FRAMES: [[f64; 4]; 6] = [
        [0.4, 0.3, 0.2, 0.1],
        [0.1, 0.5, 0.2, 0.2],
        [0.3, 0.1, 0.2, 0.4],
        [0.2, 0.4, 0.1, 0.3],
        [0.25, 0.25, 0.3, 0.2],
        [0.1, 0.3, 0.4, 0.2],
    ];

    fn begins_word(token: i64) -> bool {
        token != 55
    }

    /// All that may be said, with its probability, by summing over all paths.
    fn by_hand() -> Vec<(Vec<i64>, f64)> {
        let paths = 4usize.pow(FRAMES.len() as u32);
        (0..paths)
            .map(|path| {
                let path: Vec<usize> = (0..FRAMES.len()).map(|at| path >> (2 * at) & 3).collect();
                let chance = path
                    .iter()
                    .zip(FRAMES)
                    .map(|(class, frame)| frame[*class])
                    .product();
                let said = (path.iter().enumerate())
                    .filter(|(at, class)| **class != 0 && (*at == 0 || path[at - 1] != **class))
                    .map(|(_, class)| TOKENS[class - 1])
                    .collect();
                (said, chance)
            })
            .collect()
    }

    #[test]
    fn the_odds_of_words_are_sums_over_all_paths_that_contain_them_whole() {
        let scorer = PrefixScorer::of_frames(&FRAMES, &TOKENS);
        let all = by_hand();
        for words in [
            vec![70],
            vec![40],
            vec![70, 55],
            vec![70, 70],
            vec![70, 40],
            vec![70, 55, 70],
            vec![70, 55, 55],
            vec![70, 55, 70, 55],
            vec![70, 40, 70, 40, 70],
        ] {
            let contained = |said: &[i64]| {
                let begins = |at: usize| said.get(at).is_none_or(|token| begins_word(*token));
                (said.windows(words.len()).enumerate())
                    .any(|(at, window)| window == words && begins(at + words.len()))
            };
            let yes: f64 = (all.iter().filter(|(said, _)| contained(said)))
                .map(|(_, chance)| chance)
                .sum();

            let odds = scorer.log_odds_within(&words, begins_word).unwrap();

            let expected = (yes / (1.0 - yes)).ln();
            assert!((odds - expected).abs() < 1e-5, "{words:?}: {odds}, {expected}");
        }
    }

    #[test]
    fn a_word_is_not_found_in_the_begin_of_a_longer_one() {
        // Certainly token 70, then its continuation 55.
        let frames = [[1e-9, 1.0, 1e-9, 1e-9], [1e-9, 1e-9, 1e-9, 1.0]];
        let scorer = PrefixScorer::of_frames(&frames, &TOKENS);

        assert!(scorer.log_odds_within(&[70], begins_word).unwrap() < -15.0);
        assert!(scorer.log_odds_within(&[70], |_| true).unwrap() > 15.0);
        assert!(scorer.log_odds_within(&[70, 55], begins_word).unwrap() > 15.0);
    }

    #[test]
    fn what_is_no_class_or_impossible_is_none_or_finite() {
        let scorer = PrefixScorer::of_frames(&FRAMES, &TOKENS);

        assert_eq!(scorer.log_odds_within(&[70, 7], begins_word), None);
        assert_eq!(scorer.log_odds_within(&[], begins_word), None);
        assert_eq!(scorer.exactly(&[7]), None);
        let never = scorer.log_odds_within(&[70; 9], begins_word).unwrap();
        assert!(never.is_finite() && never < -600.0, "{never}");
        assert!(scorer.exactly(&[70; 9]).unwrap().is_finite());
    }

    #[test]
    fn exact_words_and_silence_are_sums_over_their_paths() {
        let scorer = PrefixScorer::of_frames(&FRAMES, &TOKENS);
        let all = by_hand();
        let of = |words: &[i64]| -> f64 {
            let own = all.iter().filter(|(said, _)| said == words);
            own.map(|(_, chance)| chance).sum()
        };
        let best: f64 = FRAMES
            .map(|frame| frame.into_iter().fold(0.0, f64::max))
            .iter()
            .product();

        for words in [vec![70], vec![70, 55, 70], vec![40, 40]] {
            let found = scorer.exactly(&words).unwrap();
            assert!((found - (of(&words) / best).ln()).abs() < 1e-5, "{words:?}");
        }
        assert!((scorer.nothing() - of(&[]).ln()).abs() < 1e-5);
    }
}
