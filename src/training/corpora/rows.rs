//! The rows that each recording gives: rows of manifests, task by task.
//!
//! The list of labels that a training row offers is drawn anew for each recording, so that a model learns to
//! read it; test rows offer the whole list of their corpus, in one order.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::pack::{Recording, Split};
use super::{digest, pick, shuffled};

/// Words of AN4's control part that are commands by themselves.
const CONTROL_KIND: &str = "control words";
/// A control word that fewer recordings say is no command.
const CONTROL_CLIPS_MIN: usize = 5;
/// Another word than those of the list.
const NO_COMMAND: &str = "none";
/// Corpora of people who grew up with English, where their labels do not say so.
const NATIVE_SOURCES: [&str; 2] = ["librispeech", "an4"];
/// EmoDB's names and those of `configs/tasks/emotion.toml`, in the order of that file.
const EMOTIONS: [(&str, &str); 4] = [
    ("neutral", "neutral"),
    ("happiness", "happy"),
    ("sadness", "sad"),
    ("anger", "angry"),
];
/// The label of recordings in which nobody says a word.
const NON_SPEECH: &str = "non-speech";
/// One in so many wordless voices is also an example of an empty transcript.
const WORDLESS_SHARE: usize = 3;

/// A line of a manifest, as [`read_manifest`](super::super::manifest::read_manifest) reads it, with notes.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Absolute path of the recording.
    pub audio_filepath: String,
    /// Seconds.
    pub duration: f64,
    /// Task, or tasks.
    pub task: String,
    /// The answer, where it is not the transcript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Answers of a compound row.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<String, String>,
    /// The transcript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `recogniser` where no human wrote the transcript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_from: Option<&'static str>,
    /// The transcript is empty because nothing is said.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_speech: bool,
    /// What may be answered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What sounds, in a recording without speech.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Who speaks.
    pub voice: String,
    /// The corpus.
    pub domain: String,
    /// Where it belongs.
    pub split: Split,
    /// For test rows: whether the same words occur in training by design of the corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words_seen_in_train: Option<bool>,
    /// Terms under which it may be used.
    pub licence: String,
    /// Where it was published.
    pub origin: String,
}

/// Rows by manifest: its name without the split.
pub type Rows = BTreeMap<&'static str, Vec<Row>>;

/// The rows of all recordings, in an order that depends on each row alone.
pub fn rows_of(recordings: &[Recording]) -> Rows {
    let mut rows = Rows::new();
    let commands = Commands::of(recordings);
    let lists = target_lists(recordings);
    let slot_types = slot_types(recordings);
    for recording in recordings {
        let mut add = |manifest, row| rows.entry(manifest).or_default().push(row);
        if recording.text.is_some() {
            add("asr", Row::of(recording, "asr"));
        }
        if let Some((target, labels)) = commands.row(recording) {
            add("command", Row::of(recording, "command").labelled(target, labels));
        }
        match recording.task.as_str() {
            "emotion" if recording.labels.vocal_burst => {
                if let Some(target) = recording.target.clone() {
                    let labels = offered(recording, &lists[recording.source.as_str()]);
                    let row = Row::of(recording, "emotion").labelled(target, labels);
                    add("vocal_burst", row.without_words());
                }
                let row = Row::of(recording, "speech_detection").labelled(NON_SPEECH.into(), Vec::new());
                add("speech_detection_wordless", row.without_words());
                if recording.split != Split::Train || pick(&recording.key, WORDLESS_SHARE) == 0 {
                    add("asr_empty", Row::of(recording, "asr").without_words());
                }
            }
            "emotion" => {
                let known = (EMOTIONS.iter()).find(|(theirs, _)| recording.target.as_deref() == Some(theirs));
                if let Some((_, target)) = known {
                    let names: Vec<String> = EMOTIONS.map(|(_, name)| name.to_owned()).into();
                    let labels = offered(recording, &names);
                    add(
                        "emotion",
                        Row::of(recording, "emotion").labelled((*target).to_owned(), labels),
                    );
                }
            }
            "speech-detection" => {
                let row = Row::of(recording, "speech_detection").labelled(NON_SPEECH.into(), Vec::new());
                add("speech_detection", row.without_words());
                add("asr_empty", Row::of(recording, "asr").without_words());
                if recording.split == Split::Train {
                    add("noise", Row::of(recording, "asr").without_words());
                }
            }
            "intent-slots" => add_slots(recording, &slot_types[recording.source.as_str()], &mut add),
            _ => {}
        }
        if let Some(age_group) = recording.labels.age_group.clone() {
            add(
                "age_group",
                Row::of(recording, "age_group").labelled(age_group, Vec::new()),
            );
        }
        if let Some(kind) = kind_of_english(recording) {
            add(
                "native_english",
                Row::of(recording, "native_english").labelled(kind.into(), Vec::new()),
            );
        }
    }
    let others = as_much_speech(recordings);
    rows.entry("speech_detection").or_default().extend(others);
    for (name, rows) in &mut rows {
        rows.sort_by_cached_key(|row| digest(&format!("{name}/{}", row.audio_filepath)));
    }
    rows.retain(|_, rows| !rows.is_empty());
    rows
}

