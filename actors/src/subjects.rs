//! What corrections are about: the requests that are remembered, and the corrections that came before theirs.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::label::Correction;

use crate::messages::{RecordGuard, UtteranceAdmitted};

/// What an entry takes besides its sound and its texts, bytes: the entry itself, its places in the map and in
/// the order, which name it again, and what the allocator adds.
const ENTRY_BYTES: usize = 1_024;
/// What a text takes besides its own bytes.
const TEXT_BYTES: usize = size_of::<String>() + 16;

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
    /// Remembers requests of `bytes_max` bytes, sound and texts together.
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

/// The memory that an entry takes, with the names of its keys.
fn bytes_of(admitted: &UtteranceAdmitted) -> usize {
    let request = &admitted.request;
    let keys = [source_of(admitted), request.id.as_str()];
    let texts = (keys.into_iter().cycle().take(3 * keys.len())) // in the entry, the map and the order
        .chain(request.task.as_deref())
        .chain([request.instruction.as_str()])
        .chain(request.labels.iter().flatten().map(String::as_str))
        .chain((request.fields.iter()).flat_map(|(name, value)| [name.as_str(), value.as_str()]))
        .chain(admitted.damage.notes.iter().map(String::as_str));
    let text_bytes: usize = texts.map(|text| TEXT_BYTES + text.len()).sum();
    ENTRY_BYTES + size_of_val(&*admitted.samples) + text_bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use speechverse::audio::Damage;
    use speechverse::wire::RecordOffset;

    use super::*;
    use crate::messages::AdmittedRequest;

    fn admitted(number: usize, samples: usize, labels: Option<Vec<String>>) -> UtteranceAdmitted {
        UtteranceAdmitted {
            request: AdmittedRequest {
                id: format!("request-{number}"),
                labels,
                ..AdmittedRequest::default()
            },
            record_offset: RecordOffset {
                topic: Arc::from("requests"),
                partition: 0,
                offset: number as i64,
                epoch: 1,
            },
            samples: Arc::from(vec![0.0; samples]),
            damage: Damage::default(),
        }
    }

    #[test]
    fn many_tiny_clips_with_long_labels_stay_within_the_bound() {
        const BYTES_MAX: usize = 1 << 20;
        let label = "a label of about forty bytes, all its own";
        let labels: Vec<String> = (0..500).map(|number| format!("{label} {number}")).collect();
        let of_labels: usize = labels.iter().map(String::len).sum();
        let mut remembered = Remembered::new(BYTES_MAX);

        for number in 0..500 {
            remembered.insert(admitted(number, 1, Some(labels.clone())));
        }

        let held = remembered.by_id.len();
        assert!(
            held > 0 && held * of_labels <= BYTES_MAX,
            "{held} requests are held"
        );
        assert_eq!(remembered.order.len(), held);
        assert!(remembered.get("", "request-499").is_some() && remembered.get("", "request-0").is_none());
    }

    #[test]
    fn entries_without_sound_and_texts_are_not_free() {
        let mut remembered = Remembered::new(100 * ENTRY_BYTES);

        for number in 0..1_000 {
            remembered.insert(admitted(number, 0, None));
        }

        assert!((1..=100).contains(&remembered.by_id.len()));
    }

    #[test]
    fn what_is_replaced_or_forgotten_gives_its_bytes_back() {
        let mut remembered = Remembered::new(1 << 20);

        remembered.insert(admitted(1, 1_000, Some(vec!["yes".to_owned()])));
        remembered.insert(admitted(1, 10, None));
        assert_eq!(remembered.bytes, bytes_of(&admitted(1, 10, None)));

        remembered.remove("", "request-1");
        remembered.order.clear();
        assert_eq!(remembered.bytes, 0);
    }
}
