//! Clips in which one to three people speak in turns, mixed of recordings of one person each and drawn anew
//! each time: the task `speaker_count`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::TrainingError;
use super::augment::change_speed;
use super::config::{MIX_SECONDS_MIN, SPEAKERS_MAX, SpeakerMixConfig};
use super::example::{AudioSource, Clip, Example};
use super::feature_cache::of_file;
use super::manifest::{clip_of, lines};
use crate::audio::SAMPLE_RATE_HZ;
use crate::text::TemplateVariables;
use crate::util::hex;
use crate::util::random::SplitMix;

const TASK: &str = "speaker_count";
/// Answers by number of speakers: the labels of the task.
const NUMBERS: [&str; SPEAKERS_MAX] = ["one", "two", "three"];
/// Names how clips are mixed; to be changed with it, so that cached features of other mixes are not found.
const MIX_VERSION: &str = "mixes 1";
/// Where only rows of training are wanted.
const SPLIT: &str = "train";
/// Longest clip, seconds.
const MIX_SECONDS_MAX: f64 = 14.0;
/// Shortest turn, seconds; shorter recordings are left out.
const TURN_SECONDS_MIN: f64 = 1.2;
/// Longest turn, seconds.
const TURN_SECONDS_MAX: f64 = 3.5;
/// Longest silence before the first turn, seconds.
const LEAD_SECONDS_MAX: f64 = 0.3;
/// Longest silence between turns, seconds.
const GAP_SECONDS_MAX: f64 = 0.6;
/// Shortest and longest time in which two speak at once, seconds.
const OVERLAP_SECONDS: (f64, f64) = (0.1, 1.0);
/// Share of the changes of speaker in which the next one begins too early.
const OVERLAP_SHARE: f64 = 0.4;
/// Share of the clips whose speakers are all of one domain, where it has enough of them: else rooms and
/// microphones would tell how many there are.
const SAME_DOMAIN_SHARE: f64 = 0.7;
/// Share of the clips whose voices are played at speeds of their own: more voices than there are people.
const VARIED_SHARE: f64 = 0.6;
const SPEED: (f64, f64) = (0.84, 1.19);
/// Root mean square of a turn, and by how much a speaker is louder or quieter, decibels.
const LEVEL: f64 = 0.08;
const LEVEL_DB: f64 = 4.0;
/// Fade at both ends of a turn, seconds.
const FADE_SECONDS: f64 = 0.01;
/// Loudest sample of a clip.
const PEAK_MAX: f32 = 0.99;
/// Recordings of a voice that are tried until one can be read.
const READ_ATTEMPTS_MAX: usize = 4;

/// One line of a manifest. Labels do not matter.
#[derive(Deserialize)]
struct Line {
    audio_filepath: String,
    duration: f64,
    offset: Option<f64>,
    voice: Option<String>,
    domain: Option<String>,
    split: Option<String>,
}

/// A person, and recordings of them alone.
#[derive(Debug)]
struct Voice {
    name: String,
    domain: String,
    recordings: Vec<Clip>,
}

/// Everybody who can be mixed, by domain.
#[derive(Debug)]
struct Voices(Vec<Vec<Voice>>);

/// How one person sounds in a clip.
struct Speaker<'a> {
    voice: &'a Voice,
    speed: f64,
    level: f64,
}