impl Row {
    fn of(recording: &Recording, task: &str) -> Self {
        Self {
            audio_filepath: recording.path.to_string_lossy().into_owned(),
            duration: recording.duration,
            task: task.to_owned(),
            target: None,
            targets: BTreeMap::new(),
            text: recording.text.clone(),
            text_from: recording.recognised.then_some("recogniser"),
            no_speech: false,
            labels: Vec::new(),
            event: recording.labels.event.clone(),
            voice: recording.voice.clone(),
            domain: recording.source.clone(),
            split: recording.split,
            words_seen_in_train: recording.words_seen_in_train,
            licence: recording.licence.clone(),
            origin: recording.origin.clone(),
        }
    }

    fn labelled(mut self, target: String, labels: Vec<String>) -> Self {
        self.target = Some(target);
        self.labels = labels;
        self
    }

    fn without_words(mut self) -> Self {
        self.text = Some(String::new());
        self.no_speech = true;
        self
    }
}

/// The whole list in the corpus's order for a test row, an order of its own for any other.
fn offered(recording: &Recording, list: &[String]) -> Vec<String> {
    match recording.split {
        Split::Test => list.to_vec(),
        _ => shuffled(&recording.key, list),
    }
}

/// The answers that occur in each corpus, sorted.
fn target_lists(recordings: &[Recording]) -> BTreeMap<&str, Vec<String>> {
    let mut lists: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for recording in recordings {
        let list = lists.entry(&recording.source).or_default();
        list.extend(recording.target.clone());
    }
    (lists.into_iter())
        .map(|(source, list)| (source, list.into_iter().collect()))
        .collect()
}

/// The commands of each corpus that has some.
struct Commands {
    by_source: BTreeMap<String, Vec<String>>,
    /// Of all corpora.
    all: Vec<String>,
}

impl Commands {
    fn of(recordings: &[Recording]) -> Self {
        let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for recording in recordings {
            if let Some(command) = Self::said(recording) {
                *counts
                    .entry(&recording.source)
                    .or_default()
                    .entry(command)
                    .or_insert(0) += 1;
            }
        }
        let by_source: BTreeMap<String, Vec<String>> = (counts.into_iter())
            .map(|(source, counts)| {
                let often = (counts.into_iter()).filter(|(_, count)| *count >= CONTROL_CLIPS_MIN);
                (
                    source.to_owned(),
                    often.map(|(command, _)| command.to_owned()).collect(),
                )
            })
            .collect();
        let all: BTreeSet<String> = (by_source.values().flatten())
            .filter(|command| *command != NO_COMMAND)
            .cloned()
            .collect();
        Self {
            by_source,
            all: all.into_iter().collect(),
        }
    }

    fn said(recording: &Recording) -> Option<&str> {
        match recording.task.as_str() {
            "keyword-spotting" => recording.target.as_deref(),
            "asr" if recording.labels.kind.as_deref() == Some(CONTROL_KIND) => {
                recording.text.as_deref().filter(|text| !text.contains(' '))
            }
            _ => None,
        }
    }

