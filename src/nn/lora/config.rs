//! Settings of low-rank adapters, and the `adapter_config.json` in which the `peft` library keeps them.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::LoraError;

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";

/// A configuration file is a few kilobytes; this bounds what is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20; // 1 MiB

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

    /// Reads the configuration of a folder that `peft` or [`LoraSet::save`](super::LoraSet::save) wrote.
    ///
    /// # Errors
    /// As [`LoraSet::open`](super::LoraSet::open).
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

    /// Values that a set on these sites would learn.
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

    pub(super) fn selects(&self, path: &str) -> bool {
        self.targets.iter().any(|target| ends_with_name(path, target))
    }
}

/// Whether `path` is `name`, or ends with it at a dot.
fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// `adapter_config.json` as we write it; peft fills in the rest.
#[derive(Serialize)]
pub(super) struct PeftConfig<'a> {
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
    pub(super) fn new(config: &'a LoraConfig, task_type: &'static str, base_model: &'a str) -> Self {
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
pub(super) fn parse_peft(text: &str, path: &Path) -> Result<LoraConfig, LoraError> {
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
