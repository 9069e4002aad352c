//! What the learned parts say about an answer before the language model writes it: embeddings of the clip and
//! the CTC head about labels, summary and head about whether anything is said at all.

use std::cell::OnceCell;

use tch::Tensor;

use super::grammar::CompiledGrammar;
use super::speech_llm::SpeechLlm;
use super::{DecodeOptions, GenerateRequest, InferenceError, JointLabels};
use crate::models::adapter::{
    Adapted, KnownPaths, PrefixScorer, SpeechAdapter, label_embeddings, label_scores, scores_of_embeddings,
};
use crate::text::tasks::{SPEECH_DETECTION, TRANSCRIPT};
use crate::text::{AnswerFormat, Spoken};

/// Score of the label `none` beside labels that are themselves what is said: natural logarithm against the
/// likeliest path of all. On 27 validation clips a label that was said had at least -2.1, the best one that
/// was not at most -6.5.
const NONE_SAID: f64 = -5.0;
/// The label for none of the others.
const NONE: &str = "none";
/// Share of the CTC head's log-probability of no words in the log-odds of no speech: its frames are not
/// independent of each other. Decision 32 has the alternatives.
const NO_WORDS_SHARE: f64 = 0.5;
/// Longer words are left to the language model: their cost grows with the square of the length.
const SPOKEN_TOKENS_MAX: usize = 64;

/// An answer, or one of the parts of the answer to several tasks.
pub(super) struct AnswerPart<'r> {
    task: Option<&'r str>,
    /// The labels that it is one of; empty where it is none.
    labels: &'r [String],
    /// What has to be said for them.
    spoken: Option<&'r Spoken>,
    /// What stands before it, of several.
    heading: Option<&'r str>,
    /// Whether it is free text at the beginning of the answer.
    is_free_begin: bool,
}

impl<'r> AnswerPart<'r> {
    /// The parts of the answer to a request whose grammar is compiled.
    pub(super) fn of(request: &'r GenerateRequest, grammar: Option<&'r CompiledGrammar>) -> Vec<Self> {
        let Some(layout) = &request.joint else {
            return vec![Self {
                task: request.task.as_deref(),
                labels: grammar.map_or(&[], CompiledGrammar::choice),
                spoken: request.spoken.as_ref(),
                heading: None,
                is_free_begin: grammar.is_none(),
            }];
        };
        let fields = layout.fields().iter().enumerate();
        fields
            .map(|(at, field)| {
                let is_label = grammar.is_some() && field.format == AnswerFormat::Label;
                Self {
                    task: Some(&field.task),
                    labels: if is_label { &field.labels } else { &[] },
                    spoken: field.spoken.as_ref(),
                    heading: Some(&field.heading),
                    is_free_begin: at == 0 && field.format == AnswerFormat::Text,
                }
            })
            .collect()
    }

    /// Whether the CTC head scores its tokens: a transcript with which the answer begins.
    pub(super) fn is_transcript(&self) -> bool {
        self.task == Some(TRANSCRIPT) && self.is_free_begin
    }

    /// What stands before it, where it is not the whole answer.
    pub(super) fn heading(&self) -> Option<&'r str> {
        self.heading
    }

    /// Whether the CTC head has a say in the choice of its label.
    fn is_spoken(&self, options: &DecodeOptions) -> bool {
        self.spoken.is_some() && options.spoken_weight > 0.0
    }

    /// Whether it says if there is speech, by summary and CTC head.
    fn detects_speech(&self, options: &DecodeOptions) -> bool {
        self.task == Some(SPEECH_DETECTION.0) && options.nothing_said_above < 0.0
    }

    /// Whether it needs what the CTC head reads.
    pub(super) fn needs_head(&self, options: &DecodeOptions) -> bool {
        let is_scored = self.is_spoken(options) || self.detects_speech(options);
        self.is_transcript() || (is_scored && !self.labels.is_empty())
    }
}

/// What the learned parts make of a clip.
pub(super) struct Evidence<'e> {
    /// The version's networks.
    pub(super) adapter: &'e SpeechAdapter,
    /// The adapter's positions.
    pub(super) adapted: &'e Adapted,
    /// The first position, `[H]`: the summary, where there is one.
    pub(super) summary: &'e Tensor,
    /// What the CTC head reads, where a part needs it.
    pub(super) scorer: Option<&'e PrefixScorer>,
    /// Its scores and paths, likewise.
    pub(super) read: Option<KnownPaths<'e>>,
    /// The embedding of what is said, `[1, H]`, once a part has asked for it.
    pub(super) sentence: OnceCell<Option<Tensor>>,
}

