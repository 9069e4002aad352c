//! A new task for an aligned summary without forgetting those that it was aligned with.
//!
//! A summary all of whose weights learn a new task forgets the earlier ones, whose clips are not there any
//! more. Here only a few units of its inner layer learn, those that matter least, from fresh values; and what
//! they add to the position is at right angles to the labels of the earlier tasks, so that the order of
//! these labels' scores stays as it is, while the position's length may change. It is orthogonal gradient
//! descent (Farajtabar et al. 2020, arXiv 1910.07104) with labels in the place of gradients. Decision 24
//! has the measurements.

use tch::Tensor;

use super::TrainingError;
use super::prompt_variants::TaskCatalog;
use crate::inference::speech_llm::SpeechLlm;
use crate::models::adapter::{SpeechAdapter, label_embeddings};
use crate::training::config::TrainingConfig;
use crate::util::random::SplitMix;

/// What learns of a summary where `summary_units` says so.
pub const LEARNED: [&str; 3] = [
    "summary.inner.linear.weight",
    "summary.inner.linear.bias",
    "summary.outer.linear.weight",
];
/// Scales the summary in its last step.
const NORM: &str = "summary.norm.weight";
/// Distinguishes the seed of fresh values from those of other choices.
const SEED: u64 = 0x5a_11e7;

/// The units of a summary's inner layer that learn, and what must not change.
#[derive(Debug)]
pub struct SummaryUnits {
    /// Which units, `[U]` i64.
    units: Tensor,
    /// The variables, sharing storage with the adapter: `[K, S]`, `[K]`, `[H, K]`.
    variables: [Tensor; 3],
    /// Their values at the beginning.
    start: [Tensor; 3],
    /// Orthonormal basis of what earlier labels read, `[H, N]`.
    taken: Tensor,
}

impl SummaryUnits {
    /// Begins `count` units of an adapter's summary anew, those with the smallest weights inwards and
    /// outwards: they add nothing yet.
    ///
    /// `earlier`: tokens of the labels of the tasks that it was aligned with before; `table` `[V, H]` the
    /// language model's embeddings.
    ///
    /// # Errors
    /// [`TrainingError::Settings`] when the summary has fewer units, or its width has no direction that is
    /// free of labels; [`TrainingError`] when libtorch fails.
    pub fn begin(
        adapter: &SpeechAdapter,
        count: usize,
        earlier: &[Vec<i64>],
        table: &Tensor,
        seed: u64,
    ) -> Result<Self, TrainingError> {
        let _no_grad = tch::no_grad_guard();
        let all = adapter.variables();
        let variable = |name: &str| all.get(name).map(Tensor::shallow_clone);
        let found = LEARNED.map(variable);
        let ([Some(mut inner), Some(mut bias), Some(mut outer)], Some(norm)) = (found, variable(NORM)) else {
            return Err(settings(
                "`summary_units` needs an adapter with a summary".to_owned(),
            ));
        };
        let (width, known) = (inner.size()[1], inner.size()[0]);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        if count > known {
            return Err(settings(format!(
                "`summary_units` is {count}, the summary has {known}"
            )));
        }
        let size = |weight: &Tensor, over: i64| weight.f_norm_scalaropt_dim(2, [over].as_slice(), false);
        let matters = size(&inner, 1)?.f_mul(&size(&outer, 0)?)?; // [K]
        let (_, units) = matters.f_topk(count, 0, false, true)?; // [U]

        let mut random = SplitMix::new(&[seed, SEED]);
        #[expect(clippy::cast_precision_loss, reason = "a width")]
        let bound = 1.0 / (width as f64).sqrt();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "initial values need no more than f32"
        )]
        let fresh: Vec<f32> = (0..count * width)
            .map(|_| random.between(-bound, bound) as f32)
            .collect();
        let fresh = Tensor::f_from_slice(&fresh)?.f_view([count, width])?;
        let _ = inner.f_index_copy_(0, &units, &fresh.f_to_device(inner.device())?)?;
        let _ = bias.f_index_fill_(0, &units, 0.0)?;
        let _ = outer.f_index_fill_(1, &units, 0.0)?;

        // The norm takes the mean out, then scales: a label reads what lies along (label · scale), and
        // nothing reads the mean.
        let mut read = vec![Tensor::f_ones_like(&norm)?.f_unsqueeze(0)?];
        if !earlier.is_empty() {
            read.push(label_embeddings(earlier, table)?.f_mul(&norm)?); // [N, H]
        }
        let read = Tensor::f_cat(&read, 0)?;
        if read.size()[0] >= read.size()[1] {
            return Err(settings(format!(
                "{} labels of earlier tasks leave no direction of a position of {} values to new ones",
                earlier.len(),
                read.size()[1]
            )));
        }
        let (taken, _) = Tensor::f_linalg_qr(&read.f_tr()?, "reduced")?; // [H, N + 1]
        let variables = [inner, bias, outer];
        Ok(Self {
            start: variables.each_ref().map(Tensor::copy),
            units,
            variables,
            taken,
        })
    }

    /// After a step: takes back what it did to other units, and what the units would add to earlier labels.
    ///
    /// # Errors
    /// [`TrainingError`] when libtorch fails.
    pub fn hold(&mut self) -> Result<(), TrainingError> {
        let _no_grad = tch::no_grad_guard();
        for ((variable, start), dim) in self.variables.iter_mut().zip(&self.start).zip([0, 0, 1]) {
            let mut learned = variable.f_index_select(dim, &self.units)?;
            if dim == 1 {
                let along = self.taken.f_tr()?.f_matmul(&learned)?; // [N, U]
                learned = learned.f_sub(&self.taken.f_matmul(&along)?)?; // [H, U]
            }
            let mut held = start.copy();
            let _ = held.f_index_copy_(dim, &self.units, &learned)?;
            variable.f_copy_(&held)?;
        }
        Ok(())
    }
}

