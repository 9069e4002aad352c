//! Whole values through [`decode`]: every container, every way in which one can be bad, and hostile bytes.

mod hostile;
mod messages;
mod wav_files;

use std::f64::consts::TAU;
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// What the damaged-file test takes beside [`CONTAINERS`].
const OTHERS: [&str; 6] = [
    "tone-16000-1-opus.ogg",
    "tone-16000-1.m4a",
    "tone-16000-1.aac",
    "tone-16000-1.mp2",
    "tone-16000-1-adpcm.wav",
    "reported/speech.webm",
];

const CONTAINERS: [(&str, Container, u32, u16, usize); 18] = [
    ("tone-16000-1-s16.wav", Container::Wav, 16_000, 1, 4_000),
    ("tone-8000-2-s24-extensible.wav", Container::Wav, 8_000, 2, 4_000),
    ("tone-96000-1-s16.wav", Container::Wav, 96_000, 1, 1_280),
    ("tone-16000-8-s16-extensible.wav", Container::Wav, 16_000, 8, 800),
    ("tone-8000-1-mulaw.wav", Container::Wav, 8_000, 1, 4_000),
    ("tone-8000-1-alaw.wav", Container::Wav, 8_000, 1, 4_000),
    ("tone-16000-1-rf64.wav", Container::Wav, 16_000, 1, 4_000),
    ("tone-16000-1-piped-ffmpeg.wav", Container::Wav, 16_000, 1, 4_000),
    ("tone-16000-1-piped-sox.wav", Container::Wav, 16_000, 1, 4_000),
    ("tone-44100-2.flac", Container::Flac, 44_100, 2, 4_000),
    ("tone-44100-2-piped.flac", Container::Flac, 44_100, 2, 4_000),
    ("tone-96000-1-s24.flac", Container::Flac, 96_000, 1, 800),
    ("tone-44100-2-flac.ogg", Container::OggFlac, 44_100, 2, 4_000),
    ("tone-44100-2-oggenc.ogg", Container::OggVorbis, 44_100, 2, 4_000),
    ("tone-16000-1-ffmpeg.ogg", Container::OggVorbis, 16_000, 1, 8_000),
    ("tone-44100-2-lame.mp3", Container::Mpeg, 44_100, 2, 4_000),
    ("tone-16000-1-lame-vbr.mp3", Container::Mpeg, 16_000, 1, 8_000),
    ("tone-44100-2-ffmpeg.mp3", Container::Mpeg, 44_100, 2, 4_000),
];

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/audio");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn decode_plain(bytes: &[u8]) -> Result<Waveform, AudioError> {
    decode(bytes, None, &AudioLimits::default())
}

/// A WAV file with exactly this `fmt ` chunk and this declared size of data.
fn wav(format: &[u8], data: &[u8], declared: u32) -> Vec<u8> {
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((20 + format.len() as u32).wrapping_add(declared).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend((format.len() as u32).to_le_bytes());
    bytes.extend(format);
    bytes.extend(b"data");
    bytes.extend(declared.to_le_bytes());
    bytes.extend(data);
    bytes
}

fn format(tag: u16, channels: u16, rate_hz: u32, bits: u16) -> Vec<u8> {
    let frame_bytes = (u32::from(channels) * u32::from(bits) / 8) as u16;
    let mut chunk = Vec::new();
    chunk.extend(tag.to_le_bytes());
    chunk.extend(channels.to_le_bytes());
    chunk.extend(rate_hz.to_le_bytes());
    chunk.extend(rate_hz.wrapping_mul(u32::from(frame_bytes)).to_le_bytes());
    chunk.extend(frame_bytes.to_le_bytes());
    chunk.extend(bits.to_le_bytes());
    chunk
}

fn plain_wav(tag: u16, channels: u16, rate_hz: u32, bits: u16, data: &[u8]) -> Vec<u8> {
    wav(&format(tag, channels, rate_hz, bits), data, data.len() as u32)
}

/// How far the middle of the sound is from a 440 Hz sine of amplitude 0.5 that begins at its first sample,
/// decibels.
fn error_db(samples: &[f32]) -> f64 {
    let middle = samples.len() / 5..samples.len() * 4 / 5;
    let ideal = |n: usize| 0.5 * (TAU * 440.0 * n as f64 / 16_000.0).sin();
    let error: f64 = middle
        .clone()
        .map(|n| (f64::from(samples[n]) - ideal(n)).powi(2))
        .sum();
    let power: f64 = middle.map(|n| ideal(n).powi(2)).sum();
    10.0 * (error / power).log10()
}

#[test]
fn every_container_decodes_to_the_tone_that_is_in_it() {
    for (name, container, rate_hz, channels, len) in CONTAINERS {
        let waveform = decode_plain(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));

        assert_eq!(waveform.container, container, "{name}");
        assert_eq!(
            (waveform.source_rate_hz, waveform.source_channels),
            (rate_hz, channels),
            "{name}"
        );
        assert_eq!(waveform.samples.len(), len, "{name}");
        assert_eq!(waveform.seconds(), len as f64 / 16_000.0, "{name}");
        let lossy = name.ends_with("mp3") || name.ends_with("ogg") || name.contains("law");
        let error = error_db(&waveform.samples);
        assert!(error < if lossy { -20.0 } else { -60.0 }, "{name}: {error:.1} dB");
    }
}

