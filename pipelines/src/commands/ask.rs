//! `speechverse ask`: answers about audio files, without Kafka.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use speechverse::audio::{SAMPLE_RATE_HZ, decode, has_long_pause, loudest_frame_dbfs, samples_of};
use speechverse::config::Settings;
use speechverse::inference::speech_llm::{Learned, SpeechLlm};
use speechverse::inference::{
    Clip, DecodeOptions, Engine, EngineConfig, Event, Features, GenerateRequest, Generation, Input,
    VoiceDetector,
};
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::models::encoders::whisper::Window;
use speechverse::models::open_encoder;
use speechverse::nn::accel::{Placement, configure_threads};
use speechverse::text::tasks::TRANSCRIPT;
use speechverse::text::{GrammarPiece, OutputGrammar, ResolvedPrompt, Structure, TaskTable};
use speechverse::wire::answer::{Answer, AnswerKind, Timing};
use speechverse_actors::answering::{flag_audio, flags, words_of};
use tch::Tensor;

use super::Failure;
use crate::cli::Ask;
use crate::{adapters, output};

pub(super) fn ask(args: &Ask) -> Result<(), Failure> {
    let settings = Settings::load(&args.settings.config).map_err(Failure::usage)?;
    let question = Order::of(args, &settings)?;
    let options = args.decoding.options(&settings).map_err(Failure::Usage)?;
    let mut respondent = Respondent::open(&settings, args.adapter.as_deref(), options)?;
    let mut failed = 0;
    for file in &args.files {
        let name = file.display().to_string();
        let answer = super::read_input(file)
            .and_then(|bytes| respondent.answer(&name, &bytes, &question))
            .with_context(|| name.clone());
        match answer {
            Ok(answer) if args.json => {
                output::line(serde_json::to_string(&answer).context("an answer is always JSON")?)?;
            }
            Ok(answer) if args.files.len() > 1 => output::line(format!("{name}: {}", answer.text))?,
            Ok(answer) => output::line(&answer.text)?,
            Err(error) => {
                failed += 1;
                tracing::error!("{error:#}");
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(anyhow::anyhow!("{failed} of {} files could not be answered", args.files.len()).into()),
    }
}

/// What is asked about every file.
struct Order {
    task: Option<String>,
    asked: ResolvedPrompt,
    /// What the answer is constrained to.
    grammar: Option<OutputGrammar>,
    /// The task that the engine is given: `task`, or transcription where nothing else is asked.
    answered_as: Option<String>,
}

impl Order {
    fn of(args: &Ask, settings: &Settings) -> Result<Self, Failure> {
        let own = args.instruction.as_deref();
        if own.is_some_and(|own| own.trim().is_empty()) {
            return Err(Failure::Usage(anyhow::anyhow!("`--instruction` is empty")));
        }
        let labels = (!args.given.labels.is_empty()).then_some(args.given.labels.as_slice());
        let asked = match &args.task {
            Some(task) => TaskTable::load(&settings.service.tasks_dir)
                .and_then(|tasks| tasks.ask(task, &args.given.variables(), own))
                .map_err(Failure::usage)?,
            None => ResolvedPrompt::plain(
                own.unwrap_or(&settings.service.default_instruction).to_owned(),
                labels,
            ),
        };
        let grammar = match args.form.source().map_err(Failure::Usage)? {
            None => asked.form(args.constrain),
            Some(_) if asked.joint.is_some() => {
                return Err(Failure::Usage(anyhow::anyhow!(
                    "`--task` names several tasks, whose answers have a form already"
                )));
            }
            Some((kind, source)) => {
                let structure = Structure::new(kind, &source).map_err(Failure::usage)?;
                Some(OutputGrammar::of(GrammarPiece::Structure(Arc::new(structure))))
            }
        };
        Ok(Self {
            task: args.task.clone(),
            answered_as: match &args.task {
                Some(task) => Some(task.clone()),
                None if asked.instruction == settings.service.default_instruction => {
                    Some(TRANSCRIPT.to_owned())
                }
                None => None,
            },
            grammar,
            asked,
        })
    }
}

/// The inference engine in this process, one question at a time.
pub(super) struct Respondent {
    settings: Settings,
    engine: Engine,
    adapter: AdapterSnapshot,
    detector: VoiceDetector,
}

/// An answer with the moments at which its parts were there.
struct Timed {
    generation: Generation,
    text: String,
    encoded: Instant,
    prefilled: Instant,
}

impl Respondent {
    pub(super) fn open(
        settings: &Settings,
        version: Option<&str>,
        options: DecodeOptions,
    ) -> anyhow::Result<Self> {
        let placement = Placement::resolve(settings.model.device, settings.model.precision)?;
        configure_threads(settings.model.threads);
        let identities = adapters::identities(settings)?;
        let (_, loaded) = adapters::open(settings, version, &identities)?;
        let encoder = open_encoder(&settings.model.encoder, Window::Clip, &placement)?;
        let llm = SpeechLlm::open(&settings.model.llm, settings.model.system.as_deref(), &placement)?;
        let config = EngineConfig {
            slots: options.slots(),
            answer_positions: options.tokens_max,
            options,
            ..settings.engine()
        };
        Ok(Self {
            settings: settings.clone(),
            engine: Engine::new(encoder, llm, &config),
            adapter: loaded.adapter,
            detector: VoiceDetector::open(&settings.speech, &settings.audio)
                .context("voice activity detector")?,
        })
    }

    fn features(&self, samples: &[f32]) -> anyhow::Result<Features> {
        let adapter = &self.adapter;
        let mut found = self.engine.extractor().extract(&[Clip { samples, adapter }]);
        Ok(found.swap_remove(0)?)
    }

    /// Both halves of the engine, one after the other, so that each can be timed.
    fn generate(
        &mut self,
        samples: &[f32],
        instruction: &str,
        grammar: Option<&OutputGrammar>,
        task: Option<&str>,
        asked: Option<&ResolvedPrompt>,
    ) -> anyhow::Result<Timed> {
        let features = self.features(samples)?;
        let encoded = Instant::now();
        self.engine.add_request(GenerateRequest {
            input: Input::Features {
                features,
                adapter: self.adapter.clone(),
            },
            instruction: instruction.to_owned(),
            grammar: grammar.cloned(),
            tokens_max: None,
            task: task.map(str::to_owned),
            spoken: asked.and_then(|asked| asked.spoken.clone()),
            joint: asked.and_then(|asked| asked.joint.clone()),
        });
        let mut prefilled = None;
        while self.engine.has_unfinished() {
            for event in self.engine.step() {
                prefilled.get_or_insert_with(Instant::now);
                match event {
                    Event::Token { .. } => {}
                    Event::Finished { generation, text, .. } => {
                        return Ok(Timed {
                            generation,
                            text,
                            encoded,
                            prefilled: prefilled.unwrap_or(encoded),
                        });
                    }
                    Event::Failed { error, .. } => return Err(error.into()),
                }
            }
        }
        anyhow::bail!("the engine ended without an answer")
    }

    /// A transcript of long sound, window by window, and whether nothing was said; the times are
    /// those of the first window.
    fn windows(&mut self, samples: &[f32], order: &Order) -> anyhow::Result<(Timed, bool)> {
        let windows = (self.detector).windows(samples, &self.settings.speech.windows(false))?;
        let now = Instant::now();
        let (mut found, mut first) = (Vec::new(), None);
        for window in windows {
            let range = window.samples.start as usize..window.samples.end as usize;
            let instruction = &order.asked.instruction;
            let mut timed =
                self.generate(&samples[range.clone()], instruction, None, Some(TRANSCRIPT), None)?;
            let seconds = |samples: usize| samples as f64 / f64::from(SAMPLE_RATE_HZ);
            (timed.generation).place_words(seconds(range.start), seconds(range.len()));
            first.get_or_insert((timed.encoded, timed.prefilled));
            found.push((timed.generation, timed.text, window.overlaps));
        }
        let silent = found.is_empty();
        let (encoded, prefilled) = first.unwrap_or((now, now));
        let (generation, text) = Generation::join_windows(found);
        let whole = Timed {
            generation,
            text,
            encoded,
            prefilled,
        };
        Ok((whole, silent))
    }

    fn answer(&mut self, name: &str, bytes: &[u8], order: &Order) -> anyhow::Result<Answer> {
        let started = Instant::now();
        let lap = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        let waveform = decode(bytes, None, &self.settings.audio.limits())?;
        let decoded_audio = Instant::now();
        let samples = &waveform.samples;
        let config = &self.settings;
        let quiet = loudest_frame_dbfs(samples) < config.audio.no_speech_below_dbfs;
        let quiet = quiet || !self.detector.has_speech(samples)?;
        let long_pause = has_long_pause(samples);
        let by_window = order.answered_as.as_deref() == Some(TRANSCRIPT)
            && order.grammar.is_none()
            && samples.len() > config.speech.window_samples_max();
        let (found, joined_quiet) = match by_window {
            true => {
                let (found, silent) = self.windows(samples, order)?;
                (found, Some(silent))
            }
            false => {
                anyhow::ensure!(
                    samples.len() <= samples_of(config.audio.whole_seconds_max),
                    "it lasts {:.1} s; anything but a transcript is answered up to {} s (`audio.whole_seconds_max`)",
                    waveform.seconds(),
                    config.audio.whole_seconds_max
                );
                let (asked, grammar) = (&order.asked, order.grammar.as_ref());
                let task = order.answered_as.as_deref();
                let mut found = self.generate(samples, &asked.instruction, grammar, task, Some(asked))?;
                found.generation.place_words(0.0, waveform.seconds());
                (found, None)
            }
        };
        let Timed {
            generation,
            text,
            encoded,
            prefilled,
        } = found;
        let mut flags = flags(
            &generation,
            &text,
            &self.settings.decoder,
            joined_quiet.unwrap_or(quiet),
        );
        flag_audio(&mut flags, &waveform.damage, long_pause && joined_quiet.is_none());
        Ok(Answer {
            id: Answer::id_of(None, name, AnswerKind::Final, 0),
            request_id: name.to_owned(),
            request_source: None,
            session: None,
            kind: AnswerKind::Final,
            task: order.task.clone(),
            instruction: order.asked.instruction.clone(),
            fields: order.asked.fields(&text),
            flags,
            text,
            label: (generation.label).and_then(|index| order.grammar.as_ref()?.choice()?.get(index).cloned()),
            adapter: self.adapter.version().to_owned(),
            score: generation.score(),
            audio_seconds: waveform.seconds(),
            audio_unheard_seconds: waveform.damage.undecoded_seconds,
            segment: None,
            words: words_of(&generation, true),
            tokens: generation.ids.len(),
            timing_ms: Timing {
                queue: 0.0,
                decode_audio: (decoded_audio - started).as_secs_f64() * 1e3,
                encode: (encoded - decoded_audio).as_secs_f64() * 1e3,
                prefill: (prefilled - encoded).as_secs_f64() * 1e3,
                generate: lap(prefilled),
                total: lap(started),
            },
        })
    }

    /// The joined model's inner values on one clip: `features` `[T, D]`, `adapted` `[P, H]`, `logits` `[L,
    /// V]` over the whole prompt; and the greedy answer.
    pub(super) fn probe(
        &mut self,
        samples: &[f32],
        instruction: &str,
    ) -> anyhow::Result<(Vec<(String, Tensor)>, String)> {
        let _no_grad = tch::no_grad_guard();
        let features = self.features(samples)?;
        let length = [features.frames.size()[0]];
        let model = self.engine.generator().model();
        let learned = Learned::frozen(&self.adapter, model.llm(), tch::Device::Cpu)?;
        let adapted = (learned.adapter).forward(&features.frames.unsqueeze(0), &length)?;
        let adapted = (learned.adapter).positions(&adapted, &features.statistics.unsqueeze(0))?;
        let prompt = model
            .prompts(&adapted.positions, &adapted.lengths, &[instruction])?
            .swap_remove(0); // [L, H]
        let logits = model.llm().prompt_logits(&prompt, learned.lora.as_ref())?;
        let text = self
            .generate(samples, instruction, None, Some(TRANSCRIPT), None)?
            .text;
        let positions = adapted.positions.get(0).narrow(0, 0, adapted.lengths[0]);
        let tensors = [
            ("features", features.frames),
            ("adapted", positions),
            ("logits", logits),
        ];
        Ok((
            tensors
                .into_iter()
                .map(|(name, tensor)| (name.to_owned(), tensor))
                .collect(),
            text,
        ))
    }
}
