//! Dead letters as they are read back, and the marks that say which of them were published again.
//!
//! A mark is a record of the dead-letter topic under its letter's key, written before the original record is
//! published again (`begun`) and after the broker has acknowledged it (`done`). A letter is known by the
//! place of its original record, so that a dead letter that a crash repeated is the same one.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dead_letter::{
    ATTEMPTS_HEADER, CONNECT_PREFIX, EARLIER_CHUNKS_HEADER, HEADERS_OMITTED_HEADER, KEY_OMITTED_HEADER,
    REASON_HEADER, REQUEST_ID_HEADER, RETRY_AFTER_HEADER, Reason, VALUE_OMITTED_HEADER, attempts,
};
use super::headers::{Headers, header};
use super::limits::RequestLimits;
use super::request::CHUNK_TYPE;
use super::{OutgoingRecord, Record, envelope};

/// `ce_type` of a mark.
pub const REDRIVE_TYPE: &str = "speechverse.redrive.v1";

/// Where a record stands, or stood.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Offset in it.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// How far the redrive of a dead letter got.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RedriveState {
    /// Its record is about to be published again. Where nothing follows, nobody knows whether it was.
    Begun,
    /// The broker has its record.
    Done,
}

/// A mark: what became of the dead letter of a record.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, JsonSchema)]
pub struct RedriveMark {
    /// The original record that the dead letter is about.
    pub record: Place,
    /// How far its redrive got.
    pub state: RedriveState,
}

impl RedriveMark {
    /// Reads a record of the dead-letter topic; `None` where it is no mark.
    pub fn read(record: &Record) -> Option<Self> {
        let headers = Headers::new(&record.headers);
        let is_mark = headers.bytes("ce_type") == Some(REDRIVE_TYPE.as_bytes())
            && headers.bytes(REASON_HEADER).is_none();
        serde_json::from_slice(record.value.as_deref().filter(|_| is_mark)?).ok()
    }

    /// The record of the dead-letter topic, beside the letter whose key is `key`.
    pub fn to_record(&self, topic: Arc<str>, key: Option<Bytes>, source: &str) -> OutgoingRecord {
        let json = serde_json::to_vec(self).expect("a mark is always JSON");
        let state = match self.state {
            RedriveState::Begun => "begun",
            RedriveState::Done => "done",
        };
        OutgoingRecord {
            topic,
            key,
            value: Some(Bytes::from(json)),
            headers: vec![
                header("ce_specversion", "1.0"),
                header("ce_type", REDRIVE_TYPE),
                header("ce_source", source),
                header("ce_id", format!("{}:redrive:{state}", self.record)),
                header("ce_time", Timestamp::now().to_string()),
                header("content-type", "application/json"),
            ],
        }
    }
}

/// A dead letter of this program.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Where its original record stood.
    pub record: Place,
    /// Why it could not be answered: a [`Reason`], of this version of the program or of another one.
    pub reason: String,
    /// Where that was found.
    pub stage: String,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// How often it was tried.
    pub attempts: u32,
    /// From when on trying again makes sense; absent where the reason does not pass by itself.
    pub retry_after: Option<Timestamp>,
    /// Id of the request, as it was answered to: of a stream's last chunk that stands for all, that of the
    /// first one; where the record had none, its place.
    pub id: String,
    /// The stream that the record is a chunk of.
    pub session: Option<String>,
    /// Earlier chunks of its stream that it stands for without holding them.
    pub earlier_chunks: u64,
    /// What of the original was left out: the broker refused the dead letter otherwise, or a stream had let
    /// go of its chunk.
    pub omitted: Vec<&'static str>,
    /// Whether the record itself says what its id is.
    has_id: bool,
    /// How many headers of the letter are its record's own.
    original_headers: usize,
}

