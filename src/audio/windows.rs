//! Where long sound is cut: windows of speech, from the probability of speech in each 32 ms.
//!
//! A window begins shortly before speech and is cut in the longest pause of what it may hold, so that words
//! stay whole. Where there is no pause, two windows share a piece of sound, and whoever joins their
//! transcripts finds the words that both have. Silence between windows belongs to none.

use std::collections::VecDeque;
use std::ops::Range;

use super::SAMPLE_RATE_HZ;

/// Samples of the frames that speech is judged by: 32 ms.
pub const VOICE_FRAME_SAMPLES: usize = 512;
/// Silence that a window keeps before and behind speech, frames: 0.32 s.
const LEAD_FRAMES: usize = 10;
/// Silence behind speech that an utterance keeps, and after which its end is likely, frames: 0.13 s.
const TAIL_FRAMES: usize = 4;
/// Shortest silence between words that counts as a pause, frames: 0.19 s.
const PAUSE_FRAMES_MIN: usize = 6;
/// Frames with speech that make a window worth listening to: 0.1 s.
const SPEECH_FRAMES_MIN: usize = 3;
/// Speech that has begun ends where its probability is lower than that of its beginning by so much.
const HYSTERESIS: f32 = 0.15;

/// How windows are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowLimits {
    /// Longest window, samples.
    pub samples_max: usize,
    /// What two windows share where they are cut without a pause, samples.
    pub overlap_samples: usize,
    /// Silence after which a window ends at once, samples; without it, a window is as long as it may be.
    pub utterance_pause_samples: Option<usize>,
    /// Probability from which on a frame is speech.
    pub speech_above: f32,
}

/// A window, in samples since the begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What it covers.
    pub samples: Range<u64>,
    /// Whether its begin is the end of the window before, for lack of a pause.
    pub overlaps: bool,
    /// Whether it was cut because it cannot be longer: what is said may go on behind it.
    pub is_cut: bool,
}

/// Cuts a stream of frames.
#[derive(Debug)]
pub struct WindowCutter {
    frames_max: usize,
    overlap_frames: usize,
    utterance_pause_frames: Option<usize>,
    speech_above: f32,
    /// Whether each frame of the open window is speech.
    open: VecDeque<bool>,
    /// Frames before the open window.
    begin: u64,
    overlaps: bool,
}

impl WindowCutter {
    /// Before the first sample.
    pub fn new(limits: &WindowLimits) -> Self {
        let frames = |samples: usize| samples / VOICE_FRAME_SAMPLES;
        let frames_max = frames(limits.samples_max).max(4 * PAUSE_FRAMES_MIN);
        Self {
            frames_max,
            overlap_frames: frames(limits.overlap_samples).min(frames_max / 2),
            utterance_pause_frames: limits
                .utterance_pause_samples
                .map(|samples| frames(samples).max(PAUSE_FRAMES_MIN)),
            speech_above: limits.speech_above,
            open: VecDeque::new(),
            begin: 0,
            overlaps: false,
        }
    }

    /// First sample that is still needed: everything before it is in a finished window, or in none.
    pub fn begin(&self) -> u64 {
        samples(self.begin)
    }

    /// Whether there is speech in what no window has yet.
    pub fn in_speech(&self) -> bool {
        self.spoken(0..self.open.len()) >= SPEECH_FRAMES_MIN
    }

    /// Silence at the end of what came so far, samples.
    pub fn silence_samples(&self) -> u64 {
        samples(self.trailing_silence() as u64)
    }

    /// Takes the probability of speech in the next frame; a window that ends with it.
    pub fn push(&mut self, probability: f32) -> Option<Window> {
        let goes_on = self.open.back() == Some(&true) && probability >= self.speech_above - HYSTERESIS;
        self.open.push_back(goes_on || probability >= self.speech_above);
        if self.spoken(0..self.open.len()) == 0 {
            self.forget_silence();
            return None;
        }
        let silence = self.trailing_silence();
        if self.utterance_pause_frames.is_some_and(|pause| silence >= pause) {
            let end = self.open.len() - silence + TAIL_FRAMES;
            let window = self.cut(end, end, false)?;
            return Some(Window {
                is_cut: false,
                ..window
            });
        }
        if self.open.len() < self.frames_max {
            return None;
        }
        match self.longest_pause() {
            Some(pause) => {
                let kept = LEAD_FRAMES.min(pause.len() / 2);
                let end = match pause.end == self.open.len() {
                    true => pause.start + LEAD_FRAMES.min(pause.len()),
                    false => pause.start + kept,
                };
                self.cut(end, (pause.end - kept).max(end), false)
            }
            None => {
                let end = self.open.len();
                self.cut(end, end - self.overlap_frames, self.overlap_frames > 0)
            }
        }
    }

