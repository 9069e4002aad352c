//! Telling what bytes are from the bytes.

use super::{AudioError, Container, ContentType, adts, mp3, mpeg, ogg_page};

/// What the bytes are, by their marks alone.
///
/// # Errors
/// [`AudioError::EmptyValue`], [`AudioError::UnsupportedCodec`] for sound that is recognised and not decoded,
/// [`AudioError::NotAudio`] for everything else.
pub fn probe_container(bytes: &[u8]) -> Result<Container, AudioError> {
    decide(bytes, None).map(|(container, _)| container)
}

/// What the bytes are, with the header's help where the bytes carry no mark; and where it begins, which is
/// behind ID3 tags that do not belong there.
///
/// Marks of three bytes and more are long enough to win over a header that says raw PCM; the two bytes that
/// begin an MPEG or ADTS frame are not.
pub(super) fn decide(bytes: &[u8], declared: Option<&ContentType>) -> Result<(Container, usize), AudioError> {
    if bytes.is_empty() {
        return Err(AudioError::EmptyValue);
    }
    let start = mpeg::tags_end(bytes);
    let behind_tags = bytes.get(start..).unwrap_or_default();
    if let Some(container) = by_long_mark(behind_tags)? {
        return Ok((container, start));
    }
    if adts::recognise(behind_tags) && start > 0 {
        return Ok((Container::Adts, start));
    }
    if mp3::has_tags(bytes) {
        return Ok((Container::Mpeg, 0));
    }
    if let Some(ContentType::Pcm(spec)) = declared {
        return Ok((Container::Pcm(*spec), 0));
    }
    if adts::recognise(bytes) {
        return Ok((Container::Adts, 0));
    }
    if mp3::recognise(bytes, declared == Some(&ContentType::Mpeg)) {
        return Ok((Container::Mpeg, 0));
    }
    if let Some(found) = known_elsewhere(bytes) {
        return unsupported(found);
    }
    if mp3::recognise_behind(bytes) {
        return Ok((Container::Mpeg, 0));
    }
    if adts::recognise_behind(bytes) {
        return Ok((Container::Adts, 0));
    }
    if declared == Some(&ContentType::Opus) {
        return unsupported("`audio/opus` by its content type, and no Ogg page: bare Opus packets");
    }
    if let Some(ContentType::Other(name)) = declared
        && (name.starts_with("audio/") || name.starts_with("video/"))
    {
        return unsupported(&format!("`{name}` by its content type"));
    }
    Err(AudioError::NotAudio {
        beginning: beginning(bytes),
    })
}

fn unsupported<T>(found: &str) -> Result<T, AudioError> {
    Err(AudioError::UnsupportedCodec {
        found: found.to_owned(),
    })
}

fn by_long_mark(bytes: &[u8]) -> Result<Option<Container>, AudioError> {
    if matches!(bytes.get(..4), Some(b"RIFF" | b"RF64" | b"BW64" | b"RIFX")) {
        return match bytes.get(8..12) {
            Some(b"WAVE") | None => Ok(Some(Container::Wav)), // a cut header is a cut WAV
            Some(b"AVI ") => unsupported("an AVI file"),
            Some(_) => Ok(None),
        };
    }
    if bytes.starts_with(b"OggS") {
        return by_ogg_codec(bytes);
    }
    if bytes.starts_with(b"FORM") && matches!(bytes.get(8..12), Some(b"AIFF" | b"AIFC") | None) {
        return Ok(Some(Container::Aiff));
    }
    // An MP4 begins with any of these atoms: `ftyp` in all newer ones, the others in QuickTime files.
    let atom = bytes.get(4..8).unwrap_or_default();
    let small = bytes.first() == Some(&0);
    if atom == b"ftyp" || (small && [&b"moov"[..], b"mdat", b"wide", b"styp", b"moof"].contains(&atom)) {
        return Ok(Some(Container::Mp4));
    }
    let marks: [(&[u8], Container); 4] = [
        (b"fLaC", Container::Flac),
        (b".snd", Container::Au),
        (b"\x1a\x45\xdf\xa3", Container::Matroska),
        (b"caff", Container::Caf),
    ];
    Ok(marks
        .iter()
        .find(|(mark, _)| bytes.starts_with(mark))
        .map(|(_, container)| *container))
}

