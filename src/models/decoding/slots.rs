//! `SlotDecoder`: answers join, advance together one token a step, and leave.
//!
//! One piece of code above every [`LanguageModel`]: it asks for *prefill* and *step over slots* and picks tokens. A greedy
//! or sampled answer takes one slot, a beam search as many as it has beams. An answer does not depend on its neighbours.
//! Source of the idea: continuous (iteration-level) batching, Orca (Yu et al., OSDI 2022).

use tch::{Kind, Tensor};

use super::beam::{BeamSearch, Candidate};
use super::constraint::{Allowed, Constraint, Progress};
use super::repetition::{forbid, keep, penalise, repeated_tail, repeating};
use super::{DecodeOptions, Decoded, Loras, Prompt, Strategy, sample};
use crate::models::{LanguageModel, ModelError};
use crate::nn::kv_cache::KvCache;
use crate::nn::lora::LoraSet;

/// Decodes answers side by side; `K` is whatever the caller wants back with each answer.
#[derive(Debug)]
pub struct SlotDecoder<K> {
    cache: KvCache,
    taken: Vec<bool>,
    /// In the order in which they joined.
    answers: Vec<Answer<K>>,
    end_ids: Vec<i64>,
    vocabulary: i64,
    width: i64,
}

/// An answer under way.
#[derive(Debug)]
struct Answer<K> {
    key: K,
    prompt: Prompt,
    /// Most tokens, as its slot has room for.
    tokens_max: usize,
    /// All slots that are its own, in order.
    slots: Vec<usize>,
    search: Search,
}

#[derive(Debug)]
enum Search {
    One {
        out: Decoded,
        progress: Option<Progress>,
    },
    Beams {
        beams: BeamSearch,
        /// The slot of each hypothesis under way.
        places: Vec<usize>,
    },
}

impl<K> Answer<K> {
    /// What the next step feeds: a slot and a token for each row, hypotheses in order.
    fn feeds(&self) -> Vec<(usize, i64)> {
        let last = |ids: &[i64]| *ids.last().expect("an answer joins with its first token");
        match &self.search {
            Search::One { out, .. } => vec![(self.slots[0], last(&out.ids))],
            Search::Beams { beams, places } => {
                let rows = places.iter().zip(beams.live());
                rows.map(|(place, found)| (*place, last(&found.ids))).collect()
            }
        }
    }

