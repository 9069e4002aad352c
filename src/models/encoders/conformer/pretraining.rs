//! The encoder while it learns: the same network over a variable store, the quantiser, and one softmax head
//! per codebook.
//!
//! Its folder is an encoder's (`config.json`, `model.safetensors`) with `pretraining.safetensors` beside
//! them: the quantiser and the heads, which nobody needs who only uses the encoder.

use std::path::Path;

use tch::{Device, Kind, Reduction, TchError, Tensor, nn};

use super::config::{ConformerConfig, ConvNorm, Normalization};
use super::encoder::samples_max;
use super::front_end::{Features, FrontEnd, Statistics};
use super::network::Conformer;
use super::quantizer::{Quantizer, QuantizerConfig};
use super::variables::{Learning, Start, Variables};
use crate::models::ModelError;
use crate::models::clips::check_clips;
use crate::weights::Checkpoint;

const CONFIG: &str = "config.json";
const MODEL: &str = "model.safetensors";
const PRETRAINING: &str = "pretraining.safetensors";

/// Everything that pre-training needs of the network.
pub struct Pretraining {
    config: ConformerConfig,
    store: nn::VarStore,
    front_end: FrontEnd,
    network: Conformer,
    quantizer: Quantizer,
    heads: Heads,
}

impl std::fmt::Debug for Pretraining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pretraining")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Pretraining {
    /// A fresh network; `statistics` are needed where the configuration normalises by them.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] when the configuration cannot be trained.
    pub fn new(
        config: ConformerConfig,
        quantizer: &QuantizerConfig,
        statistics: Option<Statistics>,
        seed: u64,
        device: Device,
    ) -> Result<Self, ModelError> {
        check_trainable(&config)?;
        if (config.normalize == Normalization::Global) != statistics.is_some() {
            return Err(unsupported(
                "normalize",
                format!("{:?}", config.normalize),
                "statistics of the training data with `global`, none with `utterance`",
            ));
        }
        let store = nn::VarStore::new(device);
        let mut variables = Learning::new(&store, None, seed);
        let network = Conformer::declare(&mut variables, &config);
        let heads = Heads::declare(&mut variables, quantizer, config.hidden_size);
        let statistics = statistics.map(|found| Statistics {
            mean: found.mean.to_device(device),
            deviation: found.deviation.to_device(device),
        });
        Ok(Self {
            front_end: FrontEnd::new(config.num_mel_bins, statistics, device),
            quantizer: Quantizer::new(quantizer, config.num_mel_bins, seed, device),
            network,
            heads,
            store,
            config,
        })
    }

    /// Takes up what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`ModelError`] when a file is missing or damaged, or a tensor does not fit.
    pub fn load(folder: &Path, quantizer: &QuantizerConfig, device: Device) -> Result<Self, ModelError> {
        let config = ConformerConfig::read(&folder.join(CONFIG))?;
        check_trainable(&config)?;
        let store = nn::VarStore::new(device);

        let file = Checkpoint::open_file(folder.join(MODEL))?;
        let mut loader = file.loader(device, Kind::Float);
        let front_end = FrontEnd::load(&mut loader, &config);
        let network = Conformer::declare(&mut Learning::new(&store, Some(&mut loader), 0), &config);
        loader.finish()?;

        let file = Checkpoint::open_file(folder.join(PRETRAINING))?;
        let mut loader = file.loader(device, Kind::Float);
        let loaded = Quantizer::load(&mut loader, quantizer, config.num_mel_bins);
        let mut variables = Learning::new(&store, Some(&mut loader), 0);
        let heads = Heads::declare(&mut variables, quantizer, config.hidden_size);
        loader.finish()?;
        Ok(Self {
            quantizer: loaded,
            config,
            store,
            front_end,
            network,
            heads,
        })
    }

    /// Writes configuration, encoder, quantiser and heads into a folder that exists.
    ///
    /// # Errors
    /// [`ModelError`] when something cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let json = serde_json::to_vec_pretty(&self.config).expect("numbers and strings only");
        let path = folder.join(CONFIG);
        std::fs::write(&path, json).map_err(|error| ModelError::File {
            path,
            reason: error.to_string(),
        })?;
        let mut model: Vec<(String, Tensor)> = Vec::new();
        let mut beside: Vec<(String, Tensor)> = Vec::new();
        for (name, tensor) in self.variables() {
            let plain = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
            if name.starts_with(Heads::PREFIX) {
                beside.push((name, plain));
            } else {
                model.push((name, plain));
            }
        }
        if let Some(Statistics { mean, deviation }) = self.front_end.statistics() {
            for (name, tensor) in Statistics::NAMES.into_iter().zip([mean, deviation]) {
                model.push((name.to_owned(), tensor.f_to_device(Device::Cpu)?));
            }
        }
        for (name, tensor) in self.quantizer.tensors() {
            beside.push((name.to_owned(), tensor.f_to_device(Device::Cpu)?.f_contiguous()?));
        }
        for (file, tensors) in [(MODEL, model), (PRETRAINING, beside)] {
            let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let path = folder.join(file);
            Tensor::write_safetensors(&named, &path)?;
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|error| ModelError::File {
                    path,
                    reason: error.to_string(),
                })?;
        }
        Ok(())
    }

    /// What learns, in order of name: the network's tensors under their names in the checkpoint, the heads as
    /// `heads.N.*`.
    pub fn variables(&self) -> Vec<(String, Tensor)> {
        let mut named: Vec<(String, Tensor)> = self.store.variables().into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        named
    }

    /// Longest clip, samples.
    pub fn samples_max(&self) -> usize {
        samples_max(&self.config)
    }

    /// Normalised mel frames of a batch, without gradients.
    ///
    /// # Errors
    /// [`ModelError`] when a clip is empty, too long, or not finite, or when libtorch fails.
    pub fn features(&self, clips: &[&[f32]]) -> Result<Features, ModelError> {
        check_clips(clips, Some(self.samples_max()))?;
        Ok(tch::no_grad(|| self.front_end.forward(clips))?)
    }

    /// Its configuration.
    pub fn config(&self) -> &ConformerConfig {
        &self.config
    }

    /// The network.
    pub fn network(&self) -> &Conformer {
        &self.network
    }

    /// The maker of labels.
    pub fn quantizer(&self) -> &Quantizer {
        &self.quantizer
    }

    /// The softmax heads.
    pub fn heads(&self) -> &Heads {
        &self.heads
    }
}

