//! Tiny random models in the Hugging Face layout: whole pipelines run on them in milliseconds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::util::random::SplitMix;

/// Width of the tiny encoder.
pub const ENCODER_WIDTH: usize = 32;
/// Layers of the tiny encoder.
pub const ENCODER_LAYERS: usize = 2;
/// Width of the tiny language model.
pub const LLM_WIDTH: usize = 48;
/// Vocabulary of the tiny language model: 256 bytes, three control tokens, padding.
pub const VOCABULARY: usize = 264;

/// Folders of the tiny networks.
#[derive(Clone, Debug)]
pub struct TinyModels {
    /// A Whisper encoder: 2 layers, width 32, 80 mel bins, 1500 positions.
    pub encoder: PathBuf,
    /// A Llama with grouped heads, tied embeddings and a byte tokenizer.
    pub llm: PathBuf,
    /// A T5 1.1 with heads of its own width, an untied head and the same tokenizer.
    pub t5: PathBuf,
}

impl TinyModels {
    /// Writes them below `dir`, the same for the same seed.
    ///
    /// # Panics
    /// When a file cannot be written: tests have nothing better to do.
    pub fn write(dir: &Path, seed: u64) -> Self {
        let models = Self {
            encoder: dir.join("tiny-whisper"),
            llm: dir.join("tiny-llama"),
            t5: dir.join("tiny-t5"),
        };
        write_whisper(&models.encoder, seed);
        write_llama(&models.llm, seed ^ 0x9e37_79b9);
        write_t5(&models.t5, seed ^ 0x7f4a_7c15);
        models
    }
}

/// A stream of uniform numbers in [-1, 1).
struct Noise(SplitMix);

impl Noise {
    fn next(&mut self) -> f32 {
        (self.0.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Names, shapes and numbers of a checkpoint in the making.
struct Checkpoint {
    noise: Noise,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Checkpoint {
    fn new(seed: u64) -> Self {
        Self {
            noise: Noise(SplitMix::from_state(seed)),
            tensors: BTreeMap::new(),
        }
    }

    fn random(&mut self, name: &str, shape: &[usize], scale: f32) {
        let count: usize = shape.iter().product();
        let bytes = (0..count)
            .flat_map(|_| (self.noise.next() * scale).to_le_bytes())
            .collect();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), bytes));
    }

    fn constant(&mut self, name: &str, shape: &[usize], value: f32) {
        let count: usize = shape.iter().product();
        let bytes = std::iter::repeat_n(value.to_le_bytes(), count)
            .flatten()
            .collect();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), bytes));
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) {
        self.random(
            &format!("{name}.weight"),
            &[outputs, inputs],
            1.7 / (inputs as f32).sqrt(),
        );
        if bias {
            self.random(&format!("{name}.bias"), &[outputs], 0.1);
        }
    }

    fn layer_norm(&mut self, name: &str, width: usize) {
        self.constant(&format!("{name}.weight"), &[width], 1.0);
        self.constant(&format!("{name}.bias"), &[width], 0.0);
    }

    fn write(&self, dir: &Path) {
        let views: Vec<(String, TensorView<'_>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, bytes))| {
                let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("bytes fit the shape");
                (name.clone(), view)
            })
            .collect();
        let bytes = safetensors::serialize(views, None).expect("names are unique");
        std::fs::write(dir.join("model.safetensors"), bytes).expect("the folder can be written");
    }
}

fn write_json(path: PathBuf, value: &serde_json::Value) {
    std::fs::write(path, value.to_string()).expect("the folder can be written");
}

fn write_whisper(dir: &Path, seed: u64) {
    const MELS: usize = 80;
    const POSITIONS: usize = 1500;
    let width = ENCODER_WIDTH;
    std::fs::create_dir_all(dir).expect("the folder can be made");
    let mut checkpoint = Checkpoint::new(seed);
    let at = |name: &str| format!("model.encoder.{name}");
    for (conv, inputs) in [("conv1", MELS), ("conv2", width)] {
        let scale = 1.0 / (3.0 * inputs as f32).sqrt();
        checkpoint.random(&at(&format!("{conv}.weight")), &[width, inputs, 3], scale);
        checkpoint.random(&at(&format!("{conv}.bias")), &[width], 0.1);
    }
    checkpoint.random(&at("embed_positions.weight"), &[POSITIONS, width], 0.5);
    checkpoint.layer_norm(&at("layer_norm"), width);
    for layer in 0..ENCODER_LAYERS {
        let at = |name: &str| format!("model.encoder.layers.{layer}.{name}");
        checkpoint.layer_norm(&at("self_attn_layer_norm"), width);
        for (projection, bias) in [
            ("q_proj", true),
            ("k_proj", false),
            ("v_proj", true),
            ("out_proj", true),
        ] {
            checkpoint.linear(&at(&format!("self_attn.{projection}")), width, width, bias);
        }
        checkpoint.layer_norm(&at("final_layer_norm"), width);
        checkpoint.linear(&at("fc1"), 2 * width, width, true);
        checkpoint.linear(&at("fc2"), width, 2 * width, true);
    }
    checkpoint.write(dir);
    write_json(
        dir.join("config.json"),
        &json!({
            "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper",
            "d_model": width, "encoder_layers": ENCODER_LAYERS, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * width, "num_mel_bins": MELS, "max_source_positions": POSITIONS,
            "activation_function": "gelu", "scale_embedding": false,
            "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 2 * width,
            "max_target_positions": 448, "vocab_size": 51865,
        }),
    );
    write_json(
        dir.join("preprocessor_config.json"),
        &json!({
            "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": MELS, "sampling_rate": 16000,
            "hop_length": 160, "n_fft": 400, "chunk_length": 30, "n_samples": 480000, "nb_max_frames": 3000,
            "padding_side": "right", "padding_value": 0.0, "return_attention_mask": false,
        }),
    );
}

