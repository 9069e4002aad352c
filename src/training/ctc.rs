//! CTC alignment: the adapter alone, taught to lie where the language model's own tokens lie.
//!
//! Source: a finding of this project: with a frozen language model, next-token loss moves a fresh downsampler very slowly. CTC against the unit-length
//! embedding table costs a quarter per step and teaches the wanted thing. Targets are the tokens of " " + transcript.

use std::collections::{BTreeSet, HashMap};

use tch::{Reduction, Tensor};

use crate::models::ModelError;
use crate::models::adapter::{Adapted, CtcHead};
use crate::text::{TextError, Tokenizer};

/// Class of the blank.
const BLANK: i64 = 0;

/// Tokens that CTC is taught for a transcript: those of `" "` + transcript, as they look inside running text.
///
/// # Errors
/// [`TextError`] when the tokenizer refuses the text.
pub fn ctc_ids(tokenizer: &Tokenizer, transcript: &str) -> Result<Vec<i64>, TextError> {
    tokenizer.encode_plain(&format!(" {transcript}"))
}

/// Every token that occurs, in order: the classes after the blank.
pub fn classes_of<'a>(targets: impl IntoIterator<Item = &'a [i64]>) -> Vec<i64> {
    targets
        .into_iter()
        .flatten()
        .copied()
        .collect::<BTreeSet<i64>>()
        .into_iter()
        .collect()
}

/// The constant part of the CTC loss: unit-length rows of the classes, and where each token's class is.
#[derive(Debug)]
pub struct CtcTable {
    unit: Tensor,
    class_of: HashMap<i64, i64>,
    classes: Vec<i64>,
}

impl CtcTable {
    /// Prepares the table for a head.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`] when a class is no row of `embeddings` (`[V, H]`).
    pub fn new(head: &CtcHead, embeddings: &Tensor) -> Result<Self, ModelError> {
        let classes = head.classes().to_vec();
        let class_of = classes.iter().zip(1..).map(|(id, class)| (*id, class)).collect();
        Ok(Self {
            unit: head.unit_table(embeddings)?,
            class_of,
            classes,
        })
    }

    /// Class of each token; none when one of them is no class.
    pub fn classes(&self, ids: &[i64]) -> Option<Vec<i64>> {
        ids.iter().map(|id| self.class_of.get(id).copied()).collect()
    }

    /// Mean over rows of the loss per target token.
    ///
    /// Rows whose target does not fit into their positions count zero, as torch's `zero_infinity`.
    ///
    /// # Shapes
    /// `adapted` `[B, P, H]`; `targets`: classes of each row, none empty.
    ///
    /// # Errors
    /// [`ModelError`] when there is not one non-empty target per row.
    pub fn loss(
        &self,
        head: &CtcHead,
        adapted: &Adapted,
        targets: &[Vec<i64>],
    ) -> Result<Tensor, ModelError> {
        if targets.len() != adapted.lengths.len() || targets.iter().any(Vec::is_empty) {
            return Err(ModelError::Shape {
                what: "CTC targets",
                expected: format!("{} targets, none empty", adapted.lengths.len()),
                found: targets
                    .iter()
                    .map(|target| i64::try_from(target.len()).unwrap_or(i64::MAX))
                    .collect(),
            });
        }
        let scores = head
            .log_probabilities(&adapted.positions, &self.unit)?
            .f_transpose(0, 1)?; // [P, B, 1+C]
        let lengths: Vec<i64> = targets
            .iter()
            .map(|target| i64::try_from(target.len()).unwrap_or(i64::MAX))
            .collect();
        let flat = Tensor::f_from_slice(&targets.concat())?.f_to_device(scores.device())?;
        Ok(Tensor::f_ctc_loss(
            &scores,
            &flat,
            adapted.lengths.as_slice(),
            lengths.as_slice(),
            BLANK,
            Reduction::Mean,
            true,
        )?)
    }

