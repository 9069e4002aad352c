//! Every score against its oracle (`scripts/fixtures/scoring.py`), and what holds for any answers.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde::Deserialize;

use super::bleu::tokenize_13a;
use super::slots::{SlotTable, add_table, label_counts, slu_counts, total};
use super::*;
use crate::text::answer::SlotLabel;

#[derive(Deserialize)]
struct Golden {
    signatures: BTreeMap<String, String>,
    text: Vec<TextCase>,
    classes: Vec<ClassCase>,
    overlap: Vec<OverlapCase>,
    slots: Vec<SlotCase>,
}

#[derive(Deserialize)]
struct TextCase {
    pairs: Vec<(String, String)>,
    words: [u64; 3],
    raw_wer: f64,
    raw_cer: f64,
    wer: f64,
    wer_plain: f64,
    cer: f64,
    bleu: f64,
    bleu_lowercase: f64,
    chrf: f64,
    tokens: Vec<String>,
}

#[derive(Deserialize)]
struct ClassCase {
    pairs: Vec<(String, String)>,
    accuracy: f64,
    uar: f64,
    macro_f1: f64,
}

#[derive(Deserialize)]
struct OverlapCase {
    pairs: Vec<(String, String)>,
    keyword_f1: f64,
    token_f1: f64,
}

type Slots = Vec<(String, String)>;

#[derive(Deserialize)]
struct SlotCase {
    pairs: Vec<(Slots, Slots)>,
    slu_f1: Option<f64>,
    sd_f1: Option<f64>,
    per_type: BTreeMap<String, [f64; 3]>,
}

/// The committed corpora, or others that `scoring.py` made.
static GOLDEN: LazyLock<Golden> = LazyLock::new(|| {
    let by_hand = std::env::var_os("SPEECHVERSE_SCORING").map(|path| std::fs::read_to_string(path).unwrap());
    let committed = include_str!("../../tests/fixtures/scoring.json");
    serde_json::from_str(by_hand.as_deref().unwrap_or(committed)).unwrap()
});

fn pairs(owned: &[(String, String)]) -> Vec<Pair<'_>> {
    owned
        .iter()
        .map(|(reference, hypothesis)| (reference.as_str(), hypothesis.as_str()))
        .collect()
}

