//! Bounds on what a request may hold.

use std::sync::Arc;

/// What a request may be, and what stands in for what it does not say.
#[derive(Clone, Debug)]
pub struct RequestLimits {
    /// Longest instruction, bytes.
    pub instruction_bytes_max: usize,
    /// Longest id, session or task name, bytes.
    pub name_bytes_max: usize,
    /// Most allowed answers.
    pub labels_max: usize,
    /// Longest list of allowed answers, bytes of JSON.
    pub labels_bytes_max: usize,
    /// Most values for the places of a task's prompt.
    pub fields_max: usize,
    /// Longest object of such values, bytes of JSON.
    pub fields_bytes_max: usize,
    /// Most answer tokens that a request may ask for.
    pub tokens_max: usize,
    /// Largest structured CloudEvent, bytes; its audio is a third larger there than by itself.
    pub envelope_bytes_max: usize,
    /// Topics that a request may name for its answers.
    pub reply_topics: Vec<Arc<str>>,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            instruction_bytes_max: 8 * 1024,
            name_bytes_max: 256,
            labels_max: 1_000,
            labels_bytes_max: 64 * 1024,
            fields_max: 64,
            fields_bytes_max: 8 * 1024,
            tokens_max: 1_024,
            envelope_bytes_max: 48 * 1024 * 1024,
            reply_topics: Vec::new(),
        }
    }
}
