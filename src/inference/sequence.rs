//! `Sequence`: one answer on its way from prompt to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::Tensor;

use super::grammar::{CompiledGrammar, GrammarState};
use super::sampling::beam::BeamSearch;
use super::sampling::{JointCtc, JointLabels, Rules, continuations, penalises, repeated_tail, sample_next};
use super::{DecodeOptions, Generation, Strategy};
use crate::models::ModelError;
use crate::nn::kv_cache::KvCache;
use crate::nn::lora::LoraSet;
use crate::text::TokenBytes;

/// Names a request; no two in a process are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

impl RequestId {
    /// An id that was never given before.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Low-rank parts by key, for answers that are pinned to different adapter versions.
pub type Loras<'l> = &'l [(u64, &'l LoraSet)];

/// What a sequence begins with.
#[derive(Debug)]
pub struct Prompt {
    /// Embedded prompt, `[P, H]`.
    pub embeds: Tensor,
    /// The tokens that its first positions are, where other prompts begin alike; may be empty.
    pub prefix: Arc<[i64]>,
    /// How it is answered.
    pub options: DecodeOptions,
    /// What the answer may be; free text when absent.
    pub grammar: Option<Arc<CompiledGrammar>>,
    /// Key into [`Loras`]: the low-rank parts of the adapter version that the answer is pinned to.
    pub lora: Option<u64>,
    /// What the CTC head reads, where the answer is a transcript or begins with one.
    pub joint: Option<JointCtc>,
    /// What the sound says of the labels, for each part of the answer that is one of such labels.
    pub labels: Vec<JointLabels>,
}

/// Logits of one forward pass and what was chosen from them for all rows at once.
pub(super) struct PassOutput {
    /// The cache slot of each row.
    pub(super) slots: Vec<usize>,
    /// `[B, V]`.
    pub(super) logits: Tensor,
    /// The likeliest token of each row with its log-probability; empty where no row wants it.
    pub(super) likeliest: Vec<(i64, f64)>,
}

/// What the tokens of an answer are chosen by.
#[derive(Clone, Copy)]
pub(super) struct Choice<'c> {
    /// Ids from here on are never chosen.
    pub(super) vocabulary: i64,
    /// Tokens that end an answer.
    pub(super) end_ids: &'c [i64],
}

impl PassOutput {
    /// The first row of a slot; those behind it are of the tokens that were drafted.
    fn row_of(&self, slot: usize) -> usize {
        let row = self.slots.iter().position(|own| *own == slot);
        row.expect("every slot of the group was fed")
    }
}

/// A sequence that waits, or is generated.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) prompt: Prompt,
    /// Positions of the prompt.
    pub(super) prompt_positions: i64,
    /// Most tokens: what is asked for, as far as a slot has positions.
    pub(super) tokens_max: usize,
    /// All slots that are its own, in order; none while it waits.
    pub(super) slots: Vec<usize>,
    /// Whether its whole prompt is in the cache, and it has been readied for its tokens.
    pub(super) started: bool,
    /// Tokens that may come next: the next step feeds them behind the last one, and those that are chosen
    /// indeed need no step of their own.
    draft: Vec<i64>,
    /// How many tokens it began with, and the bytes of tokens: the one behind them begins a word.
    known: Option<(usize, Arc<TokenBytes>)>,
    /// Why it cannot go on.
    pub(super) failure: Option<ModelError>,
    search: Search,
}

#[derive(Debug)]
enum Search {
    Single {
        out: Generation,
        state: Option<GrammarState>,
    },
    Beams {
        beams: BeamSearch,
        /// The slot of each live hypothesis.
        live_slots: Vec<usize>,
    },
}

impl Sequence {
    /// An answer that begins with `begun`, at the end of the prompt. `token_bytes`: given where they
    /// end with a word.
    pub(super) fn new(
        id: RequestId,
        prompt: Prompt,
        tokens_max: usize,
        begun: Generation,
        token_bytes: Option<Arc<TokenBytes>>,
    ) -> Self {
        let known = (!begun.ids.is_empty())
            .then_some(begun.ids.len())
            .zip(token_bytes);
        let state = prompt.grammar.as_ref().map(|grammar| grammar.begin());
        let search = Search::Single { out: begun, state };
        Self {
            id,
            prompt_positions: prompt.embeds.size()[0],
            tokens_max,
            slots: Vec::new(),
            started: false,
            draft: Vec::new(),
            known,
            failure: None,
            search,
            prompt,
        }
    }

