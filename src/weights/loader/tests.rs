//! Tests of the loader: what it accepts, what it reports, and that no byte sequence makes it panic.

use std::collections::HashMap;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::TensorView;

use super::*;
use crate::weights::checkpoint::{HEADER_BYTES_MAX, INDEX_FILE, PREFIX_BYTES, parse_header};

fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            (
                *name,
                TensorView::new(*dtype, shape.to_vec(), data).expect("the test's own tensor is consistent"),
            )
        })
        .collect();
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path)
        .expect("the test folder is writable");
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn every_float_type_arrives_in_the_wanted_kind_with_its_values() {
    let dir = tempfile::tempdir().unwrap();
    let values = [1.5_f32, -2.0, 0.25, 8.0];
    let half: Vec<u8> = values
        .iter()
        .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
        .collect();
    let brain: Vec<u8> = values
        .iter()
        .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
        .collect();
    let double: Vec<u8> = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    write(
        &dir.path().join("model.safetensors"),
        &[
            ("f32", Dtype::F32, &[2, 2], f32_bytes(&values)),
            ("f16", Dtype::F16, &[2, 2], half),
            ("bf16", Dtype::BF16, &[2, 2], brain),
            ("f64", Dtype::F64, &[2, 2], double),
        ],
    );

    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    for dtype in [Kind::Float, Kind::BFloat16] {
        let mut loader = checkpoint.loader(Device::Cpu, dtype);
        for name in ["f32", "f16", "bf16", "f64"] {
            let tensor = loader.take(name, &[2, 2]);
            assert_eq!(tensor.kind(), dtype);
            let found: Vec<f32> = tensor.to_kind(Kind::Float).view([-1]).try_into().unwrap();
            assert_eq!(found, values, "{name} as {dtype:?}");
        }
        loader.finish().unwrap();
    }
}

#[test]
fn all_differences_are_reported_together() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("model.safetensors"),
        &[
            ("right", Dtype::F32, &[2], f32_bytes(&[1.0, 2.0])),
            ("wrong.shape", Dtype::F32, &[2, 1], f32_bytes(&[1.0, 2.0])),
            ("wrong.type", Dtype::I32, &[2], vec![0; 8]),
            ("nobody.asked", Dtype::F32, &[1], f32_bytes(&[0.0])),
            ("decoder.known", Dtype::F32, &[1], f32_bytes(&[0.0])),
        ],
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
    loader.ignore("decoder.");
    let _ = loader.take("right", &[2]);
    let placeholder = loader.take("wrong.shape", &[3, 4]);
    let _ = loader.take("wrong.type", &[2]);
    let _ = loader.take("absent", &[1]);
    let error = loader.finish().unwrap_err();

    assert_eq!(placeholder.size(), [3, 4]);
    let message = error.to_string();
    let WeightsError::Mismatch(mismatch) = error else {
        panic!("{message}")
    };
    assert_eq!(mismatch.missing, ["absent"]);
    assert_eq!(mismatch.unexpected, ["nobody.asked"]);
    assert_eq!(mismatch.misshapen[0].found, [2, 1]);
    assert_eq!(mismatch.mistyped[0].found, "I32");
    for word in ["absent", "nobody.asked", "[2, 1]", "[3, 4]", "I32"] {
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn taking_a_tensor_twice_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("model.safetensors"),
        &[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))],
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
    let _ = loader.take("a", &[1]);
    let _ = loader.take("a", &[1]);

    assert!(
        loader
            .finish()
            .unwrap_err()
            .to_string()
            .contains("declared twice")
    );
}

#[test]
fn an_absurd_declared_shape_is_reported_and_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("model.safetensors"),
        &[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))],
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
    let _ = loader.take("a", &[1 << 40, 1 << 20]);
    let _ = loader.take("b", &[i64::MAX, i64::MAX]);
    let _ = loader.take("c", &[-5, -1]);

    assert!(loader.finish().is_err());
}

#[test]
fn a_sharded_checkpoint_is_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("model-1.safetensors"),
        &[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))],
    );
    write(
        &dir.path().join("model-2.safetensors"),
        &[("b", Dtype::F32, &[1], f32_bytes(&[2.0]))],
    );
    let index =
        r#"{"metadata":{"total_size":8},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    std::fs::write(dir.path().join(INDEX_FILE), index).unwrap();

    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
    assert_eq!(loader.take("a", &[1]).double_value(&[0]), 1.0);
    assert_eq!(loader.take("b", &[1]).double_value(&[0]), 2.0);
    loader.finish().unwrap();
}