    /// Greedy reading of each row: the likeliest class at each position, repeats joined, blanks dropped; token ids.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when shapes disagree.
    pub fn read(&self, head: &CtcHead, adapted: &Adapted) -> Result<Vec<Vec<i64>>, ModelError> {
        let _guard = tch::no_grad_guard();
        let best = head
            .log_probabilities(&adapted.positions, &self.unit)?
            .f_argmax(-1, false)?; // [B, P]
        let positions = usize::try_from(best.size()[1]).unwrap_or(0);
        let best = Vec::<i64>::try_from(best.f_view([-1])?)?;
        let rows = best.chunks(positions.max(1)).zip(&adapted.lengths);
        Ok(rows
            .map(|(row, length)| {
                let mut ids = Vec::new();
                let mut before = BLANK;
                for class in row.iter().take(usize::try_from(*length).unwrap_or(0)).copied() {
                    if class != BLANK && class != before {
                        ids.push(
                            self.classes[usize::try_from(class - 1).expect("a class is 1 or more here")],
                        );
                    }
                    before = class;
                }
                ids
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::adapter::{AdapterConfig, SpeechAdapter};
    use crate::models::config::LayerMix;
    use tch::{Device, Kind};

    fn adapter() -> SpeechAdapter {
        let config = AdapterConfig {
            encoder_width: 4,
            encoder_layers: 1,
            llm_width: 6,
            mix: LayerMix::Last,
            strides: vec![2, 2],
            kernel: 3,
        };
        let mut adapter = SpeechAdapter::new(config, 1.0, 3, Device::Cpu).unwrap();
        adapter.set_ctc_classes(vec![10, 20, 30], 3).unwrap();
        adapter
    }

    fn embeddings() -> Tensor {
        (Tensor::arange(40 * 6, (Kind::Float, Device::Cpu)) * 1.7)
            .sin()
            .view([40, 6])
    }

    #[test]
    fn classes_are_the_tokens_that_occur_once_each_and_in_order() {
        assert_eq!(classes_of([[5, 3].as_slice(), &[3, 9]]), [3, 5, 9]);
    }

    #[test]
    fn a_reading_joins_repeats_and_drops_blanks() {
        let adapter = adapter();
        let head = adapter.ctc_head().unwrap();
        let table = CtcTable::new(head, &embeddings()).unwrap();
        let blank = adapter.variables()["ctc.blank"].detach();
        let token = |id: i64| embeddings().get(id);
        let row = Tensor::stack(
            &[
                token(20),
                token(20),
                blank.shallow_clone(),
                token(20),
                token(10),
                token(30),
            ],
            0,
        );

        let ids = table
            .read(
                head,
                &Adapted {
                    positions: row.unsqueeze(0),
                    lengths: vec![5],
                },
            )
            .unwrap();

        assert_eq!(ids, [[20, 20, 10]]);
        assert_eq!(table.classes(&[30, 10]), Some(vec![3, 1]));
        assert_eq!(table.classes(&[30, 11]), None);
    }

    #[test]
    fn a_tiny_batch_can_be_learned_by_heart() {
        let adapter = adapter();
        let head = adapter.ctc_head().unwrap();
        let table = CtcTable::new(head, &embeddings()).unwrap();
        let features = (Tensor::arange(2 * 24 * 4, (Kind::Float, Device::Cpu)) * 0.9)
            .sin()
            .view([2, 24, 4])
            * 2.0;
        let lengths = [24, 17];
        let targets = vec![vec![1, 2, 3], vec![3, 1]];
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

        for _ in 0..150 {
            optimizer.zero_grad();
            let loss = table
                .loss(head, &adapter.forward(&features, &lengths).unwrap(), &targets)
                .unwrap();
            loss.backward();
            optimizer.step(0.02);
            last = loss.double_value(&[]);
        }

        assert!(last < 0.1, "{last}");
        let read = table
            .read(head, &adapter.forward(&features, &lengths).unwrap())
            .unwrap();
        assert_eq!(read, [vec![10, 20, 30], vec![30, 10]]);
    }

    #[test]
    fn a_target_that_does_not_fit_counts_nothing_instead_of_infinity() {
        let adapter = adapter();
        let head = adapter.ctc_head().unwrap();
        let table = CtcTable::new(head, &embeddings()).unwrap();
        let features = Tensor::ones([1, 4, 4], (Kind::Float, Device::Cpu));

        let loss = table
            .loss(head, &adapter.forward(&features, &[4]).unwrap(), &[vec![1, 2, 3]])
            .unwrap();

        assert_eq!(loss.double_value(&[]), 0.0);
        assert!(
            table
                .loss(head, &adapter.forward(&features, &[4]).unwrap(), &[vec![]])
                .is_err()
        );
    }
}