/// The mixes of a run as examples: `config.clips` of them, as many of each number of speakers, with lengths
/// drawn from 4 to 14 seconds and at most `seconds_max`. Their sound is drawn whenever they are loaded. Rows
/// of manifests that cannot be used are logged and left out.
///
/// # Errors
/// [`TrainingError::Io`], or [`TrainingError::Manifest`] for files of another kind;
/// [`TrainingError::Settings`] where there are fewer voices than a clip may have speakers.
pub fn speaker_mixes(
    config: &SpeakerMixConfig,
    seconds_max: f64,
    seed: u64,
) -> Result<Vec<Example>, TrainingError> {
    if config.clips == 0 {
        return Ok(Vec::new());
    }
    let voices = Arc::new(Voices::read(config, seconds_max)?);
    let (digest, names) = (voices.digest(), voices.digest_of_names());
    let longest = seconds_max.clamp(MIX_SECONDS_MIN, MIX_SECONDS_MAX);
    let example = |at: usize| {
        let speakers = 1 + at % config.speakers_max.clamp(1, SPEAKERS_MAX);
        let seconds = SplitMix::new(&[seed, at as u64]).between(MIX_SECONDS_MIN, longest);
        let id = format!("mix {at} of {speakers} speakers among voices {}", &names[..16]);
        let voices = Arc::clone(&voices);
        Example {
            audio: AudioSource::Drawn {
                id: format!("{MIX_VERSION}: {id}, {seconds} s, of {digest}"),
                draw: Arc::new(move |random| voices.mix(speakers, seconds, random)),
            },
            id,
            seconds,
            task: TASK.to_owned(),
            instruction: None,
            target: NUMBERS[speakers - 1].to_owned(),
            targets: Default::default(),
            variables: Arc::new(TemplateVariables::default()),
            domain: Some("mixed".to_owned()),
            text: None,
        }
    };
    Ok((0..config.clips).map(example).collect())
}

impl Voices {
    /// Reads manifests. Rows without a `voice`, of other domains, shorter than a turn or longer than
    /// `seconds_max` are passed over.
    fn read(config: &SpeakerMixConfig, seconds_max: f64) -> Result<Self, TrainingError> {
        let mut found = BTreeMap::<String, BTreeMap<String, Vec<Clip>>>::new();
        for path in &config.manifests {
            let folder = path.parent().unwrap_or_else(|| Path::new("."));
            lines(path, &mut |at, text| {
                let row = text.and_then(|text| {
                    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
                    let clip = clip_of(line.audio_filepath, line.offset, line.duration, folder)?;
                    Ok((
                        clip,
                        line.domain.unwrap_or_default(),
                        line.voice.unwrap_or_default(),
                        line.split,
                    ))
                });
                match row {
                    Err(reason) => {
                        tracing::warn!(manifest = %path.display(), line = at, reason, "left a row out of the speaker mixes");
                    }
                    Ok((clip, domain, voice, split)) => {
                        let is_wanted = (config.domains.is_empty() || config.domains.contains(&domain))
                            && split.is_none_or(|split| split == SPLIT)
                            && !voice.trim().is_empty()
                            && (TURN_SECONDS_MIN..=seconds_max).contains(&clip.seconds);
                        if is_wanted {
                            found
                                .entry(domain)
                                .or_default()
                                .entry(voice)
                                .or_default()
                                .push(clip);
                        }
                    }
                }
                Ok(())
            })?;
        }
        let count: usize = found.values().map(BTreeMap::len).sum();
        if count < config.speakers_max {
            return Err(TrainingError::Settings {
                problem: format!(
                    "`data.speaker_mixes` finds {count} voices with recordings of {TURN_SECONDS_MIN} to {seconds_max} s, and a mix of {} speakers needs as many: rows name theirs as `voice`, and have the `domain` of one of `domains` where there are some",
                    config.speakers_max
                ),
            });
        }
        let domain = |(domain, voices): (String, BTreeMap<String, Vec<Clip>>)| {
            let voice = |(name, recordings)| Voice {
                name,
                domain: domain.clone(),
                recordings,
            };
            voices.into_iter().map(voice).collect()
        };
        Ok(Self(found.into_iter().map(domain).collect()))
    }

