//! Which adapter version serves: the registry's, and how an empty registry begins.

use std::path::Path;

use anyhow::{Context, bail};
use speechverse::config::Settings;
use speechverse::registry::{Expected, LoadedVersion, ModelIdentity, Registry, RegistryError, identify};
use speechverse::weights::check_folder;

/// Identities of the two frozen networks: encoder and language model.
///
/// # Errors
/// When a model folder is missing, or a file of it is missing, cut off or something else.
pub fn identities(settings: &Settings) -> anyhow::Result<(ModelIdentity, ModelIdentity)> {
    let read = |folder: &Path, needs_tokenizer: bool| {
        let place = || {
            format!(
                "model folder `{}`: get the demo models with `models fetch`",
                folder.display()
            )
        };
        check_folder(folder, needs_tokenizer).with_context(place)?;
        identify(folder).with_context(place)
    };
    Ok((
        read(&settings.model.encoder, false)?,
        read(&settings.model.llm, true)?,
    ))
}

/// Opens the registry and loads the version to serve; an empty registry begins with the shipped adapter.
///
/// # Errors
/// When there is no version, or it is damaged, or it was trained for other networks.
pub fn open(
    settings: &Settings,
    version: Option<&str>,
    identities: &(ModelIdentity, ModelIdentity),
) -> anyhow::Result<(Registry, LoadedVersion)> {
    let adapters = &settings.adapters;
    let registry = Registry::open(&adapters.dir)
        .with_context(|| format!("adapter registry `{}`", adapters.dir.display()))?;
    if registry.current()?.is_none() {
        begin(&registry, &adapters.seed)?;
    }
    let wanted = version.or((!adapters.version.is_empty()).then_some(adapters.version.as_str()));
    let loaded = match wanted {
        Some(version) => registry.load(version)?,
        None => registry.load_current()?,
    };
    loaded.check_models(&identities.0, &identities.1)?;
    Ok((registry, loaded))
}

/// Copies the shipped adapter into an empty registry.
fn begin(registry: &Registry, seed: &Path) -> anyhow::Result<()> {
    let name = seed
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|_| seed.is_dir());
    let Some(name) = name else {
        bail!(
            "the registry `{}` is empty and there is no adapter to begin with at `adapters.seed` = `{}`: train one, or name one",
            registry.root().display(),
            seed.display()
        );
    };
    let target = registry.root().join(name);
    if !target.exists() {
        let part = registry
            .root()
            .join(format!(".tmp-{name}-{}", std::process::id()));
        copy(seed, &part)
            .with_context(|| format!("cannot copy `{}` to `{}`", seed.display(), part.display()))?;
        if let Err(error) = std::fs::rename(&part, &target) {
            std::fs::remove_dir_all(&part).ok();
            // Another process that begins with the same folder may have been quicker.
            if !target.exists() {
                return Err(error).with_context(|| format!("cannot make `{}`", target.display()));
            }
        }
    }
    match registry.promote(name, Expected::Nothing) {
        // Another process has begun, perhaps with another version: that one counts.
        Err(RegistryError::Moved { .. }) => return Ok(()),
        promoted => promoted?,
    };
    tracing::info!(
        version = name,
        "the registry was empty, it begins with the shipped adapter"
    );
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