/// The codec of an Ogg file stands at the beginning of its first packets.
fn by_ogg_codec(bytes: &[u8]) -> Result<Option<Container>, AudioError> {
    let segments = bytes.get(26).copied().unwrap_or_default();
    let first = bytes.get(27 + usize::from(segments)..).unwrap_or_default();
    let packets = ogg_page::first_packets(bytes);
    if let Some(codec) = packets
        .iter()
        .chain([&first])
        .find_map(|packet| ogg_page::codec_of(packet))
    {
        return Ok(Some(codec));
    }
    for (mark, found) in [
        (&b"Speex   "[..], "Speex in Ogg"),
        (b"PCM     ", "PCM in Ogg"),
        (b"CELT    ", "CELT in Ogg"),
        (b"\x80theora", "a Theora video without sound in Ogg"),
        (
            b"fishead\0",
            "an Ogg file with a skeleton stream and no sound that is known",
        ),
    ] {
        if packets
            .iter()
            .chain([&first])
            .any(|packet| packet.starts_with(mark))
        {
            return unsupported(found);
        }
    }
    if first.len() < 8 {
        return Ok(Some(Container::OggVorbis)); // a cut header is a cut Ogg
    }
    unsupported("an unknown codec in Ogg")
}

/// Sound and video that is recognised in order to say what it is.
fn known_elsewhere(bytes: &[u8]) -> Option<&'static str> {
    let marks: [(&[u8], &str); 13] = [
        (b"riff\x2e\x91\xcf\x11", "a Wave64 file"),
        (b"#!AMR-WB", "AMR-WB in an AMR file"),
        (b"#!AMR", "AMR-NB in an AMR file"),
        (b"wvpk", "a WavPack file"),
        (b"MAC ", "a Monkey's Audio file"),
        (b"TTA1", "a True Audio file"),
        (b"MPCK", "a Musepack file"),
        (b"MThd", "a MIDI file"),
        (b".RMF", "a RealMedia file"),
        (b"FLV\x01", "a Flash video"),
        (b"\x0b\x77", "AC-3"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA in an ASF file"),
        (b"\x56\xe0", "AAC in LOAS"),
    ];
    marks
        .iter()
        .find(|(mark, _)| bytes.starts_with(mark))
        .map(|(_, found)| *found)
}

/// The first bytes for a message: as text when they are, else in hexadecimal.
fn beginning(bytes: &[u8]) -> String {
    let first = &bytes[..bytes.len().min(8)];
    if first.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return format!("`{}`", String::from_utf8_lossy(first));
    }
    let hex: Vec<String> = first.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("the bytes {}", hex.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_audio_says_how_it_begins() {
        let error = probe_container(b"{\"hello\": 1}").unwrap_err();

        assert!(error.to_string().contains("`{\"hello\"`"), "{error}");
        assert!(matches!(error, AudioError::NotAudio { .. }));
        assert!(matches!(
            probe_container(&[0; 64]),
            Err(AudioError::NotAudio { .. })
        ));
        assert_eq!(probe_container(b""), Err(AudioError::EmptyValue));
    }

    #[test]
    fn sound_that_is_not_decoded_is_called_by_its_name() {
        let ogg = |packet: &[u8]| {
            let mut page = b"OggS\0\x02".to_vec();
            page.resize(26, 0);
            page.extend([1, packet.len() as u8]);
            page.extend(packet);
            page
        };
        for (bytes, name) in [
            (b"#!AMR\n".to_vec(), "AMR"),
            (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11".to_vec(), "WMA"),
            (ogg(b"\x80theora\x03"), "Theora"),
            (ogg(b"Speex   1.2"), "Speex"),
        ] {
            let error = probe_container(&bytes).unwrap_err();

            assert!(
                matches!(error, AudioError::UnsupportedCodec { .. }),
                "{name}: {error}"
            );
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn the_content_type_names_what_the_bytes_do_not() {
        for content_type in ["audio/opus", "audio/amr", "video/x-msvideo"] {
            let declared = ContentType::parse(content_type).unwrap();

            let error = decide(b"nothing known", Some(&declared)).unwrap_err();

            assert!(matches!(error, AudioError::UnsupportedCodec { .. }), "{error}");
            assert!(error.to_string().contains(content_type), "{error}");
        }
    }
}
