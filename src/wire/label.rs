//! Labelled samples: audio with its right answer, or the correction of an earlier answer.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Record;
use super::envelope::open;
use super::headers::{Headers, refuse_unknown_type};
use super::rejection::{Reason, Rejection, Stage};
use super::request::{Instructions, REQUEST_TYPE, RequestLimits, asked, fields, id, labels, name, source};

/// `ce_type` of a labelled sample or a correction. It may be left out, and a sample may be of the
/// [type of a request](REQUEST_TYPE).
pub const LABEL_TYPE: &str = "speechverse.label.v1";

/// What a record of the label topic holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// Audio with its right answer.
    Sample(LabelledAudio),
    /// The right answer to a request.
    Correction(Correction),
}

/// The right answer to a request, which is named by source and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Correction {
    /// Id of the request.
    pub subject: String,
    /// `ce_source` of the request (`ce_subjectsource`), when the sender says.
    pub subject_source: Option<String>,
    /// `ce_source` of the correction itself: the request's too, where a client corrects its own requests.
    pub source: Option<String>,
    /// The right answer.
    pub target: String,
}

/// Audio with its right answer.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledAudio {
    /// `ce_source`: who labelled it. Source and id together name a sample.
    pub source: Option<String>,
    /// Id of the sample.
    pub id: String,
    /// Name of a configured task.
    pub task: Option<String>,
    /// What the answer answers.
    pub instruction: String,
    /// Allowed answers, as the record lists them.
    pub labels: Option<Vec<String>>,
    /// Values for the placeholders of the task's prompt.
    pub fields: BTreeMap<String, String>,
    /// Whether serving would constrain the answer to those in force.
    pub constrained: bool,
    /// The right answer; one of those in force, where there are some.
    pub target: String,
    /// Whether it may be trained on.
    pub may_train: bool,
    /// Type of the audio, when the sender says.
    pub content_type: Option<String>,
    /// The audio as it came.
    pub audio: Bytes,
}

impl Label {
    /// Reads a record of the label topic.
    ///
    /// # Errors
    /// A [`Rejection`] that says what is missing or wrong. The audio itself is not looked at.
    pub fn parse(
        record: &Record,
        limits: &RequestLimits,
        instructions: &dyn Instructions,
    ) -> Result<Self, Rejection> {
        let in_collect = |rejection: Rejection| Rejection {
            stage: Stage::Collect,
            ..rejection
        };
        Self::read(record, limits, instructions).map_err(in_collect)
    }

    fn read(
        record: &Record,
        limits: &RequestLimits,
        instructions: &dyn Instructions,
    ) -> Result<Self, Rejection> {
        let wrong = |message: &str| Rejection::new(Reason::InvalidSample, Stage::Collect, message);
        let envelope = open(record, limits)?;
        let headers = Headers::new(&envelope.headers);
        refuse_unknown_type(headers, &[LABEL_TYPE, REQUEST_TYPE], Stage::Collect)?;
        let target = headers
            .text("ce_target", limits.instruction_bytes_max)?
            .filter(|target| !target.trim().is_empty())
            .ok_or_else(|| wrong("`ce_target` is missing or empty: it holds the right answer"))?
            .to_owned();
        let subject = name(headers, "ce_subject", limits)?;
        match (envelope.data.is_empty(), subject) {
            (true, Some(_)) if headers.flag("ce_train")? == Some(false) => Err(wrong(
                "`ce_train` forbids training, and a correction is for nothing else",
            )),
            (true, Some(subject)) => Ok(Self::Correction(Correction {
                subject,
                subject_source: source(headers, "ce_subjectsource")?,
                source: source(headers, "ce_source")?,
                target,
            })),
            (true, None) => Err(wrong(
                "no audio and no `ce_subject`: send audio, or name the request whose answer is corrected",
            )),
            (false, _) => {
                let task = name(headers, "ce_task", limits)?;
                let labels = labels(headers, limits)?;
                let asked = asked(headers, task.as_deref(), labels.as_deref(), limits, instructions)?;
                asked.check_target(&target).map_err(|reason| wrong(&reason))?;
                let constrained = asked.form(headers.flag("ce_constrain")?).is_some();
                Ok(Self::Sample(LabelledAudio {
                    source: source(headers, "ce_source")?,
                    id: id(headers, record, limits)?,
                    instruction: asked.instruction,
                    task,
                    labels,
                    constrained,
                    fields: fields(headers, limits)?,
                    target,
                    may_train: headers.flag("ce_train")?.unwrap_or(true),
                    content_type: headers.text("content-type", 256)?.map(str::to_owned),
                    audio: envelope.data,
                }))
            }
        }
    }
}
