//! Tests of the importers: fixtures of the reference implementation, small files made here, and damaged ones.

mod ct2;

use std::path::{Path, PathBuf};

use ct2::Ct2Builder;
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    let mut numbers = vec![0.0; bytes.len() / 4];
    Encoding::F32.decode(bytes, &mut numbers);
    numbers
}

fn options(format: FloatFormat) -> ImportOptions {
    ImportOptions {
        format,
        ..ImportOptions::default()
    }
}

fn quiet(source: &Path, out: &Path, options: &ImportOptions) -> Result<ImportReport, ImportError> {
    import(source, out, options, &mut |_, _| {})
}

#[test]
fn every_block_type_decodes_to_the_same_bits_as_the_reference() {
    let bytes = std::fs::read(fixture("import_blocks.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut checked = Vec::new();
    for number in [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30] {
        let encoding = Encoding::from_ggml(number).unwrap();
        let name = encoding.name();
        let raw = tensors.tensor(&format!("{name}.raw")).unwrap();
        let expected = singles(tensors.tensor(&format!("{name}.f32")).unwrap().data());

        let mut decoded = vec![f32::NAN; expected.len()];
        encoding.decode(raw.data(), &mut decoded);

        for (index, (ours, reference)) in decoded.iter().zip(&expected).enumerate() {
            assert_eq!(
                ours.to_bits(),
                reference.to_bits(),
                "{name}[{index}]: {ours} is not {reference}"
            );
        }
        checked.push(name);
    }
    assert_eq!(checked.len() * 2, tensors.len());
}

#[test]
fn a_gguf_llama_becomes_the_checkpoint_and_the_tokenizer_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("models/tiny");

    let report = quiet(&fixture("import_tiny.gguf"), &out, &options(FloatFormat::F32)).unwrap();

    let expected_bytes = std::fs::read(fixture("import_tiny_expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected_bytes).unwrap();
    let ours_bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let ours = SafeTensors::deserialize(&ours_bytes).unwrap();
    assert_eq!(ours.len(), expected.len());
    assert_eq!(report.tensors, expected.len());
    assert_eq!(report.bytes, ours_bytes.len() as u64);
    for (name, sample) in expected.tensors() {
        let all = singles(ours.tensor(&name).unwrap().data());
        let every: Vec<u32> = all.iter().step_by(13).map(|number| number.to_bits()).collect();
        let wanted: Vec<u32> = singles(sample.data())
            .iter()
            .map(|number| number.to_bits())
            .collect();
        assert_eq!(every, wanted, "{name}");
    }
    assert!(report.tied);
    assert_eq!(report.licence.as_deref(), Some("Apache-2.0"));
    let json =
        |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    assert_eq!(
        json(&out.join("tokenizer.json")),
        json(&fixture("import_tiny_tokenizer.json"))
    );
    let config = json(&out.join("config.json"));
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["num_key_value_heads"], 2);
    assert_eq!(config["torch_dtype"], "float32");
    assert!(json(&out.join("tokenizer_config.json"))["chat_template"].is_string());
}

#[test]
fn the_written_file_is_byte_for_byte_what_the_safetensors_library_writes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tiny");
    quiet(&fixture("import_tiny.gguf"), &out, &options(FloatFormat::Bf16)).unwrap();

    let ours = std::fs::read(out.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&ours).unwrap();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let theirs = safetensors::serialize(tensors.tensors(), Some(metadata)).unwrap();

    assert_eq!(ours, theirs);
}

#[test]
fn rounding_to_half_and_to_bfloat16_is_to_nearest_even() {
    let folder = tempfile::tempdir().unwrap();
    let read = |format: FloatFormat| {
        let out = folder.path().join(format.name());
        quiet(&fixture("import_tiny.gguf"), &out, &options(format)).unwrap();
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    let (singles_file, halves_file, brains_file) = (
        read(FloatFormat::F32),
        read(FloatFormat::F16),
        read(FloatFormat::Bf16),
    );
    let (full, half, brain) = (
        SafeTensors::deserialize(&singles_file).unwrap(),
        SafeTensors::deserialize(&halves_file).unwrap(),
        SafeTensors::deserialize(&brains_file).unwrap(),
    );
    for (name, tensor) in full.tensors() {
        let numbers = singles(tensor.data());
        let halves = half.tensor(&name).unwrap().data();
        let brains = brain.tensor(&name).unwrap().data();
        for (index, number) in numbers.iter().enumerate() {
            let at = 2 * index;
            assert_eq!(halves[at..at + 2], half::f16::from_f32(*number).to_le_bytes());
            assert_eq!(brains[at..at + 2], half::bf16::from_f32(*number).to_le_bytes());
        }
    }
}

#[test]
fn any_number_of_threads_writes_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for threads in [1, 2, 7] {
        let out = folder.path().join(threads.to_string());
        let options = ImportOptions {
            threads,
            ..ImportOptions::default()
        };
        quiet(&fixture("import_tiny.gguf"), &out, &options).unwrap();
        files.push(std::fs::read(out.join("model.safetensors")).unwrap());
    }
    assert_eq!(files[0], files[1]);
    assert_eq!(files[0], files[2]);
}

#[test]
fn progress_ends_at_the_number_of_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let report = import(
        &fixture("import_tiny.gguf"),
        &folder.path().join("tiny"),
        &ImportOptions::default(),
        &mut |done, total| seen.push((done, total)),
    )
    .unwrap();
    assert_eq!(seen.first(), Some(&(0, report.parameters)));
    assert_eq!(seen.last(), Some(&(report.parameters, report.parameters)));
}