#[test]
fn an_mp3_without_a_tag_keeps_the_samples_of_its_encoder() {
    let waveform = decode_plain(&fixture("tone-16000-1-untagged.mp3")).unwrap();

    assert_eq!(waveform.samples.len() % 576, 0);
    assert!(waveform.samples.len() > 8_000);
}

#[test]
fn what_phones_browsers_and_dictation_machines_write_is_decoded() {
    for (name, container, len) in [
        ("tone-16000-1-opus.ogg", Container::OggOpus, 8_000),
        ("tone-16000-1.mp2", Container::Mpeg, 8_000),
        ("tone-16000-1.m4a", Container::Mp4, 8_000),
        ("tone-16000-1.aac", Container::Adts, 8_000),
        ("tone-16000-1-adpcm.wav", Container::Wav, 4_000),
    ] {
        let waveform = decode_plain(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));

        assert_eq!(waveform.container, container, "{name}");
        assert_eq!(waveform.damage, Damage::default(), "{name}");
        let over = waveform.samples.len() as i64 - len;
        assert!(
            (-1_152..=2 * 1_152).contains(&over),
            "{name}: {} samples",
            waveform.samples.len()
        );
        assert!(loudest_frame_dbfs(&waveform.samples) > -12.0, "{name}");
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_never_taken_for_a_whole_one() {
    for (name, ..) in CONTAINERS {
        let whole = fixture(name);
        let reference = decode_plain(&whole).unwrap();
        let step = whole.len() / 97 + 1;
        for len in (1..whole.len())
            .step_by(step)
            .chain([whole.len() - 1, whole.len() - 2])
        {
            match decode_plain(&whole[..len]) {
                Err(AudioError::Truncated { .. }) => {}
                // Less than its own mark is no container at all.
                Err(AudioError::NotAudio { .. }) if len < 400 => {}
                Ok(cut) if cut.damage.cut_short || cut.damage.repaired => {
                    // Where only the last check sum is cut, all is decoded and the cut is reported even so.
                    let all_heard = cut.damage.cut_short && cut.samples == reference.samples;
                    let said = cut.damage.undecoded_seconds > 0.0 || all_heard;
                    assert!(said, "{name} cut to {len}: {:?}", cut.damage);
                    assert!(cut.samples.len() <= reference.samples.len());
                }
                // Where the length is unknown, what is cut between two frames is whole.
                Ok(cut) if name.contains("piped") || name.ends_with("ogg") => {
                    assert!(cut.samples.len() <= reference.samples.len());
                }
                Err(AudioError::ZeroSamples { .. } | AudioError::Corrupt { .. })
                    if name.contains("piped") || name.ends_with("ogg") => {}
                other => panic!("{name} cut to {len} of {} bytes: {other:?}", whole.len()),
            }
        }
    }
}

#[test]
fn a_cut_check_sum_of_flac_is_distinguished_from_bytes_behind_the_last_frame() {
    for name in ["tone-44100-2.flac", "tone-96000-1-s24.flac"] {
        let whole = fixture(name);
        let reference = decode_plain(&whole).unwrap().samples;
        for cut in [1, 2] {
            let waveform = decode_plain(&whole[..whole.len() - cut]).unwrap();

            assert_eq!(waveform.samples, reference, "{name} without {cut} bytes");
            let Damage {
                cut_short, repaired, ..
            } = waveform.damage;
            assert_eq!((cut_short, repaired), (true, false), "{name} without {cut} bytes");
        }
        for behind in [&b"\x01"[..], b"\x01\x02", b"something else"] {
            let waveform = decode_plain(&[&whole, behind].concat()).unwrap();

            assert_eq!(waveform.samples, reference, "{name} and {behind:?}");
            assert!(!waveform.damage.cut_short, "{name} and {behind:?}");
        }
    }
}

#[test]
fn a_byte_changed_in_the_sound_of_a_checked_container_is_found() {
    for name in [
        "tone-44100-2.flac",
        "tone-44100-2-flac.ogg",
        "tone-44100-2-oggenc.ogg",
        "tone-16000-1-ffmpeg.ogg",
    ] {
        let whole = fixture(name);
        for at in (whole.len() - 2_500..whole.len()).step_by(131) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;

            match decode_plain(&damaged) {
                Err(AudioError::Corrupt { .. } | AudioError::Truncated { .. }) => {}
                Ok(waveform) if waveform.damage.repaired || waveform.damage.cut_short => {}
                other => panic!("{name} with byte {at} changed: {other:?}"),
            }
        }
    }
}

