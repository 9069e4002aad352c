//! Containers, codecs and defects that ffmpeg and sox make, compared with what ffmpeg decodes of them: the
//! same length to one codec frame, and a correlation above 0.99.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use speechverse::audio::Waveform;
use speechverse::testing::skip;

use super::{correlation, decode_plain};

/// Longest codec frame, samples at 16 kHz: 1,152 at 16 kHz, or 576 at 8 kHz.
const FRAME: usize = 1_152;

/// File ending, arguments of ffmpeg, and the rates and channels that are tried.
type Row = (&'static str, &'static str, &'static [(u32, u32)]);

const ANY: &[(u32, u32)] = &[(16_000, 1), (44_100, 2), (8_000, 2)];
const OPUS: &[(u32, u32)] = &[(48_000, 1), (48_000, 2)];
const MPEG: &[(u32, u32)] = &[(16_000, 1), (44_100, 2), (22_050, 2)];

const ROWS: &[Row] = &[
    ("wav", "-c:a pcm_u8", ANY),
    ("wav", "-c:a pcm_s16le", ANY),
    ("wav", "-c:a pcm_s24le", ANY),
    ("wav", "-c:a pcm_s32le", ANY),
    ("wav", "-c:a pcm_f32le", ANY),
    ("wav", "-c:a pcm_f64le", ANY),
    ("wav", "-c:a pcm_alaw", ANY),
    ("wav", "-c:a pcm_mulaw", ANY),
    ("wav", "-c:a adpcm_ima_wav", ANY),
    ("wav", "-c:a adpcm_ms", ANY),
    ("wav", "-c:a libmp3lame", MPEG),
    ("wav", "-c:a pcm_s16le -rf64 always", ANY),
    ("au", "-c:a pcm_s16be", ANY),
    ("au", "-c:a pcm_mulaw", ANY),
    ("aiff", "-c:a pcm_s16be", ANY),
    ("aiff", "-c:a pcm_s24be", ANY),
    ("aif", "-c:a pcm_f32be", ANY),
    ("aif", "-c:a pcm_alaw", ANY),
    ("aif", "-c:a pcm_mulaw", ANY),
    ("caf", "-c:a pcm_s16be", ANY),
    ("caf", "-c:a pcm_f32le", ANY),
    ("caf", "-c:a pcm_alaw", ANY),
    ("caf", "-c:a alac", ANY),
    ("caf", "-c:a adpcm_ima_qt", ANY),
    ("flac", "-c:a flac", ANY),
    ("ogg", "-c:a flac", ANY),
    ("ogg", "-c:a libvorbis", ANY),
    ("ogg", "-c:a libopus", OPUS),
    ("ogg", "-c:a libopus -application voip -b:a 16k", OPUS),
    ("ogg", "-c:a libopus -frame_duration 60", OPUS),
    ("mp3", "-c:a libmp3lame", MPEG),
    ("mp3", "-c:a libmp3lame -q:a 5", MPEG),
    ("mp3", "-c:a libmp3lame -write_xing 0", MPEG),
    ("mp2", "-c:a mp2 -b:a 96k", MPEG),
    ("aac", "-c:a aac", ANY),
    ("m4a", "-c:a aac", ANY),
    ("m4a", "-c:a aac -movflags +faststart", ANY),
    ("m4a", "-c:a alac", ANY),
    (
        "mp4",
        "-c:a aac -movflags frag_keyframe+empty_moov -frag_duration 500000",
        ANY,
    ),
    ("mp4", "-c:a libmp3lame", MPEG),
    ("mp4", "-c:a flac -strict -2", ANY),
    ("mp4", "-c:a libopus -strict -2", OPUS),
    ("mov", "-c:a aac", ANY),
    ("mov", "-c:a pcm_s16be", ANY),
    ("webm", "-c:a libopus", OPUS),
    ("webm", "-c:a libopus -live 1", OPUS),
    ("webm", "-c:a libvorbis", ANY),
    ("mkv", "-c:a aac", ANY),
    ("mkv", "-c:a libmp3lame", MPEG),
    ("mkv", "-c:a flac", ANY),
    ("mkv", "-c:a pcm_s16le", ANY),
];

/// What makes a file from the sentence, and from nothing else.
struct Bench {
    folder: tempfile::TempDir,
    source: PathBuf,
}

impl Bench {
    /// `None`, said by name, where ffmpeg is missing.
    fn new(test: &str) -> Option<Self> {
        if Command::new("ffmpeg").arg("-version").output().is_err() {
            skip(test, "ffmpeg is not installed");
            return None;
        }
        Some(Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            source: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/audio/reported/plain.wav"),
        })
    }

    /// The file that ffmpeg makes; `None` where this build of it lacks the encoder.
    fn make(&self, (ending, arguments, _): Row, (rate_hz, channels): (u32, u32)) -> Option<Vec<u8>> {
        let path = self.folder.path().join(format!("made.{ending}"));
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-y", "-i"])
            .arg(&self.source)
            .args(["-ar", &rate_hz.to_string(), "-ac", &channels.to_string()])
            .args(arguments.split(' '))
            .arg(&path)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            skip(&format!("{ending}: {arguments}"), "this ffmpeg does not make it");
            return None;
        }
        Some(std::fs::read(path).expect("ffmpeg wrote it"))
    }

    /// What ffmpeg decodes of the bytes, mono at 16 kHz. Opus with libopus, from which ffmpeg's own decoder
    /// differs in SILK.
    fn decoded(&self, bytes: &[u8], ending: &str, opus: bool) -> Vec<f32> {
        let path = self.folder.path().join(format!("decoded.{ending}"));
        std::fs::write(&path, bytes).expect("the temporary folder takes files");
        let decoder: &[&str] = if opus { &["-c:a", "libopus"] } else { &[] };
        let output = Command::new("ffmpeg")
            .args(["-v", "quiet"])
            .args(decoder)
            .arg("-i")
            .arg(&path)
            .args(["-map", "a:0", "-f", "f32le", "-ac", "1", "-ar", "16000", "-"])
            .output()
            .expect("ffmpeg runs");
        let samples = output.stdout.as_chunks::<4>().0.iter();
        samples.map(|four| f32::from_le_bytes(*four)).collect()
    }
}

