//! What arrives in records: audio, headers, orders; and the templates of downloaded models.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use speechverse::audio::{self, AudioLimits};
use speechverse::text::{ChatMessage, ChatTemplate, ResolvedPrompt, TemplateVariables, TextError};
use speechverse::wire::control::Order;
use speechverse::wire::headers::Headers;
use speechverse::wire::label::Label;
use speechverse::wire::request::{Instructions, Request, RequestLimits};
use speechverse::wire::trace::TraceContext;
use speechverse::wire::{Record, RecordOffset};

/// Any container, and raw PCM of several kinds, which only the content type tells.
pub(crate) fn audio(data: &[u8]) -> bool {
    let limits = AudioLimits {
        seconds_max: 10.0,
        decoded_samples_max: 1 << 21,
        ..AudioLimits::default()
    };
    let first = data.first().copied().unwrap_or_default();
    let content_type = match first % 8 {
        0 => Some("audio/L16; rate=8000; channels=2"),
        1 => Some("audio/pcm; rate=16000; encoding=f32"),
        _ => None,
    };
    audio::decode(data, content_type, &limits).is_ok()
}

/// Requests without a catalogue of tasks.
struct Plain;

impl Instructions for Plain {
    fn of_task(
        &self,
        _names: &str,
        variables: &TemplateVariables,
        own: Option<&str>,
    ) -> Result<ResolvedPrompt, TextError> {
        let labels = variables.labels.as_ref().map(|labels| {
            let names = labels.iter().map(|label| label.name.clone());
            names.collect::<Vec<_>>()
        });
        Ok(ResolvedPrompt::plain(
            own.unwrap_or("Transcribe.").to_owned(),
            labels.as_deref(),
        ))
    }

    fn default_instruction(&self) -> String {
        "Transcribe.".to_owned()
    }
}

/// A record of any of our topics: lines `name: value` are its headers, what follows an empty line is its
/// value.
pub(crate) fn record(data: &[u8]) -> bool {
    let mut headers = Vec::new();
    let mut rest = data;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, behind) = (&rest[..end], &rest[end + 1..]);
        rest = behind;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        let value = line.get(colon + 2..).map(Bytes::copy_from_slice);
        headers.push((name, value));
    }
    let record = Record {
        record_offset: RecordOffset {
            topic: Arc::from("requests"),
            partition: 0,
            offset: 7,
            epoch: 0,
        },
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(rest)),
        headers,
        timestamp_ms: Some(1_700_000_000_000),
    };
    let limits = RequestLimits::default();
    let request = Request::parse(&record, &limits, &Plain).is_ok();
    let label = Label::parse(&record, &limits, &Plain).is_ok();
    let command = Order::parse(&record).is_ok();
    let _ = TraceContext::of(Headers::new(&record.headers), &record.record_offset);
    request || label || command
}

/// A chat template, rendered with one message.
pub(crate) fn chat_template(data: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(data) else {
        return false;
    };
    let specials = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    ChatTemplate::new(source, specials).is_ok_and(|template| {
        template
            .render(&[ChatMessage::new("user", "Hello.")], true)
            .is_ok()
    })
}