#[test]
fn a_container_without_samples_says_so() {
    let mut flac = fixture("tone-44100-2-piped.flac");
    let audio = flac.windows(2).position(|pair| pair == [0xff, 0xf8]).unwrap();
    flac.truncate(audio);

    for bytes in [
        plain_wav(1, 1, 16_000, 16, &[]),
        flac,
        plain_wav(1, 1, 48_000, 16, &[1, 2]),
    ] {
        let error = decode_plain(&bytes).unwrap_err();

        assert!(matches!(error, AudioError::ZeroSamples { .. }), "{error}");
    }
}

#[test]
fn samples_that_are_no_numbers_are_refused_with_their_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut data: Vec<u8> = [0.5_f32; 600].iter().flat_map(|s| s.to_le_bytes()).collect();
        data[4 * 501..4 * 502].copy_from_slice(&bad.to_le_bytes());

        let mono = decode_plain(&plain_wav(3, 1, 16_000, 32, &data));
        let stereo = decode_plain(&plain_wav(3, 2, 8_000, 32, &data));

        assert_eq!(mono, Err(AudioError::NonFinite { frame: 501 }));
        assert_eq!(stereo, Err(AudioError::NonFinite { frame: 250 }));
    }
}

#[test]
fn numbers_that_only_overflow_on_the_way_are_refused_too() {
    let data: Vec<u8> = [f32::MAX; 4_000].iter().flat_map(|s| s.to_le_bytes()).collect();

    for bytes in [
        plain_wav(3, 2, 16_000, 32, &data),
        plain_wav(3, 1, 44_100, 32, &data),
    ] {
        assert!(matches!(decode_plain(&bytes), Err(AudioError::NonFinite { .. })));
    }
    let large: Vec<u8> = [1e300_f64; 100].iter().flat_map(|s| s.to_le_bytes()).collect();
    assert!(matches!(
        decode_plain(&plain_wav(3, 1, 16_000, 64, &large)),
        Err(AudioError::NonFinite { frame: 0 })
    ));
}

