//! Low-rank adapters on named projections: `W x` becomes `W x + (alpha / rank) · B A x`.
//!
//! `A` starts random and `B` at zero, so a fresh set changes nothing, exactly. The trained values are f32 in
//! a `VarStore` of their own; the base model stays frozen and is shared by all sets. Folders are those of the
//! `peft` library: `adapter_config.json` and `adapter_model.safetensors`, names
//! `base_model.model.<path>.lora_A.weight`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::nn::{Init, VarStore};
use tch::{Device, Kind, Tensor};

use crate::weights::{Checkpoint, WeightsError};

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What peft puts before the base model's own names.
const NAME_PREFIX: &str = "base_model.model";
/// A configuration file is a few kilobytes; this bounds what is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20; // 1 MiB

/// What can go wrong with a set of low-rank adapters.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// Settings that make no sense.
    #[error("LoRA setting `{key}` is {found}, expected {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A target that the model does not have.
    #[error("LoRA target `{target}` matches no projection of the model; its projections are {known}")]
    Target {
        /// The target.
        target: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// A file that could not be read or written.
    #[error("could not {action} `{}`: {source}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A configuration that is not one.
    #[error("`{}` is not a LoRA configuration: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A configuration that asks for what is not done here.
    #[error("`{}` sets `{key}` to {found}, this program supports {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
    /// The weights do not fit the configuration and the model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// libtorch refused.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
}

/// A projection that can carry an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraSite {
    /// Its module path in the checkpoint, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Input width.
    pub inputs: i64,
    /// Output width.
    pub outputs: i64,
}

/// The `[lora]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the update. Larger: more capacity, more to train.
    pub rank: i64,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of inputs set to zero while training, 0 to below 1.
    pub dropout: f64,
    /// Projections by their last name (`q_proj`) or by the end of their path (`layers.0.self_attn.q_proj`).
    /// Empty: the queries and values of every attention, cross-attention included, by whatever names the
    /// model gives them.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: Vec::new(),
        }
    }
}

/// Queries and values, as the networks here spell them.
const QUERIES_AND_VALUES: [&str; 4] = ["q_proj", "v_proj", "q", "v"];

