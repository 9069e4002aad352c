//! AU (Sun, NeXT): a header of six big-endian words, then samples.
//!
//! Source: the header as Sun's `audio.h` and sox write it.

use super::sink::Sink;
use super::{AudioError, Container, PcmEncoding, pcm};

/// A declared size that means: to the end.
const UNKNOWN_SIZE: u32 = u32::MAX;

/// Decodes an AU file, or several that stand one behind the other.
pub(super) fn decode(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let mut rest = decode_file(bytes, sink)?;
    while rest.starts_with(b".snd") {
        rest = decode_file(rest, sink)?;
    }
    if !rest.iter().all(|byte| *byte == 0) {
        let seconds = sink.decoded_seconds() * rest.len() as f64 / (bytes.len() - rest.len()) as f64;
        sink.repaired(
            seconds,
            format!("{} bytes follow behind the declared ones", rest.len()),
        );
    }
    Ok(())
}

/// Decodes one file; what follows it is returned.
fn decode_file<'a>(bytes: &'a [u8], sink: &mut Sink) -> Result<&'a [u8], AudioError> {
    let word = |number: usize| {
        let at = 4 * number;
        let word = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
    };
    let (Some(offset), Some(size), Some(encoding), Some(rate_hz), Some(channels)) =
        (word(1), word(2), word(3), word(4), word(5))
    else {
        return truncated("it ends inside its header".to_owned());
    };
    sink.start(rate_hz, u16::try_from(channels).unwrap_or(u16::MAX))?;
    let encoding = match encoding {
        1 => PcmEncoding::MuLaw,
        2 => PcmEncoding::S8,
        3 => PcmEncoding::S16Be,
        4 => PcmEncoding::S24Be,
        5 => PcmEncoding::S32Be,
        6 => PcmEncoding::F32Be,
        7 => PcmEncoding::F64Be,
        27 => PcmEncoding::ALaw,
        other => {
            let found = match other {
                23..=26 => "G.722 or G.723 ADPCM in an AU file".to_owned(),
                other => format!("codec {other} in an AU file"),
            };
            return Err(AudioError::UnsupportedCodec { found });
        }
    };
    let Some(data) = bytes.get(offset as usize..) else {
        return truncated("it ends before its samples".to_owned());
    };
    let frame_bytes = encoding.sample_bytes() * usize::from(sink.channels());
    let declared = if size == UNKNOWN_SIZE {
        data.len()
    } else {
        size as usize
    };
    let (data, rest) = data.split_at(declared.min(data.len()));
    pcm::push(sink, encoding, data)?;
    let missing = declared - data.len();
    if missing > 0 {
        let seconds = sink.seconds((missing / frame_bytes) as u64);
        sink.cut_short(
            seconds,
            format!(
                "it declares {declared} bytes of samples and {} follow",
                data.len()
            ),
        );
    }
    Ok(rest)
}

fn truncated<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Truncated {
        container: Container::Au,
        detail,
    })
}
