//! Turns models of other formats into the Hugging Face layout (`config.json`, `model.safetensors`,
//! tokenizer), and gets the models of the demonstration.
//!
//! | source | becomes |
//! |---|---|
//! | CTranslate2 Whisper: `model.bin` (binary version 6), `tokenizer.json` beside it | `WhisperForConditionalGeneration` |
//! | GGUF, architecture `llama` or `qwen2`: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K | `LlamaForCausalLM`, `Qwen2ForCausalLM` |
//!
//! Both formats come from strangers: every count, length and offset is checked before it is used, the weights
//! flow through in pieces of a megabyte, and the destination appears complete or not at all.

mod bpe;
mod catalogue;
mod ct2;
mod error;
mod fetch;
mod format;
mod gguf;
mod hub;
mod json;
mod llama;
mod quants;
mod reader;
mod tensors;
mod whisper;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use catalogue::{AvailableModel, available_models};
pub use error::ImportError;
pub use fetch::{FetchProgress, FetchedModel, fetch};
pub use format::FloatFormat;
pub use hub::{HubError, HubFetched, HubModel, HubProgress, HubSettings, fetch_from_hub};
pub use quants::Encoding;

use ct2::Ct2File;
use gguf::GgufFile;
use tensors::TensorPlan;

/// Version of what an import writes; raised when the same source would give other files.
pub const IMPORTER_VERSION: u32 = 2;

/// How to import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The number format of the written weights.
    pub format: FloatFormat,
    /// Whether a destination that exists may be replaced.
    pub replace: bool,
    /// Threads that decode; 0 means one per core, at most 8.
    pub threads: usize,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            format: FloatFormat::F16,
            replace: false,
            threads: 0,
        }
    }
}

/// What was imported.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportReport {
    /// What the source was: `CTranslate2 Whisper` or `GGUF`.
    pub source_kind: &'static str,
    /// `whisper`, `llama` or `qwen2`.
    pub architecture: String,
    /// Tensors written.
    pub tensors: usize,
    /// Numbers written.
    pub parameters: u64,
    /// Length of the written `model.safetensors`, bytes.
    pub bytes: u64,
    /// The number format written.
    pub format: FloatFormat,
    /// Numbers by the encoding they had in the source.
    pub encodings: BTreeMap<&'static str, u64>,
    /// Whether input and output matrix of the model are one.
    pub tied: bool,
    /// What the source says about its licence.
    pub licence: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A planned import: everything known but the weights themselves.
struct Prepared {
    path: PathBuf,
    source_kind: &'static str,
    architecture: String,
    plans: Vec<TensorPlan>,
    files: Vec<(&'static str, Vec<u8>)>,
    tied: bool,
    licence: Option<String>,
}

/// Imports the model at `source` into the new folder `out`.
///
/// `source` is a `.gguf` file, a `model.bin`, or a folder that holds one of them. `progress` is called with
/// how many values of how many are written.
///
/// # Errors
/// [`ImportError`]; `out` is then untouched.
///
/// # Examples
/// ```no_run
/// use model_import::{ImportOptions, import};
///
/// let report = import(
///     "SmolLM2-135M-Instruct.Q4_1.gguf".as_ref(),
///     "models/smollm2-135m-instruct".as_ref(),
///     &ImportOptions::default(),
///     &mut |done, total| eprintln!("{done} of {total}"),
/// )?;
/// assert_eq!(report.architecture, "llama");
/// # Ok::<(), model_import::ImportError>(())
/// ```
pub fn import(
    source: &Path,
    out: &Path,
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportReport, ImportError> {
    let destination = Destination::new(out, options.replace)?;
    let report = import_into(source, &destination.folder, options, progress)?;
    destination.publish()?;
    Ok(report)
}

/// Writes all files of an import into `folder`, which exists and is empty.
fn import_into(
    source: &Path,
    folder: &Path,
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportReport, ImportError> {
    let started = Instant::now();
    let prepared = prepare(source, options.format)?;
    for (name, content) in &prepared.files {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(ImportError::io("write", &path))?;
    }
    let mut encodings = BTreeMap::new();
    for plan in &prepared.plans {
        *encodings.entry(plan.encoding.name()).or_insert(0) += plan.elements();
    }
    let tensors = prepared.plans.len();
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8)),
        threads => threads,
    };
    let bytes = tensors::write_checkpoint(
        &prepared.path,
        prepared.plans,
        options.format,
        threads,
        &folder.join("model.safetensors"),
        progress,
    )?;
    Ok(ImportReport {
        source_kind: prepared.source_kind,
        architecture: prepared.architecture,
        tensors,
        parameters: encodings.values().sum(),
        bytes,
        format: options.format,
        encodings,
        tied: prepared.tied,
        licence: prepared.licence,
        elapsed: started.elapsed(),
    })
}

