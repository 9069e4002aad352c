//! How an event lies in a record: CloudEvents 1.0, Kafka protocol binding, binary or structured mode.
//!
//! The JSON of a structured event comes from outside: the number of its attributes and of the items in a list
//! is bounded while it is read, so that it takes no more memory than its own size and its audio.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Record;
use super::attributes::Known;
use super::limits::RequestLimits;
use super::rejection::{Reason, Rejection, Stage};

/// Attributes that one event may have.
const ATTRIBUTES_MAX: usize = 256;
/// Items of one list or object among them; more than any limit of requests allows.
const ITEMS_MAX: usize = 4_096;
/// How far into a value without a content type one looks for the marks of an event, bytes.
const LOOKED_AT_BYTES: usize = 512;
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Attributes and data of a record, whichever mode it came in.
pub(super) struct Envelope {
    /// Headers that are read here, by their usual names.
    pub(super) headers: Vec<(String, Option<Bytes>)>,
    /// The audio.
    pub(super) data: Bytes,
}

/// Opens a record: binary mode as it is, structured mode unpacked into the same shape.
///
/// # Errors
/// A [`Rejection`] that says what the value is instead, or which name in it is almost one of ours.
pub(super) fn open(record: &Record, limits: &RequestLimits) -> Result<Envelope, Rejection> {
    let data = record.value.clone().unwrap_or_default();
    let mut known = Known::default();
    for (name, value) in &record.headers {
        known.header(name, value.clone())?;
    }
    let media_type = known.content_type().map(media_type);
    match media_type.as_deref() {
        Some(b"application/cloudevents+json") => structured(&data, known.without_content_type(), limits),
        Some(other) if other.starts_with(b"application/cloudevents") => Err(another_format(other)),
        declared => {
            let open_to_doubt = declared.is_none_or(|declared| declared.ends_with(b"json"));
            if open_to_doubt && looks_structured(&data) {
                return Err(wrong(
                    "the value is the JSON of a CloudEvent: send it with the header `content-type: \
                     application/cloudevents+json`, one event a record",
                ));
            }
            let headers = known.into_headers();
            Ok(Envelope { headers, data })
        }
    }
}

fn wrong(message: impl Into<String>) -> Rejection {
    Rejection::new(Reason::InvalidEnvelope, Stage::Ingest, message)
}

/// A content type in lower case without its parameters.
fn media_type(value: &[u8]) -> Vec<u8> {
    let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
    value[..end].trim_ascii().to_ascii_lowercase()
}

fn another_format(media_type: &[u8]) -> Rejection {
    let shown: String = String::from_utf8_lossy(media_type).chars().take(64).collect();
    let found = match media_type.starts_with(b"application/cloudevents-batch") {
        true => "a batch of CloudEvents: send each event as a record of its own",
        false => "a format of CloudEvents that is not read here: send JSON, or audio with `ce_` headers",
    };
    wrong(format!("content type `{}` is {found}", shown.escape_debug()))
}

/// Whether a value that nobody calls an event is the JSON of one.
fn looks_structured(data: &[u8]) -> bool {
    let text = data.strip_prefix(UTF8_MARK).unwrap_or(data).trim_ascii_start();
    let beginning = &text[..text.len().min(LOOKED_AT_BYTES)];
    let mark = b"\"specversion\"";
    matches!(beginning.first(), Some(b'{' | b'['))
        && beginning.windows(mark.len()).any(|window| window == mark)
}

fn structured(data: &[u8], mut known: Known, limits: &RequestLimits) -> Result<Envelope, Rejection> {
    if data.len() > limits.envelope_bytes_max {
        let (found, most) = (data.len(), limits.envelope_bytes_max);
        let message =
            format!("structured CloudEvent: the value has {found} bytes, at most {most} are allowed");
        return Err(Rejection::new(Reason::ValueTooLarge, Stage::Ingest, message));
    }
    if data.starts_with(b"\xff\xfe") || data.starts_with(b"\xfe\xff") {
        return Err(wrong(
            "structured CloudEvent: the value begins with a byte order mark of UTF-16, JSON is UTF-8",
        ));
    }
    let text = data.strip_prefix(UTF8_MARK).unwrap_or(data);
    let event: Event = serde_json::from_slice(text).map_err(|error| {
        let found = match text.trim_ascii_start().first() {
            Some(b'[') => "the value is a JSON array, as of a batch: send each event as a record of its own",
            _ => "the value is no JSON object",
        };
        wrong(format!("structured CloudEvent: {found}: {error}"))
    })?;
    if event.has_data {
        return Err(wrong("structured CloudEvent: audio belongs into `data_base64`"));
    }
    // What the transport says (traceparent) stays; what the envelope says comes last and counts.
    for (name, value) in event.attributes {
        let text = match value {
            Attribute::Null => continue,
            Attribute::Text(text) => text,
            // Extension attributes are scalars in CloudEvents; `labels` as a JSON array and `fields` as an
            // object are too natural to refuse.
            Attribute::List(json) if name == "labels" => json,
            Attribute::Object(json) if name == "fields" => json,
            Attribute::List(_) | Attribute::Object(_) => {
                let shown: String = name.chars().take(64).collect();
                return Err(wrong(format!(
                    "structured CloudEvent: `{}` is neither text, number nor flag",
                    shown.escape_debug()
                )));
            }
        };
        known.attribute(&name, Bytes::from(text))?;
    }
    let data = match event.data_base64 {
        Some(text) => decoded(text).map_err(|reason| wrong(format!("structured CloudEvent: {reason}")))?,
        None => Bytes::new(),
    };
    let headers = known.into_headers();
    Ok(Envelope { headers, data })
}