#[test]
fn every_channel_counts_the_same() {
    let frames: Vec<u8> = (0..200)
        .flat_map(|_| [16_000_i16, 0, -8_000, 0].map(i16::to_le_bytes))
        .flatten()
        .collect();

    let waveform = decode_plain(&plain_wav(1, 4, 16_000, 16, &frames)).unwrap();

    assert_eq!(waveform.samples, vec![2_000.0 / 32_768.0; 200]);
}

#[test]
fn sixty_four_channels_and_the_widest_rates_are_taken() {
    let silence = vec![0; 64 * 2 * 2_000];
    assert_eq!(
        decode_plain(&plain_wav(1, 64, 1_000, 16, &silence))
            .unwrap()
            .samples
            .len(),
        32_000
    );
    assert_eq!(
        decode_plain(&plain_wav(1, 1, 768_000, 16, &silence))
            .unwrap()
            .samples
            .len(),
        2_667
    );
    assert_eq!(
        decode_plain(&plain_wav(1, 1, 767_999, 16, &silence))
            .unwrap()
            .samples
            .len(),
        2_667
    );
}

#[test]
fn exactly_the_longest_is_taken() {
    let limits = AudioLimits {
        seconds_max: 0.25,
        ..AudioLimits::default()
    };

    assert!(decode(&fixture("tone-44100-2-piped.flac"), None, &limits).is_ok());
    assert!(decode(&fixture("tone-16000-1-s16.wav"), None, &limits).is_ok());
}

#[test]
fn files_that_stand_one_behind_the_other_are_all_decoded() {
    for (name, first, second) in [
        ("wav", "tone-16000-1-s16.wav", "tone-8000-2-s24-extensible.wav"),
        ("flac", "tone-44100-2.flac", "tone-96000-1-s24.flac"),
        ("ogg", "tone-16000-1-ffmpeg.ogg", "tone-16000-1-opus.ogg"),
        ("mp3", "tone-16000-1-untagged.mp3", "tone-44100-2-lame.mp3"),
        ("adts", "tone-16000-1.aac", "tone-16000-1.aac"),
        ("mp4", "tone-16000-1.m4a", "tone-16000-1.m4a"),
    ] {
        let (first, second) = (fixture(first), fixture(second));
        let alone = [&first, &second].map(|bytes| decode_plain(bytes).unwrap().samples.len());

        let both = decode_plain(&[first, second].concat()).unwrap();

        let frame = 2 * 1_152 + 529;
        let expected = alone[0] + alone[1];
        assert!(
            both.samples.len().abs_diff(expected) < frame,
            "{name}: {} of {expected}",
            both.samples.len()
        );
        assert_eq!(both.damage, Damage::default(), "{name}");
    }
}

#[test]
fn a_tag_before_any_container_is_stepped_over() {
    let tag = b"ID3\x04\0\0\0\0\0\x0aTIT2......";
    for name in [
        "tone-16000-1-s16.wav",
        "tone-44100-2.flac",
        "tone-16000-1-ffmpeg.ogg",
        "tone-16000-1-opus.ogg",
        "tone-16000-1.aac",
        "tone-16000-1.m4a",
        "tone-16000-1-lame-vbr.mp3",
    ] {
        let plain = fixture(name);

        let tagged = decode_plain(&[&tag[..], &plain].concat()).unwrap();

        assert_eq!(tagged, decode_plain(&plain).unwrap(), "{name}");
    }
}

#[test]
fn opposite_channels_do_not_cancel_and_one_channel_keeps_its_level() {
    let tone = |n: i32| ((f64::from(n) * TAU * 440.0 / 16_000.0).sin() * 16_000.0) as i16;
    let stereo = |right: &dyn Fn(i32) -> i16| -> Vec<f32> {
        let data: Vec<u8> = (0..8_000)
            .flat_map(|n| [tone(n).to_le_bytes(), right(n).to_le_bytes()].concat())
            .collect();
        decode_plain(&plain_wav(1, 2, 16_000, 16, &data)).unwrap().samples
    };

    for samples in [
        stereo(&|n| -tone(n)),
        stereo(&|_| 0),
        stereo(&|_| 900),
        stereo(&tone),
    ] {
        let level = loudest_frame_dbfs(&samples);
        assert!((level - -9.24).abs() < 0.3, "{level:.2} dB");
    }
}

