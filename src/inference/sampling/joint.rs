//! Joint decoding: the CTC head's prefix scores beside the language model's.
//!
//! The words of a transcript should be what was said and what makes sense: each possible next token is scored
//! by `(1 - weight) · ln p_LM + weight · ln p_CTC`, where the second is the probability of the token given
//! the answer so far under the CTC head. Source: Watanabe, Hori, Kim, Hershey and Hayashi, "Hybrid
//! CTC/attention architecture for end-to-end speech recognition" (2017), one-pass decoding.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};

use crate::models::ModelError;
use crate::models::adapter::PrefixScorer;

/// Tokens that the language model finds likeliest, and that are therefore scored beside those that may be
/// recognised.
const LIKELY: i64 = 32;

/// What the tokens of an answer are scored with beside the language model.
#[derive(Clone, Debug)]
pub struct JointCtc {
    /// The CTC head's view of the clip.
    pub scorer: PrefixScorer,
    /// Share of its scores, above 0 and below 1.
    pub weight: f64,
}

impl JointCtc {
    /// Scores of what may follow the answer `ids`: minus infinity for what neither of both considers.
    ///
    /// # Shapes
    /// `log_probs` of the language model `[V]` → `[V]` f32.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub(super) fn rescore(
        &self,
        log_probs: &Tensor,
        ids: &[i64],
        end_ids: &[i64],
    ) -> Result<Tensor, ModelError> {
        let vocabulary = log_probs.size()[0];
        let (_, likely) = log_probs.f_topk(LIKELY.min(vocabulary), 0, true, false)?;
        let mut tokens: BTreeSet<i64> = Vec::<i64>::try_from(likely)?.into_iter().collect();
        tokens.extend(self.scorer.candidates().iter().chain(end_ids).copied());
        let tokens: Vec<i64> = tokens.into_iter().filter(|id| *id < vocabulary).collect();
        let prefix = self.scorer.prefix(ids);
        #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
        let ctc: Vec<f32> = (tokens.iter())
            .zip(self.scorer.score(&prefix, &tokens))
            .map(|(token, score)| match end_ids.contains(token) {
                true => self.scorer.score_end(&prefix) as f32,
                false => score as f32,
            })
            .collect();
        let index = Tensor::f_from_slice(&tokens)?.f_to_device(log_probs.device())?;
        let ctc = Tensor::f_from_slice(&ctc)?.f_to_device(log_probs.device())?;
        let meant = log_probs.f_index_select(0, &index)?.f_to_kind(Kind::Float)?;
        let joint = meant * (1.0 - self.weight) + ctc * self.weight;
        let nothing = Tensor::f_full([vocabulary], f64::NEG_INFINITY, (Kind::Float, log_probs.device()))?;
        Ok(nothing.f_index_copy(0, &index, &joint)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::models::adapter::{Adapted, AdapterConfig, SpeechAdapter};
    use crate::models::config::AdapterSettings;
    use crate::models::{EncoderInfo, LanguageModelInfo};

    const END: i64 = 9;

    /// A clip in which tokens 3 and 5 are recognised, of a vocabulary of 12.
    fn scorer() -> PrefixScorer {
        let encoder = EncoderInfo {
            layers: 1,
            width: 4,
            frames_per_second: 50.0,
            max_samples: None,
        };
        let llm = LanguageModelInfo {
            width: 16,
            vocab: 12,
            layers: 1,
            max_positions: 64,
        };
        let config = AdapterConfig::new(&AdapterSettings::default(), &encoder, &llm).unwrap();
        let mut adapter = SpeechAdapter::new(config, 1.0, 3, Device::Cpu).unwrap();
        adapter.set_ctc_classes((0..9).collect(), 3).unwrap();
        let table = Tensor::eye(16, (Kind::Float, Device::Cpu)).narrow(0, 0, 12);
        adapter.bind(&table).unwrap();
        let blank = adapter.variables()["ctc.blank"].detach();
        let frames = [table.get(3), blank.shallow_clone(), table.get(5), blank];
        let adapted = Adapted {
            positions: Tensor::stack(&frames, 0).unsqueeze(0),
            lengths: vec![4],
        };
        let head = adapter.ctc_head().unwrap();
        PrefixScorer::new(head, &adapted).unwrap().remove(0)
    }

    /// What a language model that would rather say 7 and then end may think.
    fn log_probs() -> Tensor {
        let mut scores = [0.0f32; 12];
        (scores[7], scores[9], scores[3], scores[5]) = (4.0, 3.0, 1.0, 1.0);
        Tensor::from_slice(&scores).log_softmax(0, Kind::Float)
    }

    fn greedy(weight: f64) -> Vec<i64> {
        let joint = JointCtc {
            scorer: scorer(),
            weight,
        };
        let mut ids = Vec::new();
        while ids.len() < 6 {
            let scores = joint.rescore(&log_probs(), &ids, &[END]).unwrap();
            match scores.argmax(0, false).int64_value(&[]) {
                END => break,
                id => ids.push(id),
            }
        }
        ids
    }

    #[test]
    fn the_answer_says_what_is_recognised_where_the_weight_is_large_and_what_the_model_would_say_where_small()
    {
        assert_eq!(greedy(0.7), [3, 5]);
        assert_eq!(greedy(0.01)[..2], [7, 7]);
    }

    #[test]
    fn scores_are_weighted_sums() {
        let joint = JointCtc {
            scorer: scorer(),
            weight: 0.3,
        };
        let prefix = joint.scorer.prefix(&[3]);

        let scores = joint.rescore(&log_probs(), &[3], &[END]).unwrap();

        for (id, ctc) in [
            (5, joint.scorer.score(&prefix, &[5])[0]),
            (END, joint.scorer.score_end(&prefix)),
        ] {
            let expected = 0.7 * log_probs().double_value(&[id]) + 0.3 * ctc;
            assert!((scores.double_value(&[id]) - expected).abs() < 1e-4, "{id}");
        }
    }
}
