//! Files that stand for what users of other programs have reported.

use std::sync::{Arc, Mutex};

use speechverse::audio::{Container, Damage, has_long_pause, loudest_frame_dbfs};

use super::{correlation, decode_plain, fixture};

/// Length of the sentence, samples at 16 kHz, and of one frame of MPEG 2 layer III.
const SENTENCE: usize = 47_840;
const FRAME: usize = 576;

fn reported(name: &str) -> Vec<u8> {
    fixture(&format!("reported/{name}"))
}

/// A WAV file with this `fmt ` chunk and these samples.
fn wav(channels: u16, block_bytes: u16, bits: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + data.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0\x01\0");
    bytes.extend(channels.to_le_bytes());
    bytes.extend(16_000_u32.to_le_bytes());
    bytes.extend((16_000 * u32::from(block_bytes)).to_le_bytes());
    bytes.extend(block_bytes.to_le_bytes());
    bytes.extend(bits.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

/// The samples of `plain.wav`, 16 bit.
fn sentence() -> Vec<i16> {
    let bytes = reported("plain.wav");
    let data = &bytes[bytes.len() - 2 * SENTENCE..];
    data.as_chunks::<2>()
        .0
        .iter()
        .map(|two| i16::from_le_bytes(*two))
        .collect()
}

#[test]
fn whatever_users_send_is_decoded_from_end_to_end() {
    let plain = decode_plain(&reported("plain.wav")).unwrap().samples;
    for (name, container, samples) in [
        ("bare.mp3", Container::Mpeg, 49_536),
        ("id3v2-between.mp3", Container::Mpeg, 2 * 49_536),
        ("ape-between.mp3", Container::Mpeg, 2 * 49_536),
        ("mono-then-stereo.mp3", Container::Mpeg, 96_967),
        ("mp3-in.wav", Container::Wav, 49_536),
        ("ima.wav", Container::Wav, 48_984),
        ("no-eos-flag.ogg", Container::OggVorbis, 48_000),
        ("pipe.flac", Container::Flac, SENTENCE),
        ("speech.webm", Container::Matroska, SENTENCE),
        ("speech.opus.ogg", Container::OggOpus, SENTENCE),
        ("speech.m4a", Container::Mp4, 48_128),
        ("speech.aac", Container::Adts, 49_152),
    ] {
        let waveform = decode_plain(&reported(name)).unwrap_or_else(|error| panic!("{name}: {error}"));

        assert_eq!(waveform.container, container, "{name}");
        assert_eq!(waveform.damage, Damage::default(), "{name}");
        let len = waveform.samples.len();
        assert!(
            len.abs_diff(samples) < FRAME,
            "{name}: {len} samples, expected {samples}"
        );
        let aligned = !matches!(container, Container::Mpeg | Container::Adts) && name != "mp3-in.wav";
        if aligned {
            let same = correlation(&waveform.samples, &plain);
            assert!(same > 0.94, "{name}: {same:.4}");
        }
    }
}

#[test]
fn what_is_missing_is_counted_and_the_rest_is_decoded() {
    let cut = decode_plain(&reported("tail-cut.mp3")).unwrap();
    assert_eq!(cut.samples.len(), 85 * FRAME);
    assert!(cut.damage.cut_short && !cut.damage.repaired);
    assert!((cut.damage.undecoded_seconds - 0.036).abs() < 1e-9);

    // Its first two frames refer to bytes that are gone.
    let piece = decode_plain(&reported("cut-copy.mp3")).unwrap();
    assert_eq!(piece.samples.len(), 35_944);
    assert!(piece.damage.repaired && !piece.damage.cut_short);
    assert!((piece.damage.undecoded_seconds - 2.0 * 1_152.0 / 44_100.0).abs() < 1e-9);
}

#[test]
fn headers_that_other_programs_pass_over_do_no_harm() {
    let plain = reported("plain.wav");
    let reference = decode_plain(&plain).unwrap().samples;
    let mut odd_blocks = plain.clone();
    odd_blocks[32] = 1;
    let tagged = [&b"ID3\x03\0\0\0\0\0\x0aTIT2......"[..], &plain].concat();
    let wide: Vec<u8> = sentence()
        .iter()
        .flat_map(|s| (i32::from(*s) << 16).to_le_bytes())
        .collect();
    // An odd chunk without its byte of padding.
    let unpadded = [&plain[..36], b"note\x03\0\0\0abc", &plain[36..]].concat();

    for (name, bytes) in [
        ("block size 1", odd_blocks),
        ("ID3 before RIFF", tagged),
        ("24 bits in four bytes", wav(1, 4, 24, &wide)),
        ("unpadded chunk", unpadded),
    ] {
        let waveform = decode_plain(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));

        assert_eq!(waveform.samples, reference, "{name}");
        assert_eq!(waveform.damage, Damage::default(), "{name}");
    }
}

#[test]
fn a_wrongly_wired_cable_is_noticed() {
    let opposite: Vec<u8> = sentence()
        .iter()
        .flat_map(|s| [s.to_le_bytes(), s.saturating_neg().to_le_bytes()].concat())
        .collect();

    let waveform = decode_plain(&wav(2, 4, 16, &opposite)).unwrap();

    assert_eq!(
        waveform.samples,
        decode_plain(&reported("plain.wav")).unwrap().samples
    );
    assert!(waveform.damage.repaired);
    assert_eq!(waveform.damage.undecoded_seconds, 0.0);
}

#[test]
fn silence_with_an_offset_is_silence_and_a_long_pause_is_noticed() {
    let offset = 1_000_i16.to_le_bytes().repeat(32_000);
    let waveform = decode_plain(&wav(1, 2, 16, &offset)).unwrap();
    assert_eq!(loudest_frame_dbfs(&waveform.samples), f64::NEG_INFINITY);

    let words = sentence();
    let (first, second) = words.split_at(SENTENCE / 3);
    let gap: Vec<u8> = [first, &vec![0; 32_000], second]
        .concat()
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    assert!(has_long_pause(
        &decode_plain(&wav(1, 2, 16, &gap)).unwrap().samples
    ));
    assert!(!has_long_pause(
        &decode_plain(&reported("plain.wav")).unwrap().samples
    ));
}

/// What a subscriber writes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .expect("nobody panics here")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn decoders_write_no_line_that_names_neither_record_nor_file() {
    let written = Written::default();
    let writer = written.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();
    tracing::info!("the subscriber is there");

    for name in ["pipe.flac", "cut-copy.mp3", "speech.webm", "speech.m4a"] {
        decode_plain(&reported(name)).unwrap();
    }

    let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let ours = written
        .lines()
        .filter(|line| line.contains("the subscriber is there"))
        .count();
    assert_eq!((ours, written.lines().count()), (1, 1), "{written}");
}
