//! What speech encoders have in common: which clips they take, how a batch passes through their layers, and
//! how a mixture of layers is gathered.

use tch::{Device, Kind, TchError, Tensor};

use super::traits::statistics;
use super::{Encoded, EncoderInfo, HiddenStates, ModelError, SpeechEncoder};
use crate::nn::packed::{join, passes, row_ranges, rows_of, unpack};

/// Beyond this a sample is no audio, and its power no f32.
pub(super) const SAMPLE_MAX: f32 = 1e9;

/// Refuses what no encoder can work on.
///
/// # Errors
/// [`ModelError`] that says which clip, and why.
pub(super) fn check_clips(clips: &[&[f32]], samples_max: Option<usize>) -> Result<(), ModelError> {
    if clips.is_empty() {
        return Err(ModelError::EmptyBatch);
    }
    for (index, clip) in clips.iter().enumerate() {
        if clip.is_empty() {
            return Err(ModelError::EmptyClip { index });
        }
        if let Some(samples_max) = samples_max.filter(|&most| clip.len() > most) {
            return Err(ModelError::ClipTooLong {
                index,
                samples: clip.len(),
                samples_max,
            });
        }
        let is_audio = |value: &f32| value.abs() <= SAMPLE_MAX; // false for NaN
        if let Some(at) = clip.iter().position(|value| !is_audio(value)) {
            return Err(ModelError::BadSample {
                index,
                at,
                value: clip[at],
            });
        }
    }
    Ok(())
}

/// An encoder whose layers run on packed clips; [`SpeechEncoder`] follows from it.
pub(super) trait PackedEncoder {
    /// Device of its tensors.
    fn device(&self) -> Device;
    /// Kind of its weights and states.
    fn kind(&self) -> Kind;
    /// Its sizes.
    fn sizes(&self) -> EncoderInfo;
    /// Frames of a clip of so many samples.
    fn frames_of(&self, samples: usize) -> i64;

    /// Everything before the first layer: hidden state 0 of checked clips, `[R, D]`.
    fn embed(&self, clips: &[&[f32]], lengths: &[i64]) -> Result<Tensor, ModelError>;

