//! The `[encoder]`, `[decoder]` and `[decoding]` tables: batches, slots, and how the next token is chosen.

use serde::{Deserialize, Serialize};

use crate::inference::{BeamSettings, DRAFT_TOKENS_MAX, DecodeOptions, EarlyStopping, Sampling, Strategy};
use crate::models::ModelError;
use crate::util::ConfigError;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// The likeliest one.
    #[default]
    Greedy,
    /// Beam search.
    Beam,
    /// Drawn by chance.
    Sample,
}

/// The `[decoding]` table. What belongs to another strategy than the chosen one is not used.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct DecodingConfig {
    /// `greedy`, `beam` or `sample`.
    pub strategy: StrategyName,
    /// `beam`: answers that grow side by side; each takes a slot.
    pub beams: usize,
    /// `beam`: scores are divided by length to this power; above 0 favours long answers, below 0 short ones.
    pub length_penalty: f64,
    /// `beam`: `false`, `true` or `"never"`, as in the transformers library.
    pub early_stopping: EarlyStopping,
    /// `sample`: above 1 flattens the distribution, below 1 sharpens it.
    pub temperature: f64,
    /// `sample`: draws from so many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// `sample`: draws from the likeliest tokens that make up this share.
    pub top_p: f64,
    /// `sample`: the same seed gives the same answer to the same question.
    pub seed: u64,
    /// Ends an answer that repeats itself, flags it `looping`, and keeps one of the repeats.
    pub stop_loops: bool,
    /// Above 1 makes tokens that the answer holds already less likely; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Sequences of so many tokens occur once in an answer; 0 for no such rule.
    pub no_repeat_ngram_size: usize,
    /// Share of the CTC head in the choice of each token of a transcript, 0 to below 1; for adapters that
    /// have such a head.
    pub ctc_weight: f64,
    /// Share of the summary's scores in the choice of a label about the voice, 0 to below 1; for adapters
    /// whose summary is aligned with the task, where the answer is constrained to the labels.
    pub summary_weight: f64,
    /// Share of the CTC head in the choice of a label that is decided by what is said (`answer.spoken` of its
    /// task), 0 to below 1, where the answer is constrained to the labels.
    pub spoken_weight: f64,
    /// Log-odds a token under the CTC head, from which on words count as said.
    pub spoken_above: f64,
    /// Log-probability of no words, by the CTC head, from which on it speaks for no speech: half of what it
    /// is above this is added to the summary's log-odds of no speech. Where the sum is positive, a
    /// transcript is empty and flagged `no_speech`, and `speech_detection` answers no speech; 0: the summary
    /// alone decides that, and no transcript is emptied. For adapters whose summary is aligned with
    /// `speech_detection`.
    pub nothing_said_above: f64,
    /// As `summary_weight`, of the embedding of what is said in the choice of a label about the words.
    pub sentence_weight: f64,
}

impl Default for DecodingConfig {
    fn default() -> Self {
        Self {
            strategy: StrategyName::Greedy,
            beams: 4,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            seed: 0,
            stop_loops: true,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            ctc_weight: 0.38,
            summary_weight: 0.9,
            spoken_weight: 0.9,
            spoken_above: -6.5,
            nothing_said_above: -10.0,
            sentence_weight: 0.6,
        }
    }
}

impl DecodingConfig {
    /// The settings as decoding takes them.
    pub fn options(&self, tokens_max: usize) -> DecodeOptions {
        self.options_of(self.strategy, tokens_max)
    }

