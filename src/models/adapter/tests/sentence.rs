//! The embedding of what is said.

use super::*;

/// Adapter with an embedding of what is said.
fn embedding(summary: bool) -> SpeechAdapter {
    let config = AdapterConfig {
        positions: Positions::CtcSegments,
        sentence: true,
        summary,
        ..config(LayerMix::Last)
    };
    SpeechAdapter::new(config, 0.5, 6, Device::Cpu).unwrap()
}

fn positions(rows: i64, length: i64) -> Tensor {
    (Tensor::arange(rows * length * 8, (Kind::Float, Device::Cpu)) * 0.7)
        .sin()
        .view([rows, length, 8])
        * 2.0
}

fn embedded(adapter: &SpeechAdapter, positions: Tensor, lengths: &[i64]) -> Tensor {
    let lengths = lengths.to_vec();
    adapter
        .sentence(&Adapted { positions, lengths })
        .unwrap()
        .unwrap()
}

/// The same by loops over plain numbers, for one clip of `[S, 8]`.
fn reference(adapter: &SpeechAdapter, segments: &Tensor) -> Vec<f32> {
    let values = |name: &str| {
        let tensor = &adapter.variables()[&format!("sentence.{name}")];
        Vec::<f32>::try_from(tensor.detach().view([-1])).unwrap()
    };
    let (gain, offset) = (values("norm.weight"), values("norm.bias"));
    let (kernel, conv_bias) = (values("conv.weight"), values("conv.bias"));
    let (linear, linear_bias) = (values("linear.weight"), values("linear.bias"));
    let width = conv_bias.len();
    let normed: Vec<Vec<f32>> = (0..segments.size()[0])
        .map(|at| {
            let row = Vec::<f32>::try_from(segments.get(at)).unwrap();
            let mean = row.iter().sum::<f32>() / 8.0;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 8.0;
            (0..8)
                .map(|i| (row[i] - mean) / (variance + 1e-5).sqrt() * gain[i] + offset[i])
                .collect()
        })
        .collect();
    let mut pooled = vec![0.0f32; 2 * width];
    for channel in 0..width {
        for at in 0..normed.len() {
            let mut sum = conv_bias[channel];
            for (tap, neighbour) in (at..at + 3).enumerate() {
                if let Some(row) = neighbour.checked_sub(1).and_then(|near| normed.get(near)) {
                    for (i, x) in row.iter().enumerate() {
                        sum += x * kernel[(channel * 8 + i) * 3 + tap];
                    }
                }
            }
            let gelu = Tensor::from(sum).gelu("none").double_value(&[]) as f32;
            pooled[channel] = pooled[channel].max(gelu);
            pooled[width + channel] += gelu / normed.len() as f32;
        }
    }
    (0..8)
        .map(|out| {
            let weights = &linear[out * 2 * width..(out + 1) * 2 * width];
            linear_bias[out] + weights.iter().zip(&pooled).map(|(w, x)| w * x).sum::<f32>()
        })
        .collect()
}

#[test]
fn it_is_what_a_plain_reference_says_and_padding_has_no_part_in_it() {
    let adapter = embedding(false);
    let (all, lengths) = (positions(3, 7), [7, 4, 1]);

    let together = embedded(&adapter, all.shallow_clone(), &lengths);

    assert_eq!(together.size(), [3, 8]);
    for (row, length) in (0i64..).zip(lengths) {
        let own = all.get(row).narrow(0, 0, length);
        let right = Tensor::from_slice(&reference(&adapter, &own));
        assert!(largest(&(together.get(row) - right)) < 1e-4, "{row}");
        let alone = embedded(&adapter, own.unsqueeze(0), &[length]);
        assert!(largest(&(together.get(row) - alone.get(0))) < 1e-5, "{row}");
    }
}

#[test]
fn where_nothing_is_said_it_is_what_its_offset_says() {
    let adapter = embedding(true);
    let nothing = adapter.variables()["sentence.linear.bias"].detach();

    let alone = embedded(&adapter, positions(1, 1).narrow(1, 0, 0), &[0]);
    let beside = embedded(&adapter, positions(2, 6), &[0, 6]);

    assert!(largest(&(alone.get(0) - &nothing)) < 1e-6);
    assert!(largest(&(beside.get(0) - &nothing)) < 1e-6);
    assert!(largest(&(beside.get(1) - &nothing)) > 1e-3);
    alone.sum(Kind::Float).backward();
    let gradient = adapter.variables()["sentence.linear.bias"].grad();
    assert_eq!(gradient, Tensor::ones([8], (Kind::Float, Device::Cpu)));
}

#[test]
fn it_reads_the_segments_whatever_the_language_model_reads() {
    let features = (Tensor::arange(60 * 6, (Kind::Float, Device::Cpu)) * 0.9)
        .sin()
        .view([1, 60, 6]);
    let table = (Tensor::arange(9 * 8, (Kind::Float, Device::Cpu)) * 1.7)
        .sin()
        .view([9, 8]);
    let found = [Positions::CtcSegments, Positions::CtcPosteriors].map(|positions| {
        let config = AdapterConfig {
            positions,
            ..embedding(true).config().clone()
        };
        let mut adapter = SpeechAdapter::new(config, 0.5, 6, Device::Cpu).unwrap();
        adapter.set_ctc_classes(vec![2, 0, 5], 5).unwrap();
        adapter.bind(&table).unwrap();
        let frames = adapter.forward(&features, &[60]).unwrap();
        let segments = adapter.segments(&frames, None).unwrap();
        let paths = adapter.ctc_head().unwrap().paths(&frames).unwrap();

        assert_eq!(segments.lengths, [segments::runs(&paths[0]).len() as i64]);
        adapter.sentence(&segments).unwrap().unwrap()
    });

    assert_eq!(found[0], found[1]);
}

#[test]
fn a_version_keeps_it_and_the_tasks_that_it_is_aligned_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let mut adapter = embedding(false);
    adapter.add_sentence_tasks(&["intent".into(), "command".into()]);
    adapter.add_sentence_tasks(&["intent".into()]);
    adapter.snapshot("a").unwrap().write(&path).unwrap();

    let read = AdapterSnapshot::read("b", &path).unwrap();
    let again = SpeechAdapter::from_snapshot(&read, Device::Cpu, false).unwrap();

    assert_eq!(read.config(), adapter.config());
    assert_eq!(read.config().sentence_tasks, ["command", "intent"]);
    let there = embedded(&again, positions(1, 4), &[4]);
    assert_eq!(there, embedded(&adapter, positions(1, 4), &[4]));
    let plain = super::adapter(LayerMix::Last);
    let none = plain.sentence(&Adapted {
        positions: positions(1, 4),
        lengths: vec![4],
    });
    assert!(none.unwrap().is_none());
    let frames = AdapterConfig {
        positions: Positions::Frames,
        ..adapter.config().clone()
    };
    let error = SpeechAdapter::new(frames, 0.5, 6, Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(error.contains("`adapter.sentence`"), "{error}");
}
