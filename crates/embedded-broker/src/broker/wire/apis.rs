//! The requests this broker answers: which versions, and what they look like.
//!
//! The newest versions stay below those that name topics by id, which keeps the broker small; every client
//! since Kafka 2.1 finds what it needs here.

use kafka_protocol::messages::ApiKey;

use super::shape::{Field, Kind, Shape};

/// One request type as this broker understands it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api {
    /// Which request.
    pub(crate) key: ApiKey,
    /// Oldest version that is answered.
    pub(crate) oldest: i16,
    /// Newest version that is answered.
    pub(crate) newest: i16,
    /// What its bytes look like.
    pub(crate) shape: Shape,
}

impl Api {
    /// Finds a request type by its number on the wire.
    pub(crate) fn find(key: i16) -> Option<&'static Api> {
        APIS.iter().find(|api| api.key as i16 == key)
    }

    /// Whether this version is answered.
    pub(crate) fn speaks(&self, version: i16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

const BYTE: Kind = Kind::Fixed(1);
const INT16: Kind = Kind::Fixed(2);
const INT32: Kind = Kind::Fixed(4);
const INT64: Kind = Kind::Fixed(8);
const NUMBERS: Kind = Kind::Items(&Field::always(INT32));
const TEXTS: Kind = Kind::Items(&Field::always(Kind::Text));

const fn shape(flexible_since: i16, fields: &'static [Field]) -> Shape {
    Shape {
        flexible_since,
        reserved_tags: 0,
        fields,
    }
}

const fn api(key: ApiKey, oldest: i16, newest: i16, shape: Shape) -> Api {
    Api {
        key,
        oldest,
        newest,
        shape,
    }
}

use Field as F;

/// Everything this broker answers, in the order in which it is announced.
pub(crate) const APIS: &[Api] = &[
    api(ApiKey::Produce, 3, 9, shape(9, PRODUCE)),
    api(
        ApiKey::Fetch,
        4,
        12,
        // Tag 0 is the cluster id and tag 1 the replica's state: both are for followers.
        Shape {
            flexible_since: 12,
            reserved_tags: 2,
            fields: FETCH,
        },
    ),
    api(ApiKey::ListOffsets, 1, 6, shape(6, LIST_OFFSETS)),
    api(ApiKey::Metadata, 0, 9, shape(9, METADATA)),
    api(ApiKey::OffsetCommit, 2, 8, shape(8, OFFSET_COMMIT)),
    api(ApiKey::OffsetFetch, 1, 7, shape(6, OFFSET_FETCH)),
    api(ApiKey::FindCoordinator, 0, 3, shape(3, FIND_COORDINATOR)),
    api(ApiKey::JoinGroup, 2, 7, shape(6, JOIN_GROUP)),
    api(ApiKey::Heartbeat, 0, 4, shape(4, HEARTBEAT)),
    api(ApiKey::LeaveGroup, 0, 4, shape(4, LEAVE_GROUP)),
    api(ApiKey::SyncGroup, 0, 5, shape(4, SYNC_GROUP)),
    api(ApiKey::DescribeGroups, 0, 5, shape(5, DESCRIBE_GROUPS)),
    api(ApiKey::ListGroups, 0, 4, shape(3, LIST_GROUPS)),
    api(ApiKey::ApiVersions, 0, 3, shape(3, API_VERSIONS)),
    api(ApiKey::CreateTopics, 2, 5, shape(5, CREATE_TOPICS)),
    api(ApiKey::DeleteTopics, 1, 5, shape(4, DELETE_TOPICS)),
    api(ApiKey::InitProducerId, 0, 4, shape(2, INIT_PRODUCER_ID)),
    api(ApiKey::AddPartitionsToTxn, 0, 3, shape(3, ADD_PARTITIONS_TO_TXN)),
    api(ApiKey::AddOffsetsToTxn, 0, 3, shape(3, ADD_OFFSETS_TO_TXN)),
    api(ApiKey::EndTxn, 0, 3, shape(3, END_TXN)),
    api(ApiKey::TxnOffsetCommit, 0, 3, shape(3, TXN_OFFSET_COMMIT)),
    api(ApiKey::DescribeConfigs, 1, 4, shape(4, DESCRIBE_CONFIGS)),
];

const PRODUCE: &[Field] = &[
    F::always(Kind::Text), // transactional id
    F::always(INT16),      // acks
    F::always(INT32),      // time-out
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(Kind::Structs(&[
            F::always(INT32),      // partition
            F::always(Kind::Blob), // records
        ])),
    ])),
];

const FETCH: &[Field] = &[
    F::always(INT32),   // replica
    F::always(INT32),   // longest wait
    F::always(INT32),   // least bytes
    F::always(INT32),   // most bytes
    F::always(BYTE),    // isolation level
    F::since(7, INT32), // session
    F::since(7, INT32), // session epoch
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(Kind::Structs(&[
            F::always(INT32),    // partition
            F::since(9, INT32),  // leader epoch
            F::always(INT64),    // offset
            F::since(12, INT32), // last fetched epoch
            F::since(5, INT64),  // log start
            F::always(INT32),    // most bytes
        ])),
    ])),
    F::since(
        7,
        Kind::Structs(&[
            F::always(Kind::Text), // forgotten topic
            F::always(NUMBERS),    // its partitions
        ]),
    ),
    F::since(11, Kind::Text), // rack
];

