//! What arrives in records: audio, headers, orders; and the templates of downloaded models.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use speechverse::audio::{self, AudioLimits};
use speechverse::text::{ChatMessage, ChatTemplate, ResolvedPrompt, TemplateVariables, TextError};
use speechverse::util::Clock;
use speechverse::wire::control::Order;
use speechverse::wire::headers::Headers;
use speechverse::wire::label::Label;
use speechverse::wire::request::{Instructions, Request, RequestLimits};
use speechverse::wire::trace::TraceContext;
use speechverse::wire::{Record, RecordOffset};
use speechverse_actors::streams::{StreamLimits, Streams, Taken};

/// Sound that comes in chunks, whose length the last byte says.
pub(crate) fn audio_stream(data: &[u8]) -> bool {
    let limits = AudioLimits {
        seconds_max: 20.0,
        decoded_samples_max: 1 << 22,
        ..AudioLimits::default()
    };
    let size = data.last().map_or(1, |last| 1 + 16 * usize::from(*last));
    let mut stream = audio::StreamDecoder::new(None, &limits);
    data.chunks(size).all(|chunk| stream.push(chunk).is_ok()) && stream.finish().is_ok()
}

/// Any container, and raw PCM of several kinds, which only the content type says.
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

/// Lines `name: value` are a record's headers, what follows an empty line is its value.
fn record_of(data: &[u8], offset: i64) -> Record {
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
    Record {
        record_offset: RecordOffset {
            topic: Arc::from("requests"),
            partition: 0,
            offset,
            epoch: 0,
        },
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(rest)),
        headers,
        timestamp_ms: Some(1_700_000_000_000),
    }
}

/// A record of any of our topics.
pub(crate) fn record(data: &[u8]) -> bool {
    let record = record_of(data, 7);
    let limits = RequestLimits::default();
    let request = Request::parse(&record, &limits, &Plain).is_ok();
    let label = Label::parse(&record, &limits, &Plain).is_ok();
    let command = Order::parse(&record).is_ok();
    let _ = TraceContext::of(Headers::new(&record.headers), &record.record_offset);
    request || label || command
}

/// What stands between two records of [`chunks`].
const BETWEEN: &[u8] = b"\n==\n";

/// Records one behind the other, chunks of streams among them: each record has exactly one end.
pub(crate) fn chunks(data: &[u8]) -> bool {
    let limits = StreamLimits {
        streams_max: 64,
        idle: Duration::from_secs(60),
        kept_bytes_max: 1 << 10,
        chunks_max: 256,
    };
    let mut streams = Streams::new(limits, Clock::system());
    let (mut taken, mut ended, mut whole) = (0, 0, false);
    let mut rest = data;
    while !rest.is_empty() {
        let end = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        let record = record_of(&rest[..end.unwrap_or(rest.len())], taken);
        rest = end.map_or(&[][..], |end| &rest[end + BETWEEN.len()..]);
        let Ok(request) = Request::parse(&record, &RequestLimits::default(), &Plain) else {
            continue;
        };
        taken += 1;
        match streams.take(record, request) {
            Taken::Next(next) => {
                if let Some(place) = streams.state(&next.name) {
                    *place = Some(());
                }
                streams.let_go(&next.name);
                if next.is_final
                    && let Some(complete) = streams.complete(&next.name)
                {
                    ended += complete.earlier.len() + 1;
                    whole = true;
                }
            }
            Taken::Repeated(_) => ended += 1,
            Taken::Broken(records, _) => ended += records.len(),
        }
    }
    ended += streams.take_all().count();
    assert_eq!(i64::try_from(ended), Ok(taken), "every chunk has an end");
    whole
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
