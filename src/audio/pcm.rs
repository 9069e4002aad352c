//! Plain samples: every width and byte order, companded or not, to `f32`.

use super::sink::Sink;
use super::{AudioError, PcmEncoding, PcmSpec};

/// Samples are turned into `f32` in pieces of this many frames.
const PIECE_FRAMES: usize = 4096;

impl PcmEncoding {
    /// Bytes of one sample.
    pub fn sample_bytes(self) -> usize {
        match self {
            Self::U8 | Self::S8 | Self::MuLaw | Self::ALaw => 1,
            Self::S16Le | Self::S16Be => 2,
            Self::S24Le | Self::S24Be => 3,
            Self::S32Le | Self::S32Be | Self::F32Le | Self::F32Be => 4,
            Self::F64Le | Self::F64Be => 8,
        }
    }

    /// The same in the other byte order.
    pub(super) fn big_endian(self) -> Self {
        match self {
            Self::S16Le => Self::S16Be,
            Self::S24Le => Self::S24Be,
            Self::S32Le => Self::S32Be,
            Self::F32Le => Self::F32Be,
            Self::F64Le => Self::F64Be,
            other => other,
        }
    }

    /// Appends the samples in `bytes`, a whole number of them, scaled to `[-1, 1)`.
    fn append(self, bytes: &[u8], samples: &mut Vec<f32>) {
        const SCALE_8: f32 = 1.0 / 128.0; // 2^-7
        const SCALE_16: f32 = 1.0 / 32_768.0; // 2^-15
        const SCALE_32: f32 = 1.0 / 2_147_483_648.0; // 2^-31; a 24-bit sample is shifted to the top of 32
        fn each<const N: usize>(bytes: &[u8], samples: &mut Vec<f32>, sample: impl Fn([u8; N]) -> f32) {
            samples.extend(bytes.as_chunks::<N>().0.iter().map(|chunk| sample(*chunk)));
        }
        match self {
            Self::U8 => each(bytes, samples, |[b]| (f32::from(b) - 128.0) * SCALE_8),
            Self::S8 => each(bytes, samples, |[b]| f32::from(b.cast_signed()) * SCALE_8),
            Self::S16Le => each(bytes, samples, |b| f32::from(i16::from_le_bytes(b)) * SCALE_16),
            Self::S16Be => each(bytes, samples, |b| f32::from(i16::from_be_bytes(b)) * SCALE_16),
            Self::S24Le => each(bytes, samples, |[a, b, c]| {
                i32::from_le_bytes([0, a, b, c]) as f32 * SCALE_32
            }),
            Self::S24Be => each(bytes, samples, |[a, b, c]| {
                i32::from_be_bytes([a, b, c, 0]) as f32 * SCALE_32
            }),
            Self::S32Le => each(bytes, samples, |b| i32::from_le_bytes(b) as f32 * SCALE_32),
            Self::S32Be => each(bytes, samples, |b| i32::from_be_bytes(b) as f32 * SCALE_32),
            Self::F32Le => each(bytes, samples, f32::from_le_bytes),
            Self::F32Be => each(bytes, samples, f32::from_be_bytes),
            Self::F64Le => each(bytes, samples, |b| f64::from_le_bytes(b) as f32),
            Self::F64Be => each(bytes, samples, |b| f64::from_be_bytes(b) as f32),
            Self::MuLaw => each(bytes, samples, |[b]| f32::from(mu_law(b)) * SCALE_16),
            Self::ALaw => each(bytes, samples, |[b]| f32::from(a_law(b)) * SCALE_16),
        }
    }
}

/// G.711 µ-law to 16 bit.
fn mu_law(byte: u8) -> i16 {
    const BIAS: i16 = 0x84;
    let byte = !byte;
    let magnitude = ((i16::from(byte & 0x0f) << 3) + BIAS) << ((byte & 0x70) >> 4);
    if byte & 0x80 == 0 {
        magnitude - BIAS
    } else {
        BIAS - magnitude
    }
}