    /// The window that ends here if the silence goes on, where windows end with utterances and it is long
    /// enough to be likely.
    pub fn likely_end(&self) -> Option<Window> {
        self.utterance_pause_frames?;
        let silence = self.trailing_silence();
        let end = (self.open.len() - silence + TAIL_FRAMES) as u64;
        (silence >= TAIL_FRAMES && self.in_speech()).then(|| Window {
            samples: self.begin()..samples(self.begin + end),
            overlaps: self.overlaps,
            is_cut: false,
        })
    }

    /// What is left at the end of the sound, which has `total` samples.
    pub fn finish(&mut self, total: u64) -> Option<Window> {
        let begin = self.begin();
        let found = self.likely_end().or_else(|| {
            self.in_speech().then(|| Window {
                samples: begin..total.max(begin),
                overlaps: self.overlaps,
                is_cut: false,
            })
        });
        self.open.clear();
        self.begin = total.div_ceil(VOICE_FRAME_SAMPLES as u64);
        found.filter(|window| !window.samples.is_empty())
    }

    /// Ends the open window behind `end` of its frames; the next one begins at `next` of them.
    fn cut(&mut self, end: usize, next: usize, overlaps: bool) -> Option<Window> {
        let window = Window {
            samples: samples(self.begin)..samples(self.begin + end as u64),
            overlaps: self.overlaps,
            is_cut: true,
        };
        let worth = self.spoken(0..end) >= SPEECH_FRAMES_MIN;
        self.open.drain(..next);
        self.begin += next as u64;
        self.overlaps = overlaps && worth;
        if self.spoken(0..self.open.len()) == 0 {
            self.forget_silence();
        }
        worth.then_some(window)
    }

    /// The longest silence in which the open window may be cut, the last of them where several are as long.
    fn longest_pause(&self) -> Option<Range<usize>> {
        let mut best: Option<Range<usize>> = None;
        let mut start = None;
        for at in 0..=self.open.len() {
            let silent = self.open.get(at) == Some(&false);
            if silent {
                start.get_or_insert(at);
                continue;
            }
            let Some(run) = start.take().map(|start| start..at) else {
                continue;
            };
            let is_late = run.end >= self.open.len() / 4;
            let is_longest = best.as_ref().is_none_or(|best| run.len() >= best.len());
            if run.len() >= PAUSE_FRAMES_MIN && is_late && is_longest {
                best = Some(run);
            }
        }
        best
    }

    /// Where nothing is said, no more is kept than stands before speech.
    fn forget_silence(&mut self) {
        let spare = self.open.len().saturating_sub(LEAD_FRAMES);
        if spare > 0 {
            self.open.drain(..spare);
            self.begin += spare as u64;
            self.overlaps = false;
        }
    }

    fn spoken(&self, frames: Range<usize>) -> usize {
        self.open.range(frames).filter(|speech| **speech).count()
    }

    fn trailing_silence(&self) -> usize {
        self.open.iter().rev().take_while(|speech| !**speech).count()
    }
}

fn samples(frames: u64) -> u64 {
    frames * VOICE_FRAME_SAMPLES as u64
}