const LIST_OFFSETS: &[Field] = &[
    F::always(INT32),  // replica
    F::since(2, BYTE), // isolation level
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(Kind::Structs(&[
            F::always(INT32),   // partition
            F::since(4, INT32), // leader epoch
            F::always(INT64),   // time
        ])),
    ])),
];

const METADATA: &[Field] = &[
    F::always(Kind::Structs(&[F::always(Kind::Text)])), // topics
    F::since(4, BYTE),                                  // create what is missing
    F::since(8, BYTE),                                  // tell the cluster's permissions
    F::since(8, BYTE),                                  // tell the topics' permissions
];

const OFFSET_COMMIT: &[Field] = &[
    F::always(Kind::Text),   // group
    F::always(INT32),        // generation
    F::always(Kind::Text),   // member
    F::since(7, Kind::Text), // instance
    F::until(4, INT64),      // retention
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(Kind::Structs(&[
            F::always(INT32),      // partition
            F::always(INT64),      // offset
            F::since(6, INT32),    // leader epoch
            F::always(Kind::Text), // metadata
        ])),
    ])),
];

const OFFSET_FETCH: &[Field] = &[
    F::always(Kind::Text), // group
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(NUMBERS),    // partitions
    ])),
    F::since(7, BYTE), // only what no transaction may still change
];

const FIND_COORDINATOR: &[Field] = &[
    F::always(Kind::Text), // group or transactional id
    F::since(1, BYTE),     // which of the two
];

const JOIN_GROUP: &[Field] = &[
    F::always(Kind::Text),   // group
    F::always(INT32),        // session time-out
    F::since(1, INT32),      // rebalance time-out
    F::always(Kind::Text),   // member
    F::since(5, Kind::Text), // instance
    F::always(Kind::Text),   // protocol type
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // protocol
        F::always(Kind::Blob), // metadata
    ])),
];

const HEARTBEAT: &[Field] = &[
    F::always(Kind::Text),   // group
    F::always(INT32),        // generation
    F::always(Kind::Text),   // member
    F::since(3, Kind::Text), // instance
];

const LEAVE_GROUP: &[Field] = &[
    F::always(Kind::Text),   // group
    F::until(2, Kind::Text), // member
    F::since(
        3,
        Kind::Structs(&[
            F::always(Kind::Text), // member
            F::always(Kind::Text), // instance
        ]),
    ),
];

const SYNC_GROUP: &[Field] = &[
    F::always(Kind::Text),   // group
    F::always(INT32),        // generation
    F::always(Kind::Text),   // member
    F::since(3, Kind::Text), // instance
    F::since(5, Kind::Text), // protocol type
    F::since(5, Kind::Text), // protocol
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // member
        F::always(Kind::Blob), // assignment
    ])),
];

const DESCRIBE_GROUPS: &[Field] = &[
    F::always(TEXTS),  // groups
    F::since(3, BYTE), // tell permissions
];

const LIST_GROUPS: &[Field] = &[F::since(4, TEXTS)]; // states

const API_VERSIONS: &[Field] = &[
    F::since(3, Kind::Text), // the client's name
    F::since(3, Kind::Text), // the client's version
];

const CREATE_TOPICS: &[Field] = &[
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(INT32),      // partitions
        F::always(INT16),      // replicas
        F::always(Kind::Structs(&[
            F::always(INT32),   // partition
            F::always(NUMBERS), // its brokers
        ])),
        F::always(Kind::Structs(&[
            F::always(Kind::Text), // setting
            F::always(Kind::Text), // value
        ])),
    ])),
    F::always(INT32), // time-out
    F::always(BYTE),  // only check
];

const DELETE_TOPICS: &[Field] = &[
    F::always(TEXTS), // topics
    F::always(INT32), // time-out
];

const INIT_PRODUCER_ID: &[Field] = &[
    F::always(Kind::Text), // transactional id
    F::always(INT32),      // transaction time-out
    F::since(3, INT64),    // producer
    F::since(3, INT16),    // epoch
];

const ADD_PARTITIONS_TO_TXN: &[Field] = &[
    F::always(Kind::Text), // transactional id
    F::always(INT64),      // producer
    F::always(INT16),      // epoch
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(NUMBERS),    // partitions
    ])),
];

const ADD_OFFSETS_TO_TXN: &[Field] = &[
    F::always(Kind::Text), // transactional id
    F::always(INT64),      // producer
    F::always(INT16),      // epoch
    F::always(Kind::Text), // group
];

const END_TXN: &[Field] = &[
    F::always(Kind::Text), // transactional id
    F::always(INT64),      // producer
    F::always(INT16),      // epoch
    F::always(BYTE),       // commit
];

const TXN_OFFSET_COMMIT: &[Field] = &[
    F::always(Kind::Text),   // transactional id
    F::always(Kind::Text),   // group
    F::always(INT64),        // producer
    F::always(INT16),        // epoch
    F::since(3, INT32),      // generation
    F::since(3, Kind::Text), // member
    F::since(3, Kind::Text), // instance
    F::always(Kind::Structs(&[
        F::always(Kind::Text), // topic
        F::always(Kind::Structs(&[
            F::always(INT32),      // partition
            F::always(INT64),      // offset
            F::since(2, INT32),    // leader epoch
            F::always(Kind::Text), // metadata
        ])),
    ])),
];

const DESCRIBE_CONFIGS: &[Field] = &[
    F::always(Kind::Structs(&[
        F::always(BYTE),       // topic or broker
        F::always(Kind::Text), // which one
        F::always(TEXTS),      // settings
    ])),
    F::always(BYTE),   // tell synonyms
    F::since(3, BYTE), // tell documentation
];
