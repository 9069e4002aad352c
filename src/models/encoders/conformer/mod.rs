//! BEST-RQ: a Conformer encoder, the random-projection quantiser that makes its targets, and what
//! pre-training adds to it.
//!
//! Source: Chiu et al., "Self-supervised learning with random-projection quantizer for speech recognition"
//! (arXiv 2202.01855); Gulati et al., "Conformer" (arXiv 2005.08100). SpeechVerse's own encoder of this kind
//! (24 × 768, 8 heads, about 300 M parameters, 25 frames a second) was never released, so this one is to be
//! pre-trained: `speechverse pretrain`.
//!
//! 16 kHz samples → 100 log-mel frames a second, normalised → two gated convolutions of stride 2 → 25 frames
//! a second → blocks.
//!
//! Blocks compute what `Wav2Vec2ConformerEncoder` of the transformers library (version 5, relative positions)
//! computes, and the subsampling what its `Conv1dSubsampler` (Speech2Text) computes, under the same tensor
//! names; so parity can be proved against code that is not ours. Where the library has BatchNorm inside the
//! convolution module, the default here is LayerNorm (`conv_norm`): a clip's values then depend on nothing
//! beside it, neither on other clips of a batch nor on padding, in training as in use.
//!
//! What the paper leaves open was chosen so: feed-forward width 2560 brings the paper's shape to 307,398,656
//! parameters (the usual four times the width, 3072, would make 345,171,968); 31 taps in the depthwise
//! convolution; relative positions; 80 mel bins.

mod config;
mod encoder;
mod front_end;
mod layers;
mod network;
mod pretraining;
mod quantizer;
mod variables;

pub use config::{ConformerConfig, ConvNorm, MELS_PER_FRAME, MODEL_TYPE, Normalization};
pub use encoder::ConformerEncoder;
pub use front_end::{Features, FrontEnd, Statistics, StatisticsGatherer};
pub use network::{Conformer, parameter_count};
pub use pretraining::{Heads, Predicted, Pretraining};
pub use quantizer::{Quantizer, QuantizerConfig};
