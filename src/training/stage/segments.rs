//! What a stage that aligns sentences reads: CTC segments of clips, made by the frozen adapter.

use tch::{Kind, Tensor};

use super::StageRunner;
use crate::inference::speech_llm::Learned;
use crate::training::TrainingError;
use crate::training::batch::LoadedClip;

impl StageRunner<'_> {
    /// CTC segments of clips, `[S_i, H]` bf16 and without gradient; each is made once where it is known by
    /// name. They are made without dropout, so that what is kept does not depend on the step that made it;
    /// `dropout` is the adapter's share again afterwards.
    pub(super) fn segments_of(
        &self,
        learned: &mut Learned,
        clips: &[&LoadedClip],
        dropout: f64,
    ) -> Result<Vec<Tensor>, TrainingError> {
        let mut memory = self.segments.borrow_mut();
        let mut rows: Vec<Option<Tensor>> = (clips.iter())
            .map(|clip| clip.key().and_then(|key| memory.get(key)))
            .collect();
        let fresh: Vec<usize> = (0..rows.len()).filter(|row| rows[*row].is_none()).collect();
        if !fresh.is_empty() {
            let _no_grad = tch::no_grad_guard();
            let clips: Vec<&LoadedClip> = fresh.iter().map(|row| clips[*row]).collect();
            let encoded = self.encode(learned, &clips)?;
            learned.adapter.set_dropout(0.0);
            let frames = learned.adapter.forward(&encoded.features, &encoded.lengths);
            learned.adapter.set_dropout(dropout);
            let made = learned.adapter.segments(&frames?, None)?;
            for (((at, row), clip), length) in (0i64..).zip(&fresh).zip(clips).zip(&made.lengths) {
                let own = made.positions.f_get(at)?.f_narrow(0, 0, *length)?;
                let own = own.f_to_kind(Kind::BFloat16)?; // as it will come back from memory
                if let Some(key) = clip.key() {
                    memory.put(key, &own);
                }
                rows[*row] = Some(own);
            }
        }
        Ok(rows.into_iter().flatten().collect())
    }
}
