//! Requests: audio and what to do with it.
//!
//! CloudEvents 1.0, Kafka protocol binding: binary mode (value = audio, attributes in `ce_*` headers) and
//! structured mode (`content-type: application/cloudevents+json`, audio in `data_base64`).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::Record;
use super::envelope::open;
use super::headers::{Headers, invalid};
pub use super::limits::RequestLimits;
use super::rejection::{Reason, Rejection, Stage};
use super::trace::TraceContext;
use crate::text::{
    GrammarPiece, JointLayout, OutputGrammar, ResolvedPrompt, STRUCTURE_BYTES_MAX, Spoken, Structure,
    StructureKind, TemplateVariables, TextError,
};

/// `ce_type` of a request that carries a whole recording.
pub const REQUEST_TYPE: &str = "speechverse.request.v1";
/// `ce_type` of one chunk of a stream.
pub const CHUNK_TYPE: &str = "speechverse.chunk.v1";

/// Finds the instruction of a request.
pub trait Instructions {
    /// What one task, or several (`asr,intent`), ask for; `own` is the request's instruction instead of
    /// theirs.
    ///
    /// # Errors
    /// [`TextError`]: an unknown task, a place of its prompt without a value, labels that it cannot answer
    /// with.
    fn of_task(
        &self,
        names: &str,
        variables: &TemplateVariables,
        own: Option<&str>,
    ) -> Result<ResolvedPrompt, TextError>;
    /// For a request that names neither instruction nor task.
    fn default_instruction(&self) -> String;
}

/// A place in a chunked stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Number of the chunk, from 0.
    pub sequence: u64,
    /// Whether it is the last one.
    pub is_final: bool,
}

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// It may wait while there is something interactive.
    Bulk,
}

impl Priority {
    /// Every member.
    pub const ALL: &'static [Self] = &[Self::Interactive, Self::Bulk];

    /// Its name in headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

impl std::str::FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|member| member.as_str() == text);
        found.ok_or_else(|| "expected `interactive` or `bulk`".to_owned())
    }
}

/// Audio, and what to do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `ce_source`: who asks. Source and id together name a request.
    pub source: Option<String>,
    /// Request id.
    pub id: String,
    /// Stream or conversation it belongs to.
    pub session: Option<String>,
    /// Present for a chunk of a stream.
    pub chunk: Option<Chunk>,
    /// Name of a configured task, or of several: `asr,intent`.
    pub task: Option<String>,
    /// What to do with the audio.
    pub instruction: String,
    /// Allowed answers, as the request lists them.
    pub labels: Option<Vec<String>>,
    /// Values that it gives to the placeholders of its task's prompt.
    pub fields: BTreeMap<String, String>,
    /// What the answer is constrained to; absent: free text.
    pub grammar: Option<OutputGrammar>,
    /// What has to be said for the labels of its task.
    pub spoken: Option<Spoken>,
    /// How the answers of several tasks are laid out.
    pub joint: Option<Arc<JointLayout>>,
    /// Most answer tokens.
    pub max_tokens: Option<usize>,
    /// Not worth answering after this time.
    pub deadline: Option<Timestamp>,
    /// How urgent it is.
    pub priority: Priority,
    /// Topic that the answers go to, instead of the configured one.
    pub reply_topic: Option<Arc<str>>,
    /// Whether partial answers are wanted.
    pub partials: bool,
    /// Whether the times of the words of a transcript are wanted.
    pub word_times: bool,
    /// Whether it ends the answers that are in progress for its session.
    pub barge_in: bool,
    /// Whether it may be kept for training, when the sender says.
    pub train: Option<bool>,
    /// Type of the audio, when the sender says.
    pub content_type: Option<String>,
    /// The audio as it came.
    pub audio: Bytes,
    /// Trace it belongs to.
    pub trace: TraceContext,
}