    /// Whether it is the likeliest token that counts, and nothing else.
    fn is_plain(&self) -> bool {
        let options = &self.prompt.options;
        options.strategy == Strategy::Greedy && self.prompt.constraint.is_none() && !bends(options)
    }
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
        let info = model.info();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        Self {
            cache: model.new_cache(count(slots), count(prompt_positions), count(answer_positions)),
            taken: vec![false; slots],
            answers: Vec::new(),
            end_ids: end_ids.to_vec(),
            vocabulary: vocabulary.clamp(1, info.vocab.max(1)),
            width: info.width,
        }
    }

    /// Places that are free.
    pub fn free(&self) -> usize {
        self.taken.iter().filter(|taken| !**taken).count()
    }

    /// Places in use.
    pub fn used(&self) -> usize {
        self.taken.len() - self.free()
    }

    /// Whether `prompt` can ever fit a slot and leave room for an answer of `tokens`, and for an allowed one where it is
    /// constrained.
    ///
    /// # Errors
    /// [`ModelError::TooManyPositions`] with the positions wanted and available; [`ModelError::Constraint`] where no
    /// allowed answer is as short as the prompt's options ask for.
    pub fn check(&self, prompt: &Prompt, tokens: usize) -> Result<(), ModelError> {
        prompt.options.validate()?;
        let mut tokens = tokens;
        if let Some(constraint) = &prompt.constraint {
            constraint.check_tokens(prompt.options.tokens_max)?;
            // The last token of an answer is not fed back.
            tokens = tokens.max(constraint.tokens_min() - 1);
        }
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        if prompt.options.slots() > self.taken.len() {
            return Err(ModelError::Decoding {
                option: "beams",
                found: prompt.options.slots().to_string(),
                expected: "no more than there are slots",
            });
        }
        match prompt.embeds.size().as_slice() {
            [positions, width] if *positions > 0 && *width == self.width => {
                Ok(self.cache.check_capacity(*positions, tokens)?)
            }
            other => Err(ModelError::Shape {
                what: "a prompt",
                expected: format!("[P, {}]", self.width),
                found: other.to_vec(),
            }),
        }
    }

    /// Lets answers join: runs their prompts in one pass per adapter and picks each first token.
    ///
    /// Returns the answers that were complete after that token. The prompts may take at most [`SlotDecoder::free`] places.
    /// An answer whose prompt leaves less room than it asks for is cut off there.
    ///
    /// # Errors
    /// [`ModelError`] when a prompt does not fit or the model fails; nothing has joined then, and the keys are lost
    /// with the prompts.
    pub fn join(
        &mut self,
        model: &dyn LanguageModel,
        loras: Loras<'_>,
        arrivals: Vec<(K, Prompt)>,
    ) -> Result<Vec<(K, Decoded)>, ModelError> {
        let mut wanted = 0;
        for (_, prompt) in &arrivals {
            self.check(prompt, 0)?;
            wanted += prompt.options.slots();
        }
        if wanted > self.free() {
            return Err(ModelError::Shape {
                what: "slots for prompts that join",
                expected: format!("at most {}", self.free()),
                found: vec![i64::try_from(wanted).unwrap_or(i64::MAX)],
            });
        }
        let before = self.answers.len();
        for (key, prompt) in arrivals {
            let slots = self.take(prompt.options.slots());
            let progress = prompt.constraint.as_ref().map(|constraint| constraint.begin());
            let search = Search::One {
                out: Decoded::default(),
                progress,
            };
            self.answers.push(Answer {
                key,
                tokens_max: prompt.options.tokens_max,
                prompt,
                slots,
                search,
            });
        }
        let joined: Vec<usize> = (before..self.answers.len()).collect();
        let begun = self.begin(model, loras, &joined);
        if begun.is_err() {
            for answer in self.answers.split_off(before) {
                self.release(&answer.slots);
            }
        }
        begun?;
        Ok(self.leave())
    }

    /// Advances every answer by one token; returns those that are complete.
    ///
    /// # Errors
    /// [`ModelError`] when the model fails; the answers stay where they were.
    pub fn step(
        &mut self,
        model: &dyn LanguageModel,
        loras: Loras<'_>,
    ) -> Result<Vec<(K, Decoded)>, ModelError> {
        let all: Vec<usize> = (0..self.answers.len()).collect();
        for group in self.group_by_lora(&all) {
            // Neighbouring slots in order spare the cache copies.
            let mut rows: Vec<(usize, i64)> = group
                .iter()
                .flat_map(|answer| self.answers[*answer].feeds())
                .collect();
            rows.sort_unstable();
            let (slots, ids): (Vec<usize>, Vec<i64>) = rows.into_iter().unzip();
            let lora = self.lora(group[0], loras)?;
            let scores = model.step(&ids, &mut self.cache, &slots, lora)?;
            self.advance(&group, &slots, &scores)?;
        }
        Ok(self.leave())
    }

    /// Empties every slot and hands the keys back, for a caller that gives up on them.
    pub fn clear(&mut self) -> Vec<K> {
        let answers = std::mem::take(&mut self.answers);
        (answers.into_iter())
            .map(|answer| {
                self.release(&answer.slots);
                answer.key
            })
            .collect()
    }

    /// The keys of the answers under way.
    pub fn active(&mut self) -> impl Iterator<Item = &mut K> {
        self.answers.iter_mut().map(|answer| &mut answer.key)
    }

    /// The answers under way as they stand; of a beam search, the best one.
    pub fn so_far(&self) -> impl Iterator<Item = (&K, Decoded)> {
        self.answers.iter().filter_map(|answer| {
            let so_far = match &answer.search {
                Search::One { out, .. } => out.clone(),
                Search::Beams { beams, .. } => {
                    let best = beams.live().first()?;
                    Decoded {
                        ids: best.ids.clone(),
                        log_probs: best.log_probs.clone(),
                        ..Decoded::default()
                    }
                }
            };
            Some((&answer.key, so_far))
        })
    }

    /// Keys of the low-rank parts that answers under way are pinned to.
    pub fn loras(&self) -> impl Iterator<Item = u64> {
        self.answers.iter().filter_map(|answer| answer.prompt.lora)
    }

    /// Takes free slots, neighbours where there are any.
    fn take(&mut self, count: usize) -> Vec<usize> {
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

    fn release(&mut self, slots: &[usize]) {
        for slot in slots {
            self.cache.clear(*slot);
            self.taken[*slot] = false;
        }
    }

    /// Splits answers into groups that share one set of low-rank parts.
    fn group_by_lora(&self, answers: &[usize]) -> Vec<Vec<usize>> {
        let mut groups: Vec<(Option<u64>, Vec<usize>)> = Vec::new();
        for answer in answers {
            let key = self.answers[*answer].prompt.lora;
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push(*answer),
                None => groups.push((key, vec![*answer])),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    fn lora<'l>(&self, answer: usize, loras: Loras<'l>) -> Result<Option<&'l LoraSet>, ModelError> {
        match self.answers[answer].prompt.lora {
            None => Ok(None),
            Some(key) => match loras.iter().find(|(known, _)| *known == key) {
                Some((_, set)) => Ok(Some(set)),
                None => Err(ModelError::NoLora { key }),
            },
        }
    }

    fn begin(
        &mut self,
        model: &dyn LanguageModel,
        loras: Loras<'_>,
        joined: &[usize],
    ) -> Result<(), ModelError> {
        for group in self.group_by_lora(joined) {
            let prompts: Vec<&Tensor> = (group.iter())
                .map(|answer| &self.answers[*answer].prompt.embeds)
                .collect();
            let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.size()[0]).collect();
            let embeds = Tensor::f_pad_sequence(&prompts, true, 0.0, "right")?; // [B, P, H]
            let slots: Vec<usize> = group
                .iter()
                .map(|answer| self.answers[*answer].slots[0])
                .collect();
            let lora = self.lora(group[0], loras)?;
            let scores = model.prefill(&embeds, &lengths, &mut self.cache, &slots, lora)?;
            for answer in &group {
                self.set_out(*answer);
            }
            self.advance(&group, &slots, &scores)?;
        }
        Ok(())
    }

    /// Readies an answer for its first token, now that its prompt is in its first slot.
    fn set_out(&mut self, answer: usize) {
        let answer = &mut self.answers[answer];
        let room = usize::try_from(self.cache.remaining(answer.slots[0])).unwrap_or(0);
        answer.tokens_max = answer.prompt.options.tokens_max.min(room + 1);
        if let (Strategy::Beam(settings), Search::One { progress, .. }) =
            (answer.prompt.options.strategy, &mut answer.search)
        {
            let stop_loops = guards(&answer.prompt.options, answer.prompt.constraint.as_deref());
            answer.search = Search::Beams {
                beams: BeamSearch::new(settings, answer.tokens_max, stop_loops, progress.take()),
                places: vec![answer.slots[0]],
            };
        }
        // The cache holds it now.
        answer.prompt.embeds = Tensor::new();
    }

    /// Picks the next tokens of a group from `scores` `[B, V]`, whose rows belong to `slots`.
    fn advance(&mut self, group: &[usize], slots: &[usize], scores: &Tensor) -> Result<(), ModelError> {
        let row_of = |slot: &usize| -> i64 {
            let row = slots.iter().position(|own| own == slot);
            i64::try_from(row.expect("every slot of the group was fed")).expect("a small number")
        };
        let plain = group.iter().any(|answer| self.answers[*answer].is_plain());
        let best = if plain {
            choose(scores, self.vocabulary)?
        } else {
            Vec::new()
        };
        for index in group {
            let answer = &mut self.answers[*index];
            let plain = answer.is_plain();
            match &mut answer.search {
                Search::One { out, progress } => {
                    let row = row_of(&answer.slots[0]);
                    let (id, log_prob) = if plain {
                        best[usize::try_from(row).expect("a row")]
                    } else {
                        let held = progress.as_ref().zip(answer.prompt.constraint.as_deref());
                        pick(
                            &scores.f_get(row)?,
                            self.vocabulary,
                            &answer.prompt.options,
                            held,
                            answer.tokens_max,
                            &out.ids,
                        )?
                    };
                    out.log_probs.push(log_prob);
                    out.ended = self.end_ids.contains(&id);
                    if !out.ended {
                        out.ids.push(id);
                    }
                    if let (Some(constraint), Some(held)) = (&answer.prompt.constraint, progress.as_ref()) {
                        *progress = constraint.advance(held, id);
                    }
                }
                Search::Beams { beams, places } => {
                    let rows: Vec<i64> = places.iter().map(row_of).collect();
                    let scores = scores
                        .f_index_select(0, &Tensor::f_from_slice(&rows)?.f_to_device(scores.device())?)?;
                    let constraint = answer.prompt.constraint.as_deref();
                    let wanted = beams.candidates(self.end_ids.len());
                    let found = continuations(
                        &scores,
                        self.vocabulary,
                        &answer.prompt.options,
                        constraint,
                        answer.tokens_max,
                        beams,
                        wanted,
                    )?;
                    let advance = |progress: &Progress, id| {
                        constraint.and_then(|constraint| constraint.advance(progress, id))
                    };
                    match beams.advance(&found, &self.end_ids, advance) {
                        Some(sources) => {
                            let (new, moves) = settle(&answer.slots, places, &sources);
                            let (to, from): (Vec<usize>, Vec<usize>) = moves.into_iter().unzip();
                            self.cache.reorder(&to, &from)?;
                            *places = new;
                        }
                        None => places.clear(),
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes out the answers that are complete.
    fn leave(&mut self) -> Vec<(K, Decoded)> {
        let mut finished = Vec::new();
        let mut index = 0;
        while index < self.answers.len() {
            if !self.answers[index].is_complete() {
                index += 1;
                continue;
            }
            let answer = self.answers.remove(index);
            self.release(&answer.slots);
            finished.push(answer.finish());
        }
        finished
    }
}

impl<K> Answer<K> {
    fn is_complete(&mut self) -> bool {
        match &mut self.search {
            Search::Beams { places, .. } => places.is_empty(),
            Search::One { out, progress } => {
                if guards(&self.prompt.options, self.prompt.constraint.as_deref())
                    && let Some(extra) = repeated_tail(&out.ids).filter(|_| !out.ended)
                {
                    out.looping = true;
                    out.ids.truncate(out.ids.len() - extra);
                    out.log_probs.truncate(out.ids.len());
                }
                let lost = self.prompt.constraint.is_some() && progress.is_none();
                out.ended || out.looping || lost || out.log_probs.len() >= self.tokens_max
            }
        }
    }

    fn finish(self) -> (K, Decoded) {
        let mut decoded = match self.search {
            Search::One { out, .. } => out,
            Search::Beams { beams, .. } => {
                let best = beams.finish();
                Decoded {
                    ids: best.ids,
                    log_probs: best.log_probs,
                    ended: best.ended,
                    looping: best.looping,
                    label: None,
                    beam_score: Some(best.score),
                }
            }
        };
        if let (Some(constraint), true) = (&self.prompt.constraint, decoded.ended) {
            decoded.label = constraint.label(&decoded.ids);
        }
        (self.key, decoded)
    }
}

/// Whether options change a free answer's scores.
fn bends(options: &DecodeOptions) -> bool {
    options.repetition_penalty != 1.0 || options.no_repeat_ngram_size > 0
}

/// Whether an answer is watched for loops: a listed text may repeat itself by nature.
fn guards(options: &DecodeOptions, constraint: Option<&Constraint>) -> bool {
    options.stop_loops && constraint.is_none_or(Constraint::has_free_text)
}

/// The likeliest token of each row of scores `[B, V]` among ids below `vocabulary`, with its log-probability among all.
fn choose(scores: &Tensor, vocabulary: i64) -> Result<Vec<(i64, f64)>, ModelError> {
    let (values, ids) = scores.f_narrow(-1, 0, vocabulary)?.f_max_dim(-1, false)?; // [B] each
    let log_probs = values - scores.f_logsumexp(-1, false)?;
    let ids = Vec::<i64>::try_from(&ids)?;
    let log_probs = Vec::<f32>::try_from(log_probs.f_to_kind(Kind::Float)?)?;
    Ok(ids
        .into_iter()
        .zip(log_probs.into_iter().map(f64::from))
        .collect())
}

/// Scores `[V]` with what the answer may not go on with at minus infinity, ids from `vocabulary` on left out.
fn restrict(
    scores: &Tensor,
    vocabulary: i64,
    options: &DecodeOptions,
    held: Option<(&Progress, &Constraint)>,
    tokens_max: usize,
    ids: &[i64],
) -> Result<Tensor, ModelError> {
    let scores = scores.f_narrow(0, 0, vocabulary)?;
    let Some((progress, constraint)) = held else {
        let mut scores = scores;
        if options.repetition_penalty != 1.0 {
            scores = penalise(&scores, ids, options.repetition_penalty)?;
        }
        return forbid(&scores, &repeating(ids, options.no_repeat_ngram_size));
    };
    let inside = |ids: &[i64]| -> Vec<i64> {
        ids.iter()
            .copied()
            .filter(|id| (0..vocabulary).contains(id))
            .collect()
    };
    match &*constraint.allowed(progress, tokens_max.saturating_sub(ids.len())) {
        Allowed::Only(ids) => keep(&scores, &inside(ids)),
        Allowed::AllBut(ids) => forbid(&scores, &inside(ids)),
    }
}

/// The next token of a single answer from its scores `[V]`, with its log-probability under the full distribution.
fn pick(
    scores: &Tensor,
    vocabulary: i64,
    options: &DecodeOptions,
    held: Option<(&Progress, &Constraint)>,
    tokens_max: usize,
    ids: &[i64],
) -> Result<(i64, f64), ModelError> {
    let possible = restrict(scores, vocabulary, options, held, tokens_max, ids)?;
    let id = match &options.strategy {
        Strategy::Sample(sampling) => sample::draw(&possible, sampling, ids.len())?,
        Strategy::Greedy | Strategy::Beam(_) => possible.f_argmax(0, false)?.f_int64_value(&[])?,
    };
    let log_prob = scores.f_get(id)? - scores.f_logsumexp(0, false)?;
    Ok((id, log_prob.f_double_value(&[])?))
}

/// The best continuations of all hypotheses, best first, from their scores `[beams, V]`.
fn continuations(
    scores: &Tensor,
    vocabulary: i64,
    options: &DecodeOptions,
    constraint: Option<&Constraint>,
    tokens_max: usize,
    beams: &BeamSearch,
    wanted: usize,
) -> Result<Vec<Candidate>, ModelError> {
    let log_probs = scores.f_log_softmax(-1, Kind::Float)?; // [beams, V]
    let so_far: Vec<f32> = beams.live().iter().map(|found| found.score).collect();
    let so_far = Tensor::f_from_slice(&so_far)?.f_to_device(scores.device())?;
    let possible = if constraint.is_none() && !bends(options) {
        log_probs.f_narrow(1, 0, vocabulary)?
    } else {
        let mut rows = Vec::with_capacity(beams.live().len());
        for (row, found) in (0..).zip(beams.live()) {
            let held = found.progress.as_ref().zip(constraint);
            rows.push(restrict(
                &log_probs.f_get(row)?,
                vocabulary,
                options,
                held,
                tokens_max,
                &found.ids,
            )?);
        }
        Tensor::f_stack(&rows, 0)?
    };
    let sums = (possible + so_far.f_unsqueeze(1)?).f_view([-1])?; // [beams · vocabulary]
    let count = i64::try_from(wanted).unwrap_or(i64::MAX).min(sums.size()[0]);
    let (best, order) = sums.f_topk(count, 0, true, true)?;
    let (row, id) = (
        order.f_floor_divide_scalar(vocabulary)?,
        order.f_remainder(vocabulary)?,
    );
    let chosen = log_probs.f_index(&[Some(&row), Some(&id)])?;
    let best = Vec::<f32>::try_from(&best)?;
    let chosen = Vec::<f32>::try_from(&chosen)?;
    let (row, id) = (Vec::<i64>::try_from(&row)?, Vec::<i64>::try_from(&id)?);
    let candidates = best
        .into_iter()
        .zip(chosen)
        .zip(row)
        .zip(id)
        .map(|(((score, log_prob), row), id)| Candidate {
            source: usize::try_from(row).unwrap_or(0),
            id,
            score,
            log_prob: f64::from(log_prob),
        });
    Ok(candidates
        .filter(|candidate| candidate.score > f32::NEG_INFINITY)
        .collect())
}

/// Slots for hypotheses that continue those in `places`, and which slot must take over which: a slot goes on with the first
/// hypothesis that continues its own.
fn settle(own: &[usize], places: &[usize], sources: &[usize]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut spare: Vec<usize> = own
        .iter()
        .copied()
        .rev()
        .filter(|slot| !sources.iter().any(|source| places[*source] == *slot))
        .collect();
    let mut kept = Vec::new();
    let mut moves = Vec::new();
    let new = sources
        .iter()
        .map(|source| {
            let from = places[*source];
            if !kept.contains(&from) {
                kept.push(from);
                return from;
            }
            let to = spare.pop().expect("there are as many slots as hypotheses may be");
            moves.push((to, from));
            to
        })
        .collect();
    (new, moves)
}
