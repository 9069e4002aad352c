//! CTC prefix scores: how well each possible next token of an answer agrees with what the CTC head reads.
//!
//! Source: Watanabe, Hori, Kim, Hershey and Hayashi, "Hybrid CTC/attention architecture for end-to-end speech
//! recognition" (2017), algorithm 2: the probability that what is said begins with a prefix is a sum over all
//! alignments, and grows by one pass over the frames for each further token.

use std::collections::BTreeSet;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::{Adapted, CtcHead};
use crate::models::ModelError;
use crate::nn::cpu_kernels::largest;

const NEVER: f64 = f64::NEG_INFINITY;
/// Score of a token that is no class of the head, which can say nothing about it: about one in three million.
const UNKNOWN: f64 = -15.0;
/// So many of the likeliest classes of each frame may be recognised in it.
const CANDIDATES_OF_FRAME: usize = 4;

/// The CTC head's view of one clip, against which the prefixes of answers are scored.
#[derive(Clone, Debug)]
pub struct PrefixScorer {
    /// Log-probabilities `[P, 1 + C]`, frame by frame: of the classes few are ever looked at.
    by_frame: Arc<Vec<f32>>,
    frames: usize,
    /// Class of a token, in order of tokens.
    classes: Arc<[(i64, usize)]>,
    /// Tokens that are among the likeliest of any frame, in order.
    candidates: Arc<[i64]>,
    /// The likeliest class of each frame, and its token; none for the blank.
    path: Arc<[i64]>,
    path_tokens: Arc<[Option<i64>]>,
}

/// A prefix of an answer: where it may end in the clip, and how likely it is that what is said begins with
/// it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// Log-probability of all alignments that end at each frame with the last token.
    on_token: Vec<f64>,
    /// The same with a blank.
    on_blank: Vec<f64>,
    last: Option<usize>,
    /// Log-probability that what is said begins with it.
    score: f64,
}

