//! `[data]` and `[augment]`: recordings, and what is done to them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::range::within;

/// The `[data]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Manifests (JSON lines) to train on.
    pub train: Vec<PathBuf>,
    /// Manifests to validate on during training.
    pub valid: Vec<PathBuf>,
    /// Manifests of recordings without speech, two hours at most, kept in memory. Where there are some, three
    /// in four of the noises that `[augment]` adds are cut out of them; the others, and all where there are
    /// none, are white or pink.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub noise: Vec<PathBuf>,
    /// Clips of several speakers, made during training.
    pub speaker_mixes: SpeakerMixConfig,
    /// Longer clips are left out of training, and counted.
    pub seconds_max: f64,
    /// Shorter clips are left out of training, and counted.
    pub seconds_min: f64,
    /// Targets with more tokens are left out of training, and counted.
    pub target_tokens_max: usize,
    /// Targets are brought to lower case without punctuation, as in the paper.
    pub plain_targets: bool,
    /// Share of the rows with several `targets` that also make a compound example (joint decoding), beside
    /// one example for each target.
    pub compound_share: f64,
    /// Batches decoded ahead of the training step.
    pub prefetch_batches: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            valid: Vec::new(),
            noise: Vec::new(),
            speaker_mixes: SpeakerMixConfig::default(),
            seconds_max: 15.0,
            seconds_min: 0.2,
            target_tokens_max: 200,
            plain_targets: true,
            compound_share: 0.0,
            prefetch_batches: 3,
        }
    }
}

/// Most speakers of a mix.
pub const SPEAKERS_MAX: usize = 3;
/// Shortest mix, seconds: three speakers have a turn each.
pub const MIX_SECONDS_MIN: f64 = 4.0;

/// The `[data.speaker_mixes]` table: clips in which people take turns, for the task `speaker_count`. Each is
/// mixed anew whenever it is loaded; of a cached stage that augments there are as many mixes of it as the
/// cache keeps variants, of one that does not there is one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpeakerMixConfig {
    /// Manifests whose rows name a `voice` each: recordings of one person. Rows of another `split` than
    /// `train` are left out.
    pub manifests: Vec<PathBuf>,
    /// Whose voices are mixed: the `domain` of rows; the first speaker of a mix is of each as often as of the
    /// others. Name those in which two names are never the same person. Empty: all.
    pub domains: Vec<String>,
    /// Clips in an epoch, as many of each number of speakers; 0: none.
    pub clips: usize,
    /// Most speakers of a clip, 1 to 3.
    pub speakers_max: usize,
}

impl Default for SpeakerMixConfig {
    fn default() -> Self {
        Self {
            manifests: Vec::new(),
            domains: Vec::new(),
            clips: 0,
            speakers_max: SPEAKERS_MAX,
        }
    }
}

impl SpeakerMixConfig {
    pub(in crate::training) fn validate(&self) -> Result<(), String> {
        let name = "`data.speaker_mixes";
        let most = SPEAKERS_MAX as f64;
        within(
            &format!("{name}.speakers_max`"),
            self.speakers_max as f64,
            1.0,
            most,
        )?;
        within(&format!("{name}.clips`"), self.clips as f64, 0.0, 1e6)?;
        match self.clips > 0 && self.manifests.is_empty() {
            true => Err(format!(
                "{name}.clips` is {} and {name}.manifests` is empty: name manifests of recordings of one person each",
                self.clips
            )),
            false => Ok(()),
        }
    }
}

/// What codes a telephone call.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TelephoneCodec {
    /// Nothing: the band alone.
    None,
    /// ITU-T G.711, 64 kbit/s, 300 to 3400 Hz; one of its two laws is drawn.
    G711,
    /// ITU-T G.722, 64 kbit/s, up to 7000 Hz.
    G722,
    /// GSM full rate (06.10), 13 kbit/s, 300 to 3400 Hz.
    Gsm,
}

