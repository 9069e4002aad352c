//! Tests of the encoder: on a tiny random checkpoint made by `scripts/fixtures/whisper.py`, and on the real
//! ones where they have been fetched.

use super::*;
use crate::models::SpeechEncoder;
use crate::models::clips::SAMPLE_MAX;
use crate::models::tests::{fixture, largest, spoken_clip, tensors};
use crate::nn::accel::{DeviceChoice, PrecisionChoice};
use crate::testing::real_model;

/// Largest error allowed against the transformers library, relative to the largest magnitude of the state.
const TOLERANCE: f64 = 1e-4;

fn noise(samples: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.3
    };
    (0..samples).map(|_| next()).collect()
}

fn tiny(window: Window) -> WhisperEncoder {
    WhisperEncoder::load(&fixture("whisper_tiny"), window, &Placement::reference()).unwrap()
}

/// `max|a − b| / scale`.
fn error_to(found: &Tensor, right: &Tensor, scale: f64) -> f64 {
    assert_eq!(found.size(), right.size());
    (found - right).abs().max().double_value(&[]) / scale
}

/// `‖a − b‖ / ‖b‖`.
fn norm_error(found: &Tensor, right: &Tensor) -> f64 {
    (found - right).norm().double_value(&[]) / right.norm().double_value(&[])
}

#[test]
fn every_hidden_state_of_both_windows_equals_the_reference() {
    let expected = tensors(fixture("whisper_tiny/expected.safetensors"));
    for (window, frames) in [(Window::Padded, 100), (Window::Clip, 85)] {
        let encoder = tiny(window);

        let hidden = encoder.hidden_states(&[&spoken_clip()]).unwrap();

        assert_eq!(hidden.lengths, [frames]);
        assert_eq!(hidden.states.len(), 3);
        for (layer, state) in hidden.states.iter().enumerate() {
            let right = &expected[&format!("{window}.hidden.{layer}")];
            let worst = error_to(&state.get(0), right, largest(right));
            let norm = norm_error(&state.get(0), right);
            assert!(
                worst <= TOLERANCE && norm <= TOLERANCE,
                "{window} state {layer}: {worst:e}, {norm:e}"
            );
        }
    }
}

#[test]
fn the_front_end_equals_the_reference() {
    let expected = &tensors(fixture("whisper_tiny/expected.safetensors"))["mel"];
    let config = LogMelConfig::read(&fixture("whisper_tiny/preprocessor_config.json")).unwrap();

    let mel = LogMel::new(&config, Device::Cpu)
        .forward(&[&spoken_clip()], &[200])
        .unwrap();

    let error = error_to(&mel.get(0).narrow(1, 0, expected.size()[1]), expected, 1.0);
    assert!(error <= 1e-6, "{error:e}"); // both are computed in f64
}

#[test]
fn the_mixture_is_the_weighted_sum_of_the_hidden_states_row_by_row() {
    let encoder = tiny(Window::Clip);
    let (speech, short) = (spoken_clip(), noise(5_000, 3));
    let clips = [speech.as_slice(), &short];
    let mix = Tensor::from_slice2(&[[0.2_f32, -0.7, 1.5], [0.0, 0.0, 1.0]]);

    let encoded = encoder.encode(&clips, &mix).unwrap();

    let hidden = encoder.hidden_states(&clips).unwrap();
    let mixed = (0..3)
        .map(|l| &hidden.states[l as usize] * mix.select(1, l).view([2, 1, 1]))
        .sum::<Tensor>();
    assert_eq!(encoded.lengths, hidden.lengths);
    let error = error_to(&encoded.features, &mixed, largest(&mixed));
    assert!(error < 1e-6, "{error:e}");
    assert_eq!(
        error_to(&encoded.features.get(1), &hidden.states[2].get(1), 1.0),
        0.0
    );
}

