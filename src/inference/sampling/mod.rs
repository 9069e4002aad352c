//! Sampler: from a language model's logits to the next token.
//!
//! | file | contents |
//! |---|---|
//! | `beam` | beam search, equal to the transformers library's |
//! | [`JointCtc`] | the CTC head's prefix scores beside the language model's |
//! | [`JointLabels`] | scores of labels by what the sound says of them beside the language model's |
//! | `sample` | temperature, top-k, top-p, seeded draws |
//! | [`TranscriptPart`] | where the transcript stands in an answer of several parts |
//! | [`repeated_tail`] | answers caught in a loop; repetition penalties |
//!
//! Log-probabilities are always those of the full distribution, whatever the temperature, penalty or grammar.

pub(super) mod beam;
mod joint;
mod labels;
mod repetition;
pub(super) mod sample;
mod transcript_part;

use tch::{Kind, Tensor};

pub use joint::JointCtc;
pub use labels::JointLabels;
pub use repetition::repeated_tail;
pub use transcript_part::TranscriptPart;

use super::grammar::{Allowed, CompiledGrammar, GrammarState};
use super::{DecodeOptions, Strategy};
use crate::models::ModelError;
use crate::nn::cpu_kernels::log_sum_exp;
use crate::text::TokenBytes;
use beam::{BeamSearch, Candidate};
use repetition::{forbid, keep, penalise, repeating};

/// What the choice of a sequence's next token depends on, beside its logits and what it holds already.
pub(super) struct Rules<'r> {
    /// Ids from here on are never chosen.
    pub(super) vocabulary: i64,
    pub(super) options: &'r DecodeOptions,
    pub(super) grammar: Option<&'r CompiledGrammar>,
    /// Scores tokens by the CTC head, where an answer is a transcript or begins with one.
    pub(super) joint: Option<&'r JointCtc>,
    /// Score tokens by what the sound says of labels, one for each part of the answer that is such a label.
    pub(super) labels: &'r [JointLabels],
    pub(super) end_ids: &'r [i64],
    /// Bytes of the tokens, where the next one has to begin a word.
    pub(super) word_start: Option<&'r TokenBytes>,
    /// Most tokens of the answer, as its slot has positions for.
    pub(super) tokens_max: usize,
}

impl Rules<'_> {
    /// How many tokens may still come behind the answer `ids`.
    fn left(&self, ids: &[i64]) -> usize {
        self.tokens_max.saturating_sub(ids.len())
    }

    /// What an unconstrained answer may not go on with.
    fn forbids(&self, ids: &[i64]) -> impl Fn(i64) -> bool {
        let repeating = repeating(ids, self.options.no_repeat_ngram_size);
        let splits_word = |id: i64| {
            let begins = |bytes: &TokenBytes| bytes.begins_word(id) || self.end_ids.contains(&id);
            self.word_start.is_some_and(|bytes| !begins(bytes))
        };
        move |id| splits_word(id) || repeating.contains(&id)
    }

    /// Ids of [`forbids`](Self::forbids).
    fn forbidden(&self, ids: &[i64]) -> Vec<i64> {
        if self.word_start.is_none() {
            return repeating(ids, self.options.no_repeat_ngram_size);
        }
        let forbids = self.forbids(ids);
        (0..self.vocabulary).filter(|id| forbids(*id)).collect()
    }
}

/// Whether the options change the logits of an unconstrained answer.
pub(super) fn penalises(options: &DecodeOptions) -> bool {
    options.repetition_penalty != 1.0 || options.no_repeat_ngram_size > 0
}

/// The likeliest token of each row of logits `[B, V]` among ids below `vocabulary`, with its log-probability
/// among all.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(super) fn likeliest(logits: &Tensor, vocabulary: i64) -> Result<Vec<(i64, f64)>, ModelError> {
    let (values, ids) = logits.f_narrow(-1, 0, vocabulary)?.f_max_dim(-1, false)?; // [B] each
    let log_probs = values - logits.f_logsumexp(-1, false)?;
    let ids = Vec::<i64>::try_from(&ids)?;
    let log_probs = Vec::<f32>::try_from(log_probs.f_to_kind(Kind::Float)?)?;
    Ok(ids
        .into_iter()
        .zip(log_probs.into_iter().map(f64::from))
        .collect())
}

/// Logits `[V]` with minus infinity for what the answer may not go on with, ids from `vocabulary` on left
/// out.
fn restrict(
    logits: &Tensor,
    rules: &Rules<'_>,
    state: Option<&GrammarState>,
    ids: &[i64],
) -> Result<Tensor, ModelError> {
    let in_transcript = rules.joint.filter(|joint| joint.is_in_transcript(ids));
    if let (Some(joint), None) = (in_transcript, rules.grammar) {
        let mut log_probs = logits
            .f_log_softmax(0, Kind::Float)?
            .f_narrow(0, 0, rules.vocabulary)?;
        if rules.options.repetition_penalty != 1.0 {
            log_probs = penalise(&log_probs, ids, rules.options.repetition_penalty)?;
        }
        let joint = joint.rescore(&log_probs, ids, rules.end_ids)?;
        return forbid(&joint, &rules.forbidden(ids));
    }
    let logits = logits.f_narrow(0, 0, rules.vocabulary)?;
    let (Some(state), Some(grammar)) = (state, rules.grammar) else {
        let mut logits = logits;
        if rules.options.repetition_penalty != 1.0 {
            logits = penalise(&logits, ids, rules.options.repetition_penalty)?;
        }
        return forbid(&logits, &rules.forbidden(ids));
    };
    let inside = |ids: &[i64]| -> Vec<i64> {
        ids.iter()
            .copied()
            .filter(|id| (0..rules.vocabulary).contains(id))
            .collect()
    };
    match &*grammar.allowed(state, rules.left(ids)) {
        Allowed::Only(allowed) => {
            if rules.labels.is_empty() {
                return keep(&logits, &inside(allowed));
            }
            let spelt = grammar.spelt_bytes(ids);
            let mut parts = (rules.labels.iter()).filter_map(|labels| Some((labels, labels.part(&spelt)?)));
            let Some((labels, so_far)) = parts.next() else {
                return keep(&logits, &inside(allowed));
            };
            let log_probs = logits.f_log_softmax(0, Kind::Float)?;
            let bytes = |id| grammar.bytes(id).filter(|_| !rules.end_ids.contains(&id));
            labels.rescore(&log_probs, so_far, &inside(allowed), bytes)
        }
        Allowed::AllBut(forbidden) => match in_transcript {
            Some(joint) => {
                let log_probs = logits.f_log_softmax(0, Kind::Float)?;
                forbid(
                    &joint.rescore(&log_probs, ids, rules.end_ids)?,
                    &inside(forbidden),
                )
            }
            None => forbid(&logits, &inside(forbidden)),
        },
    }
}

