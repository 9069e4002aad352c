//! Tests of the encoder on the committed tiny checkpoint.
