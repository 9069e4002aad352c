//! The list of downloads (`scripts/downloads.lock`): which packages hold which model, pinned by size and
//! sha256.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

/// The list as it was when this program was built; also what the downloader is given.
pub(crate) const LOCK: &str = include_str!("../../../scripts/downloads.lock");

/// The `format` of a model that is copied and not converted.
pub(crate) const AS_IS: &str = "as-is";

/// One file of a package registry.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PinnedFile {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) file: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// A model that some of the files hold.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PinnedModel {
    pub(crate) name: String,
    /// Number format to import it in; [`AS_IS`]: its package holds the folder's files as they are to be.
    pub(crate) format: String,
    /// Whether the demonstration needs it.
    pub(crate) default: bool,
    pub(crate) licence: String,
    /// File to put together → its parts in order, each `package:path inside the package`.
    pub(crate) parts: BTreeMap<String, Vec<String>>,
    /// Of the imported `model.safetensors`.
    pub(crate) weights_sha256: String,
}

/// The whole list.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Catalogue {
    pub(crate) files: Vec<PinnedFile>,
    pub(crate) models: Vec<PinnedModel>,
}

impl Catalogue {
    /// The list this program was built with.
    pub(crate) fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<Catalogue> =
            LazyLock::new(|| serde_json::from_str(LOCK).expect("a test reads the shipped list of downloads"));
        &SHIPPED
    }

    /// The packages that a model is made of, each once, in the order of the list.
    pub(crate) fn packages(&self, model: &PinnedModel) -> Vec<&PinnedFile> {
        let needed: Vec<&str> = model
            .parts
            .values()
            .flatten()
            .filter_map(|part| part.split_once(':').map(|(package, _)| package))
            .collect();
        self.files
            .iter()
            .filter(|file| needed.contains(&file.name.as_str()))
            .collect()
    }
}

/// A model that [`fetch`](super::fetch()) can get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AvailableModel {
    /// Its name, and that of its folder.
    pub name: String,
    /// Whether the demonstration needs it, so that it is fetched when none is named.
    pub default: bool,
    /// Under which licence its authors published it.
    pub licence: String,
    /// What has to be downloaded, bytes.
    pub download_bytes: u64,
}

/// Every model that can be fetched by name.
pub fn available_models() -> Vec<AvailableModel> {
    let catalogue = Catalogue::shipped();
    let describe = |model: &PinnedModel| AvailableModel {
        name: model.name.clone(),
        default: model.default,
        licence: model.licence.clone(),
        download_bytes: catalogue.packages(model).iter().map(|file| file.size).sum(),
    };
    catalogue.models.iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FloatFormat;

    #[test]
    fn the_shipped_list_is_complete() {
        let catalogue = Catalogue::shipped();
        for model in &catalogue.models {
            let is_known = model.format == AS_IS || model.format.parse::<FloatFormat>().is_ok();
            assert!(is_known, "{}", model.name);
            assert_eq!(model.weights_sha256.len(), 64, "{}", model.name);
            for part in model.parts.values().flatten() {
                let (package, path) = part.split_once(':').expect("package:path");
                assert!(
                    catalogue.files.iter().any(|file| file.name == package),
                    "{package}"
                );
                assert!(!path.is_empty());
            }
        }
        for file in &catalogue.files {
            assert!(file.sha256.len() == 64 && file.size > 0, "{}", file.name);
            assert!(
                file.file.ends_with(".whl") || file.file.ends_with(".tgz"),
                "{}",
                file.file
            );
        }
    }

    #[test]
    fn the_demonstration_needs_whisper_base_smollm2_and_the_voice_detector() {
        let names: Vec<String> = available_models()
            .into_iter()
            .filter(|model| model.default)
            .map(|model| model.name)
            .collect();
        assert_eq!(names, ["whisper-base", "smollm2-135m-instruct", "silero-vad"]);
    }
}
