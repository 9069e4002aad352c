//! Tests of the encoders on tiny random models made by `scripts/fixtures/wavlm.py`, which between them take
//! every branch.

use super::*;
use crate::models::adapter::AdapterConfig;
use crate::models::clips::SAMPLE_MAX;
use crate::models::config::AdapterSettings;
use crate::models::encoders::whisper::Window;
use crate::models::tests::{fixture, largest, relative_error, spoken_clip, tensors};
use crate::models::{HiddenStates, SpeechEncoder};
use crate::models::{LanguageModelInfo, open_encoder};
use crate::nn::accel::{DeviceChoice, PrecisionChoice};

/// Largest error allowed against the transformers library, relative to the largest magnitude of the state.
const TOLERANCE: f64 = 1e-4;
const MODELS: [&str; 6] = [
    "wavlm_base",
    "wavlm_large",
    "hubert_base",
    "hubert_large",
    "wav2vec2_base",
    "wav2vec2_odd",
];
/// Of the long clip every so many frames are in the fixture.
const FRAME_STEP: i64 = 23;

fn tiny(name: &str) -> WavEncoder {
    WavEncoder::load(&fixture("wavlm").join(name), &Placement::reference()).unwrap()
}

/// As `noise` of the fixture script.
fn noise(samples: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..samples)
        .map(|index| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            value * ((1 + index / 4000 % 8) as f32 / 8.0)
        })
        .collect()
}

/// Speech, a short noise, and one of 21 s: 1062 frames, beyond the last distance bucket and more than one
/// block of biased queries.
fn clips() -> [Vec<f32>; 3] {
    [spoken_clip(), noise(9_001, 7), noise(340_000, 11)]
}

/// States 0 to L and the output, the valid frames of one row.
fn row(hidden: &HiddenStates, row: usize) -> Vec<Tensor> {
    let valid = |state: &Tensor| state.get(row as i64).narrow(0, 0, hidden.lengths[row]);
    hidden.states.iter().chain([&hidden.last]).map(valid).collect()
}

#[test]
fn every_state_of_every_model_equals_the_reference_alone_and_in_a_ragged_batch() {
    let clips = clips();
    let batch: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();
    for model in MODELS {
        let encoder = tiny(model);
        let expected = tensors(fixture("wavlm").join(model).join("expected.safetensors"));

        let together = encoder.hidden_states(&batch).unwrap();

        assert_eq!(together.lengths, [84, 27, 1062], "{model}");
        for (clip, samples) in batch.iter().enumerate() {
            let alone = row(&encoder.hidden_states(&[samples]).unwrap(), 0);
            let beside = row(&together, clip);
            assert_eq!(alone.len(), 5);
            for (layer, (alone, beside)) in alone.iter().zip(&beside).enumerate() {
                let label = if layer == 4 {
                    "last".to_owned()
                } else {
                    format!("hidden.{layer}")
                };
                let right = &expected[&format!("{clip}.{label}")];
                let step = if clip == 2 { FRAME_STEP } else { 1 };
                let error = relative_error(&alone.slice(0, None, None, step), right);
                assert!(error <= TOLERANCE, "{model}, clip {clip}, {label}: {error:e}");
                let error = relative_error(beside, alone);
                assert!(
                    error <= 1e-5,
                    "{model}, clip {clip} in a batch, {label}: {error:e}"
                );
            }
        }
        for state in together.states.iter().chain([&together.last]) {
            assert_eq!(largest(&state.get(1).narrow(0, 27, 1062 - 27)), 0.0, "{model}");
        }
    }
}

#[test]
fn the_output_differs_from_the_last_state_exactly_where_the_network_is_pre_norm() {
    let clip = spoken_clip();
    for model in MODELS {
        let hidden = tiny(model).hidden_states(&[&clip]).unwrap();

        let same = largest(&(&hidden.states[3] - &hidden.last)) == 0.0;

        assert_eq!(same, !model.ends_with("large"), "{model}");
    }
}

#[test]
fn the_mixture_is_the_weighted_sum_with_the_output_in_place_l_row_by_row() {
    for model in ["wavlm_base", "wavlm_large"] {
        let encoder = tiny(model);
        let (speech, short) = (spoken_clip(), noise(5_000, 3));
        let clips = [speech.as_slice(), &short];
        let mix = Tensor::from_slice2(&[[0.2_f32, -0.7, 1.5, 0.4], [0.0, 0.0, 0.0, 1.0]]);

        let encoded = encoder.encode(&clips, &mix).unwrap();

        let hidden = encoder.hidden_states(&clips).unwrap();
        let mixed = hidden.states[..3]
            .iter()
            .chain([&hidden.last])
            .enumerate()
            .map(|(l, state)| state * mix.select(1, l as i64).view([2, 1, 1]))
            .sum::<Tensor>();
        assert_eq!(encoded.lengths, hidden.lengths);
        assert!(relative_error(&encoded.features, &mixed) < 1e-6);
        assert_eq!(largest(&(encoded.features.get(1) - hidden.last.get(1))), 0.0);
    }
}

