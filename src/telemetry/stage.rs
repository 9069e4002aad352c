//! `StageItem`: one work item inside one stage, counted, timed and traced from its entry to its exit.
//!
//! The counters of a stage add up by construction: an item is counted in when it is made, and out or rejected
//! when it goes, whatever happens to the code in between. When nothing is in flight, `in = out + rejected`.

use std::time::{Duration, Instant};

use tracing::Span;

use super::metrics;

/// One work item inside one stage. Dropped without [`StageItem::finish`], it counts as rejected.
#[derive(Debug)]
pub struct StageItem {
    stage: &'static str,
    entered: Instant,
    span: Span,
    finished: bool,
}

impl StageItem {
    /// Counts an item that reached `stage` after waiting `waited` for it, and begins its span under
    /// `request`.
    pub fn enter(stage: &'static str, waited: Duration, request: &Span) -> Self {
        metrics::stage_entered(stage, waited);
        let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        Self {
            stage,
            entered: Instant::now(),
            span: tracing::info_span!(parent: request, "stage", otel.name = stage, stage, waited_ms),
            finished: false,
        }
    }

    /// Moves its span under a request's, for a stage that finds out only on the way which request it works
    /// on.
    pub fn set_parent(&mut self, request: &Span) {
        self.span = tracing::info_span!(parent: request, "stage", otel.name = self.stage, stage = self.stage);
    }

    /// The span of this stage's work.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Counts the item out: the stage did what it is for.
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for StageItem {
    fn drop(&mut self) {
        if self.finished {
            metrics::stage_left(self.stage, self.entered.elapsed());
        } else {
            metrics::stage_rejected(self.stage, self.entered.elapsed());
        }
    }
}
