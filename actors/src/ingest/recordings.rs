//! Recordings whose sound is all there: answered as one, or window by window.

use speechverse::models::adapter::AdapterSnapshot;

use super::*;
use crate::long_recording::{LongRecording, NotLong, Work, note_defects, rejection};
use crate::messages::AdmittedRequest;

/// A recording whose samples are all here.
pub(super) struct WholeSound {
    /// Mono, 16 kHz.
    pub(super) samples: Vec<f32>,
    pub(super) damage: Damage,
    /// The version that answers it.
    pub(super) adapter: AdapterSnapshot,
}

impl AudioIngest {
    /// Decodes a whole recording and hands it on; one that is longer than what is kept waits for its turn.
    pub(super) async fn answer(&mut self, mut record: RecordGuard, request: Request) {
        let started = Instant::now();
        let span = request_span(&record.record_offset, &request);
        record.belongs_to(&span);
        if self.is_revoked(&record.record_offset) {
            record.complete();
            return;
        }
        let ready: Result<_, Rejection> = span.in_scope(|| {
            let deadline = self.deadline(&request)?;
            Ok((deadline, self.decode(&request)?))
        });
        let (deadline, sound) = match ready {
            Ok(ready) => ready,
            Err(rejection) => return self.refuse(record.reject(), rejection).await,
        };
        if request.barge_in {
            self.barge_in(&request);
        }
        let facts = Facts {
            deadline,
            decode_audio: started.elapsed(),
            earlier: Vec::new(),
            interrupt: self.interrupts.enter(&request, Interrupt::default()),
            so_far: None,
        };
        let Some(waveform) = sound else {
            return self.wait_for_turn(record, request, facts, span);
        };
        let Waveform { samples, damage, .. } = waveform;
        let sound = WholeSound {
            samples,
            damage,
            adapter: self.args.adapter.get(),
        };
        self.answer_samples(record.complete(), request, sound, facts, span)
            .await;
    }

    fn wait_for_turn(&self, record: RecordGuard, request: Request, facts: Facts, span: Span) {
        let source = self.source(&record, &request, facts.deadline, &facts.interrupt, &span);
        let by_window = self.is_by_window(&request);
        self.long_recordings.push(LongRecording {
            context: self.context_of(record.complete(), request, 0.0, facts, span),
            by_window,
            work: Work {
                source,
                speech: self.args.speech.clone(),
                audio: self.args.audio.clone(),
                decoder: self.args.decoder.clone(),
                clock: self.args.clock.clone(),
                encoder: self.args.encoder.clone(),
                answers: self.args.answers.clone(),
                publisher: self.args.publisher.clone(),
                not_long: self.not_long.clone(),
            },
        });
    }

    /// Hands a recording on whose samples are all here: as one, or window by window.
    pub(super) async fn answer_samples(
        &self,
        record: Record,
        request: Request,
        sound: WholeSound,
        facts: Facts,
        span: Span,
    ) {
        let WholeSound {
            samples,
            damage,
            adapter,
        } = sound;
        let record_offset = record.record_offset.clone();
        let by_window = samples.len() > self.args.speech.window_samples_max() && self.is_by_window(&request);
        let windows = match by_window {
            true => self
                .detector
                .windows(&samples, &self.args.speech.windows(false))
                .map(Some),
            false => Ok(None),
        };
        let no_speech = match windows {
            Ok(_) if loudest_frame_dbfs(&samples) < self.args.audio.no_speech_below_dbfs => Ok(true),
            Ok(_) => self.detector.has_speech(&samples).map(|speech| !speech),
            Err(_) => Ok(false),
        };
        let (windows, no_speech) = match windows.and_then(|windows| Ok((windows, no_speech?))) {
            Ok(found) => found,
            Err(error) => {
                let why = Rejection::new(Reason::InternalError, Stage::Ingest, error.to_string());
                let letter = PublishDeadLetter {
                    earlier: facts.earlier,
                    request_id: Some(request.id),
                    ..PublishDeadLetter::at_admission(record, why)
                };
                return self.tell_publisher(letter).await;
            }
        };
        let seconds = samples.len() as f64 / f64::from(SAMPLE_RATE_HZ);
        if request.train != Some(false) {
            self.tell_collector(&request, &record_offset, &samples, &damage);
        }
        if let Some(windows) = windows {
            let source = WindowSource {
                adapter,
                ..self.source(&record, &request, facts.deadline, &facts.interrupt, &span)
            };
            source
                .joining
                .keep(self.context(record, request, seconds, damage, facts, span));
            for window in windows {
                let range = window.samples.start as usize..window.samples.end as usize;
                let samples = samples[range].to_vec();
                self.send(source.order(AudioWindow { window, samples }, None))
                    .await;
            }
            return self.close(&source).await;
        }
        let form = request.grammar.as_ref().and_then(OutputGrammar::structure);
        let form_bytes = form.map_or(0, Structure::memory_bytes);
        let mut context = self.context(record, request, seconds, damage, facts, span);
        let budget: &Budget = self.args.tracker.budget();
        let held = budget.hold((size_of_val(samples.as_slice()) + form_bytes) as u64);
        context.hold(held, Vec::new());
        context.hold_audio(budget.audio().hold(TopicPartition::of(&record_offset), seconds));
        context.no_speech = no_speech;
        context.long_pause = has_long_pause(&samples);
        context.queue_for(Stage::Encode);
        self.send(EncodeUtterance {
            samples,
            adapter,
            context,
        })
        .await;
    }