    /// Readies it for its first token, now that the cache holds its prompt in its first slot.
    pub(super) fn start(&mut self) {
        let stop_loops = self.stops_loops();
        if let (Strategy::Beam(settings), Search::Single { state, .. }) =
            (self.prompt.options.strategy, &mut self.search)
        {
            self.search = Search::Beams {
                beams: BeamSearch::new(settings, self.tokens_max, stop_loops, state.take()),
                live_slots: vec![self.slots[0]],
            };
        }
        self.prompt.embeds = Tensor::new();
        self.started = true;
    }

    /// Tokens that its answer begins with at the end of its prompt, while it waits.
    pub(super) fn begun(&self) -> usize {
        match &self.search {
            Search::Single { out, .. } => out.log_probs.len(),
            Search::Beams { .. } => 0,
        }
    }

    /// Whether tokens can be drafted for it: a CTC head has read the clip and may know what follows, and
    /// there is one hypothesis.
    pub(super) fn has_drafts(&self) -> bool {
        let is_single = !matches!(self.prompt.options.strategy, Strategy::Beam(_));
        match (&self.search, &self.prompt.joint) {
            (Search::Single { out, .. }, Some(joint)) => is_single && joint.has_drafts(&out.ids),
            _ => false,
        }
    }

    /// The tokens that were drafted for the next pass.
    pub(super) fn drafted(&self) -> &[i64] {
        &self.draft
    }

    /// Drafts the tokens that the next pass feeds behind the last one, at most `most`: what the CTC head
    /// reads behind the answer so far, from the next begin of a word on where one is due.
    pub(super) fn draft(&mut self, most: usize) {
        self.draft.clear();
        let word_start = self.word_start();
        if let (Search::Single { out, .. }, Some(joint)) = (&self.search, &self.prompt.joint) {
            // One more token is chosen than there are drafted ones.
            let most = most.min(self.tokens_max.saturating_sub(out.log_probs.len() + 1));
            if most > 0 {
                self.draft = joint.read_behind(&out.ids, most);
                if let Some(bytes) = word_start {
                    let at = self.draft.iter().position(|id| bytes.begins_word(*id));
                    self.draft.drain(..at.unwrap_or(self.draft.len()));
                }
            }
        }
    }

    /// What the next step feeds: a slot and a token for each row, hypotheses and drafted tokens in order.
    pub(super) fn feeds(&self) -> Vec<(usize, i64)> {
        let last = |ids: &[i64]| *ids.last().expect("a running sequence has its first token");
        match &self.search {
            Search::Single { out, .. } => ([last(&out.ids)].iter().chain(&self.draft))
                .map(|id| (self.slots[0], *id))
                .collect(),
            Search::Beams { beams, live_slots } => {
                let rows = live_slots.iter().zip(beams.live());
                rows.map(|(slot, found)| (*slot, last(&found.ids))).collect()
            }
        }
    }

    /// Slots that hold a live hypothesis; of a beam search at its beginning or end fewer than are reserved
    /// for it.
    pub(super) fn slots_in_use(&self) -> usize {
        match &self.search {
            Search::Single { .. } => 1,
            Search::Beams { live_slots, .. } => live_slots.len(),
        }
    }

