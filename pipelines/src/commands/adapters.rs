//! `speechverse adapters`: the registry, looked into and changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use speechverse::config::Settings;
use speechverse::registry::{Expected, Registry};

use super::Failure;
use crate::adapters;
use crate::cli::{Adapters, OptionalSettings};
use crate::output;

pub(super) fn run(command: Adapters) -> Result<(), Failure> {
    match command {
        Adapters::List { settings, json } => list(&settings, json),
        Adapters::Show { settings, version } => {
            let (registry, _) = open(&settings)?;
            Ok(show(&registry, version.as_deref())?)
        }
        Adapters::Diff { settings, one, other } => {
            let (registry, _) = open(&settings)?;
            Ok(diff(&registry, &one, other)?)
        }
        Adapters::Promote { settings, version } => {
            let (registry, settings) = open(&settings)?;
            Ok(promote(&registry, &settings, &version)?)
        }
        Adapters::Rollback { settings } => {
            let (registry, settings) = open(&settings)?;
            Ok(rollback(&registry, &settings)?)
        }
        Adapters::Export {
            settings,
            adapter,
            out,
        } => {
            let settings = Settings::load(&settings.config).map_err(Failure::usage)?;
            Ok(export(&settings, adapter.as_deref(), &out)?)
        }
    }
}

fn open(settings: &OptionalSettings) -> Result<(Registry, Settings), Failure> {
    let settings = Settings::load(&settings.config).map_err(Failure::usage)?;
    let dir = &settings.adapters.dir;
    let registry = Registry::open(dir).with_context(|| format!("adapter registry `{}`", dir.display()))?;
    Ok((registry, settings))
}

fn show(registry: &Registry, version: Option<&str>) -> anyhow::Result<()> {
    let loaded = match version {
        Some(version) => registry.load(version)?,
        None => registry.load_current()?,
    };
    let mut shown = serde_json::to_value(&loaded.manifest).context("a manifest is always JSON")?;
    shown["current"] = json!(registry.current()?.as_ref() == Some(&loaded.manifest.version));
    output::line(serde_json::to_string_pretty(&shown).context("a manifest is always JSON")?)?;
    Ok(())
}

/// Every leaf of two manifests that differs, but for the digests of files.
fn diff(registry: &Registry, one: &str, other: Option<String>) -> anyhow::Result<()> {
    let other = match other {
        Some(other) => other,
        None => registry.current()?.context("no version is current: name two")?,
    };
    let leaves = |version: &str| -> anyhow::Result<BTreeMap<String, String>> {
        let mut manifest = serde_json::to_value(registry.manifest(version)?)?;
        if let Some(fields) = manifest.as_object_mut() {
            fields.remove("files");
        }
        let mut leaves = BTreeMap::new();
        flatten(&manifest, String::new(), &mut leaves);
        Ok(leaves)
    };
    let (left, right) = (leaves(one)?, leaves(&other)?);
    let mut rows = vec![vec!["value".to_owned(), one.to_owned(), other.clone()]];
    for key in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
        let shown = |leaves: &BTreeMap<String, String>| {
            let value = leaves.get(key).map_or("-", String::as_str);
            output::clipped(value, 48)
        };
        if left.get(key) != right.get(key) {
            rows.push(vec![key.clone(), shown(&left), shown(&right)]);
        }
    }
    output::table(&rows, &[])?;
    Ok(())
}

fn flatten(value: &Value, path: String, leaves: &mut BTreeMap<String, String>) {
    let below = |name: &str| match path.as_str() {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                flatten(field, below(name), leaves);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                flatten(item, below(&at.to_string()), leaves);
            }
        }
        leaf => {
            leaves.insert(path, leaf.to_string());
        }
    }
}

fn promote(registry: &Registry, settings: &Settings, version: &str) -> anyhow::Result<()> {
    let loaded = registry.load(version)?;
    let (encoder, llm) = adapters::identities(settings)?;
    loaded.check_models(&encoder, &llm)?;
    registry.promote_loaded(&loaded, Expected::Any)?;
    output::line(format!(
        "`{version}` is current; pipelines that run on this registry serve it within seconds, unless their `adapters.version` names one"
    ))?;
    Ok(())
}

fn rollback(registry: &Registry, settings: &Settings) -> anyhow::Result<()> {
    let (encoder, llm) = adapters::identities(settings)?;
    let loaded = registry.rollback(|loaded| loaded.check_models(&encoder, &llm))?;
    let version = &loaded.manifest.version;
    output::line(format!(
        "`{version}` is current; pipelines that run on this registry serve it within seconds, unless their `adapters.version` names one"
    ))?;
    Ok(())
}

/// Copies the low-rank part of a version, and names the model that it belongs to.
fn export(settings: &Settings, version: Option<&str>, out: &Path) -> anyhow::Result<()> {
    const CONFIG: &str = "adapter_config.json";
    const WEIGHTS: &str = "adapter_model.safetensors";
    let registry = Registry::open(&settings.adapters.dir)?;
    let loaded = match version {
        Some(version) => registry.load(version)?,
        None => registry.load_current()?,
    };
    let name = &loaded.manifest.version;
    let lora = loaded.lora.with_context(|| {
        format!(
            "version `{name}` has no low-rank updates of the language model, so there is nothing for `peft`"
        )
    })?;
    let text =
        std::fs::read_to_string(lora.join(CONFIG)).with_context(|| format!("`{CONFIG}` of `{name}`"))?;
    let mut config: Value = serde_json::from_str(&text).with_context(|| format!("`{CONFIG}` of `{name}`"))?;
    let base = std::path::absolute(&settings.model.llm)?;
    config["base_model_name_or_path"] = json!(base.display().to_string());
    let written = || format!("cannot write to `{}`", out.display());
    std::fs::create_dir_all(out).with_context(written)?;
    if std::fs::read_dir(out).with_context(written)?.next().is_some() {
        bail!("folder `{}` is not empty", out.display());
    }
    std::fs::copy(lora.join(WEIGHTS), out.join(WEIGHTS)).with_context(written)?;
    std::fs::write(out.join(CONFIG), serde_json::to_string_pretty(&config)? + "\n").with_context(written)?;
    output::line(out.display().to_string())?;
    Ok(())
}

fn list(settings: &OptionalSettings, json: bool) -> Result<(), Failure> {
    let (registry, _) = open(settings)?;
    let current = registry.current().context("the registry's current version")?;
    let is_current = |version: &str| current.as_deref() == Some(version);
    let mut rows = vec![
        ["", "version", "parent", "created", "encoder", "llm", "metrics"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut damaged = 0;
    for manifest in registry.list().context("the registry's versions")? {
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                damaged += 1;
                tracing::error!("{error}");
                continue;
            }
        };
        if json {
            let mut line = serde_json::to_value(&manifest).context("a manifest is always JSON")?;
            line["current"] = json!(is_current(&manifest.version));
            output::line(line.to_string())?;
            continue;
        }
        let metrics: Vec<String> = manifest
            .metrics
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        rows.push(vec![
            if is_current(&manifest.version) {
                "*".to_owned()
            } else {
                String::new()
            },
            manifest.version.clone(),
            manifest.parent.clone().unwrap_or_else(|| "-".into()),
            manifest.created.clone(),
            manifest.encoder.name.clone(),
            manifest.llm.name.clone(),
            output::clipped(&metrics.join(" "), 60),
        ]);
    }
    if !json {
        output::table(&rows, &[])?;
    }
    match damaged {
        0 => Ok(()),
        damaged => Err(anyhow::anyhow!("{damaged} versions are damaged").into()),
    }
}