/// The next token of a single sequence from its logits `[V]`, with its log-probability under the full
/// distribution.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(super) fn sample_next(
    logits: &Tensor,
    rules: &Rules<'_>,
    state: Option<&GrammarState>,
    ids: &[i64],
) -> Result<(i64, f64), ModelError> {
    let is_greedy = rules.options.strategy == Strategy::Greedy && rules.options.repetition_penalty == 1.0;
    let by_grammar =
        (rules.grammar.zip(state)).map(|(grammar, state)| grammar.allowed(state, rules.left(ids)));
    if let Some(joint) = rules.joint
        && is_greedy
        && joint.is_in_transcript(ids)
        && !matches!(by_grammar.as_deref(), Some(Allowed::Only(_)))
    {
        let plain = Vec::<f32>::try_from(logits.f_to_kind(Kind::Float)?)?;
        let (total, vocabulary) = (
            log_sum_exp(&plain),
            usize::try_from(rules.vocabulary).unwrap_or(0),
        );
        let possible = &plain[..vocabulary.min(plain.len())];
        let forbids = rules.forbids(ids);
        let forbids = |id: i64| match by_grammar.as_deref() {
            Some(Allowed::AllBut(ids)) => ids.binary_search(&id).is_ok(),
            _ => forbids(id),
        };
        let likeliest = joint.likeliest(possible, total, ids, rules.end_ids, forbids);
        if let Some((id, at)) = likeliest.and_then(|id| Some((id, usize::try_from(id).ok()?))) {
            return Ok((id, f64::from(plain[at] - total)));
        }
    }
    let possible = restrict(logits, rules, state, ids)?;
    let id = match &rules.options.strategy {
        Strategy::Sample(sampling) => sample::draw(&possible, sampling, ids.len())?,
        Strategy::Greedy | Strategy::Beam(_) => possible.f_argmax(0, false)?.f_int64_value(&[])?,
    };
    let log_prob = logits.f_get(id)? - logits.f_logsumexp(0, false)?;
    Ok((id, log_prob.f_double_value(&[])?))
}

/// The `wanted` best continuations of all hypotheses, best first, from their logits `[beams, V]`.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(super) fn continuations(
    logits: &Tensor,
    rules: &Rules<'_>,
    beams: &BeamSearch,
    wanted: usize,
) -> Result<Vec<Candidate>, ModelError> {
    let vocabulary = rules.vocabulary;
    let log_probs = logits.f_log_softmax(-1, Kind::Float)?; // [beams, V]
    let so_far: Vec<f32> = beams.live().iter().map(|found| found.score).collect();
    let so_far = Tensor::f_from_slice(&so_far)?.f_to_device(logits.device())?;
    let possible = if rules.grammar.is_none() && rules.joint.is_none() && !penalises(rules.options) {
        log_probs.f_narrow(1, 0, vocabulary)?
    } else {
        let mut rows = Vec::with_capacity(beams.live().len());
        for (row, found) in (0..).zip(beams.live()) {
            let state = found.progress.as_ref();
            rows.push(restrict(&log_probs.f_get(row)?, rules, state, &found.ids)?);
        }
        Tensor::f_stack(&rows, 0)?
    };
    let sums = (possible + so_far.f_unsqueeze(1)?).f_view([-1])?; // [beams · vocabulary]
    let count = i64::try_from(wanted).unwrap_or(i64::MAX).min(sums.size()[0]);
    let (best, order) = sums.f_topk(count, 0, true, true)?;
    let (row, id) = (
        order.f_floor_divide_scalar(vocabulary)?,
        order.f_remainder(vocabulary)?,
    );
    let chosen = log_probs.f_index(&[Some(&row), Some(&id)])?;
    let best = Vec::<f32>::try_from(&best)?;
    let chosen = Vec::<f32>::try_from(&chosen)?;
    let (row, id) = (Vec::<i64>::try_from(&row)?, Vec::<i64>::try_from(&id)?);
    let candidates = best
        .into_iter()
        .zip(chosen)
        .zip(row)
        .zip(id)
        .map(|(((score, log_prob), row), id)| Candidate {
            source: usize::try_from(row).unwrap_or(0),
            id,
            score,
            log_prob: f64::from(log_prob),
        });
    Ok(candidates
        .filter(|candidate| candidate.score > f32::NEG_INFINITY)
        .collect())
}
