//! The wav2vec 2.0 family of speech encoders: WavLM, HuBERT, wav2vec 2.0. Waveform in, 50 frames a second
//! out.
//!
//! Sources: Baevski et al., "wav2vec 2.0" (arXiv 2006.11477); Hsu et al., "HuBERT" (arXiv 2106.07447); Chen
//! et al., "WavLM" (arXiv 2110.13900); as `WavLMModel`, `HubertModel` and `Wav2Vec2Model` of the transformers
//! library (version 5) compute them, without their training parts (masking, layer drop, quantizers, heads).
//!
//! 16 kHz samples → seven convolutions (20 ms hop, 25 ms field) → projection → positional convolution →
//! transformer. What differs between the models is data in `config.json`:
//!
//! | | base, base+ | large |
//! |---|---|---|
//! | norm of the front end (`feat_extract_norm`) | `group`: one, over time, after the first convolution | `layer`: over channels, after each |
//! | transformer (`do_stable_layer_norm`) | post-norm | pre-norm, and one norm at the end |
//! | samples (`do_normalize`) | as they are (WavLM base+) | zero mean, unit variance over the whole utterance |
//!
//! WavLM adds a relative position bias: one table of distance buckets, held by layer 0 and used by all, that
//! each layer scales per head and query by a gate of its own.
//!
//! # Which state is `h(L)`
//! The transformers library (5.23) returns as `hidden_states[L]` what the last layer puts out, *before* the
//! final norm of a pre-norm model, and the normalised one only as `last_hidden_state`.
//! [`HiddenStates`](crate::models::HiddenStates) keeps both. Features are made of the normalised one: the
//! last-layer form is `h(L) = last_hidden_state`, and in the mixed forms it stands in place L too, beside the
//! raw outputs of layers 1 to L−1. That is what the paper's encoder outputs, and what S3PRL's mix takes; a
//! raw residual stream of the last layer is used by no later part of the published network.

mod config;
mod encoder;
mod front_end;

pub use config::{WavConfig, WaveformConfig};
pub use encoder::WavEncoder;
