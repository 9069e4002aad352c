use std::collections::BTreeMap;

use tch::{Device, Tensor};

use super::*;
use crate::inference::{DecodeOptions, windows};
use crate::models::adapter::{AdapterConfig, SpeechAdapter};
use crate::models::config::AdapterSettings;
use crate::models::encoders::whisper::Window;
use crate::models::{Encoded, EncoderInfo, HiddenStates, open_encoder};
use crate::nn::accel::Placement;
use crate::testing::TinyModels;

/// Samples that make [`FailingEncoder`] panic.
const BAD: f32 = -0.75;

/// A tiny Whisper with a window of a second that panics at a clip that begins with [`BAD`].
struct FailingEncoder(Box<dyn SpeechEncoder>);

impl SpeechEncoder for FailingEncoder {
    fn info(&self) -> EncoderInfo {
        EncoderInfo {
            max_samples: Some(16_000),
            ..self.0.info()
        }
    }

    fn frames(&self, samples: usize) -> i64 {
        self.0.frames(samples)
    }

    fn hidden_states(&self, clips: &[&[f32]]) -> Result<HiddenStates, crate::models::ModelError> {
        self.0.hidden_states(clips)
    }

    fn encode_while(
        &self,
        clips: &[&[f32]],
        mix: &Tensor,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Encoded, crate::models::ModelError> {
        assert!(
            clips
                .iter()
                .all(|clip| clip.len() <= 16_000 && clip.first() != Some(&BAD)),
            "on purpose"
        );
        self.0.encode_while(clips, mix, wanted)
    }
}

/// Counts the clips that reach it.
struct CountingEncoder(Box<dyn SpeechEncoder>, std::cell::Cell<usize>);

impl SpeechEncoder for CountingEncoder {
    fn info(&self) -> EncoderInfo {
        self.0.info()
    }

    fn frames(&self, samples: usize) -> i64 {
        self.0.frames(samples)
    }

    fn hidden_states(&self, clips: &[&[f32]]) -> Result<HiddenStates, crate::models::ModelError> {
        self.0.hidden_states(clips)
    }