impl Evidence<'_> {
    /// What the sound says of the labels of a part; none where it is no label, or nothing learned knows of
    /// it.
    ///
    /// # Errors
    /// [`InferenceError`] when the version does not fit the networks, or a network fails.
    pub(super) fn labels(
        &self,
        model: &SpeechLlm,
        part: &AnswerPart<'_>,
        options: &DecodeOptions,
    ) -> Result<Option<JointLabels>, InferenceError> {
        let config = self.adapter.config();
        let knows = |tasks: &[String]| tasks.iter().any(|known| Some(known.as_str()) == part.task);
        if part.labels.is_empty() {
            return Ok(None);
        }
        if options.summary_weight > 0.0 && knows(&config.summary_tasks) {
            let scorer = self.scorer.filter(|_| part.detects_speech(options));
            let no_words = scorer.map_or(0.0, |head| no_words(head, options.nothing_said_above));
            return embedding_labels(model, part, self.summary, options.summary_weight, no_words);
        }
        if let (Some(spoken), Some(scorer)) = (part.spoken, self.scorer)
            && part.is_spoken(options)
            && let Some(labels) = spoken_labels(model, part, scorer, spoken, options)?
        {
            return Ok(Some(labels));
        }
        if options.sentence_weight > 0.0
            && knows(&config.sentence_tasks)
            && let Some(sentence) = self.sentence()?
        {
            return embedding_labels(model, part, &sentence.f_get(0)?, options.sentence_weight, 0.0);
        }
        Ok(None)
    }

    fn sentence(&self) -> Result<Option<&Tensor>, InferenceError> {
        if self.sentence.get().is_none() {
            let segments = self.adapter.segments(self.adapted, self.read)?;
            let _ = self.sentence.set(self.adapter.sentence(&segments)?);
        }
        Ok(self.sentence.get().and_then(Option::as_ref))
    }
}

/// What an embedding `[H]` of a clip says of the labels of a part; none where it has none. `no_speech` is
/// added to the score of the label of [`SPEECH_DETECTION`] for no speech.
fn embedding_labels(
    model: &SpeechLlm,
    part: &AnswerPart<'_>,
    embedding: &Tensor,
    weight: f64,
    no_speech: f64,
) -> Result<Option<JointLabels>, InferenceError> {
    let labels = part.labels;
    let tokens = (labels.iter())
        .map(|label| model.spoken_ids(label))
        .collect::<Result<Vec<_>, _>>()?;
    if tokens.is_empty() || tokens.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    let scores = label_scores(embedding, &tokens, &model.llm().embedding_table())?; // [N]
    let added: Vec<f64> = (labels.iter())
        .map(|label| f64::from(label.trim() == SPEECH_DETECTION.1[1]) * no_speech)
        .collect();
    let added = Tensor::f_from_slice(&added).and_then(|added| added.f_to_device(scores.device()));
    let scores = scores + added.map_err(crate::models::ModelError::from)?;
    Ok(Some(JointLabels::new(labels, &scores, weight, part.heading)?))
}

/// What the CTC head says of the labels of a part; none where it cannot say it of each.
///
/// Words count as said from `spoken_above` on, log-odds a token: of the sum over all paths that contain them,
/// since each token of a word that is said may be missed.
fn spoken_labels(
    model: &SpeechLlm,
    part: &AnswerPart<'_>,
    scorer: &PrefixScorer,
    spoken: &Spoken,
    options: &DecodeOptions,
) -> Result<Option<JointLabels>, InferenceError> {
    let (labels, weight, above) = (part.labels, options.spoken_weight, options.spoken_above);
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
            Ok(Some(JointLabels::new(labels, &scores, weight, part.heading)?))
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

/// Natural-log odds that a clip is no speech, as a transcript of it is empty and `speech_detection` answers:
/// by the summary `[H]`, against [`speech_labels`], and by the CTC head, as [`no_words`] says.
///
/// Both together, since each is deceived by other sounds: the head finds a short word in a bark, the summary
/// of a clip that is silent for the most part is that of silence.
pub(super) fn no_speech(
    labels: &Tensor,
    scorer: &PrefixScorer,
    summary: &Tensor,
    above: f64,
) -> Result<f64, InferenceError> {
    let scores = scores_of_embeddings(summary, labels)?; // [2]
    let by_summary = scores
        .f_to_kind(tch::Kind::Double)
        .and_then(|scores| Ok(scores.f_double_value(&[1])? - scores.f_double_value(&[0])?))
        .map_err(crate::models::ModelError::from)?;
    Ok(by_summary + no_words(scorer, above))
}

/// What the CTC head adds to the log-odds that a clip is no speech: its log-probability of no words, as far
/// as it is above `above`, with its share.
fn no_words(scorer: &PrefixScorer, above: f64) -> f64 {
    NO_WORDS_SHARE * (scorer.nothing() - above)
}
