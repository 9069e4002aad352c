//! `SpeechAdapter`: the learnable joint between a frozen speech encoder and a frozen language model.
//!
//! A layer mix over the encoder's states, then a chain of blocks (1-D convolution, layer norm; no activation
//! unless the configuration names one) that brings 50 frames a second down to 12.5 frames of the language
//! model's width, with residual blocks before the last norm if so configured. Padded frames are zeroed before
//! each block, so a clip comes out the same alone and inside a padded batch. What the language model reads
//! are these frames, or one position for each CTC segment of them; before it, if so configured, a position of
//! the whole clip. An embedding of what is said, made of the segments, is for the choice of labels alone.
//!
//! Source: SpeechVerse (arXiv 2405.08295) §2.1. Convolutions are full, with bias, padded symmetrically by
//! zeros; the paper's parameter totals say so. One departure, in initial values only: the last norm's gain
//! starts at the root mean square of the language model's embedding table instead of 1, so that positions
//! enter the frozen network as loud as its own tokens.
//!
//! Variables: `mix.weight`; `downsample.{i}.{conv,norm}.{weight,bias}`;
//! `residual.{i}.{norm,conv,linear}.{weight,bias}`; with a summary
//! `summary.{inner.linear,outer.linear,norm}.{weight,bias}`; with an embedding of what is said
//! `sentence.{norm,conv,linear}.{weight,bias}`; with a CTC head `ctc.blank`, `ctc.scale` and the
//! list `ctc.classes`. f32 everywhere, whatever the frozen networks compute in; products may be bf16.

mod config;
mod ctc_align;
mod ctc_head;
mod ctc_prefix;
mod ctc_spoken;
mod fresh;
mod label_scores;
mod layers;
mod lora_snapshot;
pub mod plain;
mod segments;
mod snapshot;

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor, nn};

pub use config::AdapterConfig;
pub use ctc_head::{CtcHead, KnownPaths};
pub use ctc_prefix::{Prefix, PrefixScorer};
pub use label_scores::{label_embeddings, label_scores, scores_of_embeddings};
pub use layers::embedding_rms;
pub use lora_snapshot::LoraSnapshot;
pub use snapshot::AdapterSnapshot;

use crate::models::config::{Activation, LayerMix, Positions};
use crate::models::{HiddenStates, ModelError};
use ctc_head::{MeanOf, NO_SEGMENTS};
use layers::{Block, Compute, ConvLayer, ResidualBlock, Sentence, Summary, convolve, dropout, layer_norm};
use plain::{PlainData, PlainTensor};

pub(crate) const CTC_BLANK: &str = "ctc.blank";
pub(crate) const CTC_SCALE: &str = "ctc.scale";
pub(crate) const CTC_CLASSES: &str = "ctc.classes";

/// Adapter output: frames of the downsampler, or the positions of the language model that are made of them.
#[derive(Debug)]
pub struct Adapted {
    /// `[B, P, H]`, f32; what lies beyond a row's length is of no meaning.
    pub positions: Tensor,
    /// Valid positions of each row.
    pub lengths: Vec<i64>,
}

/// The learnable joint, with its variables on one device. Belongs to one thread at a time.
#[derive(Debug)]
pub struct SpeechAdapter {
    config: AdapterConfig,
    store: nn::VarStore,
    mix: Option<Tensor>,
    blocks: Vec<Block>,
    residual_blocks: Vec<ResidualBlock>,
    summary: Option<Summary>,
    sentence: Option<Sentence>,
    ctc: Option<CtcHead>,
    compute: Compute,
}

impl SpeechAdapter {
    /// A fresh adapter. Convolutions start as torch's do (uniform within `1/√fan_in`), residual blocks as the
    /// identity, norms at 1 and 0, the
    /// last norm's gain at `gain` (root mean square of the embedding table), mix scalars at 1 (paper form) or
    /// 0 (softmax form).
    ///
    /// # Errors
    /// [`ModelError`] when a size is out of range or libtorch fails.
    pub fn new(config: AdapterConfig, gain: f64, seed: u64, device: Device) -> Result<Self, ModelError> {
        config.validate()?;
        let tensors = fresh::values(&config, gain, seed);
        let snapshot = AdapterSnapshot::new("fresh", config, tensors, Path::new("fresh adapter"))?;
        Self::from_snapshot(&snapshot, device, true)
    }