    /// Whether the likeliest token of the unchanged logits is all that it needs.
    pub(super) fn is_plain_greedy(&self) -> bool {
        let options = &self.prompt.options;
        let is_behind_words = self.word_start().is_some();
        let by_sound = self.prompt.joint.as_ref().is_some_and(|joint| joint.weight > 0.0);
        options.strategy == Strategy::Greedy
            && self.prompt.grammar.is_none()
            && !by_sound
            && !is_behind_words
            && !penalises(options)
    }

    /// Bytes of the tokens, where the next one has to begin a word.
    fn word_start(&self) -> Option<Arc<TokenBytes>> {
        let (count, token_bytes) = self.known.as_ref()?;
        (self.tokens() == *count).then(|| Arc::clone(token_bytes))
    }

    /// Whether it is watched for loops: a listed text may repeat itself by nature.
    fn stops_loops(&self) -> bool {
        let grammar = self.prompt.grammar.as_deref();
        self.prompt.options.stop_loops && grammar.is_none_or(CompiledGrammar::has_free_text)
    }

    /// Takes the next token, or the next of each hypothesis, and goes on as long as the token taken is the
    /// one that was drafted; the slots of `cache` follow. How many tokens were drafted, and how many of them
    /// were taken.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails.
    pub(super) fn advance(
        &mut self,
        output: &PassOutput,
        cache: &mut KvCache,
        choice: Choice<'_>,
    ) -> Result<(usize, usize), ModelError> {
        let draft = std::mem::take(&mut self.draft);
        let mut taken = 0;
        loop {
            let next = self.take_next(output, taken, cache, choice)?;
            if self.is_complete() || next.is_none() || draft.get(taken).copied() != next {
                break;
            }
            taken += 1;
        }
        if taken < draft.len() {
            let wrong = i64::try_from(draft.len() - taken).unwrap_or(0);
            cache.truncate(self.slots[0], cache.length(self.slots[0]) - wrong);
        }
        Ok((draft.len(), taken))
    }

    /// Takes the next token from the row that is so far behind the sequence's first; of a beam search the
    /// next of each hypothesis, which are none that could have been drafted.
    fn take_next(
        &mut self,
        output: &PassOutput,
        behind: usize,
        cache: &mut KvCache,
        choice: Choice<'_>,
    ) -> Result<Option<i64>, ModelError> {
        let Choice { vocabulary, end_ids } = choice;
        let plain_greedy = self.is_plain_greedy();
        let word_start = self.word_start();
        let rules = Rules {
            vocabulary,
            options: &self.prompt.options,
            grammar: self.prompt.grammar.as_deref(),
            joint: self.prompt.joint.as_ref().filter(|joint| joint.weight > 0.0),
            labels: &self.prompt.labels,
            end_ids,
            word_start: word_start.as_deref(),
            tokens_max: self.tokens_max,
        };
        match &mut self.search {
            Search::Single { out, state } => {
                let row = output.row_of(self.slots[0]) + behind;
                let (id, log_prob) = if plain_greedy {
                    output.likeliest[row]
                } else {
                    let logits = output.logits.f_get(index(row))?;
                    sample_next(&logits, &rules, state.as_ref(), &out.ids)?
                };
                out.log_probs.push(log_prob);
                out.ended = end_ids.contains(&id);
                if !out.ended {
                    out.ids.push(id);
                }
                if let (Some(grammar), Some(before)) = (rules.grammar, state.as_ref()) {
                    *state = grammar.advance(before, id);
                }
                return Ok(Some(id));
            }
            Search::Beams { beams, live_slots } => {
                let rows: Vec<i64> = (live_slots.iter())
                    .map(|slot| index(output.row_of(*slot)))
                    .collect();
                let rows = Tensor::f_from_slice(&rows)?.f_to_device(output.logits.device())?;
                let logits = output.logits.f_index_select(0, &rows)?;
                let wanted = beams.candidates(end_ids.len());
                let found = continuations(&logits, &rules, beams, wanted)?;
                let advance =
                    |state: &GrammarState, id| rules.grammar.and_then(|grammar| grammar.advance(state, id));
                match beams.advance(&found, end_ids, advance) {
                    Some(sources) => {
                        let (new, moves) = reassign_slots(&self.slots, live_slots, &sources);
                        let (to, from): (Vec<usize>, Vec<usize>) = moves.into_iter().unzip();
                        cache.reorder(&to, &from)?;
                        *live_slots = new;
                    }
                    None => live_slots.clear(),
                }
            }
        }
        Ok(None)
    }