#[test]
fn statistics_are_mean_and_deviation_of_each_states_valid_frames() {
    let encoder = tiny(Window::Clip);
    let (speech, short) = (spoken_clip(), noise(5_000, 3));
    let clips = [speech.as_slice(), &short];
    let mix = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));

    let found = encoder.encode(&clips, &mix).unwrap().statistics;

    let hidden = encoder.hidden_states(&clips).unwrap();
    assert!(largest(&(&found - hidden.statistics().unwrap())) < 1e-5);
    let width = encoder.info().width;
    assert_eq!(found.size(), [2, 3, 2 * width]);
    for (row, length) in (0i64..).zip(&hidden.lengths) {
        for (state, values) in (0i64..).zip([&hidden.states[0], &hidden.states[1], &hidden.last]) {
            let frames = values.get(row).narrow(0, 0, *length);
            let mean = frames.mean_dim([0i64].as_slice(), false, Kind::Float);
            let deviation = (&frames - &mean)
                .square()
                .mean_dim([0i64].as_slice(), false, Kind::Float)
                .sqrt();
            let of_state = found.get(row).get(state);
            assert!(largest(&(of_state.narrow(0, 0, width) - mean)) < 1e-5);
            assert!(largest(&(of_state.narrow(0, width, width) - deviation)) < 1e-4);
        }
    }
}

#[test]
fn a_clip_alone_and_in_a_ragged_batch_are_encoded_alike() {
    let encoder = tiny(Window::Clip);
    // A loud ending must not leak into neighbours, nor the neighbours' silence into it.
    let mut loud = noise(4_801, 5);
    loud[4_500..].fill(0.9);
    let clips = [spoken_clip(), loud, noise(1, 6), noise(32_000, 7), noise(320, 8)];
    let batch: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();

    let together = encoder.hidden_states(&batch).unwrap();

    assert_eq!(together.lengths, [85, 16, 1, 100, 1]);
    for (row, clip) in batch.iter().enumerate() {
        let alone = encoder.hidden_states(&[clip]).unwrap();
        let length = together.lengths[row];
        for (layer, state) in together.states.iter().enumerate() {
            let right = alone.states[layer].get(0);
            let error = error_to(
                &state.get(row as i64).narrow(0, 0, length),
                &right,
                largest(&right),
            );
            assert!(error <= 1e-5, "row {row}, state {layer}: {error:e}");
            let beyond = state.get(row as i64).narrow(0, length, 100 - length);
            assert!(
                length == 100 || largest(&beyond) == 0.0,
                "row {row}, state {layer}"
            );
        }
    }
}

#[test]
fn in_the_padded_window_every_clip_has_all_frames_and_rows_do_not_mix() {
    let encoder = tiny(Window::Padded);
    let (speech, short) = (spoken_clip(), noise(100, 9));

    let together = encoder.hidden_states(&[&speech, &short]).unwrap();

    assert_eq!(together.lengths, [100, 100]);
    let alone = encoder.hidden_states(&[&short]).unwrap();
    let error = error_to(
        &together.states[2].get(1),
        &alone.states[2].get(0),
        largest(&alone.states[2]),
    );
    assert!(error <= 1e-5, "{error:e}");
}

#[test]
fn bf16_stays_near_f32_alone_and_in_a_ragged_batch() {
    let placement = Placement::resolve(DeviceChoice::Cpu, PrecisionChoice::Bf16).unwrap();
    let encoder = WhisperEncoder::load(&fixture("whisper_tiny"), Window::Clip, &placement).unwrap();
    let (speech, short) = (spoken_clip(), noise(5_000, 3));
    let clips = [speech.as_slice(), &short];
    let mix = Tensor::from_slice2(&[[0.3_f32, 0.3, 0.4]; 2]);

    let encoded = encoder.encode(&clips, &mix).unwrap();

    assert_eq!(encoded.features.kind(), Kind::BFloat16);
    let right = tiny(Window::Clip).encode(&clips, &mix).unwrap();
    let error = norm_error(&encoded.features.to_kind(Kind::Float), &right.features);
    assert!(error < 0.03, "{error:e}");
}

