//! Greedy decoding over slots: answers join, advance together one token a step, and leave.
//!
//! One piece of code above every [`LanguageModel`]: it asks for *prefill* and *step over slots* and picks tokens. A
//! slot's answer does not depend on its neighbours. Source of the idea: continuous (iteration-level) batching, Orca
//! (Yu et al., OSDI 2022).

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::generate::{choose, repeated_tail};
use super::{LanguageModel, ModelError};
use crate::nn::kv_cache::KvCache;
use crate::nn::lora::LoraSet;

/// Allowed answers, as a tree of token ids: generation can only walk it.
#[derive(Clone, Debug)]
pub struct LabelTrie {
    nodes: Vec<TrieNode>,
}

#[derive(Clone, Debug, Default)]
struct TrieNode {
    /// Allowed next tokens and the node each leads to.
    children: Vec<(i64, usize)>,
    /// Which answer ends here.
    label: Option<usize>,
}

impl LabelTrie {
    /// Builds the tree from the token ids of each allowed answer, without end-of-answer tokens.
    ///
    /// Empty answers are left out; of equal answers the first keeps the place.
    pub fn new(labels: &[Vec<i64>]) -> Self {
        let mut nodes = vec![TrieNode::default()];
        for (index, ids) in labels.iter().enumerate().filter(|(_, ids)| !ids.is_empty()) {
            let mut node = 0;
            for &id in ids {
                let known = nodes[node].children.iter().find(|(token, _)| *token == id);
                node = match known {
                    Some(&(_, child)) => child,
                    None => {
                        nodes.push(TrieNode::default());
                        let child = nodes.len() - 1;
                        nodes[node].children.push((id, child));
                        child
                    }
                };
            }
            nodes[node].label.get_or_insert(index);
        }
        Self { nodes }
    }
}

/// Low-rank parts by adapter version, for slots that are pinned to different versions.
pub type LoraTable = HashMap<u64, LoraSet>;

/// What an answer needs to begin.
#[derive(Debug)]
pub struct Prompt {
    /// Embedded prompt, `[P, H]`.
    pub embeds: Tensor,
    /// Most tokens the answer may have, at least 1.
    pub tokens_max: usize,
    /// Allowed answers; free text when absent.
    pub labels: Option<Arc<LabelTrie>>,
    /// Key into [`LoraTable`]: the low-rank parts of the adapter version the answer is pinned to.
    pub lora: Option<u64>,
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Answer tokens, without the end-of-answer token.
    pub ids: Vec<i64>,
    /// Natural-log probability of each chosen token under the model's full distribution, the end-of-answer token's
    /// last where the answer ended by itself.
    pub log_probs: Vec<f64>,
    /// Whether the answer ended by itself; `false` means that it reached `tokens_max`.
    pub ended: bool,
    /// Whether it was ended because it repeated itself; one of the repeats is kept.
    pub looping: bool,
    /// Which allowed answer it is, where answers were constrained.
    pub label: Option<usize>,
}

impl Decoded {
    /// Mean log-probability of the chosen tokens; 0 for an answer without any.
    pub fn score(&self) -> f64 {
        if self.log_probs.is_empty() {
            return 0.0;
        }
        self.log_probs.iter().sum::<f64>() / self.log_probs.len() as f64
    }
}

#[derive(Debug)]
struct Slot<K> {
    key: K,
    prompt: Prompt,
    node: usize,
    out: Decoded,
}

/// Decodes up to a fixed number of answers side by side; `K` is whatever the caller wants back with each answer.
#[derive(Debug)]
pub struct SlotDecoder<K> {
    cache: KvCache,
    slots: Vec<Option<Slot<K>>>,
    end_ids: Vec<i64>,
    vocabulary: i64,
}

impl<K> SlotDecoder<K> {
    /// A decoder with `slots` places, each with room for a prompt of `prompt_positions` and an answer of `answer_positions`;
    /// where the model keeps both in one room, one may be longer where the other is shorter.
    ///
    /// `end_ids` are the tokens that end an answer; ids from `vocabulary` on are never chosen, because a model's table
    /// may be larger than its tokenizer's vocabulary.
    pub fn new(
        model: &dyn LanguageModel,
        slots: usize,
        prompt_positions: usize,
        answer_positions: usize,
        end_ids: &[i64],
        vocabulary: i64,
    ) -> Self {
        Self {
            cache: model.new_cache(slots as i64, prompt_positions as i64, answer_positions as i64),
            slots: (0..slots).map(|_| None).collect(),
            end_ids: end_ids.to_vec(),
            vocabulary,
        }
    }

