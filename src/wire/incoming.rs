//! A record that comes in, with its CloudEvents attributes readable the same way in both modes.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::headers::Headers;
use super::{Reason, Record, Rejection, Stage, TraceContext};

/// Room for attributes in a structured event, beside its data.
const STRUCTURED_OVERHEAD_BYTES: usize = 1 << 20;

/// How large the parts of a record may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest value, bytes; of a structured event, its decoded data.
    pub value_bytes_max: usize,
    /// Longest instruction, bytes.
    pub instruction_bytes_max: usize,
    /// Longest target of a labelled sample, bytes.
    pub target_bytes_max: usize,
    /// Most labels.
    pub labels_max: usize,
    /// Longest single label, bytes.
    pub label_bytes_max: usize,
    /// Longest id, session or task name, bytes.
    pub id_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_bytes_max: 32 * 1024 * 1024,
            instruction_bytes_max: 8 * 1024,
            target_bytes_max: 8 * 1024,
            labels_max: 1_000,
            label_bytes_max: 512,
            id_bytes_max: 256,
        }
    }
}

/// The id of a record that brings none: `topic/partition/offset`.
pub fn default_id(record: &Record) -> String {
    let receipt = &record.receipt;
    format!("{}/{}/{}", receipt.topic, receipt.partition, receipt.offset)
}

/// A record with both modes of CloudEvents behind it.
pub(super) struct Incoming<'a> {
    record: &'a Record,
    limits: &'a Limits,
    structured: Option<Structured>,
}

/// What a structured event holds beside its attributes.
struct Structured {
    attributes: Map<String, Value>,
    data: Option<Bytes>,
}

impl<'a> Incoming<'a> {
    /// Looks at the mode, and at the sizes before anything is copied.
    pub(super) fn new(record: &'a Record, limits: &'a Limits) -> Result<Self, Rejection> {
        let content_type = match Headers(&record.headers).text("content-type") {
            Ok(content_type) => content_type.unwrap_or_default().trim(),
            Err(_) => return reject(Reason::MalformedHeader, "`content-type` is not UTF-8"),
        };
        let found = record.value.as_ref().map_or(0, Bytes::len);
        let is = |prefix: &str| {
            content_type
                .get(..prefix.len())
                .is_some_and(|it| it.eq_ignore_ascii_case(prefix))
        };
        if is("application/cloudevents-batch") {
            return reject(
                Reason::MalformedEvent,
                "batches of events are not read: send one by one",
            );
        }
        if !is("application/cloudevents") {
            too_large(found, limits.value_bytes_max)?;
            return Ok(Self {
                record,
                limits,
                structured: None,
            });
        }
        let base64_bytes_max = limits.value_bytes_max / 3 * 4 + 4;
        too_large(found, base64_bytes_max + STRUCTURED_OVERHEAD_BYTES)?;
        let value = record.value.as_deref().unwrap_or_default();
        let structured = Structured::parse(value)?;
        too_large(
            structured.data.as_ref().map_or(0, Bytes::len),
            limits.value_bytes_max,
        )?;
        Ok(Self {
            record,
            limits,
            structured: Some(structured),
        })
    }

    /// The event's data; `None` when there is none or it has no bytes.
    pub(super) fn data(&self) -> Option<Bytes> {
        let data = match &self.structured {
            Some(structured) => structured.data.clone(),
            None => self.record.value.clone(),
        };
        data.filter(|data| !data.is_empty())
    }

    /// The type of the data.
    pub(super) fn content_type(&self) -> Result<Option<String>, Rejection> {
        let found = match &self.structured {
            Some(_) => self.attribute("datacontenttype")?,
            None => self.header("content-type")?.map(Cow::Borrowed),
        };
        Ok(found.map(Cow::into_owned))
    }

