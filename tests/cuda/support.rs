//! The device under test, inputs, and how results are compared.

use std::path::{Path, PathBuf};

use speechverse::nn::accel::{DeviceChoice, Placement, PrecisionChoice};
use speechverse::nn::lora::{LoraConfig, LoraSet, LoraSite};
use tch::{Device, Kind, Tensor};

/// Names the device under test, for people and for `scripts/gpu/test.sh`.
const DEVICE: &str = "SPEECHVERSE_CUDA_TESTS";
/// How far bf16 may be from f32, as a multiple of how far it is on the CPU …
const BF16_FACTOR: f64 = 3.0;
/// … and beyond that, relative to the length of the f32 result.
const BF16_SLACK: f64 = 0.02;

/// The device under test; none, and `test` reported as skipped, where there is no GPU and none was asked for.
///
/// Resolved before anything else asks torch for CUDA.
pub(crate) fn device(test: &str) -> Option<DeviceChoice> {
    let asked = std::env::var(DEVICE).ok();
    let device: DeviceChoice = (asked.as_deref().unwrap_or("cuda:0"))
        .parse()
        .unwrap_or_else(|error| panic!("{DEVICE}: {error}"));
    match Placement::resolve(device, PrecisionChoice::F32) {
        Ok(_) => Some(device),
        Err(error) if asked.is_none() => {
            speechverse::testing::skip(test, &format!("no CUDA device: {error}"));
            None
        }
        Err(error) => panic!("{DEVICE}: {error}"),
    }
}

/// Largest error of an f32 result, relative to its largest number: 1e-4 where convolutions compute in f32. On
/// a GPU cuDNN's round their inputs to TF32 (10 bits) unless `NVIDIA_TF32_OVERRIDE=0` forbids it; matrix
/// products do not.
pub(crate) fn convolved() -> f64 {
    let forbidden = std::env::var("NVIDIA_TF32_OVERRIDE").is_ok_and(|value| value == "0");
    if forbidden { EXACT } else { 1e-2 }
}

/// Largest error of an f32 result without convolutions, relative to its largest number.
pub(crate) const EXACT: f64 = 1e-4;

pub(crate) fn placement(device: DeviceChoice, precision: PrecisionChoice) -> Placement {
    Placement::resolve(device, precision).unwrap()
}

/// A fixture's folder. The variable is for a test binary that runs on a machine where it was not built.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(), PathBuf::from);
    root.join("tests/fixtures").join(name)
}

/// Uniform noise, the same for the same seed.
pub(crate) fn noise(samples: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.3
    };
    (0..samples).map(|_| next()).collect()
}

/// Numbers between −1 and 1, on the CPU.
pub(crate) fn waves(size: &[i64], phase: f64) -> Tensor {
    let count: i64 = size.iter().product();
    (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.7 + phase)
        .sin()
        .view(size)
}

/// A low-rank set on every projection, with the same numbers on every device, ready to learn.
pub(crate) fn lora(sites: &[LoraSite], device: Device) -> LoraSet {
    let mut targets: Vec<String> = (sites.iter())
        .filter_map(|site| site.path.rsplit('.').next().map(str::to_owned))
        .collect();
    targets.sort();
    targets.dedup();
    let config = LoraConfig {
        rank: 3,
        targets,
        ..LoraConfig::default()
    };
    let set = LoraSet::new(config, sites, device).unwrap();
    let _no_grad = tch::no_grad_guard();
    for (index, mut tensor) in set.parameters().into_values().enumerate() {
        tensor.copy_(&(waves(&tensor.size(), index as f64) * 0.1));
    }
    set
}

fn plain(tensor: &Tensor) -> Tensor {
    tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double)
}

/// Fails where `found` is further from `right` than `tolerance` times the largest number in `right`.
pub(crate) fn assert_close(what: &str, found: &Tensor, right: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), right.size(), "{what}");
    let (found, right) = (plain(found), plain(right));
    let error = (found - &right).abs().max().double_value(&[]);
    let largest = right.abs().max().double_value(&[]);
    // Also false where either is no number.
    assert!(
        error <= tolerance * largest,
        "{what}: error {error:e} of {largest:e}"
    );
}

/// Fails where bf16 on the device is much further from f32 than bf16 on the CPU is.
pub(crate) fn assert_bf16(what: &str, found: &Tensor, on_cpu: &Tensor, exact: &Tensor) {
    let exact = plain(exact);
    let error = |tensor: &Tensor| ((plain(tensor) - &exact).norm() / exact.norm()).double_value(&[]);
    let (error, usual) = (error(found), error(on_cpu));
    assert!(
        error <= BF16_FACTOR * usual + BF16_SLACK,
        "{what}: bf16 is {error:e} from f32, on the CPU {usual:e}"
    );
}
