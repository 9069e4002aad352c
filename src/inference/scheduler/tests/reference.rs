//! Fixtures of `scripts/fixtures/decoding.py`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::inference::sampling::sample::warp;
use crate::models::open_language_model;
use crate::nn::accel::Placement;

#[derive(Debug, Deserialize)]
struct Case {
    prompt: Vec<i64>,
    beams: usize,
    length_penalty: f64,
    early_stopping: String,
    tokens: usize,
    ends: Vec<i64>,
    repetition_penalty: f64,
    no_repeat_ngram_size: usize,
    answer: Vec<i64>,
    ended: bool,
    score: Option<f64>,
}

impl Case {
    fn options(&self) -> DecodeOptions {
        let beam = BeamSettings {
            width: self.beams,
            length_penalty: self.length_penalty,
            early_stopping: self.early_stopping.parse().unwrap(),
        };
        DecodeOptions {
            strategy: if self.beams > 1 {
                Strategy::Beam(beam)
            } else {
                Strategy::Greedy
            },
            tokens_max: self.tokens,
            stop_loops: false,
            ctc_weight: 0.0,
            summary_weight: 0.0,
            spoken_weight: 0.0,
            spoken_above: 0.0,
            nothing_said_above: 0.0,
            sentence_weight: 0.0,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
        }
    }

    fn check(&self, found: &Generation, place: &str) {
        assert_eq!(
            (&found.ids, found.ended),
            (&self.answer, self.ended),
            "{place}: {self:?}"
        );
        if let Some(score) = self.score {
            let own = f64::from(found.beam_score.unwrap());
            assert!(
                (own - score).abs() <= 1e-4 * score.abs().max(1.0),
                "{place}: {own} for {score}"
            );
        }
    }
}

/// Every case alone, then all that end alike side by side.
fn check(folder: &Path, cases: &[Case]) {
    let model = open_language_model(folder, &Placement::reference()).unwrap();
    let model = model.as_ref();
    let name = folder.display().to_string();
    for case in cases {
        let prompts = vec![prompt(model, &case.prompt, case.options())];
        let found = generate_all(model, prompts, 1, &case.ends, model.info().vocab, &[]).unwrap();
        case.check(&found[0], &name);
    }
    let mut by_ends: BTreeMap<&[i64], Vec<&Case>> = BTreeMap::new();
    for case in cases {
        by_ends.entry(&case.ends).or_default().push(case);
    }
    for (ends, cases) in by_ends {
        let prompts = cases
            .iter()
            .map(|case| prompt(model, &case.prompt, case.options()))
            .collect();
        let found = generate_all(model, prompts, 16, ends, model.info().vocab, &[]).unwrap();
        for (case, found) in cases.iter().zip(&found) {
            case.check(found, &format!("{name}, side by side"));
        }
    }
}

#[test]
fn beam_search_and_greedy_equal_transformers_token_for_token_alone_and_side_by_side() {
    let text = std::fs::read_to_string(fixture("decoding/beams.json")).unwrap();
    let models: BTreeMap<String, Vec<Case>> = serde_json::from_str(&text).unwrap();
    assert!(models.len() >= 2);
    for (name, cases) in &models {
        check(&fixture(name), cases);
    }
}

#[test]
fn beam_search_by_hand_on_other_models() {
    let Some(folder) = std::env::var_os("SPEECHVERSE_BEAMS") else {
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let text = std::fs::read_to_string(folder.join("cases.json")).unwrap();
        check(&folder, &serde_json::from_str::<Vec<Case>>(&text).unwrap());
    }
}

#[test]
fn what_is_drawn_from_equals_transformers() {
    #[derive(Deserialize)]
    struct Warped {
        scores: Vec<f32>,
        temperature: f64,
        top_k: usize,
        top_p: f64,
        probabilities: Vec<f64>,
    }
    let text = std::fs::read_to_string(fixture("decoding/sampling.json")).unwrap();
    let cases: Vec<Warped> = serde_json::from_str(&text).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let sampling = Sampling {
            temperature: case.temperature,
            top_k: case.top_k,
            top_p: case.top_p,
            seed: 0,
        };
        let warped = warp(&Tensor::from_slice(&case.scores), &sampling).unwrap();
        let found = Vec::<f64>::try_from(warped.softmax(0, Kind::Double)).unwrap();
        for (found, expected) in found.iter().zip(&case.probabilities) {
            assert_eq!(*found > 0.0, *expected > 0.0, "{number}: another set is kept");
            assert!(
                (found - expected).abs() < 1e-6,
                "{number}: {found} for {expected}"
            );
        }
    }
    assert!(cases.len() > 40);
}
