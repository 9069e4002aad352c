//! Answers: the JSON of a result record.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::headers::header;
use super::trace::TraceContext;
use super::{OutgoingRecord, number};
use crate::util::hex;

/// `ce_type` of a result.
pub const RESULT_TYPE: &str = "speechverse.result.v1";

/// Whether more will come.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// An early view of an answer that is still being made.
    Partial,
    /// The answer.
    Final,
    /// There is no answer; `text` says why.
    Error,
}

impl AnswerKind {
    /// Every member.
    pub const ALL: &'static [Self] = &[Self::Partial, Self::Final, Self::Error];

    /// Its name in JSON, metrics and ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Final => "final",
            Self::Error => "error",
        }
    }
}

/// What a reader should know before trusting an answer.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// The answer ends in repeats of itself.
    Looping,
    /// The answer has no words.
    Empty,
    /// The answer reached the token limit and was cut; or, where [`Answer::audio_unheard_seconds`] says so,
    /// the end of the sound is missing.
    Truncated,
    /// The sound was damaged, or its channels cancelled each other: it was mended, and what could not be
    /// decoded is counted in [`Answer::audio_unheard_seconds`].
    AudioRepaired,
    /// The model was unsure: its mean token log-probability is low.
    LowConfidence,
    /// The transcript does not agree with the sound: the CTC head finds it unlikely.
    Unsupported,
    /// There is hardly speech in the audio: all of it is as quiet as silence. The answer is there all the
    /// same.
    NoSpeech,
    /// The sound goes on behind a long pause, after which models tend to stop: words may be missing.
    LongPause,
    /// A new utterance of the session ended the answer: it is as far as it was then.
    Cancelled,
}

/// Milliseconds spent on an answer, by stage.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, JsonSchema)]
pub struct Timing {
    /// Waiting in queues.
    pub queue: f64,
    /// Decoding and resampling the sound.
    pub decode_audio: f64,
    /// Speech encoder.
    pub encode: f64,
    /// Adapter and the LLM's pass over the prompt.
    pub prefill: f64,
    /// Generating the answer.
    pub generate: f64,
    /// From admission to the finished answer.
    pub total: f64,
}

/// A part of a recording that a partial answer is about: a stretch of speech.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, JsonSchema)]
pub struct Segment {
    /// Its number in the recording, from 0.
    pub number: u64,
    /// Where it begins, seconds since the recording's start.
    pub begin_seconds: f64,
    /// Where it ends; of one that is still spoken, how far it has come.
    pub end_seconds: f64,
    /// Whether the text is the language model's answer to the whole segment, which does not change any more.
    /// Before, it is what was read so far.
    pub is_settled: bool,
    /// How the text begins for good: later texts of the segment begin so too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<String>,
}

/// A word of a transcript.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, JsonSchema)]
pub struct Word {
    /// The word, with the punctuation at it.
    pub text: String,
    /// Where it begins, seconds since the recording's start, as the CTC head finds its first letters.
    pub begin_seconds: f64,
    /// Where it ends: behind the last letters that the CTC head finds, which may be a little early.
    pub end_seconds: f64,
}

/// An answer, as it travels on the result topic.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, JsonSchema)]
pub struct Answer {
    /// Id of the answer: [`Answer::id_of`] of its request.
    pub id: String,
    /// Id of the request.
    pub request_id: String,
    /// `ce_source` of the request, which names it together with the id; not written where it brought none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_source: Option<String>,
    /// Stream or conversation it belongs to.
    pub session: Option<String>,
    /// Whether more will come.
    pub kind: AnswerKind,
    /// Name of the task.
    pub task: Option<String>,
    /// What was asked.
    pub instruction: String,
    /// The answer.
    pub text: String,
    /// The allowed answer that it is, where answers were constrained.
    pub label: Option<String>,
    /// Joint decoding: one entry per task.
    pub fields: BTreeMap<String, String>,
    /// Adapter version that computed it.
    pub adapter: String,
    /// Mean token log-probability, natural logarithm.
    #[serde(deserialize_with = "number::or_null")]
    #[schemars(with = "Option<f64>")]
    pub score: f64,
    /// What a reader should know.
    pub flags: Vec<Flag>,
    /// Length of the audio that was decoded, seconds.
    pub audio_seconds: f64,
    /// Length of what could not be decoded of it, seconds; not written where it is 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub audio_unheard_seconds: f64,
    /// Of a partial answer about a part of a recording: which part; not written otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<Segment>,
    /// When the words of a transcript are said, where its request asks for that (`ce_wordtimes`) and the
    /// adapter version has a CTC head; not written otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Word>,
    /// Answer tokens.
    pub tokens: usize,
    /// Time spent.
    pub timing_ms: Timing,
}

/// An id as it is among those of all sources.
fn of_source(id: String, source: Option<&str>) -> String {
    match source {
        Some(source) => format!("{id}@{}", hex(&Sha256::digest(source)[..8])),
        None => id,
    }
}

/// Whether a field has nothing to say.
fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

impl Answer {
    /// The id of an answer: the same request, kind and sequence give the same id, so a repeat after a crash
    /// is recognisable. A request with a source is another one than those of other sources under its id: the
    /// first 16 hexadecimal digits of the source's SHA-256 stand at the end, after `@`.
    pub fn id_of(source: Option<&str>, request_id: &str, kind: AnswerKind, sequence: u64) -> String {
        let id = match kind {
            AnswerKind::Partial => format!("{request_id}:partial:{sequence}"),
            kind => format!("{request_id}:{}", kind.as_str()),
        };
        of_source(id, source)
    }

    /// The id of the settled text of a segment, made as those of answers.
    pub fn segment_id(source: Option<&str>, request_id: &str, number: u64) -> String {
        of_source(format!("{request_id}:segment:{number}"), source)
    }

    /// The record of the result topic, with the request's key.
    pub fn to_record(
        &self,
        topic: Arc<str>,
        key: Option<Bytes>,
        source: &str,
        trace: &TraceContext,
    ) -> OutgoingRecord {
        let json = serde_json::to_vec(self).expect("an answer is always JSON");
        let mut headers = vec![
            header("ce_specversion", "1.0"),
            header("ce_type", RESULT_TYPE),
            header("ce_source", source),
            header("ce_id", self.id.as_str()),
            header("ce_time", Timestamp::now().to_string()),
            header("ce_subject", self.request_id.as_str()),
            header("content-type", "application/json"),
            header("traceparent", trace.child(&self.id)),
        ];
        if let Some(source) = &self.request_source {
            headers.push(header("ce_subjectsource", source.as_str()));
        }
        if let Some(state) = &trace.state {
            headers.push(header("tracestate", state.as_str()));
        }
        OutgoingRecord {
            topic,
            key,
            value: Some(Bytes::from(json)),
            headers,
        }
    }
}