/// Samples of so many seconds.
pub fn samples_of(seconds: f64) -> usize {
    (seconds * f64::from(SAMPLE_RATE_HZ)).round().max(0.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u64 = VOICE_FRAME_SAMPLES as u64;

    /// Windows of at most 100 frames that share 20, in frames; `pause` ends an utterance.
    fn cut(pause: Option<usize>, frames: &[(usize, bool)]) -> Vec<(u64, u64, bool)> {
        let mut cutter = WindowCutter::new(&WindowLimits {
            samples_max: 100 * VOICE_FRAME_SAMPLES,
            overlap_samples: 20 * VOICE_FRAME_SAMPLES,
            utterance_pause_samples: pause.map(|frames| frames * VOICE_FRAME_SAMPLES),
            speech_above: 0.5,
        });
        let mut windows = Vec::new();
        let mut total = 0;
        for (count, speech) in frames {
            total += *count as u64 * FRAME;
            for _ in 0..*count {
                windows.extend(cutter.push(if *speech { 0.9 } else { 0.1 }));
            }
        }
        windows.extend(cutter.finish(total));
        let frames = |samples: u64| samples / FRAME;
        windows
            .into_iter()
            .map(|window| {
                (
                    frames(window.samples.start),
                    frames(window.samples.end),
                    window.overlaps,
                )
            })
            .collect()
    }

    #[test]
    fn a_window_is_cut_in_its_longest_pause_and_silence_belongs_to_none() {
        let found = cut(
            None,
            &[
                (50, false),
                (40, true),
                (7, false),
                (20, true),
                (30, false),
                (60, true),
                (50, false),
            ],
        );

        // Speech at 50..90, 97..117, 147..207.
        assert_eq!(found, [(40, 127, false), (137, 217, false)]);
    }

    #[test]
    fn without_a_pause_two_windows_share_sound() {
        let found = cut(None, &[(250, true)]);

        assert_eq!(found, [(0, 100, false), (80, 180, true), (160, 250, true)]);
    }

    #[test]
    fn an_utterance_ends_at_its_pause_when_that_is_asked_for() {
        let found = cut(
            Some(15),
            &[(30, true), (14, false), (30, true), (40, false), (30, true)],
        );

        assert_eq!(found, [(0, 78, false), (104, 144, false)]);
    }

    #[test]
    fn an_end_that_is_likely_is_the_end_if_the_silence_goes_on() {
        let mut cutter = WindowCutter::new(&WindowLimits {
            samples_max: 100 * VOICE_FRAME_SAMPLES,
            overlap_samples: 0,
            utterance_pause_samples: Some(12 * VOICE_FRAME_SAMPLES),
            speech_above: 0.5,
        });
        let mut push = |count: usize, speech: bool| {
            let probability = if speech { 0.9 } else { 0.1 };
            let cut: Vec<Window> = (0..count).filter_map(|_| cutter.push(probability)).collect();
            (cut, cutter.likely_end())
        };

        assert_eq!(push(40, false), (vec![], None));
        assert_eq!(push(20, true), (vec![], None));
        assert_eq!(push(3, false), (vec![], None));
        let early = push(1, false).1.unwrap();
        assert_eq!(early.samples, 30 * FRAME..64 * FRAME);
        assert_eq!(push(7, false), (vec![], Some(early)));
        assert_eq!(push(1, true), (vec![], None), "speech goes on");
        let likely = push(11, false).1.unwrap();

        assert_eq!(push(1, false), (vec![likely], None));
    }

    #[test]
    fn a_click_is_no_speech_and_silence_makes_no_window() {
        assert_eq!(cut(None, &[(500, false)]), []);
        assert_eq!(cut(None, &[(300, false), (2, true), (300, false)]), []);
        assert_eq!(cut(Some(15), &[(30, false), (2, true), (30, false)]), []);
    }

    #[test]
    fn every_frame_with_speech_is_in_a_window_and_none_is_too_long() {
        use proptest::prelude::*;
        proptest!(|(runs in prop::collection::vec((1_usize..160, any::<bool>()), 1..30), pause in prop::option::of(1_usize..40))| {
            let found = cut(pause, &runs);
            let mut at = 0;
            for (count, speech) in &runs {
                for frame in at..at + count {
                    let covered = found.iter().any(|(begin, end, _)| (*begin..*end).contains(&(frame as u64)));
                    // What is shorter than a syllable may be left out.
                    prop_assert!(covered || !speech || *count < SPEECH_FRAMES_MIN + LEAD_FRAMES, "frame {frame} of {found:?}");
                }
                at += count;
            }
            for pair in found.windows(2) {
                let overlap = pair[0].1.saturating_sub(pair[1].0);
                prop_assert!(pair[1].0 > pair[0].0);
                prop_assert_eq!(overlap > 0, pair[1].2, "{:?}", pair);
                prop_assert!(overlap <= 20);
            }
            prop_assert!(found.iter().all(|(begin, end, _)| end - begin <= 100 && end > begin));
        });
    }
}