#[test]
fn an_index_that_lies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("one.safetensors"),
        &[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))],
    );
    write(
        &dir.path().join("two.safetensors"),
        &[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))],
    );
    let cases = [
        (r#"{"weight_map":{"b":"one.safetensors"}}"#, "does not hold it"),
        (r#"{"weight_map":{"a":"../one.safetensors"}}"#, "plain file name"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "plain file name"),
        (r#"{"weight_map":{"a":".."}}"#, "plain file name"),
        (r#"{"weight_map":{"a":""}}"#, "plain file name"),
        (
            r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#,
            "more than one shard",
        ),
        (r#"{"weight_map":{}}"#, "empty"),
        (r#"{"weight_map":[]}"#, "invalid type"),
        ("{", "EOF"),
    ];

    for (index, expected) in cases {
        std::fs::write(dir.path().join(INDEX_FILE), index).unwrap();
        let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{index}: {message}");
    }
}

#[test]
fn a_shard_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("one.safetensors"),
        &[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))],
    );
    let index = r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#;
    std::fs::write(dir.path().join(INDEX_FILE), index).unwrap();

    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();

    assert!(
        message.contains("`two.safetensors` is not in the folder"),
        "{message}"
    );
}

#[test]
fn all_differences_of_a_sharded_checkpoint_are_reported_together() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("one.safetensors"),
        &[
            ("a", Dtype::F32, &[1], f32_bytes(&[1.0])),
            // In no index: what a shard holds counts all the same.
            ("stowaway", Dtype::F32, &[1], f32_bytes(&[1.0])),
        ],
    );
    write(
        &dir.path().join("two.safetensors"),
        &[
            ("b", Dtype::I64, &[1], vec![0; 8]),
            ("c", Dtype::F32, &[2], f32_bytes(&[1.0, 2.0])),
        ],
    );
    let index = r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}}"#;
    std::fs::write(dir.path().join(INDEX_FILE), index).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
    let joined = loader.take_joined(&[("a".into(), 1), ("b".into(), 1), ("d".into(), 1 << 40)], None);
    let _ = loader.take("c", &[3]);
    let message = loader.finish().unwrap_err().to_string();

    assert_eq!(joined.size(), [(1 << 40) + 2]);
    for part in [
        "1 missing from the checkpoint: `d`",
        "1 unexpected in the checkpoint: `stowaway`",
        "1 misshapen: `c`",
        "1 mistyped: `b`",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_large_file_is_looked_at_where_the_kind_is_the_wanted_one_and_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let values: Vec<f32> = (0..300_000).map(|at| at as f32).collect();
    write(
        &path,
        &[
            ("a", Dtype::F32, &[3, 100_000], f32_bytes(&values)),
            ("b", Dtype::F32, &[2], f32_bytes(&[5.0, 6.0])),
        ],
    );
    let on_disk = std::fs::read(&path).unwrap();
    let take = |from: usize, dtype: Kind| {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let mut loader = checkpoint.loader(Device::Cpu, dtype).views_from(from);
        let tensors = (loader.take("a", &[3, 100_000]), loader.take("b", &[2]));
        loader.finish().unwrap();
        tensors
    };

    let (viewed, _) = take(0, Kind::Float);
    let (again, _) = take(0, Kind::Float);
    let (copied, _) = take(usize::MAX, Kind::Float);
    let (converted, _) = take(0, Kind::Double);

    // Two loads look at the same memory; a copy and a conversion have their own.
    assert_eq!(viewed.data_ptr(), again.data_ptr());
    assert_ne!(viewed.data_ptr(), copied.data_ptr());
    for tensor in [&viewed, &copied, &converted] {
        assert_eq!(tensor.double_value(&[2, 99_999]), 299_999.0);
        assert_eq!(tensor.sum(Kind::Double).double_value(&[]), 299_999.0 * 150_000.0);
    }
    // The checkpoint is gone, the tensor is not; and whoever writes into it does not write into the file.
    let _ = viewed.get(0).g_add_scalar_(1.0);
    assert_eq!(again.double_value(&[0, 0]), 1.0);
    assert_eq!(std::fs::read(&path).unwrap(), on_disk);
}

#[test]
fn a_file_that_was_replaced_is_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let take = || {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let mut loader = checkpoint.loader(Device::Cpu, Kind::Float).views_from(0);
        loader.take("a", &[1])
    };
    let put = |value: f32| {
        let fresh = dir.path().join("fresh");
        write(&fresh, &[("a", Dtype::F32, &[1], f32_bytes(&[value]))]);
        std::fs::rename(fresh, dir.path().join("model.safetensors")).unwrap();
    };

    put(1.0);
    let before = take();
    put(2.0);
    let after = take();

    assert_eq!((before.double_value(&[0]), after.double_value(&[0])), (1.0, 2.0));
}

