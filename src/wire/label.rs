//! Labelled samples and corrections: what the labels topic brings.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::headers::{cloud_event_headers, header};
use super::incoming::{Incoming, reject};
use super::request::{RequestDefaults, labels_json, task};
use super::{OutgoingRecord, Reason, Record, Rejection, TraceContext};

/// `ce_type` that we send; records of any type are read, since the topic leaves no doubt.
const SAMPLE_TYPE: &str = "speechverse.sample.v1";

/// Audio with the answer that it should have had.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledSample {
    /// `ce_id`, or `topic/partition/offset`.
    pub id: String,
    /// `ce_subject`: the request that this was, when it was one.
    pub request_id: Option<String>,
    /// The right answer.
    pub target: String,
    /// `ce_task`, which is configured.
    pub task: Option<String>,
    /// The instruction: the record's, else the task's, else the default.
    pub instruction: String,
    /// Allowed answers: the record's, else the task's; empty for free text.
    pub labels: Vec<String>,
    /// Whether it may be trained on; `None` leaves it to the configuration.
    pub train: Option<bool>,
    /// Type of the audio as declared.
    pub content_type: Option<String>,
    /// The audio.
    pub audio: Bytes,
    /// The span of this record.
    pub trace: TraceContext,
}

/// The right answer to an earlier request, whose audio is kept or was not.
#[derive(Clone, Debug, PartialEq)]
pub struct Correction {
    /// `ce_id`, or `topic/partition/offset`.
    pub id: String,
    /// `ce_subject`: the request.
    pub request_id: String,
    /// The right answer.
    pub target: String,
    /// Whether it may be trained on; `None` leaves it to the configuration.
    pub train: Option<bool>,
    /// The span of this record.
    pub trace: TraceContext,
}

/// A record of the labels topic.
#[derive(Clone, Debug, PartialEq)]
pub enum LabelRecord {
    /// Audio with `ce_target`.
    Sample(LabelledSample),
    /// An empty value with `ce_target` and `ce_subject`.
    Correction(Correction),
}

/// Reads a record of the labels topic.
///
/// # Errors
/// A [`Rejection`] of stage `parse`.
pub fn parse_label(record: &Record, defaults: &RequestDefaults) -> Result<LabelRecord, Rejection> {
    let incoming = Incoming::new(record, &defaults.limits)?;
    incoming.check_version()?;
    let (id, request_id) = (incoming.id()?, incoming.name("subject")?);
    let Some(target) = incoming.target()? else {
        return reject(
            Reason::MissingTarget,
            "there is no `ce_target`, the right answer",
        );
    };
    let train = incoming.flag("train")?;
    let trace = incoming.trace();
    let Some(audio) = incoming.data() else {
        let Some(request_id) = request_id else {
            let message =
                "the value is empty, expected audio, or `ce_subject` with the id of a request";
            return reject(Reason::EmptyValue, message);
        };
        return Ok(LabelRecord::Correction(Correction {
            id,
            request_id,
            target,
            train,
            trace,
        }));
    };

    let (task, task_defaults) = task(&incoming, defaults)?;
    let Some(instruction) = incoming
        .instruction()?
        .or_else(|| task_defaults.as_ref().map(|task| task.instruction.clone()))
        .or_else(|| defaults.instruction.clone())
    else {
        let message =
            "there is neither `ce_instruction` nor `ce_task`, and no default is configured";
        return reject(Reason::MissingInstruction, message);
    };
    let labels = incoming
        .labels()?
        .unwrap_or(task_defaults.unwrap_or_default().labels);
    if !labels.is_empty() && !labels.contains(&target) {
        let found: String = target.chars().take(60).collect();
        let message = format!(
            "`ce_target` is `{}`, which is no label",
            found.escape_debug()
        );
        return reject(Reason::MalformedLabels, message);
    }
    Ok(LabelRecord::Sample(LabelledSample {
        id,
        request_id,
        target,
        task,
        instruction,
        labels,
        train,
        content_type: incoming.content_type()?,
        audio,
        trace,
    }))
}

/// A label to be sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewLabel {
    /// The record's id, unique under its source.
    pub id: String,
    /// Who labels, a URI reference.
    pub source: String,
    /// The request that is corrected, or that the audio was.
    pub request_id: Option<String>,
    /// The right answer.
    pub target: String,
    /// The instruction.
    pub instruction: Option<String>,
    /// Name of a configured task.
    pub task: Option<String>,
    /// Allowed answers.
    pub labels: Vec<String>,
    /// Type of the audio.
    pub content_type: Option<String>,
    /// The audio; `None` for a correction, whose audio is the request's.
    pub audio: Option<Bytes>,
}