    fn encode_while(
        &self,
        clips: &[&[f32]],
        mix: &Tensor,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Encoded, crate::models::ModelError> {
        self.1.set(self.1.get() + clips.len());
        self.0.encode_while(clips, mix, wanted)
    }
}

fn engine(models: &TinyModels, slots: usize) -> (Engine, AdapterSnapshot) {
    let placement = Placement::reference();
    let encoder = open_encoder(&models.encoder, Window::Clip, &placement).unwrap();
    let llm = SpeechLlm::open(&models.llm, Some(""), &placement).unwrap();
    let sizes = AdapterConfig::new(&AdapterSettings::default(), &encoder.info(), &llm.llm().info()).unwrap();
    let adapter = SpeechAdapter::new(sizes, 0.3, 3, Device::Cpu)
        .unwrap()
        .snapshot("one")
        .unwrap();
    let config = EngineConfig::offline(slots, DecodeOptions::greedy(12));
    let encoder: Box<dyn SpeechEncoder> = Box::new(FailingEncoder(encoder));
    (Engine::new(encoder, llm, &config), adapter)
}

/// A tone; the number is its pitch.
fn clip(number: usize, samples: usize) -> Vec<f32> {
    let pitch = 0.03 + 0.02 * number as f32;
    (0..samples).map(|at| (at as f32 * pitch).sin() * 0.4).collect()
}

fn request(samples: Vec<f32>, adapter: &AdapterSnapshot) -> GenerateRequest {
    GenerateRequest {
        input: Input::Audio {
            samples,
            adapter: adapter.clone(),
        },
        instruction: "Transcribe the speech.".to_owned(),
        grammar: None,
        tokens_max: None,
        task: None,
        spoken: None,
        joint: None,
    }
}

#[test]
fn requests_answered_together_get_the_answers_that_each_gets_alone_long_ones_too() {
    let folder = tempfile::tempdir().unwrap();
    let models = TinyModels::write(folder.path(), 7);
    let (mut together, adapter) = engine(&models, 4);
    // The longest takes three windows, more than a batch of two would hold.
    let lengths = [4_000, 40_000, 9_000, 16_000, 33_000];
    let clips: Vec<Vec<f32>> = (0..5).map(|number| clip(number, lengths[number])).collect();

    let found = together.generate(clips.iter().map(|clip| request(clip.clone(), &adapter)).collect());

    for (clip, found) in clips.iter().zip(&found) {
        let (mut alone, adapter) = engine(&models, 1);
        let alone = alone.generate(vec![request(clip.clone(), &adapter)]).remove(0);
        let (found, alone) = (found.as_ref().unwrap(), alone.unwrap());
        assert_eq!(found.text, alone.text);
        assert_eq!(found.generation.ids, alone.generation.ids);
        assert!((found.generation.score() - alone.generation.score()).abs() < 1e-4);
    }
}

#[test]
fn sound_that_makes_the_encoder_panic_ends_its_own_request() {
    let folder = tempfile::tempdir().unwrap();
    let (mut engine, adapter) = engine(&TinyModels::write(folder.path(), 7), 4);
    let mut clips: Vec<Vec<f32>> = (0..4).map(|number| clip(number, 5_000)).collect();
    clips[1][0] = BAD;
    clips[2].clear();

    let ids: Vec<RequestId> = clips
        .into_iter()
        .map(|clip| engine.add_request(request(clip, &adapter)))
        .collect();
    let mut ended = BTreeMap::new();
    while engine.has_unfinished() {
        for event in engine.step() {
            let (id, outcome) = match event {
                Event::Token { .. } => continue,
                Event::Finished { id, .. } => (id, None),
                Event::Failed { id, error } => (id, Some(error.to_string())),
            };
            assert!(ended.insert(id, outcome).is_none(), "one outcome each");
        }
    }

    assert!(ended[&ids[0]].is_none() && ended[&ids[3]].is_none());
    assert!(ended[&ids[1]].as_ref().unwrap().contains("on purpose"));
    assert!(ended[&ids[2]].as_ref().unwrap().contains("no samples"));
}

#[test]
fn a_request_that_waits_for_the_encoder_can_be_aborted() {
    let folder = tempfile::tempdir().unwrap();
    let (mut engine, adapter) = engine(&TinyModels::write(folder.path(), 7), 1);
    let first = engine.add_request(request(clip(0, 5_000), &adapter));
    let second = engine.add_request(request(clip(1, 5_000), &adapter));
    engine.step();

    assert!(engine.abort(second) && !engine.abort(second) && engine.abort(first));

    assert!(!engine.has_unfinished());
}

#[test]
fn a_warm_up_runs_both_networks() {
    let folder = tempfile::tempdir().unwrap();
    let (mut engine, adapter) = engine(&TinyModels::write(folder.path(), 7), 2);

    engine.warm_up(&adapter).unwrap();

    assert!(!engine.has_unfinished());
    // A version of other networks is found out before the first request.
    let strange = EncoderInfo {
        width: 8,
        layers: 2,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let llm = engine.generator().model().llm().info();
    let sizes = AdapterConfig::new(&AdapterSettings::default(), &strange, &llm).unwrap();
    let strange = SpeechAdapter::new(sizes, 0.3, 3, Device::Cpu).unwrap();
    let strange = strange.snapshot("strange").unwrap();
    let features = engine.extractor().extract(&[Clip {
        samples: &clip(0, 4_000),
        adapter: &strange,
    }]);
    let found = engine.generator();
    found.add_request(GenerateRequest {
        input: Input::Features {
            features: features.into_iter().next().unwrap().unwrap(),
            adapter: strange,
        },
        ..request(Vec::new(), &adapter)
    });
    assert!(matches!(found.step()[..], [Event::Failed { .. }]));
}

#[test]
fn hidden_states_of_a_long_clip_are_those_of_its_windows_joined() {
    let folder = tempfile::tempdir().unwrap();
    let models = TinyModels::write(folder.path(), 7);
    let encoder = open_encoder(&models.encoder, Window::Clip, &Placement::reference()).unwrap();
    let encoder = FailingEncoder(encoder);
    let (long, short) = (clip(1, 40_000), clip(2, 8_000));

    let found = crate::inference::hidden_states(&encoder, &[&long, &short]).unwrap();

    let alone = encoder.hidden_states(&[&short]).unwrap();
    assert_eq!(found.lengths[1], alone.lengths[0]);
    let mut start = 0;
    for range in windows(long.len(), Some(16_000)) {
        let part = encoder.hidden_states(&[&long[range]]).unwrap();
        let frames = part.lengths[0];
        for (all, part) in found
            .states
            .iter()
            .chain([&found.last])
            .zip(part.states.iter().chain([&part.last]))
        {
            let error = (all.get(0).narrow(0, start, frames) - part.get(0).narrow(0, 0, frames))
                .abs()
                .max();
            assert!(error.double_value(&[]) < 1e-4);
        }
        start += frames;
    }
    assert_eq!(found.lengths[0], start);
}

#[test]
fn features_of_a_long_clip_are_those_of_its_windows_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, adapter) = engine(&TinyModels::write(folder.path(), 7), 2);
    let samples = clip(1, 40_000);
    let extractor = engine.extractor();

