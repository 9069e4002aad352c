//! `FairQueue`: what waits for a stage, so that no key and no priority keeps the others waiting.
//!
//! Within a priority, keys take turns by audio seconds: deficit round robin. Interactive requests go before
//! bulk ones, which get a share of the seconds while both wait, so that they do not starve. What has the same
//! key and priority leaves in the order in which it came.
//!
//! Source: Shreedhar and Varghese, "Efficient fair queuing using deficit round robin" (SIGCOMM 1995).

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use speechverse::wire::request::Priority;

/// Audio seconds that a key may have ahead of the others when its turn comes: as long as most clips are.
pub const QUANTUM_SECONDS: f64 = 10.0;
/// The least that a clip counts for, seconds: the shortest one takes a prompt and an answer too.
const CLIP_SECONDS_MIN: f64 = 0.1;

/// What a queue needs to know of an item.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueEntry {
    /// Items of one key take turns with those of the others.
    pub key: Bytes,
    /// How urgent it is.
    pub priority: Priority,
    /// Length of its audio, seconds.
    pub audio_seconds: f64,
    /// After which it is late; by the clock that the queue's owner goes by.
    pub deadline: Option<Instant>,
}

/// Items that wait for a stage. Not bounded by itself: what is admitted is.
#[derive(Debug)]
pub struct FairQueue<T> {
    interactive: Lane<T>,
    bulk: Lane<T>,
    /// Seconds that a second of interactive audio earns for bulk while both wait.
    bulk_earns: f64,
    bulk_credit: f64,
}

/// The items of one priority.
#[derive(Debug)]
struct Lane<T> {
    flows: HashMap<Bytes, Flow<T>>,
    /// Keys with items, in the order of their turns; the first one's is now.
    turns: VecDeque<Bytes>,
    items: usize,
    audio_seconds: f64,
}

/// The items of one key.
#[derive(Debug)]
struct Flow<T> {
    items: VecDeque<(QueueEntry, T)>,
    /// Seconds that it may still take in its turn.
    deficit: f64,
    /// Whether this turn's quantum is in the deficit.
    in_turn: bool,
}

impl<T> FairQueue<T> {
    /// An empty queue; `bulk_share` of the seconds are bulk's while both priorities wait, 0 to below 1.
    pub fn new(bulk_share: f64) -> Self {
        Self {
            interactive: Lane::new(),
            bulk: Lane::new(),
            bulk_earns: bulk_share / (1.0 - bulk_share),
            bulk_credit: 0.0,
        }
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.interactive.items + self.bulk.items
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an item of that priority waits.
    pub fn has(&self, priority: Priority) -> bool {
        self.lane(priority).items > 0
    }

    /// Seconds of audio that wait.
    pub fn audio_seconds(&self, priority: Priority) -> f64 {
        self.lane(priority).audio_seconds
    }

    /// The earliest deadline of what waits.
    pub fn deadline(&self) -> Option<Instant> {
        let flows = self.interactive.flows.values().chain(self.bulk.flows.values());
        let entries = flows.flat_map(|flow| flow.items.iter().map(|(entry, _)| entry));
        entries.filter_map(|entry| entry.deadline).min()
    }

    /// Takes an item; it stands behind the others of its key and priority.
    pub fn push(&mut self, entry: QueueEntry, item: T) {
        self.lane_mut(entry.priority).push(entry, item);
    }

    /// The item whose turn it is, among the priorities that are `open`.
    pub fn pop(&mut self, open: impl Fn(Priority) -> bool) -> Option<T> {
        let can = |lane: &Lane<T>, priority| lane.items > 0 && open(priority);
        let interactive = can(&self.interactive, Priority::Interactive);
        let bulk = can(&self.bulk, Priority::Bulk);
        if bulk && (!interactive || self.bulk_credit >= QUANTUM_SECONDS) {
            let (seconds, item) = self.bulk.pop()?;
            if interactive {
                self.bulk_credit -= seconds;
            }
            return Some(item);
        }
        if !interactive {
            return None;
        }
        let (seconds, item) = self.interactive.pop()?;
        self.bulk_credit = match self.bulk.items {
            0 => 0.0,
            _ => self.bulk_credit + seconds * self.bulk_earns,
        };
        Some(item)
    }

    /// Takes out what is late at `now`.
    pub fn take_late(&mut self, now: Instant) -> Vec<T> {
        self.take_if(|entry, _| entry.deadline.is_some_and(|deadline| deadline <= now))
    }

    /// Takes out what `is_taken` says.
    pub fn take_if(&mut self, is_taken: impl Fn(&QueueEntry, &T) -> bool) -> Vec<T> {
        let mut taken = self.interactive.take_if(&is_taken);
        taken.append(&mut self.bulk.take_if(&is_taken));
        taken
    }

    fn lane(&self, priority: Priority) -> &Lane<T> {
        match priority {
            Priority::Interactive => &self.interactive,
            Priority::Bulk => &self.bulk,
        }
    }

    fn lane_mut(&mut self, priority: Priority) -> &mut Lane<T> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self {
            flows: HashMap::new(),
            turns: VecDeque::new(),
            items: 0,
            audio_seconds: 0.0,
        }
    }

