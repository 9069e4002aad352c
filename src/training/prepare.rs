//! From labelled recordings to samples: targets in their final spelling, as tokens; what does not fit is left out and counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::TrainingError;
use super::ctc::ctc_ids;
use super::example::Example;
use crate::config::training::TrainingConfig;
use crate::models::speech_llm::SpeechLlm;

/// A sample ready for both losses.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Where it comes from; its target is in the final spelling.
    pub example: Example,
    /// Answer tokens, end included.
    pub answer: Vec<i64>,
    /// Tokens for CTC.
    pub ctc: Vec<i64>,
    /// Instructions to draw from, never empty.
    pub instructions: Arc<[String]>,
}

/// Samples, and how many recordings were left out, by reason.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// What is left.
    pub samples: Vec<Sample>,
    /// What is not.
    pub left_out: BTreeMap<&'static str, usize>,
}

/// Lower case; letters, digits and apostrophes stay, everything else separates words: the paper's spelling of transcripts.
pub fn plain_target(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars().flat_map(char::to_lowercase) {
        match character {
            '\u{2018}' | '\u{2019}' | '\u{02bc}' => out.push('\''),
            '\'' => out.push('\''),
            _ if character.is_alphanumeric() => out.push(character),
            _ if !out.ends_with(' ') => out.push(' '),
            _ => {}
        }
    }
    out.trim().to_owned()
}

/// Prepares recordings for training or validation.
///
/// # Errors
/// [`TrainingError::Settings`] when a task has neither prompts in the settings nor an instruction of its own; [`TrainingError::Text`].
pub fn prepare(
    examples: Vec<Example>,
    config: &TrainingConfig,
    llm: &SpeechLlm,
) -> Result<Prepared, TrainingError> {
    let prompts: BTreeMap<&str, Arc<[String]>> = config
        .prompts
        .iter()
        .map(|(task, prompts)| (task.as_str(), prompts.clone().into()))
        .collect();
    let mut prepared = Prepared::default();
    for mut example in examples {
        let mut leave_out = |reason| *prepared.left_out.entry(reason).or_insert(0) += 1;
        if example.seconds > config.data.seconds_max {
            leave_out("longer than data.seconds_max");
            continue;
        }
        if example.seconds < config.data.seconds_min {
            leave_out("shorter than data.seconds_min");
            continue;
        }
        if config.data.plain_targets && example.task == "asr" {
            example.target = plain_target(&example.target);
        }
        if example.target.is_empty() {
            leave_out("empty target");
            continue;
        }
        let answer = llm.answer_ids(&example.target)?;
        if answer.len() > config.data.target_tokens_max {
            leave_out("more tokens than data.target_tokens_max");
            continue;
        }
        let ctc = ctc_ids(llm.tokenizer(), &example.target)?;
        let instructions = match (&example.instruction, prompts.get(example.task.as_str())) {
            (Some(own), _) => vec![own.clone()].into(),
            (None, Some(prompts)) => Arc::clone(prompts),
            (None, None) => {
                return Err(TrainingError::Settings {
                    problem: format!(
                        "sample `{}` has task `{}`, for which `[prompts]` has no instructions",
                        example.id, example.task
                    ),
                });
            }
        };
        prepared.samples.push(Sample {
            example,
            answer,
            ctc,
            instructions,
        });
    }
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_target_keeps_words_and_apostrophes() {
        assert_eq!(
            plain_target("  It’s 7:30 — Don't \"wait\"!"),
            "it's 7 30 don't wait"
        );
        assert_eq!(plain_target("Straße, naïve"), "straße naïve");
        assert_eq!(plain_target("?!"), "");
    }
}