    /// The answer and the list that the row offers. Half of the training rows offer the corpus's own list,
    /// the others some commands of any corpus; one training row in ten offers none of the right ones.
    fn row(&self, recording: &Recording) -> Option<(String, Vec<String>)> {
        let said = Self::said(recording)?;
        let own = self.by_source.get(&recording.source)?;
        if !own.iter().any(|command| command == said) {
            return None;
        }
        let key = &recording.key;
        if recording.split == Split::Test {
            return Some((said.to_owned(), own.clone()));
        }
        let way = pick(&format!("set/{key}"), 10);
        if way < 5 {
            return Some((said.to_owned(), shuffled(key, own)));
        }
        let count = 3 + pick(&format!("n/{key}"), 8);
        let mut list: Vec<String> = (shuffled(key, &self.all).into_iter())
            .filter(|command| command != said)
            .take(count)
            .collect();
        let mut answer = said;
        if said == NO_COMMAND || way == 9 {
            answer = NO_COMMAND;
            list.push(NO_COMMAND.to_owned());
        } else {
            list.push(said.to_owned());
            if pick(&format!("none/{key}"), 3) == 0 {
                list.push(NO_COMMAND.to_owned());
            }
        }
        Some((answer.to_owned(), shuffled(&format!("{key}b"), &list)))
    }
}

/// Every slot type of each corpus, sorted.
fn slot_types(recordings: &[Recording]) -> BTreeMap<&str, Vec<String>> {
    let mut types: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for recording in recordings {
        let slots = recording.labels.slots.iter().flat_map(BTreeMap::keys).cloned();
        types.entry(&recording.source).or_default().extend(slots);
    }
    (types.into_iter())
        .map(|(source, types)| (source, types.into_iter().collect()))
        .collect()
}

fn add_slots(recording: &Recording, types: &[String], add: &mut impl FnMut(&'static str, Row)) {
    let Some(slots) = &recording.labels.slots else {
        return;
    };
    let pairs: Vec<String> = slots
        .iter()
        .map(|(slot, value)| format!("{slot} = {value};"))
        .collect();
    let answer = match pairs.is_empty() {
        true => "none".to_owned(),
        false => pairs.join(" "),
    };
    let labels = offered(recording, types);
    if let Some(text) = &recording.text {
        let mut row = Row::of(recording, "asr,slots");
        row.targets = [
            ("asr".to_owned(), text.clone()),
            ("slots".to_owned(), answer.clone()),
        ]
        .into();
        row.labels.clone_from(&labels);
        add("joint_slots", row);
    }
    add("slots", Row::of(recording, "slots").labelled(answer, labels));
}

/// `native` or `learner`, where the corpus knows: learners are those who read English for a corpus of
/// transcripts and have another first language.
fn kind_of_english(recording: &Recording) -> Option<&'static str> {
    match recording.labels.native_language.as_deref() {
        Some("English") => Some("native"),
        Some(_) => (recording.task == "asr").then_some("learner"),
        None => NATIVE_SOURCES
            .contains(&recording.source.as_str())
            .then_some("native"),
    }
}

/// As many rows of speech as there are without, in each split: the corpora in turn.
fn as_much_speech(recordings: &[Recording]) -> Vec<Row> {
    let silent = |recording: &&Recording| recording.task == "speech-detection";
    let mut rows = Vec::new();
    for split in [Split::Train, Split::Valid, Split::Test] {
        let here = || recordings.iter().filter(|recording| recording.split == split);
        let wanted = here().filter(silent).count();
        let mut by_source: BTreeMap<&str, Vec<&Recording>> = BTreeMap::new();
        for recording in here().filter(|recording| !silent(recording) && !recording.labels.vocal_burst) {
            by_source.entry(&recording.source).or_default().push(recording);
        }
        for corpus in by_source.values_mut() {
            corpus.sort_by_cached_key(|recording| digest(&format!("speech/{}", recording.key)));
        }
        let turns = (0..).take_while(|at| by_source.values().any(|corpus| corpus.len() > *at));
        let chosen = turns.flat_map(|at| by_source.values().filter_map(move |corpus| corpus.get(at)));
        rows.extend(
            chosen.take(wanted).map(|recording| {
                Row::of(recording, "speech_detection").labelled("speech".into(), Vec::new())
            }),
        );
    }
    rows
}