#[test]
fn a_constant_value_is_silence_and_a_long_pause_is_noticed() {
    let tone: Vec<f32> = (0..16_000).map(|n| (n as f32 * 0.2).sin() * 0.3).collect();
    let offset: Vec<f32> = tone.iter().map(|sample| sample * 1e-4 + 0.4).collect();

    assert_eq!(loudest_frame_dbfs(&[0.03; 32_000]), f64::NEG_INFINITY);
    assert!(loudest_frame_dbfs(&offset) < -80.0);
    let noise: Vec<f32> = (0..32_000)
        .map(|n| ((n * 7_919 % 101) as f32 - 50.0) * 1e-4)
        .collect();
    assert!(has_long_pause(&[&tone[..], &noise, &tone].concat()));
    assert!(!has_long_pause(&[&tone[..], &noise[..16_000], &tone].concat()));
    assert!(
        !has_long_pause(&[&noise[..], &tone, &noise].concat()),
        "silence around is no pause"
    );
    assert!(!has_long_pause(&[0.0; 64_000]));
}

#[test]
fn raw_pcm_goes_by_its_content_type() {
    let bytes = [0x40, 0x00, 0xc0, 0x00, 0x40, 0x00, 0xc0, 0x00];
    let with = |content_type| decode(&bytes, Some(content_type), &AudioLimits::default()).unwrap();

    assert_eq!(with("audio/L16;rate=16000").samples, [0.5, -0.5, 0.5, -0.5]);
    assert_eq!(with("audio/L16;rate=16000;channels=2").samples, [0.0, 0.0]);
    assert_eq!(with("audio/pcm;rate=16000").samples[0], 64.0 / 32_768.0);
    assert!(!with("audio/L16;rate=16000").content_type_mismatch);
    let odd = decode(&bytes[1..], Some("audio/L16;rate=16000"), &AudioLimits::default()).unwrap();
    assert_eq!((odd.samples.len(), odd.damage.cut_short), (3, true));
}

#[test]
fn the_bytes_win_over_a_header_that_contradicts_them() {
    let flac = fixture("tone-44100-2.flac");
    let limits = AudioLimits::default();

    for (content_type, mismatch) in [
        (None, false),
        (Some("application/octet-stream"), false),
        (Some("audio/flac"), false),
        (Some("audio/wav"), true),
        (Some("text/plain"), true),
        (Some("audio/L16;rate=16000"), true),
    ] {
        let waveform = decode(&flac, content_type, &limits).unwrap();

        assert_eq!(waveform.container, Container::Flac);
        assert_eq!(waveform.content_type_mismatch, mismatch, "{content_type:?}");
    }
    let error = decode(&flac, Some("audio/L16"), &limits).unwrap_err();
    assert!(matches!(error, AudioError::ContentType(_)), "{error}");
}

#[test]
fn tags_before_and_after_an_mp3_are_stepped_over() {
    let plain = fixture("tone-44100-2-lame.mp3");
    let tag = b"ID3\x04\0\0\0\0\0\x0aTIT2......";
    let tagged = [&tag[..], &[0; 12], &plain, b"TAG", &[b' '; 125]].concat();

    assert_eq!(decode_plain(&tagged).unwrap(), decode_plain(&plain).unwrap());
}

#[test]
fn an_mp3_whose_beginning_is_missing_is_decoded_from_the_first_whole_frame() {
    let whole = fixture("tone-16000-1-untagged.mp3");
    let reference = decode_plain(&whole).unwrap().samples.len();

    for cut in [100, 500, 1_000] {
        let waveform = decode_plain(&whole[cut..]).unwrap();

        let Damage {
            undecoded_seconds,
            repaired,
            ..
        } = waveform.damage;
        assert!(repaired, "cut by {cut}");
        assert!(
            (0.001..0.2).contains(&undecoded_seconds),
            "cut by {cut}: {undecoded_seconds}"
        );
        assert!(waveform.samples.len() < reference);
    }
}
