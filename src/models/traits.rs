//! The two roles a network can play: speech encoder, language model.

use tch::{Kind, TchError, Tensor};

use super::ModelError;
use crate::nn::kv_cache::KvCache;
use crate::nn::lora::{LoraSet, LoraSite};

/// All hidden states of a batch, as the transformers library (version 5) numbers and defines them.
///
/// What lies beyond a row's length is zero.
#[derive(Debug)]
pub struct HiddenStates {
    /// `hidden_states`: `L + 1` tensors `[B, T, D]`, the embedded input first. The final norm of a pre-norm
    /// network is applied to the last one in Whisper, and is not in the wav2vec 2.0 family.
    pub states: Vec<Tensor>,
    /// `last_hidden_state` `[B, T, D]`: the encoder's output, final norm applied. This is `h(L)` wherever
    /// features are made of states, in [`SpeechEncoder::encode`] and in the adapter's mix.
    pub last: Tensor,
    /// Valid frames of each row.
    pub lengths: Vec<i64>,
}

impl HiddenStates {
    /// Mean and standard deviation of every state over each row's valid frames, as in
    /// [`Encoded::statistics`]: `[B, L+1, 2D]` f32. In place L stands the encoder's output.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn statistics(&self) -> Result<Tensor, ModelError> {
        let inner = &self.states[..self.states.len().saturating_sub(1)];
        let mut rows = Vec::with_capacity(self.lengths.len());
        for (row, length) in (0i64..).zip(&self.lengths) {
            let of = |state: &Tensor| statistics(&state.f_get(row)?.f_narrow(0, 0, *length)?);
            let states: Vec<Tensor> = inner
                .iter()
                .chain([&self.last])
                .map(of)
                .collect::<Result<_, _>>()?;
            rows.push(Tensor::f_stack(&states, 0)?);
        }
        Ok(Tensor::f_stack(&rows, 0)?)
    }
}

/// Mean and standard deviation (of the population) of frames `[T, D]`, side by side: `[2D]` f32.
pub(crate) fn statistics(frames: &Tensor) -> Result<Tensor, TchError> {
    let (deviation, mean) = frames
        .f_to_kind(Kind::Float)?
        .f_std_mean_dim([0i64].as_slice(), false, false)?;
    Tensor::f_cat(&[mean, deviation], 0)
}

/// A batch of encoded clips.
#[derive(Debug)]
pub struct Encoded {
    /// `[B, T, D]`, in the encoder's dtype; what lies beyond a row's length is zero.
    pub features: Tensor,
    /// Valid frames of each row.
    pub lengths: Vec<i64>,
    /// Mean and standard deviation of every hidden state over each row's valid frames, side by side:
    /// `[B, L+1, 2D]` f32.
    pub statistics: Tensor,
}

/// What a caller must know of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderInfo {
    /// Transformer layers `L`; there are `L + 1` hidden states.
    pub layers: i64,
    /// Width `D` of every hidden state.
    pub width: i64,
    /// Frames per second of audio.
    pub frames_per_second: f64,
    /// Longest clip, samples at 16 kHz; `None` when there is no limit.
    pub max_samples: Option<usize>,
}

/// A frozen network that turns speech into frames.
///
/// Runs under `no_grad`; owns its tensors and belongs to one thread at a time.
pub trait SpeechEncoder: Send {
    /// Its sizes.
    fn info(&self) -> EncoderInfo;

    /// Valid frames of a clip of `samples` samples at 16 kHz.
    fn frames(&self, samples: usize) -> i64;

    /// All hidden states of a batch of clips (mono, 16 kHz).
    ///
    /// # Errors
    /// [`ModelError`] when a clip is empty, too long, or not finite, or when libtorch fails.
    fn hidden_states(&self, clips: &[&[f32]]) -> Result<HiddenStates, ModelError>;

    /// The mixture `Σ_l mix[b, l] · h_l` of each clip's hidden states, accumulated layer by layer, so that
    /// the stack is never kept. `h_L` is the encoder's output, final norm applied. `wanted` is asked before
    /// each layer whether the mixture is still wanted.
    ///
    /// # Shapes
    /// `mix` `[B, L+1]` float → features `[B, T, D]`.
    ///
    /// # Errors
    /// [`ModelError`] as for [`hidden_states`](Self::hidden_states), and when `mix` has another shape;
    /// [`ModelError::GivenUp`] when it is no longer wanted.
    fn encode_while(
        &self,
        clips: &[&[f32]],
        mix: &Tensor,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Encoded, ModelError>;

    /// As [`encode_while`](Self::encode_while), to the end.
    ///
    /// # Errors
    /// As there.
    fn encode(&self, clips: &[&[f32]], mix: &Tensor) -> Result<Encoded, ModelError> {
        self.encode_while(clips, mix, &|| true)
    }

    /// Whether gradients may flow into it. No encoder here learns.
    fn trainable(&self) -> bool {
        false
    }
}

/// What a caller must know of a language model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanguageModelInfo {
    /// Width `H`.
    pub width: i64,
    /// Vocabulary `V`: rows of the embedding table.
    pub vocab: i64,
    /// Transformer layers.
    pub layers: i64,
    /// Most positions a sequence may have.
    pub max_positions: i64,
}

