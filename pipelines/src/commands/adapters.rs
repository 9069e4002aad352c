//! `speechverse adapters`: a look into the registry.

use anyhow::Context;
use serde_json::json;
use speechverse::config::Settings;
use speechverse::registry::Registry;

use super::Failure;
use crate::cli::Adapters;
use crate::output;

pub(super) fn adapters(command: Adapters) -> Result<(), Failure> {
    let Adapters::List { settings, json } = command;
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
            output::line(line.to_string());
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
        output::table(&rows, &[]);
    }
    match damaged {
        0 => Ok(()),
        damaged => Err(anyhow::anyhow!("{damaged} versions are damaged").into()),
    }
}
