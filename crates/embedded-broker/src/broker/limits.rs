//! Bounds that are not settings: each far above what trying, developing and testing needs, each small enough
//! that clients which misbehave cannot exhaust this process.

use std::time::Duration;

/// Bytes of a request that is not `Produce`.
pub(super) const REQUEST_BYTES_MAX: usize = 1 << 20;
/// What a `Produce` request may carry besides its largest batch: names, other small batches.
pub(super) const PRODUCE_EXTRA_BYTES_MAX: usize = 1 << 20;
/// Bytes of a request that is read only to be refused with a proper error; Kafka's own
/// `socket.request.max.bytes`.
pub(super) const REFUSED_BYTES_MAX: usize = 100 << 20;
/// Array elements and tagged fields in one request: bounds what decoding may allocate.
pub(super) const REQUEST_ELEMENTS_MAX: usize = 100_000;
/// Bytes of one fetch answer, unless its first batch alone is larger.
pub(super) const FETCH_BYTES_MAX: usize = 8 << 20;
/// Longest that a fetch waits for news, whatever the client asks.
pub(super) const FETCH_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest that the rest of a frame may take once its length has arrived, and that an answer may take to
/// leave.
pub(super) const FRAME_TIME_MAX: Duration = Duration::from_secs(60);

/// Partitions of all topics together.
pub(super) const PARTITIONS_MAX: usize = 10_000;
/// Book-keeping beside a batch's bytes, counted against the byte limits so that tiny batches are not free.
pub(super) const BATCH_OVERHEAD_BYTES: u64 = 128;
/// Producers that a partition remembers for recognising repeats; beyond it the longest silent is forgotten.
pub(super) const PRODUCERS_PER_PARTITION_MAX: usize = 1_000;
/// Batches per producer that can be recognised as repeats; the largest number a client may have in flight.
pub(super) const REPEATS_PER_PRODUCER: usize = 5;

/// Consumer groups; beyond it the longest memberless one is forgotten.
pub(super) const GROUPS_MAX: usize = 1_000;
/// Members of all groups together, and ids handed out to members that have yet to come back.
pub(super) const MEMBERS_MAX: usize = 1_000;
/// Bytes of what a member says about itself when it joins.
pub(super) const MEMBER_METADATA_BYTES_MAX: usize = 64 << 10;
/// Committed offsets of all groups together.
pub(super) const OFFSETS_MAX: usize = 100_000;
/// Bytes of the text beside a committed offset; Kafka's own limit.
pub(super) const OFFSET_METADATA_BYTES_MAX: usize = 4_096;
/// Session time-outs a member may ask for.
pub(super) const SESSION_TIMEOUT_MS: std::ops::RangeInclusive<i32> = 1_000..=1_800_000;
/// How long the first member of an empty group waits for company.
pub(super) const FIRST_JOIN_DELAY: Duration = Duration::from_millis(100);

/// Transactional ids; beyond it the longest idle one is forgotten, and its producer must start anew.
pub(super) const TRANSACTIONAL_IDS_MAX: usize = 1_000;
/// Longest transaction time-out a producer may ask for, milliseconds; Kafka's own default.
pub(super) const TRANSACTION_TIMEOUT_MS_MAX: i32 = 900_000;

/// How often deadlines are looked at: sessions, rebalances, transactions, retention by time.
pub(super) const SWEEP_EVERY: Duration = Duration::from_millis(50);
