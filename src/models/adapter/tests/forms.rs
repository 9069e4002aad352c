//! What the language model reads: frames, CTC segments, summary; residual blocks; changes of form.

use super::*;

/// An adapter of the given form with a bound head over tokens 2, 0 and 5 of a table of 9.
fn segmenting(positions: Positions, summary: bool) -> SpeechAdapter {
    let config = AdapterConfig {
        positions,
        summary,
        residual_blocks: 2,
        activation: Activation::Gelu,
        ..config(LayerMix::Last)
    };
    let mut adapter = SpeechAdapter::new(config, 0.5, 4, Device::Cpu).unwrap();
    adapter.set_ctc_classes(vec![2, 0, 5], 5).unwrap();
    adapter.bind(&table()).unwrap();
    adapter
}

fn table() -> Tensor {
    (Tensor::arange(9 * 8, (Kind::Float, Device::Cpu)) * 1.7)
        .sin()
        .view([9, 8])
}

/// Statistics of the hidden states of `rows` clips, `[B, L+1, 2D]`.
fn statistics(rows: i64) -> Tensor {
    let states = config(LayerMix::Last).encoder_layers + 1;
    (Tensor::arange(rows * states * 12, (Kind::Float, Device::Cpu)) * 1.1)
        .sin()
        .view([rows, states, 12])
}

fn noise(rows: i64, frames: i64) -> Tensor {
    (Tensor::arange(rows * frames * 6, (Kind::Float, Device::Cpu)) * 0.9)
        .sin()
        .view([rows, frames, 6])
        * 3.0
}

#[test]
fn positions_of_every_form_are_the_same_alone_and_in_a_padded_batch() {
    let features = noise(3, 40);
    let lengths = [40, 23, 9];
    for positions in [
        Positions::Frames,
        Positions::CtcSegments,
        Positions::CtcPosteriors,
    ] {
        for summary in [false, true] {
            let adapter = segmenting(positions, summary);
            let frames = adapter.forward(&features, &lengths).unwrap();
            let together = adapter.positions(&frames, &statistics(3)).unwrap();

            for (row, length) in lengths.into_iter().enumerate() {
                let own = features.narrow(0, row as i64, 1).narrow(1, 0, length);
                let frames = adapter.forward(&own, &[length]).unwrap();
                let of_row = statistics(3).narrow(0, row as i64, 1);
                let alone = adapter.positions(&frames, &of_row).unwrap();
                let count = together.lengths[row];

                assert!(
                    count >= 1 && alone.lengths == [count],
                    "{positions:?} {summary} {row}"
                );
                let there = together.positions.get(row as i64).narrow(0, 0, count);
                let difference = there - alone.positions.get(0).narrow(0, 0, count);
                assert!(largest(&difference) < 1e-5, "{positions:?} {summary} {row}");
            }
        }
    }
}

#[test]
fn there_is_one_position_for_each_token_that_the_head_hears_behind_that_of_the_whole_clip() {
    let features = noise(2, 10).repeat_interleave_self_int(6, 1, None); // sounds that last
    let lengths = [60, 41];
    for summary in [false, true] {
        let adapter = segmenting(Positions::CtcSegments, summary);
        let frames = adapter.forward(&features, &lengths).unwrap();
        let recognised = adapter.ctc_head().unwrap().read(&frames).unwrap();

        let positions = adapter.positions(&frames, &statistics(2)).unwrap();

        assert!(recognised.iter().any(|tokens| tokens.len() > 1), "{recognised:?}");
        for (tokens, length) in recognised.iter().zip(&positions.lengths) {
            let expected = if summary {
                tokens.len() + 1
            } else {
                tokens.len().max(1)
            };
            assert_eq!(*length, expected as i64);
        }
        assert!(frames.positions.size()[1] > positions.positions.size()[1]);
    }
}