impl NewLabel {
    /// The record in binary mode. A correction has an empty value and not none, which a compacted topic would take for
    /// a deletion.
    pub fn to_record(
        &self,
        topic: Arc<str>,
        key: Option<Bytes>,
        time: Timestamp,
    ) -> OutgoingRecord {
        let content_type = self.content_type.as_deref();
        let mut headers = cloud_event_headers(
            SAMPLE_TYPE,
            &self.id,
            &self.source,
            time,
            content_type,
            None,
        );
        let mut attribute = |name: &str, value: Option<String>| {
            headers.extend(value.map(|value| header(format!("ce_{name}"), value)));
        };
        attribute("subject", self.request_id.clone());
        attribute("target", Some(self.target.clone()));
        attribute("instruction", self.instruction.clone());
        attribute("task", self.task.clone());
        attribute(
            "labels",
            (!self.labels.is_empty()).then(|| labels_json(&self.labels)),
        );
        OutgoingRecord {
            topic,
            key,
            value: Some(self.audio.clone().unwrap_or_default()),
            headers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Receipt;

    fn parse(
        value: Option<&'static [u8]>,
        headers: &[(&str, &str)],
    ) -> Result<LabelRecord, Rejection> {
        let record = Record {
            receipt: Receipt {
                topic: "labels".into(),
                partition: 0,
                offset: 5,
                epoch: 0,
            },
            key: None,
            value: value.map(Bytes::from_static),
            headers: headers
                .iter()
                .map(|(name, value)| header(*name, value.to_string()))
                .collect(),
            timestamp_ms: None,
        };
        let defaults = RequestDefaults {
            instruction: Some("Listen.".to_owned()),
            ..RequestDefaults::default()
        };
        parse_label(&record, &defaults)
    }

    #[test]
    fn audio_with_a_target_is_a_sample() {
        let label = parse(
            Some(b"audio"),
            &[("ce_target", "hello"), ("ce_train", "yes")],
        )
        .unwrap();

        let LabelRecord::Sample(sample) = label else {
            panic!("{label:?}")
        };
        assert_eq!(sample.id, "labels/0/5");
        assert_eq!(
            (sample.target.as_str(), sample.instruction.as_str()),
            ("hello", "Listen.")
        );
        assert_eq!(
            (sample.train, sample.audio),
            (Some(true), Bytes::from_static(b"audio"))
        );
    }

    #[test]
    fn an_empty_value_with_a_subject_is_a_correction() {
        for value in [None, Some(&b""[..])] {
            let label = parse(value, &[("ce_target", "hello"), ("ce_subject", "r-1")]).unwrap();

            let LabelRecord::Correction(correction) = label else {
                panic!("{label:?}")
            };
            assert_eq!(
                (correction.request_id.as_str(), correction.target.as_str()),
                ("r-1", "hello")
            );
        }
    }

    #[test]
    fn what_is_neither_has_its_reason() {
        let reason = |value, headers: &[(&str, &str)]| parse(value, headers).unwrap_err().reason;
        let long = "x".repeat(9_000);

        assert_eq!(reason(Some(b"audio"), &[]), Reason::MissingTarget);
        assert_eq!(
            reason(Some(b"audio"), &[("ce_target", " ")]),
            Reason::MissingTarget
        );
        assert_eq!(reason(None, &[("ce_target", "x")]), Reason::EmptyValue);
        assert_eq!(
            reason(Some(b"a"), &[("ce_target", &long)]),
            Reason::TargetTooLong
        );
        assert_eq!(
            reason(
                Some(b"a"),
                &[("ce_target", "c"), ("ce_labels", r#"["a","b"]"#)]
            ),
            Reason::MalformedLabels
        );
        assert_eq!(
            reason(Some(b"a"), &[("ce_target", "c"), ("ce_task", "none")]),
            Reason::UnknownTask
        );
    }

    #[test]
    fn what_is_sent_is_read_back() {
        let sent = NewLabel {
            id: "l-1".to_owned(),
            source: "/cli".to_owned(),
            request_id: Some("r-1".to_owned()),
            target: "grüß dich".to_owned(),
            instruction: Some("Write.".to_owned()),
            audio: Some(Bytes::from_static(b"audio")),
            ..NewLabel::default()
        };
        let outgoing = sent.to_record("labels".into(), None, Timestamp::UNIX_EPOCH);
        let record = Record {
            receipt: Receipt {
                topic: "labels".into(),
                partition: 0,
                offset: 5,
                epoch: 0,
            },
            key: outgoing.key,
            value: outgoing.value,
            headers: outgoing.headers,
            timestamp_ms: None,
        };

        let label = parse_label(&record, &RequestDefaults::default()).unwrap();

        let LabelRecord::Sample(sample) = label else {
            panic!("{label:?}")
        };
        assert_eq!(
            (sample.id, sample.request_id, sample.target),
            (sent.id, sent.request_id, sent.target)
        );
    }
}
