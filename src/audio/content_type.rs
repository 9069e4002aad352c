//! What a record's `content-type` header says about its bytes.

use super::{Container, PcmEncoding, PcmSpec};

/// A content type, sorted by what it means for decoding.
///
/// Raw PCM needs the header, because its bytes carry no mark. Understood are:
///
/// - `audio/L16;rate=R;channels=C` (RFC 2586, RFC 3551), `audio/L24`, `audio/L8`: signed (L8: unsigned),
///   **big-endian**; `endianness=little-endian` turns it round. `channels=1` by default, the rate is
///   required.
/// - `audio/pcm;rate=R;channels=C;bits=16` (the convention of speech services): signed **little-endian**,
///   `bits` 16, 24 or 32; `encoding=float` with 32 or 64. `channels=1` and `bits=16` by default, the rate is
///   required.
/// - `audio/x-raw;format=S16LE;rate=R;channels=C` (GStreamer): `S8`, `U8`, `S16LE`, `S16BE`, `S24…`, `S32…`,
///   `F32…`, `F64…`. `channels=1` by default, format and rate are required.
/// - `audio/basic` (RFC 2046), `audio/PCMU`, `audio/PCMA` (RFC 3551): µ-law, µ-law, A-law. `rate=8000` and
///   `channels=1` by default.
#[derive(Clone, Debug, PartialEq)]
pub enum ContentType {
    /// RIFF/WAVE.
    Wav,
    /// AU.
    Au,
    /// FLAC in its own container.
    Flac,
    /// Ogg, whatever the codec in it.
    Ogg,
    /// Opus: many send Ogg under this name; bare packets, which it means by RFC 7587, are not decoded.
    Opus,
    /// MPEG audio.
    Mpeg,
    /// AAC, in ADTS or in MP4.
    Aac,
    /// MP4, M4A, 3GP or QuickTime.
    Mp4,
    /// Matroska or WebM.
    Matroska,
    /// AIFF.
    Aiff,
    /// Core Audio Format.
    Caf,
    /// Raw samples.
    Pcm(PcmSpec),
    /// A type that says nothing, such as `application/octet-stream`.
    Generic,
    /// Some other type: sound that is not decoded here, or no sound at all. Lower case, without parameters.
    Other(String),
}

/// A content type that says raw PCM and does not say how to read it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the content type `{content_type}` {problem}")]
pub struct ContentTypeError {
    /// The header, shortened.
    pub content_type: String,
    /// What is wrong, and what is expected.
    pub problem: String,
}

impl ContentType {
    /// Reads a header value. Names are compared without regard to case; unknown parameters are ignored.
    ///
    /// # Errors
    /// Only for raw PCM whose parameters are missing or make no sense.
    pub fn parse(value: &str) -> Result<Self, ContentTypeError> {
        let mut parts = value.split(';');
        let media_type = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let parameters = Parameters {
            content_type: value,
            pairs: parts.filter_map(|part| part.split_once('=')).collect(),
        };

        Ok(match media_type.as_str() {
            "audio/wav" | "audio/x-wav" | "audio/wave" | "audio/vnd.wave" | "audio/x-pn-wav" => Self::Wav,
            "audio/flac" | "audio/x-flac" => Self::Flac,
            "audio/ogg" | "application/ogg" | "video/ogg" | "audio/vorbis" | "audio/x-vorbis+ogg" => {
                Self::Ogg
            }
            "audio/opus" | "audio/x-opus+ogg" => Self::Opus,
            "audio/mpeg" | "audio/mp3" | "audio/x-mpeg" | "audio/x-mp3" | "audio/mpeg3" => Self::Mpeg,
            "audio/aac" | "audio/aacp" | "audio/x-aac" => Self::Aac,
            "audio/mp4" | "audio/m4a" | "audio/x-m4a" | "video/mp4" | "video/quicktime" | "audio/3gpp"
            | "video/3gpp" => Self::Mp4,
            "audio/webm" | "video/webm" | "audio/x-matroska" | "video/x-matroska" => Self::Matroska,
            "audio/aiff" | "audio/x-aiff" => Self::Aiff,
            "audio/x-caf" | "audio/caf" => Self::Caf,
            "audio/au" | "audio/x-au" => Self::Au,
            "audio/l8" => Self::Pcm(parameters.spec(PcmEncoding::U8, None)?),
            "audio/l16" | "audio/x-l16" => {
                let little = parameters.little_endian()?;
                let encoding = if little {
                    PcmEncoding::S16Le
                } else {
                    PcmEncoding::S16Be
                };
                Self::Pcm(parameters.spec(encoding, None)?)
            }
            "audio/l24" => {
                let little = parameters.little_endian()?;
                let encoding = if little {
                    PcmEncoding::S24Le
                } else {
                    PcmEncoding::S24Be
                };
                Self::Pcm(parameters.spec(encoding, None)?)
            }
            "audio/pcm" | "audio/x-pcm" => Self::Pcm(parameters.spec(parameters.service_encoding()?, None)?),
            "audio/x-raw" => Self::Pcm(parameters.spec(parameters.gstreamer_encoding()?, None)?),
            "audio/basic" | "audio/pcmu" => Self::Pcm(parameters.spec(PcmEncoding::MuLaw, Some(8_000))?),
            "audio/pcma" => Self::Pcm(parameters.spec(PcmEncoding::ALaw, Some(8_000))?),
            "" | "application/octet-stream" | "binary/octet-stream" | "audio/*" | "*/*" => Self::Generic,
            _ => Self::Other(shorten(&media_type)),
        })
    }

