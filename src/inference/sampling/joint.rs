//! Joint decoding: the CTC head's prefix scores beside the language model's.
//!
//! The words of a transcript should be what was said and what makes sense: each possible next token is scored
//! by `(1 - weight) · ln p_LM + weight · ln p_CTC`, where the second is the probability of the token given
//! the answer so far under the CTC head. Source: Watanabe, Hori, Kim, Hershey and Hayashi, "Hybrid
//! CTC/attention architecture for end-to-end speech recognition" (2017), one-pass decoding.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::TranscriptPart;
use crate::models::ModelError;
use crate::models::adapter::{Prefix, PrefixScorer};
use crate::nn::cpu_kernels::largest;

/// Tokens that the language model finds likeliest, and that are therefore scored beside those that may be
/// recognised.
const LIKELY: usize = 32;
/// Prefixes that are kept, to be grown by their next tokens: two steps of a beam search.
const PREFIXES_MAX: usize = 32;
/// What rounding may add to a score that is at most 0.
const ROUNDING: f32 = 1e-4;

/// What the tokens of an answer are scored with beside the language model.
#[derive(Clone, Debug)]
pub struct JointCtc {
    /// The CTC head's view of the clip.
    pub scorer: PrefixScorer,
    /// Share of its scores, from 0 to below 1.
    pub weight: f64,
    /// Where the transcript stands, in an answer that is not that alone.
    part: Option<TranscriptPart>,
    /// The beginnings of answers that were scored last, the latest last.
    prefixes: RefCell<Vec<(Vec<i64>, Arc<Prefix>)>>,
}

impl JointCtc {
    /// Scores with so large a share of the CTC head's; of an answer of several parts only those of the
    /// transcript.
    pub fn new(scorer: PrefixScorer, weight: f64, part: Option<TranscriptPart>) -> Self {
        Self {
            scorer,
            weight,
            part,
            prefixes: RefCell::default(),
        }
    }

    /// Which tokens of the answer `ids` are the transcript; none where its heading has not been written.
    pub fn transcript(&self, ids: &[i64]) -> Option<Range<usize>> {
        match &self.part {
            None => Some(0..ids.len()),
            Some(part) => part.range(ids),
        }
    }

