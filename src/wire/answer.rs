//! Answers: what the result topic carries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::headers::{cloud_event_headers, header};
use super::{OutgoingRecord, TraceContext};

/// `ce_type` of every answer.
const RESULT_TYPE: &str = "speechverse.result.v1";

/// How much of an answer it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// An answer so far, to a stream that goes on.
    Partial,
    /// The answer.
    Final,
    /// There will be no answer; `text` says why.
    Error,
}

impl AnswerKind {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Partial => "partial",
            Self::Final => "final",
            Self::Error => "error",
        }
    }
}

/// What a reader should know about an answer before believing it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFlag {
    /// The text repeats itself.
    Looping,
    /// There is no text.
    Empty,
    /// The text, or the audio that it is about, was cut at a limit.
    Truncated,
    /// The model was not sure.
    LowConfidence,
    /// Nobody seems to speak.
    NoSpeech,
}

/// Time spent per stage, milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TimingMs {
    /// Waiting between stages.
    pub queue: f64,
    /// From bytes to samples.
    pub decode_audio: f64,
    /// From samples to features.
    pub encode: f64,
    /// The first pass of the LLM over audio and instruction.
    pub prefill: f64,
    /// All tokens after the first.
    pub generate: f64,
    /// From reading the record to the finished answer.
    pub total: f64,
}

/// A duration as [`TimingMs`] holds it: milliseconds, to the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// An answer, with the fields of the contract.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Answer {
    /// A function of request, kind and number ([`answer_id`]), so that a repeat is recognisable.
    pub id: String,
    /// The request; for a stream, the request of its last chunk so far.
    pub request_id: String,
    /// The stream.
    pub session: Option<String>,
    /// How much of an answer it is.
    pub kind: AnswerKind,
    /// The task that the request named.
    pub task: Option<String>,
    /// The instruction that was followed.
    pub instruction: String,
    /// The text; of kind `error`, why there is none.
    pub text: String,
    /// The allowed answer that was chosen, when answers were constrained.
    pub label: Option<String>,
    /// Joint decoding: one entry per task.
    pub fields: BTreeMap<String, String>,
    /// The adapter version that computed it.
    pub adapter: String,
    /// Mean log-probability of the tokens, nats; `None` without tokens.
    pub score: Option<f32>,
    /// What a reader should know before believing it.
    pub flags: Vec<AnswerFlag>,
    /// Length of the audio, seconds.
    pub audio_seconds: f64,
    /// Tokens generated.
    pub tokens: u32,
    /// Time spent per stage.
    pub timing_ms: TimingMs,
}

/// Why a record of the result topic could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// It has no value.
    #[error("the result has no value, expected JSON")]
    Empty,
    /// The value is not the JSON of an answer.
    #[error("the result cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// The id of an answer: `REQUEST/KIND`, or `REQUEST/KIND/SEQUENCE` where there are several of a kind.
///
/// Different requests, kinds and numbers give different ids, whatever stands in the request's id: read from its end,
/// an id has at most one number, then a kind, and the rest is the request.
pub fn answer_id(request_id: &str, kind: AnswerKind, sequence: Option<u64>) -> String {
    match sequence {
        Some(sequence) => format!("{request_id}/{}/{sequence}", kind.as_str()),
        None => format!("{request_id}/{}", kind.as_str()),
    }
}

impl Answer {
    /// The record for the result topic, under the request's key.
    ///
    /// `source` is this program as a URI reference, `time` when the answer was finished, `trace` the request's span.
    pub fn to_record(
        &self,
        topic: Arc<str>,
        key: Option<Bytes>,
        source: &str,
        time: Timestamp,
        trace: &TraceContext,
    ) -> OutgoingRecord {
        let value =
            serde_json::to_vec(self).expect("texts and numbers can always be written as JSON");
        let content_type = Some("application/json");
        let mut headers = cloud_event_headers(
            RESULT_TYPE,
            &self.id,
            source,
            time,
            content_type,
            Some(trace),
        );
        headers.push(header("ce_subject", self.request_id.clone()));
        OutgoingRecord {
            topic,
            key,
            value: Some(value.into()),
            headers,
        }
    }

