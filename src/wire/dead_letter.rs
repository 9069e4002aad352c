//! Records that cannot be answered, and why.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::headers::{Headers, header};
use super::{OutgoingRecord, Record};

macro_rules! closed_list {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every member.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in headers, metrics and JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The member of that name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|member| member.as_str() == name)
            }
        }
    };
}

closed_list! {
    /// Why a record became a dead letter; the header `speechverse_reason`.
    Reason {
        /// The value is empty or absent.
        EmptyValue => "empty_value",
        /// The bytes are no audio that we know.
        NotAudio => "not_audio",
        /// A container or codec that is not decoded here.
        UnsupportedAudio => "unsupported_audio",
        /// The audio breaks off before its declared end.
        TruncatedAudio => "truncated_audio",
        /// The audio contradicts itself.
        CorruptAudio => "corrupt_audio",
        /// No samples.
        NoSamples => "no_samples",
        /// NaN or infinite samples.
        NonFiniteSamples => "non_finite_samples",
        /// A sample rate or number of channels out of range.
        AbsurdFormat => "absurd_format",
        /// More seconds, samples or positions than allowed.
        AudioTooLong => "audio_too_long",
        /// More tokens than there are positions for beside the audio.
        InstructionTooLong => "instruction_too_long",
        /// More bytes than allowed.
        ValueTooLarge => "value_too_large",
        /// A header that is not UTF-8, or not what it should be.
        InvalidHeader => "invalid_header",
        /// A header longer than allowed.
        HeaderTooLarge => "header_too_large",
        /// `content-type` is malformed.
        InvalidContentType => "invalid_content_type",
        /// A structured CloudEvent that cannot be understood.
        InvalidEnvelope => "invalid_envelope",
        /// `ce_type` names nothing that this topic takes.
        UnsupportedType => "unsupported_type",
        /// `ce_task` names no configured task.
        UnknownTask => "unknown_task",
        /// `ce_labels` is not a JSON array of distinct, non-empty answers, or none of them is as short as
        /// `ce_maxtokens` asks for.
        InvalidLabels => "invalid_labels",
        /// The deadline is past.
        DeadlineExceeded => "deadline_exceeded",
        /// Chunks are missing, doubled, or never ended.
        BrokenStream => "broken_stream",
        /// A labelled sample without a target, or without anything to label.
        InvalidSample => "invalid_sample",
        /// A correction of a request that is not remembered.
        UnknownSubject => "unknown_subject",
        /// The sample store refused it.
        StoreRefused => "store_refused",
        /// A command that is not understood.
        InvalidCommand => "invalid_command",
        /// The broker does not take the answer, whatever is left out of it.
        AnswerRefused => "answer_refused",
        /// A fault of ours; publishing the record again may work.
        InternalError => "internal_error",
    }
}

impl Reason {
    /// Whether the same record may be answered later although nobody changes it: what was in its way may
    /// pass. Every other reason lies in the record, or in a setting.
    pub fn can_heal(self) -> bool {
        matches!(
            self,
            Self::UnknownSubject | Self::StoreRefused | Self::InternalError
        )
    }

    /// How long to wait before a record that was tried `attempts` times is tried again: a minute, doubled
    /// with each attempt up to an hour. `None` where waiting does not help.
    pub fn back_off(self, attempts: u32) -> Option<Duration> {
        const FIRST: Duration = Duration::from_secs(60);
        const MAX: Duration = Duration::from_secs(3_600);
        let doubled = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.can_heal().then(|| FIRST.saturating_mul(doubled).min(MAX))
    }
}

closed_list! {
    /// Where in the graph something happened.
    Stage {
        /// Reading, checking, decoding sound.
        Ingest => "ingest",
        /// The speech encoder.
        Encode => "encode",
        /// Adapter and language model.
        Decode => "decode",
        /// Writing answers.
        Publish => "publish",
        /// Keeping labelled samples.
        Collect => "collect",
        /// Obeying commands.
        Control => "control",
        /// Training cycles.
        Train => "train",
    }
}

/// Why a record cannot be answered, and where that was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", reason.as_str())]
pub struct Rejection {
    /// Member of the closed list.
    pub reason: Reason,
    /// Where it was found.
    pub stage: Stage,
    /// What is wrong, where, and what to do.
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

/// Header that holds the [`Reason`].
pub const REASON_HEADER: &str = "speechverse_reason";
/// Header that says how often the record was tried; on a record of an input topic, which attempt it is. Absent:
/// the first.
pub const ATTEMPTS_HEADER: &str = "speechverse_attempts";
/// Header that says from when on trying again makes sense (RFC 3339), where the reason
/// [can heal](Reason::can_heal).
pub const RETRY_AFTER_HEADER: &str = "speechverse_retry_after";
/// Header that says for how many earlier chunks of its stream a dead letter stands without holding them.
pub const EARLIER_CHUNKS_HEADER: &str = "speechverse_earlier_chunks";
/// Header of a record whose value the broker refuses: how many bytes it had.
pub const VALUE_OMITTED_HEADER: &str = "speechverse_value_omitted";
/// Header of a record that the broker refuses even so: how many headers were left out.
pub const HEADERS_OMITTED_HEADER: &str = "speechverse_headers_omitted";
/// Header of a record that the broker refuses even so: how many bytes its key had.
pub const KEY_OMITTED_HEADER: &str = "speechverse_key_omitted";

/// Beginning of the names of Kafka Connect's headers about a record that could not be worked on.
pub(super) const CONNECT_PREFIX: &str = "__connect.errors.";
/// Longest message in a header, bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Which attempt a record is, from 1.
pub fn attempts(headers: &[(String, Option<bytes::Bytes>)]) -> u32 {
    let found = Headers::new(headers).parsed(ATTEMPTS_HEADER, "a number");
    found.ok().flatten().unwrap_or(1)
}

/// The dead letter of a record at `time`: key, value and headers byte for byte, then the reason in Kafka
/// Connect's headers and ours. `earlier_chunks` further records share its fate, the earlier chunks of its
/// stream.
///
/// A record that already was a dead letter keeps its old headers; ours come last, and the last of a name
/// counts.
pub fn dead_letter(
    record: &Record,
    rejection: &Rejection,
    earlier_chunks: usize,
    topic: Arc<str>,
    time: Timestamp,
) -> OutgoingRecord {
    let mut headers = record.headers.clone();
    let record_offset = &record.record_offset;
    let mut end = rejection.message.len().min(MESSAGE_BYTES_MAX);
    while !rejection.message.is_char_boundary(end) {
        end -= 1;
    }
    let attempts = attempts(&record.headers);
    let connect = |name: &str| format!("{CONNECT_PREFIX}{name}");
    headers.extend([
        header(&connect("topic"), &*record_offset.topic),
        header(&connect("partition"), record_offset.partition.to_string()),
        header(&connect("offset"), record_offset.offset.to_string()),
        header(&connect("stage"), rejection.stage.as_str()),
        header(&connect("class.name"), "speechverse"),
        header(&connect("exception.class.name"), rejection.reason.as_str()),
        header(&connect("exception.message"), &rejection.message[..end]),
        header(REASON_HEADER, rejection.reason.as_str()),
        header(ATTEMPTS_HEADER, attempts.to_string()),
    ]);
    let retry_after = rejection.reason.back_off(attempts).map(|wait| time + wait);
    headers.extend(retry_after.map(|time| header(RETRY_AFTER_HEADER, time.to_string())));
    if earlier_chunks > 0 {
        headers.push(header(EARLIER_CHUNKS_HEADER, earlier_chunks.to_string()));
    }
    OutgoingRecord {
        topic,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}
