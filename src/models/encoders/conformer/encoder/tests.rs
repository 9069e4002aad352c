//! Tests of the frozen encoder, on tiny random folders made by `scripts/fixtures/conformer.py`.

use super::*;
use crate::models::adapter::AdapterConfig;
use crate::models::config::AdapterSettings;
use crate::models::encoders::conformer::{ConvNorm, Normalization, Quantizer, parameter_count};
use crate::models::tests::{fixture, largest, spoken_clip, tensors};
use crate::models::{HiddenStates, LanguageModelInfo, SpeechEncoder};

/// Largest error allowed against the transformers library, relative to the largest magnitude of the state.
const TOLERANCE: f64 = 1e-4;
/// Largest difference allowed between a clip alone and in a padded batch, relative to the state's magnitude
/// where that is above 1.
const ALONE: f64 = 1e-5;

fn noise(samples: usize, seed: u64) -> Vec<f32> {
    let mut random = crate::util::random::SplitMix::new(&[seed]);
    (0..samples).map(|_| random.between(-0.3, 0.3) as f32).collect()
}

fn open(name: &str) -> ConformerEncoder {
    ConformerEncoder::load(&fixture(name), &Placement::reference()).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    largest(&(a - b))
}

const FOLDERS: [&str; 2] = ["conformer_layer", "conformer_batch"];

#[test]
fn every_hidden_state_equals_the_library_s() {
    for folder in FOLDERS {
        let right = tensors(fixture(&format!("{folder}/expected.safetensors")));

        let HiddenStates {
            states,
            last,
            lengths,
        } = open(folder).hidden_states(&[&spoken_clip()]).unwrap();

        assert_eq!((states.len(), lengths[0]), (3, 42));
        let names = ["hidden.0", "hidden.1", "hidden.2", "last"];
        for (name, state) in names.into_iter().zip(states.iter().chain([&last])) {
            let error = difference(&state.get(0), &right[name]) / largest(&right[name]);
            assert!(error < TOLERANCE, "{folder} {name}: {error}");
        }
    }
}

#[test]
fn mel_frames_equal_librosa_s_and_their_normalisation_numpy_s() {
    let clip = spoken_clip();
    let mel = crate::audio::mel_frames::MelFrames::new(80, Device::Cpu)
        .forward(&[&clip])
        .unwrap()
        .get(0);
    for folder in FOLDERS {
        let right = tensors(fixture(&format!("{folder}/expected.safetensors")));

        let features = open(folder).front_end.forward(&[&clip]).unwrap().values.get(0);

        for (name, found) in [("mel", &mel), ("features", &features)] {
            let found = found.slice(0, 0, None, 5);
            assert!(
                difference(&found, &right[name]) / largest(&right[name]) < TOLERANCE,
                "{folder} {name}"
            );
        }
    }
}

#[test]
fn labels_equal_those_that_numpy_finds_by_distance() {
    let right = tensors(fixture("conformer_quantizer.safetensors"));
    let quantizer = Quantizer::from_tensors(&right["projections"], &right["codebooks"], Device::Cpu);

    let labels = quantizer.codes(&right["features"].unsqueeze(0)).unwrap();

    assert!(labels.get(0).equal(&right["labels"].to_kind(Kind::Int64)));
}

#[test]
fn a_clip_alone_and_in_a_padded_batch_agree_on_every_state() {
    // One sample, less than a window, odd frame counts before and after each stride, speech, and a constant.
    let clips = [
        spoken_clip(),
        noise(1, 1),
        noise(399, 2),
        noise(560, 3),
        noise(720, 4),
        noise(1_040, 5),
        noise(9_777, 6),
        vec![0.0; 5_000],
        noise(40_000, 7),
    ];
    for folder in FOLDERS {
        let encoder = open(folder);
        let batch: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();

        let together = encoder.hidden_states(&batch).unwrap();

        for (row, clip) in batch.iter().enumerate() {
            let alone = encoder.hidden_states(&[clip]).unwrap();
            let length = alone.lengths[0];
            assert_eq!(
                (together.lengths[row], encoder.frames(clip.len())),
                (length, length)
            );
            let states = |found: &HiddenStates| -> Vec<Tensor> {
                let all = found.states.iter().chain([&found.last]);
                all.map(Tensor::shallow_clone).collect()
            };
            for (layer, (one, many)) in states(&alone).iter().zip(states(&together)).enumerate() {
                let many = many.get(row as i64);
                let found = difference(&many.narrow(0, 0, length), &one.get(0)) / largest(one).max(1.0);
                assert!(found < ALONE, "{folder}: clip {row}, state {layer}: {found}");
                let beyond = many.narrow(0, length, many.size()[0] - length);
                assert!(beyond.numel() == 0 || largest(&beyond) == 0.0);
            }
        }
    }
}

