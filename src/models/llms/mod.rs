//! Language models, one folder each; see [`super::open_language_model`].

mod batch;
pub mod llama;
pub mod t5;
