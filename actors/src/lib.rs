//! Who works: the cast of the serving pipeline.
//!
//! | actor | takes | sends | mailbox |
//! |---|---|---|---|
//! | [`ingest::AudioIngest`] | records of the request topic | `EncodeUtterance`, `UtteranceAdmitted`, `PublishDeadLetter` | 4 |
//! | [`encoder::Encoder`] | `EncodeUtterance` | `DecodeUtterance`, `PublishDeadLetter` | one batch |
//! | [`decoder::Decoder`] | `DecodeUtterance` | `PublishAnswer`, `PublishPartial`, `PublishDeadLetter` | its [`messages::DecoderPlaces`] |
//! | [`publisher::Publisher`] | answers, dead letters, events | records, acknowledged; releases offsets | 64 |
//! | [`collector::SampleCollector`] | records of the label topic, `UtteranceAdmitted` | `PublishDeadLetter` | 64 |
//! | [`listener::RequestListener`] | records of the request topic, where another process answers them | `UtteranceAdmitted` | 4 |
//! | [`trainer::Trainer`] | `StartCycle` | `PublishEvent` | 1 waiting cycle |
//! | [`controller::Controller`] | records of the control topic | `StartCycle`, `PublishEvent` | 4 |
//! | [`supervisor::Supervisor`] | nothing | nothing; restarts the others | 4 |
//!
//! An actor knows [`messages`] and the library, never its siblings; a pipeline introduces them.

pub mod answering;
pub mod collector;
mod context;
pub mod controller;
pub mod current;
pub mod decoder;
pub mod encoder;
pub mod fair_queue;
pub mod gate;
mod inbox;
pub mod ingest;
pub mod interrupt;
pub mod joining;
mod likely;
pub mod listener;
mod long_recording;
mod long_recordings;
pub mod messages;
mod places;
pub mod publisher;
mod question;
pub mod reading;
mod stream_audio;
pub mod streams;
mod subjects;
pub mod supervisor;
mod times;
pub mod trainer;
pub mod windows;
