//! Curriculum, batches, losses, schedule, optimiser state, checkpoints: single steps, and the engine that
//! runs them.
//!
//! | file | one thought |
//! |---|---|
//! | [`manifest`] | JSON lines of labelled recordings, untrusted |
//! | [`corpora`] | manifests from folders of corpora; the proof that nothing tested is learned |
//! | [`example`] | one labelled recording, wherever its audio is |
//! | [`speaker_mixes`] | clips of several speakers, mixed anew each time |
//! | [`prepare`] | targets in their final spelling, as tokens |
//! | [`prompt_variants`] | how samples are asked; compound examples from rows with several targets |
//! | [`batch`] | batches by length, in a seeded order, read ahead |
//! | [`augment`] | cheap random changes to audio and features |
//! | [`feature_cache`] | features of the frozen encoder on disk |
//! | [`ctc`] | which tokens the CTC head knows |
//! | [`stage`] | what learns in a stage, and its loss |
//! | [`schedule`] | learning rate over a stage |
//! | [`checkpoint`] | what an exact resume needs |
//! | [`engine`] | the run |
//! | [`evaluate`] | greedy answers and word error rates |
//! | [`events`], [`log`] | what a run reports, and its log |
//! | [`pretrain`] | BEST-RQ pre-training of a speech encoder, with a run of its own |
//! | [`control`] | pause and stop between steps |

pub mod augment;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod control;
pub mod corpora;
pub mod ctc;
pub mod engine;
mod error;
mod eval_rows;
pub mod evaluate;
pub mod events;
pub mod example;
pub mod feature_cache;
pub mod label_loss;
pub mod log;
pub mod manifest;
pub mod networks;
pub mod prepare;
pub mod pretrain;
pub mod prompt_variants;
mod run;
pub mod schedule;
mod segment_memory;
pub mod speaker_mixes;
pub mod stage;
pub mod summary_units;
pub mod trainer_config;

pub use control::{Control, Yield};
pub use engine::{Engine, EngineArgs, TrainOutcome};
pub use error::TrainingError;
pub use events::TrainEvent;
pub use example::{AudioSource, Clip, Example};
pub use manifest::{Manifest, read_manifest};
pub use networks::Networks;
pub use run::{TrainArgs, TrainReport, draft, run};

#[cfg(test)]
mod tests;
