//! What is asked: requests of several callers, whole recordings and streams, some that cannot be answered;
//! and labelled samples beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use speechverse::util::random::SplitMix;

use crate::watch::{BrokerRestorer, Watch};

/// Requests that are asked and not answered, at most.
const IN_FLIGHT: usize = 40;
/// Callers who wait for an answer before they ask again.
const CONVERSATIONS: usize = 6;
/// Share of requests that belong to a conversation, where one is free.
const CONVERSATION_CHANCE: f64 = 0.25;
/// Every so many requests, one cannot be answered: no sound, or a stream without its second chunk.
pub(crate) const POISON_EVERY: usize = 50;
/// Every so many requests, a labelled sample comes beside them.
const LABEL_EVERY: usize = 40;
/// Share of requests that come as streams, and of those that want partial answers too.
const STREAM_CHANCE: f64 = 0.1;
const PARTIALS_CHANCE: f64 = 0.5;
/// Share of requests that may wait while there are others.
const BULK_CHANCE: f64 = 0.2;
/// Bytes of a chunk: 0.32 s.
const CHUNK_BYTES: usize = 10_240;
/// Different recordings.
const CLIPS: usize = 8;
/// Share of requests that have a deadline, which nothing here should make them miss.
const DEADLINE_CHANCE: f64 = 0.1;
/// That deadline, from now on; more than the time of day jumps.
const DEADLINE: Duration = Duration::from_secs(1_800);
/// Longest that the broker may take for a record: longer than any outage here.
const SEND_MAX_MS: u64 = 300_000;

/// In which form a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// A recording, by its number.
    Whole(usize),
    /// A stream of so many chunks about a recording.
    Stream {
        clip: usize,
        chunks: usize,
        /// Partial answers are wanted: what they confirmed begins the answer, and when they came decides it.
        partials: bool,
    },
    /// Bytes that are no sound.
    NoSound,
    /// A stream of so many chunks, one of which is missing.
    Broken { chunks: usize },
}

impl Form {
    /// Records of it, each of which is a dead letter where it cannot be answered.
    pub(crate) fn records(self) -> usize {
        match self {
            Self::Whole(_) | Self::NoSound => 1,
            Self::Stream { chunks, .. } | Self::Broken { chunks } => chunks,
        }
    }
}

/// A request that was published.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) key: String,
    pub(crate) form: Form,
    /// Its place in a conversation.
    pub(crate) turn: Option<usize>,
    pub(crate) published: Instant,
}

/// Everything that was asked, by request id.
pub(crate) type AllAsked = Arc<Mutex<BTreeMap<String, Asked>>>;

/// Publishes requests.
pub(crate) struct Asker {
    producer: ThreadedProducer<DefaultProducerContext>,
    bootstrap: String,
    topic: String,
    pub(crate) asked: AllAsked,
    /// Ids of labels and orders.
    pub(crate) others: Mutex<BTreeSet<String>>,
    labels_topic: String,
    /// How many requests may be asked by now, so that there are some left for every fault.
    pub(crate) allowed: AtomicUsize,
    has_given_up: AtomicBool,
}

/// Ends the asking when it goes: nobody answers any more.
pub(crate) struct GiveUp<'a>(pub(crate) &'a Asker);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.has_given_up.store(true, Ordering::Relaxed);
    }
}