#[test]
fn a_batch_that_cannot_be_encoded_says_which_clip_and_why() {
    let encoder = tiny(Window::Clip);
    let good = noise(1_000, 1);
    let long = vec![0.0; 32_001];
    let sick = [0.0, f32::NAN];
    let endless = [f32::INFINITY];
    let absurd = [0.0, 0.0, -1e30];
    let cases: [(&[f32], &str); 5] = [
        (&[], "clip 1 of the batch has no samples"),
        (&long, "32001 samples, the model's window holds 32000"),
        (&sick, "NaN at position 1"),
        (&endless, "inf at position 0"),
        (&absurd, "at position 2"),
    ];
    for (clip, words) in cases {
        let message = encoder.hidden_states(&[&good, clip]).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    assert!(matches!(encoder.hidden_states(&[]), Err(ModelError::EmptyBatch)));
    let three_states_for_two_rows = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
    let error = encoder.encode(&[&good], &three_states_for_two_rows).unwrap_err();
    assert!(matches!(error, ModelError::Shape { .. }), "{error}");
}

#[test]
fn the_loudest_admitted_samples_still_give_finite_features() {
    let encoder = tiny(Window::Clip);
    let loud = vec![SAMPLE_MAX; 1_000];

    let hidden = encoder.hidden_states(&[&loud]).unwrap();

    assert_eq!(hidden.states[2].isfinite().all().int64_value(&[]), 1);
}

#[test]
fn a_checkpoint_that_lacks_a_tensor_or_has_a_strange_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(fixture("whisper_tiny").join(file), dir.path().join(file)).unwrap();
    }
    let mut tensors = Tensor::read_safetensors(fixture("whisper_tiny/model.safetensors")).unwrap();
    for (name, _) in &mut tensors {
        if name == "model.encoder.layers.1.fc1.bias" {
            *name = "model.encoder.layers.1.fc9.bias".to_owned();
        }
    }
    Tensor::write_safetensors(&tensors, dir.path().join("model.safetensors")).unwrap();

    let error = WhisperEncoder::load(dir.path(), Window::Clip, &Placement::reference()).unwrap_err();

    let message = error.to_string();
    assert!(
        message.contains("missing from the checkpoint: `model.encoder.layers.1.fc1.bias`"),
        "{message}"
    );
    assert!(
        message.contains("unexpected in the checkpoint: `model.encoder.layers.1.fc9.bias`"),
        "{message}"
    );
}

#[test]
fn the_probe_names_every_state_and_the_last_one_twice() {
    let named =
        crate::models::probe::encoder(&fixture("whisper_tiny"), &spoken_clip(), Window::Padded).unwrap();

    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["hidden.0", "hidden.1", "hidden.2", "last"]);
    assert_eq!(named[3].1.size(), [100, 48]);
    assert_eq!(error_to(&named[2].1, &named[3].1, 1.0), 0.0);
}

fn real_checkpoint_equals_reference(test: &str, model: &str, layers: i64, fixture_file: &str) {
    let Some(dir) = real_model(test, model) else {
        return;
    };
    let expected = tensors(fixture(fixture_file));
    for window in [Window::Padded, Window::Clip] {
        let encoder = WhisperEncoder::load(&dir, window, &Placement::reference()).unwrap();

        let hidden = encoder.hidden_states(&[&spoken_clip()]).unwrap();

        assert_eq!(hidden.states.len() as i64, layers + 1);
        let frames = &expected[&format!("{window}.frames")];
        for (layer, state) in hidden.states.iter().enumerate() {
            let right = &expected[&format!("{window}.hidden.{layer}")];
            let scale = expected[&format!("{window}.max.{layer}")].double_value(&[0]);
            let sampled = state.get(0).index_select(0, frames).slice(1, None, None, 4);
            let error = error_to(&sampled, right, scale);
            assert!(error <= TOLERANCE, "{model}, {window}, state {layer}: {error:e}");
        }
    }
}

#[test]
fn the_real_whisper_base_equals_the_reference() {
    let test = "the_real_whisper_base_equals_the_reference";
    real_checkpoint_equals_reference(test, "whisper-base", 6, "whisper_base.safetensors");
}

#[test]
fn the_real_whisper_tiny_en_equals_the_reference() {
    let test = "the_real_whisper_tiny_en_equals_the_reference";
    real_checkpoint_equals_reference(test, "whisper-tiny.en", 4, "whisper_tiny.en.safetensors");
}
