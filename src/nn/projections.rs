//! Frozen projections that can carry low-rank adapters.

use tch::Tensor;

use super::linear_weight::LinearWeight;
use super::lora::{LoraSet, LoraSite};
use crate::weights::Loader;

/// Frozen linear projections of the same input, multiplied as one matrix; LoRA still sees each by its own
/// name.
#[derive(Debug)]
pub struct Projections {
    /// `[sum of outputs, inputs]`.
    weight: LinearWeight,
    bias: Option<Tensor>,
    parts: Vec<LoraSite>,
}

impl Projections {
    /// Takes `{prefix}.{name}.weight` `[outputs, inputs]` of each part, and `{prefix}.{name}.bias` where
    /// there is one.
    pub fn load(
        loader: &mut Loader<'_>,
        prefix: &str,
        inputs: i64,
        parts: &[(&str, i64)],
        bias: bool,
    ) -> Self {
        let parts: Vec<LoraSite> = parts
            .iter()
            .map(|(name, outputs)| LoraSite {
                path: format!("{prefix}.{name}"),
                inputs,
                outputs: *outputs,
            })
            .collect();
        let rows = |what: &str| -> Vec<(String, i64)> {
            (parts.iter())
                .map(|part| (format!("{}.{what}", part.path), part.outputs))
                .collect()
        };
        Self {
            weight: LinearWeight::new(loader.take_joined(&rows("weight"), Some(inputs))),
            bias: bias.then(|| loader.take_joined(&rows("bias"), None)),
            parts,
        }
    }

    /// One projection by itself, without bias.
    pub fn one(loader: &mut Loader<'_>, prefix: &str, name: &str, inputs: i64, outputs: i64) -> Self {
        Self::load(loader, prefix, inputs, &[(name, outputs)], false)
    }

    /// Rounds the weights to 8-bit integers; see [`LinearWeight::quantize`].
    pub fn quantize(&mut self) {
        self.weight.quantize();
    }

    /// The projections by name: each can carry a low-rank adapter.
    pub fn sites(&self) -> &[LoraSite] {
        &self.parts
    }

    /// `[.., inputs]` → `[.., sum of outputs]`.
    pub fn forward(&self, input: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        let output = self.weight.multiply(input, self.bias.as_ref());
        let Some(lora) = lora else {
            return output;
        };
        if let Some(added) = lora.add_to_few(&self.parts, input, &output) {
            return added;
        }
        let deltas: Vec<Option<Tensor>> = (self.parts.iter())
            .map(|part| lora.delta(&part.path, input))
            .collect();
        if deltas.iter().all(Option::is_none) {
            return output;
        }
        if let [Some(delta)] = deltas.as_slice() {
            return output + delta;
        }
        let mut first = 0;
        let mut columns = Vec::new();
        for (part, delta) in self.parts.iter().zip(deltas) {
            let column = output.narrow(-1, first, part.outputs);
            columns.push(match delta {
                Some(delta) => column + delta,
                None => column,
            });
            first += part.outputs;
        }
        Tensor::cat(&columns, -1)
    }
}