impl Asker {
    pub(crate) fn new(bootstrap: &str, topic: &str, labels_topic: &str) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("broker.address.family", "v4")
            .set("enable.idempotence", "true") // the suite itself must not ask twice
            .set("message.timeout.ms", SEND_MAX_MS.to_string())
            .set("reconnect.backoff.max.ms", "500")
            .set("linger.ms", "1")
            .create()
            .unwrap();
        Self {
            producer,
            bootstrap: bootstrap.to_owned(),
            topic: topic.to_owned(),
            asked: AllAsked::default(),
            others: Mutex::default(),
            labels_topic: labels_topic.to_owned(),
            allowed: AtomicUsize::new(0),
            has_given_up: AtomicBool::new(false),
        }
    }

    /// Publishes a labelled sample with sound of its own: the same again would not be stored.
    pub(crate) fn label(&self) {
        let mut others = self.others.lock().unwrap();
        let number = others.len();
        let id = format!("label-{number}");
        others.insert(id.clone());
        drop(others);
        let headers = [("ce_task", "asr"), ("ce_target", "a tone")];
        self.tell(&self.labels_topic, &id, &clip(CLIPS + number), &headers);
    }

    /// Publishes a record that is no request: a label, an order.
    pub(crate) fn tell(&self, topic: &str, id: &str, value: &[u8], headers: &[(&str, &str)]) {
        self.others.lock().unwrap().insert(id.to_owned());
        let mut all = vec![("ce_id", id.to_owned())];
        all.extend(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
        self.send(topic, id, value, &all);
    }

    fn send(&self, topic: &str, key: &str, value: &[u8], headers: &[(&str, String)]) {
        let mut native = OwnedHeaders::new();
        for (name, value) in headers {
            native = native.insert(Header {
                key: name,
                value: Some(value),
            });
        }
        let record = BaseRecord::to(topic).key(key).payload(value).headers(native);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    /// Publishes a stream; the chunk with the number `missing` does not come.
    fn send_chunks(&self, key: &str, samples: &[u8], missing: Option<usize>, headers: &[(&str, String)]) {
        let last = samples.chunks(CHUNK_BYTES).len() - 1;
        for (number, chunk) in samples.chunks(CHUNK_BYTES).enumerate() {
            if Some(number) == missing {
                continue;
            }
            let mut all = headers.to_vec();
            all.extend([
                ("ce_type", "speechverse.chunk.v1".to_owned()),
                ("content-type", "audio/L16;rate=16000;channels=1".to_owned()),
                ("ce_task", "asr".to_owned()),
                ("ce_session", format!("stream of {}", headers[0].1)),
                ("ce_sequence", number.to_string()),
                ("ce_final", (number == last).to_string()),
            ]);
            self.send(&self.topic, key, chunk, &all);
        }
    }

    /// Publishes `count` requests as answers to earlier ones come.
    pub(crate) fn ask(&self, count: usize, watch: &Watch, mut random: SplitMix) {
        let clips: Vec<Vec<u8>> = (0..CLIPS).map(clip).collect();
        let streams: Vec<Vec<u8>> = (0..CLIPS).map(stream).collect();
        let mut restorer = BrokerRestorer::new(&self.bootstrap);
        let mut conversations: Vec<(usize, Option<String>)> = vec![(0, None); CONVERSATIONS];
        for number in 0..count {
            while number >= self.allowed.load(Ordering::Relaxed) || number >= watch.count() + IN_FLIGHT {
                if self.has_given_up.load(Ordering::Relaxed) {
                    return;
                }
                restorer.look_at(self.producer.client());
                std::thread::sleep(Duration::from_millis(2));
            }
            restorer.reset();
            let id = format!("r{number}");
            let is_poison = number % POISON_EVERY == POISON_EVERY - 1;
            let caller = random.below(CONVERSATIONS);
            let (turns, last) = &mut conversations[caller];
            let is_free = last.as_ref().is_none_or(|last| watch.arrival(last).is_some());
            let in_conversation = !is_poison && is_free && random.chance(CONVERSATION_CHANCE);
            let (key, turn) = match in_conversation {
                true => {
                    *turns += 1;
                    *last = Some(id.clone());
                    (format!("conversation {caller}"), Some(*turns))
                }
                false => (format!("key {}", random.below(30)), None),
            };
            let clip = random.below(CLIPS);
            let chunks = streams[clip].chunks(CHUNK_BYTES).len();
            let form = match (
                is_poison,
                random.chance(if is_poison { 0.5 } else { STREAM_CHANCE }),
            ) {
                (true, true) => Form::Broken { chunks: chunks - 1 },
                (true, false) => Form::NoSound,
                (false, true) => Form::Stream {
                    clip,
                    chunks,
                    partials: random.chance(PARTIALS_CHANCE),
                },
                (false, false) => Form::Whole(clip),
            };
            let mut headers = vec![("ce_id", id.clone())];
            if random.chance(BULK_CHANCE) {
                headers.push(("ce_priority", "bulk".to_owned()));
            }
            if random.chance(DEADLINE_CHANCE) {
                headers.push(("ce_deadline", (Timestamp::now() + DEADLINE).to_string()));
            }
            let asked = Asked {
                key: key.clone(),
                form,
                turn,
                published: Instant::now(),
            };
            self.asked.lock().unwrap().insert(id, asked);
            match form {
                Form::Whole(clip) => self.send(&self.topic, &key, &clips[clip], &headers),
                Form::NoSound => self.send(&self.topic, &key, b"this is no sound", &headers),
                Form::Stream { partials, .. } => {
                    headers.push(("ce_partials", partials.to_string()));
                    self.send_chunks(&key, &streams[clip], None, &headers);
                }
                Form::Broken { .. } => self.send_chunks(&key, &streams[clip], Some(1), &headers),
            }
            if number % LABEL_EVERY == 0 {
                self.label();
            }
        }
        self.producer.flush(Duration::from_millis(SEND_MAX_MS)).unwrap();
    }
}

/// A tone of 16 kHz; number and length tell recordings apart.
fn tone(number: usize) -> Vec<i16> {
    let (length, pitch) = (4_000 + 800 * (number % 40), 150.0 + 90.0 * (number % 40) as f64);
    let level = 9_000.0 + (number / 40) as f64;
    let samples = (0..length).map(|index| {
        let phase = index as f64 / 16_000.0 * pitch * std::f64::consts::TAU;
        (phase.sin() * level) as i16
    });
    samples.collect()
}

/// Two tones with silence between and behind them, as big-endian samples of 16 bits.
fn stream(number: usize) -> Vec<u8> {
    let silence = vec![0; 11_200]; // longer than the pause that ends an utterance
    let samples = [tone(number), silence.clone(), tone(number + 1), silence].concat();
    samples.into_iter().flat_map(i16::to_be_bytes).collect()
}

/// A tone as a WAV file.
fn clip(number: usize) -> Vec<u8> {
    let samples = tone(number);
    let bytes = 2 * samples.len() as u32;
    let mut wav = Vec::new();
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + bytes).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    for field in [16_u32, 0x0001_0001, 16_000, 32_000, 0x0010_0002] {
        wav.extend_from_slice(&field.to_le_bytes());
    }
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&bytes.to_le_bytes());
    samples
        .iter()
        .for_each(|sample| wav.extend_from_slice(&sample.to_le_bytes()));
    wav
}