fn write_llama(dir: &Path, seed: u64) {
    const LAYERS: usize = 2;
    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    let width = LLM_WIDTH;
    let head = width / HEADS;
    std::fs::create_dir_all(dir).expect("the folder can be made");
    let mut checkpoint = Checkpoint::new(seed);
    checkpoint.random("model.embed_tokens.weight", &[VOCABULARY, width], 0.5);
    checkpoint.constant("model.norm.weight", &[width], 1.0);
    for layer in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        checkpoint.constant(&at("input_layernorm.weight"), &[width], 1.0);
        checkpoint.constant(&at("post_attention_layernorm.weight"), &[width], 1.0);
        checkpoint.linear(&at("self_attn.q_proj"), HEADS * head, width, false);
        checkpoint.linear(&at("self_attn.k_proj"), KV_HEADS * head, width, false);
        checkpoint.linear(&at("self_attn.v_proj"), KV_HEADS * head, width, false);
        checkpoint.linear(&at("self_attn.o_proj"), width, HEADS * head, false);
        checkpoint.linear(&at("mlp.gate_proj"), 2 * width, width, false);
        checkpoint.linear(&at("mlp.up_proj"), 2 * width, width, false);
        checkpoint.linear(&at("mlp.down_proj"), width, 2 * width, false);
    }
    checkpoint.write(dir);
    write_json(
        dir.join("config.json"),
        &json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
            "intermediate_size": 2 * width, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": head, "vocab_size": VOCABULARY,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": true, "attention_bias": false, "bos_token_id": 256, "eos_token_id": 257,
        }),
    );
    std::fs::write(
        dir.join("tokenizer.json"),
        crate::text::tiny::byte_tokenizer_json(),
    )
    .expect("the folder can be written");
    write_json(
        dir.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
            "chat_template": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
                {{ '<|im_start|>assistant\n' }}{% endif %}",
        }),
    );
}

fn write_t5(dir: &Path, seed: u64) {
    const LAYERS: usize = 2;
    const HEADS: usize = 4;
    const BUCKETS: usize = 32;
    let width = LLM_WIDTH;
    let inner = HEADS * 16;
    std::fs::create_dir_all(dir).expect("the folder can be made");
    let mut checkpoint = Checkpoint::new(seed);
    checkpoint.random("shared.weight", &[VOCABULARY, width], 0.5);
    checkpoint.random("lm_head.weight", &[VOCABULARY, width], 0.5);
    for (stack, attentions) in [
        ("encoder", &["SelfAttention"][..]),
        ("decoder", &["SelfAttention", "EncDecAttention"]),
    ] {
        let at = |name: &str| format!("{stack}.{name}");
        checkpoint.constant(&at("final_layer_norm.weight"), &[width], 1.0);
        let bias = at("block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        checkpoint.random(&bias, &[BUCKETS, HEADS], 0.5);
        for block in 0..LAYERS {
            for (layer, attention) in attentions.iter().enumerate() {
                let at = |name: &str| format!("{stack}.block.{block}.layer.{layer}.{name}");
                checkpoint.constant(&at("layer_norm.weight"), &[width], 1.0);
                for name in ["q", "k", "v"] {
                    checkpoint.linear(&at(&format!("{attention}.{name}")), inner, width, false);
                }
                checkpoint.linear(&at(&format!("{attention}.o")), width, inner, false);
            }
            let at = |name: &str| format!("{stack}.block.{block}.layer.{}.{name}", attentions.len());
            checkpoint.constant(&at("layer_norm.weight"), &[width], 1.0);
            for name in ["wi_0", "wi_1"] {
                checkpoint.linear(&at(&format!("DenseReluDense.{name}")), 2 * width, width, false);
            }
            checkpoint.linear(&at("DenseReluDense.wo"), width, 2 * width, false);
        }
    }
    checkpoint.write(dir);
    write_json(
        dir.join("config.json"),
        &json!({
            "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": width, "d_kv": 16,
            "d_ff": 2 * width, "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": VOCABULARY,
            "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": BUCKETS,
            "layer_norm_epsilon": 1e-6, "tie_word_embeddings": false, "is_encoder_decoder": true,
            "decoder_start_token_id": 256, "pad_token_id": 256, "eos_token_id": 257,
        }),
    );
    std::fs::write(
        dir.join("tokenizer.json"),
        crate::text::tiny::byte_tokenizer_json(),
    )
    .expect("the folder can be written");
}