    /// Reads the value of a record of the result topic.
    ///
    /// # Errors
    /// When there is none, or it is no answer.
    pub fn from_value(value: Option<&[u8]>) -> Result<Self, AnswerError> {
        match value {
            None | Some([]) => Err(AnswerError::Empty),
            Some(value) => Ok(serde_json::from_slice(value)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer() -> Answer {
        Answer {
            id: answer_id("r-1", AnswerKind::Final, None),
            request_id: "r-1".to_owned(),
            session: None,
            kind: AnswerKind::Final,
            task: Some("asr".to_owned()),
            instruction: "Transcribe the speech.".to_owned(),
            text: "turn on the light".to_owned(),
            label: None,
            fields: BTreeMap::new(),
            adapter: "demo-0003".to_owned(),
            score: Some(-0.21),
            flags: vec![AnswerFlag::LowConfidence, AnswerFlag::NoSpeech],
            audio_seconds: 3.42,
            tokens: 11,
            timing_ms: TimingMs {
                queue: 1.2,
                decode_audio: 0.8,
                encode: milliseconds(Duration::from_micros(41_000)),
                prefill: 22.3,
                generate: 118.0,
                total: 190.1,
            },
        }
    }

    #[test]
    fn an_answer_has_the_fields_of_the_contract_and_no_others() {
        assert_eq!(
            serde_json::to_string(&answer()).unwrap(),
            r#"{"id":"r-1/final","request_id":"r-1","session":null,"kind":"final","task":"asr","instruction":"Transcribe the speech.","text":"turn on the light","label":null,"fields":{},"adapter":"demo-0003","score":-0.21,"flags":["low_confidence","no_speech"],"audio_seconds":3.42,"tokens":11,"timing_ms":{"queue":1.2,"decode_audio":0.8,"encode":41.0,"prefill":22.3,"generate":118.0,"total":190.1}}"#
        );
    }

    #[test]
    fn an_answer_goes_out_under_the_key_of_its_request() {
        let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let trace = trace.unwrap().with_state(Some("a=b"));

        let record = answer().to_record(
            "results".into(),
            Some(Bytes::from_static(b"\xff")),
            "/speechverse",
            "2030-01-01T00:00:00Z".parse().unwrap(),
            &trace,
        );

        assert_eq!(
            (&*record.topic, record.key),
            ("results", Some(Bytes::from_static(b"\xff")))
        );
        let headers: Vec<(&str, &str)> = record
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.as_str(),
                    std::str::from_utf8(value.as_ref().unwrap()).unwrap(),
                )
            })
            .collect();
        assert_eq!(
            headers,
            [
                ("ce_specversion", "1.0"),
                ("ce_type", "speechverse.result.v1"),
                ("ce_id", "r-1/final"),
                ("ce_source", "/speechverse"),
                ("ce_time", "2030-01-01T00:00:00Z"),
                ("content-type", "application/json"),
                (
                    "traceparent",
                    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
                ),
                ("tracestate", "a=b"),
                ("ce_subject", "r-1"),
            ]
        );
        assert_eq!(
            Answer::from_value(record.value.as_deref()).unwrap(),
            answer()
        );
    }

    #[test]
    fn a_score_that_is_no_number_is_written_as_null() {
        let json = serde_json::to_string(&Answer {
            score: Some(f32::NAN),
            ..answer()
        })
        .unwrap();

        assert!(json.contains(r#""score":null"#));
        assert_eq!(
            Answer::from_value(Some(json.as_bytes())).unwrap().score,
            None
        );
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for value in [None, Some(&b""[..]), Some(b"{}"), Some(b"\xff")] {
            assert!(Answer::from_value(value).is_err());
        }
    }

    proptest! {
        #[test]
        fn different_answers_have_different_ids(
            a in "[a-z/0-9]{0,3}(/final|/partial)?(/[0-9])?", b in "[a-z/0-9]{0,3}(/final|/partial)?(/[0-9])?",
            kinds in (0..3_usize, 0..3_usize), numbers in (prop::option::of(0..10_u64), prop::option::of(0..10_u64)),
        ) {
            let kind = |index: usize| [AnswerKind::Partial, AnswerKind::Final, AnswerKind::Error][index];
            let same = (&a, kinds.0, numbers.0) == (&b, kinds.1, numbers.1);

            let ids = (answer_id(&a, kind(kinds.0), numbers.0), answer_id(&b, kind(kinds.1), numbers.1));

            prop_assert_eq!(ids.0 == ids.1, same);
        }

        #[test]
        fn what_is_written_is_read_back(
            (id, text, label) in ("\\PC{0,20}", "\\PC{0,40}", prop::option::of("\\PC{0,9}")),
            fields in prop::collection::btree_map("\\PC{0,9}", "\\PC{0,9}", 0..3),
            score in prop::option::of(-100.0_f32..0.0), eighths in 0..80_000_u32, tokens in any::<u32>(),
        ) {
            // Eighths, because serde_json reads other fractions to within their last bit only.
            let audio_seconds = f64::from(eighths) / 8.0;
            let score = score.map(|score| (score * 8.0).round() / 8.0);
            let answer = Answer { id, text, label, fields, score, audio_seconds, tokens, ..answer() };

            let json = serde_json::to_vec(&answer).unwrap();

            prop_assert_eq!(Answer::from_value(Some(&json)).unwrap(), answer);
        }
    }
}