impl LoraConfig {
    /// Checks the rules that the types cannot hold.
    ///
    /// # Errors
    /// [`LoraError::Setting`] with the key.
    pub fn validate(&self) -> Result<(), LoraError> {
        let setting = |key, found: String, expected| LoraError::Setting { key, found, expected };
        if !(1..=4096).contains(&self.rank) {
            return Err(setting("rank", self.rank.to_string(), "1 to 4096"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(setting("alpha", self.alpha.to_string(), "a positive number"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(setting("dropout", self.dropout.to_string(), "0 to below 1"));
        }
        Ok(())
    }

    /// Reads the configuration of a folder that `peft` or [`LoraSet::save`] wrote.
    ///
    /// # Errors
    /// As [`LoraSet::open`].
    pub fn open(folder: &Path) -> Result<Self, LoraError> {
        let path = folder.join(CONFIG_FILE);
        let io = |source| LoraError::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        let bytes = std::fs::metadata(&path).map_err(io)?.len();
        if bytes > CONFIG_BYTES_MAX {
            return Err(LoraError::Config {
                path,
                reason: format!("it has {bytes} bytes, at most {CONFIG_BYTES_MAX} are read"),
            });
        }
        let text = std::fs::read_to_string(&path).map_err(io)?;
        parse_peft(&text, &path)
    }

    /// The same with its targets spelt out for a model that has `sites`.
    ///
    /// # Errors
    /// [`LoraError::Setting`] for settings out of range, [`LoraError::Target`] for a target that matches
    /// nothing.
    pub fn resolve(mut self, sites: &[LoraSite]) -> Result<Self, LoraError> {
        self.validate()?;
        let matches = |target: &str| sites.iter().any(|site| ends_with_name(&site.path, target));
        let unknown = |target: &str| {
            let known: BTreeSet<&str> = (sites.iter())
                .filter_map(|site| site.path.rsplit('.').next())
                .collect();
            LoraError::Target {
                target: target.to_owned(),
                known: known.into_iter().collect::<Vec<_>>().join(", "),
            }
        };
        if let Some(target) = self.targets.iter().find(|target| !matches(target)) {
            return Err(unknown(target));
        }
        if self.targets.is_empty() {
            let found = QUERIES_AND_VALUES.into_iter().filter(|target| matches(target));
            self.targets = found.map(str::to_owned).collect();
            if self.targets.is_empty() {
                return Err(unknown("queries and values"));
            }
        }
        Ok(self)
    }

    /// Numbers that a set on these sites would learn.
    ///
    /// # Errors
    /// As [`LoraConfig::resolve`].
    pub fn parameter_count(&self, sites: &[LoraSite]) -> Result<i64, LoraError> {
        let resolved = self.clone().resolve(sites)?;
        let selected = sites.iter().filter(|site| resolved.selects(&site.path));
        Ok(selected
            .map(|site| self.rank * (site.inputs + site.outputs))
            .sum())
    }

    fn selects(&self, path: &str) -> bool {
        self.targets.iter().any(|target| ends_with_name(path, target))
    }
}

/// Whether `path` is `name`, or ends with it at a dot.
fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// The two matrices of one projection, in the kind they are multiplied in.
#[derive(Debug)]
struct Pair {
    /// `[rank, inputs]`.
    a: Tensor,
    /// `[outputs, rank]`.
    b: Tensor,
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

    /// The store that holds the trained values, for an optimiser.
    pub fn var_store(&self) -> &VarStore {
        &self.store
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
    /// `input` `[.., inputs]` → `[.., outputs]`, in the input's kind.
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
        let scale = self.config.alpha / self.config.rank as f64;
        Some((low * scale).linear(&b, none))
    }

    /// An independent, frozen copy for serving: what is trained afterwards does not change it. The matrices
    /// are held in `kind`, so that no step has to convert them.
    pub fn snapshot(&self, dtype: Kind, device: Device) -> Result<Self, LoraError> {
        let _no_grad = tch::no_grad_guard();
        let mut copy = Self::new(self.config.clone(), &self.sites, device)?;
        copy.copy_from(self);
        copy.store.freeze();
        for pair in copy.pairs.values_mut() {
            pair.a = pair.a.to_kind(dtype);
            pair.b = pair.b.to_kind(dtype);
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
        safetensors::serialize_to_file(views, Some(metadata), &weights_path).map_err(invalid)
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

/// `adapter_config.json` as we write it; peft fills in the rest.
#[derive(Serialize)]
struct PeftConfig<'a> {
    peft_type: &'static str,
    task_type: &'static str,
    base_model_name_or_path: &'a str,
    r: i64,
    lora_alpha: f64,
    lora_dropout: f64,
    target_modules: &'a [String],
    bias: &'static str,
    fan_in_fan_out: bool,
    init_lora_weights: bool,
    inference_mode: bool,
    use_rslora: bool,
    use_dora: bool,
    modules_to_save: Option<Vec<String>>,
}

impl<'a> PeftConfig<'a> {
    fn new(config: &'a LoraConfig, task_type: &'static str, base_model: &'a str) -> Self {
        Self {
            peft_type: "LORA",
            task_type,
            base_model_name_or_path: base_model,
            r: config.rank,
            lora_alpha: config.alpha,
            lora_dropout: config.dropout,
            target_modules: &config.targets,
            bias: "none",
            fan_in_fan_out: false,
            init_lora_weights: true,
            inference_mode: true,
            use_rslora: false,
            use_dora: false,
            modules_to_save: None,
        }
    }
}

/// Reads what we do of peft's configuration and refuses by name what would change the mathematics.
fn parse_peft(text: &str, path: &Path) -> Result<LoraConfig, LoraError> {
    #[derive(Deserialize)]
    struct Known {
        r: i64,
        lora_alpha: f64,
        #[serde(default)]
        lora_dropout: f64,
        target_modules: Vec<String>,
    }
    let config_error = |reason: String| LoraError::Config {
        path: path.to_path_buf(),
        reason,
    };
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| config_error(error.to_string()))?;
    let refuse = |key: &str, found: &serde_json::Value, expected| LoraError::Unsupported {
        path: path.to_path_buf(),
        key: key.to_owned(),
        found: found.to_string(),
        expected,
    };
    let is = |key: &str, allowed: &[&str], expected| match json.get(key) {
        Some(value) if !value.is_null() && !allowed.contains(&value.as_str().unwrap_or("")) => {
            Err(refuse(key, value, expected))
        }
        _ => Ok(()),
    };
    is("peft_type", &["LORA"], "`LORA`")?;
    is("bias", &["none"], "`none`")?;
    let named = [
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ];
    // Every variant of the method that peft knows has a switch of this form, those of the future too.
    let switches = json
        .keys()
        .map(String::as_str)
        .filter(|key| key.starts_with("use_"));
    for key in named.into_iter().chain(switches) {
        let unused = json.get(key).is_none_or(|value| match value {
            serde_json::Value::Null | serde_json::Value::Bool(false) => true,
            serde_json::Value::Array(items) => items.is_empty(),
            serde_json::Value::Object(entries) => entries.is_empty(),
            _ => false,
        });
        if !unused {
            return Err(refuse(key, &json[key], "none"));
        }
    }
    if let Some(pattern) = json.get("target_modules").filter(|value| value.is_string()) {
        return Err(refuse("target_modules", pattern, "a list of module names"));
    }
    let known: Known = serde_json::from_value(serde_json::Value::Object(json))
        .map_err(|error| config_error(error.to_string()))?;
    Ok(LoraConfig {
        rank: known.r,
        alpha: known.lora_alpha,
        dropout: known.lora_dropout,
        targets: known.target_modules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Vec<LoraSite> {
        let site = |path: &str, inputs, outputs| LoraSite {
            path: path.to_owned(),
            inputs,
            outputs,
        };
        vec![
            site("model.layers.0.self_attn.q_proj", 6, 4),
            site("model.layers.0.self_attn.k_proj", 6, 2),
            site("model.layers.1.self_attn.q_proj", 6, 4),
        ]
    }

    fn config(targets: &[&str]) -> LoraConfig {
        LoraConfig {
            rank: 2,
            alpha: 3.0,
            dropout: 0.0,
            targets: targets.iter().map(|target| (*target).to_owned()).collect(),
        }
    }

    fn set(targets: &[&str]) -> LoraSet {
        LoraSet::new(config(targets), &sites(), Device::Cpu).unwrap()
    }

    fn fill(set: &LoraSet) {
        let _no_grad = tch::no_grad_guard();
        for mut tensor in set.parameters().into_values() {
            let _ = tensor.normal_(0.0, 1.0);
        }
    }

    #[test]
    fn names_are_those_of_peft_and_only_targets_are_there() {
        let names: Vec<String> = set(&["q_proj"]).parameters().into_keys().collect();

        assert_eq!(
            names,
            [
                "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
                "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
                "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
                "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
            ]
        );
    }

    #[test]
    fn a_fresh_set_has_b_zero_and_a_within_the_bound_of_a_linear_layer() {
        let set = set(&["q_proj"]);

        for (name, tensor) in set.parameters() {
            let largest = tensor.abs().max().double_value(&[]);
            if name.ends_with("lora_B.weight") {
                assert_eq!(largest, 0.0);
            } else {
                assert!(largest > 0.0 && largest <= 1.0 / 6f64.sqrt(), "{largest}");
            }
        }
    }

    #[test]
    fn the_delta_is_scaled_b_a_x_and_reaches_only_targets() {
        let set = set(&["layers.1.self_attn.q_proj"]);
        fill(&set);
        let parameters = set.parameters();
        let prefix = "base_model.model.model.layers.1.self_attn.q_proj";
        let a = &parameters[&format!("{prefix}.lora_A.weight")];
        let b = &parameters[&format!("{prefix}.lora_B.weight")];
        let input = Tensor::randn([5, 6], (Kind::Float, Device::Cpu));

        let delta = set.delta("model.layers.1.self_attn.q_proj", &input).unwrap();

        let expected = input.matmul(&a.tr()).matmul(&b.tr()) * 1.5;
        assert!((delta - expected).abs().max().double_value(&[]) < 1e-5);
        assert!(set.delta("model.layers.0.self_attn.q_proj", &input).is_none());
    }

    #[test]
    fn saving_and_opening_gives_the_same_numbers() {
        let set = set(&["q_proj", "k_proj"]);
        fill(&set);
        let folder = tempfile::tempdir().unwrap();
        set.save(folder.path(), "base").unwrap();

        let opened = LoraSet::open(folder.path(), &sites(), Device::Cpu).unwrap();

        assert_eq!(opened.config(), set.config());
        let (saved, opened) = (set.parameters(), opened.parameters());
        assert_eq!(saved.len(), opened.len());
        for (name, tensor) in saved {
            assert!(tensor.equal(&opened[&name]), "{name}");
            assert!(opened[&name].requires_grad());
        }
    }

    #[test]
    fn a_folder_that_does_not_fit_is_refused_with_every_difference() {
        let folder = tempfile::tempdir().unwrap();
        set(&["q_proj", "k_proj"]).save(folder.path(), "base").unwrap();

        let error = LoraSet::open(folder.path(), &sites()[..2], Device::Cpu).unwrap_err();

        assert!(
            error.to_string().contains("layers.1.self_attn.q_proj.lora_A"),
            "{error}"
        );
    }

    #[test]
    fn methods_that_are_not_done_here_are_refused_by_the_keys_name() {
        let base = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4,
            "target_modules": ["q_proj"], "rank_pattern": {}, "use_dora": false, "unknown": 1});
        let parse = |config: &serde_json::Value| parse_peft(&config.to_string(), Path::new("a.json"));
        assert!(parse(&base).is_ok());
        for (key, value) in [
            ("peft_type", serde_json::json!("IA3")),
            ("bias", serde_json::json!("all")),
            ("use_dora", serde_json::json!(true)),
            ("use_rslora", serde_json::json!(true)),
            ("use_something_new", serde_json::json!(true)),
            ("rank_pattern", serde_json::json!({"q_proj": 4})),
            ("modules_to_save", serde_json::json!(["lm_head"])),
            ("target_modules", serde_json::json!("all-linear")),
        ] {
            let mut config = base.clone();
            config[key] = value;
            match parse(&config) {
                Err(LoraError::Unsupported { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn settings_out_of_range_and_unknown_targets_are_refused() {
        let make = |change: &dyn Fn(&mut LoraConfig)| {
            let mut config = config(&["q_proj"]);
            change(&mut config);
            LoraSet::new(config, &sites(), Device::Cpu).map(|_| ())
        };
        assert!(make(&|_| ()).is_ok());
        assert!(matches!(
            make(&|it| it.rank = 0),
            Err(LoraError::Setting { key: "rank", .. })
        ));
        assert!(matches!(
            make(&|it| it.alpha = f64::NAN),
            Err(LoraError::Setting { key: "alpha", .. })
        ));
        assert!(matches!(
            make(&|it| it.dropout = 1.0),
            Err(LoraError::Setting { key: "dropout", .. })
        ));
        let error = make(&|it| it.targets = vec!["proj".to_owned()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`proj`") && error.contains("k_proj, q_proj"),
            "{error}"
        );
    }

    #[test]
    fn without_targets_queries_and_values_are_meant_by_the_models_own_names() {
        let site = |path: &str| LoraSite {
            path: path.to_owned(),
            inputs: 6,
            outputs: 4,
        };
        let set = LoraSet::new(config(&[]), &sites(), Device::Cpu).unwrap();
        assert_eq!(set.config().targets, ["q_proj"]);
        assert_eq!(set.sites().len(), 2);
        assert_eq!(config(&[]).parameter_count(&sites()).unwrap(), 2 * 2 * (6 + 4));

        let names = [
            "SelfAttention.q",
            "SelfAttention.k",
            "EncDecAttention.v",
            "EncDecAttention.o",
        ];
        let t5 = names.map(|name| site(&format!("decoder.block.0.layer.0.{name}")));
        let set = LoraSet::new(config(&[]), &t5, Device::Cpu).unwrap();
        assert_eq!(set.config().targets, ["q", "v"]);
        assert_eq!(set.sites().len(), 2);
        let folder = tempfile::tempdir().unwrap();
        set.save(folder.path(), "base").unwrap();
        let written = std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
        assert!(written.contains("SEQ_2_SEQ_LM"), "{written}");

        assert!(matches!(
            LoraSet::new(config(&[]), &[site("decoder.wo")], Device::Cpu),
            Err(LoraError::Target { .. })
        ));
    }

    #[test]
    fn a_snapshot_does_not_follow_later_training() {
        let set = set(&["q_proj"]);
        fill(&set);
        let input = Tensor::randn([1, 6], (Kind::Float, Device::Cpu));
        let path = "model.layers.0.self_attn.q_proj";
        let snapshot = set.snapshot(Kind::Float, Device::Cpu).unwrap();
        let before = snapshot.delta(path, &input).unwrap();
        assert!(before.equal(&set.delta(path, &input).unwrap()));

        fill(&set);

        assert!(snapshot.delta(path, &input).unwrap().equal(&before));
        assert!(!set.delta(path, &input).unwrap().equal(&before));
        assert!(
            snapshot
                .parameters()
                .values()
                .all(|tensor| !tensor.requires_grad())
        );
    }

    #[test]
    fn dropout_acts_in_training_only() {
        let mut set = LoraSet::new(
            LoraConfig {
                dropout: 0.5,
                ..config(&["q_proj"])
            },
            &sites(),
            Device::Cpu,
        )
        .unwrap();
        fill(&set);
        let input = Tensor::ones([1, 6], (Kind::Float, Device::Cpu));
        let path = "model.layers.0.self_attn.q_proj";
        let serving = set.delta(path, &input).unwrap();
        assert!(serving.equal(&set.delta(path, &input).unwrap()));

        set.set_training(true);

        let several: Vec<Tensor> = (0..8).map(|_| set.delta(path, &input).unwrap()).collect();
        assert!(several.iter().any(|delta| !delta.equal(&several[0])));
    }
}