#[test]
fn every_container_and_codec_sounds_as_ffmpeg_hears_it() {
    let Some(bench) = Bench::new("matrix of containers and codecs") else {
        return;
    };
    let mut wrong = String::new();
    for row in ROWS {
        for spec in row.2 {
            let Some(bytes) = bench.make(*row, *spec) else {
                continue;
            };
            let what = format!("{} {} at {spec:?}", row.0, row.1);
            let theirs = bench.decoded(&bytes, row.0, row.1.contains("opus"));
            match decode_plain(&bytes) {
                Ok(Waveform { samples, damage, .. }) => {
                    let same = correlation(&samples, &theirs);
                    if samples.len().abs_diff(theirs.len()) > FRAME
                        || same < 0.99
                        || damage.repaired
                        || damage.cut_short
                    {
                        let (ours, theirs) = (samples.len(), theirs.len());
                        let _ = writeln!(
                            wrong,
                            "{what}: {ours} and {theirs} samples, correlation {same:.4}, {damage:?}"
                        );
                    }
                }
                Err(error) => drop(writeln!(wrong, "{what}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_sox_writes_is_decoded_as_it_was() {
    let Some(bench) = Bench::new("files of sox") else {
        return;
    };
    if Command::new("sox").arg("--version").output().is_err() {
        return skip("files of sox", "sox is not installed");
    }
    let plain = decode_plain(&std::fs::read(&bench.source).expect("it is committed")).expect("it is whole");
    for (ending, arguments) in [
        ("wav", "-B"), // RIFX: ffmpeg 5.1 reads it with the wrong byte order, so the sentence itself is the measure
        ("wav", "-e ima-adpcm"),
        ("wav", "-e ms-adpcm"),
        ("wav", "-b 24"),
        ("aiff", ""),
        ("aifc", ""),
        ("au", "-e mu-law"),
        ("ogg", ""),
        ("flac", ""),
    ] {
        let path = bench.folder.path().join(format!("sox.{ending}"));
        let mut sox = Command::new("sox");
        sox.arg(&bench.source)
            .args(arguments.split(' ').filter(|argument| !argument.is_empty()));
        if !sox.arg(&path).status().is_ok_and(|status| status.success()) {
            skip(&format!("sox {ending} {arguments}"), "this sox does not make it");
            continue;
        }
        let waveform = decode_plain(&std::fs::read(&path).expect("sox wrote it"))
            .unwrap_or_else(|error| panic!("{ending} {arguments}: {error}"));
        let same = correlation(&waveform.samples, &plain.samples);
        assert!(same > 0.98, "{ending} {arguments}: {same:.4}");
        assert!(
            waveform.samples.len().abs_diff(plain.samples.len()) <= FRAME,
            "{ending} {arguments}"
        );
    }
}

/// Rows of whose files the defects are made: one or two of each reader.
const DAMAGED: &[Row] = &[
    ("wav", "-c:a pcm_s16le", &[(16_000, 1)]),
    ("wav", "-c:a adpcm_ima_wav", &[(16_000, 1)]),
    ("au", "-c:a pcm_s16be", &[(16_000, 1)]),
    ("aiff", "-c:a pcm_s16be", &[(16_000, 1)]),
    ("caf", "-c:a pcm_s16le", &[(16_000, 1)]),
    ("flac", "-c:a flac", &[(44_100, 2)]),
    ("ogg", "-c:a flac", &[(16_000, 1)]),
    ("ogg", "-c:a libvorbis", &[(16_000, 1)]),
    ("ogg", "-c:a libopus", &[(48_000, 1)]),
    ("mp3", "-c:a libmp3lame", &[(16_000, 1)]),
    ("mp3", "-c:a libmp3lame -write_xing 0", &[(44_100, 2)]),
    ("mp2", "-c:a mp2 -b:a 96k", &[(16_000, 1)]),
    ("aac", "-c:a aac", &[(16_000, 1)]),
    ("m4a", "-c:a aac -movflags +faststart", &[(16_000, 1)]),
    (
        "mp4",
        "-c:a aac -movflags frag_keyframe+empty_moov -frag_duration 500000",
        &[(16_000, 1)],
    ),
    ("webm", "-c:a libopus", &[(48_000, 1)]),
    ("webm", "-c:a libopus -live 1", &[(48_000, 1)]),
    ("mkv", "-c:a libvorbis", &[(16_000, 1)]),
];

/// A defect: its name, what it makes of a file, and whether the file loses sound by it.
type Defect = (&'static str, fn(&[u8]) -> Vec<u8>, bool);

const DEFECTS: &[Defect] = &[
    ("lacks 40 bytes", |whole| whole[..whole.len() - 40].to_vec(), true),
    (
        "cut at 70 percent",
        |whole| whole[..whole.len() * 7 / 10].to_vec(),
        true,
    ),
    (
        "an ID3v2 tag before it",
        |whole| [b"ID3\x04\0\0\0\0\0\x0aTIT2......", whole].concat(),
        false,
    ),
    (
        "an ID3v1 tag behind it",
        |whole| [whole, b"TAG", &[b' '; 125]].concat(),
        false,
    ),
    ("zeros behind it", |whole| [whole, &[0; 333]].concat(), false),
    ("twice", |whole| [whole, whole].concat(), false),
];

#[test]
fn defects_cost_no_more_than_ffmpeg_loses_and_are_reported() {
    let Some(bench) = Bench::new("matrix of defects") else {
        return;
    };
    let mut wrong = String::new();
    for row in DAMAGED {
        let Some(whole) = bench.make(*row, row.2[0]) else {
            continue;
        };
        let reference = decode_plain(&whole)
            .expect("the matrix of containers has it")
            .samples;
        for (defect, make, loses) in DEFECTS {
            let bytes = make(&whole);
            let what = format!("{} {}, {defect}", row.0, row.1);
            let theirs = bench.decoded(&bytes, row.0, row.1.contains("opus"));
            let waveform = match decode_plain(&bytes) {
                Ok(waveform) => waveform,
                Err(error) => {
                    let _ = writeln!(wrong, "{what}: {error}");
                    continue;
                }
            };
            let ours = waveform.samples.len();
            let reported = waveform.damage.repaired || waveform.damage.cut_short;
            // At least what ffmpeg decodes, to one frame, and of a file that lost nothing all of it.
            let expected = match (*loses, *defect) {
                (true, _) => theirs.len(),
                (false, "twice") => 2 * reference.len(),
                (false, _) => reference.len(),
            };
            let frames = if *defect == "twice" { 4 * FRAME } else { FRAME };
            let same = correlation(&waveform.samples[..ours.min(reference.len())], &reference);
            if ours + frames < expected || same < 0.99 || reported != *loses {
                let damage = waveform.damage;
                let _ = writeln!(
                    wrong,
                    "{what}: {ours} of {expected} samples, correlation {same:.4}, {damage:?}"
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_cannot_be_decoded_names_codec_and_container() {
    let Some(bench) = Bench::new("codecs that are not decoded") else {
        return;
    };
    for (ending, arguments, names) in [
        ("mkv", "-c:a ac3", ["AC-3", "Matroska"]),
        ("mp4", "-c:a ac3", ["AC-3", "MP4"]),
        ("mov", "-c:a adpcm_ima_qt", ["ima4", "MP4"]),
        ("m4a", "-c:a aac -ac 6", ["AAC", "M4A"]),
        ("ogg", "-c:a libspeex", ["Speex", "Ogg"]),
        ("wma", "-c:a wmav2", ["WMA", "ASF"]),
        ("wv", "-c:a wavpack", ["WavPack", "WavPack"]),
    ] {
        let Some(bytes) = bench.make((ending, arguments, &[]), (48_000, 2)) else {
            continue;
        };
        let error = decode_plain(&bytes).unwrap_err().to_string();
        for name in names {
            assert!(error.contains(name), "{ending} {arguments}: {error}");
        }
    }
}
