//! Low-rank adapters on named projections: `W x` becomes `W x + (alpha / rank) · B A x`.
//!
//! `A` starts random and `B` at zero, so a fresh set changes nothing, exactly. The trained values are f32 in
//! a `VarStore` of their own; the base model stays frozen and is shared by all sets. Folders are those of the
//! `peft` library: `adapter_config.json` and `adapter_model.safetensors`, names
//! `base_model.model.<path>.lora_A.weight`.
//!
//! Source: Hu et al., "LoRA" (arXiv 2106.09685).

mod config;
mod error;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::nn::{Init, VarStore};
use tch::{Device, Kind, Tensor};

pub(crate) use config::CONFIG_FILE;
use config::PeftConfig;
pub use config::{LoraConfig, LoraSite};
pub use error::LoraError;

use super::cpu_kernels::{self, LowRank};
use crate::weights::Checkpoint;

pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Elements of the input up to which one call on one thread beats libtorch's operations.
const FEW_ELEMENTS: usize = 1 << 15;
/// What peft puts before the base model's own names.
const NAME_PREFIX: &str = "base_model.model";

/// The two matrices of one projection, in the dtype they are multiplied in.
#[derive(Debug)]
struct Pair {
    /// `[rank, inputs]`.
    a: Tensor,
    /// `[outputs, rank]`.
    b: Tensor,
    /// `[rank, outputs]` f32: `b` by rank, with the scale; in frozen copies alone.
    scaled: Option<Tensor>,
}

/// Low-rank adapters on named projections.
#[derive(Debug)]
pub struct LoraSet {
    config: LoraConfig,
    sites: Vec<LoraSite>,
    store: VarStore,
    pairs: HashMap<String, Pair>,
    training: bool,
}

impl LoraSet {
    /// A fresh set on those of `sites` that the configuration targets: `A` uniform as a linear layer's
    /// default (Kaiming with `a = √5`, so within `±1 / √inputs`), `B` zero. Uses torch's random generator.
    ///
    /// # Errors
    /// [`LoraError::Setting`] for settings out of range, [`LoraError::Target`] for a target that matches
    /// nothing.
    pub fn new(config: LoraConfig, sites: &[LoraSite], device: Device) -> Result<Self, LoraError> {
        let config = config.resolve(sites)?;
        let sites: Vec<LoraSite> = (sites.iter())
            .filter(|site| config.selects(&site.path))
            .cloned()
            .collect();
        let store = VarStore::new(device);
        let mut pairs = HashMap::new();
        for site in &sites {
            let mut path = store.root();
            for part in NAME_PREFIX.split('.').chain(site.path.split('.')) {
                path = path / part;
            }
            let bound = 1.0 / (site.inputs as f64).sqrt();
            let uniform = Init::Uniform {
                lo: -bound,
                up: bound,
            };
            let pair = Pair {
                a: (&path / "lora_A").var("weight", &[config.rank, site.inputs], uniform),
                b: (&path / "lora_B").var("weight", &[site.outputs, config.rank], Init::Const(0.0)),
                scaled: None,
            };
            pairs.insert(site.path.clone(), pair);
        }
        Ok(Self {
            config,
            sites,
            store,
            pairs,
            training: false,
        })
    }

    /// The settings it was made with.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The projections that carry an adapter.
    pub fn sites(&self) -> &[LoraSite] {
        &self.sites
    }

    /// The trained values, f32, by their peft names in order.
    pub fn parameters(&self) -> BTreeMap<String, Tensor> {
        self.store.variables().into_iter().collect()
    }

    /// Whether dropout acts. Off at first.
    pub fn set_training(&mut self, training: bool) {
        self.training = training;
    }

    /// Takes the dropout of a run's settings, in place of the one that a saved set was trained with.
    pub fn set_dropout(&mut self, dropout: f64) {
        self.config.dropout = dropout;
    }

    /// What the adapter of `path` adds to its projection's output; none where it has no adapter.
    ///
    /// # Shapes
    /// `input` `[.., inputs]` → `[.., outputs]`, in the input's dtype.
    pub fn delta(&self, path: &str, input: &Tensor) -> Option<Tensor> {
        let pair = self.pairs.get(path)?;
        let dtype = input.kind();
        let (a, b) = (pair.a.to_kind(dtype), pair.b.to_kind(dtype));
        let none = None::<&Tensor>;
        let low = if self.training && self.config.dropout > 0.0 {
            input.dropout(self.config.dropout, true).linear(&a, none)
        } else {
            input.linear(&a, none)
        }; // [.., rank]
        Some((low * self.scale()).linear(&b, none))
    }

    fn scale(&self) -> f64 {
        self.config.alpha / self.config.rank as f64
    }