    let found = extractor.extract(&[Clip {
        samples: &samples,
        adapter: &adapter,
    }]);

    let found = found.into_iter().next().unwrap().unwrap();
    let placement = Placement::reference();
    let encoder = open_encoder(
        &TinyModels::write(folder.path(), 7).encoder,
        Window::Clip,
        &placement,
    )
    .unwrap();
    let hidden = crate::inference::hidden_states(&FailingEncoder(encoder), &[&samples]).unwrap();
    assert_eq!(found.frames.size()[0], hidden.lengths[0]);
    let difference = found.statistics - hidden.statistics().unwrap().get(0);
    assert!(difference.abs().max().double_value(&[]) < 1e-4);
}

#[test]
fn a_clip_that_was_encoded_before_is_not_encoded_again_and_has_the_same_features() {
    let folder = tempfile::tempdir().unwrap();
    let models = TinyModels::write(folder.path(), 7);
    let placement = Placement::reference();
    let (_, adapter) = engine(&models, 1);
    let counting = CountingEncoder(
        open_encoder(&models.encoder, Window::Clip, &placement).unwrap(),
        std::cell::Cell::new(0),
    );
    let extractor = FeatureExtractor::<&dyn SpeechEncoder>::new(&counting, 4).with_cache(1 << 20);
    let (first, second) = (clip(1, 9_000), clip(2, 5_000));
    let of = |samples| Clip {
        samples,
        adapter: &adapter,
    };
    let before: Vec<_> = extractor
        .extract(&[of(&first)])
        .into_iter()
        .map(Result::unwrap)
        .collect();

    let found: Vec<_> = (extractor.extract(&[of(&second), of(&first), of(&second[..4_000])]))
        .into_iter()
        .map(Result::unwrap)
        .collect();

    assert_eq!(counting.1.get(), 3);
    assert_eq!(found[1].frames, before[0].frames);
    assert_eq!(found[1].statistics, before[0].statistics);
    assert_ne!(found[0].frames.size(), found[2].frames.size());
}

#[test]
fn features_that_are_no_longer_wanted_are_given_up_before_the_next_layer() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, adapter) = engine(&TinyModels::write(folder.path(), 7), 1);
    let samples: Vec<f32> = (0..8_000).map(|at| (at as f32 * 0.05).sin() * 0.3).collect();
    let clip = Clip {
        samples: &samples,
        adapter: &adapter,
    };
    let asked = std::cell::Cell::new(0);
    let for_so_many = |layers: usize| {
        asked.set(0);
        let wanted = || {
            asked.set(asked.get() + 1);
            asked.get() <= layers
        };
        engine.extractor().extract_while(clip, &wanted).unwrap()
    };

    assert!(for_so_many(0).is_none());
    assert_eq!(asked.get(), 1);
    assert!(for_so_many(1).is_none());
    assert_eq!(asked.get(), 2);
    let whole = for_so_many(99).unwrap();
    let expected = engine.extractor().extract(&[clip]).remove(0).unwrap();
    assert_eq!(whole.frames, expected.frames);
}