impl PrefixScorer {
    /// The view of each clip of a batch.
    ///
    /// # Errors
    /// [`ModelError`] as [`CtcHead::log_probabilities`].
    pub fn new(head: &CtcHead, adapted: &Adapted) -> Result<Vec<Self>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        Self::of_scores(
            head,
            &head.log_probabilities(&adapted.positions)?,
            &adapted.lengths,
        )
    }

    /// The same by the head's log-probabilities `[B, P, 1 + C]` of clips with so many valid frames.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn of_scores(head: &CtcHead, scores: &Tensor, lengths: &[i64]) -> Result<Vec<Self>, ModelError> {
        let scores = scores.f_to_device(Device::Cpu)?;
        (0i64..)
            .zip(lengths)
            .map(|(row, frames)| {
                let own = scores.f_get(row)?.f_narrow(0, 0, *frames)?; // [P, 1+C]
                let own = Vec::<f32>::try_from(own.f_contiguous()?.f_view([-1])?)?;
                Ok(Self::of_log_probabilities(
                    own,
                    head.classes(),
                    head.classes_by_token(),
                ))
            })
            .collect()
    }

    /// The view of log-probabilities `[P, 1 + C]`; the tokens that are classes 1, 2, 3 …, and the same in
    /// order of tokens.
    fn of_log_probabilities(by_frame: Vec<f32>, tokens: &[i64], classes: &Arc<[(i64, usize)]>) -> Self {
        let (mut candidates, mut path, mut path_tokens) = (BTreeSet::new(), Vec::new(), Vec::new());
        let token_of = |class: &usize| tokens.get(class.checked_sub(1)?).copied();
        for frame in by_frame.chunks_exact(1 + tokens.len()) {
            let likely = largest(frame, CANDIDATES_OF_FRAME);
            path.push(likely.first().map_or(0, |class| *class as i64));
            path_tokens.push(likely.first().and_then(token_of));
            candidates.extend(likely.iter().filter_map(token_of));
        }
        Self {
            by_frame: by_frame.into(),
            frames: path.len(),
            classes: Arc::clone(classes),
            candidates: candidates.into_iter().collect(),
            path: path.into(),
            path_tokens: path_tokens.into(),
        }
    }

    /// Log-probabilities of a class at each frame.
    pub(super) fn of(&self, class: usize) -> impl Iterator<Item = f64> {
        let column = self.by_frame.iter().skip(class).step_by(1 + self.classes.len());
        column.map(|value| f64::from(*value))
    }

    /// Log-probabilities of blank and classes at each frame.
    pub(super) fn each_frame(&self) -> impl Iterator<Item = &[f32]> {
        self.by_frame.chunks_exact(1 + self.classes.len())
    }

    /// Log-probability of a class at a frame.
    pub(super) fn at(&self, class: usize, frame: usize) -> f64 {
        f64::from(self.by_frame[frame * (1 + self.classes.len()) + class])
    }

    /// All tokens with their classes, in order of tokens.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (i64, usize)> {
        self.classes.iter().copied()
    }

    pub(super) fn class(&self, token: i64) -> Option<usize> {
        let at = self.classes.binary_search_by_key(&token, |(id, _)| *id).ok()?;
        Some(self.classes[at].1)
    }

    /// The likeliest class of each frame, 0 for the blank.
    pub fn path(&self) -> &[i64] {
        &self.path
    }

    /// Frames of the clip.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Tokens that may be recognised somewhere: those among the likeliest of any frame.
    pub fn candidates(&self) -> &[i64] {
        &self.candidates
    }

    /// The prefix of these tokens.
    pub fn prefix(&self, tokens: &[i64]) -> Prefix {
        let mut prefix = self.start();
        for token in tokens {
            prefix = self.advance(&prefix, *token);
        }
        prefix
    }

    /// The view of probabilities `[frames][1 + C]` of the blank and these tokens.
    #[cfg(test)]
    pub(super) fn of_frames<const C: usize>(frames: &[[f64; C]], tokens: &[i64]) -> Self {
        let by_frame = frames.iter().flatten().map(|share| share.ln() as f32).collect();
        let mut classes: Vec<(i64, usize)> = tokens.iter().copied().zip(1..).collect();
        classes.sort_unstable();
        Self::of_log_probabilities(by_frame, tokens, &classes.into())
    }

    /// A clip in which these tokens are read, one in each second frame, of tokens below `vocabulary`.
    #[cfg(test)]
    pub(crate) fn of_read(said: &[i64], vocabulary: i64) -> Self {
        let width = usize::try_from(vocabulary).unwrap() + 1;
        let frame = |class: usize| {
            let mut frame = vec![(0.1 / (width - 1) as f32).ln(); width];
            frame[class] = 0.9f32.ln();
            frame
        };
        let classes = said.iter().flat_map(|token| [*token as usize + 1, 0]);
        let by_frame = classes.flat_map(frame).collect();
        let tokens: Vec<i64> = (0..vocabulary).collect();
        let by_token: Vec<(i64, usize)> = tokens.iter().copied().zip(1..).collect();
        Self::of_log_probabilities(by_frame, &tokens, &by_token.into())
    }

    /// The empty prefix.
    pub fn start(&self) -> Prefix {
        let mut sum = 0.0;
        Prefix {
            on_token: vec![NEVER; self.frames],
            on_blank: (self.of(0))
                .map(|blank| {
                    sum += blank;
                    sum
                })
                .collect(),
            last: None,
            score: 0.0,
        }
    }

    /// Natural-log probability of a token as the next one, given the prefix.
    pub fn score(&self, prefix: &Prefix, token: i64) -> f64 {
        match self.class(token) {
            Some(class) => self.grow(prefix, class, None) - prefix.score,
            None => UNKNOWN,
        }
    }

    /// Natural-log probability that nothing follows the prefix.
    pub fn score_end(&self, prefix: &Prefix) -> f64 {
        match (prefix.on_token.last(), prefix.on_blank.last()) {
            (Some(token), Some(blank)) => log_add(*token, *blank) - prefix.score,
            _ => 0.0,
        }
    }

    /// The prefix with one more token. One that is no class leaves it as it is: the head says nothing about
    /// it.
    pub fn advance(&self, prefix: &Prefix, token: i64) -> Prefix {
        let Some(class) = self.class(token) else {
            return prefix.clone();
        };
        let mut grown = Prefix {
            on_token: Vec::with_capacity(self.frames),
            on_blank: Vec::with_capacity(self.frames),
            last: Some(class),
            score: NEVER,
        };
        grown.score = self.grow(prefix, class, Some((&mut grown.on_token, &mut grown.on_blank)));
        grown
    }

    /// Log-probability that what is said begins with the prefix and the class; where it may end goes to
    /// `ends`.
    fn grow(&self, prefix: &Prefix, class: usize, mut ends: Option<(&mut Vec<f64>, &mut Vec<f64>)>) -> f64 {
        let (mut on_token, mut on_blank, mut score) = (NEVER, NEVER, NEVER);
        for (frame, (here, blank)) in self.of(class).zip(self.of(0)).enumerate() {
            // Alignments of the prefix that end before this frame, and let the class begin in it: equal
            // tokens need a blank between them.
            let ready = match frame.checked_sub(1) {
                None if prefix.last.is_none() => 0.0,
                None => NEVER,
                Some(before) if prefix.last == Some(class) => prefix.on_blank[before],
                Some(before) => log_add(prefix.on_token[before], prefix.on_blank[before]),
            };
            let stays = log_add(on_blank, on_token);
            on_token = log_add(on_token, ready) + here;
            on_blank = stays + blank;
            score = log_add(score, ready + here);
            if let Some((tokens, blanks)) = &mut ends {
                tokens.push(on_token);
                blanks.push(on_blank);
            }
        }
        score
    }

    /// How well these tokens agree with what is said, 0 to 1: 1 less the expected number of errors a token,
    /// which are those of each token as the next one given those before it, and of the end given all. Where
    /// there are no tokens, the geometric mean over frames of the probability that nothing is said. Tokens
    /// that are no classes are left out.
    ///
    /// One wrong word of a long answer lowers it by its share; a mean of log-probabilities would follow the
    /// one token that fits worst.
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    pub fn agreement(&self, tokens: &[i64]) -> f64 {
        let mut prefix = self.start();
        let (mut errors, mut count) = (0.0, 0usize);
        for token in tokens.iter().filter(|token| self.class(**token).is_some()) {
            let longer = self.advance(&prefix, *token);
            errors += 1.0 - conditional(longer.score - prefix.score);
            count += 1;
            prefix = longer;
        }
        match count {
            0 => (self.nothing() / self.frames.max(1) as f64).exp(),
            _ => {
                errors += 1.0 - conditional(self.score_end(&prefix));
                (1.0 - errors / count as f64).max(0.0)
            }
        }
    }

    /// Greedy reading of what follows a prefix, at most `most` tokens: from the frame on from which the
    /// likeliest path, behind the likeliest alignments of the prefix, is likeliest as a whole.
    pub fn read_behind(&self, prefix: &Prefix, most: usize) -> Vec<i64> {
        let (mut behind, mut found) = (0.0, (NEVER, self.frames, 0));
        for (frame, class) in self.path.iter().enumerate().rev() {
            let last = prefix
                .last
                .filter(|_| prefix.on_token[frame] > prefix.on_blank[frame]);
            let score = prefix.on_token[frame].max(prefix.on_blank[frame]) + behind;
            if score > found.0 {
                found = (score, frame + 1, last.unwrap_or(0));
            }
            behind += self.at(usize::try_from(*class).unwrap_or(0), frame);
        }
        if prefix.last.is_none() && behind > found.0 {
            found = (behind, 0, 0); // nothing stands before the first frame
        }
        let (_, from, before) = found;
        let mut before = i64::try_from(before).unwrap_or(0);
        let mut read = Vec::new();
        for (class, token) in self.path.iter().zip(self.path_tokens.iter()).skip(from) {
            if read.len() >= most {
                break;
            }
            if *class != before {
                read.extend(*token);
            }
            before = *class;
        }
        read
    }

    /// Mean probability of the blank: near 1 where nothing is said.
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    pub fn blank_share(&self) -> f64 {
        self.of(0).map(f64::exp).sum::<f64>() / self.frames.max(1) as f64
    }
}

