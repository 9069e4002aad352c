//! Rotary positions.