    /// Digest of who may be mixed and of which pieces of which files, wherever these are: for the data that a
    /// run is resumed with.
    fn digest_of_names(&self) -> String {
        let mut hash = Sha256::new();
        for voice in self.0.iter().flatten() {
            hash.update(format!("{:?} {:?}", voice.domain, voice.name));
            for clip in &voice.recordings {
                hash.update(format!(
                    " {:?} {:?} {}",
                    clip.path.file_name(),
                    clip.offset,
                    clip.seconds
                ));
            }
        }
        hex(&hash.finalize())
    }

    /// Digest of what mixes are drawn from, for cached features.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for voice in self.0.iter().flatten() {
            hash.update(format!("{:?} {:?}", voice.domain, voice.name));
            for clip in &voice.recordings {
                let piece = format!("{:?} {}", clip.offset, clip.seconds);
                for part in of_file(&clip.path, piece).into_iter().flatten() {
                    hash.update((part.len() as u64).to_le_bytes());
                    hash.update(part);
                }
            }
        }
        hex(&hash.finalize())
    }

    /// So many different people, each with a speed and a loudness.
    fn speakers(&self, count: usize, random: &mut SplitMix) -> Vec<Speaker<'_>> {
        let domain = &self.0[random.below(self.0.len())];
        let alike = random.chance(SAME_DOMAIN_SHARE) && domain.len() >= count;
        let first = random.below(domain.len());
        let mut others: Vec<&Voice> = (self.0.iter().flatten())
            .filter(|voice| !std::ptr::eq(*voice, &domain[first]))
            .filter(|voice| !alike || voice.domain == domain[first].domain)
            .collect();
        random.shuffle(&mut others);
        let varied = random.chance(VARIED_SHARE);
        let speaker = |voice| Speaker {
            voice,
            speed: match random.between(SPEED.0, SPEED.1) {
                speed if varied => speed,
                _ => 1.0,
            },
            level: LEVEL * 10f64.powf(random.between(-LEVEL_DB, LEVEL_DB) / 20.0),
        };
        std::iter::once(&domain[first])
            .chain(others)
            .take(count)
            .map(speaker)
            .collect()
    }

    /// A clip of `seconds` in which each of `count` speakers has a turn at least.
    fn mix(&self, count: usize, seconds: f64, random: &mut SplitMix) -> Result<Vec<f32>, String> {
        let speakers = self.speakers(count, random);
        let total = samples_of(seconds);
        let shortest = samples_of(TURN_SECONDS_MIN);
        let mut mix = vec![0.0f32; total];
        let mut end = samples_of(random.between(0.0, LEAD_SECONDS_MAX));
        let mut last: Option<(usize, usize)> = None; // who spoke, and for how long
        for turn in 0.. {
            let who = if turn < count { turn } else { random.below(count) };
            let still_to_come = count.saturating_sub(turn + 1) * shortest;
            let space = total.saturating_sub(end + still_to_come);
            if turn >= count && space < shortest {
                break;
            }
            let length = samples_of(random.between(TURN_SECONDS_MIN, TURN_SECONDS_MAX)).min(space);
            let piece = speakers[who].speak(length, random)?;
            let overlap = samples_of(random.between(OVERLAP_SECONDS.0, OVERLAP_SECONDS.1));
            let gap = samples_of(random.between(0.0, GAP_SECONDS_MAX));
            let interrupts = random.chance(OVERLAP_SHARE);
            let begin = match last {
                // In a third of each turn nobody else speaks.
                Some((other, heard)) if interrupts && other != who => {
                    end - overlap.min(piece.len().min(heard) / 3)
                }
                _ => end + gap.min(space - piece.len()),
            };
            for (sample, spoken) in mix[begin..].iter_mut().zip(&piece) {
                *sample += spoken;
            }
            end = begin + piece.len();
            last = Some((who, piece.len()));
        }
        let peak = mix.iter().fold(0.0f32, |peak, sample| peak.max(sample.abs()));
        if peak > PEAK_MAX {
            mix.iter_mut().for_each(|sample| *sample *= PEAK_MAX / peak);
        }
        Ok(mix)
    }
}

