//! Where in the clip the CTC head finds the tokens of a text.
//!
//! Source: forced alignment by the likeliest CTC path (Viterbi) among those that spell the tokens; Graves,
//! Fernández, Gomez and Schmidhuber (2006), §3.2, lists the states.

use std::ops::Range;

use super::PrefixScorer;

impl PrefixScorer {
    /// The frames of each of `tokens` on the likeliest path that spells them. One that is no class of the
    /// head (punctuation, say) has none: an empty range behind the token before it. None where the clip has
    /// too few frames for them.
    pub fn align(&self, tokens: &[i64]) -> Option<Vec<Range<usize>>> {
        let classes: Vec<usize> = tokens.iter().filter_map(|token| self.class(*token)).collect();
        let mut found = self.align_classes(&classes)?.into_iter();
        let mut end = 0;
        let mut of = |token: &i64| match self.class(*token).and_then(|_| found.next()) {
            Some(frames) => {
                end = frames.end;
                frames
            }
            None => end..end,
        };
        Some(tokens.iter().map(&mut of).collect())
    }

    /// States are blank, first class, blank, second class … blank.
    fn align_classes(&self, classes: &[usize]) -> Option<Vec<Range<usize>>> {
        let states = 2 * classes.len() + 1;
        let class_of = |state: usize| match state % 2 {
            0 => 0,
            _ => classes[state / 2],
        };
        // A class may follow another one without a blank between them.
        let may_skip = |state: usize| state % 2 == 1 && state > 1 && class_of(state) != class_of(state - 2);
        let mut scores = vec![f64::NEG_INFINITY; states];
        scores[0] = 0.0; // before the first frame, which is a blank or the first class
        let mut steps = vec![0_u8; self.frames() * states];
        for frame in 0..self.frames() {
            let before = scores.clone();
            for state in 0..states {
                let (step, best) = [0, 1, 2]
                    .into_iter()
                    .filter(|step| *step <= state && (*step < 2 || may_skip(state)))
                    .map(|step| (step, before[state - step]))
                    .fold(
                        (0, f64::NEG_INFINITY),
                        |best, next| if next.1 > best.1 { next } else { best },
                    );
                scores[state] = best + self.at(class_of(state), frame);
                steps[frame * states + state] = u8::try_from(step).unwrap_or(0);
            }
        }
        let last = (states.saturating_sub(2)..states)
            .max_by(|one, other| scores[*one].total_cmp(&scores[*other]))?;
        if scores[last] == f64::NEG_INFINITY {
            return None;
        }
        let mut state = last;
        let mut found = vec![0..0; classes.len()];
        for frame in (0..self.frames()).rev() {
            if state % 2 == 1 {
                let frames: &mut Range<usize> = &mut found[state / 2];
                frames.end = frames.end.max(frame + 1);
                frames.start = frame;
            }
            state -= usize::from(steps[frame * states + state]);
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [i64; 2] = [70, 40];

    fn scorer(path: &[usize]) -> PrefixScorer {
        let likely = |class: &usize| {
            let mut frame = [0.05; 3];
            frame[*class] = 0.9;
            frame
        };
        PrefixScorer::of_frames(&path.iter().map(likely).collect::<Vec<[f64; 3]>>(), &TOKENS)
    }

    #[test]
    fn tokens_stand_where_they_are_likeliest() {
        let clip = scorer(&[0, 1, 1, 0, 2, 0, 0, 1, 2]);

        assert_eq!(clip.align(&[70, 40, 70, 40]).unwrap(), [1..3, 4..5, 7..8, 8..9]);
        assert_eq!(clip.align(&[]), Some(Vec::new()));
        // Punctuation is no class.
        assert_eq!(
            clip.align(&[5, 70, 5, 40, 70, 40]).unwrap(),
            [0..0, 1..3, 3..3, 4..5, 7..8, 8..9]
        );
    }

    #[test]
    fn equal_tokens_in_a_row_have_a_blank_between_them() {
        assert_eq!(scorer(&[1, 1, 1]).align(&[70, 70]).unwrap(), [0..1, 2..3]);
        assert_eq!(scorer(&[1, 1]).align(&[70, 70]), None, "two frames are too few");
        assert_eq!(scorer(&[]).align(&[70]), None);
    }

    /// The likeliest of all paths, found by trying them all.
    #[test]
    fn no_other_path_that_spells_the_tokens_is_likelier() {
        let frames = [
            [0.5, 0.3, 0.2],
            [0.1, 0.5, 0.4],
            [0.3, 0.3, 0.4],
            [0.4, 0.35, 0.25],
            [0.2, 0.2, 0.6],
        ];
        let clip = PrefixScorer::of_frames(&frames, &TOKENS);
        for tokens in [
            vec![70],
            vec![40, 70],
            vec![70, 70],
            vec![40, 40, 70],
            vec![70, 40, 70, 40],
        ] {
            let mut best: (f64, Vec<usize>) = (0.0, Vec::new());
            for number in 0..3_usize.pow(5) {
                let path: Vec<usize> = (0..5).map(|at| number / 3_usize.pow(at) % 3).collect();
                let mut said: Vec<usize> = path.clone();
                said.dedup();
                said.retain(|class| *class > 0);
                let spelt: Vec<i64> = said.iter().map(|class| TOKENS[class - 1]).collect();
                let chance = path
                    .iter()
                    .zip(&frames)
                    .map(|(class, frame)| frame[*class])
                    .product();
                if spelt == tokens && chance > best.0 {
                    best = (chance, path);
                }
            }

            let found = clip.align(&tokens).unwrap();

            let mut path = vec![0; 5];
            for (token, frames) in tokens.iter().zip(&found) {
                path[frames.clone()].fill(if *token == 70 { 1 } else { 2 });
            }
            let chance: f64 = path
                .iter()
                .zip(&frames)
                .map(|(class, frame)| frame[*class])
                .product();
            assert!(
                (chance - best.0).abs() < 1e-9,
                "{tokens:?}: {path:?} instead of {:?}",
                best.1
            );
        }
    }
}
