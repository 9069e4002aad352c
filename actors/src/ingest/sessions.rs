//! Chunked streams: decoded as they come, answered at their end.

use super::recordings::WholeSound;
use super::*;

/// The part of `kafka.in_flight_bytes_max` that sound to be decoded later may have. With what is kept for
/// dead letters it is less than half, from which on a full source reads on.
const KEPT_SHARE: u64 = 5;
/// The part of it that the sound of unfinished streams may have which are asked about as a whole. It does not
/// count as in flight: a source that it stopped would bring none of them to its end.
const WHOLE_SHARE: u64 = 2;

/// Records of a stream that are taken out of it; those that are left when it is dropped become dead letters,
/// as that of a context does.
struct StreamGuard {
    records: StreamRecords,
    orphans: OrphanQueue,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        for record in self.records.by_ref() {
            self.orphans.take(record, Stage::Ingest);
        }
    }
}

impl StreamGuard {
    /// Takes the records out: their outcome is in the caller's hands now.
    fn complete(mut self) -> StreamRecords {
        std::mem::take(&mut self.records)
    }
}

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
            self.args.tracker.wait(&record_offset, u64::MAX);
        }
        if let Some(request) = first {
            let stream = match self.begin(&name, &request) {
                Ok(stream) => stream,
                Err(why) => return self.break_off(&name, why).await,
            };
            if let Some(place) = self.streams.state(&name) {
                *place = Some(stream);
            }
        }
        let Some(Some(stream)) = self.streams.state(&name) else {
            return self.break_off(&name, unknown()).await;
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
        stream.hold(self.args.tracker.budget());
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
        if is_final {
            return self.end(&name).await;
        }
        for (record_offset, bytes_left) in self.streams.let_go(&name) {
            self.args.tracker.wait(&record_offset, bytes_left);
        }
        self.limit_kept().await;
    }

    /// Breaks the streams that keep most, where all together keep more than they may.
    async fn limit_kept(&mut self) {
        let undecoded =
            "to be decoded at their end: send raw PCM, WAV or Opus in Ogg, which are decoded as they come";
        self.limit(KEPT_SHARE, StreamAudio::kept_bytes, undecoded).await;
        let whole = "of sound that is asked about as a whole: end them sooner, or ask for transcripts, which take windows";
        self.limit(WHOLE_SHARE, StreamAudio::whole_bytes, whole).await;
    }

    /// Breaks the streams with most bytes, by what `bytes_of` says, until all together have at most a `share`
    /// of what may be in flight. `what` says what is kept, and what to do.
    async fn limit(&mut self, share: u64, bytes_of: fn(&StreamAudio) -> usize, what: &str) {
        let most = self.args.tracker.budget().bytes_max() / share;
        let limit = usize::try_from(most).unwrap_or(usize::MAX);
        while let Some(name) = self.streams.largest(limit, bytes_of) {
            let kept = self.streams.state(&name).and_then(|stream| stream.as_ref());
            let bytes = kept.map_or(0, bytes_of);
            let message = format!(
                "unfinished streams keep more than {most} bytes (`kafka.in_flight_bytes_max` / {share}), and this one \
                 most of them, {bytes}, {what}"
            );
            let why = Rejection::new(Reason::ValueTooLarge, Stage::Ingest, message);
            self.break_off(&name, why).await;
        }
    }

    /// The audio of a stream that begins.
    fn begin(&mut self, name: &StreamName, request: &Request) -> Result<StreamAudio, Rejection> {
        let deadline = self.deadline(request)?;
        let limits = self.args.audio.limits();
        let content_type = request.content_type.as_deref();
        if !self.is_by_window(request) {
            if request.barge_in {
                self.barge_in(request);
            }
            let most = self.args.audio.whole_seconds_max;
            let mut stream = StreamAudio::whole(content_type, &limits, most);
            stream.deadline = deadline;
            return Ok(stream);
        }
        let record = self.streams.first(name).ok_or_else(unknown)?;
        let span = request_span(&record.record_offset, request);
        let interrupt = Interrupt::default(); // it is in progress from its last chunk on
        let source = self.source(record, request, deadline, &interrupt, &span);
        let mut stream = StreamAudio::transcript(
            content_type,
            &limits,
            &self.args.speech,
            request.partials,
            &self.detector,
            source,
        );
        stream.deadline = deadline;
        Ok(stream)
    }

    /// The last chunk is there: the stream is answered as a whole, or its windows are joined.
    async fn end(&mut self, name: &StreamName) {
        let started = Instant::now();
        let Some(complete) = self.streams.complete(name) else {
            return;
        };
        // First those that nobody else would hand on if the next line panicked.
        let earlier = self.guard_all(complete.earlier);
        let (record, request) = (self.guard(complete.record), complete.request);
        if self.is_revoked(&record.record_offset) {
            earlier.complete();
            record.complete();
            return;
        }
        let span = request_span(&record.record_offset, &request);
        let mut stream = complete.state;
        let deadline = stream.deadline;
        let ended = self
            .in_time(deadline)
            .and_then(|()| stream.finish(&self.detector));
        let failure = (stream.source.as_ref()).and_then(|source| source.joining.failure());
        let (windows, end) = match (ended, failure) {
            (Ok(ended), None) => ended,
            (Err(why), _) | (Ok(_), Some(why)) => {
                drop(stream); // before its letters
                self.refuse_all(earlier.complete(), why.clone()).await;
                return self.refuse(record.reject(), why).await;
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
            earlier: earlier.complete().offsets().collect(),
            interrupt: self.interrupts.enter(&request, interrupt.unwrap_or_default()),
            so_far: was_read.then(|| stream.read_segment(0, None)),
        };
        stream.keep_windows();
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
            self.refuse_all(*records, rejection).await;
        }
    }

    /// Refuses the records of a stream one by one.
    pub(super) async fn refuse_all(&self, records: StreamRecords, why: Rejection) {
        let mut guard = self.guard_all(records);
        for record in guard.records.by_ref() {
            self.refuse(record, why.clone()).await;
        }
    }

    fn guard_all(&self, records: StreamRecords) -> StreamGuard {
        StreamGuard {
            records,
            orphans: self.args.orphans.clone(),
        }
    }

    /// Whether a deadline that was ahead when its request was read still is.
    fn in_time(&self, deadline: Option<Instant>) -> Result<(), Rejection> {
        let now = self.args.clock.now();
        let Some(deadline) = deadline.filter(|deadline| *deadline <= now) else {
            return Ok(());
        };
        let message = format!("`ce_deadline` is past by {} ms", (now - deadline).as_millis());
        Err(Rejection::new(Reason::DeadlineExceeded, Stage::Ingest, message))
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

/// The rejection of a chunk whose stream is gone, which cannot be.
fn unknown() -> Rejection {
    Rejection::new(
        Reason::InternalError,
        Stage::Ingest,
        "the stream is not known any more",
    )
}
