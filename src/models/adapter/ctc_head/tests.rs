use super::*;
use crate::models::adapter::{AdapterConfig, SpeechAdapter};
use crate::models::config::{AdapterSettings, LayerMix};
use tch::Device;

fn adapter() -> SpeechAdapter {
    let encoder = crate::models::EncoderInfo {
        layers: 1,
        width: 4,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let llm = crate::models::LanguageModelInfo {
        width: 6,
        vocab: 40,
        layers: 1,
        max_positions: 64,
    };
    let settings = AdapterSettings {
        mix: LayerMix::Last,
        ..AdapterSettings::default()
    };
    let config = AdapterConfig::new(&settings, &encoder, &llm).unwrap();
    let mut adapter = SpeechAdapter::new(config, 1.0, 3, Device::Cpu).unwrap();
    adapter.set_ctc_classes(vec![10, 20, 30], 3).unwrap();
    adapter.bind(&embeddings()).unwrap();
    adapter
}

fn embeddings() -> Tensor {
    (Tensor::arange(40 * 6, (Kind::Float, Device::Cpu)) * 1.7)
        .sin()
        .view([40, 6])
}

fn frames(rows: &[Tensor], length: i64) -> Adapted {
    Adapted {
        positions: Tensor::stack(rows, 0).unsqueeze(0),
        lengths: vec![length],
    }
}

#[test]
fn a_frozen_head_in_bf16_gives_nearly_the_probabilities_of_f32() {
    let learning = adapter();
    let frozen = |products: Kind| {
        let snapshot = learning.snapshot("v").unwrap();
        let mut adapter = SpeechAdapter::from_snapshot(&snapshot, Device::Cpu, false).unwrap();
        adapter.bind_in(&embeddings(), products).unwrap();
        adapter
    };
    let positions = (Tensor::arange(5 * 6, (Kind::Float, Device::Cpu)) * 0.7)
        .cos()
        .view([1, 5, 6]);
    let _no_grad = tch::no_grad_guard();
    let of = |adapter: &SpeechAdapter| {
        let head = adapter.ctc_head().unwrap();
        head.log_probabilities(&positions).unwrap()
    };
    let off = |one: &Tensor, other: &Tensor| (one - other).abs().max().double_value(&[]);

    let (exact, half) = (of(&frozen(Kind::Float)), of(&frozen(Kind::BFloat16)));

    assert!(off(&exact, &of(&learning)) < 1e-6);
    assert_eq!(half.kind(), Kind::Float);
    let error = off(&half, &exact);
    assert!(error > 0.0 && error < 0.1, "{error}");
}

#[test]
fn scores_are_scaled_cosines_in_log_space() {
    let adapter = adapter();
    let head = adapter.ctc_head().unwrap();
    let token = embeddings().get(20) * 0.1;

    let scores = head.log_probabilities(&frames(&[token], 1).positions).unwrap();

    assert_eq!(scores.size(), [1, 1, 4]);
    assert!((scores.exp().sum(Kind::Float).double_value(&[]) - 1.0).abs() < 1e-5);
    let cosine = |id: i64| {
        let (a, b) = (embeddings().get(20), embeddings().get(id));
        let length = |v: &Tensor| v.square().sum(Kind::Float).sqrt().double_value(&[]);
        (&a * &b).sum(Kind::Float).double_value(&[]) / length(&a) / length(&b)
    };
    let (own, other) = (scores.double_value(&[0, 0, 2]), scores.double_value(&[0, 0, 1]));
    assert!(
        (own - other - 12.0 * (1.0 - cosine(10))).abs() < 1e-3,
        "{own} {other}"
    );
}

#[test]
fn a_class_that_is_no_token_of_the_language_model_is_refused() {
    let mut adapter = adapter();
    adapter.set_ctc_classes(vec![40], 5).unwrap();

    assert!(adapter.bind(&embeddings()).is_err());
    let unbound = adapter
        .ctc_head()
        .unwrap()
        .read(&frames(&[embeddings().get(1)], 1));
    assert!(unbound.unwrap_err().to_string().contains("CTC head"));
}

#[test]
fn a_reading_joins_repeats_and_drops_blanks() {
    let adapter = adapter();
    let head = adapter.ctc_head().unwrap();
    let blank = adapter.variables()["ctc.blank"].detach();
    let token = |id: i64| embeddings().get(id);
    let rows = [token(20), token(20), blank, token(20), token(10), token(30)];

    let ids = head.read(&frames(&rows, 5)).unwrap();

    assert_eq!(ids, [[20, 20, 10]]);
    assert_eq!(head.classes_of(&[30, 10]), Some(vec![3, 1]));
    assert_eq!(head.classes_of(&[30, 11]), None);
}

#[test]
fn a_tiny_batch_can_be_learned_by_heart_silence_included() {
    let adapter = adapter();
    let head = adapter.ctc_head().unwrap();
    let features = (Tensor::arange(3 * 24 * 4, (Kind::Float, Device::Cpu)) * 0.9)
        .sin()
        .view([3, 24, 4])
        * 2.0;
    let lengths = [24, 17, 20];
    let targets = vec![vec![1, 2, 3], vec![3, 1], vec![]];
    let parameters = adapter
        .variables()
        .into_iter()
        .map(|(name, tensor)| crate::nn::optimizer::Parameter {
            name,
            tensor,
            rate_factor: 1.0,
            decay_factor: 0.0,
        })
        .collect();
    let mut optimizer = crate::nn::optimizer::AdamW::new(Default::default(), parameters).unwrap();
    let mut last = f64::NAN;

    for _ in 0..200 {
        optimizer.zero_grad();
        let loss = head
            .loss(&adapter.forward(&features, &lengths).unwrap(), &targets)
            .unwrap();
        loss.backward();
        optimizer.step(0.02);
        last = loss.double_value(&[]);
    }

    assert!(last < 0.1, "{last}");
    let read = head.read(&adapter.forward(&features, &lengths).unwrap()).unwrap();
    assert_eq!(read, [vec![10, 20, 30], vec![30, 10], vec![]]);
}

#[test]
fn a_batch_in_which_nothing_is_said_has_a_loss_for_each_frame() {
    let adapter = adapter();
    let head = adapter.ctc_head().unwrap();
    let adapted = adapter
        .forward(&Tensor::ones([2, 8, 4], (Kind::Float, Device::Cpu)), &[8, 8])
        .unwrap();

    let loss = head.loss(&adapted, &[vec![], vec![]]).unwrap().double_value(&[]);

    let blank = head.log_probabilities(&adapted.positions).unwrap().select(2, 0); // [B, P]
    assert!((loss + blank.mean(Kind::Float).double_value(&[])).abs() < 1e-4);
}

#[test]
fn a_target_that_does_not_fit_counts_nothing_instead_of_infinity() {
    let adapter = adapter();
    let head = adapter.ctc_head().unwrap();
    let features = Tensor::ones([1, 4, 4], (Kind::Float, Device::Cpu));
    let adapted = adapter.forward(&features, &[4]).unwrap();

    assert_eq!(
        head.loss(&adapted, &[vec![1, 2, 3]]).unwrap().double_value(&[]),
        0.0
    );
    assert!(head.loss(&adapted, &[]).is_err());
}
