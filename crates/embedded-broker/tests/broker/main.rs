//! What a Kafka client sees, on the embedded broker and, where one is named, on a real Apache Kafka.
//!
//! Each check is written once against a bootstrap address. `scripts/kafka/suite.sh` starts an Apache Kafka,
//! runs both halves and stops it again; `SPEECHVERSE_KAFKA=host:port` names one that is running already.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod support;

mod groups;
mod hostile;
mod latency;
mod limits;
mod offsets;
mod other_clients;
mod raw;
mod records;
mod topics;
mod transactions;
mod versions;

suite! {
    a_created_topic_has_its_settings_until_it_is_deleted => topics::created_described_deleted,
    a_topic_appears_when_somebody_first_writes_to_it => topics::made_by_writing,
    a_topic_cannot_be_made_twice_or_with_a_bad_name => topics::refused,

    headers_keys_times_and_tombstones_come_back_byte_for_byte => records::headers_and_tombstones,
    records_of_every_codec_come_back_as_they_were => records::codecs,
    messages_of_one_five_and_ten_megabytes_come_back_whole => records::large_messages,
    a_message_over_its_topics_limit_is_refused_and_the_next_one_taken => records::too_large,
    an_idempotent_producer_keeps_its_order_with_five_batches_in_flight => records::idempotent_order,

    a_range_group_hands_over_without_loss => groups::range_hand_over,
    a_cooperative_group_hands_over_without_loss => groups::cooperative_hand_over,
    a_killed_members_partitions_go_to_the_others => groups::take_over,
    groups_can_be_listed_and_described => groups::listed,
    a_group_of_the_new_protocol_hands_over_without_loss => groups::new_protocol_hand_over,

    committed_offsets_come_back_with_their_metadata => offsets::commit_with_metadata,
    a_time_leads_to_the_first_record_not_older => offsets::by_time,
    statistics_tell_how_far_a_consumer_is_behind => offsets::lag,

    a_committed_transaction_is_read_whole => transactions::committed,
    an_aborted_transaction_is_not_read => transactions::aborted,
    an_open_transaction_hides_what_follows_it => transactions::open_hides,
    aborted_and_committed_transactions_in_one_partition_stay_apart => transactions::interleaved,
    offsets_in_a_transaction_count_only_when_it_commits => transactions::offsets_inside,
    a_second_owner_of_a_transactional_id_shuts_the_first_out => transactions::fenced_by_id,
    offsets_of_an_earlier_group_generation_are_refused => transactions::fenced_by_generation,
    a_transaction_left_open_is_aborted_after_its_time_out => transactions::timed_out,

    records_arrive_as_soon_as_they_are_written => latency::arrival,
    kcat_reads_what_kcat_wrote => other_clients::kcat,
    python_reads_what_python_wrote => other_clients::python,
}
