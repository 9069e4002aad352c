//! Initial values of an adapter.

use std::collections::BTreeMap;

use super::AdapterConfig;
use super::plain::{PlainData, PlainTensor};
use super::snapshot::{RESIDUAL, SUMMARY};
use crate::models::config::LayerMix;
use crate::util::random::SplitMix;

/// Values of all variables of a valid `config`; see [`SpeechAdapter::new`](super::SpeechAdapter::new).
pub(super) fn values(config: &AdapterConfig, gain: f64, seed: u64) -> BTreeMap<String, PlainTensor> {
    let mut random = SplitMix::new(&[seed, 0xada9]);
    let last = config.strides.len() - 1;
    let mut tensors = BTreeMap::new();
    let mut fan_in = config.encoder_width * config.kernel;
    for (name, shape) in config.variables() {
        let count = usize::try_from(shape.iter().product::<i64>()).expect("validated sizes");
        #[expect(
            clippy::cast_possible_truncation,
            reason = "initial values need no more than f32"
        )]
        let data: Vec<f32> = if name == "mix.weight" {
            vec![if config.mix == LayerMix::Paper { 1.0 } else { 0.0 }; count]
        } else if name.ends_with("norm.weight") {
            let is_last = name == format!("downsample.{last}.norm.weight") || name.starts_with(SUMMARY);
            vec![if is_last { gain as f32 } else { 1.0 }; count]
        } else if name.ends_with("norm.bias") || (name.starts_with(RESIDUAL) && name.contains("linear")) {
            vec![0.0; count] // a residual block adds nothing at first
        } else {
            match shape[..] {
                [_, width, kernel] => fan_in = width * kernel,
                [_, width] => fan_in = width,
                _ => {} // a bias has its weight's
            }
            #[expect(clippy::cast_precision_loss, reason = "small integers")]
            let bound = 1.0 / (fan_in as f64).sqrt();
            (0..count).map(|_| random.between(-bound, bound) as f32).collect()
        };
        tensors.insert(
            name,
            PlainTensor {
                shape,
                data: PlainData::F32(data),
            },
        );
    }
    tensors
}