    /// Whether nothing is to be added; cuts the repeats off an answer that is caught in a loop.
    pub(super) fn is_complete(&mut self) -> bool {
        let stops_loops = self.stops_loops();
        match &mut self.search {
            Search::Beams { live_slots, .. } => live_slots.is_empty(),
            Search::Single { out, state } => {
                let is_open = !out.ended && !out.looping;
                if stops_loops
                    && is_open
                    && let Some(extra) = repeated_tail(&out.ids)
                {
                    out.looping = true;
                    out.ids.truncate(out.ids.len() - extra);
                    out.log_probs.truncate(out.ids.len());
                }
                let outside = self.prompt.grammar.is_some() && state.is_none();
                out.ended || out.looping || outside || out.log_probs.len() >= self.tokens_max
            }
        }
    }

    /// The answer so far; of a beam search, its best live hypothesis. None where there is no token yet.
    pub(super) fn partial(&self) -> Option<Generation> {
        match &self.search {
            Search::Single { out, .. } => self.started.then(|| out.clone()),
            Search::Beams { beams, .. } => beams.live().first().map(|best| Generation {
                ids: best.ids.clone(),
                log_probs: best.log_probs.clone(),
                ..Generation::default()
            }),
        }
    }

    /// Tokens so far, the one that ends the answer not counted.
    pub(super) fn tokens(&self) -> usize {
        match &self.search {
            Search::Single { out, .. } => out.ids.len(),
            Search::Beams { beams, .. } => beams.live().first().map_or(0, |best| best.ids.len()),
        }
    }

    /// The complete answer.
    pub(super) fn finish(self) -> Generation {
        let mut found = match self.search {
            Search::Single { out, .. } => out,
            Search::Beams { beams, .. } => {
                let best = beams.finish();
                Generation {
                    ids: best.ids,
                    log_probs: best.log_probs,
                    ended: best.ended,
                    looping: best.looping,
                    label: None,
                    beam_score: Some(best.score),
                    ..Generation::default()
                }
            }
        };
        if let (Some(grammar), true) = (&self.prompt.grammar, found.ended) {
            found.label = grammar.label(&found.ids);
        }
        if let Some(joint) = &self.prompt.joint
            && let Some(range) = joint.transcript(&found.ids)
        {
            let words = &found.ids[range.clone()];
            found.agreement = Some(joint.scorer.agreement(words));
            found.blank_share = Some(joint.scorer.blank_share());
            let positions = joint.scorer.align(words);
            found.positions = positions.map(|positions| (positions, joint.scorer.frames()));
            found.transcript = Some(range);
        }
        found
    }
}

fn index(row: usize) -> i64 {
    i64::try_from(row).expect("a small number")
}

/// Slots for hypotheses that continue those in `live_slots`, and which slot must take over which: a slot goes
/// on with the first hypothesis that continues its own.
fn reassign_slots(
    own: &[usize],
    live_slots: &[usize],
    sources: &[usize],
) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut spare: Vec<usize> = own
        .iter()
        .copied()
        .rev()
        .filter(|slot| !sources.iter().any(|source| live_slots[*source] == *slot))
        .collect();
    let mut kept = Vec::new();
    let mut moves = Vec::new();
    let new = sources
        .iter()
        .map(|source| {
            let from = live_slots[*source];
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