    /// An attribute, `None` when it is absent or empty.
    pub(super) fn attribute(&self, name: &str) -> Result<Option<Cow<'_, str>>, Rejection> {
        let found = match &self.structured {
            Some(structured) => structured.attribute(name)?,
            None => self.header(&format!("ce_{name}"))?.map(Cow::Borrowed),
        };
        Ok(found.filter(|value| !value.is_empty()))
    }

    fn header(&self, name: &str) -> Result<Option<&'a str>, Rejection> {
        let found = Headers(&self.record.headers)
            .text(name)
            .map_err(|_| rejection(Reason::MalformedHeader, format!("`{name}` is not UTF-8")))?;
        Ok(found.filter(|value| !value.is_empty()))
    }

    /// The event's id, or the record's place.
    pub(super) fn id(&self) -> Result<String, Rejection> {
        Ok(self.name("id")?.unwrap_or_else(|| default_id(self.record)))
    }

    /// A short name: an id, a session, a task. No control characters, so that it can stand in headers and logs.
    pub(super) fn name(&self, name: &str) -> Result<Option<String>, Rejection> {
        let Some(value) = self.attribute(name)? else {
            return Ok(None);
        };
        let (found, most) = (value.len(), self.limits.id_bytes_max);
        if found > most {
            let message = format!("`ce_{name}` has {found} bytes, at most {most} are allowed");
            return reject(Reason::MalformedHeader, message);
        }
        if value.chars().any(char::is_control) {
            let message = format!("`ce_{name}` holds control characters");
            return reject(Reason::MalformedHeader, message);
        }
        Ok(Some(value.into_owned()))
    }

    /// A whole number.
    pub(super) fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>, Rejection> {
        let Some(value) = self.attribute(name)? else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => self.makes_no_sense(name, &value, "a whole number"),
        }
    }

    /// `true` or `false`, also written `yes`, `no`, `1`, `0`.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Rejection> {
        let Some(value) = self.attribute(name)? else {
            return Ok(None);
        };
        match value.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" => Ok(Some(true)),
            "false" | "no" | "0" => Ok(Some(false)),
            _ => self.makes_no_sense(name, &value, "`true` or `false`"),
        }
    }

    /// A point in time, RFC 3339.
    pub(super) fn time(&self, name: &str) -> Result<Option<Timestamp>, Rejection> {
        let Some(value) = self.attribute(name)? else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(time) => Ok(Some(time)),
            Err(_) => self.makes_no_sense(name, &value, "a time such as `2030-01-31T12:00:00Z`"),
        }
    }

    /// `ce_labels`: a JSON array of distinct texts.
    pub(super) fn labels(&self) -> Result<Option<Vec<String>>, Rejection> {
        let malformed = |message: String| reject(Reason::MalformedLabels, message);
        let Some(text) = self.attribute("labels")? else {
            return Ok(None);
        };
        let Limits {
            labels_max,
            label_bytes_max,
            ..
        } = *self.limits;
        if text.len() > labels_max.saturating_mul(label_bytes_max + 8) {
            return malformed(format!("`ce_labels` has {} bytes", text.len()));
        }
        let labels: Vec<String> = match serde_json::from_str(&text) {
            Ok(labels) => labels,
            Err(error) => {
                return malformed(format!("`ce_labels` is no JSON array of strings: {error}"));
            }
        };
        if labels.is_empty() || labels.len() > labels_max {
            let found = labels.len();
            return malformed(format!(
                "`ce_labels` has {found} labels, expected 1 to {labels_max}"
            ));
        }
        let mut sorted: Vec<&str> = labels.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return malformed("`ce_labels` holds a label twice".to_owned());
        }
        if labels
            .iter()
            .any(|label| label.trim().is_empty() || label.len() > label_bytes_max)
        {
            return malformed(format!(
                "`ce_labels` holds a label that is empty or has more than {label_bytes_max} bytes"
            ));
        }
        Ok(Some(labels))
    }

    /// The instruction, whose faults have reasons of their own.
    pub(super) fn instruction(&self) -> Result<Option<String>, Rejection> {
        let most = self.limits.instruction_bytes_max;
        self.long_text(
            "instruction",
            most,
            Reason::InstructionTooLong,
            Reason::InstructionNotUtf8,
        )
    }

    /// The target of a labelled sample.
    pub(super) fn target(&self) -> Result<Option<String>, Rejection> {
        let most = self.limits.target_bytes_max;
        self.long_text(
            "target",
            most,
            Reason::TargetTooLong,
            Reason::MalformedHeader,
        )
    }

    fn long_text(
        &self,
        name: &str,
        most: usize,
        too_long: Reason,
        not_utf8: Reason,
    ) -> Result<Option<String>, Rejection> {
        let raw = match &self.structured {
            Some(_) => None,
            None => Headers(&self.record.headers).get(&format!("ce_{name}")),
        };
        let check = |found: usize| {
            if found > most {
                let message = format!("`ce_{name}` has {found} bytes, at most {most} are allowed");
                return reject(too_long, message);
            }
            Ok(())
        };
        if let Some(raw) = raw {
            check(raw.len())?;
            if std::str::from_utf8(raw).is_err() {
                return reject(not_utf8, format!("`ce_{name}` is not UTF-8"));
            }
        }
        let Some(value) = self.attribute(name)? else {
            return Ok(None);
        };
        check(value.len())?;
        let value = value.trim();
        Ok((!value.is_empty()).then(|| value.to_owned()))
    }

    /// Refuses a `ce_specversion` other than 1.0; most minimal clients send none.
    pub(super) fn check_version(&self) -> Result<(), Rejection> {
        match self.attribute("specversion")? {
            Some(version) if version != "1.0" => {
                self.makes_no_sense("specversion", &version, "`1.0`")
            }
            _ => Ok(()),
        }
    }

    /// A span of this program in the sender's trace, or in a new one.
    pub(super) fn trace(&self) -> TraceContext {
        let by_attribute = || {
            let parent = TraceContext::parse(&self.attribute("traceparent").ok()??)?;
            Some(parent.with_state(self.attribute("tracestate").ok().flatten().as_deref()))
        };
        let parent = TraceContext::from_headers(Headers(&self.record.headers));
        match parent.or_else(by_attribute) {
            Some(parent) => parent.child(),
            None => TraceContext::begin(),
        }
    }

    fn makes_no_sense<T>(&self, name: &str, value: &str, expected: &str) -> Result<T, Rejection> {
        let found: String = value.chars().take(60).collect();
        let found = found.escape_debug();
        reject(
            Reason::MalformedHeader,
            format!("`ce_{name}` is `{found}`, expected {expected}"),
        )
    }
}