#[test]
fn posteriors_without_the_blank_weigh_the_language_models_own_embeddings() {
    for trainable in [true, false] {
        let snapshot = segmenting(Positions::CtcPosteriors, false).snapshot("x").unwrap();
        let mut adapter = SpeechAdapter::from_snapshot(&snapshot, Device::Cpu, trainable).unwrap();
        adapter.bind(&table()).unwrap();
        let frames = adapter.forward(&noise(1, 60), &[60]).unwrap();
        let head = adapter.ctc_head().unwrap();
        let path = &head.paths(&frames).unwrap()[0];

        let found = adapter.positions(&frames, &statistics(1)).unwrap();

        let scores = head.log_probabilities(&frames.positions).unwrap();
        let again = adapter
            .positions_behind(None, &frames, Some((&scores, std::slice::from_ref(path))))
            .unwrap();
        assert!(largest(&(&found.positions - again.positions)) < 1e-6 && found.lengths == again.lengths);
        let probabilities = head.log_probabilities(&frames.positions).unwrap().exp().get(0); // [P, 1+3]
        let weights = probabilities.narrow(1, 1, 3);
        let weights = &weights / weights.sum_dim_intlist(1, true, Kind::Float);
        let tokens = table().index_select(0, &Tensor::from_slice(&[2i64, 0, 5]));
        let embeddings = weights.matmul(&tokens); // [P, H]
        let runs = segments::runs(path);
        assert!(runs.len() > 1, "{path:?}");
        assert_eq!(found.lengths, [runs.len() as i64]);
        for (at, run) in runs.into_iter().enumerate() {
            let of_run = embeddings.narrow(0, run.start as i64, run.len() as i64);
            let expected = of_run.mean_dim([0i64].as_slice(), false, Kind::Float);
            let difference = found.positions.get(0).get(at as i64) - expected;
            assert!(largest(&difference) < 1e-5, "{trainable} {at}");
        }
    }
}

#[test]
fn a_summary_depends_on_the_statistics_and_on_nothing_else() {
    let adapter = segmenting(Positions::Frames, true);
    let summary = |features: &Tensor, statistics: &Tensor| {
        let frames = adapter.forward(features, &[20]).unwrap();
        let positions = adapter.positions(&frames, statistics).unwrap();
        positions.positions.narrow(1, 0, 1)
    };
    let (first, second) = (noise(1, 20), noise(1, 20) * 0.5);

    let found = summary(&first, &statistics(1));

    assert_eq!(found, summary(&second, &statistics(1)));
    assert!(largest(&(found - summary(&first, &statistics(2).narrow(0, 1, 1)))) > 1e-2);
    let frames = adapter.forward(&first, &[20]).unwrap();
    let error = adapter.positions(&frames, &statistics(2)).unwrap_err();
    assert!(error.to_string().contains("statistics"), "{error}");
}

#[test]
fn a_fresh_residual_block_changes_nothing_and_learns() {
    let plain = adapter(LayerMix::Last);
    let wanted = AdapterConfig {
        residual_blocks: 2,
        ..plain.config().clone()
    };
    let snapshot = plain.snapshot("v").unwrap();
    let with_blocks = snapshot.in_form(&wanted, 1.0, 9).unwrap().unwrap();
    let with_blocks = SpeechAdapter::from_snapshot(&with_blocks, Device::Cpu, true).unwrap();

    let found = with_blocks.forward(&noise(2, 30), &[30, 17]).unwrap();

    let right = plain.forward(&noise(2, 30), &[30, 17]).unwrap();
    assert_eq!(found.lengths, right.lengths);
    assert_eq!(found.positions, right.positions);
    found.positions.square().sum(Kind::Float).backward();
    let gradient = with_blocks.variables()["residual.0.linear.weight"].grad();
    assert!(largest(&gradient) > 0.0);
}

#[test]
fn a_prefix_and_its_end_have_the_likelihood_that_ctc_learns() {
    let adapter = segmenting(Positions::CtcSegments, false);
    let head = adapter.ctc_head().unwrap();
    let (features, lengths) = (noise(2, 60), [60, 33]);
    let frames = adapter.forward(&features, &lengths).unwrap();
    let read = head.read(&frames).unwrap();

    let scorers = PrefixScorer::new(head, &frames).unwrap();

    let own = adapter
        .forward(&features.narrow(0, 1, 1).narrow(1, 0, 33), &[33])
        .unwrap();
    let alone = PrefixScorer::new(head, &own).unwrap().remove(0);
    assert!((alone.agreement(&read[1]) - scorers[1].agreement(&read[1])).abs() < 1e-4);
    let paths = head.paths(&frames).unwrap();
    for (row, (scorer, read)) in scorers.iter().zip(&read).enumerate() {
        assert_eq!(scorer.path(), paths[row]);
        assert!(read.iter().all(|token| scorer.candidates().contains(token)));
        assert!((0.0..=1.0).contains(&scorer.blank_share()));
        // Any tokens will do: torch's CTC loss is the same sum over all alignments.
        for tokens in [&read[..], &[], &[5], &[2, 2, 0]] {
            let one = Adapted {
                positions: frames.positions.narrow(0, row as i64, 1),
                lengths: vec![frames.lengths[row]],
            };
            let classes = head.classes_of(tokens).unwrap();
            let loss = head.loss(&one, &[classes]).unwrap().double_value(&[]);
            let prefix = scorer.prefix(tokens);
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let of_each = if tokens.is_empty() {
                scorer.frames()
            } else {
                tokens.len()
            } as f64;
            let found = (prefix.score() + scorer.score_end(&prefix)) / of_each;
            assert!(
                (found + loss).abs() < 1e-4 * loss.max(1.0),
                "{tokens:?}: {found} {loss}"
            );
            assert!((0.0..=1.0).contains(&scorer.agreement(tokens)));
        }
    }
}

