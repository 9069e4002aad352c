//! The sample store: labelled samples in append-only, CRC-checked segments.
