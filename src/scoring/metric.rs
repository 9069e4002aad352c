//! The metrics by name, and a tally of answers for each.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::bleu::{self, BleuCounts};
use super::chrf::{self, ChrfCounts};
use super::classes::class_of;
use super::slots::{label_counts, slu_counts, total};
use super::tally::{Formula, Tally};
use super::{character_errors, overlap, word_errors};
use crate::text::TaskMetric;
use crate::text::answer::{AnswerFormat, ParsedAnswer, SlotLabel};
use crate::text::normalize::{english, plain};

/// A score of answers against references. All are reported on the scale 0 to 100.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Word error rate, both sides through Whisper's English normaliser.
    Wer,
    /// Word error rate, both sides in lower case without punctuation.
    WerPlain,
    /// Character error rate of the same plain spelling.
    Cer,
    /// BLEU, case kept.
    Bleu,
    /// BLEU, both sides in lower case.
    BleuLowercase,
    /// chrF.
    Chrf,
    /// Share of right answers.
    Accuracy,
    /// Mean recall of the reference classes.
    Uar,
    /// Mean F1 of the reference classes.
    MacroF1,
    /// F1 of keyword sets, averaged over utterances.
    KeywordF1,
    /// F1 of words, averaged over utterances.
    TokenF1,
    /// SLURP's F1 of slots and values.
    SluF1,
    /// F1 of slot labels.
    SdF1,
}

/// An answer beside its reference.
pub type Pair<'a> = (&'a str, &'a str);