/// The `[augment]` table: probabilities are per clip and independent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Probability of a random gain.
    pub gain: f64,
    /// Largest gain or attenuation, decibels.
    pub gain_db_max: f64,
    /// Probability of a change of speed (pitch moves along).
    pub speed: f64,
    /// Largest relative change of speed; 0.1 means 0.9 to 1.1.
    pub speed_change_max: f64,
    /// Probability of added white or pink noise.
    pub noise: f64,
    /// Lowest signal-to-noise ratio, decibels.
    pub noise_db_min: f64,
    /// Highest signal-to-noise ratio, decibels.
    pub noise_db_max: f64,
    /// Probability of a telephone call: the band from 300 to 3400 Hz, or a codec's.
    pub telephone: f64,
    /// What such a clip is coded with and decoded again; one of them is drawn, each as likely as the others.
    pub telephone_codecs: Vec<TelephoneCodec>,
    /// Probability of a room's reverberation.
    pub reverberation: f64,
    /// Longest time in which it falls by 60 dB, seconds.
    pub reverberation_seconds_max: f64,
    /// Spans of time that are set to zero in each clip's features (SpecAugment, arXiv 1904.08779, on the
    /// encoder's output); drawn anew each time, also for features from the cache.
    pub time_masks: usize,
    /// Longest span, encoder frames; never more than a tenth of the clip.
    pub time_mask_frames_max: i64,
    /// Spans of the features' width that are set to zero in each clip.
    pub feature_masks: usize,
    /// Widest span of it.
    pub feature_mask_width_max: i64,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            gain: 0.0,
            gain_db_max: 9.0,
            speed: 0.0,
            speed_change_max: 0.1,
            noise: 0.0,
            noise_db_min: 10.0,
            noise_db_max: 30.0,
            telephone: 0.0,
            telephone_codecs: vec![TelephoneCodec::None],
            reverberation: 0.0,
            reverberation_seconds_max: 0.6,
            time_masks: 0,
            time_mask_frames_max: 20,
            feature_masks: 0,
            feature_mask_width_max: 32,
        }
    }
}

impl AugmentConfig {
    /// The settings that differ from the defaults, as JSON in the order of their names: a part of the name of
    /// cached features, which so are found after a setting was added.
    pub(in crate::training) fn differing_from_defaults(&self) -> String {
        let values = |config: &Self| -> BTreeMap<String, serde_json::Value> {
            let value = serde_json::to_value(config).expect("numbers and names");
            serde_json::from_value(value).expect("a table")
        };
        let default = values(&Self::default());
        let mut own = values(self);
        own.retain(|name, value| default.get(name) != Some(value));
        serde_json::to_string(&own).expect("names are strings")
    }

    pub(in crate::training) fn validate(&self) -> Result<(), String> {
        for (name, value, low, high) in [
            ("gain", self.gain, 0.0, 1.0),
            ("speed", self.speed, 0.0, 1.0),
            ("noise", self.noise, 0.0, 1.0),
            ("telephone", self.telephone, 0.0, 1.0),
            ("reverberation", self.reverberation, 0.0, 1.0),
            (
                "reverberation_seconds_max",
                self.reverberation_seconds_max,
                0.1,
                2.0,
            ),
            ("gain_db_max", self.gain_db_max, 0.0, 40.0),
            ("speed_change_max", self.speed_change_max, 0.0, 0.5),
            ("noise_db_min", self.noise_db_min, -20.0, 100.0),
            ("noise_db_max", self.noise_db_max, self.noise_db_min, 100.0),
            ("time_masks", self.time_masks as f64, 0.0, 100.0),
            ("time_mask_frames_max", self.time_mask_frames_max as f64, 1.0, 1e4),
            ("feature_masks", self.feature_masks as f64, 0.0, 100.0),
            (
                "feature_mask_width_max",
                self.feature_mask_width_max as f64,
                1.0,
                1e5,
            ),
        ] {
            within(&format!("`augment.{name}`"), value, low, high)?;
        }
        match self.telephone_codecs.is_empty() {
            true => Err("`augment.telephone_codecs` is empty, expected one at least: \"none\", \"g711\", \"g722\", \"gsm\"".into()),
            false => Ok(()),
        }
    }
}