    fn push(&mut self, entry: QueueEntry, item: T) {
        self.items += 1;
        self.audio_seconds += entry.audio_seconds;
        let key = entry.key.clone();
        let flow = self.flows.entry(key.clone()).or_insert_with(|| {
            self.turns.push_back(key);
            Flow {
                items: VecDeque::new(),
                deficit: 0.0,
                in_turn: false,
            }
        });
        flow.items.push_back((entry, item));
    }

    /// The item whose turn it is, and its seconds.
    fn pop(&mut self) -> Option<(f64, T)> {
        let mut passed_over = 0;
        loop {
            if passed_over == self.turns.len() {
                self.skip_rounds();
                passed_over = 0;
            }
            let flow = self.flows.get_mut(self.turns.front()?)?;
            if !flow.in_turn {
                flow.in_turn = true;
                flow.deficit += QUANTUM_SECONDS;
            }
            let cost = flow.cost();
            if flow.deficit < cost {
                flow.in_turn = false;
                self.turns.rotate_left(1);
                passed_over += 1;
                continue;
            }
            flow.deficit -= cost;
            let (entry, item) = flow.items.pop_front()?;
            if flow.items.is_empty() {
                // A key that comes again begins anew, behind those that wait.
                self.turns.pop_front();
                self.flows.remove(&entry.key);
            }
            self.left(&entry);
            return Some((cost, item));
        }
    }

    /// Nobody's quantum was enough in a whole round: all rounds in which that stays so pass at once.
    fn skip_rounds(&mut self) {
        let rounds = |flow: &Flow<T>| ((flow.cost() - flow.deficit) / QUANTUM_SECONDS).ceil();
        let fewest = self.flows.values().map(rounds).fold(f64::INFINITY, f64::min);
        for flow in self.flows.values_mut() {
            flow.deficit += (fewest - 1.0).max(0.0) * QUANTUM_SECONDS;
        }
    }

    fn take_if(&mut self, is_taken: impl Fn(&QueueEntry, &T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for flow in self.flows.values_mut() {
            let is_taken = |(entry, item): &(QueueEntry, T)| is_taken(entry, item);
            if flow.items.iter().any(is_taken) {
                let (gone, left) = flow.items.drain(..).partition(is_taken);
                flow.items = left;
                taken.extend(gone);
            }
        }
        for (entry, _) in &taken {
            self.left(entry);
        }
        if !taken.is_empty() {
            self.flows.retain(|_, flow| !flow.items.is_empty());
            self.turns.retain(|key| self.flows.contains_key(key));
        }
        taken.into_iter().map(|(_, item)| item).collect()
    }

    fn left(&mut self, entry: &QueueEntry) {
        self.items -= 1;
        self.audio_seconds = match self.items {
            0 => 0.0, // and no rounding errors add up
            _ => self.audio_seconds - entry.audio_seconds,
        };
    }
}

impl<T> Flow<T> {
    /// Seconds of the item that is first.
    fn cost(&self) -> f64 {
        let first = self.items.front();
        first.map_or(0.0, |(entry, _)| entry.audio_seconds.max(CLIP_SECONDS_MIN))
    }
}

#[cfg(test)]
mod tests;