#[test]
fn a_mixture_of_nothing_is_zero() {
    let mix = Tensor::zeros([1, 4], (Kind::Float, Device::Cpu));

    let encoded = tiny("wavlm_base").encode(&[&spoken_clip()], &mix).unwrap();

    assert_eq!(encoded.features.size(), [1, 84, 32]);
    assert_eq!(largest(&encoded.features), 0.0);
}

/// A copy of a fixture whose tensors are renamed, left out (`None`) or changed.
fn altered(model: &str, alter: impl Fn(&str, Tensor) -> Option<(String, Tensor)>) -> tempfile::TempDir {
    let (from, dir) = (fixture("wavlm").join(model), tempfile::tempdir().unwrap());
    for file in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    let tensors: Vec<(String, Tensor)> = Tensor::read_safetensors(from.join("model.safetensors"))
        .unwrap()
        .into_iter()
        .filter_map(|(name, tensor)| alter(&name, tensor))
        .collect();
    Tensor::write_safetensors(&tensors, dir.path().join("model.safetensors")).unwrap();
    dir
}

/// How a checkpoint calls a tensor.
type TokenBytes<'a> = dyn Fn(&str) -> String + 'a;

#[test]
fn old_weight_norm_names_and_checkpoints_with_and_without_prefix_load_alike() {
    let clip = spoken_clip();
    let old = |name: &str| {
        name.replace("parametrizations.weight.original0", "weight_g")
            .replace("parametrizations.weight.original1", "weight_v")
    };
    for model in MODELS {
        let right = tiny(model).hidden_states(&[&clip]).unwrap();
        let dtype = model.split('_').next().unwrap();
        let prefix = format!("{dtype}.");
        let spellings: [Box<TokenBytes<'_>>; 3] = [
            Box::new(old),
            Box::new(|name| name.strip_prefix(&prefix).unwrap_or(name).to_owned()),
            Box::new(|name| {
                let known = ["feature_", "encoder.", "masked_"];
                if known.iter().any(|start| name.starts_with(start)) {
                    format!("{prefix}{}", old(name))
                } else {
                    name.to_owned()
                }
            }),
        ];
        for spelling in spellings {
            let dir = altered(model, |name, tensor| Some((spelling(name), tensor)));

            let encoder = WavEncoder::load(dir.path(), &Placement::reference()).unwrap();

            let found = encoder.hidden_states(&[&clip]).unwrap();
            assert_eq!(largest(&(&found.last - &right.last)), 0.0, "{model}");
        }
    }
}

