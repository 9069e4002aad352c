//! Telling what bytes are from the bytes.

use std::fmt;

use super::{AudioError, ContentType, PcmSpec, flac, mp3};

/// What a value is, and so which reader takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Container {
    /// RIFF/WAVE, RF64 or BW64 with linear PCM, float, A-law or µ-law.
    Wav,
    /// FLAC in its own container.
    Flac,
    /// Vorbis in Ogg.
    OggVorbis,
    /// FLAC in Ogg.
    OggFlac,
    /// MPEG audio layer III.
    Mp3,
    /// Raw samples, by the word of the content type alone.
    Pcm(PcmSpec),
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wav => "WAV file",
            Self::Flac => "FLAC file",
            Self::OggVorbis => "Ogg Vorbis file",
            Self::OggFlac => "Ogg FLAC file",
            Self::Mp3 => "MP3 file",
            Self::Pcm(_) => "raw PCM",
        })
    }
}

/// What the bytes are, by their marks alone.
///
/// # Errors
/// [`AudioError::EmptyValue`], [`AudioError::UnsupportedCodec`] for sound that is recognised and not decoded,
/// [`AudioError::NotAudio`] for everything else.
pub fn probe_container(bytes: &[u8]) -> Result<Container, AudioError> {
    decide(bytes, None)
}

/// What the bytes are, with the header's help where the bytes carry no mark.
///
/// The marks of WAV, FLAC, Ogg and ID3 are long enough to win over a header that says raw PCM; the two bytes that
/// begin an MPEG frame are not.
pub(super) fn decide(bytes: &[u8], declared: Option<&ContentType>) -> Result<Container, AudioError> {
    if bytes.is_empty() {
        return Err(AudioError::EmptyValue);
    }
    if let Some(container) = by_long_mark(bytes)? {
        return Ok(container);
    }
    if let Some(ContentType::Pcm(spec)) = declared {
        return Ok(Container::Pcm(*spec));
    }
    match mp3::recognise(bytes, declared == Some(&ContentType::Mpeg)) {
        mp3::Recognised::Layer3 => return Ok(Container::Mp3),
        mp3::Recognised::OtherLayer => return unsupported("MPEG audio layer I or II"),
        mp3::Recognised::No => {}
    }
    if let Some(found) = known_elsewhere(bytes) {
        return unsupported(found);
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
    if matches!(bytes.get(..4), Some(b"RIFF" | b"RF64" | b"BW64")) {
        return match bytes.get(8..12) {
            Some(b"WAVE") | None => Ok(Some(Container::Wav)), // a cut header is a cut WAV
            Some(b"AVI ") => unsupported("an AVI file"),
            Some(_) => Ok(None),
        };
    }
    if bytes.starts_with(b"OggS") {
        return by_ogg_codec(bytes);
    }
    if flac::recognise(bytes) {
        return Ok(Some(Container::Flac));
    }
    if bytes.starts_with(b"ID3") && !mp3::is_other_layer_after_tags(bytes) {
        return Ok(Some(Container::Mp3));
    }
    Ok(None)
}

/// The codec of an Ogg file stands at the beginning of its first packet.
fn by_ogg_codec(bytes: &[u8]) -> Result<Option<Container>, AudioError> {
    let segments = bytes.get(26).copied().unwrap_or_default();
    let packet = bytes.get(27 + usize::from(segments)..).unwrap_or_default();
    for (mark, found) in [
        (&b"OpusHead"[..], "Opus in Ogg"),
        (b"Speex   ", "Speex in Ogg"),
        (b"\x80theora", "a Theora video"),
        (b"fishead\0", "an Ogg file with a skeleton stream"),
    ] {
        if packet.starts_with(mark) {
            return unsupported(found);
        }
    }
    if packet.starts_with(b"\x7fFLAC") {
        return Ok(Some(Container::OggFlac));
    }
    if packet.starts_with(b"\x01vorbis") || packet.len() < 8 {
        return Ok(Some(Container::OggVorbis)); // a cut header is a cut Ogg
    }
    unsupported("an unknown codec in Ogg")
}

/// Sound and video that is recognised in order to say what it is.
fn known_elsewhere(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return Some("an MP4 or M4A file");
    }
    if bytes.starts_with(b"FORM") && matches!(bytes.get(8..12), Some(b"AIFF" | b"AIFC")) {
        return Some("an AIFF file");
    }
    let marks: [(&[u8], &str); 13] = [
        (b"\x1a\x45\xdf\xa3", "a Matroska or WebM file"),
        (b"RIFX", "a big-endian WAV file"),
        (b".snd", "an AU file"),
        (b"caff", "a CAF file"),
        (b"#!AMR", "an AMR file"),
        (b"wvpk", "a WavPack file"),
        (b"MAC ", "a Monkey's Audio file"),
        (b"TTA1", "a True Audio file"),
        (b"MPCK", "a Musepack file"),
        (b"MThd", "a MIDI file"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMA file"),
        (b"\xff\xf1", "AAC in ADTS"),
        (b"\xff\xf9", "AAC in ADTS"),
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
            (b"\0\0\0\x20ftypM4A ".to_vec(), "M4A"),
            (b"FORM\0\0\0\0AIFF".to_vec(), "AIFF"),
            (b"\x1a\x45\xdf\xa3....".to_vec(), "WebM"),
            (b"\xff\xf1\x50\x80\x00\x1f\xfc".to_vec(), "AAC"),
            (ogg(b"OpusHead\x01\x01"), "Opus"),
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
        let declared = ContentType::parse("audio/opus").unwrap();

        let error = decide(b"nothing known", Some(&declared)).unwrap_err();

        assert!(error.to_string().contains("audio/opus"), "{error}");
    }
}
