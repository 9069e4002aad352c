//! Joint decoding of labels: scores by the sound beside the language model's.
//!
//! An answer out of a list of labels should be one that the sound supports and one that the instruction
//! means: each possible next token is scored by `(1 - weight) · ln p_LM + weight · ln p_clip`, where the
//! second compares the likeliest label that the token leads to, under the distribution over the labels that
//! an embedding of the clip or the CTC head gives, with the likeliest one before it. (The likeliest and not
//! the sum of all: a label must not win because others begin like it.) For labels what
//! [`JointCtc`](super::JointCtc) is for transcripts.

use tch::{Kind, Tensor};

use crate::models::ModelError;
use crate::text::joint;

/// Ends the parts of an answer of several.
const SEPARATOR: u8 = joint::SEPARATOR as u8;

/// What the tokens of a label are scored with beside the language model.
#[derive(Clone, Debug)]
pub struct JointLabels {
    /// Allowed answers, trimmed, each with its natural-log probability by the sound.
    labels: Vec<(String, f64)>,
    /// Share of its scores, above 0 and below 1.
    weight: f64,
    /// What stands before the label in an answer of several parts.
    heading: Option<String>,
}

impl JointLabels {
    /// Labels with their unnormalised log-probabilities; `heading`: of the label's part, in an answer of
    /// several parts.
    ///
    /// # Shapes
    /// `scores` `[N]`, one for each label.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn new(
        labels: &[String],
        scores: &Tensor,
        weight: f64,
        heading: Option<&str>,
    ) -> Result<Self, ModelError> {
        let log_probs = Vec::<f64>::try_from(scores.f_log_softmax(0, Kind::Double)?)?;
        let labels = labels.iter().map(|label| label.trim().to_owned()).zip(log_probs);
        Ok(Self {
            labels: labels.collect(),
            weight,
            heading: heading.map(str::to_owned),
        })
    }

    /// What of the answer `so_far` is the begin of the label; none where the label's part is not being
    /// written.
    pub(super) fn part<'a>(&self, so_far: &'a [u8]) -> Option<&'a [u8]> {
        let Some(heading) = &self.heading else {
            return Some(so_far);
        };
        let part = so_far
            .rsplit(|byte| *byte == SEPARATOR)
            .next()?
            .trim_ascii_start();
        part.strip_prefix(heading.as_bytes())?.strip_prefix(b":")
    }

    /// Natural-log probability of the likeliest label that begins with `start`, white space around it left
    /// out, or is it (`whole`, or where the label's part ends); minus infinity where there is none.
    fn likeliest(&self, start: &[u8], whole: bool) -> f64 {
        let end = start
            .iter()
            .position(|byte| *byte == SEPARATOR && self.heading.is_some());
        let (start, whole) = (&start[..end.unwrap_or(start.len())], whole || end.is_some());
        let start = start.trim_ascii_start();
        let fits = |label: &[u8]| match whole {
            true => label == start.trim_ascii_end(),
            false => label.starts_with(start) || label == start.trim_ascii_end(),
        };
        (self.labels.iter())
            .filter(|(label, _)| fits(label.as_bytes()))
            .map(|(_, log_prob)| *log_prob)
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// Scores of the tokens `ids`, all of which lead on to a label; `bytes` says how a token is spelt, and
    /// nothing of one that ends the answer.
    ///
    /// # Shapes
    /// `scores` of the language model `[V]`, natural logarithms up to a constant → `[V]`, minus infinity for
    /// all other tokens.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub(super) fn rescore<'t>(
        &self,
        scores: &Tensor,
        so_far: &[u8],
        ids: &[i64],
        bytes: impl Fn(i64) -> Option<&'t [u8]>,
    ) -> Result<Tensor, ModelError> {
        let before = self.likeliest(so_far, false);
        #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
        let by_clip: Vec<f32> = (ids.iter())
            .map(|id| match bytes(*id) {
                Some(bytes) => self.likeliest(&[so_far, bytes].concat(), false),
                None => self.likeliest(so_far, true),
            })
            .map(|after| (after - before) as f32)
            .collect();
        let index = Tensor::f_from_slice(ids)?.f_to_device(scores.device())?;
        let by_clip = Tensor::f_from_slice(&by_clip)?.f_to_device(scores.device())?;
        let meant = scores.f_index_select(0, &index)?.f_to_kind(Kind::Float)?;
        let joint = meant * (1.0 - self.weight) + by_clip * self.weight;
        let nothing = Tensor::f_full(scores.size(), f64::NEG_INFINITY, (Kind::Float, scores.device()))?;
        Ok(nothing.f_index_copy(0, &index, &joint)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPELT: [&str; 6] = [" s", "ad", "leepy", "calm", " ", "ca"];
    const END: i64 = 6;

    fn labels(weight: f64) -> JointLabels {
        let scores = Tensor::from_slice(&[0.5f32.ln(), 0.2f32.ln(), 0.3f32.ln()]);
        let names = ["sad".to_owned(), "sleepy".to_owned(), " calm".to_owned()];
        JointLabels::new(&names, &scores, weight, None).unwrap()
    }

    fn rescored(weight: f64, so_far: &str, ids: &[i64]) -> Vec<f64> {
        let model = Tensor::from_slice(&[-1.0f32, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]);
        let bytes = |id: i64| (id != END).then(|| SPELT[id as usize].as_bytes());
        let found = labels(weight).rescore(&model, so_far.as_bytes(), ids, bytes);
        Vec::<f64>::try_from(found.unwrap().to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn a_token_is_scored_by_the_labels_that_it_leads_to() {
        let first = rescored(0.25, "", &[0, 3, 4, 5]);
        let expected = |model: f64, probability: f64| 0.75 * model + 0.25 * probability.ln();

        assert!((first[0] - expected(-1.0, 1.0)).abs() < 1e-5);
        assert!((first[3] - expected(-4.0, 0.3 / 0.5)).abs() < 1e-5);
        assert!(
            (first[4] - expected(-5.0, 1.0)).abs() < 1e-5,
            "a blank decides nothing"
        );
        assert!(
            (first[5] - expected(-6.0, 0.3 / 0.5)).abs() < 1e-5,
            "part of a label"
        );
        assert_eq!(first[1], f64::NEG_INFINITY, "not allowed here");

        let second = rescored(0.25, " s", &[1, 2]);
        assert!((second[1] - expected(-2.0, 1.0)).abs() < 1e-5);
        assert!((second[2] - expected(-3.0, 0.2 / 0.5)).abs() < 1e-5);

        let last = rescored(0.25, " sad", &[4, END]);
        assert!((last[6] - expected(-7.0, 1.0)).abs() < 1e-5);
        assert!((last[4] - expected(-5.0, 1.0)).abs() < 1e-5);
    }

    #[test]
    fn of_an_answer_of_several_parts_the_label_s_own_is_scored() {
        let scores = Tensor::from_slice(&[0.5f32.ln(), 0.5f32.ln()]);
        let names = ["sad".to_owned(), "sadly".to_owned()];
        let labels = JointLabels::new(&names, &scores, 0.5, Some("Mood")).unwrap();

        for (so_far, expected) in [
            (" ASR: Mood: sad | Mood: sa", Some(" sa")),
            ("Mood:", Some("")),
            (" ASR: Mood: sad", None),
            ("ASR: x | Moo", None),
            ("ASR: x | Mood: sad |", None),
        ] {
            let part = labels.part(so_far.as_bytes());
            assert_eq!(part, expected.map(str::as_bytes), "{so_far}");
        }
        let ended = labels.likeliest(b" sad |", false);
        assert!((ended - 0.5f64.ln()).abs() < 1e-6);
        assert_eq!(labels.likeliest(b" sa |", false), f64::NEG_INFINITY);
    }

    #[test]
    fn a_label_of_no_probability_is_no_undefined_score() {
        let scores = Tensor::from_slice(&[0.0f32, -2000.0]);
        let labels = JointLabels::new(&["sad".to_owned(), "calm".to_owned()], &scores, 0.5, None).unwrap();
        let model = Tensor::from_slice(&[-1.0f32, -2.0, -3.0, -4.0]);
        let found = labels.rescore(&model, b"", &[0, 3], |id| Some(SPELT[id as usize].as_bytes()));

        let found = Vec::<f32>::try_from(found.unwrap()).unwrap();
        assert!(
            found[0].is_finite() && found.iter().all(|score| !score.is_nan()),
            "{found:?}"
        );
    }
}