impl Prefix {
    /// Log-probability that what is said begins with it.
    pub fn score(&self) -> f64 {
        self.score
    }
}

/// A probability from its logarithm; 0 where what it is conditional on is impossible.
fn conditional(log_prob: f64) -> f64 {
    match log_prob.is_nan() {
        true => 0.0, // both impossible
        false => log_prob.exp().min(1.0),
    }
}

/// `ln(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == NEVER {
        return high;
    }
    high + (low - high).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [i64; 2] = [70, 40];

    /// Four frames over blank and two tokens.
    fn scorer() -> (PrefixScorer, [[f64; 3]; 4]) {
        let frames = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6], [0.2, 0.5, 0.3]];
        (PrefixScorer::of_frames(&frames, &TOKENS), frames)
    }

    /// Probabilities of all that may be said, by summing over all paths.
    fn by_hand(frames: &[[f64; 3]; 4]) -> Vec<(Vec<i64>, f64)> {
        let mut all: Vec<(Vec<i64>, f64)> = Vec::new();
        for path in 0..81usize {
            let path = [path / 27, path / 9 % 3, path / 3 % 3, path % 3];
            let chance: f64 = path
                .iter()
                .zip(frames)
                .map(|(class, frame)| frame[*class])
                .product();
            let mut said = Vec::new();
            for (at, class) in path.iter().enumerate() {
                if *class != 0 && (at == 0 || path[at - 1] != *class) {
                    said.push(TOKENS[class - 1]);
                }
            }
            match all.iter_mut().find(|(known, _)| *known == said) {
                Some((_, sum)) => *sum += chance,
                None => all.push((said, chance)),
            }
        }
        all
    }

    #[test]
    fn prefix_scores_are_sums_over_all_that_may_be_said() {
        let (scorer, frames) = scorer();
        let all = by_hand(&frames);
        let begins = |prefix: &[i64]| -> f64 {
            let own = all.iter().filter(|(said, _)| said.starts_with(prefix));
            own.map(|(_, chance)| chance).sum()
        };
        for tokens in [
            vec![],
            vec![70],
            vec![40],
            vec![70, 40],
            vec![70, 70],
            vec![40, 70, 40],
        ] {
            let prefix = scorer.prefix(&tokens);
            assert!(
                (prefix.score().exp() - begins(&tokens)).abs() < 1e-6,
                "{tokens:?}"
            );

            for token in TOKENS {
                let score = scorer.score(&prefix, token);

                let expected = begins(&[&tokens[..], &[token]].concat()) / begins(&tokens);
                assert!((score.exp() - expected).abs() < 1e-6, "{tokens:?} {token}");
            }
            let exactly = all.iter().find(|(said, _)| *said == tokens).unwrap().1;
            assert!((scorer.score_end(&prefix).exp() - exactly / begins(&tokens)).abs() < 1e-6);
            let mut shares: Vec<f64> = (1..=tokens.len())
                .map(|count| begins(&tokens[..count]) / begins(&tokens[..count - 1]))
                .collect();
            shares.push(exactly / begins(&tokens));
            let errors: f64 = shares.iter().map(|share| 1.0 - share).sum();
            let expected = match tokens.len() {
                0 => exactly.powf(0.25),
                count => (1.0 - errors / count as f64).max(0.0),
            };
            assert!((scorer.agreement(&tokens) - expected).abs() < 1e-6, "{tokens:?}");
        }
    }

    #[test]
    fn a_token_that_is_no_class_is_unlikely_and_leaves_the_prefix() {
        let (scorer, _) = scorer();
        let prefix = scorer.advance(&scorer.start(), 70);

        assert_eq!(scorer.score(&prefix, 5), UNKNOWN);
        assert_eq!(scorer.advance(&prefix, 5), prefix);
        assert_eq!(scorer.agreement(&[70, 5]), scorer.agreement(&[70]));
    }

    #[test]
    fn what_cannot_be_said_in_so_few_frames_agrees_with_nothing() {
        let (scorer, _) = scorer();

        let four = scorer.agreement(&[70, 40, 70, 40]);
        let more = scorer.agreement(&[70, 40, 70, 40, 70, 40]);

        assert!(more.is_finite() && 0.0 <= more && more < four, "{more} {four}");
    }

    #[test]
    fn what_follows_a_prefix_is_read_behind_its_likeliest_end() {
        let likely = |class: usize| {
            let mut frame = [0.05; 3];
            frame[class] = 0.9;
            frame
        };
        let path: Vec<[f64; 3]> = [1, 1, 0, 2, 0, 1, 2].into_iter().map(likely).collect();
        let scorer = PrefixScorer::of_frames(&path, &TOKENS);
        let behind = |scorer: &PrefixScorer, tokens: &[i64]| scorer.read_behind(&scorer.prefix(tokens), 9);

        assert_eq!(behind(&scorer, &[]), [70, 40, 70, 40]);
        assert_eq!(behind(&scorer, &[70]), [40, 70, 40]);
        assert_eq!(behind(&scorer, &[70, 40]), [70, 40]);
        assert!(behind(&scorer, &[70, 40, 70, 40]).is_empty());
        assert_eq!(scorer.read_behind(&scorer.start(), 3), [70, 40, 70]);
        assert!(scorer.read_behind(&scorer.start(), 0).is_empty());
        // Another token was chosen where 40 is likelier.
        assert_eq!(behind(&scorer, &[70, 70]), [40]);
        assert_eq!(behind(&scorer, &[5, 70]), [40, 70, 40], "no class of the head");
        let path: Vec<[f64; 3]> = [1, 0, 2].into_iter().map(likely).collect();
        let within = PrefixScorer::of_frames(&path, &TOKENS);
        assert_eq!(behind(&within, &[]), [70, 40], "the clip begins inside a word");
        let nothing = PrefixScorer::of_frames::<3>(&[], &TOKENS);
        assert!(behind(&nothing, &[70]).is_empty());
    }

    #[test]
    fn the_path_is_of_the_likeliest_classes() {
        assert_eq!(scorer().0.path(), [0, 1, 2, 1]);
    }

    #[test]
    fn the_share_of_blanks_is_their_mean_probability() {
        let (scorer, _) = scorer();

        assert!((scorer.blank_share() - (0.5 + 0.1 + 0.3 + 0.2) / 4.0).abs() < 1e-6);
    }
}
