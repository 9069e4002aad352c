//! What the learned parts say about an answer before the language model writes it: embeddings of the clip and
//! the CTC head about labels, summary and head about whether anything is said at all.

use tch::Tensor;

use super::grammar::CompiledGrammar;
use super::speech_llm::SpeechLlm;
use super::{InferenceError, JointLabels};
use crate::models::adapter::{PrefixScorer, label_embeddings, label_scores, scores_of_embeddings};
use crate::text::Spoken;
use crate::text::tasks::SPEECH_DETECTION;

/// Score of the label `none` beside labels that are themselves what is said: natural logarithm against the
/// likeliest path of all. On 27 validation clips a label that was said had at least -2.1, the best one that
/// was not at most -6.5.
const NONE_SAID: f64 = -5.0;
/// The label for none of the others.
const NONE: &str = "none";
/// Longer words are left to the language model: their cost grows with the square of the length.
const SPOKEN_TOKENS_MAX: usize = 64;

/// What an embedding `[H]` of a clip says of the labels of a grammar; none where it is no choice of one
/// label.
pub(super) fn embedding_labels(
    model: &SpeechLlm,
    grammar: &CompiledGrammar,
    embedding: &Tensor,
    weight: f64,
) -> Result<Option<JointLabels>, InferenceError> {
    let labels = grammar.choice();
    let tokens = (labels.iter())
        .map(|label| model.spoken_ids(label))
        .collect::<Result<Vec<_>, _>>()?;
    if tokens.is_empty() || tokens.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    let scores = label_scores(embedding, &tokens, &model.llm().embedding_table())?;
    Ok(Some(JointLabels::new(labels, &scores, weight)?))
}

/// What the CTC head says of the labels of a grammar; none where it cannot say it of each.
///
/// Words count as said from `above` on, log-odds a token: of the sum over all paths that contain them, since
/// each token of a word that is said may be missed.
pub(super) fn spoken_labels(
    model: &SpeechLlm,
    grammar: &CompiledGrammar,
    scorer: &PrefixScorer,
    spoken: &Spoken,
    weight: f64,
    above: f64,
) -> Result<Option<JointLabels>, InferenceError> {
    let labels = grammar.choice();
    let scores: Option<Vec<f64>> = match spoken {
        Spoken::Words { words, said, unsaid } => {
            let odds = log_odds(model, scorer, words)?.map(|odds| odds - above);
            let of = |label: &String| match (label.trim(), odds) {
                (label, Some(odds)) if label == said.trim() => Some(odds),
                (label, Some(_)) if label == unsaid.trim() => Some(0.0),
                _ => None,
            };
            labels.iter().map(of).collect()
        }
        Spoken::Labels => {
            let of = |label: &String| -> Result<Option<f64>, InferenceError> {
                if label.trim().eq_ignore_ascii_case(NONE) {
                    return Ok(Some(NONE_SAID));
                }
                let tokens = model.spoken_ids(&label.to_lowercase())?;
                let fits = (1..=SPOKEN_TOKENS_MAX).contains(&tokens.len());
                Ok(scorer.exactly(&tokens).filter(|_| fits))
            };
            labels.iter().map(of).collect::<Result<_, _>>()?
        }
    };
    match scores {
        Some(scores) if !scores.is_empty() => {
            let scores = Tensor::f_from_slice(&scores).map_err(crate::models::ModelError::from)?;
            Ok(Some(JointLabels::new(labels, &scores, weight)?))
        }
        _ => Ok(None),
    }
}

/// Log-odds a token that these words are said, as they are written or in lower case; none where the CTC head
/// does not know them.
fn log_odds(model: &SpeechLlm, scorer: &PrefixScorer, words: &str) -> Result<Option<f64>, InferenceError> {
    let words = words.trim_matches(|c: char| !c.is_alphanumeric());
    let mut best: Option<f64> = None;
    if words.is_empty() {
        return Ok(None);
    }
    let spelt = model.tokenizer().token_bytes()?;
    let begins_word = |token| spelt.begins_word(token);
    let lower = words.to_lowercase();
    for spelling in [words, lower.as_str()] {
        let tokens = model.spoken_ids(spelling)?;
        if !(1..=SPOKEN_TOKENS_MAX).contains(&tokens.len()) {
            continue;
        }
        let Some(odds) = scorer.log_odds_within(&tokens, begins_word) else {
            continue;
        };
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let odds = odds / tokens.len() as f64;
        best = Some(best.map_or(odds, |best| best.max(odds)));
        if lower == words {
            break;
        }
    }
    Ok(best)
}

/// Directions `[2, H]` of the labels of speech and of none.
pub(super) fn speech_labels(model: &SpeechLlm) -> Result<Tensor, InferenceError> {
    let tokens = (SPEECH_DETECTION.1.iter())
        .map(|label| model.spoken_ids(label))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(label_embeddings(&tokens, &model.llm().embedding_table())?)
}

/// Natural-log probability that nothing is said: by the CTC head, which reads no words, and by the summary
/// `[H]`, for which the clip is no speech; `labels` are [`speech_labels`].
///
/// The product of both, since each is deceived by other sounds: the head finds a short word in a bark, the
/// summary of a clip that is silent for the most part is that of silence.
pub(super) fn nothing_said(
    labels: &Tensor,
    scorer: &PrefixScorer,
    summary: &Tensor,
) -> Result<f64, InferenceError> {
    let scores = scores_of_embeddings(summary, labels)?; // [2]
    let no_speech = scores
        .f_log_softmax(0, tch::Kind::Double)
        .and_then(|scores| scores.f_get(1)?.f_double_value(&[]))
        .map_err(crate::models::ModelError::from)?;
    Ok(scorer.nothing() + no_speech)
}
