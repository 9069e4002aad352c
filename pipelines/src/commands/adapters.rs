//! `speechverse adapters`: a look into the registry.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::json;
use speechverse::config::Settings;
use speechverse::registry::Registry;

use super::Failure;
use crate::cli::{Adapters, OptionalSettings};
use crate::output;

pub(super) fn adapters(command: Adapters) -> Result<(), Failure> {
    match command {
        Adapters::List { settings, json } => list(&settings, json),
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
    let mut config: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("`{CONFIG}` of `{name}`"))?;
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
    let settings = Settings::load(&settings.config).map_err(Failure::usage)?;
    let dir = &settings.adapters.dir;
    let registry = Registry::open(dir).with_context(|| format!("adapter registry `{}`", dir.display()))?;
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
