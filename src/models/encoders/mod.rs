//! Speech encoders, one folder each; see [`super::open_encoder`].

pub mod conformer;
pub mod wavlm;
pub mod whisper;
