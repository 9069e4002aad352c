//! How channels become one: their mean, and what to do where the mean does not carry the sound.

/// Which samples of a frame make the mono sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mix {
    /// The mean of all channels.
    Mean,
    /// One channel, counted from 0; the mean of all where there are fewer.
    One(usize),
}

/// Share of the power at which a mean counts as cancelled: -10 dB of what the channels carry. Two channels
/// that have nothing in common leave half of it.
const CANCELLED: f64 = 0.1;

/// Share of the whole sound's power that may be cancelled before one channel is taken instead of the mean.
const CANCELLED_SHARE_MAX: f64 = 0.25;

/// The mean is raised when it is at least this much weaker than the channels that carry the sound: two
/// channels, of which the other is more than about 9 dB down.
const GAIN_MIN: f64 = 1.8;

/// Of so many frames one is measured: power needs no more, and the measure costs a fifth.
pub(super) const MEASURED_EVERY: usize = 5;

/// Measures how much of its channels' power the mean keeps, in pieces of a quarter of a second. A constant
/// part (DC) of a piece does not count.
pub(super) struct ChannelMeter {
    /// Sum and sum of squares of each channel in this piece, and of the mean.
    piece: Vec<(f64, f64)>,
    mean: (f64, f64),
    piece_frames: u64,
    piece_frames_max: u64,
    /// Power of each channel so far.
    power: Vec<f64>,
    cancelled: f64,
}

impl ChannelMeter {
    pub(super) fn new(channels: u16, rate_hz: u32) -> Self {
        Self {
            piece: vec![(0.0, 0.0); usize::from(channels)],
            mean: (0.0, 0.0),
            piece_frames: 0,
            piece_frames_max: (u64::from(rate_hz) / 4 / MEASURED_EVERY as u64).max(1),
            power: vec![0.0; usize::from(channels)],
            cancelled: 0.0,
        }
    }

    /// Takes one frame; `mono` is its mean.
    pub(super) fn take(&mut self, frame: &[f32], mono: f32) {
        let add = |(sum, squares): &mut (f64, f64), sample: f32| {
            let sample = f64::from(sample);
            *sum += sample;
            *squares += sample * sample;
        };
        for (piece, sample) in self.piece.iter_mut().zip(frame) {
            add(piece, *sample);
        }
        add(&mut self.mean, mono);
        self.piece_frames += 1;
        if self.piece_frames == self.piece_frames_max {
            self.close_piece();
        }
    }

    fn close_piece(&mut self) {
        if self.piece_frames == 0 {
            return;
        }
        let frames = self.piece_frames as f64;
        let power = |(sum, squares): (f64, f64)| (squares - sum * sum / frames).max(0.0);
        let mut carried = 0.0;
        for (piece, total) in self.piece.iter_mut().zip(&mut self.power) {
            let power = power(std::mem::take(piece));
            carried += power;
            *total += power;
        }
        if power(std::mem::take(&mut self.mean)) < CANCELLED * carried / self.power.len() as f64 {
            self.cancelled += carried;
        }
        self.piece_frames = 0;
    }

    /// What the whole sound says: the mix that carries it, and the gain that brings the mean to full level.
    pub(super) fn verdict(&mut self) -> (Mix, f32) {
        self.close_piece();
        let carried: f64 = self.power.iter().sum();
        let loudest = self.power.iter().copied().fold(0.0, f64::max);
        if self.power.len() < 2 || !(loudest > 0.0 && carried.is_finite()) {
            return (Mix::Mean, 1.0);
        }
        let gain = self.power.len() as f64 * loudest / carried;
        if self.cancelled > CANCELLED_SHARE_MAX * carried && gain < GAIN_MIN {
            let channel = self.power.iter().position(|power| *power == loudest);
            return (Mix::One(channel.unwrap_or_default()), 1.0);
        }
        (Mix::Mean, if gain < GAIN_MIN { 1.0 } else { gain as f32 })
    }
}

/// The mono sample of a frame.
pub(super) fn mix(frame: &[f32], mix: Mix) -> f32 {
    match mix {
        Mix::One(channel) if channel < frame.len() => frame[channel],
        _ => frame.iter().sum::<f32>() / frame.len() as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(channels: usize, frame: impl Fn(usize) -> Vec<f32>) -> (Mix, f32) {
        let mut meter = ChannelMeter::new(channels as u16, 16_000);
        for n in 0..16_000 {
            let frame = frame(n);
            meter.take(&frame, mix(&frame, Mix::Mean));
        }
        meter.verdict()
    }

    fn tone(n: usize, hertz: f32) -> f32 {
        (n as f32 * hertz * std::f32::consts::TAU / 16_000.0).sin()
    }

    #[test]
    fn channels_that_agree_or_differ_are_averaged_as_they_are() {
        assert_eq!(verdict(2, |n| vec![tone(n, 440.0); 2]), (Mix::Mean, 1.0));
        assert_eq!(
            verdict(2, |n| vec![tone(n, 440.0), tone(n, 700.0)]),
            (Mix::Mean, 1.0)
        );
        assert_eq!(verdict(2, |_| vec![0.0; 2]), (Mix::Mean, 1.0));
        assert_eq!(verdict(3, |_| vec![0.5, -0.5, 0.0]), (Mix::Mean, 1.0));
    }

    #[test]
    fn opposite_channels_are_not_averaged_whatever_their_offset() {
        assert_eq!(
            verdict(2, |n| vec![tone(n, 440.0), 0.25 - 0.9 * tone(n, 440.0)]),
            (Mix::One(0), 1.0)
        );
        // Only the second half is of opposite sign.
        let half = |n| if n < 8_000 { 1.0 } else { -1.0 };
        let (mix, _) = verdict(2, |n| vec![tone(n, 440.0), half(n) * tone(n, 440.0)]);
        assert!(matches!(mix, Mix::One(_)));
    }

    #[test]
    fn one_channel_among_silent_ones_is_heard_at_full_level() {
        let (mix, gain) = verdict(8, |n| {
            let mut frame = vec![0.2; 8];
            frame[5] = tone(n, 440.0);
            frame
        });

        assert_eq!(mix, Mix::Mean);
        assert!((gain - 8.0).abs() < 1e-3, "{gain}");
    }
}