    fn options_of(&self, strategy: StrategyName, tokens_max: usize) -> DecodeOptions {
        let strategy = match strategy {
            StrategyName::Greedy => Strategy::Greedy,
            StrategyName::Beam => Strategy::Beam(BeamSettings {
                width: self.beams,
                length_penalty: self.length_penalty,
                early_stopping: self.early_stopping,
            }),
            StrategyName::Sample => Strategy::Sample(Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
            }),
        };
        DecodeOptions {
            strategy,
            tokens_max,
            stop_loops: self.stop_loops,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            ctc_weight: self.ctc_weight,
            summary_weight: self.summary_weight,
            spoken_weight: self.spoken_weight,
            spoken_above: self.spoken_above,
            nothing_said_above: self.nothing_said_above,
            sentence_weight: self.sentence_weight,
        }
    }

    /// Checks every key, those of the other strategies too, and that a beam search fits `slots`.
    pub(crate) fn validate(&self, slots: usize) -> Result<(), ConfigError> {
        // TOML has signed integers only: a larger seed could not be shown.
        ConfigError::range("decoding.seed", self.seed, 0, u64::MAX >> 1)?;
        for strategy in [StrategyName::Greedy, StrategyName::Beam, StrategyName::Sample] {
            let checked = self.options_of(strategy, 1).validate();
            if let Err(ModelError::Decoding {
                option,
                found,
                expected,
            }) = checked
            {
                let key = format!("decoding.{option}");
                return Err(ConfigError::invalid(key, format!("{found} is not {expected}")));
            }
        }
        if self.strategy == StrategyName::Beam && self.beams > slots {
            let message = format!(
                "{} beams need as many slots, `decoder.slots` is {slots}",
                self.beams
            );
            return Err(ConfigError::invalid("decoding.beams", message));
        }
        Ok(())
    }
}

/// `false`, `true` or `"never"`.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Written {
    Flag(bool),
    Word(String),
}

impl<'de> Deserialize<'de> for EarlyStopping {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = match Written::deserialize(deserializer)? {
            Written::Flag(flag) => flag.to_string(),
            Written::Word(word) => word,
        };
        words.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for EarlyStopping {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => Written::Flag(false),
            Self::Yes => Written::Flag(true),
            Self::Never => Written::Word("never".to_owned()),
        }
        .serialize(serializer)
    }
}

impl std::str::FromStr for EarlyStopping {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "false" => Ok(Self::No),
            "true" => Ok(Self::Yes),
            "never" => Ok(Self::Never),
            other => Err(format!(
                "`{}` is neither false, true nor never",
                other.escape_debug()
            )),
        }
    }
}

/// The `[encoder]` table: how utterances are gathered for the speech encoder.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// Largest number of windows in one forward pass. Larger: more throughput, more latency and memory.
    pub batch_windows_max: usize,
    /// Longest an utterance waits for company, milliseconds.
    pub batch_wait_ms_max: u64,
    /// Bytes of features that are kept, so that a second request about the same sound skips the encoder; 0
    /// keeps none.
    pub cache_bytes_max: usize,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            batch_windows_max: 8,
            batch_wait_ms_max: 5,
            cache_bytes_max: 64 << 20, // 64 MiB: ten minutes of Whisper base's features in f32
        }
    }
}

impl EncoderConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("encoder.batch_windows_max", self.batch_windows_max, 1, 256)?;
        ConfigError::range("encoder.batch_wait_ms_max", self.batch_wait_ms_max, 0, 10_000)?;
        ConfigError::range("encoder.cache_bytes_max", self.cache_bytes_max, 0, 1 << 36)
    }
}