fn score(metric: Metric, pairs: &[Pair<'_>]) -> Option<f64> {
    metric.tally(pairs).score()
}

#[track_caller]
fn near(found: Option<f64>, expected: f64, case: &impl std::fmt::Debug) {
    let found = found.expect("there are utterances");
    assert!(
        (found - expected).abs() < 1e-9,
        "found {found}, expected {expected}: {case:?}"
    );
}

#[test]
fn word_and_character_error_rates_equal_jiwers() {
    assert!(GOLDEN.text.len() >= 240);
    for case in &GOLDEN.text {
        let pairs = pairs(&case.pairs);
        let words = corpus_errors(pairs.iter().copied());
        assert_eq!(
            [words.substitutions, words.deletions, words.insertions],
            case.words,
            "{pairs:?}"
        );
        near(Some(words.rate()), case.raw_wer, &pairs);
        let mut characters = EditErrors::default();
        for (reference, hypothesis) in &pairs {
            characters += character_errors(reference, hypothesis);
        }
        near(Some(characters.rate()), case.raw_cer, &pairs);
        let normalised = score(Metric::Wer, &pairs);
        // jiwer gives the plain number of insertions where nothing was said; so does the rate, in percent.
        near(normalised, case.wer, &pairs);
        near(score(Metric::WerPlain, &pairs), case.wer_plain, &pairs);
        near(score(Metric::Cer, &pairs), case.cer, &pairs);
    }
}

#[test]
fn bleu_and_chrf_equal_sacrebleus() {
    for case in &GOLDEN.text {
        let pairs = pairs(&case.pairs);
        assert_eq!(
            tokenize_13a(pairs[0].0).join(" "),
            case.tokens[0],
            "{:?}",
            pairs[0].0
        );
        near(score(Metric::Bleu, &pairs), case.bleu, &pairs);
        near(score(Metric::BleuLowercase, &pairs), case.bleu_lowercase, &pairs);
        near(score(Metric::Chrf, &pairs), case.chrf, &pairs);
    }
}

#[test]
fn signatures_are_sacrebleus_own() {
    assert_eq!(GOLDEN.signatures["bleu"], bleu::SIGNATURE);
    assert_eq!(GOLDEN.signatures["bleu_lowercase"], bleu::SIGNATURE_LOWERCASE);
    assert_eq!(GOLDEN.signatures["chrf"], chrf::SIGNATURE);
}

#[test]
fn class_scores_equal_scikit_learns() {
    assert!(GOLDEN.classes.len() >= 200);
    for case in &GOLDEN.classes {
        let pairs = pairs(&case.pairs);
        near(score(Metric::Accuracy, &pairs), case.accuracy, &pairs);
        near(score(Metric::Uar, &pairs), case.uar, &pairs);
        near(score(Metric::MacroF1, &pairs), case.macro_f1, &pairs);
        near(
            classes::uar(pairs.iter().copied()).map(|uar| 100.0 * uar),
            case.uar,
            &pairs,
        );
        near(
            classes::macro_f1(pairs.iter().copied()).map(|f1| 100.0 * f1),
            case.macro_f1,
            &pairs,
        );
    }
}

#[test]
fn keyword_and_token_f1_equal_their_definitions() {
    assert!(GOLDEN.overlap.len() >= 150);
    for case in &GOLDEN.overlap {
        let pairs = pairs(&case.pairs);
        near(score(Metric::KeywordF1, &pairs), case.keyword_f1, &pairs);
        near(score(Metric::TokenF1, &pairs), case.token_f1, &pairs);
    }
}

#[test]
fn slot_scores_equal_their_definitions_type_by_type() {
    let entities = |slots: &Slots| -> Vec<SlotLabel> {
        let slot = |(name, value): &(String, String)| SlotLabel {
            name: name.clone(),
            value: value.clone(),
        };
        slots.iter().map(slot).collect()
    };
    assert!(GOLDEN.slots.len() >= 200);
    for case in &GOLDEN.slots {
        let (mut slu, mut labels) = (SlotTable::new(), SlotTable::new());
        for (wanted, answered) in &case.pairs {
            let (wanted, answered) = (entities(wanted), entities(answered));
            add_table(&mut slu, &slu_counts(&wanted, &answered));
            add_table(&mut labels, &label_counts(&wanted, &answered));
        }
        assert_eq!(slu.len(), case.per_type.len());
        for (label, [hits, wrong, missed]) in &case.per_type {
            let counts = slu[label];
            near(Some(counts.hits), *hits, &case.pairs);
            near(Some(counts.wrong), *wrong, &case.pairs);
            near(Some(counts.missed), *missed, &case.pairs);
        }
        for (table, expected) in [(&slu, case.slu_f1), (&labels, case.sd_f1)] {
            let found = total(table).f1().map(|f1| 100.0 * f1);
            assert_eq!(found.is_some(), expected.is_some());
            if let Some(expected) = expected {
                near(found, expected, &case.pairs);
            }
        }
    }
}

const ALL: [Metric; 13] = [
    Metric::Wer,
    Metric::WerPlain,
    Metric::Cer,
    Metric::Bleu,
    Metric::BleuLowercase,
    Metric::Chrf,
    Metric::Accuracy,
    Metric::Uar,
    Metric::MacroF1,
    Metric::KeywordF1,
    Metric::TokenF1,
    Metric::SluF1,
    Metric::SdF1,
];

#[test]
fn a_score_of_no_utterances_is_absent() {
    for metric in ALL {
        let tally = metric.tally(&[]);

        assert_eq!((tally.score(), tally.interval(10, 1)), (None, None), "{metric}");
        assert!(tally.compare(&tally, 10, 1).is_none());
    }
}

#[test]
fn empty_references_and_answers_have_scores_that_are_numbers() {
    for metric in ALL {
        for pairs in [[("", "")], [("", "a = b; c")], [("a = b; c", "")]] {
            let tally = metric.tally(&pairs);
            if let Some(score) = tally.score() {
                assert!(score.is_finite(), "{metric}: {pairs:?}");
            } else {
                assert!(
                    matches!(metric, Metric::SluF1 | Metric::SdF1),
                    "{metric}: {pairs:?}"
                );
            }
        }
    }
}

#[test]
fn an_interval_is_as_wide_as_the_binomial_one_and_the_same_each_time() {
    let pairs: Vec<Pair<'_>> = (0..400)
        .map(|at| ("yes", if at % 4 == 0 { "no" } else { "yes" }))
        .collect();
    let tally = Metric::Accuracy.tally(&pairs);

    let interval = tally.interval(1000, 7).unwrap();

    // 75 ± 1.96 · sqrt(0.75 · 0.25 / 400) · 100
    assert!((interval.low - 70.76).abs() < 1.0, "{interval:?}");
    assert!((interval.high - 79.24).abs() < 1.0, "{interval:?}");
    assert_eq!(tally.interval(1000, 7), Some(interval));
    assert_ne!(tally.interval(1000, 8), Some(interval));
}

#[test]
fn a_comparison_of_paired_answers_sees_what_single_intervals_do_not() {
    // Utterances differ a lot in difficulty, and the second system is always a little worse.
    let references: Vec<String> = (0..200).map(|_| vec!["w"; 20].join(" ")).collect();
    let answer = |at: usize, extra: usize| vec!["w"; 20 - at % 15 - extra].join(" ");
    let (first, second): (Vec<String>, Vec<String>) =
        (0..200).map(|at| (answer(at, 0), answer(at, 1))).unzip();
    let tally = |answers: &[String]| {
        let pairs: Vec<Pair<'_>> = references
            .iter()
            .map(String::as_str)
            .zip(answers.iter().map(String::as_str))
            .collect();
        Metric::WerPlain.tally(&pairs)
    };
    let (first, second) = (tally(&first), tally(&second));

    let comparison = second.compare(&first, 500, 3).unwrap();

    assert!((comparison.difference - 5.0).abs() < 1e-9);
    assert!(comparison.interval.low > 4.9 && comparison.interval.high < 5.1);
    assert_eq!(comparison.p, 0.0);
    assert!(first.interval(500, 3).unwrap().high > second.interval(500, 3).unwrap().low);
    assert_eq!(first.compare(&first, 50, 3).unwrap().p, 1.0);
}

proptest! {
    #[test]
    fn any_answers_have_finite_scores_inside_ordered_intervals(
        owned in proptest::collection::vec((".{0,12}", ".{0,12}"), 1..6),
        seed in any::<u64>(),
    ) {
        let pairs = pairs(&owned);
        for metric in ALL {
            let tally = metric.tally(&pairs);
            prop_assert_eq!(tally.len(), pairs.len());
            if let (Some(score), Some(interval)) = (tally.score(), tally.interval(20, seed)) {
                prop_assert!(score.is_finite() && score >= 0.0);
                prop_assert!(interval.low <= interval.high && interval.high.is_finite());
                prop_assert!(metric.lower_is_better() || score <= 100.0 + 1e-9);
            }
        }
    }
}