#[test]
fn a_taken_destination_is_refused_unless_it_may_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tiny");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine.txt"), "precious").unwrap();

    let refused = quiet(&fixture("import_tiny.gguf"), &out, &ImportOptions::default());
    assert!(matches!(refused, Err(ImportError::DestinationExists { .. })));
    assert!(out.join("mine.txt").exists());

    let replace = ImportOptions {
        replace: true,
        ..ImportOptions::default()
    };
    quiet(&fixture("import_tiny.gguf"), &out, &replace).unwrap();
    assert!(!out.join("mine.txt").exists());
    assert!(out.join("model.safetensors").exists());
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn what_a_killed_import_left_behind_is_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    // No process has this number: it is above the kernel's limit.
    let stale = folder.path().join(".tiny.importing-4194305");
    let running = folder.path().join(".tiny.importing-1");
    let other = folder.path().join(".tiny2.importing-4194305");
    for path in [&stale, &running, &other] {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("model.safetensors"), "half").unwrap();
    }

    let out = folder.path().join("tiny");
    quiet(&fixture("import_tiny.gguf"), &out, &ImportOptions::default()).unwrap();

    assert!(!stale.exists() && running.exists() && other.exists());
}

#[test]
fn a_weight_that_the_format_cannot_hold_is_an_error_that_names_it() {
    for (value, format, fits) in [
        (65_519.0, FloatFormat::F16, true),
        (65_520.0, FloatFormat::F16, false),
        (65_520.0, FloatFormat::Bf16, true),
        (f32::MAX, FloatFormat::Bf16, false),
        (f32::MAX, FloatFormat::F32, true),
        (f32::NAN, FloatFormat::F32, false),
        (f32::INFINITY, FloatFormat::F32, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Ct2Builder::tiny_whisper();
        model.replace("encoder/conv1/bias", |tensor| {
            tensor.3[4..8].copy_from_slice(&value.to_le_bytes());
        });
        std::fs::write(folder.path().join("model.bin"), model.bytes()).unwrap();
        std::fs::copy(
            fixture("import_tiny_tokenizer.json"),
            folder.path().join("tokenizer.json"),
        )
        .unwrap();

        let result = quiet(folder.path(), &folder.path().join("out"), &options(format));

        match result {
            Ok(_) => assert!(fits, "{value} in {format}"),
            Err(error) => {
                assert!(!fits, "{value} in {format}: {error}");
                assert!(
                    error.to_string().contains("`model.encoder.conv1.bias`"),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn what_is_neither_format_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    for (content, word) in [(&b""[..], "an empty file"), (b"PK\x03\x04 a zip", "504b0304")] {
        std::fs::write(&path, content).unwrap();
        let error = quiet(&path, &folder.path().join("out"), &ImportOptions::default()).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    let error = quiet(
        &folder.path().join("absent"),
        &folder.path().join("out"),
        &ImportOptions::default(),
    );
    assert!(matches!(error, Err(ImportError::Io { .. })));
}

/// Importing damaged bytes must end in an answer, in little time and memory; what it is does not matter.
fn survives(name: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let out = folder.path().join("out");
    let result = quiet(&path, &out, &ImportOptions::default());
    assert_eq!(result.is_ok(), out.exists());
}

#[test]
fn a_file_cut_short_anywhere_in_its_head_is_an_error() {
    let whole = std::fs::read(fixture("import_tiny.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("cut.gguf"), folder.path().join("out"));
    for length in (0..whole.len()).step_by(whole.len() / 97) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(
            quiet(&path, &out, &ImportOptions::default()).is_err(),
            "{length} bytes"
        );
    }
    let whole = Ct2Builder::tiny_whisper().bytes();
    for length in (0..whole.len()).step_by(41) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(
            quiet(&path, &out, &ImportOptions::default()).is_err(),
            "{length} bytes"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gguf_head_with_changed_bytes_never_panics(
        changes in prop::collection::vec((0_usize..9_000, prop_oneof![Just(0_u8), Just(0xff), Just(0x7f), any::<u8>()]), 1..6),
    ) {
        let mut bytes = std::fs::read(fixture("import_tiny.gguf")).unwrap();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        survives("model.gguf", &bytes);
    }

    #[test]
    fn a_ctranslate2_file_with_changed_bytes_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0_u8), Just(0xff), any::<u8>()]), 1..6),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = Ct2Builder::tiny_whisper().bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survives("model.bin", &bytes);
    }

    #[test]
    fn random_bytes_after_either_magic_never_panic(rest in prop::collection::vec(any::<u8>(), 0..512), gguf in any::<bool>()) {
        let mut bytes = if gguf { b"GGUF\x03\0\0\0".to_vec() } else { b"\x06\0\0\0\x0c\0WhisperSpec\0".to_vec() };
        bytes.extend(rest);
        survives("model.any", &bytes);
    }
}