/// Tokens of the labels of tasks, as their files list them.
pub(super) fn labels_of(
    tasks: &[String],
    run: &TrainingConfig,
    llm: &SpeechLlm,
) -> Result<Vec<Vec<i64>>, TrainingError> {
    let catalog = TaskCatalog::load(run)?;
    let mut labels = Vec::new();
    for name in tasks {
        let Some(task) = catalog.file_of(name) else {
            return Err(TrainingError::Settings {
                problem: format!(
                    "`summary_units` keeps task `{name}` as it is, and `tasks_dir` has no file of it"
                ),
            });
        };
        for label in &task.labels {
            labels.push(llm.spoken_ids(&label.name)?);
        }
    }
    Ok(labels)
}

fn settings(problem: String) -> TrainingError {
    TrainingError::Settings { problem }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::models::adapter::{AdapterConfig, label_scores};

    const ROWS: i64 = 5;

    fn adapter() -> SpeechAdapter {
        let config = AdapterConfig {
            summary: true,
            ..AdapterConfig::paper(6, 3, 16)
        };
        SpeechAdapter::new(config, 1.0, 5, Device::Cpu).unwrap()
    }

    fn table() -> Tensor {
        Tensor::eye(16, (Kind::Float, Device::Cpu)) + 0.1
    }

    /// Scores `[ROWS, labels]` of clips that are all different.
    fn scores(adapter: &SpeechAdapter, labels: &[Vec<i64>]) -> Tensor {
        let values = Tensor::arange(ROWS * 4 * 12, (Kind::Float, Device::Cpu)).sin();
        let summaries = adapter.summary(&values.view([ROWS, 4, 12])).unwrap().unwrap(); // [ROWS, 1, 16]
        let rows: Vec<Tensor> = (0..ROWS)
            .map(|row| label_scores(&summaries.get(row).get(0), labels, &table()).unwrap())
            .collect();
        Tensor::stack(&rows, 0)
    }

    #[test]
    fn a_new_label_is_learned_and_the_scores_of_earlier_ones_keep_their_proportions() {
        let adapter = adapter();
        let (earlier, new) = ([vec![0], vec![1, 2], vec![3]], [vec![4], vec![5]]);
        let untouched = adapter.snapshot("untouched").unwrap();
        let mut units = SummaryUnits::begin(&adapter, 8, &earlier, &table(), 1).unwrap();
        let (before, new_before) = (scores(&adapter, &earlier), scores(&adapter, &new));

        for _ in 0..30 {
            let loss = -scores(&adapter, &new)
                .log_softmax(1, Kind::Float)
                .select(1, 0)
                .mean(Kind::Float);
            for variable in &mut units.variables {
                variable.zero_grad();
            }
            loss.backward();
            tch::no_grad(|| {
                for variable in &mut units.variables {
                    let step = variable.grad() * 0.5;
                    let _ = variable.f_sub_(&step).unwrap();
                }
            });
            units.hold().unwrap();
        }

        let ahead = |scores: &Tensor| {
            (scores.select(1, 0) - scores.select(1, 1))
                .min()
                .double_value(&[])
        };
        let learned = scores(&adapter, &new);
        assert!(
            ahead(&learned) > ahead(&new_before) + 1.0,
            "{learned} {new_before}"
        );
        // Each row by a factor of its own: the position has become longer.
        let factors = scores(&adapter, &earlier) / before;
        let spread = (factors.amax([1i64].as_slice(), false) - factors.amin([1i64].as_slice(), false)).max();
        assert!(spread.double_value(&[]) < 1e-3, "{factors}");
        assert!(
            (factors - 1.0).abs().max().double_value(&[]) > 1e-3,
            "nothing was learned"
        );
        let now = adapter.snapshot("now").unwrap();
        for (name, tensor) in now.tensors() {
            let moved = *tensor != untouched.tensors()[name];
            assert_eq!(moved, LEARNED.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn only_the_chosen_units_change() {
        let adapter = adapter();
        let mut units = SummaryUnits::begin(&adapter, 8, &[], &table(), 1).unwrap();
        tch::no_grad(|| {
            for variable in &mut units.variables {
                let count = i64::try_from(variable.numel()).unwrap();
                let step = Tensor::arange(count, (Kind::Float, Device::Cpu)).sin() + 2.0;
                let _ = variable.f_add_(&step.view_as(variable)).unwrap();
            }
        });

        units.hold().unwrap();

        for ((variable, start), dim) in units.variables.iter().zip(&units.start).zip([0, 0, 1]) {
            let changed = variable.ne_tensor(start);
            let changed = match (variable.dim(), dim) {
                (1, _) => changed,
                (_, 0) => changed.any_dim(1, false),
                _ => changed.any_dim(0, false),
            };
            assert_eq!(changed.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]), 8);
        }
    }

    #[test]
    fn more_units_than_there_are_and_labels_that_leave_no_direction_are_refused() {
        let adapter = adapter();
        let labels: Vec<Vec<i64>> = (0..16).map(|token| vec![token]).collect();
        let refused = |count, labels: &[Vec<i64>]| {
            let refused = SummaryUnits::begin(&adapter, count, labels, &table(), 1).map(|_| ());
            refused.unwrap_err().to_string()
        };

        assert!(refused(129, &[]).contains("the summary has 128"));
        assert!(refused(8, &labels).contains("no direction"));
    }
}