/// A frozen language model, driven by embeddings so that audio can stand among its tokens.
///
/// Speaks of *prefill* and *step over slots*: sequences join and leave a running batch between steps.
pub trait LanguageModel: Send {
    /// Its sizes.
    fn info(&self) -> LanguageModelInfo;

    /// The projections that can carry a low-rank adapter, in order of layers; none where that is not
    /// supported.
    fn lora_sites(&self) -> Vec<LoraSite> {
        Vec::new()
    }

    /// Embeds token ids: `[L]` → `[L, H]`.
    ///
    /// # Errors
    /// [`ModelError`] when an id is outside the vocabulary.
    fn embed(&self, ids: &[i64]) -> Result<Tensor, ModelError>;

    /// The frozen embedding table `[V, H]`, sharing storage.
    fn embedding_table(&self) -> Tensor;

    /// What is predicted for every token of the answers, each given what is before it; without a cache,
    /// differentiable in the prompts and in `lora`.
    ///
    /// A decoder-only model reads the answer behind its prompt. An encoder–decoder encodes the prompt, and
    /// its decoder reads the answer shifted right, behind the start token.
    ///
    /// # Shapes
    /// `prompts`: `[P_i, H]` each; `answers`: `L_i` ids each → scores f32 `[Σ L_i, V]`, one row per answer
    /// token, in order.
    ///
    /// # Errors
    /// [`ModelError`] when there is not one non-empty answer per prompt, shapes disagree, an id does not
    /// exist, or a sequence exceeds the model's positions.
    fn teacher_forced_logits(
        &self,
        prompts: &[Tensor],
        answers: &[&[i64]],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError>;

    /// What is predicted while a prompt is read, for looking inside: `[P, H]` → f32 `[P, V]` of a
    /// decoder-only model (after every position), `[1, V]` of an encoder–decoder (the answer's first token).
    ///
    /// # Errors
    /// As [`teacher_forced_logits`](Self::teacher_forced_logits).
    fn prompt_logits(&self, prompt: &Tensor, lora: Option<&LoraSet>) -> Result<Tensor, ModelError>;

    /// Every value that the model makes of `ids`, numbered and defined as the hidden states of the
    /// transformers library.
    ///
    /// `decoder_ids` are what an encoder–decoder's decoder has read, the start token first; absent, the start
    /// token alone.
    ///
    /// # Shapes
    /// Decoder-only: `logits` `[T, V]`, `hidden.0 … hidden.N` `[T, H]`. Encoder–decoder: `logits` `[L, V]`,
    /// `encoder` `[T, H]`, `encoder.hidden.0 … N` `[T, H]`, `decoder.hidden.0 … N` `[L, H]`.
    ///
    /// # Errors
    /// [`ModelError`] when an id does not exist, there are none or too many, or a decoder-only model is given
    /// decoder ids.
    fn probe(&self, ids: &[i64], decoder_ids: Option<&[i64]>) -> Result<Vec<(String, Tensor)>, ModelError>;

    /// An empty cache of `slots` sequences, each with positions for a prompt of `prompt_positions` and an
    /// answer of `answer_positions` tokens. A decoder-only model has one buffer for the sum of both.
    fn new_cache(&self, slots: i64, prompt_positions: i64, answer_positions: i64) -> KvCache;

    /// Fills `slots` of the cache with new sequences and predicts what follows each.
    ///
    /// # Shapes
    /// `embeds` `[B, P, H]`, right-padded → logits `[B, V]` at each row's last valid position.
    ///
    /// # Errors
    /// [`ModelError`] when shapes disagree or a sequence does not fit its slot.
    fn prefill(
        &self,
        embeds: &Tensor,
        lengths: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError>;

    /// How it fills a slot in several passes, so that a long prompt can be read between the steps of other
    /// sequences; none where a prompt is read in one pass only. An encoder–decoder is such a model: its
    /// encoder sees both ways, so that no position of a prompt can be computed before all of them are there.
    fn chunked_prefill(&self) -> Option<&dyn ChunkedPrefill> {
        None
    }

    /// Appends one token to each of `slots` and predicts what follows: `[B, V]`. A slot that is named several
    /// times gets as many tokens, in their order, and what follows each is predicted.
    ///
    /// # Errors
    /// [`ModelError`] when an id is outside the vocabulary or a slot is full.
    fn step(
        &self,
        ids: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError>;
}

/// A language model that can read a prompt in several passes: each position sees earlier ones only.
pub trait ChunkedPrefill {
    /// Appends the next positions of a prompt to the sequence of `slot` and predicts what follows each of
    /// the `last` ones of them. In an empty slot a new sequence begins. The chunks of a prompt, one after the
    /// other, come to what one [`LanguageModel::prefill`] of it does.
    ///
    /// # Shapes
    /// `embeds` `[P, H]` → logits `[last, V]`.
    ///
    /// # Errors
    /// [`ModelError`] when shapes disagree, `last` is not from 1 to `P`, or the sequence does not fit its
    /// slot.
    fn prefill_chunk(
        &self,
        embeds: &Tensor,
        last: i64,
        cache: &mut KvCache,
        slot: usize,
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError>;
}
