//! One folder per network, and the speech LLM that joins them. Nothing here knows Kafka.
