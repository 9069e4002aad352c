//! Why a record cannot be answered, and where that was found: two closed lists.

use std::time::Duration;

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
        /// `ce_jsonschema`, `ce_regex` or `ce_grammar` cannot be read or kept, or allows no answer as short
        /// as `ce_maxtokens` asks for.
        InvalidStructure => "invalid_structure",
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
        /// Carrying out commands.
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