fn check_trainable(config: &ConformerConfig) -> Result<(), ModelError> {
    if let Some((key, found, expected)) = config.problem() {
        return Err(unsupported(key, found, &expected));
    }
    match config.conv_norm {
        ConvNorm::Layer => Ok(()),
        ConvNorm::Batch => Err(unsupported(
            "conv_norm",
            "\"batch\"".to_owned(),
            "\"layer\" for pre-training: statistics over a batch would mix clips and padding",
        )),
    }
}

fn unsupported(key: &'static str, found: String, expected: &str) -> ModelError {
    ModelError::Unsupported {
        path: CONFIG.into(),
        key,
        found,
        expected: expected.to_owned(),
    }
}

/// One softmax head per codebook.
#[derive(Debug)]
pub struct Heads {
    /// For each codebook a matrix `[V, D]` and a bias `[V]`.
    heads: Vec<(Tensor, Tensor)>,
}

/// What the heads made of some masked frames.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predicted {
    /// Mean cross-entropy over frames and codebooks, nats.
    pub loss: f64,
    /// Share of labels that were the head's first guess.
    pub accuracy: f64,
}

impl Heads {
    /// How their names begin.
    const PREFIX: &str = "heads.";

    fn declare(variables: &mut impl Variables, config: &QuantizerConfig, width: i64) -> Self {
        let start = Start::Xavier {
            fan_in: width,
            fan_out: config.codes,
        };
        let heads = (0..config.codebooks)
            .map(|book| {
                let name = format!("{}{book}", Self::PREFIX);
                (
                    variables.take(&format!("{name}.weight"), &[config.codes, width], start),
                    variables.take(&format!("{name}.bias"), &[config.codes], Start::Zeros),
                )
            })
            .collect();
        Self { heads }
    }

    fn scores(&self, book: usize, hidden: &Tensor) -> Tensor {
        let (weight, bias) = &self.heads[book];
        hidden.linear(weight, Some(bias))
    }

    /// Mean cross-entropy and accuracy, without gradients.
    ///
    /// # Shapes
    /// `hidden` `[N, D]`, `codes` i64 `[N, K]`, `N` at least 1.
    ///
    /// # Errors
    /// libtorch's.
    pub fn predict(&self, hidden: &Tensor, codes: &Tensor) -> Result<Predicted, TchError> {
        let _no_grad = tch::no_grad_guard();
        let mut sum = Predicted::default();
        for book in 0..self.heads.len() {
            let (scores, own) = (self.scores(book, hidden), codes.f_select(1, book as i64)?);
            sum.loss += scores
                .f_cross_entropy_loss(&own, None::<Tensor>, Reduction::Mean, -100, 0.0)?
                .f_double_value(&[])?;
            sum.accuracy += scores
                .f_argmax(1, false)?
                .f_eq_tensor(&own)?
                .f_mean(Kind::Double)?
                .f_double_value(&[])?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let books = self.heads.len() as f64;
        Ok(Predicted {
            loss: sum.loss / books,
            accuracy: sum.accuracy / books,
        })
    }

    /// Adds the gradients of `share` times the mean cross-entropy to every variable, and returns that
    /// cross-entropy.
    ///
    /// Heads are worked through one by one, each back to `hidden` only, and the network once at the end: the
    /// scores of one head are in memory at a time, not of all.
    ///
    /// # Shapes
    /// `hidden` `[N, D]` with its graph, `codes` i64 `[N, K]`, `N` at least 1.
    ///
    /// # Errors
    /// libtorch's.
    pub fn backward(&self, hidden: &Tensor, codes: &Tensor, share: f64) -> Result<f64, TchError> {
        let leaf = hidden.detach().set_requires_grad(true);
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let books = self.heads.len() as f64;
        let mut sum = 0.0;
        for book in 0..self.heads.len() {
            let own = codes.f_select(1, book as i64)?;
            let loss = self.scores(book, &leaf).f_cross_entropy_loss(
                &own,
                None::<Tensor>,
                Reduction::Mean,
                -100,
                0.0,
            )?;
            sum += loss.f_double_value(&[])?;
            (loss * (share / books)).f_backward()?;
        }
        (hidden * leaf.grad().detach()).f_sum(Kind::Float)?.f_backward()?;
        Ok(sum / books)
    }
}