    /// Places that are free.
    pub fn free(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_none()).count()
    }

    /// Places in use.
    pub fn used(&self) -> usize {
        self.slots.len() - self.free()
    }

    /// Whether `prompt` can ever fit a slot.
    ///
    /// # Errors
    /// [`ModelError::TooManyPositions`] with the positions wanted and available.
    pub fn check(&self, prompt: &Prompt) -> Result<(), ModelError> {
        self.cache
            .check_room(prompt.embeds.size()[0], prompt.tokens_max as i64)
    }

    /// Lets answers join: runs their prompts in one pass per adapter and picks each first token.
    ///
    /// Returns the answers that were complete after that token. At most [`SlotDecoder::free`] prompts may join.
    ///
    /// # Errors
    /// [`ModelError`] when a prompt does not fit or the model fails; nothing has joined then, and the keys are lost
    /// with the prompts.
    pub fn join(
        &mut self,
        model: &dyn LanguageModel,
        loras: &LoraTable,
        arrivals: Vec<(K, Prompt)>,
    ) -> Result<Vec<(K, Decoded)>, ModelError> {
        for (_, prompt) in &arrivals {
            self.check(prompt)?;
        }
        let mut places: Vec<usize> = (0..self.slots.len())
            .filter(|&place| self.slots[place].is_none())
            .collect();
        if arrivals.len() > places.len() {
            return Err(ModelError::Shape {
                what: "prompts that join",
                expected: format!("at most {} of them, one for each free slot", places.len()),
                found: vec![arrivals.len() as i64],
            });
        }
        places.truncate(arrivals.len());
        let mut joined = Vec::with_capacity(arrivals.len());
        for (&place, (key, prompt)) in places.iter().zip(arrivals) {
            self.slots[place] = Some(Slot {
                key,
                prompt,
                node: 0,
                out: Decoded {
                    ids: Vec::new(),
                    log_probs: Vec::new(),
                    ended: false,
                    looping: false,
                    label: None,
                },
            });
            joined.push(place);
        }
        let mut finished = Vec::new();
        for group in self.group_by_lora(&joined) {
            let begun = self
                .prefill(model, loras, &group)
                .and_then(|logits| self.advance(&group, &logits, &mut finished));
            match begun {
                Ok(()) => {}
                Err(error) => {
                    for place in joined {
                        self.vacate(place);
                    }
                    return Err(error);
                }
            }
        }
        Ok(finished)
    }

    /// Advances every answer by one token; returns those that are complete.
    ///
    /// # Errors
    /// [`ModelError`] when the model fails; the answers stay where they were.
    pub fn step(
        &mut self,
        model: &dyn LanguageModel,
        loras: &LoraTable,
    ) -> Result<Vec<(K, Decoded)>, ModelError> {
        let active: Vec<usize> = (0..self.slots.len())
            .filter(|&place| self.slots[place].is_some())
            .collect();
        let mut finished = Vec::new();
        for group in self.group_by_lora(&active) {
            let ids: Vec<i64> = group
                .iter()
                .map(|&place| {
                    *self
                        .slot(place)
                        .out
                        .ids
                        .last()
                        .expect("a slot joins with its first token")
                })
                .collect();
            let lora = self.slot(group[0]).prompt.lora.and_then(|key| loras.get(&key));
            let logits = model.step(&ids, &mut self.cache, &group, lora)?;
            self.advance(&group, &logits, &mut finished)?;
        }
        Ok(finished)
    }

    /// Empties every slot and hands the keys back, for a caller that gives up on them.
    pub fn clear(&mut self) -> Vec<K> {
        (0..self.slots.len())
            .filter_map(|place| self.vacate(place))
            .map(|slot| slot.key)
            .collect()
    }

    /// The keys of the answers under way, with the tokens that each has so far.
    pub fn active(&mut self) -> impl Iterator<Item = (&mut K, &[i64])> {
        self.slots
            .iter_mut()
            .flatten()
            .map(|slot| (&mut slot.key, slot.out.ids.as_slice()))
    }

    fn vacate(&mut self, place: usize) -> Option<Slot<K>> {
        self.cache.clear(place);
        self.slots[place].take()
    }

    fn slot(&self, place: usize) -> &Slot<K> {
        self.slots[place].as_ref().expect("callers pass places in use")
    }

    /// Splits places into groups that share one set of low-rank parts.
    fn group_by_lora(&self, places: &[usize]) -> Vec<Vec<usize>> {
        let mut groups: Vec<(Option<u64>, Vec<usize>)> = Vec::new();
        for &place in places {
            let id = self.slot(place).prompt.lora;
            match groups.iter_mut().find(|(known, _)| *known == id) {
                Some((_, group)) => group.push(place),
                None => groups.push((id, vec![place])),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    fn prefill(
        &mut self,
        model: &dyn LanguageModel,
        loras: &LoraTable,
        group: &[usize],
    ) -> Result<Tensor, ModelError> {
        let prompts: Vec<Tensor> = group
            .iter()
            .map(|&place| self.slot(place).prompt.embeds.shallow_clone())
            .collect();
        let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.size()[0]).collect();
        let embeds = Tensor::f_pad_sequence(&prompts, true, 0.0, "right")?; // [B, P, H]
        let lora = self.slot(group[0]).prompt.lora.and_then(|key| loras.get(&key));
        model.prefill(&embeds, &lengths, &mut self.cache, group, lora)
    }

    /// Picks the next token of each slot in `group` from `logits` `[B, V]` and moves complete answers to `finished`.
    fn advance(
        &mut self,
        group: &[usize],
        logits: &Tensor,
        finished: &mut Vec<(K, Decoded)>,
    ) -> Result<(), ModelError> {
        let best = choose(logits, Some(self.vocabulary))?;
        for (row, &place) in group.iter().enumerate() {
            let slot = self.slots[place].as_mut().expect("callers pass places in use");
            let (id, log_prob) = match slot.prompt.labels.clone() {
                None => (best[row].0, f64::from(best[row].1)),
                Some(trie) => {
                    let log_probs = logits.f_get(row as i64)?.f_log_softmax(-1, Kind::Float)?; // [V]
                    walk(&trie, slot, &log_probs, &self.end_ids)
                }
            };
            slot.out.log_probs.push(log_prob);
            if self.end_ids.contains(&id) {
                slot.out.ended = true;
            } else {
                slot.out.ids.push(id);
            }
            if let Some(extra) = repeated_tail(&slot.out.ids).filter(|_| slot.prompt.labels.is_none()) {
                slot.out.looping = true;
                slot.out.ids.truncate(slot.out.ids.len() - extra);
                slot.out.log_probs.truncate(slot.out.ids.len());
            }
            if slot.out.ended || slot.out.looping || slot.out.ids.len() >= slot.prompt.tokens_max {
                let slot = self.vacate(place).expect("it was there a line ago");
                finished.push((slot.key, slot.out));
            }
        }
        Ok(())
    }
}

/// The likeliest token that keeps the answer inside the tree; at a leaf, the end of the answer.
fn walk<K>(trie: &LabelTrie, slot: &mut Slot<K>, log_probs: &Tensor, end_ids: &[i64]) -> (i64, f64) {
    let node = &trie.nodes[slot.node];
    let log_prob = |id: i64| log_probs.double_value(&[id]);
    let mut options: Vec<(i64, Option<usize>, f64)> = node
        .children
        .iter()
        .map(|&(id, child)| (id, Some(child), log_prob(id)))
        .collect();
    if node.label.is_some() || node.children.is_empty() {
        options.extend(end_ids.iter().map(|&id| (id, None, log_prob(id))));
    }
    let best = options
        .into_iter()
        .max_by(|left, right| left.2.total_cmp(&right.2))
        .unwrap_or((end_ids.first().copied().unwrap_or(0), None, f64::NEG_INFINITY));
    match best.1 {
        Some(child) => slot.node = child,
        None => slot.out.label = node.label,
    }
    (best.0, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_shares_prefixes_and_knows_its_answers() {
        let trie = LabelTrie::new(&[vec![1, 2], vec![1, 3], vec![], vec![1, 2]]);

        assert_eq!(trie.nodes.len(), 4);
        assert_eq!(trie.nodes[2].label, Some(0));
        assert_eq!(trie.nodes[3].label, Some(1));
    }
}
