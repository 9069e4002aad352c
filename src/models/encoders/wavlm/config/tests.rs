use serde_json::json;

use super::*;

fn read(json: &Value) -> Result<WavConfig, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, json.to_string()).unwrap();
    WavConfig::read(&path)
}

fn with(model_type: &str, key: &str, value: Value) -> Value {
    let mut json = json!({"model_type": model_type});
    json[key] = value;
    json
}

fn large() -> WavConfig {
    WavConfig {
        model_type: "wavlm".to_owned(),
        hidden_size: 1024,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        intermediate_size: 4096,
        do_stable_layer_norm: true,
        feat_extract_norm: "layer".to_owned(),
        ..WavConfig::default()
    }
}

fn parameters(config: &WavConfig) -> i64 {
    config
        .variables("", false)
        .iter()
        .map(|(_, shape)| shape.iter().product::<i64>())
        .sum()
}

#[test]
fn parameter_counts_are_those_of_the_published_models() {
    // With the vector for masked frames, which is stored and serves training only.
    assert_eq!(parameters(&large()) + 1024, 315_453_120);
    let base = WavConfig {
        model_type: "wavlm".to_owned(),
        ..WavConfig::default()
    };
    assert_eq!(parameters(&base) + 768, 94_381_936);
    let hubert = WavConfig {
        model_type: "hubert".to_owned(),
        ..WavConfig::default()
    };
    assert_eq!(parameters(&hubert) + 768, 94_371_712);
    let hubert_large = WavConfig {
        model_type: "hubert".to_owned(),
        conv_bias: true,
        ..large()
    };
    assert_eq!(parameters(&hubert_large) + 1024, 315_438_720);
}

#[test]
fn a_key_that_changes_the_mathematics_is_refused_by_name() {
    for (model_type, key, value) in [
        ("wavlm", "hidden_act", json!("relu")),
        ("wavlm", "hidden_act", json!("gelu_new")),
        ("hubert", "feat_extract_activation", json!("silu")),
        ("wavlm", "feat_extract_norm", json!("batch")),
        ("wavlm", "add_adapter", json!(true)),
        ("wav2vec2", "add_adapter", json!(true)),
        ("wav2vec2", "adapter_attn_dim", json!(16)),
        ("hubert", "adapter_attn_dim", json!(16)),
        ("hubert", "conv_pos_batch_norm", json!(true)),
        ("wavlm", "quantization_config", json!({"bits": 4})),
        ("wavlm", "hidden_size", json!(0)),
        ("wavlm", "hidden_size", json!(i64::MAX)),
        ("wavlm", "num_hidden_layers", json!(-1)),
        ("wavlm", "num_hidden_layers", json!(1_000_000_000)),
        ("wavlm", "num_attention_heads", json!(5)),
        ("wavlm", "num_attention_heads", json!(0)),
        ("wavlm", "intermediate_size", json!(i64::MAX)),
        ("wavlm", "num_conv_pos_embeddings", json!(0)),
        ("wavlm", "num_conv_pos_embedding_groups", json!(7)),
        ("wavlm", "layer_norm_eps", json!(0.0)),
        ("wavlm", "conv_dim", json!([])),
        ("wavlm", "conv_stride", json!([5, 2])),
        ("wavlm", "conv_stride", json!([64, 64, 64, 1, 1, 1, 1])),
        ("wavlm", "conv_kernel", json!([10, 3, 3, 3, 3, 2, 0])),
        ("wavlm", "num_buckets", json!(3)),
        ("wavlm", "max_bucket_distance", json!(80)),
        ("whisper", "model_type", json!("whisper")),
        ("wav2vec2-conformer", "model_type", json!("wav2vec2-conformer")),
    ] {
        let message = read(&with(model_type, key, value)).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
    }
}

#[test]
fn absent_keys_are_the_librarys_defaults_and_keys_of_other_families_pass() {
    for (model_type, key, value) in [
        ("wavlm", "vocab_size", json!(32)),
        ("hubert", "num_buckets", json!(0)),
        ("wavlm", "conv_pos_batch_norm", json!(true)),
        ("hubert", "add_adapter", json!(true)),
        ("wavlm", "adapter_attn_dim", json!(16)),
        ("wav2vec2", "adapter_attn_dim", json!(null)),
    ] {
        let config = read(&with(model_type, key, value)).unwrap();

        assert_eq!((config.hop_samples(), config.field_samples()), (320, 400));
        assert_eq!(config.hidden_size, 768);
    }
    let hubert = read(&with("hubert", "feat_proj_layer_norm", json!(false))).unwrap();
    let wavlm = read(&with("wavlm", "feat_proj_layer_norm", json!(false))).unwrap();
    assert!(!hubert.projection_norm() && wavlm.projection_norm());
}

#[test]
fn malformed_files_are_errors_that_say_what_is_wrong() {
    assert!(read(&json!({})).unwrap_err().to_string().contains("`model_type`"));
    let message = read(&with("wavlm", "hidden_size", json!("wide")))
        .unwrap_err()
        .to_string();
    assert!(message.contains("wide"), "{message}");
    let missing = WavConfig::read(Path::new("no/config.json"))
        .unwrap_err()
        .to_string();
    assert!(missing.contains("no/config.json"), "{missing}");
}

#[test]
fn the_waveform_settings_default_as_in_the_library_and_others_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preprocessor_config.json");
    let read = |json: Value| {
        std::fs::write(&path, json.to_string()).unwrap();
        WaveformConfig::read(&path)
    };

    assert!(read(json!({})).unwrap().do_normalize);
    assert!(
        !read(json!({"do_normalize": false, "padding_side": "right"}))
            .unwrap()
            .do_normalize
    );
    for (key, value) in [
        ("sampling_rate", json!(8000)),
        ("feature_size", json!(80)),
        ("feature_extractor_type", json!("SeamlessM4TFeatureExtractor")),
    ] {
        let mut json = json!({});
        json[key] = value;
        let message = read(json).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")), "{message}");
    }
}

proptest::proptest! {
    #[test]
    fn whatever_a_settings_file_holds_reading_it_ends(text in ".{0,400}") {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, &text).unwrap();

        let _ = WavConfig::read(&path);
        let _ = WaveformConfig::read(&path);
    }

    #[test]
    fn a_config_that_passes_has_a_hop_a_field_and_a_bounded_number_of_tensors(
        stride in proptest::collection::vec(-2_i64..70, 0..18),
        kernel in proptest::collection::vec(-2_i64..300, 0..18),
        layers in -5_i64..400,
    ) {
        let json = json!({"model_type": "wav2vec2", "conv_stride": stride, "conv_kernel": kernel,
            "conv_dim": vec![8; stride.len()], "num_hidden_layers": layers});

        if let Ok(config) = read(&json) {
            assert!(config.hop_samples() >= 1 && config.field_samples() >= 1);
            assert!(config.variables("", true).len() < 10_000);
        }
    }
}