    /// Whether bytes of this container are what the header announced.
    pub(super) fn agrees_with(&self, container: Container) -> bool {
        match self {
            Self::Generic => true,
            Self::Wav => container == Container::Wav,
            Self::Flac => container == Container::Flac,
            Self::Ogg => matches!(
                container,
                Container::OggVorbis | Container::OggFlac | Container::OggOpus
            ),
            Self::Opus => container == Container::OggOpus,
            Self::Mpeg => container == Container::Mpeg,
            Self::Aac => matches!(container, Container::Adts | Container::Mp4),
            Self::Mp4 => container == Container::Mp4,
            Self::Matroska => container == Container::Matroska,
            Self::Aiff => container == Container::Aiff,
            Self::Caf => container == Container::Caf,
            Self::Au => container == Container::Au,
            Self::Pcm(spec) => container == Container::Pcm(*spec),
            Self::Other(_) => false,
        }
    }
}

/// The parameters behind the media type.
struct Parameters<'a> {
    content_type: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl Parameters<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().trim_matches('"').trim())
    }

    fn wrong<T>(&self, problem: String) -> Result<T, ContentTypeError> {
        Err(ContentTypeError {
            content_type: shorten(self.content_type),
            problem,
        })
    }

    /// A decimal number; what does not fit becomes the largest one, which the limits then refuse.
    fn number(&self, name: &str) -> Result<Option<u32>, ContentTypeError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            let found = shorten(text);
            return self.wrong(format!("has `{name}={found}`, expected a decimal number"));
        }
        Ok(Some(text.parse().unwrap_or(u32::MAX)))
    }

    fn spec(&self, encoding: PcmEncoding, rate: Option<u32>) -> Result<PcmSpec, ContentTypeError> {
        let Some(rate_hz) = self.number("rate")?.or(rate) else {
            return self.wrong("lacks `rate`, expected for example `rate=16000`".to_owned());
        };
        let channels = self.number("channels")?.unwrap_or(1);
        Ok(PcmSpec {
            encoding,
            rate_hz,
            channels: u16::try_from(channels).unwrap_or(u16::MAX),
        })
    }

    fn little_endian(&self) -> Result<bool, ContentTypeError> {
        let found = self.get("endianness").or(self.get("endian"));
        match found.map(str::to_ascii_lowercase).as_deref() {
            None | Some("big-endian" | "big" | "network") => Ok(false),
            Some("little-endian" | "little") => Ok(true),
            Some(other) => self.wrong(format!(
                "has `endianness={}`, expected `little-endian` or `big-endian`",
                shorten(other)
            )),
        }
    }

    /// `audio/pcm`: little-endian unless said otherwise.
    fn service_encoding(&self) -> Result<PcmEncoding, ContentTypeError> {
        let bits = self.number("bits")?;
        let float = match self.get("encoding").map(str::to_ascii_lowercase).as_deref() {
            None | Some("signed-integer" | "signed-int" | "s16le" | "linear16") => false,
            Some("float" | "floating-point") => true,
            Some(other) => {
                let found = shorten(other);
                return self.wrong(format!(
                    "has `encoding={found}`, expected `signed-integer` or `float`"
                ));
            }
        };
        let stated = self.get("endianness").or(self.get("endian")).is_some();
        let big = stated && !self.little_endian()?;
        match (float, bits.unwrap_or(if float { 32 } else { 16 }), big) {
            (false, 16, false) => Ok(PcmEncoding::S16Le),
            (false, 16, true) => Ok(PcmEncoding::S16Be),
            (false, 24, false) => Ok(PcmEncoding::S24Le),
            (false, 24, true) => Ok(PcmEncoding::S24Be),
            (false, 32, false) => Ok(PcmEncoding::S32Le),
            (false, 32, true) => Ok(PcmEncoding::S32Be),
            (true, 32, false) => Ok(PcmEncoding::F32Le),
            (true, 32, true) => Ok(PcmEncoding::F32Be),
            (true, 64, false) => Ok(PcmEncoding::F64Le),
            (true, 64, true) => Ok(PcmEncoding::F64Be),
            (_, bits, _) => self.wrong(format!(
                "has `bits={bits}`, expected 16, 24 or 32, as float 32 or 64"
            )),
        }
    }

    fn gstreamer_encoding(&self) -> Result<PcmEncoding, ContentTypeError> {
        if let Some(layout) = self.get("layout")
            && !layout.eq_ignore_ascii_case("interleaved")
        {
            let found = shorten(layout);
            return self.wrong(format!("has `layout={found}`, expected `interleaved`"));
        }
        let format = self.get("format").unwrap_or_default();
        match format.to_ascii_uppercase().as_str() {
            "S8" => Ok(PcmEncoding::S8),
            "U8" => Ok(PcmEncoding::U8),
            "S16LE" => Ok(PcmEncoding::S16Le),
            "S16BE" => Ok(PcmEncoding::S16Be),
            "S24LE" => Ok(PcmEncoding::S24Le),
            "S24BE" => Ok(PcmEncoding::S24Be),
            "S32LE" => Ok(PcmEncoding::S32Le),
            "S32BE" => Ok(PcmEncoding::S32Be),
            "F32LE" => Ok(PcmEncoding::F32Le),
            "F32BE" => Ok(PcmEncoding::F32Be),
            "F64LE" => Ok(PcmEncoding::F64Le),
            "F64BE" => Ok(PcmEncoding::F64Be),
            other => {
                let found = shorten(other);
                self.wrong(format!(
                    "has `format={found}`, expected for example `format=S16LE`"
                ))
            }
        }
    }
}