/// The `[decoder]` table: how answers are generated.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct DecoderConfig {
    /// Answers generated side by side; utterances join and leave between steps.
    pub slots: usize,
    /// Positions that a slot can hold: prompt, audio (12.5 a second) and answer together. An encoder–decoder
    /// keeps `tokens_max` of them for the answer.
    pub positions_max: usize,
    /// Answer tokens, when the request does not say; every slot reserves positions for them, or the audio is
    /// too long. A request for more gets as many as its slot has positions for. An answer that reaches its
    /// most tokens is flagged `truncated`.
    pub tokens_max: usize,
    /// Most prompt positions that are read between two tokens of the running answers, so that a long prompt
    /// does not hold them up; 0 for no limit. An encoder–decoder reads each prompt whole.
    pub prefill_positions_max: usize,
    /// Most tokens of transcripts that one step checks ahead, of all running answers together: what the CTC
    /// head reads behind them, so that several tokens may come out of one step. 0 for none. The answers do
    /// not depend on it, but for rounding. Steps of 24 rows, drafts included, get no further ones.
    pub draft_tokens_max: usize,
    /// A request with `ce_partials` gets the text so far when a multiple of so many tokens is passed, up to
    /// there; several may be passed at once.
    pub partial_tokens: usize,
    /// Mean token log-probability under which an answer is flagged `low_confidence`.
    pub low_confidence_below: f64,
    /// Support of a transcript under which it is flagged `unsupported`: the sound does not say it. Its
    /// agreement with what the CTC head reads (1 less the expected number of errors a token), plus 0.3 times
    /// the mean log-probability of its tokens by the language model. For adapters that have such a head.
    pub unsupported_below: f64,
    /// Mean probability of the CTC head's blank above which nothing was said: a transcript is flagged
    /// `no_speech`.
    pub no_speech_above: f64,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            slots: 8,
            positions_max: 2048,
            tokens_max: 128,
            prefill_positions_max: 256,
            draft_tokens_max: DRAFT_TOKENS_MAX,
            partial_tokens: 8,
            low_confidence_below: -1.0,
            unsupported_below: 0.55,
            no_speech_above: 0.97,
        }
    }
}

impl DecoderConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("decoder.slots", self.slots, 1, 256)?;
        ConfigError::range("decoder.positions_max", self.positions_max, 64, 131_072)?;
        if self.prefill_positions_max != 0 {
            let key = "decoder.prefill_positions_max";
            ConfigError::range(key, self.prefill_positions_max, 16, 131_072)?;
        }
        ConfigError::range("decoder.draft_tokens_max", self.draft_tokens_max, 0, 256)?;
        ConfigError::range("decoder.unsupported_below", self.unsupported_below, -10.0, 1.0)?;
        ConfigError::range("decoder.no_speech_above", self.no_speech_above, 0.0, 1.0)?;
        ConfigError::range("decoder.partial_tokens", self.partial_tokens, 2, 1_024)?;
        ConfigError::range("decoder.tokens_max", self.tokens_max, 1, self.positions_max / 2)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Settings;
    use crate::inference::{EarlyStopping, Strategy};

    #[test]
    fn early_stopping_is_written_as_in_transformers_and_reads_back() {
        for (written, expected) in [
            ("false", EarlyStopping::No),
            ("true", EarlyStopping::Yes),
            ("\"never\"", EarlyStopping::Never),
        ] {
            let text = format!("[decoding]\nstrategy = \"beam\"\nearly_stopping = {written}\n");
            let settings = Settings::parse(&text, []).unwrap();
            settings.validate().unwrap();

            let again = Settings::parse(&settings.to_toml(), []).unwrap();

            assert_eq!(settings.decoding.early_stopping, expected);
            assert_eq!(again.decoding, settings.decoding);
            let Strategy::Beam(beam) = settings.decoding.options(8).strategy else {
                panic!("asked for beams");
            };
            assert_eq!(beam.early_stopping, expected);
        }
        assert!(Settings::parse("[decoding]\nearly_stopping = \"soon\"\n", []).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        for (text, key) in [
            ("beams = 1", "decoding.beams"),
            ("beams = 65", "decoding.beams"),
            ("temperature = 0.0", "decoding.temperature"),
            ("temperature = nan", "decoding.temperature"),
            ("top_p = 1.1", "decoding.top_p"),
            ("top_p = 0.0", "decoding.top_p"),
            ("length_penalty = inf", "decoding.length_penalty"),
            ("repetition_penalty = -1.0", "decoding.repetition_penalty"),
            ("strategy = \"beam\"\nbeams = 9", "decoding.beams"),
        ] {
            let settings = Settings::parse(&format!("[decoding]\n{text}\n"), []).unwrap();
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