/// Finds out what `source` is, and reads everything but the weights.
fn prepare(source: &Path, format: FloatFormat) -> Result<Prepared, ImportError> {
    let path = model_file(source)?;
    let mut head = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(128).read_to_end(&mut head))
        .map_err(ImportError::io("open", &path))?;
    if head.starts_with(&gguf::MAGIC) {
        let planned = llama::plan(&GgufFile::open(&path)?, format)?;
        return Ok(Prepared {
            path,
            source_kind: "GGUF",
            architecture: planned.architecture,
            plans: planned.plans,
            files: planned.files,
            tied: planned.tied,
            licence: planned.licence,
        });
    }
    if Ct2File::looks_like(&head) {
        let folder = path.parent().unwrap_or(Path::new("."));
        let planned = whisper::plan(&Ct2File::open(&path)?, folder, format)?;
        return Ok(Prepared {
            source_kind: "CTranslate2 Whisper",
            architecture: "whisper".to_owned(),
            plans: planned.plans,
            files: planned.files,
            tied: true,
            licence: None,
            path,
        });
    }
    let start = hex::encode(&head[..head.len().min(8)]);
    Err(ImportError::Unrecognised {
        path,
        found: if start.is_empty() {
            "an empty file".to_owned()
        } else {
            format!("a file that starts with the bytes {start}")
        },
    })
}

/// The file that holds the weights: `source` itself, or the one such file in that folder.
fn model_file(source: &Path) -> Result<PathBuf, ImportError> {
    let facts = std::fs::metadata(source).map_err(ImportError::io("open", source))?;
    if !facts.is_dir() {
        return Ok(source.to_path_buf());
    }
    let binary = source.join("model.bin");
    if binary.is_file() {
        return Ok(binary);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(source).map_err(ImportError::io("list", source))? {
        let path = entry.map_err(ImportError::io("list", source))?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => Err(ImportError::Unrecognised {
            path: source.to_path_buf(),
            found: format!(
                "a folder without `model.bin` and with {} files `*.gguf`",
                found.len()
            ),
        }),
    }
}

/// Name of a temporary folder `<prefix><process id>` in `parent`; removes those of processes that are no
/// more.
fn own_folder(parent: &Path, prefix: &str) -> PathBuf {
    let own = std::process::id();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(prefix))
            .and_then(|process| process.split('.').next()?.parse::<u32>().ok());
        let running = |process: u32| Path::new("/proc").join(process.to_string()).exists();
        if process.is_some_and(|process| process == own || !running(process)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    parent.join(format!("{prefix}{own}"))
}

/// A folder in the making beside its final place; removed unless published.
struct Destination {
    folder: PathBuf,
    out: PathBuf,
    published: bool,
}

impl Destination {
    fn new(out: &Path, replace: bool) -> Result<Self, ImportError> {
        let taken = match std::fs::read_dir(out) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(ImportError::io("look into", out)(error)),
        };
        if taken && !replace {
            return Err(ImportError::DestinationExists {
                path: out.to_path_buf(),
            });
        }
        let Some(name) = out.file_name() else {
            return Err(ImportError::io("write to", out)(
                std::io::ErrorKind::InvalidInput.into(),
            ));
        };
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(ImportError::io("create", parent))?;
        let folder = own_folder(parent, &format!(".{}.importing-", name.to_string_lossy()));
        std::fs::create_dir(&folder).map_err(ImportError::io("create", &folder))?;
        Ok(Self {
            folder,
            out: out.to_path_buf(),
            published: false,
        })
    }

    /// Moves the finished folder to its place; what was there steps aside first and is then removed.
    fn publish(mut self) -> Result<(), ImportError> {
        let mut aside = self.folder.clone().into_os_string();
        aside.push(".replaced");
        let aside = PathBuf::from(aside);
        let replaced = match std::fs::rename(&self.out, &aside) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(ImportError::io("move away", &self.out)(error)),
        };
        if let Err(error) = std::fs::rename(&self.folder, &self.out) {
            if replaced {
                let _ = std::fs::rename(&aside, &self.out);
            }
            return Err(ImportError::io("move the finished folder to", &self.out)(error));
        }
        self.published = true;
        if replaced {
            std::fs::remove_dir_all(&aside).map_err(ImportError::io("remove", &aside))?;
        }
        Ok(())
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests;