#[test]
fn a_version_keeps_its_form_and_one_without_it_has_the_papers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let adapter = segmenting(Positions::CtcSegments, true);
    adapter.snapshot("a").unwrap().write(&path).unwrap();

    let read = AdapterSnapshot::read("b", &path).unwrap();
    let mut again = SpeechAdapter::from_snapshot(&read, Device::Cpu, false).unwrap();

    assert_eq!(read.config(), adapter.config());
    let frames = adapter.forward(&noise(1, 30), &[30]).unwrap();
    assert!(
        again.positions(&frames, &statistics(1)).is_err(),
        "not bound to a table yet"
    );
    again.bind(&table()).unwrap();
    let (was, is) = (
        adapter.positions(&frames, &statistics(1)).unwrap(),
        again.positions(&frames, &statistics(1)).unwrap(),
    );
    assert_eq!((was.lengths, was.positions), (is.lengths, is.positions));
}

#[test]
fn a_form_can_change_and_nothing_else() {
    let plain = adapter(LayerMix::Paper).snapshot("v").unwrap();
    let wanted = AdapterConfig {
        positions: Positions::CtcSegments,
        residual_blocks: 1,
        summary: true,
        sentence: true,
        ..config(LayerMix::Paper)
    };

    let formed = plain.in_form(&wanted, 0.25, 7).unwrap().unwrap();

    assert_eq!(*formed.config(), wanted);
    for (norm, expected) in [("summary", 0.25), ("sentence", 1.0)] {
        let gain = formed.tensors()[&format!("{norm}.norm.weight")].floats().unwrap();
        assert!(gain.iter().all(|value| *value == expected), "{norm}");
    }
    let back = formed.in_form(plain.config(), 1.0, 1).unwrap().unwrap();
    assert!(back.same_content(&plain));
    let other = AdapterConfig { kernel: 5, ..wanted };
    assert!(plain.in_form(&other, 1.0, 1).unwrap().is_none());
}

#[test]
fn segments_without_a_head_are_an_error_that_says_so() {
    let config = AdapterConfig {
        positions: Positions::CtcSegments,
        ..config(LayerMix::Last)
    };
    let mut adapter = SpeechAdapter::new(config, 0.5, 4, Device::Cpu).unwrap();

    let error = adapter.bind(&table()).unwrap_err().to_string();

    assert!(error.contains("CTC segments"), "{error}");
    let frames = adapter.forward(&noise(1, 30), &[30]).unwrap();
    assert!(adapter.positions(&frames, &statistics(1)).is_err());
}

#[test]
fn a_head_serves_only_where_the_last_training_had_a_ctc_loss() {
    let mut adapter = segmenting(Positions::Frames, false);
    assert!(adapter.ctc_head().is_some() && adapter.trained_ctc_head().is_none());

    adapter.set_ctc_trained(true);

    assert!(adapter.trained_ctc_head().is_some());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    adapter.snapshot("v").unwrap().write(&path).unwrap();
    assert!(AdapterSnapshot::read("v", &path).unwrap().config().ctc_trained);
}

#[test]
fn products_in_bf16_give_nearly_the_loss_and_the_gradients_of_f32() {
    let features = noise(3, 40);
    let loss_of = |products: Kind| {
        let mut adapter = segmenting(Positions::CtcSegments, false);
        adapter.set_products(products);
        adapter.bind(&table()).unwrap();
        let frames = adapter.forward(&features, &[40, 23, 9]).unwrap();
        assert_eq!(frames.positions.kind(), Kind::Float);
        let loss = adapter
            .ctc_head()
            .unwrap()
            .loss(&frames, &[vec![1, 2], vec![3], vec![]])
            .unwrap();
        loss.backward();
        let gradients: Vec<Tensor> = (adapter.variables().values())
            .map(Tensor::grad)
            .filter(Tensor::defined)
            .collect();
        assert!(gradients.iter().all(|gradient| gradient.kind() == Kind::Float));
        let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.view([-1])).collect();
        (loss.double_value(&[]), Tensor::cat(&flat, 0))
    };

    let (loss, gradient) = loss_of(Kind::Float);
    let (half_loss, half_gradient) = loss_of(Kind::BFloat16);

    assert_ne!(loss, half_loss, "bf16 was not used");
    assert!((loss - half_loss).abs() < 0.02 * loss, "{loss} {half_loss}");
    let off = (&half_gradient - &gradient).norm().double_value(&[]);
    assert!(off < 0.05 * gradient.norm().double_value(&[]), "{off}");
}
