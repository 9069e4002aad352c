//! Chunked streams: decoded as they come, answered at their end.

use super::recordings::WholeSound;
use super::*;

impl AudioIngest {
    /// Takes the next chunk of a stream.
    pub(super) async fn take_chunk(&mut self, next: Next) {
        let Next {
            name,
            record_offset,
            audio,
            is_final,
            first,
        } = next;
        if !is_final {
            // However many chunks a stream has, it is one piece of work, and begins with the last one.
            self.args.tracker.wait(&record_offset, false);
        }
        if let Some(request) = first {
            let stream = self.begin(&name, &request);
            if let Some(place) = self.streams.state(&name) {
                *place = stream;
            }
        }
        let Some(Some(stream)) = self.streams.state(&name) else {
            let why = Rejection::new(
                Reason::InternalError,
                Stage::Ingest,
                "the stream is not known any more",
            );
            return self.break_off(&name, why).await;
        };
        let failure = stream.source.as_ref().and_then(|source| source.joining.failure());
        let windows = match failure {
            Some(why) => Err(why),
            None => stream.push(&audio, &self.detector),
        };
        let windows = match windows {
            Ok(windows) => windows,
            Err(why) => return self.break_off(&name, why).await,
        };
        let mut steps = stream.ended(windows);
        if !is_final {
            steps.extend(stream.likely_ended());
        }
        let is_live = stream.is_live();
        let barges_in = stream.barges_in();
        if let Some(request) = barges_in {
            self.barge_in(&request);
        }
        if !is_final {
            self.read_so_far(&name);
        }
        for step in steps {
            self.carry_out(step).await;
        }
        if is_live {
            for record_offset in self.streams.let_go(&name) {
                self.args.tracker.wait(&record_offset, true);
            }
        }
        if is_final {
            self.end(&name).await;
        }
    }

    /// The audio of a stream that begins; `None` cannot be answered.
    fn begin(&mut self, name: &StreamName, request: &Request) -> Option<StreamAudio> {
        let limits = self.args.audio.limits();
        let content_type = request.content_type.as_deref();
        if !self.is_by_window(request) {
            if request.barge_in {
                self.barge_in(request);
            }
            let most = self.args.audio.whole_seconds_max;
            return Some(StreamAudio::whole(content_type, &limits, most));
        }
        let record = self.streams.first(name)?;
        let span = request_span(&record.record_offset, request);
        let deadline = self.deadline(request).ok().flatten(); // one that is past is said at the end
        let interrupt = Interrupt::default(); // it is in progress from its last chunk on
        let source = self.source(record, request, deadline, &interrupt, &span);
        Some(StreamAudio::transcript(
            content_type,
            &limits,
            &self.args.speech,
            request.partials,
            &self.detector,
            source,
        ))
    }

    /// The last chunk is there: the stream is answered as a whole, or its windows are joined.
    async fn end(&mut self, name: &StreamName) {
        let started = Instant::now();
        let Some(complete) = self.streams.complete(name) else {
            return;
        };
        let (record, request) = (self.guard(complete.record), complete.request);
        let earlier: Vec<RecordGuard> = (complete.earlier.into_iter())
            .map(|record| self.guard(record))
            .collect();
        if self.is_revoked(&record.record_offset) {
            for record in earlier.into_iter().chain([record]) {
                record.complete();
            }
            return;
        }
        let span = request_span(&record.record_offset, &request);
        let mut stream = complete.state;
        let ended = self
            .deadline(&request)
            .and_then(|deadline| Ok((deadline, stream.finish(&self.detector)?)));
        let failure = (stream.source.as_ref()).and_then(|source| source.joining.failure());
        let (deadline, (windows, end)) = match (ended, failure) {
            (Ok(ended), None) => ended,
            (Err(why), _) | (Ok(_), Some(why)) => {
                if let Some(source) = stream.source {
                    source.joining.give_up(why.clone());
                }
                return self.refuse_all(earlier.into_iter().chain([record]), why).await;
            }
        };
        let StreamEnd {
            whole,
            last,
            seconds,
            damage,
        } = end;
        // A container that is read at its end is heard only now.
        if let Some(request) = stream.barges_in() {
            self.barge_in(&request);
        }
        let interrupt = (stream.source.as_ref()).map(|source| source.interrupt.clone());
        let was_read = whole.is_some() && stream.was_read();
        let facts = Facts {
            deadline,
            decode_audio: started.elapsed(),
            earlier: (earlier.into_iter())
                .map(|record| record.complete().record_offset)
                .collect(),
            interrupt: self.interrupts.enter(&request, interrupt.unwrap_or_default()),
            so_far: was_read.then(|| stream.read_segment(0, None)),
        };
        if let Some(samples) = whole {
            // What is confirmed are tokens of the version that the stream began with.
            let pinned = stream.source.as_ref().map(|source| source.adapter.clone());
            let sound = WholeSound {
                samples,
                damage,
                adapter: pinned.unwrap_or_else(|| self.args.adapter.get()),
            };
            return self
                .answer_samples(record.complete(), request, sound, facts, span)
                .await;
        }
        let steps = stream.ended(windows.into_iter().chain(last).collect());
        let Some(source) = stream.source else {
            return; // cannot be: what is not kept whole has windows
        };
        let context = self.context(record.complete(), request, seconds, damage, facts, span);
        source.joining.keep(context);
        for step in steps {
            self.carry_out(step).await;
        }
        self.close(&source).await;
    }

    async fn carry_out(&self, step: Step) {
        match step {
            Step::Encode(order) => self.send(order).await,
            Step::Publish(done) => {
                publish_window(*done, &self.args.decoder, &self.args.answers, &self.args.partials).await;
            }
        }
    }

    /// A stream cannot be answered: all its records become dead letters.
    async fn break_off(&mut self, name: &StreamName, why: Rejection) {
        let taken = self.streams.break_off(name, None, why);
        if let Taken::Broken(records, rejection) = taken {
            for record in records {
                self.refuse(record, rejection.clone()).await;
            }
        }
    }

    async fn refuse_all(&self, records: impl Iterator<Item = RecordGuard>, why: Rejection) {
        for record in records {
            self.refuse(record.reject(), why.clone()).await;
        }
    }

    /// Has the utterance in progress read, where that is asked for and it is time.
    fn read_so_far(&mut self, name: &StreamName) {
        let samples = |milliseconds: u64| samples_of(milliseconds as f64 / 1e3) as u64;
        let every = ReadingIntervals {
            read: samples(self.args.speech.partial_interval_ms),
            confirm: samples(self.args.speech.confirm_interval_ms),
        };
        let Some(Some(stream)) = self.streams.state(name) else {
            return;
        };
        if let Some(order) = stream.next_reading(every) {
            let _ = self.args.so_far.tell(order).try_send(); // the next one is not far
        }
    }
}