    /// `output` of the projections `sites`, one beside the other, with what their adapters add to it, by our
    /// own kernel; none where this is no frozen copy, the rows are many, or the kernel says no.
    ///
    /// # Shapes
    /// `input` `[.., inputs]`, `output` `[.., sum of outputs]` → as the output.
    pub fn add_to_few(&self, sites: &[LoraSite], input: &Tensor, output: &Tensor) -> Option<Tensor> {
        if input.numel() > FEW_ELEMENTS {
            return None;
        }
        let (mut first, mut updates) = (0, Vec::new());
        for site in sites {
            if let Some(pair) = self.pairs.get(&site.path) {
                updates.push(LowRank {
                    first,
                    a: &pair.a,
                    b: pair.scaled.as_ref()?,
                });
            }
            first += usize::try_from(site.outputs).ok()?;
        }
        match updates.is_empty() {
            true => Some(output.shallow_clone()),
            false => cpu_kernels::add_low_rank(output, input, &updates),
        }
    }

    /// An independent, frozen copy for serving: what is trained afterwards does not change it. The matrices
    /// are held in `dtype`, so that no step has to convert them.
    pub fn snapshot(&self, dtype: Kind, device: Device) -> Result<Self, LoraError> {
        let _no_grad = tch::no_grad_guard();
        let mut copy = Self::new(self.config.clone(), &self.sites, device)?;
        copy.copy_from(self);
        copy.store.freeze();
        let scale = self.scale();
        for pair in copy.pairs.values_mut() {
            pair.a = pair.a.to_kind(dtype);
            pair.b = pair.b.to_kind(dtype);
            pair.scaled = Some((pair.b.to_kind(Kind::Float) * scale).tr().contiguous());
        }
        Ok(copy)
    }

    /// Takes over the values of another set of the same sites and rank.
    fn copy_from(&mut self, other: &Self) {
        let theirs = other.store.variables();
        for (name, mut own) in self.store.variables() {
            if let Some(value) = theirs.get(&name) {
                own.copy_(value);
            }
        }
    }

    /// Which of peft's wrappers fits the base model: one with a decoder that is fed by an encoder, or not.
    fn task_type(&self) -> &'static str {
        let inside = |stack: &str| self.sites.iter().any(|site| site.path.starts_with(stack));
        match inside("encoder.") || inside("decoder.") {
            true => "SEQ_2_SEQ_LM",
            false => "CAUSAL_LM",
        }
    }

    /// Writes a folder that `peft` loads. `base_model` is the base's name or path, for the reader's
    /// information.
    ///
    /// # Errors
    /// [`LoraError::Io`] with the file that could not be written.
    pub fn save(&self, folder: &Path, base_model: &str) -> Result<(), LoraError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| LoraError::Io {
                action: "write",
                path,
                source,
            }
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let config_path = folder.join(CONFIG_FILE);
        let text = serde_json::to_string_pretty(&PeftConfig::new(&self.config, self.task_type(), base_model))
            .map_err(|error| io(&config_path)(error.into()))?;
        std::fs::write(&config_path, text + "\n").map_err(io(&config_path))?;

        let mut columns: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, tensor) in self.parameters() {
            let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float);
            let mut values = vec![0f32; tensor.numel()];
            tensor.f_copy_data(&mut values, tensor.numel())?;
            let shape = tensor.size().iter().map(|size| *size as usize).collect();
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            columns.push((name, shape, bytes));
        }
        let weights_path = folder.join(WEIGHTS_FILE);
        let invalid =
            |error: safetensors::SafeTensorError| io(&weights_path)(std::io::Error::other(error.to_string()));
        let mut views = Vec::new();
        for (name, shape, bytes) in &columns {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)
                .map_err(invalid)?;
            views.push((name.as_str(), view));
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(views, Some(metadata), &weights_path).map_err(invalid)?;
        for path in [&config_path, &weights_path, folder] {
            let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
            synced.map_err(io(path))?;
        }
        Ok(())
    }

    /// Reads a folder that `peft` or [`LoraSet::save`] wrote, exactly: every tensor that the configuration
    /// implies, and no other.
    ///
    /// # Errors
    /// [`LoraError::Unsupported`] when the configuration asks for another method (DoRA, rank-stabilised
    /// scaling, trained biases …); [`LoraError::Weights`] with every tensor that does not fit.
    pub fn open(folder: &Path, sites: &[LoraSite], device: Device) -> Result<Self, LoraError> {
        let config = LoraConfig::open(folder)?;
        let mut set = Self::new(config, sites, device)?;

        let checkpoint = Checkpoint::open_file(folder.join(WEIGHTS_FILE))?;
        let _no_grad = tch::no_grad_guard();
        let mut loader = checkpoint.loader(device, Kind::Float);
        let mut values = Vec::new();
        for (name, own) in set.parameters() {
            values.push((loader.take(&name, &own.size()), own));
        }
        loader.finish()?;
        for (value, mut own) in values {
            own.f_copy_(&value)?;
        }
        set.training = false;
        Ok(set)
    }
}

#[cfg(test)]
mod tests;