#[test]
fn numbers_that_are_not_aligned_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let mut header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_owned();
    // An odd length puts the data at an odd place.
    while header.len().is_multiple_of(2) {
        header.push(' ');
    }
    std::fs::write(
        dir.path().join("model.safetensors"),
        raw_file(&header, &f32_bytes(&[1.5, -2.0])),
    )
    .unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    for from in [0, usize::MAX] {
        let mut loader = checkpoint.loader(Device::Cpu, Kind::Float).views_from(from);
        let tensor = loader.take("a", &[2]);
        loader.finish().unwrap();
        assert_eq!(Vec::<f32>::try_from(tensor).unwrap(), [1.5, -2.0]);
    }
}

#[test]
fn joined_matrices_are_those_of_the_files_one_below_the_other() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("model.safetensors"),
        &[
            ("a", Dtype::F32, &[1, 2], f32_bytes(&[1.0, 2.0])),
            (
                "b",
                Dtype::F64,
                &[2, 2],
                [3.0f64, 4.0, 5.0, 6.0]
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
            ),
        ],
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
    let joined = loader.take_joined(&[("a".into(), 1), ("b".into(), 2)], Some(2));
    loader.finish().unwrap();

    assert_eq!(joined.size(), [3, 2]);
    assert_eq!(
        Vec::<f32>::try_from(joined.view([-1])).unwrap(),
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    );
}

#[test]
fn another_name_of_a_tensor_must_hold_the_same() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("model.safetensors"),
        &[
            ("a", Dtype::F32, &[2], f32_bytes(&[1.0, 2.0])),
            ("same", Dtype::F32, &[2], f32_bytes(&[1.0, 2.0])),
            ("other", Dtype::F32, &[2], f32_bytes(&[1.0, 2.5])),
            ("shaped", Dtype::F32, &[2, 1], f32_bytes(&[1.0, 2.0])),
        ],
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
    let _ = loader.take("a", &[2]);
    for name in ["same", "other", "shaped", "absent"] {
        loader.alias(name, "a");
    }
    let message = loader.finish().unwrap_err().to_string();

    assert!(
        message.contains("2 different from what they must equal: `other` from `a`, `shaped` from `a`"),
        "{message}"
    );
}

#[test]
fn an_empty_folder_says_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors.index.json"), "{message}");

    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("never read"), "{message}");
}

#[test]
fn broken_headers_are_errors_that_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let huge = usize::MAX;
    let broken = [
        Vec::new(),
        vec![0; 7],
        u64::MAX.to_le_bytes().to_vec(),
        (HEADER_BYTES_MAX + 1).to_le_bytes().to_vec(),
        1000_u64.to_le_bytes().to_vec(),
        raw_file("", b""),
        raw_file("[]", b""),
        raw_file(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            &[0; 7],
        ),
        raw_file(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            &[0; 9],
        ),
        raw_file(
            r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
            &[0; 8],
        ),
        raw_file(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            &[0; 8],
        ),
        raw_file(
            r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
            &[0; 8],
        ),
        raw_file(
            r#"{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}}"#,
            &[0; 8],
        ),
        // Lengths whose sum with the header's overflows a machine word.
        raw_file(
            &format!(r#"{{"a":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}"#),
            &[0; 8],
        ),
        raw_file(
            &format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,8]}}}}"#),
            &[0; 8],
        ),
    ];

    for bytes in broken {
        std::fs::write(&path, &bytes).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(matches!(error, WeightsError::Header { .. }), "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_header_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_header(&bytes, 0);
    }

    #[test]
    fn no_header_text_makes_the_header_parser_panic(
        dtype in "F32|F16|BF16|U8|I64|F4|F8_E4M3|BOOL|[A-Z0-9_]{0,5}",
        shape in proptest::collection::vec(any::<i64>(), 0..5),
        start in any::<u64>(), end in any::<u64>(), data in 0_usize..64,
    ) {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#);
        if let Ok(entries) = parse_header(&raw_file(&header, &vec![0; data]), 0) {
            for (_, entry) in entries {
                prop_assert!(entry.range.end <= PREFIX_BYTES + header.len() + data);
            }
        }
    }

    #[test]
    fn one_flipped_byte_of_a_good_file_never_panics(position in 0_usize..4096, byte in any::<u8>()) {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[8,16]}}"#;
        let mut bytes = raw_file(header, &[1; 16]);
        let at = position % bytes.len();
        bytes[at] = byte;
        let _ = parse_header(&bytes, 0);
    }
}
