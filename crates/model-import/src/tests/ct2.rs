//! CTranslate2 models of Whisper.

use super::*;

/// A CTranslate2 file in the making.
#[derive(Clone, Default)]
pub(super) struct Ct2Builder {
    tensors: Vec<(String, Vec<u32>, u8, Vec<u8>)>,
}

impl Ct2Builder {
    pub(super) fn floats(&mut self, name: &str, shape: &[u32], value: impl Fn(usize) -> f32) {
        let count = shape.iter().product::<u32>() as usize;
        let bytes = (0..count).flat_map(|index| value(index).to_le_bytes()).collect();
        self.tensors.push((name.into(), shape.to_vec(), 0, bytes));
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let name = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u16 + 1).to_le_bytes());
            out.extend(text.as_bytes());
            out.push(0);
        };
        let mut out = 6_u32.to_le_bytes().to_vec();
        name(&mut out, "WhisperSpec");
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u32).to_le_bytes());
        for (tensor, shape, kind, bytes) in &self.tensors {
            name(&mut out, tensor);
            out.push(shape.len() as u8);
            shape.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.push(*kind);
            out.extend((bytes.len() as u32).to_le_bytes());
            out.extend(bytes);
        }
        out.extend(1_u32.to_le_bytes());
        name(&mut out, "decoder/projection/weight");
        name(&mut out, "decoder/embeddings/weight");
        out
    }

    /// A Whisper of one layer a side, width 4, two heads.
    pub(super) fn tiny_whisper() -> Self {
        let mut model = Self::default();
        let (width, inner) = (4, 8);
        let value = |index: usize| index as f32 / 8.0 - 3.0;
        model
            .tensors
            .push(("encoder/num_heads".into(), vec![], 2, vec![2, 0]));
        model
            .tensors
            .push(("decoder/num_heads".into(), vec![], 2, vec![2, 0]));
        model
            .tensors
            .push(("decoder/activation".into(), vec![], 1, vec![3]));
        for (conv, inputs) in [("conv1", 3), ("conv2", width)] {
            model.floats(&format!("encoder/{conv}/weight"), &[width, inputs, 3], value);
            model.floats(&format!("encoder/{conv}/bias"), &[width], value);
        }
        model.floats("decoder/embeddings/weight", &[6, width], value);
        for (side, rows) in [("encoder", 5), ("decoder", 7)] {
            model.floats(
                &format!("{side}/position_encodings/encodings"),
                &[rows, width],
                value,
            );
            let mut norms = vec![format!("{side}/layer_norm")];
            let mut blocks = vec!["self_attention"];
            if side == "decoder" {
                blocks.push("attention");
            }
            let layer = format!("{side}/layer_0");
            norms.push(format!("{layer}/ffn/layer_norm"));
            for block in blocks {
                let stored = format!("{layer}/{block}");
                norms.push(format!("{stored}/layer_norm"));
                let fused: &[u32] = if block == "attention" { &[1, 2, 1] } else { &[3, 1] };
                for (index, parts) in fused.iter().enumerate() {
                    let linear = format!("{stored}/linear_{index}");
                    model.floats(&format!("{linear}/weight"), &[parts * width, width], value);
                    // The key's bias is zero: the middle third, or the first half.
                    let key = match parts {
                        3 => 4..8,
                        2 => 0..4,
                        _ => 0..0,
                    };
                    model.floats(&format!("{linear}/bias"), &[parts * width], |index| {
                        if key.contains(&index) { 0.0 } else { value(index) }
                    });
                }
            }
            for (index, rows, columns) in [(0, inner, width), (1, width, inner)] {
                let linear = format!("{layer}/ffn/linear_{index}");
                model.floats(&format!("{linear}/weight"), &[rows, columns], value);
                model.floats(&format!("{linear}/bias"), &[rows], value);
            }
            for norm in norms {
                model.floats(&format!("{norm}/gamma"), &[width], value);
                model.floats(&format!("{norm}/beta"), &[width], value);
            }
        }
        model
    }

    pub(super) fn replace(&mut self, name: &str, change: impl Fn(&mut (String, Vec<u32>, u8, Vec<u8>))) {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
        change(tensor);
    }

    /// Writes it, with a tokenizer beside it, and imports it.
    pub(super) fn import(&self, folder: &Path) -> Result<ImportReport, ImportError> {
        std::fs::write(folder.join("model.bin"), self.bytes()).unwrap();
        std::fs::copy(
            fixture("import_tiny_tokenizer.json"),
            folder.join("tokenizer.json"),
        )
        .unwrap();
        std::fs::write(folder.join("config.json"), r#"{"suppress_ids": [1, 2]}"#).unwrap();
        quiet(folder, &folder.join("out"), &options(FloatFormat::F32))
    }
}

