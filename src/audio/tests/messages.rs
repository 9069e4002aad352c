//! What errors and notes say, in words of our own.

use super::*;

#[test]
fn messages_do_not_repeat_the_texts_of_the_library() {
    let mut damaged = Vec::new();
    for name in CONTAINERS.iter().map(|row| row.0).chain(OTHERS) {
        let whole = fixture(name);
        for number in 0..4 {
            let mut bytes = whole.clone();
            for step in 0..8 {
                let at = (number * 7_919 + step * step * 131) % bytes.len();
                bytes[at] ^= 0xff;
            }
            damaged.push(bytes);
        }
    }

    let mut found = 0;
    for bytes in &damaged {
        let texts = match decode_plain(bytes) {
            Ok(waveform) => waveform.damage.notes,
            Err(error) => vec![error.to_string()],
        };
        found += texts.len();
        for text in texts {
            let jargon = [
                "malformed stream",
                "unsupported feature",
                "core (",
                "limit reached",
                "isomp4",
                "mkv:",
            ];
            assert!(!jargon.iter().any(|part| text.contains(part)), "{text}");
        }
    }

    assert!(found > damaged.len() / 2, "{found} texts");
}

#[test]
fn what_is_sound_but_not_decoded_is_called_by_its_name() {
    let (error, found) = (
        decode_plain(&fixture("tone-16000-6-oggenc.ogg")).unwrap_err(),
        "Vorbis of 6 channels",
    );

    assert!(matches!(error, AudioError::UnsupportedCodec { .. }), "{error}");
    assert!(error.to_string().contains(found), "{error}");
}
