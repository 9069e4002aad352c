//! Records that cannot be answered: why, where, and the record that says so.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::headers::{Headers, header};
use super::{OutgoingRecord, Record};
use crate::audio::AudioError;

/// Longest message in a header, bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

macro_rules! closed_list {
    ($(#[$attribute:meta])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $text:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[doc = $doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in headers, metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

closed_list! {
    /// Why a record was not answered: the closed list of `speechverse_reason`.
    Reason {
        /// There is no value, or it has no bytes.
        EmptyValue = "empty_value",
        /// The value has more bytes than is allowed.
        ValueTooLarge = "value_too_large",
        /// The value is no sound.
        NotAudio = "not_audio",
        /// The value is sound of a kind that is not decoded.
        UnsupportedCodec = "unsupported_codec",
        /// `content-type` says raw PCM and not how to read it.
        MalformedContentType = "malformed_content_type",
        /// Less sound is there than was declared.
        TruncatedAudio = "truncated_audio",
        /// The sound contradicts itself or cannot be decoded.
        CorruptAudio = "corrupt_audio",
        /// A container without samples.
        ZeroSamples = "zero_samples",
        /// NaN, infinite or absurdly large samples.
        NonFiniteSamples = "non_finite_samples",
        /// A sample rate out of range.
        AbsurdRate = "absurd_rate",
        /// A number of channels out of range.
        AbsurdChannels = "absurd_channels",
        /// The sound is longer than is allowed.
        AudioTooLong = "audio_too_long",
        /// Few bytes that decode to too many samples.
        DecompressionBomb = "decompression_bomb",
        /// A header is not UTF-8, or its value makes no sense.
        MalformedHeader = "malformed_header",
        /// A structured CloudEvent that cannot be read.
        MalformedEvent = "malformed_event",
        /// A `ce_type` that is not expected here.
        UnknownType = "unknown_type",
        /// The instruction is too long.
        InstructionTooLong = "instruction_too_long",
        /// The instruction is not UTF-8.
        InstructionNotUtf8 = "instruction_not_utf8",
        /// Neither an instruction nor a task is given, and no default is configured.
        MissingInstruction = "missing_instruction",
        /// A task that is not configured.
        UnknownTask = "unknown_task",
        /// `ce_labels` is no JSON array of distinct texts, or has too many.
        MalformedLabels = "malformed_labels",
        /// The deadline is past.
        DeadlineExceeded = "deadline_exceeded",
        /// A chunk came twice.
        DuplicateChunk = "duplicate_chunk",
        /// A chunk did not come.
        MissingChunk = "missing_chunk",
        /// A chunk that fits no open stream: after its end, or with other settings.
        UnexpectedChunk = "unexpected_chunk",
        /// A labelled sample without a target.
        MissingTarget = "missing_target",
        /// The target is too long.
        TargetTooLong = "target_too_long",
        /// A correction of a request that is not known.
        UnknownRequest = "unknown_request",
        /// A control command that cannot be read.
        MalformedControl = "malformed_control",
        /// A control command that does not exist.
        UnknownCommand = "unknown_command",
        /// Sound and instruction together do not fit the model.
        PromptTooLong = "prompt_too_long",
        /// The model failed on this record.
        ModelFailure = "model_failure",
        /// A stage broke down over this record again and again.
        StageCrashed = "stage_crashed",
        /// The broker does not take the answer.
        AnswerUndeliverable = "answer_undeliverable",
    }
}

closed_list! {
    /// Where a record was given up: the values of `__connect.errors.stage`.
    Stage {
        /// Headers and structure of the record.
        Parse = "parse",
        /// From bytes to samples.
        DecodeAudio = "decode_audio",
        /// From samples to features.
        Encode = "encode",
        /// From features to text.
        Generate = "generate",
        /// From text to the result topic.
        Publish = "publish",
        /// From the labels topic to the sample store.
        Collect = "collect",
        /// Orders on the control topic.
        Control = "control",
    }
}

impl Stage {
    /// Who does the work of this stage: the value of `__connect.errors.class.name`.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Parse | Self::DecodeAudio => "speechverse.AudioIngest",
            Self::Encode => "speechverse.Encoder",
            Self::Generate => "speechverse.Decoder",
            Self::Publish => "speechverse.Publisher",
            Self::Collect => "speechverse.SampleCollector",
            Self::Control => "speechverse.Supervisor",
        }
    }
}

impl From<&AudioError> for Reason {
    fn from(error: &AudioError) -> Self {
        match error {
            AudioError::EmptyValue => Self::EmptyValue,
            AudioError::TooLarge { .. } => Self::ValueTooLarge,
            AudioError::NotAudio { .. } => Self::NotAudio,
            AudioError::UnsupportedCodec { .. } => Self::UnsupportedCodec,
            AudioError::ContentType(_) => Self::MalformedContentType,
            AudioError::Truncated { .. } => Self::TruncatedAudio,
            AudioError::Corrupt { .. } => Self::CorruptAudio,
            AudioError::ZeroSamples { .. } => Self::ZeroSamples,
            AudioError::NonFinite { .. } => Self::NonFiniteSamples,
            AudioError::AbsurdRate { .. } => Self::AbsurdRate,
            AudioError::AbsurdChannels { .. } => Self::AbsurdChannels,
            AudioError::TooLong { .. } => Self::AudioTooLong,
            AudioError::TooManySamples { .. } => Self::DecompressionBomb,
        }
    }
}

/// Why, where, and in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// Where.
    pub stage: Stage,
    /// What was found and what was expected.
    pub message: String,
}

