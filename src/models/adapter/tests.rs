use super::*;
use crate::models::config::AdapterSettings;

mod forms;
mod sentence;

fn config(mix: LayerMix) -> AdapterConfig {
    AdapterConfig {
        mix,
        ..AdapterConfig::paper(6, 3, 8)
    }
}

fn adapter(mix: LayerMix) -> SpeechAdapter {
    SpeechAdapter::new(config(mix), 0.5, 1, Device::Cpu).unwrap()
}

fn states(rows: i64, frames: i64) -> HiddenStates {
    let mut states: Vec<Tensor> = (0..4)
        .map(|layer| {
            Tensor::arange(rows * frames * 6, (Kind::Float, Device::Cpu))
                .sin()
                .view([rows, frames, 6])
                * (layer + 1)
                + layer
        })
        .collect();
    // As in a pre-norm encoder: state L is not the output.
    let last = states[3].shallow_clone();
    states[3] = &last * 100.0;
    HiddenStates {
        states,
        last,
        lengths: vec![frames; usize::try_from(rows).unwrap()],
    }
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

#[test]
fn at_the_start_the_paper_form_is_the_mean_of_layers_one_to_l() {
    let hidden = states(2, 5);

    let mixed = adapter(LayerMix::Paper).mix(&hidden).unwrap();

    let mean = (&hidden.states[1] + &hidden.states[2] + &hidden.last) / 3.0;
    assert!(largest(&(mixed - mean)) < 1e-5);
}

#[test]
fn at_the_start_the_softmax_form_is_the_mean_of_all_states() {
    let hidden = states(2, 5);

    let mixed = adapter(LayerMix::Softmax).mix(&hidden).unwrap();

    let mean = (&hidden.states[0] + &hidden.states[1] + &hidden.states[2] + &hidden.last) / 4.0;
    assert!(largest(&(mixed - mean)) < 1e-5);
}

#[test]
fn the_last_layer_form_is_the_last_layer_and_learns_nothing_about_layers() {
    let (hidden, adapter) = (states(2, 5), adapter(LayerMix::Last));

    assert_eq!(adapter.mix(&hidden).unwrap(), hidden.last);
    assert!(!adapter.variables().contains_key("mix.weight"));
}

#[test]
fn mixing_states_equals_weighting_them_by_the_published_weights() {
    for mix in [LayerMix::Paper, LayerMix::Softmax, LayerMix::Last] {
        let (hidden, adapter) = (states(1, 4), adapter(mix));
        if let Some(mut w) = adapter.variables().remove("mix.weight") {
            let new = Tensor::arange(w.size()[0], (Kind::Float, Device::Cpu)) * 0.3;
            tch::no_grad(|| w.copy_(&new));
        }

        let mixed = adapter.mix(&hidden).unwrap();

        let tensor: Vec<f32> = Vec::try_from(adapter.mix_weights()).unwrap();
        let snapshot = adapter.snapshot("v").unwrap();
        let sum = hidden.states[..3]
            .iter()
            .chain([&hidden.last])
            .zip(snapshot.mix_weights())
            .fold(mixed.zeros_like(), |sum, (h, w)| sum + h * f64::from(*w));
        assert!(largest(&(mixed - sum)) < 1e-5, "{mix:?}");
        for (a, b) in tensor.iter().zip(snapshot.mix_weights()) {
            assert!((a - b).abs() < 1e-6, "{mix:?}");
        }
    }
}

#[test]
fn a_clip_comes_out_the_same_alone_and_in_a_padded_batch() {
    let adapter = adapter(LayerMix::Last);
    for length in 1..=11 {
        let noise = Tensor::arange(2 * 11 * 6, (Kind::Float, Device::Cpu))
            .cos()
            .view([2, 11, 6])
            * 3.0;

        let alone = adapter
            .forward(&noise.narrow(0, 1, 1).narrow(1, 0, length), &[length])
            .unwrap();
        let batch = adapter.forward(&noise, &[11, length]).unwrap();

        let positions = alone.lengths[0];
        assert_eq!(batch.lengths[1], positions);
        assert_eq!(alone.positions.size(), [1, positions, 8]);
        let row = batch.positions.narrow(0, 1, 1).narrow(1, 0, positions);
        assert!(largest(&(row - alone.positions)) < 1e-5, "length {length}");
    }
}

#[test]
fn positions_have_the_loudness_of_the_embedding_table_at_the_start() {
    let features = Tensor::arange(40 * 6, (Kind::Float, Device::Cpu))
        .sin()
        .view([1, 40, 6]);

    let positions = adapter(LayerMix::Last)
        .forward(&features, &[40])
        .unwrap()
        .positions;

    assert!((embedding_rms(&positions).unwrap() - 0.5).abs() < 0.01);
}

#[test]
fn a_file_returns_the_adapter_that_was_saved_head_included() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let mut adapter = adapter(LayerMix::Paper);
    adapter.set_ctc_classes(vec![3, 1, 2], 5).unwrap();

    adapter.snapshot("a-1").unwrap().write(&path).unwrap();
    let read = AdapterSnapshot::read("a-2", &path).unwrap();
    let again = SpeechAdapter::from_snapshot(&read, Device::Cpu, false).unwrap();

    assert!(read.same_content(&adapter.snapshot("x").unwrap()));
    assert_eq!(read.version(), "a-2");
    assert_eq!(again.ctc_head().unwrap().classes(), [3, 1, 2]);
    assert_eq!(again.variables().len(), adapter.variables().len());
    assert!(
        again
            .variables()
            .values()
            .all(|variable| !variable.requires_grad())
    );
    assert!(adapter.variables().values().all(Tensor::requires_grad));
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_every_difference() {
    let snapshot = adapter(LayerMix::Paper).snapshot("v").unwrap();
    let mut tensors = snapshot.tensors().clone();
    tensors.remove("downsample.0.conv.bias");
    tensors.insert(
        "stranger".into(),
        PlainTensor {
            shape: vec![1],
            data: PlainData::F32(vec![0.0]),
        },
    );
    tensors.insert(
        "mix.weight".into(),
        PlainTensor {
            shape: vec![2],
            data: PlainData::F32(vec![0.0; 2]),
        },
    );
    tensors.insert(
        "downsample.1.conv.bias".into(),
        PlainTensor {
            shape: vec![8],
            data: PlainData::I64(vec![0; 8]),
        },
    );

    let error = AdapterSnapshot::new("v", config(LayerMix::Paper), tensors, Path::new("some/file"))
        .unwrap_err()
        .to_string();

    for part in [
        "some/file",
        "downsample.0.conv.bias",
        "stranger",
        "[2]",
        "[3]",
        "I64",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let snapshot = adapter(LayerMix::Paper).snapshot("v").unwrap();
    let mut tensors = snapshot.tensors().clone();
    tensors.insert(
        "mix.weight".into(),
        PlainTensor {
            shape: vec![3],
            data: PlainData::F32(vec![0.0, f32::NAN, 0.0]),
        },
    );

    let error = AdapterSnapshot::new("v", config(LayerMix::Paper), tensors, Path::new("f"))
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("mix.weight") && error.contains("not finite"),
        "{error}"
    );
}

#[test]
fn wrong_shapes_are_errors_at_the_door() {
    let adapter = adapter(LayerMix::Paper);
    let features = Tensor::zeros([2, 5, 6], (Kind::Float, Device::Cpu));

    assert!(adapter.forward(&features, &[5]).is_err());
    assert!(adapter.forward(&features, &[5, 6]).is_err());
    assert!(adapter.forward(&features, &[5, 0]).is_err());
    assert!(adapter.forward(&features.narrow(2, 0, 4), &[5, 5]).is_err());
    assert!(
        adapter
            .mix(&HiddenStates {
                states: vec![features.shallow_clone()],
                last: features,
                lengths: vec![5, 5]
            })
            .is_err()
    );
}

#[test]
fn equal_seeds_give_equal_adapters() {
    let fresh = |seed| {
        SpeechAdapter::new(config(LayerMix::Paper), 0.5, seed, Device::Cpu)
            .unwrap()
            .snapshot("v")
            .unwrap()
    };

    assert!(fresh(1).same_content(&fresh(1)));
    assert!(!fresh(1).same_content(&fresh(2)));
}

#[test]
fn settings_and_networks_give_the_configuration() {
    let encoder = crate::models::EncoderInfo {
        layers: 3,
        width: 6,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let llm = crate::models::LanguageModelInfo {
        width: 8,
        vocab: 9,
        layers: 1,
        max_positions: 64,
    };

    let made = AdapterConfig::new(&AdapterSettings::default(), &encoder, &llm).unwrap();

    assert_eq!(made, config(LayerMix::Paper));
}
