//! From what was generated to the answer that a reader gets.

use std::collections::BTreeMap;

use speechverse::audio::Damage;
use speechverse::inference::Generation;
use speechverse::inference::config::DecoderConfig;
use speechverse::text::tasks::TRANSCRIPT;
use speechverse::wire::answer::{Answer, AnswerKind, Flag, Segment, Timing, Word};
use speechverse::wire::request::Request;

use crate::messages::RequestContext;
use crate::reading::Read;

/// The task that is asked for: the named one, or transcription where the instruction is the default one;
/// `None` for any other instruction alone, which may ask for anything.
pub fn task_of<'t>(named: Option<&'t str>, instruction: &str, default_instruction: &str) -> Option<&'t str> {
    named.or((instruction == default_instruction).then_some(TRANSCRIPT))
}

/// Whether the words that are said are asked for, and nothing else: then the CTC head has a say in the
/// answer, and, where any words may be, long sound is answered window by window.
pub fn is_transcript(request: &Request, default_instruction: &str) -> bool {
    task_of(request.task.as_deref(), &request.instruction, default_instruction) == Some(TRANSCRIPT)
}

/// The answer to a request, as it is now.
pub fn answer_of(
    context: &RequestContext,
    adapter: String,
    generation: &Generation,
    text: String,
    config: &DecoderConfig,
) -> Answer {
    let request = &context.request;
    let times = context.times;
    let label = generation
        .label
        .and_then(|index| request.grammar.as_ref()?.choice()?.get(index).cloned());
    let mut flags = flags(generation, &text, config, context.no_speech);
    if context.interrupt.is_set() {
        flags.retain(|flag| *flag != Flag::Truncated); // more tokens would not have helped
        flags.push(Flag::Cancelled);
    }
    flag_audio(&mut flags, &context.damage, context.long_pause);
    let fields = (request.joint.as_ref()).map_or_else(BTreeMap::new, |joint| joint.by_task(&text));
    Answer {
        id: Answer::id_of(request.source.as_deref(), &request.id, AnswerKind::Final, 0),
        request_id: request.id.clone(),
        request_source: request.source.clone(),
        session: request.session.clone(),
        kind: AnswerKind::Final,
        task: request.task.clone(),
        instruction: request.instruction.clone(),
        flags,
        text,
        label,
        fields,
        adapter,
        score: generation.score(),
        audio_seconds: context.audio_seconds,
        audio_unheard_seconds: context.damage.undecoded_seconds,
        segment: None,
        words: words_of(generation, request.word_times),
        tokens: generation.ids.len(),
        timing_ms: Timing {
            queue: times.queue_ms,
            decode_audio: times.decode_audio_ms,
            encode: times.encode_ms,
            prefill: times.prefill_ms,
            generate: times.generate_ms,
            total: context.admitted.elapsed().as_secs_f64() * 1e3,
        },
    }
}

/// When the words of an answer are said, where that is asked for.
pub fn words_of(generation: &Generation, is_wanted: bool) -> Vec<Word> {
    let words = generation.words.iter().filter(|_| is_wanted);
    words
        .map(|word| Word {
            text: word.text.clone(),
            begin_seconds: milliseconds(word.begin),
            end_seconds: milliseconds(word.end),
        })
        .collect()
}

/// Seconds in whole milliseconds.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// What the CTC head reads of an utterance in progress, as a partial answer.
pub fn reading_of(request: &Request, adapter: &str, read: Read, segment: Segment) -> Answer {
    Answer {
        id: Answer::id_of(
            request.source.as_deref(),
            &request.id,
            AnswerKind::Partial,
            read.number,
        ),
        request_id: request.id.clone(),
        request_source: request.source.clone(),
        session: request.session.clone(),
        kind: AnswerKind::Partial,
        task: request.task.clone(),
        instruction: request.instruction.clone(),
        text: read.text,
        label: None,
        fields: BTreeMap::new(),
        adapter: adapter.to_owned(),
        score: 0.0,
        flags: Vec::new(),
        audio_seconds: segment.end_seconds,
        audio_unheard_seconds: 0.0,
        segment: Some(Segment {
            confirmed: Some(read.confirmed),
            ..segment
        }),
        words: Vec::new(),
        tokens: 0,
        timing_ms: Timing::default(),
    }
}

/// Adds what a reader should know about the sound that was asked about, each flag once.
pub fn flag_audio(flags: &mut Vec<Flag>, damage: &Damage, long_pause: bool) {
    for (found, flag) in [
        (damage.cut_short, Flag::Truncated),
        (damage.repaired, Flag::AudioRepaired),
        (long_pause, Flag::LongPause),
    ] {
        if found && !flags.contains(&flag) {
            flags.push(flag);
        }
    }
}

/// What a reader should know about an answer.
pub fn flags(generation: &Generation, text: &str, config: &DecoderConfig, quiet: bool) -> Vec<Flag> {
    let unlikely = |support: f64| support < config.unsupported_below;
    let transcript = generation.transcript.as_ref();
    let is_wordless = transcript.map_or(generation.ids.is_empty(), std::ops::Range::is_empty);
    // A word may be short, and the clip long.
    let blank = |blanks: f64| is_wordless && blanks > config.no_speech_above;
    [
        (generation.looping, Flag::Looping),
        (text.is_empty(), Flag::Empty),
        (!generation.ended && !generation.looping, Flag::Truncated),
        (
            generation.score() < config.low_confidence_below,
            Flag::LowConfidence,
        ),
        (
            !is_wordless && generation.support().is_some_and(unlikely),
            Flag::Unsupported,
        ),
        (
            quiet || generation.nothing_said || generation.blank_share.is_some_and(blank),
            Flag::NoSpeech,
        ),
    ]
    .into_iter()
    .filter_map(|(raised, flag)| raised.then_some(flag))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_answer_without_words_is_flagged_as_a_transcript_without_words_is() {
        let config = DecoderConfig::default();
        let flagged = |transcript: std::ops::Range<usize>, blanks: f64| {
            let generation = Generation {
                ids: vec![5; 6],
                log_probs: vec![-0.1; 7],
                ended: true,
                agreement: Some(0.1),
                blank_share: Some(blanks),
                transcript: Some(transcript),
                ..Generation::default()
            };
            flags(&generation, "ASR: | Intent: other |", &config, false)
        };

        assert_eq!(flagged(2..2, 0.5), []);
        assert_eq!(flagged(2..2, 0.999), [Flag::NoSpeech]);
        assert_eq!(flagged(2..4, 0.999), [Flag::Unsupported]);
    }
}