    /// Makes this thread's own tensors of a version. Only a `trainable` one requires gradients.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn from_snapshot(
        snapshot: &AdapterSnapshot,
        device: Device,
        trainable: bool,
    ) -> Result<Self, ModelError> {
        let config = snapshot.config().clone();
        let store = nn::VarStore::new(device);
        let root = store.root();
        let variable = |name: &str| -> Result<Tensor, ModelError> {
            let value = snapshot.tensors()[name].to_tensor(device)?;
            let mut path = root.clone();
            let parts: Vec<&str> = name.split('.').collect();
            let (leaf, folders) = parts.split_last().expect("names are not empty");
            for folder in folders {
                path = path / *folder;
            }
            Ok(path.f_var_copy(leaf, &value)?)
        };
        let mix = match config.mix {
            LayerMix::Last => None,
            LayerMix::Paper | LayerMix::Softmax => Some(variable("mix.weight")?),
        };
        let mut blocks = Vec::with_capacity(config.strides.len());
        for (at, stride) in config.strides.iter().enumerate() {
            let name = |part: &str| format!("downsample.{at}.{part}");
            blocks.push(Block::read(*stride, |part| variable(&name(part)))?);
        }
        let mut residual_blocks = Vec::new();
        for at in 0..config.residual_blocks {
            let name = |part: &str| format!("residual.{at}.{part}");
            residual_blocks.push(ResidualBlock(ConvLayer::read(|part| variable(&name(part)))?));
        }
        let summary = match config.summary {
            false => None,
            true => Some(Summary::read(|part| variable(&format!("summary.{part}")))?),
        };
        let sentence = match config.sentence {
            false => None,
            true => Some(Sentence(ConvLayer::read(|part| {
                variable(&format!("sentence.{part}"))
            })?)),
        };
        let ctc = match snapshot
            .tensors()
            .get(CTC_CLASSES)
            .and_then(PlainTensor::integers)
        {
            None => None,
            Some(classes) => Some(CtcHead::new(
                variable(CTC_BLANK)?,
                variable(CTC_SCALE)?,
                classes.to_vec(),
            )),
        };
        let mut adapter = Self {
            config,
            store,
            mix,
            blocks,
            residual_blocks,
            summary,
            sentence,
            ctc,
            compute: Compute::EXACT,
        };
        if !trainable {
            adapter.store.freeze();
        }
        Ok(adapter)
    }

    /// Adds a CTC head over `classes` (token ids), with a random blank vector and scale 12, or replaces the
    /// list of classes of a head that is there.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn set_ctc_classes(&mut self, classes: Vec<i64>, seed: u64) -> Result<(), ModelError> {
        if let Some(head) = &mut self.ctc {
            head.set_classes(classes);
            return Ok(());
        }
        let path = self.store.root() / "ctc";
        self.ctc = Some(CtcHead::fresh(&path, self.config.llm_width, classes, seed)?);
        Ok(())
    }

    /// Gives the CTC head, where there is one, the rows of the language model's embedding table `[V, H]` that
    /// are its classes. Without it the head cannot score.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`] when a class is no row; [`ModelError::NoCtcHead`] when positions are
    /// made of the segments of a head that is not there.
    pub fn bind(&mut self, embeddings: &Tensor) -> Result<(), ModelError> {
        self.bind_in(embeddings, self.compute.products)
    }

    /// As [`bind`](Self::bind), with the head's scores multiplied in dtype `products` whatever the adapter's
    /// own layers are.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_in(&mut self, embeddings: &Tensor, products: Kind) -> Result<(), ModelError> {
        match (&mut self.ctc, self.config.positions) {
            (Some(head), _) => head.bind(embeddings, products),
            (None, Positions::Frames) => Ok(()),
            (None, Positions::CtcSegments | Positions::CtcPosteriors) => Err(NO_SEGMENTS),
        }
    }

    /// The dtype in which convolutions, linear maps and the CTC head's scores are multiplied from the next
    /// [`bind`](Self::bind) on: f32 unless set. Variables, sums of residual blocks, norms, probabilities and
    /// losses stay f32, so bf16 is the mixed precision of Micikevicius et al. (arXiv 1710.03740); it needs no
    /// loss scale, having the exponents of f32.
    pub fn set_products(&mut self, kind: Kind) {
        self.compute.products = kind;
    }

    /// Share of the inner values of convolutional layers, between the downsampling blocks too, that
    /// [`forward`](Self::forward) and [`sentence`](Self::sentence) leave out at random, by torch's generator;
    /// 0 for none, as in a fresh adapter.
    pub fn set_dropout(&mut self, share: f64) {
        self.compute.dropout = share;
    }

    /// The CTC head, when there is one.
    pub fn ctc_head(&self) -> Option<&CtcHead> {
        self.ctc.as_ref()
    }

    /// The CTC head, when there is one that fits the adapter as it is: [`AdapterConfig::ctc_trained`].
    pub fn trained_ctc_head(&self) -> Option<&CtcHead> {
        self.ctc_head().filter(|_| self.config.ctc_trained)
    }

    /// Notes whether the adapter is being trained with a CTC loss.
    pub fn set_ctc_trained(&mut self, trained: bool) {
        self.config.ctc_trained = trained;
    }

    /// Notes tasks whose labels the summary is being aligned with, beside those of earlier stages.
    pub fn add_summary_tasks(&mut self, tasks: &[String]) {
        add_names(&mut self.config.summary_tasks, tasks);
    }

    /// As [`add_summary_tasks`](Self::add_summary_tasks), for the embedding of what is said.
    pub fn add_sentence_tasks(&mut self, tasks: &[String]) {
        add_names(&mut self.config.sentence_tasks, tasks);
    }

    /// Sizes and form.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Where its variables are.
    pub fn device(&self) -> Device {
        self.store.device()
    }

    /// All variables by name, sharing storage.
    pub fn variables(&self) -> BTreeMap<String, Tensor> {
        self.store.variables().into_iter().collect()
    }

    /// An immutable copy of the present values.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails, or a number is not finite.
    pub fn snapshot(&self, version: &str) -> Result<AdapterSnapshot, ModelError> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in self.store.variables() {
            tensors.insert(name, PlainTensor::from_tensor(&tensor)?);
        }
        if let Some(head) = &self.ctc {
            let classes = head.classes().to_vec();
            let shape = vec![i64::try_from(classes.len()).unwrap_or(i64::MAX)];
            tensors.insert(
                CTC_CLASSES.to_owned(),
                PlainTensor {
                    shape,
                    data: PlainData::I64(classes),
                },
            );
        }
        AdapterSnapshot::new(version, self.config.clone(), tensors, Path::new(version))
    }

    /// Weight of each encoder state in the mixed features, `[L + 1]` f32, differentiable.
    pub fn mix_weights(&self) -> Tensor {
        let layers = self.config.encoder_layers;
        let options = (Kind::Float, self.store.device());
        match (self.config.mix, &self.mix) {
            (LayerMix::Paper, Some(w)) => {
                #[expect(clippy::cast_precision_loss, reason = "at most 1024 layers")]
                let share = 1.0 / layers as f64;
                Tensor::cat(&[Tensor::zeros([1], options), w * share], 0) // [L+1]
            }
            (LayerMix::Softmax, Some(w)) => w.softmax(0, Kind::Float), // [L+1]
            _ => Tensor::cat(&[Tensor::zeros([layers], options), Tensor::ones([1], options)], 0),
        }
    }

    /// Mixes all states into features, differentiable in the mix scalars. In place L stands the encoder's
    /// output, final norm applied.
    ///
    /// # Shapes
    /// `L + 1` states `[B, T, D]` → `[B, T, D]` f32.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when number or width of the states are not those of the adapter.
    pub fn mix(&self, hidden: &HiddenStates) -> Result<Tensor, ModelError> {
        let states = &hidden.states;
        let expected = usize::try_from(self.config.encoder_layers + 1).expect("validated");
        let shape = states.first().map(Tensor::size).unwrap_or_default();
        if states.len() != expected || shape.len() != 3 || shape[2] != self.config.encoder_width {
            let count = i64::try_from(states.len()).unwrap_or(i64::MAX);
            return Err(ModelError::Shape {
                what: "hidden states",
                expected: format!("[{expected}, B, T, {}]", self.config.encoder_width),
                found: std::iter::once(count).chain(shape).collect(),
            });
        }
        if self.config.mix == LayerMix::Last {
            return Ok(hidden.last.f_to_kind(Kind::Float)?);
        }
        // The paper's form leaves state 0 out; multiplying it by zero would only cost time.
        let first = usize::from(self.config.mix == LayerMix::Paper);
        let weights = self
            .mix_weights()
            .narrow(0, first as i64, (expected - first) as i64); // [K]
        let mixed: Vec<&Tensor> = states[first..expected - 1].iter().chain([&hidden.last]).collect();
        let stack = Tensor::f_stack(&mixed, 0)?.f_to_kind(Kind::Float)?; // [K, B, T, D]
        let flat = stack.f_view([(expected - first) as i64, -1])?; // [K, B·T·D]
        let mixed = weights.f_unsqueeze(0)?.f_matmul(&flat)?; // [1, B·T·D]
        Ok(mixed.f_view(shape.as_slice())?)
    }

    /// Maps mixed features to frames of the language model's width, 12.5 a second. See
    /// [`positions`](Self::positions) for what it reads of them.
    ///
    /// # Shapes
    /// `features` `[B, T, D]` float, `lengths` valid frames per row → `[B, P, H]` f32, `P = ceil(ceil(T / 2)
    /// / 2)` for strides `[2, 2]`.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when `features` is not `[B, T, D]` or `lengths` do not fit it.
    pub fn forward(&self, features: &Tensor, lengths: &[i64]) -> Result<Adapted, ModelError> {
        let size = features.size();
        let rows = i64::try_from(lengths.len()).unwrap_or(i64::MAX);
        let fits = matches!(size[..], [batch, frames, width]
            if batch == rows && rows > 0 && frames > 0 && width == self.config.encoder_width
                && lengths.iter().all(|length| (1..=frames).contains(length)));
        if !fits {
            return Err(ModelError::Shape {
                what: "features",
                expected: format!(
                    "[{rows}, T, {}] with lengths {lengths:?} in 1..=T",
                    self.config.encoder_width
                ),
                found: size,
            });
        }
        let mut x = features.f_to_kind(Kind::Float)?;
        let mut lengths = lengths.to_vec();
        for (at, block) in self.blocks.iter().enumerate() {
            if at > 0 && self.config.activation == Activation::Gelu {
                x = dropout(x.f_gelu("none")?, self.compute)?;
            }
            let conv = [&block.conv_weight, &block.conv_bias];
            x = convolve(&x, &lengths, conv, block.stride, self.compute)?; // [B, T', H]
            for length in &mut lengths {
                *length = (*length + block.stride - 1) / block.stride;
            }
            if at + 1 == self.blocks.len() {
                for residual in &self.residual_blocks {
                    x = residual.forward(&x, &lengths, self.compute)?;
                }
            }
            x = layer_norm(&x, &block.norm_weight, &block.norm_bias)?;
        }
        Ok(Adapted {
            positions: x,
            lengths,
        })
    }

    /// The position of each whole clip, where the adapter makes one.
    ///
    /// # Shapes
    /// `statistics` `[B, L+1, 2D]` → `[B, 1, H]` f32.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for statistics of another shape.
    pub fn summary(&self, statistics: &Tensor) -> Result<Option<Tensor>, ModelError> {
        let Some(summary) = &self.summary else {
            return Ok(None);
        };
        let expected = [self.config.encoder_layers + 1, 2 * self.config.encoder_width];
        let size = statistics.size();
        if size.len() != 3 || size[1..] != expected {
            return Err(ModelError::Shape {
                what: "statistics of hidden states",
                expected: format!("[B, {}, {}]", expected[0], expected[1]),
                found: size,
            });
        }
        Ok(Some(summary.forward(statistics)?))
    }

    /// The mean of the frames of each CTC segment, whatever form the positions have. `known`: the head's
    /// scores and paths, where they are.
    ///
    /// # Shapes
    /// `[B, P, H]` → `[B, S, H]` f32; 0 segments where nothing is said.
    ///
    /// # Errors
    /// [`ModelError::NoCtcHead`] when the head is missing or not bound.
    pub fn segments(&self, adapted: &Adapted, known: Option<KnownPaths<'_>>) -> Result<Adapted, ModelError> {
        let head = self.ctc.as_ref().ok_or(NO_SEGMENTS)?;
        head.positions(adapted, known, MeanOf::Frames, false)
    }

    /// An embedding of what is said in each clip, near the texts of the right labels ([`label_scores`]),
    /// where the adapter makes one. Where nothing is said it is the same for every clip.
    ///
    /// # Shapes
    /// `[B, S, H]` as [`segments`](Self::segments) makes them → `[B, H]` f32.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn sentence(&self, segments: &Adapted) -> Result<Option<Tensor>, ModelError> {
        let embedded =
            |sentence: &Sentence| sentence.forward(&segments.positions, &segments.lengths, self.compute);
        self.sentence.as_ref().map(embedded).transpose()
    }

    /// What the language model reads of frames that [`forward`](Self::forward) made: all of them, or the mean
    /// of each CTC segment, behind the position of the whole clip where there is one. At least one position
    /// for each row.
    ///
    /// # Shapes
    /// `[B, P, H]`, and the clips' `statistics` `[B, L+1, 2D]` ([`Encoded`](crate::models::Encoded)) →
    /// `[B, P', H]` f32.
    ///
    /// # Errors
    /// [`ModelError::NoCtcHead`] when segments are wanted and the head is missing or not bound;
    /// [`ModelError::Shape`] when a summary is wanted of statistics of another shape.
    pub fn positions(&self, adapted: &Adapted, statistics: &Tensor) -> Result<Adapted, ModelError> {
        self.positions_behind(self.summary(statistics)?.as_ref(), adapted, None)
    }

    /// As [`positions`](Self::positions), behind a [`summary`](Self::summary) `[B, 1, H]` that is there
    /// already, by the CTC head's log-probabilities `[B, P, 1 + C]` and the likeliest class of each valid
    /// frame ([`PrefixScorer::path`]) where they are.
    ///
    /// # Errors
    /// As [`positions`](Self::positions).
    pub fn positions_behind(
        &self,
        summary: Option<&Tensor>,
        adapted: &Adapted,
        known: Option<KnownPaths<'_>>,
    ) -> Result<Adapted, ModelError> {
        let mean_of = match self.config.positions {
            Positions::Frames => None,
            Positions::CtcSegments => Some(MeanOf::Frames),
            Positions::CtcPosteriors => Some(MeanOf::Embeddings),
        };
        let Adapted {
            mut positions,
            mut lengths,
        } = match (mean_of, &self.ctc) {
            (None, _) => Adapted {
                positions: adapted.positions.shallow_clone(),
                lengths: adapted.lengths.clone(),
            },
            (Some(of), Some(head)) => head.positions(adapted, known, of, self.summary.is_none())?,
            (Some(_), None) => return Err(NO_SEGMENTS),
        };
        if let Some(summary) = summary {
            if summary.size()[0] != positions.size()[0] {
                return Err(ModelError::Shape {
                    what: "summary of the statistics",
                    expected: format!("{} rows", positions.size()[0]),
                    found: summary.size(),
                });
            }
            positions = Tensor::f_cat(&[summary, &positions], 1)?; // [B, 1+P', H]
            lengths.iter_mut().for_each(|length| *length += 1);
        }
        Ok(Adapted { positions, lengths })
    }
}

fn add_names(known: &mut Vec<String>, names: &[String]) {
    known.extend(names.iter().cloned());
    known.sort_unstable();
    known.dedup();
}

#[cfg(test)]
mod tests;
