//! The networks and their training on an NVIDIA GPU, beside the same on the CPU.
//!
//! Where there is no CUDA device every test is skipped by name. `SPEECHVERSE_CUDA_TESTS` names the device and
//! makes its absence a failure; `cpu` tries the tests themselves. `scripts/gpu/test.sh` runs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod learning;
mod networks;
mod support;

use speechverse::nn::accel::{CudaState, DeviceChoice, Placement, Precision, PrecisionChoice, load_cuda};
use tch::{Device, Kind};

#[test]
fn placement_chooses_the_gpu_and_replaces_int8_by_bf16() {
    let Some(device) = support::device("placement_chooses_the_gpu_and_replaces_int8_by_bf16") else {
        return;
    };
    let DeviceChoice::Cuda(number) = device else {
        assert_eq!(device, DeviceChoice::Cpu, "{device} is not compared with the CPU");
        return;
    };

    let first = Placement::resolve(DeviceChoice::Auto, PrecisionChoice::Auto).unwrap();
    let int8 = Placement::resolve(device, PrecisionChoice::Int8).unwrap();
    let f32 = Placement::resolve(device, PrecisionChoice::F32).unwrap();

    assert!(matches!(load_cuda(), CudaState::Devices(count) if *count > number));
    assert_eq!(
        (first.device, first.precision),
        (Device::Cuda(0), Precision::Bf16)
    );
    assert_eq!(
        (int8.device, int8.precision, int8.kind()),
        (Device::Cuda(number), Precision::Bf16, Kind::BFloat16)
    );
    assert!(
        int8.reason.contains("int8 is configured: that is for the CPU"),
        "{int8}"
    );
    assert_eq!((f32.device, f32.kind()), (Device::Cuda(number), Kind::Float));
}