impl Request {
    /// Reads a record of the request topic.
    ///
    /// # Errors
    /// A [`Rejection`] that says which header is wrong and what was expected. The audio itself is not looked
    /// at.
    pub fn parse(
        record: &Record,
        limits: &RequestLimits,
        instructions: &dyn Instructions,
    ) -> Result<Self, Rejection> {
        let envelope = open(record, limits)?;
        let headers = Headers::new(&envelope.headers);
        let name = |header: &str| name(headers, header, limits);
        // A client that sends chunks and no type must not have them answered one by one.
        let untyped = if headers.bytes("ce_sequence").is_some() {
            CHUNK_TYPE
        } else {
            REQUEST_TYPE
        };
        let kind = name("ce_type")?.unwrap_or_else(|| untyped.to_owned());
        let session = name("ce_session")?;
        let chunk = match kind.as_str() {
            REQUEST_TYPE => None,
            CHUNK_TYPE => Some(Chunk {
                sequence: headers
                    .parsed("ce_sequence", "the number of the chunk, from 0")?
                    .ok_or_else(|| invalid("ce_sequence", "", "the number of the chunk, from 0"))?,
                is_final: headers.flag("ce_final")?.unwrap_or(false),
            }),
            other => {
                let message = format!("`ce_type` is `{other}`, expected `{REQUEST_TYPE}` or `{CHUNK_TYPE}`");
                return Err(Rejection::new(Reason::UnsupportedType, Stage::Ingest, message));
            }
        };
        if chunk.is_some() && session.is_none() {
            return Err(invalid(
                "ce_session",
                "",
                "the id of the stream that the chunk belongs to",
            ));
        }
        let id = id(headers, record, limits)?;
        let source = source(headers, "ce_source")?;
        let task = name("ce_task")?;
        let labels = labels(headers, limits)?;
        let asked = asked(headers, task.as_deref(), labels.as_deref(), limits, instructions)?;
        let constrain = headers.flag("ce_constrain")?;
        let grammar = match structure(headers)? {
            None => asked.form(constrain),
            Some(structure) => {
                let header = structure.kind().header();
                let beside = [
                    (labels.is_some(), "`ce_labels`"),
                    (asked.joint.is_some(), "a `ce_task` of several tasks"),
                    (constrain == Some(false), "`ce_constrain: no`"),
                ];
                if let Some((_, other)) = beside.into_iter().find(|(present, _)| *present) {
                    return Err(unusable(format!(
                        "`{header}` and {other} contradict each other: leave one out"
                    )));
                }
                Some(OutputGrammar::of(GrammarPiece::Structure(Arc::new(structure))))
            }
        };
        let max_tokens: Option<usize> = headers.parsed("ce_maxtokens", "a whole number from 1")?;
        if let Some(tokens) = max_tokens.filter(|tokens| !(1..=limits.tokens_max).contains(tokens)) {
            return Err(invalid(
                "ce_maxtokens",
                &tokens.to_string(),
                &format!("1 to {}", limits.tokens_max),
            ));
        }
        Ok(Self {
            source,
            id,
            session,
            chunk,
            task,
            grammar,
            instruction: asked.instruction,
            labels,
            fields: fields(headers, limits)?,
            spoken: asked.spoken,
            joint: asked.joint,
            max_tokens,
            deadline: headers.parsed("ce_deadline", "a time such as 2026-01-31T12:00:00Z (RFC 3339)")?,
            priority: headers
                .parsed("ce_priority", "`interactive` or `bulk`")?
                .unwrap_or_default(),
            reply_topic: reply_topic(headers, limits)?,
            partials: headers.flag("ce_partials")?.unwrap_or(false),
            barge_in: headers.flag("ce_bargein")?.unwrap_or(false),
            word_times: headers.flag("ce_wordtimes")?.unwrap_or(false),
            train: headers.flag("ce_train")?,
            content_type: headers.text("content-type", 256)?.map(str::to_owned),
            audio: envelope.data,
            trace: TraceContext::of(headers, &record.record_offset),
        })
    }
}

/// `ce_replytopic`: one of the topics that the operator allows, so that nobody can have answers written just
/// anywhere.
fn reply_topic(headers: Headers<'_>, limits: &RequestLimits) -> Result<Option<Arc<str>>, Rejection> {
    let Some(wanted) = name(headers, "ce_replytopic", limits)? else {
        return Ok(None);
    };
    let known = &limits.reply_topics;
    match known.iter().find(|topic| ***topic == wanted) {
        Some(topic) => Ok(Some(topic.clone())),
        None => Err(invalid(
            "ce_replytopic",
            &wanted,
            "one of the topics that `kafka.topics.replies` lists",
        )),
    }
}

/// The form of answers that a request brings along.
fn structure(headers: Headers<'_>) -> Result<Option<Structure>, Rejection> {
    let mut found: Option<(StructureKind, &str)> = None;
    for kind in StructureKind::ALL {
        let Some(source) = headers.text(kind.header(), STRUCTURE_BYTES_MAX)? else {
            continue;
        };
        if let Some((before, _)) = found {
            let (one, other) = (before.header(), kind.header());
            return Err(unusable(format!(
                "`{one}` and `{other}` contradict each other: leave one out"
            )));
        }
        found = Some((kind, source));
    }
    let read = found.map(|(kind, source)| {
        Structure::new(kind, source).map_err(|error| unusable(format!("`{}`: {error}", kind.header())))
    });
    read.transpose()
}

fn unusable(message: String) -> Rejection {
    Rejection::new(Reason::InvalidStructure, Stage::Ingest, message)
}