#[test]
fn a_ctranslate2_whisper_is_cut_apart_into_its_projections() {
    let folder = tempfile::tempdir().unwrap();

    let report = Ct2Builder::tiny_whisper().import(folder.path()).unwrap();

    let bytes = std::fs::read(folder.path().join("out/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(report.architecture, "whisper");
    let read = |name: &str| singles(tensors.tensor(name).unwrap().data());
    let value = |index: usize| index as f32 / 8.0 - 3.0;
    let third = |part: usize| (16 * part..16 * (part + 1)).map(value).collect::<Vec<_>>();
    for side in ["encoder", "decoder"] {
        let attention = format!("model.{side}.layers.0.self_attn");
        assert_eq!(read(&format!("{attention}.q_proj.weight")), third(0));
        assert_eq!(read(&format!("{attention}.k_proj.weight")), third(1));
        assert_eq!(read(&format!("{attention}.v_proj.weight")), third(2));
        assert_eq!(
            read(&format!("{attention}.v_proj.bias")),
            (8..12).map(value).collect::<Vec<_>>()
        );
        assert!(tensors.tensor(&format!("{attention}.k_proj.bias")).is_err());
    }
    assert_eq!(
        read("model.decoder.layers.0.encoder_attn.v_proj.weight"),
        third(1)
    );
    assert_eq!(
        tensors.tensor("model.encoder.conv2.weight").unwrap().shape(),
        [4, 4, 3]
    );
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["encoder_attention_heads"], 2);
    assert_eq!(config["num_mel_bins"], 3);
    assert_eq!(config["max_target_positions"], 7);
}

#[test]
fn integers_are_divided_by_the_scale_of_their_row() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Ct2Builder::tiny_whisper();
    let name = "encoder/layer_0/self_attention/linear_0/weight";
    model.replace(name, |tensor| {
        tensor.2 = 1;
        tensor.3 = (0..48).map(|index: u8| index.wrapping_sub(24)).collect();
    });
    model.floats(&format!("{name}_scale"), &[12], |row| (row + 1) as f32);

    model.import(folder.path()).unwrap();

    let bytes = std::fs::read(folder.path().join("out/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let keys = tensors
        .tensor("model.encoder.layers.0.self_attn.k_proj.weight")
        .unwrap();
    let expected: Vec<f32> = (16..32_i16)
        .map(|index| f32::from(index - 24) / f32::from(index / 4 + 1))
        .collect();
    assert_eq!(singles(keys.data()), expected);
}

#[test]
fn all_differences_from_the_architecture_are_named_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Ct2Builder::tiny_whisper();
    model.replace("encoder/conv1/bias", |tensor| {
        tensor.0 = "encoder/conv1/surprise".into()
    });
    model.replace("decoder/layer_norm/gamma", |tensor| {
        tensor.1 = vec![2];
        tensor.3.truncate(8);
    });
    model.replace("encoder/layer_0/self_attention/linear_0/bias", |tensor| {
        tensor.3[4 * 5] = 1
    });

    let error = model.import(folder.path()).unwrap_err().to_string();

    assert!(error.contains("`encoder/conv1/bias` is missing"), "{error}");
    assert!(
        error.contains("`encoder/conv1/surprise` is unexpected"),
        "{error}"
    );
    assert!(
        error.contains("`decoder/layer_norm/gamma` has shape [2], expected [4]"),
        "{error}"
    );
    assert!(error.contains("gives the key projection a bias"), "{error}");
    assert!(!folder.path().join("out").exists());
}
