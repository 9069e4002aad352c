//! What is kept: record batches as their producers sent them, partition by partition.
//!
//! Batches stay bytes. Only their headers are read, and records are walked (never unpacked) where they are
//! not compressed; compression is the clients' business.

pub(super) mod batch;
pub(super) mod control;
pub(super) mod partition;
pub(super) mod producers;
#[cfg(test)]
mod tests;