impl Rejection {
    /// A rejection.
    pub fn new(reason: Reason, stage: Stage, message: impl Into<String>) -> Self {
        Self {
            reason,
            stage,
            message: message.into(),
        }
    }
}

impl From<AudioError> for Rejection {
    fn from(error: AudioError) -> Self {
        Self::new(Reason::from(&error), Stage::DecodeAudio, error.to_string())
    }
}

/// The record for the dead-letter topic: key, value and headers of the original byte for byte and in order, then what
/// Kafka Connect writes, then `speechverse_reason`.
///
/// A record that was dead-lettered before, sent again, and refused again keeps its old headers too, in front of the
/// new ones: the last of each name, which is what Kafka's `lastHeader` and [`Headers::get`] return, tells of the latest
/// refusal, and [`times_dead_lettered`] how many there were.
pub fn dead_letter(record: &Record, rejection: &Rejection, topic: Arc<str>) -> OutgoingRecord {
    let Rejection {
        reason,
        stage,
        message,
    } = rejection;
    let mut headers = record.headers.clone();
    let mut connect = |name: &str, value: String| {
        headers.push(header(format!("__connect.errors.{name}"), value));
    };
    connect("topic", record.receipt.topic.to_string());
    connect("partition", record.receipt.partition.to_string());
    connect("offset", record.receipt.offset.to_string());
    connect("stage", stage.as_str().to_owned());
    connect("class.name", stage.class_name().to_owned());
    connect("exception.class.name", format!("speechverse.{reason}"));
    connect("exception.message", shortened(message));
    headers.push(header("speechverse_reason", reason.as_str()));
    OutgoingRecord {
        topic,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}

/// How often a record has been through a dead-letter topic already.
pub fn times_dead_lettered(headers: &[(String, Option<Bytes>)]) -> usize {
    Headers(headers).count("speechverse_reason")
}

fn shortened(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let room = MESSAGE_BYTES_MAX - "…".len();
    let end = (0..=room)
        .rev()
        .find(|end| message.is_char_boundary(*end))
        .unwrap_or(0);
    format!("{}…", &message[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Receipt;

    fn record(headers: Vec<(String, Option<Bytes>)>) -> Record {
        Record {
            receipt: Receipt {
                topic: "requests".into(),
                partition: 3,
                offset: 42,
                epoch: 7,
            },
            key: Some(Bytes::from_static(b"\xffkey")),
            value: Some(Bytes::from_static(b"not audio")),
            headers,
            timestamp_ms: None,
        }
    }

    #[test]
    fn a_dead_letter_holds_the_original_and_says_why() {
        let original = record(vec![
            header("ce_id", "a"),
            ("empty".to_owned(), None),
            header("ce_id", &b"\xff"[..]),
        ]);
        let rejection = Rejection::new(Reason::NotAudio, Stage::DecodeAudio, "the value is text");

        let letter = dead_letter(&original, &rejection, "dead".into());

        assert_eq!(&*letter.topic, "dead");
        assert_eq!(
            (&letter.key, &letter.value),
            (&original.key, &original.value)
        );
        assert_eq!(letter.headers[..3], original.headers);
        let added: Vec<(&str, &str)> = letter.headers[3..]
            .iter()
            .map(|(name, value)| {
                (
                    name.as_str(),
                    std::str::from_utf8(value.as_ref().unwrap()).unwrap(),
                )
            })
            .collect();
        assert_eq!(
            added,
            [
                ("__connect.errors.topic", "requests"),
                ("__connect.errors.partition", "3"),
                ("__connect.errors.offset", "42"),
                ("__connect.errors.stage", "decode_audio"),
                ("__connect.errors.class.name", "speechverse.AudioIngest"),
                (
                    "__connect.errors.exception.class.name",
                    "speechverse.not_audio"
                ),
                ("__connect.errors.exception.message", "the value is text"),
                ("speechverse_reason", "not_audio"),
            ]
        );
    }

    #[test]
    fn a_second_dead_letter_says_so_and_the_last_one_counts() {
        let rejection = |reason| Rejection::new(reason, Stage::Parse, "no");
        let first = dead_letter(
            &record(Vec::new()),
            &rejection(Reason::UnknownTask),
            "d".into(),
        );
        let again = record(first.headers.clone());

        let second = dead_letter(&again, &rejection(Reason::MalformedLabels), "d".into());

        assert_eq!(second.headers[..first.headers.len()], first.headers);
        assert_eq!(times_dead_lettered(&second.headers), 2);
        let headers = Headers(&second.headers);
        assert_eq!(
            headers.text("speechverse_reason"),
            Ok(Some("malformed_labels"))
        );
    }

    #[test]
    fn reasons_and_stages_have_names_of_their_own_in_snake_case() {
        let mut names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        let snake = |name: &&str| {
            name.bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        };
        assert!(
            names
                .iter()
                .chain(
                    Stage::ALL
                        .iter()
                        .map(|s| s.as_str())
                        .collect::<Vec<_>>()
                        .iter()
                )
                .all(snake)
        );
        let count = names.len();
        names.sort_unstable();
        names.dedup();

        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_long_message_is_shortened_between_characters() {
        let message = "ä".repeat(2_000);

        let short = shortened(&message);

        assert!(short.len() <= MESSAGE_BYTES_MAX && short.ends_with("ä…"));
    }

    proptest! {
        #[test]
        fn any_record_can_become_a_dead_letter(
            headers in prop::collection::vec((".{0,20}", prop::option::of(prop::collection::vec(any::<u8>(), 0..20))), 0..5),
            message in ".{0,2000}",
        ) {
            let headers = headers.into_iter().map(|(name, value)| (name, value.map(Bytes::from))).collect();
            let original = record(headers);

            let letter = dead_letter(
                &original,
                &Rejection::new(Reason::NotAudio, Stage::Parse, message),
                "dead".into(),
            );

            prop_assert_eq!(&letter.headers[..original.headers.len()], &original.headers[..]);
            prop_assert_eq!(letter.headers.len(), original.headers.len() + 8);
        }
    }
}
