//! What lies on disk and came from elsewhere: model files, manifests, segments after a crash.

use model_import::{FloatFormat, ImportOptions, import};
use speechverse::registry::Registry;
use speechverse::store::{SampleStore, Split};
use speechverse::training::manifest;
use speechverse::weights::Checkpoint;

use crate::scratch::{folder, store_config, write};
use crate::seeds::{SEGMENT, checkpoint};

/// A GGUF file, or a CTranslate2 model by its first bytes.
pub(crate) fn gguf(data: &[u8]) -> bool {
    let folder = folder();
    let source = folder.path().join("model.bin");
    write(&source, data);
    write(
        &folder.path().join("tokenizer.json"),
        br#"{"model": {"type": "BPE", "vocab": {}}}"#,
    );
    let options = ImportOptions {
        format: FloatFormat::F32,
        threads: 1,
        ..ImportOptions::default()
    };
    import(&source, &folder.path().join("out"), &options, &mut |_, _| ()).is_ok()
}

/// One safetensors file.
pub(crate) fn safetensors(data: &[u8]) -> bool {
    let folder = folder();
    write(&folder.path().join("model.safetensors"), data);
    Checkpoint::open(folder.path()).is_ok_and(|checkpoint| checkpoint.tensors().count() > 0)
}

/// The index of a checkpoint in two files, which are there.
pub(crate) fn safetensors_index(data: &[u8]) -> bool {
    let folder = folder();
    write(&folder.path().join("model.safetensors.index.json"), data);
    for (name, tensor) in [
        ("model-1.safetensors", "first.weight"),
        ("model-2.safetensors", "second.weight"),
    ] {
        write(&folder.path().join(name), &checkpoint(&[tensor]));
    }
    Checkpoint::open(folder.path()).is_ok_and(|checkpoint| checkpoint.tensors().count() > 0)
}

/// A manifest of training data, read with labels and without.
pub(crate) fn manifest(data: &[u8]) -> bool {
    let folder = folder();
    let path = folder.path().join("train.jsonl");
    write(&path, data);
    let labelled = manifest::read_manifest(&path, Some("train")).is_ok();
    let unlabelled = manifest::read_audio_manifest(&path, None).is_ok();
    labelled || unlabelled
}

/// The manifest of an adapter version.
pub(crate) fn adapter_manifest(data: &[u8]) -> bool {
    let folder = folder();
    write(&folder.path().join("v1/manifest.json"), data);
    let Ok(registry) = Registry::open(folder.path()) else {
        return false;
    };
    let _ = registry.list();
    let _ = registry.load("v1");
    registry.manifest("v1").is_ok()
}

/// A segment of the sample store, as a crash or a broken disk may leave it.
pub(crate) fn store_segment(data: &[u8]) -> bool {
    let folder = folder();
    write(&folder.path().join(SEGMENT), data);
    let Ok(store) = SampleStore::open(&store_config(folder.path())) else {
        return false;
    };
    let snapshot = store.snapshot();
    [Split::Train, Split::HeldOut]
        .into_iter()
        .flat_map(|split| snapshot.samples(split).collect::<Vec<_>>())
        .filter(Result::is_ok)
        .count()
        > 0
}
