//! Samples to frames: normalisation, the strided convolutions, the projection to the transformer's width.

use tch::{Device, Kind, Tensor};

use super::config::FrontEndNorm;
use super::{WavConfig, WaveformConfig};
use crate::models::ModelError;
use crate::nn::conv::FrameConv;
use crate::nn::linear::Linear;
use crate::nn::norm::LayerNorm;
use crate::weights::Loader;

/// Added to variances inside the convolution stack, whatever `layer_norm_eps` says: the reference takes
/// torch's default.
const NORM_EPS: f64 = 1e-5;
/// Added to an utterance's variance before it is brought to one.
const VARIANCE_FLOOR: f64 = 1e-7;
/// Frames that pass the convolutions at a time. Neighbouring stretches share only a field less a hop, 5 ms,
/// of samples, and a stretch's widest intermediate result fits the cache; the whole clip's would be 6.5 MB
/// for each second of sound.
const FRAMES_AT_A_TIME: usize = 100;

/// The front end of one model.
#[derive(Debug)]
pub(super) struct FrontEnd {
    normalize: bool,
    first: FirstConv,
    rest: Vec<Stage>,
    projection_norm: Option<LayerNorm>,
    projection: Linear,
    hop_samples: usize,
    field_samples: usize,
    device: Device,
    dtype: Kind,
}

/// The convolution that reads samples: an affine map of a few of them.
#[derive(Debug)]
struct FirstConv {
    /// `[C, taps]` f32.
    weight: Tensor,
    /// `[C]` f32.
    bias: Option<Tensor>,
    taps: i64,
    stride: i64,
    norm: FirstNorm,
}

#[derive(Debug)]
enum FirstNorm {
    /// Scale and shift of each channel, `[C]` f32.
    Group(Tensor, Tensor),
    Layer(LayerNorm),
}

/// One later convolution.
#[derive(Debug)]
struct Stage {
    conv: FrameConv,
    norm: Option<LayerNorm>,
}

impl FrontEnd {
    /// Takes `{root}feature_extractor.*` and `{root}feature_projection.*`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        root: &str,
        config: &WavConfig,
        waveform: &WaveformConfig,
    ) -> Self {
        let first = FirstConv::load(loader, &format!("{root}feature_extractor.conv_layers.0"), config);
        let rest = (1..config.conv_dim.len())
            .map(|index| {
                let name = format!("{root}feature_extractor.conv_layers.{index}");
                Stage::load(loader, &name, config, index)
            })
            .collect();
        let width = config.feature_width();
        let projection_norm = config.projection_norm().then(|| {
            let name = format!("{root}feature_projection.layer_norm");
            LayerNorm::load(loader, &name, width, config.layer_norm_eps)
        });
        let name = format!("{root}feature_projection.projection");
        let projection = Linear::load(loader, &name, width, config.hidden_size);
        Self {
            normalize: waveform.do_normalize,
            first,
            rest,
            projection_norm,
            projection,
            hop_samples: config.hop_samples(),
            field_samples: config.field_samples(),
            device: loader.device(),
            dtype: loader.kind(),
        }
    }

    /// Frames of a clip: as many as its samples fill, and one for a clip shorter than a frame's field.
    pub(super) fn frames(&self, samples: usize) -> usize {
        samples.saturating_sub(self.field_samples) / self.hop_samples + 1
    }

    /// Frames of one clip, which is not empty. One that is shorter than a frame's field is followed by
    /// silence.
    ///
    /// # Shapes
    /// `S` samples → `[T, D]`.
    pub(super) fn forward(&self, clip: &[f32]) -> Result<Tensor, ModelError> {
        let mut samples = if self.normalize {
            normalized(clip)
        } else {
            clip.to_vec()
        };
        samples.resize(samples.len().max(self.field_samples), 0.0);
        let frames = self.frames(samples.len());
        let first = self.first.for_clip(&samples, self.device, self.dtype)?;
        let mut stretches = Vec::with_capacity(frames.div_ceil(FRAMES_AT_A_TIME));
        for start in (0..frames).step_by(FRAMES_AT_A_TIME) {
            let count = FRAMES_AT_A_TIME.min(frames - start);
            let from = start * self.hop_samples;
            let until = from + (count - 1) * self.hop_samples + self.field_samples;
            let stretch = Tensor::f_from_slice(&samples[from..until])?.f_to_device(self.device)?;
            stretches.push(self.convolve(&first, &stretch));
        }
        let features = crate::nn::packed::join(&stretches); // [T, C]
        let features = match &self.projection_norm {
            Some(norm) => norm.forward(&features),
            None => features,
        };
        Ok(self.projection.forward(&features)) // [T, D]
    }

    /// `[S]` → `[T, C]`.
    fn convolve(&self, first: &Linear, samples: &Tensor) -> Tensor {
        let fields = samples
            .unfold(0, self.first.taps, self.first.stride) // [T0, taps]
            .to_kind(self.dtype)
            .contiguous();
        let convolved = first.forward(&fields); // [T0, C]
        let mut hidden = match &self.first.norm {
            FirstNorm::Group(..) => convolved, // folded into the map
            FirstNorm::Layer(norm) => norm.forward(&convolved),
        }
        .gelu_("none");
        for stage in &self.rest {
            let convolved = stage.conv.forward(&hidden); // [T_i, C]
            hidden = match &stage.norm {
                Some(norm) => norm.forward(&convolved),
                None => convolved,
            }
            .gelu_("none");
        }
        hidden
    }
}

