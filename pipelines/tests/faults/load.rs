//! What is asked: requests of several callers, some with bytes that are no sound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use speechverse::util::random::SplitMix;

use crate::watch::Watch;

/// Requests that are asked and not answered, at most.
const IN_FLIGHT: usize = 40;
/// Callers who wait for an answer before they ask again.
const CONVERSATIONS: usize = 6;
/// Share of requests that belong to a conversation, where one is free.
const CONVERSATION_CHANCE: f64 = 0.25;
/// Every so many requests, one is no sound.
pub(crate) const POISON_EVERY: usize = 50;
/// Different recordings.
const CLIPS: usize = 8;
/// Share of requests that have a deadline, which nothing here should make them miss.
const DEADLINE_CHANCE: f64 = 0.1;
/// That deadline, from now on; more than the time of day jumps.
const DEADLINE: Duration = Duration::from_secs(1_800);
/// Longest that the broker may take for a record: longer than any outage here.
const SEND_MAX_MS: u64 = 300_000;

/// A request that was published.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) key: String,
    /// Which recording; `None`: no sound.
    pub(crate) clip: Option<usize>,
    /// Its place in a conversation.
    pub(crate) turn: Option<usize>,
    pub(crate) published: Instant,
}

/// Everything that was asked, by request id.
pub(crate) type AllAsked = Arc<Mutex<BTreeMap<String, Asked>>>;

/// Publishes requests.
pub(crate) struct Asker {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
    pub(crate) asked: AllAsked,
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
    pub(crate) fn new(bootstrap: &str, topic: &str) -> Self {
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
            topic: topic.to_owned(),
            asked: AllAsked::default(),
            allowed: AtomicUsize::new(0),
            has_given_up: AtomicBool::new(false),
        }
    }

    /// Publishes a record that is no request: a label, an order.
    pub(crate) fn tell(&self, topic: &str, id: &str, value: &[u8], headers: &[(&str, &str)]) {
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

    /// Publishes `count` requests as answers to earlier ones come.
    pub(crate) fn ask(&self, count: usize, watch: &Watch, mut random: SplitMix) {
        let clips: Vec<Vec<u8>> = (0..CLIPS).map(clip).collect();
        let mut conversations: Vec<(usize, Option<String>)> = vec![(0, None); CONVERSATIONS];
        for number in 0..count {
            while number >= self.allowed.load(Ordering::Relaxed) || number >= watch.count() + IN_FLIGHT {
                if self.has_given_up.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
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
            let clip = (!is_poison).then(|| random.below(CLIPS));
            let mut headers = vec![("ce_id", id.clone())];
            if random.chance(DEADLINE_CHANCE) {
                headers.push(("ce_deadline", (Timestamp::now() + DEADLINE).to_string()));
            }
            let asked = Asked {
                key: key.clone(),
                clip,
                turn,
                published: Instant::now(),
            };
            self.asked.lock().unwrap().insert(id, asked);
            let value = clip.map_or(&b"this is no sound"[..], |clip| &clips[clip]);
            self.send(&self.topic, &key, value, &headers);
        }
        self.producer.flush(Duration::from_millis(SEND_MAX_MS)).unwrap();
    }
}

/// A tone as a WAV file of 16 kHz; number and length tell recordings apart.
pub(crate) fn clip(number: usize) -> Vec<u8> {
    let samples: Vec<i16> = (0..4_000 + 800 * number)
        .map(|index| {
            let phase = index as f64 / 16_000.0 * (150.0 + 90.0 * number as f64) * std::f64::consts::TAU;
            (phase.sin() * 9_000.0) as i16
        })
        .collect();
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