    /// What the windows of a recording have in common.
    pub(super) fn source(
        &self,
        record: &Record,
        request: &Request,
        deadline: Option<Instant>,
        interrupt: &Interrupt,
        span: &Span,
    ) -> WindowSource {
        WindowSource {
            joining: Joining::default(),
            record: without_value(record),
            request: without_sound(request),
            span: span.clone(),
            orphans: self.args.orphans.clone(),
            tracker: self.args.tracker.clone(),
            adapter: self.args.adapter.get(),
            deadline,
            interrupt: interrupt.clone(),
            training: self.args.training.clone(),
        }
    }

    /// The context of an admitted recording.
    pub(super) fn context(
        &self,
        record: Record,
        request: Request,
        seconds: f64,
        damage: Damage,
        facts: Facts,
        span: Span,
    ) -> RequestContext {
        metrics::utterance_admitted(seconds);
        let mut context = self.context_of(record, request, seconds, facts, span);
        context.damage = damage;
        context.is_tracked(self.args.tracker.clone());
        context
    }

    /// The context of a recording that is not counted as admitted.
    fn context_of(
        &self,
        record: Record,
        request: Request,
        seconds: f64,
        facts: Facts,
        span: Span,
    ) -> RequestContext {
        let mut context = RequestContext::new(record, request, seconds, span, self.args.orphans.clone());
        context.earlier = facts.earlier;
        context.deadline = facts.deadline;
        context.interrupt = facts.interrupt;
        context.so_far = facts.so_far;
        context.yield_to_serving(self.args.training.as_ref());
        context.times.decode_audio_ms = facts.decode_audio.as_secs_f64() * 1e3;
        context
    }

    pub(super) async fn send(&self, order: EncodeUtterance) {
        if let Err(error) = self.args.encoder.tell(order).await {
            warn!(error = %error.to_string(), "encoder is gone, its utterance goes back");
        }
    }

    /// All windows are sent: where all answers are there, the whole is published.
    pub(super) async fn close(&self, source: &WindowSource) {
        if let Some(joined) = source.joining.close() {
            let version = source.adapter.version().to_owned();
            publish_joined(joined, version, &self.args.decoder, &self.args.answers).await;
        }
    }

    pub(super) fn tell_collector(
        &self,
        request: &Request,
        record_offset: &RecordOffset,
        samples: &[f32],
        damage: &Damage,
    ) {
        let Some(collector) = &self.args.collector else {
            return;
        };
        let fact = UtteranceAdmitted {
            request: AdmittedRequest::from(request),
            record_offset: record_offset.clone(),
            samples: Arc::from(samples),
            damage: damage.clone(),
        };
        if let Err(error) = collector.tell(fact).try_send() {
            debug!(error = %error.to_string(), "the collector is busy: a correction of this request will not find it");
        }
    }

    /// Decodes a recording; `None` where its sound seems to be longer than what is kept, which takes too long
    /// to find out here.
    fn decode(&self, request: &Request) -> Result<Option<Waveform>, Rejection> {
        let kept = samples_of(self.args.audio.whole_seconds_max);
        let limits = self.args.audio.limits();
        let here = AudioLimits {
            seconds_max: limits
                .seconds_max
                .min((kept + 1) as f64 / f64::from(SAMPLE_RATE_HZ)),
            ..limits
        };
        match decode(&request.audio, request.content_type.as_deref(), &here) {
            Ok(waveform) if waveform.samples.len() > kept => Ok(None),
            Ok(waveform) => {
                note_defects(request, waveform.content_type_mismatch, &waveform.damage);
                Ok(Some(waveform))
            }
            Err(AudioError::TooLong { .. }) if here.seconds_max < limits.seconds_max => Ok(None),
            Err(error) => Err(rejection(&error)),
        }
    }
}

/// A recording that was taken for a long one is answered as any other.
impl Message<NotLong> for AudioIngest {
    type Reply = ();

    async fn handle(&mut self, message: NotLong, _: &mut Context<Self, Self::Reply>) {
        let NotLong { context, waveform } = message;
        let state = context.complete();
        let Waveform { samples, damage, .. } = waveform;
        let sound = WholeSound {
            samples,
            damage,
            adapter: self.args.adapter.get(),
        };
        let facts = Facts {
            deadline: state.deadline,
            decode_audio: Duration::from_secs_f64(state.times.decode_audio_ms / 1e3),
            earlier: Vec::new(),
            interrupt: state.interrupt,
            so_far: None,
        };
        self.answer_samples(state.record, state.request, sound, facts, state.span)
            .await;
    }
}