#[test]
fn heads_and_quantizers_are_known_and_anything_else_is_refused_together_with_what_is_missing() {
    let held = Checkpoint::open(fixture("wavlm/wav2vec2_base")).unwrap();
    assert!(held.contains("quantizer.codevectors") && held.contains("project_hid.weight"));
    assert!(held.contains("wav2vec2.masked_spec_embed"));
    let dir = altered("wavlm_large", |name, tensor| match name {
        "wavlm.encoder.layers.1.feed_forward.output_dense.bias" => {
            Some((name.replace("output_dense", "strange"), tensor))
        }
        "wavlm.encoder.layers.2.attention.q_proj.weight" => Some((name.to_owned(), tensor.narrow(0, 0, 31))),
        "wavlm.encoder.layers.0.layer_norm.weight" => Some((name.to_owned(), tensor.to_kind(Kind::Int))),
        _ => Some((name.to_owned(), tensor)),
    });

    let error = WavEncoder::load(dir.path(), &Placement::reference()).unwrap_err();

    let message = error.to_string();
    for words in [
        "missing from the checkpoint: `wavlm.encoder.layers.1.feed_forward.output_dense.bias`",
        "unexpected in the checkpoint: `wavlm.encoder.layers.1.feed_forward.strange.bias`",
        "`wavlm.encoder.layers.2.attention.q_proj.weight` has shape [31, 32]",
        "`wavlm.encoder.layers.0.layer_norm.weight` is I32",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[test]
fn a_wrong_type_alone_is_refused_too() {
    let dir = altered("hubert_large", |name, tensor| {
        let wrong = name == "encoder.pos_conv_embed.conv.parametrizations.weight.original1";
        let dtype = if wrong { Kind::Int } else { Kind::Float };
        Some((name.to_owned(), tensor.to_kind(dtype)))
    });

    let message = WavEncoder::load(dir.path(), &Placement::reference())
        .unwrap_err()
        .to_string();

    assert!(message.contains("original1` is I32"), "{message}");
}

#[test]
fn a_config_that_claims_giant_shapes_costs_no_memory() {
    let dir = altered("wavlm_base", |name, tensor| Some((name.to_owned(), tensor)));
    let path = dir.path().join("config.json");
    let mut lie: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", 1 << 14),
        ("num_hidden_layers", 256),
        ("num_conv_pos_embeddings", 1 << 12),
        ("num_conv_pos_embedding_groups", 1),
        ("num_attention_heads", 1),
    ] {
        lie[key] = value.into();
    }
    std::fs::write(&path, lie.to_string()).unwrap();

    let error = WavEncoder::load(dir.path(), &Placement::reference()).unwrap_err();

    assert!(matches!(error, ModelError::Weights(_)), "{error}");
}

#[test]
fn frames_follow_the_arithmetic_of_the_convolutions() {
    let encoder = tiny("wavlm_large");
    for (samples, frames) in [
        (16_000, 49),    // the paper's: 1 s
        (480_000, 1499), // and 30 s
        (400, 1),
        (719, 1),
        (720, 2),
        (399, 1),
        (1, 1),
    ] {
        assert_eq!(encoder.frames(samples), frames, "{samples} samples");
    }
    let info = encoder.info();
    assert_eq!((info.layers, info.width), (3, 32));
    assert_eq!(info.frames_per_second, 50.0);
    let llm = LanguageModelInfo {
        width: 2048,
        vocab: 32_128,
        layers: 24,
        max_positions: 512,
    };
    let adapter = AdapterConfig::new(&AdapterSettings::default(), &info, &llm).unwrap();
    assert_eq!(adapter.positions(encoder.frames(16_000)), 13);
    assert_eq!(adapter.positions(encoder.frames(480_000)), 375);
}

#[test]
fn clips_around_one_frame_and_at_every_stretch_end_have_the_frames_that_are_announced() {
    for model in ["wavlm_base", "wavlm_large"] {
        let encoder = tiny(model);
        for samples in [1, 399, 400, 401, 720, 32_079, 32_080, 32_400, 64_079, 64_080] {
            let hidden = encoder.hidden_states(&[&noise(samples, 5)]).unwrap();

            assert_eq!(hidden.states[0].size()[1], encoder.frames(samples), "{samples}");
            assert_eq!(hidden.last.isfinite().all().int64_value(&[]), 1, "{samples}");
        }
    }
}

#[test]
fn bf16_stays_near_f32_alone_and_in_a_ragged_batch() {
    let placement = Placement::resolve(DeviceChoice::Cpu, PrecisionChoice::Bf16).unwrap();
    let (speech, short) = (spoken_clip(), noise(5_000, 3));
    let clips = [speech.as_slice(), &short];
    let mix = Tensor::from_slice2(&[[0.0_f32, 0.3, 0.3, 0.4]; 2]);
    for model in MODELS {
        let encoder = WavEncoder::load(&fixture("wavlm").join(model), &placement).unwrap();

        let encoded = encoder.encode(&clips, &mix).unwrap();

        assert_eq!(encoded.features.kind(), Kind::BFloat16);
        let right = tiny(model).encode(&clips, &mix).unwrap().features;
        let error = (encoded.features.to_kind(Kind::Float) - &right).norm() / right.norm();
        let error = error.double_value(&[]);
        assert!(error < 0.05, "{model}: {error:e}");
    }
}

#[test]
fn silence_and_the_loudest_admitted_samples_give_finite_features() {
    for model in MODELS {
        let encoder = tiny(model);
        for clip in [
            vec![0.0; 1_000],
            vec![SAMPLE_MAX; 1_000],
            noise(1_000, 1).iter().map(|s| s * 1e9).collect(),
        ] {
            let hidden = encoder.hidden_states(&[&clip]).unwrap();

            assert_eq!(hidden.last.isfinite().all().int64_value(&[]), 1, "{model}");
        }
    }
}

#[test]
fn a_batch_that_cannot_be_encoded_says_which_clip_and_why() {
    let encoder = tiny("wavlm_base");
    let good = noise(1_000, 1);
    let cases: [(&[f32], &str); 3] = [
        (&[], "clip 1 of the batch has no samples"),
        (&[0.0, f32::NAN], "NaN at position 1"),
        (&[f32::INFINITY], "inf at position 0"),
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
fn a_folder_is_opened_as_what_its_config_says_and_the_probe_names_every_state() {
    let clip = spoken_clip();
    for model in MODELS {
        let dir = fixture("wavlm").join(model);
        let encoder = open_encoder(&dir, Window::Clip, &Placement::reference()).unwrap();
        assert_eq!(encoder.info().frames_per_second, 50.0);

        let named = crate::models::probe::encoder(&dir, &clip, Window::Padded).unwrap();

        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["hidden.0", "hidden.1", "hidden.2", "hidden.3", "last"]);
        let right = tiny(model).hidden_states(&[&clip]).unwrap();
        assert_eq!(largest(&(&named[3].1 - right.states[3].get(0))), 0.0);
        assert_eq!(largest(&(&named[4].1 - right.last.get(0))), 0.0);
    }
    let whisper = open_encoder(&fixture("whisper_tiny"), Window::Clip, &Placement::reference()).unwrap();
    assert_eq!(whisper.info().max_samples, Some(32_000));
    let Err(error) = open_encoder(&fixture("llama_tiny"), Window::Clip, &Placement::reference()) else {
        panic!("a language model is no encoder");
    };
    assert!(error.to_string().contains("`model_type`"), "{error}");
}