#[test]
fn a_mixture_is_the_weighted_sum_of_the_states_row_by_row() {
    let encoder = open("conformer_layer");
    let (long, short) = (noise(20_000, 1), noise(7_000, 2));
    let mix = Tensor::from_slice(&[0.5_f32, -1.0, 2.0, 1.0, 0.25, 0.0]).view([2, 3]);

    let encoded = encoder.encode(&[&long, &short], &mix).unwrap();

    let HiddenStates {
        states,
        last,
        lengths,
    } = encoder.hidden_states(&[&long, &short]).unwrap();
    let weights = mix.view([2, 3, 1, 1]);
    // The output, final norm applied, is what stands for state L.
    let sum =
        &states[0] * weights.select(1, 0) + &states[1] * weights.select(1, 1) + last * weights.select(1, 2);
    assert_eq!(encoded.lengths, lengths);
    assert!(difference(&encoded.features, &sum) < 1e-5);
    assert!(encoder.encode(&[&long], &mix).is_err());
}

#[test]
fn bfloat16_stays_near_single_precision() {
    let placement = Placement {
        precision: crate::nn::accel::Precision::Bf16,
        ..Placement::reference()
    };
    let half = ConformerEncoder::load(&fixture("conformer_layer"), &placement).unwrap();
    let clips: [&[f32]; 2] = [&spoken_clip(), &noise(9_000, 1)];

    let last = |encoder: &ConformerEncoder| encoder.hidden_states(&clips).unwrap().last;
    let (found, right) = (last(&half).to_kind(Kind::Float), last(&open("conformer_layer")));

    let error = (&found - &right).norm().double_value(&[]) / right.norm().double_value(&[]);
    assert!(error < 0.05, "{error}");
}

#[test]
fn what_cannot_be_encoded_is_refused_with_its_reason() {
    let encoder = open("conformer_layer");
    let most = encoder.info().max_samples.unwrap();
    assert_eq!((encoder.frames(most), encoder.frames(most + 1)), (1500, 1501));
    let long = vec![0.0; most + 1];
    for (clips, words) in [
        (vec![], "the batch is empty"),
        (vec![&[][..]], "has no samples"),
        (vec![&[0.1, f32::NAN][..]], "at position 1"),
        (vec![&[0.1][..], &[f32::INFINITY][..]], "clip 1"),
        (vec![long.as_slice()], "cut it into windows"),
    ] {
        let message = encoder.hidden_states(&clips).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_folder_of_another_shape_is_refused_with_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("conformer_layer");
    std::fs::copy(
        source.join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    for (from, to, parts) in [
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            ["missing", "encoder.layers.2.ffn1.intermediate_dense.weight"],
        ),
        (
            "\"conv_norm\": \"layer\"",
            "\"conv_norm\": \"batch\"",
            ["unexpected", "batch_norm.running_mean"],
        ),
        (
            "\"num_mel_bins\": 80",
            "\"num_mel_bins\": 64",
            ["misshapen", "subsampler.conv_layers.0.weight"],
        ),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(folder.path().join("config.json"), text.replace(from, to)).unwrap();
        let message = ConformerEncoder::load(folder.path(), &Placement::reference())
            .unwrap_err()
            .to_string();
        for part in parts {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn the_paper_s_shape_has_about_300_million_parameters() {
    let paper = ConformerConfig::default();
    assert_eq!(
        (
            paper.num_hidden_layers,
            paper.hidden_size,
            paper.num_attention_heads
        ),
        (24, 768, 8)
    );

    assert_eq!(parameter_count(&paper), 307_398_656);
    let wide = ConformerConfig {
        intermediate_size: 3072,
        ..paper.clone()
    };
    assert_eq!(parameter_count(&wide), 345_171_968);
    let counted: i64 = Tensor::read_safetensors(fixture("conformer_layer/model.safetensors"))
        .unwrap()
        .iter()
        .map(|(_, tensor)| tensor.numel() as i64)
        .sum();
    let tiny = ConformerConfig::read(&fixture("conformer_layer/config.json")).unwrap();
    assert_eq!(parameter_count(&tiny), counted);
}

/// The paper's BEST-RQ variant trains 26,751,000 numbers: the joint, counted here, and 9,437,184 of LoRA (r =
/// 16, two projections in each of 72 attention blocks of 2048 × 2048).
#[test]
fn the_joint_over_this_encoder_has_the_paper_s_count() {
    let encoder = EncoderInfo {
        layers: 24,
        width: 768,
        frames_per_second: FRAMES_PER_SECOND,
        max_samples: None,
    };
    let flan_t5_xl = LanguageModelInfo {
        width: 2048,
        vocab: 32_128,
        layers: 24,
        max_positions: 1 << 20,
    };
    let joint = AdapterConfig::new(&AdapterSettings::default(), &encoder, &flan_t5_xl).unwrap();

    assert_eq!(joint.strides, [2, 1]);
    assert_eq!(joint.parameter_count() + 9_437_184, 26_751_000);
}

#[test]
fn fixtures_cover_both_norms_and_both_normalisations() {
    let [layer, batch] =
        FOLDERS.map(|name| ConformerConfig::read(&fixture(name).join("config.json")).unwrap());

    assert_eq!(
        (layer.conv_norm, layer.normalize),
        (ConvNorm::Layer, Normalization::Utterance)
    );
    assert_eq!(
        (batch.conv_norm, batch.normalize),
        (ConvNorm::Batch, Normalization::Global)
    );
}
