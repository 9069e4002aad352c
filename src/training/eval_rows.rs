//! Recordings of an evaluation with their features, cut into windows as serving cuts them.

use std::ops::Range;

use super::example::Example;
use crate::inference::{
    BorrowedEngine, ByWindow, Clip, Features, Generation, InferenceError, Output, VoiceDetector,
};
use crate::models::adapter::AdapterSnapshot;

/// A recording with its features: as one, or window by window.
pub(super) struct Row {
    /// Which recording.
    pub(super) at: usize,
    pub(super) parts: Vec<Part>,
}

pub(super) struct Part {
    pub(super) features: Features,
    /// Whether it begins inside the part before it.
    pub(super) overlaps: bool,
}

impl Row {
    /// The answers to all parts as one.
    pub(super) fn join(
        &self,
        outputs: &mut impl Iterator<Item = Result<Output, InferenceError>>,
    ) -> Result<Output, InferenceError> {
        // All of them are taken, whatever the first says.
        let found: Vec<_> = outputs.take(self.parts.len()).collect();
        let found: Vec<Output> = found.into_iter().collect::<Result<_, _>>()?;
        if let [_] = self.parts.as_slice() {
            return Ok(found.into_iter().next().expect("one output for one part"));
        }
        let parts = found.into_iter().zip(&self.parts);
        let windows = parts.map(|(output, part)| (output.generation, output.text, part.overlaps));
        let (generation, text) = Generation::join_windows(windows.collect());
        Ok(Output { text, generation })
    }
}

/// A piece of a recording, and whether it begins inside the one before it.
type Piece = (Range<usize>, bool);

/// How transcripts of long recordings are cut.
pub(super) struct Windows<'o> {
    by: &'o ByWindow,
    detector: VoiceDetector,
}

impl<'o> Windows<'o> {
    /// Cuts as `by` says.
    pub(super) fn new(by: &'o ByWindow) -> Self {
        Self {
            by,
            detector: VoiceDetector::open_or_by_level(&by.speech, &by.audio),
        }
    }

    /// Where a recording is cut, with whether a window begins inside the one before; none where it is
    /// answered as one.
    fn of(&self, samples: &[f32]) -> Result<Option<Vec<Piece>>, String> {
        if samples.len() <= self.by.speech.window_samples_max() {
            return Ok(None);
        }
        let found = self.detector.windows(samples, &self.by.speech.windows(false));
        let found = found.map_err(|error| error.to_string())?.into_iter();
        let range = |samples: Range<u64>| samples.start as usize..samples.end as usize;
        Ok(Some(
            found
                .map(|window| (range(window.samples), window.overlaps))
                .collect(),
        ))
    }
}

/// What became of a batch of recordings.
pub(super) struct Rows {
    /// Those that worked.
    pub(super) rows: Vec<Row>,
    /// Their length, seconds.
    pub(super) audio_seconds: f64,
    /// The others, and why.
    pub(super) unreadable: Vec<(usize, String)>,
}

/// Reads and encodes recordings, each with its number and whether its transcript is asked for and nothing
/// else: then it is cut into `windows`, where it is long.
pub(super) fn encode(
    engine: &BorrowedEngine<'_>,
    windows: Option<&Windows<'_>>,
    adapter: &AdapterSnapshot,
    recordings: &[(usize, &Example, bool)],
) -> Rows {
    let mut found = Rows {
        rows: Vec::with_capacity(recordings.len()),
        audio_seconds: 0.0,
        unreadable: Vec::new(),
    };
    let (mut rows, mut clips) = (Vec::with_capacity(recordings.len()), Vec::new());
    for (at, example, is_transcript) in recordings.iter().copied() {
        let windows = windows.filter(|_| is_transcript);
        let read = example.audio.load().and_then(|samples| {
            let cut = windows.map_or(Ok(None), |windows| windows.of(&samples))?;
            let whole = vec![(0..samples.len(), false)];
            Ok((samples, cut.unwrap_or(whole)))
        });
        match read {
            Ok((samples, cut)) => {
                #[expect(clippy::cast_precision_loss, reason = "a sample count")]
                let seconds = samples.len() as f64 / 16_000.0;
                for (number, (range, overlaps)) in cut.into_iter().enumerate() {
                    clips.push((rows.len(), number, samples[range].to_vec(), overlaps));
                }
                rows.push((at, seconds, Ok(Vec::new())));
            }
            Err(reason) => found.unreadable.push((at, reason)),
        }
    }
    let lengths: Vec<usize> = clips.iter().map(|(_, _, samples, _)| samples.len()).collect();
    for batch in engine.extractor().batches(&lengths) {
        let of = |index: &usize| Clip {
            samples: &clips[*index].2,
            adapter,
        };
        let batch_clips: Vec<Clip<'_>> = batch.iter().map(of).collect();
        for (index, features) in batch.iter().zip(engine.extractor().extract(&batch_clips)) {
            let (row, number, _, overlaps) = clips[*index];
            let parts: &mut Result<Vec<(usize, Part)>, String> = &mut rows[row].2;
            match (features, parts) {
                (Ok(features), Ok(parts)) => parts.push((number, Part { features, overlaps })),
                (Err(error), parts) => *parts = Err(error.to_string()),
                (Ok(_), Err(_)) => {}
            }
        }
    }
    for (at, seconds, parts) in rows {
        match parts {
            Ok(mut parts) => {
                found.audio_seconds += seconds;
                parts.sort_by_key(|(number, _)| *number);
                let parts = parts.into_iter().map(|(_, part)| part).collect();
                found.rows.push(Row { at, parts });
            }
            Err(reason) => found.unreadable.push((at, reason)),
        }
    }
    found
}