/// A header that holds a name: not blank, and not long.
pub(crate) fn name(
    headers: Headers<'_>,
    header: &str,
    limits: &RequestLimits,
) -> Result<Option<String>, Rejection> {
    match headers.text(header, limits.name_bytes_max)? {
        Some(text) if text.trim().is_empty() => Err(invalid(header, text, "a name, or no such header")),
        found => Ok(found.map(str::to_owned)),
    }
}

/// The id that a record brings, else where it stands.
pub(crate) fn id(headers: Headers<'_>, record: &Record, limits: &RequestLimits) -> Result<String, Rejection> {
    let record_offset = &record.record_offset;
    let place = || {
        format!(
            "{}/{}/{}",
            record_offset.topic, record_offset.partition, record_offset.offset
        )
    };
    Ok(name(headers, "ce_id", limits)?.unwrap_or_else(place))
}

/// A header that says who made an id: a URI reference.
pub(super) fn source(headers: Headers<'_>, header: &str) -> Result<Option<String>, Rejection> {
    const SOURCE_BYTES_MAX: usize = 1_024;
    match headers.text(header, SOURCE_BYTES_MAX)? {
        Some(text) if text.trim().is_empty() => {
            Err(invalid(header, text, "who made the id, or no such header"))
        }
        found => Ok(found.map(str::to_owned)),
    }
}

/// What to do with the audio, and what the answer may look like: the header's words, else the task's, else
/// the configured default.
pub(crate) fn asked(
    headers: Headers<'_>,
    task: Option<&str>,
    labels: Option<&[String]>,
    limits: &RequestLimits,
    instructions: &dyn Instructions,
) -> Result<ResolvedPrompt, Rejection> {
    let own = match headers.text("ce_instruction", limits.instruction_bytes_max)? {
        Some(text) if text.trim().is_empty() => {
            return Err(invalid("ce_instruction", text, "words, or no such header"));
        }
        own => own,
    };
    let variables = TemplateVariables {
        fields: fields(headers, limits)?,
        ..TemplateVariables::default()
    };
    let Some(task) = task else {
        let instruction = own.map_or_else(|| instructions.default_instruction(), str::to_owned);
        return Ok(ResolvedPrompt::plain(instruction, labels));
    };
    let variables = match labels {
        Some(labels) => variables.with_labels(labels),
        None => variables,
    };
    instructions.of_task(task, &variables, own).map_err(|error| {
        let (reason, header) = match &error {
            TextError::UnknownTask { .. } => (Reason::UnknownTask, "ce_task"),
            TextError::Label { .. } => (Reason::InvalidLabels, "ce_labels"),
            TextError::Placeholder { .. } => (Reason::InvalidHeader, "ce_fields"),
            _ => (Reason::InvalidHeader, "ce_task"),
        };
        Rejection::new(reason, Stage::Ingest, format!("`{header}`: {error}"))
    })
}

/// Values for the placeholders of a task's prompt: `ce_fields`, a JSON object of strings.
pub(crate) fn fields(
    headers: Headers<'_>,
    limits: &RequestLimits,
) -> Result<BTreeMap<String, String>, Rejection> {
    let Some(text) = headers.text("ce_fields", limits.fields_bytes_max)? else {
        return Ok(BTreeMap::new());
    };
    let wrong = || invalid("ce_fields", text, "a JSON object whose values are strings");
    let fields: BTreeMap<String, String> = serde_json::from_str(text).map_err(|_| wrong())?;
    if fields.len() > limits.fields_max {
        let expected = format!("at most {} values", limits.fields_max);
        return Err(invalid("ce_fields", text, &expected));
    }
    Ok(fields)
}

/// Allowed answers: `ce_labels`, a JSON array of strings.
pub(crate) fn labels(headers: Headers<'_>, limits: &RequestLimits) -> Result<Option<Vec<String>>, Rejection> {
    let wrong = |message: String| Rejection::new(Reason::InvalidLabels, Stage::Ingest, message);
    let Some(text) = headers.text("ce_labels", limits.labels_bytes_max)? else {
        return Ok(None);
    };
    let labels: Vec<String> = serde_json::from_str(text)
        .map_err(|error| wrong(format!("`ce_labels` is no JSON array of strings: {error}")))?;
    if labels.is_empty() || labels.len() > limits.labels_max {
        return Err(wrong(format!(
            "`ce_labels` has {} answers, expected 1 to {}",
            labels.len(),
            limits.labels_max
        )));
    }
    let mut seen = std::collections::HashSet::new();
    for label in &labels {
        if label.trim().is_empty() {
            return Err(wrong("`ce_labels` has an empty answer".into()));
        }
        if !seen.insert(label.as_str()) {
            return Err(wrong(format!("`ce_labels` has `{}` twice", label.escape_debug())));
        }
    }
    Ok(Some(labels))
}