impl FirstConv {
    fn load(loader: &mut Loader<'_>, name: &str, config: &WavConfig) -> Self {
        let (channels, taps) = (config.conv_dim[0], config.conv_kernel[0]);
        let weight = loader.take_as(&format!("{name}.conv.weight"), &[channels, 1, taps], Kind::Float);
        let bias = config
            .conv_bias
            .then(|| loader.take_as(&format!("{name}.conv.bias"), &[channels], Kind::Float));
        let norm = match config.norm() {
            Some(FrontEndNorm::Group) => {
                let mut take =
                    |part| loader.take_as(&format!("{name}.layer_norm.{part}"), &[channels], Kind::Float);
                FirstNorm::Group(take("weight"), take("bias"))
            }
            _ => FirstNorm::Layer(LayerNorm::load(
                loader,
                &format!("{name}.layer_norm"),
                channels,
                NORM_EPS,
            )),
        };
        Self {
            weight: weight.squeeze_dim(1),
            bias,
            taps,
            stride: config.conv_stride[0],
            norm,
        }
    }

    /// The convolution as a map of `taps` samples to `C` channels, for one clip.
    ///
    /// The group norm gives each channel zero mean and unit variance over the whole clip. Both follow from
    /// mean and covariance of the `taps` samples under the convolution, so the norm becomes part of the map,
    /// and the clip can be convolved in stretches.
    fn for_clip(&self, samples: &[f32], device: Device, dtype: Kind) -> Result<Linear, ModelError> {
        let (weight, bias) = match &self.norm {
            FirstNorm::Layer(_) => (
                self.weight.shallow_clone(),
                self.bias.as_ref().map(Tensor::shallow_clone),
            ),
            FirstNorm::Group(scale, shift) => {
                let fields = Tensor::f_from_slice(samples)?.f_to_kind(Kind::Double)?.f_unfold(
                    0,
                    self.taps,
                    self.stride,
                )?; // [T0, taps]
                let mean = fields.mean_dim([0].as_slice(), true, Kind::Double); // [1, taps]
                let centred = fields - &mean;
                let covariance = centred.tr().matmul(&centred) / centred.size()[0] as f64; // [taps, taps]
                let weight = self.weight.to_device(Device::Cpu).to_kind(Kind::Double); // [C, taps]
                let on_cpu = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
                let variance = (weight.matmul(&covariance) * &weight).sum_dim_intlist(
                    [1].as_slice(),
                    false,
                    Kind::Double,
                );
                let scale = on_cpu(scale) / (variance.clamp_min(0.0) + NORM_EPS).sqrt(); // [C]
                // A bias of the convolution shifts the mean by itself, and is gone.
                let centre = weight.matmul(&mean.tr()).squeeze_dim(1); // [C]
                let bias = on_cpu(shift) - centre * &scale;
                (weight * scale.unsqueeze(1), Some(bias))
            }
        };
        let place = |tensor: &Tensor| tensor.to_device(device).to_kind(dtype);
        Ok(Linear::new(place(&weight), bias.as_ref().map(place)))
    }
}

impl Stage {
    fn load(loader: &mut Loader<'_>, name: &str, config: &WavConfig, index: usize) -> Self {
        let (inputs, outputs) = (config.conv_dim[index - 1], config.conv_dim[index]);
        let shape = [outputs, inputs, config.conv_kernel[index]];
        let weight = loader.take(&format!("{name}.conv.weight"), &shape);
        let bias = config
            .conv_bias
            .then(|| loader.take(&format!("{name}.conv.bias"), &[outputs]));
        let norm = (config.norm() == Some(FrontEndNorm::Layer))
            .then(|| LayerNorm::load(loader, &format!("{name}.layer_norm"), outputs, NORM_EPS));
        Self {
            conv: FrameConv::new(&weight, bias, config.conv_stride[index], 0, 1),
            norm,
        }
    }
}

/// An utterance at zero mean and unit variance.
fn normalized(clip: &[f32]) -> Vec<f32> {
    let count = clip.len() as f64;
    let mean = clip.iter().map(|&sample| f64::from(sample)).sum::<f64>() / count;
    let variance = clip
        .iter()
        .map(|&sample| (f64::from(sample) - mean).powi(2))
        .sum::<f64>()
        / count;
    let scale = 1.0 / (variance + VARIANCE_FLOOR).sqrt();
    clip.iter()
        .map(|&sample| ((f64::from(sample) - mean) * scale) as f32)
        .collect()
}