/// At most 100 characters, for messages.
fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pcm(value: &str) -> PcmSpec {
        match ContentType::parse(value) {
            Ok(ContentType::Pcm(spec)) => spec,
            other => panic!("{value}: {other:?}"),
        }
    }

    #[test]
    fn raw_pcm_is_read_in_each_of_its_conventions() {
        let spec = |encoding, rate_hz, channels| PcmSpec {
            encoding,
            rate_hz,
            channels,
        };

        assert_eq!(pcm("audio/L16;rate=16000"), spec(PcmEncoding::S16Be, 16_000, 1));
        assert_eq!(
            pcm("Audio/l16 ; Rate=\"44100\" ; CHANNELS=2"),
            spec(PcmEncoding::S16Be, 44_100, 2)
        );
        assert_eq!(
            pcm("audio/l16;rate=8000;endianness=little-endian"),
            spec(PcmEncoding::S16Le, 8_000, 1)
        );
        assert_eq!(
            pcm("audio/L24;rate=48000;channels=6"),
            spec(PcmEncoding::S24Be, 48_000, 6)
        );
        assert_eq!(pcm("audio/pcm;rate=24000"), spec(PcmEncoding::S16Le, 24_000, 1));
        assert_eq!(
            pcm("audio/pcm;rate=8000;bits=32;encoding=float"),
            spec(PcmEncoding::F32Le, 8_000, 1)
        );
        assert_eq!(
            pcm("audio/x-raw;format=F64BE;rate=16000;channels=3;layout=interleaved"),
            spec(PcmEncoding::F64Be, 16_000, 3)
        );
        assert_eq!(pcm("audio/basic"), spec(PcmEncoding::MuLaw, 8_000, 1));
        assert_eq!(pcm("audio/PCMA;rate=16000"), spec(PcmEncoding::ALaw, 16_000, 1));
    }

    #[test]
    fn raw_pcm_that_does_not_say_how_to_read_it_is_refused_with_the_missing_part() {
        for (value, part) in [
            ("audio/L16", "`rate`"),
            ("audio/L16;rate=fast", "rate=fast"),
            ("audio/L16;rate=-1", "rate=-1"),
            ("audio/L16;rate=16000;channels=two", "channels=two"),
            ("audio/L16;rate=16000;endianness=middle", "endianness=middle"),
            ("audio/pcm;rate=16000;bits=12", "bits=12"),
            ("audio/x-raw;rate=16000", "format="),
            (
                "audio/x-raw;rate=16000;format=S16LE;layout=planar",
                "layout=planar",
            ),
        ] {
            let error = ContentType::parse(value).unwrap_err();

            assert!(error.to_string().contains(part), "{value}: {error}");
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_left_to_the_limits() {
        assert_eq!(
            pcm("audio/L16;rate=99999999999999;channels=70000").rate_hz,
            u32::MAX
        );
        assert_eq!(
            pcm("audio/L16;rate=99999999999999;channels=70000").channels,
            u16::MAX
        );
    }

    #[test]
    fn containers_generic_types_and_the_rest_are_distinguished() {
        assert_eq!(ContentType::parse("audio/x-wav"), Ok(ContentType::Wav));
        assert_eq!(
            ContentType::parse("AUDIO/FLAC; charset=binary"),
            Ok(ContentType::Flac)
        );
        assert_eq!(
            ContentType::parse("application/octet-stream"),
            Ok(ContentType::Generic)
        );
        assert_eq!(ContentType::parse(""), Ok(ContentType::Generic));
        let opus = ContentType::parse("audio/opus").unwrap();
        assert!(opus.agrees_with(Container::OggOpus) && !opus.agrees_with(Container::OggVorbis));
        assert_eq!(
            ContentType::parse("audio/webm;codecs=opus"),
            Ok(ContentType::Matroska)
        );
        assert_eq!(
            ContentType::parse("audio/AMR;x=y"),
            Ok(ContentType::Other("audio/amr".to_owned()))
        );
    }
}