impl Metric {
    /// The metrics of a task: its own first, then what else is worth knowing of the same answers.
    pub fn of_task(metric: TaskMetric) -> &'static [Self] {
        match metric {
            TaskMetric::Wer => &[Self::Wer, Self::WerPlain, Self::Cer],
            TaskMetric::Cer => &[Self::Cer, Self::WerPlain],
            TaskMetric::Bleu => &[Self::Bleu, Self::BleuLowercase, Self::Chrf],
            TaskMetric::Chrf => &[Self::Chrf, Self::Bleu],
            TaskMetric::Accuracy => &[Self::Accuracy, Self::MacroF1],
            TaskMetric::Uar => &[Self::Uar, Self::Accuracy, Self::MacroF1],
            TaskMetric::MacroF1 => &[Self::MacroF1, Self::Accuracy],
            TaskMetric::KeywordF1 => &[Self::KeywordF1],
            TaskMetric::TokenF1 => &[Self::TokenF1],
            TaskMetric::SluF1 => &[Self::SluF1, Self::SdF1],
            TaskMetric::SdF1 => &[Self::SdF1, Self::SluF1],
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wer => "wer",
            Self::WerPlain => "wer_plain",
            Self::Cer => "cer",
            Self::Bleu => "bleu",
            Self::BleuLowercase => "bleu_lowercase",
            Self::Chrf => "chrf",
            Self::Accuracy => "accuracy",
            Self::Uar => "uar",
            Self::MacroF1 => "macro_f1",
            Self::KeywordF1 => "keyword_f1",
            Self::TokenF1 => "token_f1",
            Self::SluF1 => "slu_f1",
            Self::SdF1 => "sd_f1",
        }
    }

    /// Its name in headings.
    pub fn title(self) -> &'static str {
        match self {
            Self::Wer => "WER",
            Self::WerPlain => "WER (plain)",
            Self::Cer => "CER",
            Self::Bleu => "BLEU",
            Self::BleuLowercase => "BLEU (lower case)",
            Self::Chrf => "chrF",
            Self::Accuracy => "accuracy",
            Self::Uar => "UAR",
            Self::MacroF1 => "macro F1",
            Self::KeywordF1 => "keyword F1",
            Self::TokenF1 => "token F1",
            Self::SluF1 => "SLU-F1",
            Self::SdF1 => "SD-F1",
        }
    }

    /// Whether a smaller score is a better one.
    pub fn lower_is_better(self) -> bool {
        matches!(self, Self::Wer | Self::WerPlain | Self::Cer)
    }

    /// How it is computed, in one line that goes into reports. A signature with `version` is sacreBLEU's own.
    pub fn signature(self) -> &'static str {
        match self {
            Self::Wer => "corpus word error rate|norm:whisper-english|words:white-space",
            Self::WerPlain => "corpus word error rate|norm:lower-case, no punctuation|words:white-space",
            Self::Cer => "corpus character error rate|norm:lower-case, no punctuation|spaces:counted",
            Self::Bleu => bleu::SIGNATURE,
            Self::BleuLowercase => bleu::SIGNATURE_LOWERCASE,
            Self::Chrf => chrf::SIGNATURE,
            Self::Accuracy => "exact match|norm:trim, lower-case",
            Self::Uar => "macro recall over reference classes|norm:trim, lower-case|outside answers:miss",
            Self::MacroF1 => "macro F1 over reference classes|norm:trim, lower-case|outside answers:miss",
            Self::KeywordF1 => "set F1 per utterance, mean|split:comma|norm:trim, lower-case",
            Self::TokenF1 => "bag-of-words F1 per utterance, mean|norm:lower-case, no punctuation",
            Self::SluF1 => "SLURP SLU-F1|runs:word+character|average:micro|norm:lower-case",
            Self::SdF1 => "slot label F1|average:micro|norm:lower-case|values:ignored",
        }
    }

    /// What each of these answers adds to the score.
    pub fn tally(self, pairs: &[Pair<'_>]) -> Tally {
        let mut tally = Tally::new(self.formula(pairs));
        let classes = self.classes(pairs);
        for (reference, hypothesis) in pairs {
            match self {
                Self::Wer | Self::WerPlain => {
                    let errors = word_errors(&self.spelling(reference), &self.spelling(hypothesis));
                    tally.push([(0, errors.errors() as f64), (1, errors.length as f64)]);
                }
                Self::Cer => {
                    let errors = character_errors(&self.spelling(reference), &self.spelling(hypothesis));
                    tally.push([(0, errors.errors() as f64), (1, errors.length as f64)]);
                }
                Self::Bleu | Self::BleuLowercase => {
                    let counts = BleuCounts::of(reference, hypothesis, self == Self::BleuLowercase);
                    let all = [counts.hypothesis, counts.reference].into_iter();
                    tally.push(numbered(all.chain(counts.hits).chain(counts.totals)));
                }
                Self::Chrf => {
                    let counts = ChrfCounts::of(reference, hypothesis);
                    tally.push(numbered(counts.orders.into_iter().flatten()));
                }
                Self::Accuracy => {
                    let right = class_of(reference) == class_of(hypothesis);
                    tally.push([(0, f64::from(right)), (1, 1.0)]);
                }
                Self::Uar | Self::MacroF1 => {
                    let (wanted, answered) = (class_of(reference), class_of(hypothesis));
                    let at = |class: &String| classes.get(class).map(|class| 3 * class);
                    let hit = at(&wanted).filter(|_| wanted == answered);
                    tally.push(
                        [hit, at(&answered).map(|at| at + 1), at(&wanted).map(|at| at + 2)]
                            .into_iter()
                            .flatten()
                            .map(|at| (at, 1.0)),
                    );
                }
                Self::KeywordF1 => tally.push([(0, overlap::keyword_f1(reference, hypothesis)), (1, 1.0)]),
                Self::TokenF1 => tally.push([(0, overlap::token_f1(reference, hypothesis)), (1, 1.0)]),
                Self::SluF1 | Self::SdF1 => {
                    let (wanted, answered) = (slots_of(reference), slots_of(hypothesis));
                    let table = if self == Self::SluF1 {
                        slu_counts(&wanted, &answered)
                    } else {
                        label_counts(&wanted, &answered)
                    };
                    let counts = total(&table);
                    tally.push([(0, counts.hits), (1, counts.wrong), (2, counts.missed)]);
                }
            }
        }
        tally
    }

    /// A text in the spelling that this metric compares.
    pub fn spelling(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Wer => Cow::Owned(english(text)),
            Self::WerPlain | Self::Cer | Self::TokenF1 => Cow::Owned(plain(text)),
            Self::Accuracy | Self::Uar | Self::MacroF1 => Cow::Owned(class_of(text)),
            _ => Cow::Borrowed(text),
        }
    }

    fn formula(self, pairs: &[Pair<'_>]) -> Formula {
        match self {
            Self::Wer | Self::WerPlain | Self::Cer => Formula::ErrorRate,
            Self::Bleu | Self::BleuLowercase => Formula::Bleu,
            Self::Chrf => Formula::Chrf,
            Self::Accuracy | Self::KeywordF1 | Self::TokenF1 => Formula::Mean,
            Self::Uar => Formula::Recall(self.classes(pairs).len()),
            Self::MacroF1 => Formula::ClassF1(self.classes(pairs).len()),
            Self::SluF1 | Self::SdF1 => Formula::SlotF1,
        }
    }

    /// The reference classes, numbered in order.
    fn classes(self, pairs: &[Pair<'_>]) -> BTreeMap<String, usize> {
        if !matches!(self, Self::Uar | Self::MacroF1) {
            return BTreeMap::new();
        }
        let names: BTreeSet<String> = pairs.iter().map(|(reference, _)| class_of(reference)).collect();
        names.into_iter().zip(0..).collect()
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// The slots of an answer; what is malformed in it is left out.
pub fn slots_of(text: &str) -> Vec<SlotLabel> {
    match AnswerFormat::Slots.parse(text) {
        ParsedAnswer::Slots(slots) => slots,
        _ => Vec::new(),
    }
}

fn numbered(counts: impl Iterator<Item = u64>) -> impl Iterator<Item = (usize, f64)> {
    counts.map(|count| count as f64).enumerate()
}
