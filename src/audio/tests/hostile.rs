//! What is refused, and bytes that nobody meant as audio.

use super::*;

#[test]
fn an_empty_value_and_a_large_one_are_refused_before_a_look_at_them() {
    let limits = AudioLimits {
        value_bytes_max: 10,
        ..AudioLimits::default()
    };

    assert_eq!(decode_plain(b""), Err(AudioError::EmptyValue));
    assert_eq!(
        decode(&[b'x'; 11], None, &limits),
        Err(AudioError::TooLarge {
            bytes: 11,
            bytes_max: 10
        })
    );
}

#[test]
fn text_and_pictures_are_no_audio() {
    for bytes in [
        &b"hello, world"[..],
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        &[0; 100],
        &[0xff; 100],
        b"R",
        b"fLa",
    ] {
        let error = decode_plain(bytes).unwrap_err();

        assert!(matches!(error, AudioError::NotAudio { .. }), "{bytes:?}: {error}");
    }
}

#[test]
fn absurd_rates_and_channel_counts_are_refused() {
    for rate_hz in [0, 1, 999, 768_001, u32::MAX] {
        let error = decode_plain(&plain_wav(1, 1, rate_hz, 16, &[0; 64])).unwrap_err();
        assert!(
            matches!(error, AudioError::AbsurdRate { .. }),
            "{rate_hz}: {error}"
        );
    }
    for channels in [0, 65, 4_000, u16::MAX] {
        let error = decode_plain(&plain_wav(1, channels, 16_000, 16, &[0; 64])).unwrap_err();
        assert!(
            matches!(error, AudioError::AbsurdChannels { .. }),
            "{channels}: {error}"
        );
    }
    for (content_type, absurd_rate) in [
        ("audio/L16;rate=5", true),
        ("audio/L16;rate=16000;channels=0", false),
    ] {
        let error = decode(&[0; 64], Some(content_type), &AudioLimits::default()).unwrap_err();
        assert_eq!(
            matches!(error, AudioError::AbsurdRate { .. }),
            absurd_rate,
            "{error}"
        );
    }
}

#[test]
fn what_is_longer_than_allowed_is_refused_before_or_while_it_is_decoded() {
    let limits = AudioLimits {
        seconds_max: 0.2,
        ..AudioLimits::default()
    };

    for (name, _, _, _, len) in CONTAINERS {
        let decoded = decode(&fixture(name), None, &limits).map(|waveform| waveform.samples.len());

        if len > 3_200 {
            assert!(
                matches!(decoded, Err(AudioError::TooLong { .. })),
                "{name}: {decoded:?}"
            );
        } else {
            decoded.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn a_decompression_bomb_is_stopped() {
    let limits = AudioLimits {
        decoded_samples_max: 10_000,
        ..AudioLimits::default()
    };
    for name in [
        "tone-44100-2-piped.flac",
        "tone-44100-2.flac",
        "tone-44100-2-oggenc.ogg",
        "tone-44100-2-lame.mp3",
    ] {
        let error = decode(&fixture(name), None, &limits).unwrap_err();

        assert!(
            matches!(error, AudioError::TooManySamples { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn a_vorbis_set_up_that_asks_for_gigabytes_is_refused() {
    // 256 code books of 131,071 entries in 32 dimensions: 4 GiB of numbers out of 6 kilobytes.
    let mut bits = Vec::new();
    let mut put = |value: u64, width: u32| (0..width).for_each(|bit| bits.push(value >> bit & 1 == 1));
    put(255, 8);
    for _ in 0..256 {
        put(0x56_4342, 24);
        put(32, 16);
        put(131_071, 24);
        put(1, 1); // ordered
        put(16, 5);
        put(131_071, 17); // all in one run
        put(1, 4); // lookup of type 1
        put(0, 64);
        put(0, 4);
        put(0, 1);
        put(0, 1); // the one number
    }
    let packed = bits.chunks(8).map(|byte| {
        byte.iter()
            .rev()
            .fold(0, |value, bit| value << 1 | u8::from(*bit))
    });
    let set_up: Vec<u8> = b"\x05vorbis".iter().copied().chain(packed).collect();
    let mut identification = b"\x01vorbis\0\0\0\0\x01".to_vec();
    identification.extend(16_000_u32.to_le_bytes());
    identification.extend([0; 12]);
    identification.extend([0xb8, 1]);
    let mut bytes = Vec::new();
    for (number, packet) in [&identification[..], b"\x03vorbis", &set_up]
        .into_iter()
        .enumerate()
    {
        bytes.extend(ogg_page::tests::page(
            number as u32,
            if number == 2 { 4 } else { 0 },
            0,
            packet,
        ));
    }

    let error = decode_plain(&bytes).unwrap_err();

    assert!(matches!(error, AudioError::TooManySamples { .. }), "{error}");
}

/// Decodes with small limits; whatever comes out must hold to them.
fn decode_hostile(bytes: &[u8], content_type: Option<&str>) {
    let limits = AudioLimits {
        seconds_max: 2.0,
        decoded_samples_max: 1 << 20,
        ..AudioLimits::default()
    };
    if let Ok(waveform) = decode(bytes, content_type, &limits) {
        assert!(!waveform.samples.is_empty() && waveform.seconds() <= 2.0);
        assert!(waveform.samples.iter().all(|sample| sample.is_finite()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(
        mark in prop::sample::select(vec![
            &b""[..], b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0", b"fLaC\x80\0\0\x22", b"OggS\0\x02", b"ID3\x04\0\0",
            b"\xff\xfb\x90\x64", b"\xff\xf3\x38\xc4", b"\0\0\0\x20ftypM4A ", b"FORM\0\0\x01\0AIFFCOMM", b"caff\0\x01\0\0desc",
            b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01", b".snd\0\0\0\x18", b"\xff\xf1\x60\x40", b"RF64\xff\xff\xff\xffWAVEds64",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        content_type in prop::option::of("[ -~]{0,60}"),
    ) {
        decode_hostile(&[mark, &bytes].concat(), content_type.as_deref());
    }

    #[test]
    fn damaged_files_never_panic(
        which in 0..CONTAINERS.len() + OTHERS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        repaired in any::<bool>(),
    ) {
        let name = OTHERS.get(which).copied().unwrap_or_else(|| CONTAINERS[which - OTHERS.len()].0);
        let mut bytes = fixture(name);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if repaired {
            ogg_page::tests::repair(&mut bytes); // so that the damage gets past the check sums to the decoder
        }
        if let Some(index) = cut {
            bytes.truncate(index.index(bytes.len()));
        }
        decode_hostile(&bytes, None);
    }

    #[test]
    fn headers_with_any_numbers_in_them_never_panic(
        tag in prop::sample::select(vec![0_u16, 1, 3, 6, 7, 0xfffe]),
        channels in any::<u16>(), rate_hz in any::<u32>(), frame_bytes in any::<u16>(),
        bits in prop::sample::select(vec![0_u16, 8, 12, 16, 24, 32, 64, 65_535]),
        declared in any::<u32>(), data in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut format = format(tag, channels, rate_hz, bits);
        format[12..14].copy_from_slice(&frame_bytes.to_le_bytes());
        decode_hostile(&wav(&format, &data, declared), None);
    }

    #[test]
    fn content_types_of_any_kind_never_panic(text in "\\PC{0,200}", kind in prop::sample::select(vec![
        "audio/L16;rate=", "audio/pcm;bits=", "audio/x-raw;format=", "",
    ])) {
        let _ = ContentType::parse(&format!("{kind}{text}"));
    }
}
