//! WAV: sizes that lie, widths, what stands behind the samples.

use super::*;

#[test]
fn a_wav_whose_sizes_lie_is_refused_or_says_what_was_not_decoded() {
    let silence = [0; 3_200];
    let format = format(1, 1, 16_000, 16);
    let mut declares_too_little = wav(&format, &silence, 160);
    declares_too_little[44..].fill(0x81);
    for (name, bytes) in [
        ("declares too little", declares_too_little),
        ("data before fmt", b"RIFF\0\0\0\0WAVEdata\x04\0\0\0....".to_vec()),
        (
            "no chunk",
            b"RIFF\0\0\0\0WAVE\x01\x02\x03\x04\x04\0\0\0....".to_vec(),
        ),
        ("0 bits", plain_wav(1, 1, 16_000, 0, &silence)),
        ("short fmt", wav(&format[..14], &silence, 3_200)),
    ] {
        let error = decode_plain(&bytes).unwrap_err();
        assert!(matches!(error, AudioError::Corrupt { .. }), "{name}: {error}");
    }
    let error = decode_plain(&wav(&format, &silence, 7_000)).unwrap_err();
    assert!(matches!(error, AudioError::Truncated { .. }), "{error}");
    assert!(error.to_string().contains("unheard_share_max"), "{error}");

    for (name, bytes, samples, undecoded) in [
        ("declares too much", wav(&format, &silence, 4_800), 1_600, 0.05),
        (
            "half a sample",
            wav(&format, &silence[1..], 3_199),
            1_599,
            1.0 / 16_000.0,
        ),
        (
            "half a sample of unknown length",
            wav(&format, &silence[1..], u32::MAX),
            1_599,
            1.0 / 16_000.0,
        ),
    ] {
        let waveform = decode_plain(&bytes).unwrap();
        assert_eq!(waveform.samples.len(), samples, "{name}");
        assert!(waveform.damage.cut_short, "{name}");
        assert!(
            (waveform.damage.undecoded_seconds - undecoded).abs() < 1e-9,
            "{name}: {:?}",
            waveform.damage
        );
    }
}

#[test]
fn a_block_size_that_contradicts_the_rest_is_passed_over() {
    let whole = decode_plain(&plain_wav(1, 2, 16_000, 16, &[0x33; 3_200])).unwrap();
    for block_bytes in [0_u16, 1, 2, 3, 5, 65_535] {
        let mut bytes = plain_wav(1, 2, 16_000, 16, &[0x33; 3_200]);
        bytes[32..34].copy_from_slice(&block_bytes.to_le_bytes());

        assert_eq!(decode_plain(&bytes).unwrap(), whole, "{block_bytes}");
    }
}

#[test]
fn twenty_four_bits_are_found_in_either_part_of_four_bytes() {
    let samples: Vec<i32> = (0..400)
        .map(|n| ((n as f32 / 7.0).sin() * 4_000_000.0) as i32)
        .collect();
    let narrow: Vec<u8> = samples
        .iter()
        .flat_map(|s| s.to_le_bytes()[..3].to_vec())
        .collect();
    let low: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
    let high: Vec<u8> = samples.iter().flat_map(|s| (s << 8).to_le_bytes()).collect();
    let reference = decode_plain(&plain_wav(1, 1, 16_000, 24, &narrow)).unwrap();

    for data in [low, high] {
        let mut bytes = plain_wav(1, 1, 16_000, 24, &data);
        bytes[32] = 4;

        assert_eq!(decode_plain(&bytes).unwrap().samples, reference.samples);
    }
}

#[test]
fn a_wav_of_unknown_length_is_read_to_its_end() {
    let silence = [0; 3_200];
    let format = format(1, 1, 16_000, 16);

    for declared in [0, 0x7fff_f000, 0x8000_0000, u32::MAX] {
        let waveform = decode_plain(&wav(&format, &silence, declared)).unwrap();

        assert_eq!(waveform.samples.len(), 1_600, "declared {declared:#x}");
    }
}

#[test]
fn chunks_tags_and_padding_behind_the_samples_are_no_lie() {
    let mut base = plain_wav(1, 1, 16_000, 16, &[0x33; 320]);
    base.truncate(base.len());
    for tail in [
        &b"LIST\x04\0\0\0INFO"[..],
        b"TAG title",
        &[0; 64],
        b"id3 \x05\0\0\0abcde",
    ] {
        let waveform = decode_plain(&[&base[..], tail].concat()).unwrap();

        assert_eq!(waveform.samples.len(), 160);
    }
}

#[test]
fn all_widths_of_wav_hold_the_same_sound() {
    let sine = |n: usize| 0.5 * (TAU * 440.0 * n as f64 / 16_000.0).sin();
    let data = |width: usize| -> Vec<u8> {
        (0..1_600)
            .flat_map(|n| match width {
                8 => vec![(sine(n) * 128.0 + 128.0).round() as u8],
                16 => ((sine(n) * 32_768.0) as i16).to_le_bytes().to_vec(),
                24 => ((sine(n) * 8_388_608.0) as i32).to_le_bytes()[..3].to_vec(),
                _ => ((sine(n) * 2_147_483_648.0) as i32).to_le_bytes().to_vec(),
            })
            .collect()
    };
    let float: Vec<u8> = (0..1_600).flat_map(|n| (sine(n) as f32).to_le_bytes()).collect();
    let double: Vec<u8> = (0..1_600).flat_map(|n| sine(n).to_le_bytes()).collect();

    for (tag, bits, data, expected) in [
        (1, 8, data(8), -40.0),
        (1, 16, data(16), -85.0),
        (1, 24, data(24), -130.0),
        (1, 32, data(32), -130.0),
        (3, 32, float, -130.0),
        (3, 64, double, -130.0),
    ] {
        let waveform = decode_plain(&plain_wav(tag, 1, 16_000, bits, &data)).unwrap();

        let error = error_db(&waveform.samples);
        assert!(error < expected, "{bits} bits: {error:.1} dB");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let samples: Vec<f32> = (0..1_000).map(|n| (n as f32 / 100.0).sin() * 1.1).collect();

    let waveform = decode_plain(&encode_wav(&samples)).unwrap();

    assert_eq!(waveform.samples.len(), samples.len());
    for (got, put) in waveform.samples.iter().zip(&samples) {
        assert!(
            (got - put.clamp(-1.0, 1.0)).abs() <= 1.0 / 32_768.0,
            "{got} for {put}"
        );
    }
}