impl Speaker<'_> {
    /// `length` samples of one of the recordings, or all of it where it is shorter.
    fn speak(&self, length: usize, random: &mut SplitMix) -> Result<Vec<f32>, String> {
        let recordings = &self.voice.recordings;
        let mut try_one = || AudioSource::Clip(recordings[random.below(recordings.len())].clone()).load();
        let mut whole = try_one();
        for _ in 1..READ_ATTEMPTS_MAX {
            if whole.is_err() {
                whole = try_one();
            }
        }
        let whole = whole?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a length"
        )]
        let needed = ((length as f64 * self.speed) as usize).clamp(1, whole.len());
        let begin = random.below(whole.len() - needed + 1);
        let mut piece = change_speed(&whole[begin..begin + needed], self.speed);
        piece.truncate(length);
        #[expect(clippy::cast_possible_truncation, reason = "a gain needs no more than f32")]
        let gain = (self.level / loudness(&piece).max(1e-4)) as f32;
        let fade = samples_of(FADE_SECONDS).min(piece.len() / 2).max(1);
        let samples = piece.len();
        for (at, sample) in piece.iter_mut().enumerate() {
            let inside = at.min(samples - 1 - at).min(fade);
            #[expect(clippy::cast_precision_loss, reason = "a count")]
            let ramp = inside as f32 / fade as f32;
            *sample *= gain * ramp;
        }
        Ok(piece)
    }
}