/// G.711 A-law to 16 bit.
fn a_law(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let mantissa = i16::from(byte & 0x0f) << 4;
    let magnitude = match (byte & 0x70) >> 4 {
        0 => mantissa + 0x08,
        exponent => (mantissa + 0x108) << (exponent - 1),
    };
    if byte & 0x80 == 0 { -magnitude } else { magnitude }
}

/// Decodes raw samples.
pub(super) fn decode(bytes: &[u8], spec: PcmSpec, sink: &mut Sink) -> Result<(), AudioError> {
    sink.start(spec.rate_hz, spec.channels)?;
    push(sink, spec.encoding, bytes)
}

/// Puts samples that stand one after the other into the sink, which knows their number of channels. Bytes
/// that end inside a frame are a sound that is cut short.
///
/// # Errors
/// What the sink refuses.
pub(super) fn push(sink: &mut Sink, encoding: PcmEncoding, bytes: &[u8]) -> Result<(), AudioError> {
    let frame_bytes = encoding.sample_bytes() * usize::from(sink.channels());
    sink.expect_frames((bytes.len() / frame_bytes) as u64)?;
    let left_over = bytes.len() % frame_bytes;

    let mut samples = Vec::new();
    for piece in bytes[..bytes.len() - left_over].chunks(PIECE_FRAMES * frame_bytes) {
        samples.clear();
        encoding.append(piece, &mut samples);
        sink.push_interleaved(&samples)?;
    }
    if left_over != 0 {
        let found = bytes.len();
        sink.cut_short(
            sink.seconds(1),
            format!("{found} bytes of samples end {left_over} bytes into a frame of {frame_bytes}"),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(encoding: PcmEncoding, bytes: &[u8]) -> Vec<f32> {
        let mut samples = Vec::new();
        encoding.append(bytes, &mut samples);
        samples
    }

    #[test]
    fn every_width_and_byte_order_gives_minus_one_to_one() {
        assert_eq!(samples(PcmEncoding::U8, &[0, 128, 192]), [-1.0, 0.0, 0.5]);
        assert_eq!(samples(PcmEncoding::S8, &[0x80, 0, 0x40]), [-1.0, 0.0, 0.5]);
        assert_eq!(samples(PcmEncoding::S16Le, &[0, 0x80, 0, 0x40]), [-1.0, 0.5]);
        assert_eq!(samples(PcmEncoding::S16Be, &[0x80, 0, 0x40, 0]), [-1.0, 0.5]);
        assert_eq!(
            samples(PcmEncoding::S24Le, &[0, 0, 0x80, 0, 0, 0x40]),
            [-1.0, 0.5]
        );
        assert_eq!(
            samples(PcmEncoding::S24Be, &[0x80, 0, 0, 0xc0, 0, 0]),
            [-1.0, -0.5]
        );
        assert_eq!(samples(PcmEncoding::S32Le, &i32::MIN.to_le_bytes()), [-1.0]);
        assert_eq!(samples(PcmEncoding::S32Be, &(1_i32 << 30).to_be_bytes()), [0.5]);
        assert_eq!(samples(PcmEncoding::F32Le, &0.25_f32.to_le_bytes()), [0.25]);
        assert_eq!(samples(PcmEncoding::F32Be, &0.25_f32.to_be_bytes()), [0.25]);
        assert_eq!(samples(PcmEncoding::F64Le, &(-0.75_f64).to_le_bytes()), [-0.75]);
        assert_eq!(samples(PcmEncoding::F64Be, &(-0.75_f64).to_be_bytes()), [-0.75]);
    }

    #[test]
    fn companded_samples_have_the_values_of_g_711() {
        // The largest magnitudes, the smallest, and one in between, from the tables of G.711 times 4 and 8.
        assert_eq!(
            [0x00, 0x80, 0xff, 0x7f, 0x55].map(mu_law),
            [-32_124, 32_124, 0, 0, -716]
        );
        assert_eq!(
            [0x2a, 0xaa, 0xd5, 0x55, 0x00].map(a_law),
            [-32_256, 32_256, 8, -8, -5_504]
        );
    }
}
