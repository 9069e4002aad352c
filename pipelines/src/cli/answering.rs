//! Commands that answer without Kafka, and how their answers are generated.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use speechverse::config::Settings;
use speechverse::inference::config::StrategyName;
use speechverse::inference::{DecodeOptions, EarlyStopping};

use super::shared::{Form, Given, OptionalSettings, yes_or_no};

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
    /// Whether the answer is constrained to the labels (those given, else the task's); without it, `no` where
    /// an instruction of your own lists no labels.
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no)]
    pub constrain: Option<bool>,
    /// What form the answer has.
    #[command(flatten)]
    pub form: Form,
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
    /// Share of the summary of the voice in the choice of a label.
    #[arg(long, value_name = "X")]
    pub summary_weight: Option<f64>,
    /// Share of the CTC head in the choice of a label that is decided by what is said.
    #[arg(long, value_name = "X")]
    pub spoken_weight: Option<f64>,
    /// Share of the embedding of what is said in the choice of a label.
    #[arg(long, value_name = "X")]
    pub sentence_weight: Option<f64>,
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
        config.summary_weight = self.summary_weight.unwrap_or(config.summary_weight);
        config.spoken_weight = self.spoken_weight.unwrap_or(config.spoken_weight);
        config.sentence_weight = self.sentence_weight.unwrap_or(config.sentence_weight);
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
    /// Whether answers are constrained to the task's labels, where it has some; as serving does without it,
    /// which leaves the row's own instruction without labels free.
    #[arg(
        long,
        alias = "constrained", // what it was called, without a value
        value_name = "YES|NO",
        value_parser = yes_or_no,
        num_args = 0..=1,
        default_missing_value = "yes"
    )]
    pub constrain: Option<bool>,
    /// Baselines: the language model without adapter reads the model's own transcript, and the manifest's
    /// `text`, in place of the audio; the latter also with the adapter's LoRA.
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
    #[arg(long, conflicts_with_all = ["constrain", "cascade", "prompts", "grid", "joint"])]
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
