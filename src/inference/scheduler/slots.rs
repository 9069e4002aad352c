//! The cache's slots: which sequence has which, and how large they are.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Scheduler, StepOutput, count};
use crate::inference::sequence::Sequence;
use crate::models::{LanguageModel, ModelError};

/// A cache that grows does so in steps of so many positions.
const GROW_POSITIONS: i64 = 64;

impl Scheduler {
    /// Gives waiting sequences their slots, in order, as long as there are enough free ones.
    pub(super) fn admit(&mut self, model: &dyn LanguageModel, output: &mut StepOutput) {
        while let Some(next) = self.waiting.front() {
            let slots = next.prompt.options.slots();
            if slots > self.free_slots() {
                break;
            }
            let (prompt, answer) = self.positions_of(next);
            let fits =
                self.cache.slots() == self.taken.len() && self.cache.check_capacity(prompt, answer).is_ok();
            if !fits {
                if !self.running.is_empty() {
                    break; // the cache grows when it is empty
                }
                if let Err(error) = self.grow(model) {
                    let failed = self.waiting.pop_front().expect("there is a first one");
                    output.ended.push((failed.id, Err(error)));
                    continue;
                }
            }
            let mut sequence = self.waiting.pop_front().expect("there is a first one");
            sequence.slots = self.take_slots(slots);
            self.running.push(sequence);
        }
    }

    /// Positions that a sequence needs for its prompt, and for its answer.
    fn positions_of(&self, sequence: &Sequence) -> (i64, i64) {
        // The first tokens of an answer that goes on are positions of its prompt.
        let tokens = sequence.tokens_max - sequence.begun().min(sequence.tokens_max);
        let answer = self.limits.answer_positions(count(tokens));
        (sequence.prompt_positions, answer)
    }

    /// Makes the empty cache large enough for all that wait.
    fn grow(&mut self, model: &dyn LanguageModel) -> Result<(), ModelError> {
        let largest = |of: fn((i64, i64)) -> i64| {
            let most = (self.waiting.iter())
                .map(|sequence| of(self.positions_of(sequence)))
                .max();
            most.unwrap_or(0).max(of(self.capacity))
        };
        let rounded = |positions: i64, most: usize| {
            let steps = positions.saturating_add(GROW_POSITIONS - 1) / GROW_POSITIONS;
            positions.max((steps * GROW_POSITIONS).min(count(most)))
        };
        let prompt = rounded(largest(|(prompt, _)| prompt), self.sizes.prompt_positions);
        let answer = rounded(largest(|(_, answer)| answer), self.sizes.answer_positions);
        let slots = count(self.sizes.slots);
        // The old memory goes before the new is asked for.
        self.cache = model.new_cache(0, 0, 0);
        self.capacity = (0, 0);
        let made = catch_unwind(AssertUnwindSafe(|| model.new_cache(slots, prompt, answer)));
        self.cache = made.map_err(|panic| ModelError::panicked("key-value cache", &*panic))?;
        self.capacity = (prompt, answer);
        Ok(())
    }

    /// Takes free slots, neighbours where there are any.
    fn take_slots(&mut self, count: usize) -> Vec<usize> {
        let run =
            (0..=self.taken.len() - count).find(|first| !self.taken[*first..first + count].contains(&true));
        let slots: Vec<usize> = match run {
            Some(first) => (first..first + count).collect(),
            None => (0..self.taken.len())
                .filter(|slot| !self.taken[*slot])
                .take(count)
                .collect(),
        };
        for slot in &slots {
            self.taken[*slot] = true;
        }
        slots
    }

    pub(super) fn release(&mut self, slots: &[usize]) {
        for slot in slots {
            self.cache.clear(*slot);
            self.taken[*slot] = false;
        }
    }
}