/// Root mean square of the louder half of the 20 ms frames, so that pauses do not count.
fn loudness(samples: &[f32]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let mean = |sum: f64, count: usize| sum / count.max(1) as f64;
    let mut powers: Vec<f64> = samples
        .chunks(samples_of(0.02))
        .map(|frame| mean(frame.iter().map(|s| f64::from(*s).powi(2)).sum(), frame.len()))
        .collect();
    powers.sort_by(f64::total_cmp);
    let louder = &powers[powers.len() / 2..];
    mean(louder.iter().sum(), louder.len()).sqrt()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds of a clip, not negative"
)]
fn samples_of(seconds: f64) -> usize {
    (seconds * f64::from(SAMPLE_RATE_HZ)) as usize
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::audio::write_wav;

    /// Voices whose recordings are tones of 200, 300, 400 … Hz, and a manifest of them.
    fn tones(folder: &Path, voices: usize) -> PathBuf {
        let mut lines = String::new();
        for at in 0..voices {
            let hz = 200.0 + 100.0 * at as f32;
            let tone: Vec<f32> = (0..64_000)
                .map(|n| 0.3 * (std::f32::consts::TAU * hz * n as f32 / 16_000.0).sin())
                .collect();
            write_wav(&folder.join(format!("{at}.wav")), &tone).unwrap();
            let domain = if at % 2 == 0 { "even" } else { "odd" };
            lines += &format!(
                "{{\"audio_filepath\": \"{at}.wav\", \"duration\": 4.0, \"voice\": \"v{at}\", \"domain\": \"{domain}\"}}\n"
            );
        }
        lines += "{\"audio_filepath\": \"0.wav\", \"duration\": 4.0, \"voice\": null}\n"; // nobody knows who
        lines +=
            "{\"audio_filepath\": \"0.wav\", \"duration\": 4.0, \"voice\": \"test\", \"split\": \"test\"}\n";
        lines += "{\"audio_filepath\": \"0.wav\", \"duration\": -4.0, \"voice\": \"wrong\"}\nno row\n";
        lines += "{\"audio_filepath\": \"0.wav\", \"duration\": 1.0, \"offset\": 0, \"voice\": \"short\"}\n";
        let path = folder.join("voices.jsonl");
        std::fs::write(&path, lines).unwrap();
        path
    }

    fn settings(manifest: PathBuf, clips: usize) -> SpeakerMixConfig {
        SpeakerMixConfig {
            manifests: vec![manifest],
            domains: Vec::new(),
            clips,
            speakers_max: 3,
        }
    }

    /// Power at a frequency, as a share of the whole (Goertzel).
    fn share(samples: &[f32], hz: f64) -> f64 {
        let (mut re, mut im) = (0.0, 0.0);
        for (at, sample) in samples.iter().enumerate() {
            let angle = std::f64::consts::TAU * hz * at as f64 / 16_000.0;
            re += f64::from(*sample) * angle.cos();
            im += f64::from(*sample) * angle.sin();
        }
        let whole: f64 = samples.iter().map(|s| f64::from(*s).powi(2)).sum();
        (re * re + im * im) / (whole * samples.len() as f64)
    }

    #[test]
    fn as_many_speak_as_the_answer_says() {
        let folder = tempfile::tempdir().unwrap();
        let voices = Voices::read(&settings(tones(folder.path(), 5), 1), 14.0).unwrap();
        assert_eq!(voices.0.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);

        for seed in 0..60 {
            let count = 1 + seed as usize % 3;
            let speakers = voices.speakers(count, &mut SplitMix::new(&[seed]));
            let mix = voices.mix(count, 4.0, &mut SplitMix::new(&[seed])).unwrap();

            assert_eq!(mix.len(), 64_000);
            let mut loud = vec![0; count];
            for second in mix.chunks(1600) {
                for (who, speaker) in speakers.iter().enumerate() {
                    let number: f64 = speaker.voice.name[1..].parse().unwrap();
                    let hz = (200.0 + 100.0 * number) * speaker.speed;
                    loud[who] += usize::from(share(second, hz) > 0.2);
                }
            }
            assert!(loud.iter().all(|tenths| *tenths >= 3), "seed {seed}: {loud:?}");
            let distinct: std::collections::BTreeSet<_> = speakers.iter().map(|s| &s.voice.name).collect();
            assert_eq!(distinct.len(), count);
        }
    }

    #[test]
    fn examples_have_every_answer_equally_often_and_another_sound_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let config = settings(tones(folder.path(), 4), 9);

        let examples = speaker_mixes(&config, 9.0, 17).unwrap();

        for answer in NUMBERS {
            assert_eq!(
                examples.iter().filter(|example| example.target == answer).count(),
                3
            );
        }
        let one = &examples[1];
        assert!(
            examples
                .iter()
                .all(|example| (4.0..=9.0).contains(&example.seconds))
        );
        let drawn = |seed| one.audio.draw(&mut SplitMix::new(&[seed])).unwrap().samples;
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(1).len(), samples_of(one.seconds));
        assert_eq!(one.audio.load().unwrap(), one.audio.load().unwrap());
        assert!(
            speaker_mixes(&settings("no/such.jsonl".into(), 0), 9.0, 1)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn manifests_without_enough_voices_are_refused() {
        let folder = tempfile::tempdir().unwrap();

        let error = speaker_mixes(&settings(tones(folder.path(), 2), 3), 14.0, 1).unwrap_err();

        let text = error.to_string();
        assert!(
            text.contains("finds 2 voices") && text.contains("a mix of 3"),
            "{text}"
        );
        let mut of_one_domain = settings(tones(folder.path(), 5), 3);
        of_one_domain.domains = vec!["odd".to_owned()];
        let text = speaker_mixes(&of_one_domain, 14.0, 1).unwrap_err().to_string();
        assert!(text.contains("finds 2 voices"), "{text}");
    }

    #[test]
    fn a_recording_that_is_gone_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let examples = speaker_mixes(&settings(tones(folder.path(), 3), 3), 14.0, 1).unwrap();
        for at in 0..3 {
            std::fs::remove_file(folder.path().join(format!("{at}.wav"))).unwrap();
        }

        let reason = examples[2].audio.load().unwrap_err();

        assert!(reason.contains(".wav"), "{reason}");
    }
}