    /// The transcript so far, where what follows the answer `ids` goes on with it.
    fn transcript_so_far<'i>(&self, ids: &'i [i64]) -> Option<&'i [i64]> {
        let range = self.transcript(ids)?;
        (range.end == ids.len()).then(|| &ids[range])
    }

    /// Whether the CTC head scores what follows the answer `ids`.
    pub(in crate::inference) fn is_in_transcript(&self, ids: &[i64]) -> bool {
        self.transcript_so_far(ids).is_some()
    }

    /// Whether the CTC head may know what follows the answer `ids`: its heading or its transcript goes on.
    pub(in crate::inference) fn has_drafts(&self, ids: &[i64]) -> bool {
        let in_heading = |part: &TranscriptPart| part.heading_ids.starts_with(ids);
        self.part.as_ref().is_some_and(in_heading) || self.is_in_transcript(ids)
    }

    /// Scores of what may follow the answer `ids`, whose transcript goes on: minus infinity for what neither
    /// of both considers. Where it does not go on, those of the language model.
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
        let Some(words) = self.transcript_so_far(ids) else {
            return Ok(log_probs.f_to_kind(Kind::Float)?);
        };
        let meant = Vec::<f32>::try_from(log_probs.f_to_kind(Kind::Float)?)?;
        let prefix = self.prefix(words);
        let mut joint = vec![f32::NEG_INFINITY; meant.len()];
        for (token, at) in self.considered(&meant, end_ids) {
            joint[at] = self.share(meant[at]) + self.said(&prefix, token, end_ids);
        }
        Ok(Tensor::f_from_slice(&joint)?.f_to_device(log_probs.device())?)
    }

    /// The likeliest token after the answer `ids` but those that are `forbidden`, by the scores of
    /// [`rescore`](Self::rescore); the first of equals. `logits` and `total`: log-probabilities of the
    /// language model are their differences. None where all are forbidden, or the transcript does not go on.
    ///
    /// The CTC head adds at most 0, so what the language model alone finds less likely than the best so far
    /// need not be scored by it: few have to.
    pub(super) fn likeliest(
        &self,
        logits: &[f32],
        total: f32,
        ids: &[i64],
        end_ids: &[i64],
        forbidden: impl Fn(i64) -> bool,
    ) -> Option<i64> {
        let prefix = self.prefix(self.transcript_so_far(ids)?);
        let mut considered = self.considered(logits, end_ids);
        considered.retain(|(token, _)| !forbidden(*token));
        considered.sort_by(|(_, one), (_, other)| logits[*other].total_cmp(&logits[*one]));
        let mut best: Option<(f32, i64)> = None;
        for (token, at) in considered {
            let meant = self.share(logits[at] - total);
            if best.is_some_and(|(score, _)| meant + ROUNDING < score) {
                break;
            }
            let score = meant + self.said(&prefix, token, end_ids);
            if best.is_none_or(|(known, first)| score > known || (score == known && token < first)) {
                best = Some((score, token));
            }
        }
        best.map(|(_, token)| token)
    }

    /// What the CTC head reads behind the answer `ids`, at most `most` tokens, behind the rest of the
    /// heading; nothing where the transcript has ended.
    pub fn read_behind(&self, ids: &[i64], most: usize) -> Vec<i64> {
        let heading = self
            .part
            .as_ref()
            .and_then(|part| part.heading_ids.strip_prefix(ids));
        let heading = heading.unwrap_or_default();
        let words = if heading.is_empty() {
            self.transcript_so_far(ids)
        } else {
            Some(&[][..])
        };
        let mut draft: Vec<i64> = heading.iter().copied().take(most).collect();
        if let Some(words) = words {
            draft.extend(self.scorer.read_behind(&self.prefix(words), most - draft.len()));
        }
        draft
    }

    /// Tokens that are scored, with their indices in `meant`, in order.
    fn considered(&self, meant: &[f32], end_ids: &[i64]) -> Vec<(i64, usize)> {
        let index = |token: &i64| usize::try_from(*token).ok().filter(|at| *at < meant.len());
        let mut indices: BTreeSet<usize> = largest(meant, LIKELY).into_iter().collect();
        let separators = self.part.iter().flat_map(|part| &part.separators);
        let ends = separators.chain(end_ids);
        indices.extend((self.scorer.candidates().iter()).chain(ends).filter_map(index));
        indices.into_iter().map(|at| (at as i64, at)).collect()
    }

    /// The language model's part of a score.
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    fn share(&self, meant: f32) -> f32 {
        meant * (1.0 - self.weight) as f32
    }

    /// The CTC head's part of a score.
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    fn said(&self, prefix: &Prefix, token: i64, end_ids: &[i64]) -> f32 {
        let ends = |part: &TranscriptPart| part.ends(token);
        let score = match end_ids.contains(&token) || self.part.as_ref().is_some_and(ends) {
            true => self.scorer.score_end(prefix),
            false => self.scorer.score(prefix, token),
        };
        score as f32 * self.weight as f32
    }

    /// The prefix of these tokens, grown from the longest of its beginnings that is kept.
    fn prefix(&self, ids: &[i64]) -> Arc<Prefix> {
        let mut prefixes = self.prefixes.borrow_mut();
        let known = prefixes.iter().filter(|(known, _)| ids.starts_with(known));
        let (known, mut prefix) = match known.max_by_key(|(known, _)| known.len()) {
            Some((known, prefix)) => (known.len(), Arc::clone(prefix)),
            None => (0, Arc::new(self.scorer.start())),
        };
        if known == ids.len() {
            return prefix;
        }
        for token in &ids[known..] {
            prefix = Arc::new(self.scorer.advance(&prefix, *token));
        }
        if prefixes.len() >= PREFIXES_MAX {
            prefixes.remove(0);
        }
        prefixes.push((ids.to_vec(), Arc::clone(&prefix)));
        prefix
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::transcript_part::tests::part;
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
        let joint = JointCtc::new(scorer(), weight, None);
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
    fn of_an_answer_of_several_parts_the_transcript_alone_is_scored() {
        const SEPARATOR: i64 = 8;
        let spelt = [(SEPARATOR, " |"), (10, "AS"), (11, "R:"), (7, " "), (3, " three")];
        let part = part(&[10, 11], &[SEPARATOR], &spelt);
        let joint = JointCtc::new(scorer(), 0.7, Some(part));
        let plain = Vec::<f32>::try_from(log_probs()).unwrap();
        let likeliest = |ids: &[i64]| joint.likeliest(&plain, 0.0, ids, &[END], |_| false);

        for ids in [
            &[][..],
            &[10],
            &[11, 3],
            &[10, 11, 3, SEPARATOR],
            &[10, 11, SEPARATOR, 4],
        ] {
            let scores = joint.rescore(&log_probs(), ids, &[END]).unwrap();
            assert_eq!(scores, log_probs(), "{ids:?}");
            assert_eq!(
                (likeliest(ids), joint.is_in_transcript(ids)),
                (None, false),
                "{ids:?}"
            );
        }
        assert_eq!(likeliest(&[10, 11]), Some(3));
        assert_eq!(likeliest(&[10, 11, 3]), Some(5));
        let scores = joint.rescore(&log_probs(), &[10, 11, 3, 5], &[END]).unwrap();
        let behind = joint.scorer.score_end(&joint.scorer.prefix(&[3, 5]));
        let expected = 0.3 * log_probs().double_value(&[SEPARATOR]) + 0.7 * behind;
        assert!(
            (scores.double_value(&[SEPARATOR]) - expected).abs() < 1e-4,
            "{expected}"
        );

        for (ids, most, expected) in [
            (&[][..], 9, &[10, 11, 3, 5][..]),
            (&[10], 2, &[11, 3]),
            (&[10, 11, 3], 9, &[5]),
            (&[10, 11, 3, 5, SEPARATOR], 9, &[]),
            (&[3], 9, &[]),
        ] {
            assert_eq!(joint.read_behind(ids, most), expected, "{ids:?}");
        }
        assert_eq!(joint.transcript(&[10, 11, 3, 5, SEPARATOR, 4]), Some(2..4));
        for (ids, has_drafts) in [
            (&[][..], true),
            (&[10], true),
            (&[10, 11, 3], true),
            (&[10, 11, SEPARATOR], false),
            (&[3], false),
        ] {
            assert_eq!(joint.has_drafts(ids), has_drafts, "{ids:?}");
        }
    }

    #[test]
    fn scores_are_weighted_sums() {
        let joint = JointCtc::new(scorer(), 0.3, None);
        let prefix = joint.scorer.prefix(&[3]);

        let scores = joint.rescore(&log_probs(), &[3], &[END]).unwrap();

        for (id, ctc) in [
            (5, joint.scorer.score(&prefix, 5)),
            (END, joint.scorer.score_end(&prefix)),
        ] {
            let expected = 0.7 * log_probs().double_value(&[id]) + 0.3 * ctc;
            assert!((scores.double_value(&[id]) - expected).abs() < 1e-4, "{id}");
        }
    }
    #[test]
    fn the_likeliest_token_is_that_of_the_largest_score_whatever_was_scored_before() {
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(7);
        let mut found = std::collections::HashSet::new();
        for weight in [0.01, 0.3, 0.6, 0.95] {
            let joint = JointCtc::new(scorer(), weight, None);
            for case in 0..40i64 {
                let logits = Tensor::randn([12], (Kind::Float, Device::Cpu)) * 4.0;
                let plain = Vec::<f32>::try_from(&logits).unwrap();
                let total = crate::nn::cpu_kernels::log_sum_exp(&plain);
                let ids: Vec<i64> = (0..case % 5).map(|at| (at + case) % 9).collect();
                let forbidden = [case % 12];

                let likeliest = joint.likeliest(&plain, total, &ids, &[END], |id| forbidden.contains(&id));

                // A scorer without kept prefixes gives the same.
                let scores = JointCtc::new(scorer(), weight, None)
                    .rescore(&logits.log_softmax(0, Kind::Float), &ids, &[END])
                    .unwrap();
                let scores = scores.index_fill(0, &Tensor::from_slice(&forbidden), f64::NEG_INFINITY);
                assert_eq!(likeliest, Some(scores.argmax(0, false).int64_value(&[])));
                found.extend(likeliest);
            }
        }
        assert!(found.len() > 6, "{found:?}");
        assert_eq!(
            JointCtc::new(scorer(), 0.5, None).likeliest(&[0.0; 12], 0.0, &[], &[END], |_| true),
            None
        );
    }
}
