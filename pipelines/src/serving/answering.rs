//! The half that answers: encoder and decoder with their networks, and the ingest in front of them.

use std::sync::Arc;

use kameo::prelude::*;
use speechverse::inference::speech_llm::SpeechLlm;
use speechverse::inference::{EngineConfig, FeatureExtractor, Generator};
use speechverse::kafka::Source;
use speechverse::models::encoders::whisper::Window;
use speechverse::models::open_encoder;
use speechverse::nn::accel::configure_threads;
use speechverse::wire::request::Priority;
use speechverse_actors::decoder::{Decoder, DecoderArgs};
use speechverse_actors::encoder::{Encoder, EncoderArgs};
use speechverse_actors::ingest::{AudioIngest, IngestArgs};
use speechverse_actors::messages::{DecoderPlaces, UtteranceAdmitted};

use super::Common;
use crate::stages::{Runs, StageSpec, Stages};
use crate::trackers::Side;

/// Starts decoder and encoder; both are warm when this returns.
pub(super) async fn start_networks(
    common: &Common,
    stages: &mut Stages,
) -> anyhow::Result<ActorRef<Encoder>> {
    let settings = &common.settings;
    // A batch of the encoder, or the next round of slots.
    let places_each = settings.decoder.slots.max(settings.encoder.batch_windows_max);
    let places = DecoderPlaces::new(places_each);
    let waiting_max = Priority::ALL.len() * places_each;
    let spec = StageSpec {
        name: "decoder",
        mailbox: waiting_max, // one for each place
        runs: Runs::OnItsOwnThread,
        required: true,
    };
    let decoder: ActorRef<Decoder> = stages.start(spec, decoder_args(common, waiting_max)).await?;
    let spec = StageSpec {
        name: "encoder",
        mailbox: settings.encoder.batch_windows_max, // the next batch
        runs: Runs::OnItsOwnThread,
        required: true,
    };
    stages.start(spec, encoder_args(common, &decoder, places)).await
}

/// Starts the ingest and the source of requests. `collector` remembers them for corrections.
pub(super) async fn start_ingest(
    common: &Common,
    encoder: ActorRef<Encoder>,
    collector: Option<Recipient<UtteranceAdmitted>>,
    stages: &mut Stages,
    sources: &mut Vec<(&'static str, Source)>,
) -> anyhow::Result<()> {
    let settings = &common.settings;
    let (requests, request_events) = common.trackers.source(&settings.kafka, Side::Requests)?;
    sources.push(("requests", requests));
    let training_yields = common.role.learns() && settings.trainer.yield_to_serving;
    let args = IngestArgs {
        events: request_events,
        tracker: common.trackers.requests.clone(),
        clock: common.clock.clone(),
        audio: settings.audio.clone(),
        speech: settings.speech.clone(),
        decoder: settings.decoder.clone(),
        limits: common.limits.clone(),
        instructions: common.instructions.clone(),
        adapter: common.current.clone(),
        orphans: common.orphans.clone(),
        training: training_yields.then(|| common.training.clone()),
        encoder: encoder.clone().recipient(),
        so_far: encoder.recipient(),
        collector,
        answers: common.publisher.clone().recipient(),
        partials: common.publisher.clone().recipient(),
        publisher: common.publisher.clone().recipient(),
    };
    let spec = StageSpec {
        name: "ingest",
        mailbox: 4, // it gets few messages; records have their own channel
        runs: Runs::OnItsOwnThread,
        required: true,
    };
    let _: ActorRef<AudioIngest> = stages.start(spec, args).await?;
    Ok(())
}

/// A stage that blocks on the device starts warmed up with the version that serves then, so that `ready`
/// means it.
fn decoder_args(common: &Common, queue_max: usize) -> DecoderArgs {
    let settings = &common.settings;
    let (model, placement, current) = (
        settings.model.clone(),
        common.placement.clone(),
        common.current.clone(),
    );
    let engine = EngineConfig {
        preallocate: true,
        prefill_positions_max: settings.decoder.prefill_positions_max,
        ..settings.engine()
    };
    DecoderArgs {
        config: settings.decoder.clone(),
        queue_max,
        bulk_share: settings.admission.bulk_share,
        clock: common.clock.clone(),
        default_instruction: settings.service.default_instruction.clone(),
        build: Arc::new(move || {
            configure_threads(model.threads);
            let llm = SpeechLlm::open(&model.llm, model.system.as_deref(), &placement)?;
            let mut generator = Generator::new(llm, &engine);
            generator.warm_up(&current.get())?;
            Ok(generator)
        }),
        publisher: common.publisher.clone().recipient(),
        partials: common.publisher.clone().recipient(),
        dead_letters: common.publisher.clone().recipient(),
    }
}

fn encoder_args(common: &Common, decoder: &ActorRef<Decoder>, places: DecoderPlaces) -> EncoderArgs {
    let settings = &common.settings;
    let (model, placement, current) = (
        settings.model.clone(),
        common.placement.clone(),
        common.current.clone(),
    );
    let (batch_windows_max, cache_bytes_max) = (
        settings.encoder.batch_windows_max,
        settings.encoder.cache_bytes_max,
    );
    EncoderArgs {
        config: settings.encoder.clone(),
        queue_max: settings.kafka.in_flight_records_max,
        bulk_share: settings.admission.bulk_share,
        places,
        clock: common.clock.clone(),
        build: Arc::new(move || {
            configure_threads(model.threads);
            let encoder = open_encoder(&model.encoder, Window::Clip, &placement)?;
            let extractor = FeatureExtractor::new(encoder, batch_windows_max).with_cache(cache_bytes_max);
            extractor.warm_up(&current.get())?;
            Ok(extractor)
        }),
        decoder: decoder.clone().recipient(),
        reader: decoder.clone().recipient(),
        publisher: common.publisher.clone().recipient(),
    }
}