/// Bytes from base64 of the standard alphabet, in one line or several, with or without padding.
fn decoded(text: String) -> Result<Bytes, String> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    if text
        .trim_start()
        .get(..5)
        .is_some_and(|beginning| beginning.eq_ignore_ascii_case("data:"))
    {
        return Err(
            "`data_base64` is a data URL: send only what follows its `base64,`, and the type as `datacontenttype`".into(),
        );
    }
    let mut digits = text.into_bytes();
    digits.retain(|byte| !byte.is_ascii_whitespace());
    if digits.iter().any(|byte| matches!(byte, b'-' | b'_')) {
        return Err(
            "`data_base64` is URL-safe base64 (it has `-` or `_`): CloudEvents takes the standard alphabet with `+` and `/`"
                .into(),
        );
    }
    let bytes = ENGINE
        .decode(digits)
        .map_err(|error| format!("`data_base64` is no base64: {error}"))?;
    Ok(Bytes::from(bytes))
}

/// A structured event as it was read.
#[derive(Default)]
struct Event {
    data_base64: Option<String>,
    has_data: bool,
    attributes: Vec<(String, Attribute)>,
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EventVisitor)
    }
}

struct EventVisitor;

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
        let mut event = Event::default();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "data" => event.has_data = map.next_value::<Option<IgnoredAny>>()?.is_some(),
                "data_base64" | "database64" | "dataBase64" | "data-base64" => {
                    event.data_base64 = match map.next_value()? {
                        DataText::Null => None,
                        DataText::Text(text) => Some(text),
                    };
                }
                _ if event.attributes.len() == ATTRIBUTES_MAX => {
                    return Err(de::Error::custom(format!(
                        "it has more than {ATTRIBUTES_MAX} attributes"
                    )));
                }
                _ => event.attributes.push((name, map.next_value()?)),
            }
        }
        Ok(event)
    }
}

/// The text of `data_base64`; a number or a flag there is a mistake.
enum DataText {
    Null,
    Text(String),
}

impl<'de> Deserialize<'de> for DataText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map_or(Self::Null, Self::Text))
    }
}

/// The value of an attribute.
enum Attribute {
    Null,
    /// Text, or a number or a flag as JSON writes it.
    Text(String),
    /// The JSON of a list of scalars.
    List(String),
    /// The JSON of an object of scalars.
    Object(String),
}

impl<'de> Deserialize<'de> for Attribute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AttributeVisitor)
    }
}

struct AttributeVisitor;

impl<'de> Visitor<'de> for AttributeVisitor {
    type Value = Attribute;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, a flag, or a list or object of those")
    }

    fn visit_unit<E>(self) -> Result<Attribute, E> {
        Ok(Attribute::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Attribute, E> {
        Ok(Attribute::Text(flag.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Attribute, E> {
        Ok(Attribute::Text(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Attribute, E> {
        Ok(Attribute::Text(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Attribute, E> {
        Ok(Attribute::Text(serde_json::Value::from(number).to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Attribute, E> {
        Ok(Attribute::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Attribute, E> {
        Ok(Attribute::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Attribute, A::Error> {
        let mut items: Vec<Item> = Vec::new();
        while let Some(item) = list.next_element()? {
            few(items.len())?;
            items.push(item);
        }
        let json: Vec<&str> = items.iter().map(|item| item.0.as_ref()).collect();
        Ok(Attribute::List(format!("[{}]", json.join(","))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attribute, A::Error> {
        let mut items = Vec::new();
        while let Some((name, item)) = map.next_entry::<String, Item>()? {
            few(items.len())?;
            items.push(format!("{}:{}", quoted(&name), item.0));
        }
        Ok(Attribute::Object(format!("{{{}}}", items.join(","))))
    }
}

fn few<E: de::Error>(items: usize) -> Result<(), E> {
    match items < ITEMS_MAX {
        true => Ok(()),
        false => Err(E::custom(format!(
            "a list or an object has more than {ITEMS_MAX} items"
        ))),
    }
}

/// A scalar as JSON.
struct Item(Cow<'static, str>);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl Visitor<'_> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number or a flag")
    }

    fn visit_unit<E>(self) -> Result<Item, E> {
        Ok(Item(Cow::Borrowed("null")))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Item, E> {
        Ok(Item(Cow::Borrowed(if flag { "true" } else { "false" })))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Item, E> {
        Ok(Item(Cow::Owned(number.to_string())))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Item, E> {
        Ok(Item(Cow::Owned(number.to_string())))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Item, E> {
        Ok(Item(Cow::Owned(serde_json::Value::from(number).to_string())))
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item(Cow::Owned(quoted(text))))
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