impl Structured {
    fn parse(value: &[u8]) -> Result<Self, Rejection> {
        let mut attributes: Map<String, Value> =
            serde_json::from_slice(value).map_err(|error| {
                rejection(
                    Reason::MalformedEvent,
                    format!("the value is no JSON object: {error}"),
                )
            })?;
        let data = match (attributes.remove("data_base64"), attributes.remove("data")) {
            (None | Some(Value::Null), None | Some(Value::Null)) => None,
            (Some(Value::String(text)), None) => match BASE64.decode(text) {
                Ok(data) => Some(Bytes::from(data)),
                Err(error) => {
                    let message = format!("`data_base64` is no base64: {error}");
                    return reject(Reason::MalformedEvent, message);
                }
            },
            // JSON data stands as it is; of anything else, text is the only other thing that `data` can be.
            (None, Some(Value::String(text))) => Some(Bytes::from(text)),
            (None, Some(data)) => Some(Bytes::from(data.to_string())),
            _ => {
                let message = "expected a text in `data_base64`, or `data`, and not both";
                return reject(Reason::MalformedEvent, message);
            }
        };
        Ok(Self { attributes, data })
    }

    fn attribute(&self, name: &str) -> Result<Option<Cow<'_, str>>, Rejection> {
        Ok(Some(match self.attributes.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
            Some(Value::Bool(flag)) => Cow::Borrowed(if *flag { "true" } else { "false" }),
            Some(Value::Number(number)) => Cow::Owned(number.to_string()),
            // Not CloudEvents, which has no arrays, but what everybody would write.
            Some(array @ Value::Array(_)) if name == "labels" => Cow::Owned(array.to_string()),
            Some(_) => {
                let message = format!("`{name}` is no text, number or boolean");
                return reject(Reason::MalformedEvent, message);
            }
        }))
    }
}

fn too_large(found: usize, most: usize) -> Result<(), Rejection> {
    if found > most {
        let message = format!("the value has {found} bytes, at most {most} are allowed");
        return reject(Reason::ValueTooLarge, message);
    }
    Ok(())
}

pub(super) fn rejection(reason: Reason, message: impl Into<String>) -> Rejection {
    Rejection::new(reason, Stage::Parse, message)
}

pub(super) fn reject<T>(reason: Reason, message: impl Into<String>) -> Result<T, Rejection> {
    Err(rejection(reason, message))
}