impl DeadLetter {
    /// Reads a record of the dead-letter topic; `None` where it is no dead letter of this program.
    pub fn read(record: &Record) -> Option<Self> {
        let first_of_ours = format!("{CONNECT_PREFIX}topic");
        let original_headers = record
            .headers
            .iter()
            .rposition(|(name, _)| *name == first_of_ours)?;
        let ours = Headers::new(&record.headers[original_headers..]);
        let text = |name: &str| {
            let bytes = ours.bytes(name)?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let connect = |name: &str| text(&format!("{CONNECT_PREFIX}{name}"));
        let omitted = [
            (VALUE_OMITTED_HEADER, "value"),
            (HEADERS_OMITTED_HEADER, "headers"),
            (KEY_OMITTED_HEADER, "key"),
        ];
        let place = Place {
            topic: connect("topic")?,
            partition: connect("partition")?.parse().ok()?,
            offset: connect("offset")?.parse().ok()?,
        };
        let original = Record {
            headers: record.headers[..original_headers].to_vec(),
            ..record.clone()
        };
        // A stream lets go of chunks that it has taken up; what it says of them then is among their headers.
        let own = Headers::new(&original.headers);
        let is_let_go = record.value.is_none() && own.bytes(VALUE_OMITTED_HEADER).is_some();
        let is_omitted =
            |header: &str| ours.bytes(header).is_some() || (is_let_go && own.bytes(header).is_some());
        let attributes = match envelope::open(&original, &RequestLimits::default()) {
            Ok(envelope) => envelope.headers,
            Err(_) => original.headers.clone(), // which may be what it is a dead letter for
        };
        let attribute = |name: &str| {
            let bytes = Headers::new(&attributes).bytes(name)?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let own_id = attribute("ce_id");
        let place_id = || place.to_string();
        let is_chunk = attribute("ce_type").as_deref() == Some(CHUNK_TYPE);
        Some(Self {
            has_id: own_id.is_some(),
            id: (text(REQUEST_ID_HEADER).or(own_id)).unwrap_or_else(place_id),
            session: attribute("ce_session").filter(|_| is_chunk),
            record: place,
            reason: text(REASON_HEADER)?,
            stage: connect("stage").unwrap_or_default(),
            message: connect("exception.message").unwrap_or_default(),
            attempts: attempts(&record.headers[original_headers..]),
            retry_after: text(RETRY_AFTER_HEADER).and_then(|time| time.parse().ok()),
            earlier_chunks: text(EARLIER_CHUNKS_HEADER)
                .and_then(|number| number.parse().ok())
                .unwrap_or(0),
            omitted: omitted
                .into_iter()
                .filter(|(header, _)| is_omitted(header))
                .map(|(_, what)| what)
                .collect(),
            original_headers,
        })
    }

    /// Whether its reason may pass by itself.
    pub fn can_heal(&self) -> bool {
        Reason::named(&self.reason).is_some_and(Reason::can_heal)
    }

    /// The headers of the original record, as far as `letter`, the record that this was read from, holds
    /// them.
    pub fn own_headers<'l>(&self, letter: &'l Record) -> &'l [(String, Option<Bytes>)] {
        &letter.headers[..self.original_headers.min(letter.headers.len())]
    }

    /// The original record as its next attempt, for its original topic; `letter` is the record that this was
    /// read from. A record without an id gets the one that it had by its place, so that whoever waits for its
    /// answer knows it.
    ///
    /// # Errors
    /// What the letter lacks of its record, in words.
    pub fn original(&self, letter: &Record) -> Result<OutgoingRecord, String> {
        if !self.omitted.is_empty() {
            return Err(format!(
                "its {} was left out when the dead letter was written: send the request again from its origin",
                self.omitted.join(", ")
            ));
        }
        if self.earlier_chunks > 0 {
            return Err(format!(
                "it is the last chunk of a stream, and the {} before it are not in it: send the stream again",
                self.earlier_chunks
            ));
        }
        let own = self.own_headers(letter).iter();
        let own = own
            .filter(|(name, _)| !name.eq_ignore_ascii_case(ATTEMPTS_HEADER))
            .cloned();
        let id = (!self.has_id).then(|| header("ce_id", &*self.id));
        let attempt = header(ATTEMPTS_HEADER, self.attempts.saturating_add(1).to_string());
        Ok(OutgoingRecord {
            topic: Arc::from(self.record.topic.as_str()),
            key: letter.key.clone(),
            value: letter.value.clone(),
            headers: own.chain(id).chain([attempt]).collect(),
        })
    }
}
