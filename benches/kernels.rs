//! The CPU kernels of a decode step, each beside the same computation in libtorch's operations; and the front
//! ends.
//!
//! `cargo bench --bench kernels [PART OF A NAME]…` on a quiet machine, with OMP_NUM_THREADS set to what is
//! compared. Shapes are those of SmolLM2-135M: width 576, 9 heads of 64, 3 key heads, feed-forward 1536.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use speechverse::audio::resample;
use speechverse::nn::cpu_kernels::{self, KvView};
use support::Harness;
use tch::{Device, Kind, Tensor};

const WIDTH: i64 = 576;
const HEADS: i64 = 9;
const KV_HEADS: i64 = 3;
const HEAD: i64 = 64;
const HIDDEN: i64 = 1_536;

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn compared(name: &str, ours: Option<Duration>, theirs: Option<Duration>) {
    if let (Some(ours), Some(theirs)) = (ours, theirs) {
        println!(
            "| {name}: libtorch / ours | {:.2} | | | |",
            theirs.as_secs_f64() / ours.as_secs_f64()
        );
    }
}

fn main() {
    let harness = Harness::from_arguments();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(1);
    norm(&harness);
    products(&harness);
    attention(&harness);
    front_ends(&harness);
}

fn norm(harness: &Harness) {
    for batch in [1, 8] {
        let (hidden, weight) = (random(&[batch, 1, WIDTH]), random(&[WIDTH]));
        let name = format!("rms_norm, {batch} rows");
        let ours = harness.measure(&name, || {
            cpu_kernels::rms_norm(&hidden, &weight, 1e-5).expect("f32 on the CPU")
        });
        let theirs = harness.measure(&format!("{name}, libtorch"), || {
            let mean = hidden.square().mean_dim(&[-1_i64][..], true, Kind::Float);
            &hidden * (mean + 1e-5).rsqrt() * &weight
        });
        compared(&name, ours, theirs);
    }
}

fn products(harness: &Harness) {
    for kind in [Kind::Float, Kind::BFloat16] {
        for batch in [1, 8] {
            let weight = random(&[HIDDEN, WIDTH]).to_kind(kind);
            let input = random(&[batch, 1, WIDTH]);
            let name = format!("multiply {HIDDEN}x{WIDTH} {kind:?}, {batch} rows");
            let ours = harness.measure(&name, || {
                cpu_kernels::multiply(&input, &weight).expect("on the CPU")
            });
            let converted = input.to_kind(kind);
            let theirs = harness.measure(&format!("{name}, libtorch"), || {
                converted.linear(&weight, None::<&Tensor>)
            });
            compared(&name, ours, theirs);
        }
    }
    let weight = random(&[HIDDEN, WIDTH]);
    let scales = weight.abs().amax([1], false) / 127.0;
    let qweight = (&weight / scales.unsqueeze(1)).round().to_kind(Kind::Int8);
    let input = random(&[1, 1, WIDTH]);
    let name = format!("multiply_qweight {HIDDEN}x{WIDTH}, 1 rows");
    harness.measure(&name, || {
        cpu_kernels::multiply_qweight(&input, &qweight, &scales).expect("on the CPU")
    });
}

fn attention(harness: &Harness) {
    for (batch, length) in [(1, 200), (8, 200), (1, 1_500)] {
        let queries = random(&[batch, HEADS, 1, HEAD]);
        let (keys, values) = (
            random(&[batch, KV_HEADS, length, HEAD]),
            random(&[batch, KV_HEADS, length, HEAD]),
        );
        let slots: Vec<usize> = (0..batch as usize).collect();
        let lengths = vec![length; batch as usize];
        let seen = KvView {
            keys: &keys,
            values: &values,
            slots: &slots,
            lengths: &lengths,
        };
        let name = format!("decode_attention over {length}, {batch} rows");
        let scale = 1.0 / (HEAD as f64).sqrt();
        let ours = harness.measure(&name, || {
            cpu_kernels::decode_attention(&queries, seen, scale, None).expect("f32 on the CPU")
        });
        let theirs = harness.measure(&format!("{name}, libtorch"), || {
            let group = HEADS / KV_HEADS;
            let (keys, values) = (
                keys.repeat_interleave_self_int(group, 1, None),
                values.repeat_interleave_self_int(group, 1, None),
            );
            let scores = queries.matmul(&keys.transpose(2, 3)) * scale; // [B, N, 1, T]
            scores.softmax(-1, Kind::Float).matmul(&values)
        });
        compared(&name, ours, theirs);
    }
    let heads = random(&[8, HEADS, 1, HEAD]);
    let (cos, sin) = (random(&[8, 1, 1, HEAD]), random(&[8, 1, 1, HEAD]));
    harness.measure("apply_rope, 8 rows", || {
        cpu_kernels::apply_rope(&heads, &cos, &sin).expect("f32 on the CPU")
    });
}

fn front_ends(harness: &Harness) {
    let samples: Vec<f32> = (0..441_000).map(|at| (at as f32 * 0.05).sin()).collect();
    harness.measure("resample 10 s from 44.1 kHz", || resample(&samples, 44_100));
}