    /// Runs the layers and shows each one's input, hidden states 0 to L−1, to `visit`. Returns hidden state L
    /// and the output.
    fn run(
        &self,
        hidden: Tensor,
        lengths: &[i64],
        visit: &mut dyn FnMut(usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<[Tensor; 2], ModelError>;
}

impl<E: PackedEncoder + Send> SpeechEncoder for E {
    fn info(&self) -> EncoderInfo {
        self.sizes()
    }

    fn frames(&self, samples: usize) -> i64 {
        self.frames_of(samples)
    }

    fn hidden_states(&self, clips: &[&[f32]]) -> Result<HiddenStates, ModelError> {
        hidden_states(self, clips)
    }

    fn encode_while(
        &self,
        clips: &[&[f32]],
        mix: &Tensor,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Encoded, ModelError> {
        encode_while(self, clips, mix, wanted)
    }
}

/// Transformer layers `L`.
fn depth(encoder: &impl PackedEncoder) -> usize {
    usize::try_from(encoder.sizes().layers).unwrap_or(0)
}

/// Checks the clips and counts their frames.
fn lengths_of(encoder: &impl PackedEncoder, clips: &[&[f32]]) -> Result<Vec<i64>, ModelError> {
    check_clips(clips, encoder.sizes().max_samples)?;
    Ok(clips.iter().map(|clip| encoder.frames_of(clip.len())).collect())
}

/// [`SpeechEncoder::hidden_states`].
fn hidden_states(encoder: &impl PackedEncoder, clips: &[&[f32]]) -> Result<HiddenStates, ModelError> {
    let _no_grad = tch::no_grad_guard();
    let lengths = lengths_of(encoder, clips)?;
    let depth = depth(encoder);
    // Of each state its passes; the output comes after state L.
    let mut parts: Vec<Vec<Tensor>> = (0..depth + 2).map(|_| Vec::new()).collect();
    for pass in passes(&lengths, encoder.device()) {
        let (clips, lengths) = (&clips[pass.clone()], &lengths[pass]);
        let embedded = encoder.embed(clips, lengths)?;
        let ends = encoder.run(embedded, lengths, &mut |index, state| {
            parts[index].push(state.shallow_clone());
            Ok(())
        })?;
        for (at, end) in ends.into_iter().enumerate() {
            parts[depth + at].push(end);
        }
    }
    let mut states: Vec<Tensor> = parts.iter().map(|parts| unpack(&join(parts), &lengths)).collect();
    let last = states.pop().expect("the output was pushed after the states");
    Ok(HiddenStates {
        states,
        last,
        lengths,
    })
}

/// [`SpeechEncoder::encode_while`].
fn encode_while(
    encoder: &impl PackedEncoder,
    clips: &[&[f32]],
    mix: &Tensor,
    wanted: &dyn Fn() -> bool,
) -> Result<Encoded, ModelError> {
    let _no_grad = tch::no_grad_guard();
    let depth = depth(encoder);
    let expected = [clips.len() as i64, depth as i64 + 1];
    if mix.size() != expected {
        return Err(ModelError::Shape {
            what: "the layer mix",
            expected: format!("{expected:?}"),
            found: mix.size(),
        });
    }
    let lengths = lengths_of(encoder, clips)?;
    let (mut features, mut all_statistics) = (Vec::new(), Vec::new());
    for pass in passes(&lengths, encoder.device()) {
        let rows = mix.narrow(0, pass.start as i64, pass.len() as i64);
        let mut mixture = Mixture::new(&rows, encoder.device())?;
        let (clips, lengths) = (&clips[pass.clone()], &lengths[pass]);
        let embedded = encoder.embed(clips, lengths)?;
        let mut of_states = Vec::with_capacity(depth + 1);
        let [_, last] = encoder.run(embedded, lengths, &mut |index, state| {
            if !wanted() {
                return Err(ModelError::GivenUp);
            }
            of_states.push(row_statistics(state, lengths)?);
            Ok(mixture.add(index, state, lengths)?)
        })?;
        of_states.push(row_statistics(&last, lengths)?);
        mixture.add(depth, &last, lengths)?;
        all_statistics.push(Tensor::f_stack(&of_states, 1)?); // [B, L+1, 2D]
        features.push(mixture.finish(&last)?.f_to_kind(encoder.kind())?);
    }
    Ok(Encoded {
        features: unpack(&join(&features), &lengths),
        lengths,
        statistics: Tensor::f_cat(&all_statistics, 0)?,
    })
}

/// Mean and standard deviation of each clip's rows of a packed state: `[R, D]` → `[B, 2D]` f32.
fn row_statistics(state: &Tensor, lengths: &[i64]) -> Result<Tensor, TchError> {
    let of_rows: Vec<Tensor> = row_ranges(lengths)
        .map(|range| statistics(&rows_of(state, &range)))
        .collect::<Result<_, _>>()?;
    Tensor::f_stack(&of_rows, 0)
}

/// `Σ_l mix[b, l] · h_l` of packed states, gathered layer by layer in f32 whatever the encoder's kind.
struct Mixture {
    /// Weights of each state, row by row.
    weights: Vec<Vec<f32>>,
    device: Device,
    sum: Option<Tensor>,
}

impl Mixture {
    /// Begins one with the weights `mix` `[B, L+1]`.
    fn new(mix: &Tensor, device: Device) -> Result<Self, TchError> {
        let by_state = mix
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?
            .f_transpose(0, 1)?;
        let weights = (0..mix.size()[1])
            .map(|state| Vec::<f32>::try_from(by_state.get(state).contiguous()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            weights,
            device,
            sum: None,
        })
    }

    /// Adds state `index` of packed clips, `[R, D]`. One that no clip uses costs nothing.
    fn add(&mut self, index: usize, state: &Tensor, lengths: &[i64]) -> Result<(), TchError> {
        let weights = &self.weights[index];
        if weights.iter().all(|&weight| weight == 0.0) {
            return Ok(());
        }
        let per_row = Tensor::f_empty([state.size()[0], 1], (Kind::Float, self.device))?;
        for (range, &weight) in row_ranges(lengths).zip(weights) {
            let _ = rows_of(&per_row, &range).f_fill_(f64::from(weight))?;
        }
        let state = state.f_to_kind(Kind::Float)?;
        match &mut self.sum {
            Some(sum) => sum.f_addcmul_(&state, &per_row).map(|_| ()),
            None => {
                self.sum = Some(state.f_mul(&per_row)?);
                Ok(())
            }
        }
    }

    /// The mixture, `[R, D]` f32; zeros in the shape of `like` where no state had a weight.
    fn finish(self, like: &Tensor) -> Result<Tensor, TchError> {
        match self.sum {
            Some(sum) => Ok(sum),
            None => like.f_zeros_like()?.f_to_kind(Kind::Float),
        }
    }
}
