//! A language model without weights: its logits are random, but depend on everything that stands before,
//! which it keeps in the cache like any other model.

use super::*;
use crate::models::LanguageModelInfo;
use crate::nn::kv_cache::{KvCache, KvCacheShape};
use crate::util::random::SplitMix;

pub(super) struct RandomModel {
    vocabulary: i64,
    seed: u64,
    /// Added to the score of some ids.
    pub(super) biases: Vec<(i64, f64)>,
    /// What it says if nobody stops it, token by token; after that, what it likes.
    pub(super) forced: Vec<i64>,
    loops: bool,
}

impl RandomModel {
    pub(super) fn new(vocabulary: i64, seed: u64) -> Self {
        Self {
            vocabulary,
            seed,
            biases: Vec::new(),
            forced: Vec::new(),
            loops: false,
        }
    }

    /// One that says the same few words again and again, and never likes to end.
    pub(super) fn looping(vocabulary: i64) -> Self {
        Self {
            loops: true,
            biases: vec![(0, -20.0)],
            ..Self::new(vocabulary, 3)
        }
    }

    /// Scores after a history: prompt of one position, then the answer so far.
    fn scores(&self, history: &[f32]) -> Vec<f32> {
        let steps = history.len() - 1;
        let memory: Vec<u64> = if self.loops {
            vec![steps as u64 % 3]
        } else {
            history.iter().map(|id| id.to_bits().into()).collect()
        };
        let mut noise = SplitMix::new(&[&[self.seed], memory.as_slice()].concat());
        let mut scores: Vec<f32> = (0..self.vocabulary)
            .map(|_| (noise.normal() * 2.0) as f32)
            .collect();
        for (id, more) in &self.biases {
            scores[*id as usize] += *more as f32;
        }
        if let Some(id) = self.forced.get(steps) {
            scores[*id as usize] += 100.0;
        }
        scores
    }

    fn predict(&self, histories: &[Vec<f32>]) -> Tensor {
        let rows: Vec<f32> = histories
            .iter()
            .flat_map(|history| self.scores(history))
            .collect();
        Tensor::from_slice(&rows).view([-1, self.vocabulary])
    }
}

impl LanguageModel for RandomModel {
    fn info(&self) -> LanguageModelInfo {
        LanguageModelInfo {
            width: 1,
            vocab: self.vocabulary,
            layers: 1,
            max_positions: 10_000,
        }
    }

    fn embed(&self, ids: &[i64]) -> Result<Tensor, ModelError> {
        let ids: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
        Ok(Tensor::from_slice(&ids).view([-1, 1]))
    }

    fn embedding_table(&self) -> Tensor {
        self.embed(&(0..self.vocabulary).collect::<Vec<_>>()).unwrap()
    }

    fn teacher_forced_logits(
        &self,
        _: &[Tensor],
        _: &[&[i64]],
        _: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        unreachable!("no test asks for this")
    }

    fn prompt_logits(&self, _: &Tensor, _: Option<&LoraSet>) -> Result<Tensor, ModelError> {
        unreachable!("no test asks for this")
    }

    fn probe(&self, _: &[i64], _: Option<&[i64]>) -> Result<Vec<(String, Tensor)>, ModelError> {
        unreachable!("no test asks for this")
    }

    fn new_cache(&self, slots: i64, prompt_positions: i64, answer_positions: i64) -> KvCache {
        let shape = KvCacheShape {
            layers: 1,
            slots,
            heads: 1,
            capacity: prompt_positions + answer_positions,
            prompt_capacity: None,
            head_dim: 1,
        };
        KvCache::new(shape, Kind::Float, Device::Cpu)
    }

    fn prefill(
        &self,
        embeds: &Tensor,
        lengths: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        _: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        assert!(
            lengths.iter().all(|length| *length == 1),
            "its prompts have one position"
        );
        cache.begin(slots, lengths)?;
        let keys = embeds.unsqueeze(1); // [B, 1, P, 1]
        cache.store(0, slots, &keys, &keys);
        let steps: Vec<f32> = Vec::try_from(embeds.view([-1])).unwrap();
        Ok(self.predict(&steps.into_iter().map(|id| vec![id]).collect::<Vec<_>>()))
    }

    fn step(
        &self,
        ids: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        _: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let plan = cache.plan_step(slots)?;
        let new = self.embed(ids)?.view([-1, 1, 1, 1]);
        cache.append(0, &plan, &new, &new);
        let (keys, _) = cache.seen(0, &plan); // [B, 1, longest, 1]
        cache.advance(&plan);
        let histories: Vec<Vec<f32>> = (0i64..)
            .zip(slots)
            .map(|(row, slot)| {
                Vec::try_from(keys.get(row).view([-1]).narrow(0, 0, cache.length(*slot))).unwrap()
            })
            .collect();
        Ok(self.predict(&histories))
    }
}
