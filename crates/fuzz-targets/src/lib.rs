//! One function per parser that reads what strangers send: audio containers, headers, model files, broker
//! frames, chunks of streams, manifests, store segments, templates, forms of answers.
//!
//! A target takes any bytes and returns; a panic, a hang or unbounded memory is a fault of the parser.
//! `fuzz/` drives the targets with libFuzzer, `tests/mutations.rs` with changed seeds on the stable
//! toolchain. [`Target::seeds`] are valid inputs: recorded fixtures, and files that the program writes
//! itself.

mod broker;
mod files;
mod records;
mod scratch;
mod seeds;
mod structures;

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its libFuzzer binary.
    pub name: &'static str,
    /// Reads the bytes; returns whether they were accepted.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to change; at least one is accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every parser, in alphabetical order.
pub const TARGETS: [Target; 13] = [
    Target {
        name: "adapter_manifest",
        run: files::adapter_manifest,
        seeds: seeds::adapter_manifests,
    },
    Target {
        name: "audio",
        run: records::audio,
        seeds: seeds::audio,
    },
    Target {
        name: "audio_stream",
        run: records::audio_stream,
        seeds: seeds::audio,
    },
    Target {
        name: "broker_frame",
        run: broker::frame,
        seeds: seeds::broker_frames,
    },
    Target {
        name: "chat_template",
        run: records::chat_template,
        seeds: seeds::chat_templates,
    },
    Target {
        name: "chunks",
        run: records::chunks,
        seeds: seeds::chunks,
    },
    Target {
        name: "gguf",
        run: files::gguf,
        seeds: seeds::gguf,
    },
    Target {
        name: "manifest",
        run: files::manifest,
        seeds: seeds::manifests,
    },
    Target {
        name: "record",
        run: records::record,
        seeds: seeds::records,
    },
    Target {
        name: "safetensors",
        run: files::safetensors,
        seeds: seeds::safetensors,
    },
    Target {
        name: "safetensors_index",
        run: files::safetensors_index,
        seeds: seeds::safetensors_indices,
    },
    Target {
        name: "store_segment",
        run: files::store_segment,
        seeds: seeds::store_segments,
    },
    Target {
        name: "structure",
        run: structures::structure,
        seeds: seeds::structures,
    },
];

/// The target called `name`.
///
/// # Panics
/// When there is none.
pub fn target(name: &str) -> Target {
    *TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("no fuzz target is called `{name}`"))
}
