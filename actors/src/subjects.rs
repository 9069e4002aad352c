//! What corrections are about: the requests that are remembered, and the corrections that came before theirs.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::label::Correction;

use crate::messages::{RecordGuard, UtteranceAdmitted};

/// A correction whose request has not come yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Its record.
    pub(crate) record: RecordGuard,
    /// What it says.
    pub(crate) correction: Correction,
    /// When it is given up.
    pub(crate) until: Instant,
}

impl Waiting {
    /// Why it is given up.
    pub(crate) fn unknown_subject(&self) -> Rejection {
        let source = match &self.correction.subject_source {
            Some(source) => format!(" of source `{}`", source.escape_debug()),
            None => String::new(),
        };
        let message = format!(
            "request `{}`{source} is not known (it never came, it may not be trained on, or too much came since): send the audio \
             with the label",
            self.correction.subject.escape_debug()
        );
        Rejection::new(Reason::UnknownSubject, Stage::Collect, message)
    }
}

/// The latest utterances, for corrections; the oldest go first.
#[derive(Debug)]
pub(crate) struct Remembered {
    bytes_max: usize,
    bytes: usize,
    /// By id; there are several where clients of different sources use the same one.
    by_id: HashMap<String, Vec<UtteranceAdmitted>>,
    /// Source and id, the oldest first.
    order: VecDeque<(String, String)>,
}

impl Remembered {
    /// Remembers `bytes_max` bytes of sound.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            by_id: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// The request of that source (empty: of none) and id.
    pub(crate) fn get(&self, source: &str, id: &str) -> Option<&UtteranceAdmitted> {
        let of_id = self.by_id.get(id)?;
        of_id.iter().find(|admitted| source_of(admitted) == source)
    }

    /// The sources of the requests with this id.
    pub(crate) fn sources_of<'s>(&'s self, id: &str) -> impl Iterator<Item = &'s str> + use<'s> {
        self.by_id.get(id).into_iter().flatten().map(source_of)
    }

    /// Remembers a request, in place of one of the same source and id.
    pub(crate) fn insert(&mut self, admitted: UtteranceAdmitted) {
        let (source, id) = (source_of(&admitted).to_owned(), admitted.request.id.clone());
        self.bytes += bytes_of(&admitted);
        let of_id = self.by_id.entry(id.clone()).or_default();
        match of_id.iter_mut().find(|before| source_of(before) == source) {
            Some(before) => self.bytes -= bytes_of(&std::mem::replace(before, admitted)),
            None => {
                of_id.push(admitted);
                self.order.push_back((source, id));
            }
        }
        while self.bytes > self.bytes_max {
            let Some((source, id)) = self.order.pop_front() else {
                break;
            };
            self.remove(&source, &id);
        }
    }

    fn remove(&mut self, source: &str, id: &str) {
        let Some(of_id) = self.by_id.get_mut(id) else {
            return;
        };
        of_id.retain(|admitted| {
            let stays = source_of(admitted) != source;
            if !stays {
                self.bytes -= bytes_of(admitted);
            }
            stays
        });
        if of_id.is_empty() {
            self.by_id.remove(id);
        }
    }
}

fn source_of(admitted: &UtteranceAdmitted) -> &str {
    admitted.request.source.as_deref().unwrap_or_default()
}

fn bytes_of(admitted: &UtteranceAdmitted) -> usize {
    size_of_val(&*admitted.samples)
}
