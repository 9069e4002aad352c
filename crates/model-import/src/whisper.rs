//! CTranslate2 Whisper models in the Hugging Face layout.
//!
//! CTranslate2 fuses query, key and value of self-attention (and key and value of cross-attention) into one
//! matrix; they are cut apart again. Whisper's key projection has no bias: the stored one must be zero, and
//! is dropped.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::ct2::{Ct2File, Ct2Tensor};
use super::json::pretty;
use super::quants::Encoding;
use super::tensors::{RowOrder, Scales, TensorPlan};
use super::{FloatFormat, ImportError};

const LAYERS_MAX: usize = 256;
const JSON_BYTES_MAX: u64 = 64 << 20;
/// Exact GELU among CTranslate2's activations.
const GELU: f64 = 3.0;
/// Vocabulary of the English-only models; the multilingual ones have 51865 or 51866 tokens.
const ENGLISH_VOCABULARY: u64 = 51_864;

/// What is to be written for one CTranslate2 Whisper model.
pub(crate) struct WhisperImport {
    pub(crate) plans: Vec<TensorPlan>,
    /// Small files: name and content.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
}

/// Collects plans and differences while the expected tensors are named one after the other.
struct Planner<'a> {
    file: &'a Ct2File,
    plans: Vec<TensorPlan>,
    differences: Vec<String>,
    used: BTreeSet<String>,
}

impl<'a> Planner<'a> {
    /// The tensor called `stored`, of shape `shape`; notes the difference when it is not so.
    fn find(&mut self, stored: &str, shape: &[u64]) -> Option<&'a Ct2Tensor> {
        self.used.insert(stored.to_owned());
        match self.file.tensors.get(stored) {
            None => self.differences.push(format!("`{stored}` is missing")),
            Some(tensor) if tensor.shape != shape => self.differences.push(format!(
                "`{stored}` has shape {:?}, expected {shape:?}",
                tensor.shape
            )),
            Some(tensor) => return Some(tensor),
        }
        None
    }

    /// Scales of an integer tensor, read from the tensor called `<name>_scale`.
    fn scales(&mut self, stored: &str, tensor: &Ct2Tensor) -> Result<Option<Scales>, ImportError> {
        if !matches!(tensor.encoding, Encoding::I8 | Encoding::I16) {
            return Ok(None);
        }
        let name = format!("{stored}_scale");
        if let Some(scale) = self.file.scalars.get(&name) {
            return Ok(Some(Scales::Whole(*scale as f32)));
        }
        let Some(scales) = self.find(&name, &tensor.shape[..1]) else {
            return Ok(None);
        };
        let values = decode(self.file, scales, 0, scales.elements())?;
        Ok(Some(Scales::PerRow(values.into(), 0)))
    }

    /// One stored tensor becomes one written tensor.
    fn copy(&mut self, name: &str, stored: &str, shape: &[u64]) -> Result<(), ImportError> {
        self.cut(stored, shape, &[Some(name.to_owned())])
    }

    /// One stored tensor is cut into `names.len()` equal runs of rows; a run without a name is left out.
    fn cut(&mut self, stored: &str, shape: &[u64], names: &[Option<String>]) -> Result<(), ImportError> {
        let Some(tensor) = self.find(stored, shape) else {
            return Ok(());
        };
        let scales = self.scales(stored, tensor)?;
        let rows = shape[0] / names.len() as u64;
        let row_elements: u64 = shape[1..].iter().product();
        for (part, name) in names.iter().enumerate() {
            let Some(name) = name else { continue };
            let first_row = rows * part as u64;
            let mut part_shape = shape.to_vec();
            part_shape[0] = rows;
            self.plans.push(TensorPlan {
                name: name.clone(),
                shape: part_shape,
                encoding: tensor.encoding,
                // These encodings have one value per block.
                offset: tensor.offset + first_row * row_elements * tensor.encoding.block_bytes(),
                order: RowOrder::AsStored,
                scales: match &scales {
                    Some(Scales::PerRow(all, _)) => Some(Scales::PerRow(Arc::clone(all), first_row as usize)),
                    other => other.clone(),
                },
            });
        }
        Ok(())
    }

    /// Weight and bias of a fully connected layer.
    fn linear(&mut self, name: &str, stored: &str, rows: u64, columns: u64) -> Result<(), ImportError> {
        self.copy(
            &format!("{name}.weight"),
            &format!("{stored}/weight"),
            &[rows, columns],
        )?;
        self.copy(&format!("{name}.bias"), &format!("{stored}/bias"), &[rows])
    }

    /// Scale and shift of a layer norm.
    fn norm(&mut self, name: &str, stored: &str, width: u64) -> Result<(), ImportError> {
        self.copy(&format!("{name}.weight"), &format!("{stored}/gamma"), &[width])?;
        self.copy(&format!("{name}.bias"), &format!("{stored}/beta"), &[width])
    }

    /// A fused projection; `parts` in stored order, `k_proj` without bias.
    fn fused(&mut self, name: &str, stored: &str, parts: &[&str], width: u64) -> Result<(), ImportError> {
        let (weight, bias) = (format!("{stored}/weight"), format!("{stored}/bias"));
        let rows = width * parts.len() as u64;
        let named = |what: &str, keep: &dyn Fn(&str) -> bool| -> Vec<Option<String>> {
            let full = |part: &&str| keep(part).then(|| format!("{name}.{part}.{what}"));
            parts.iter().map(full).collect()
        };
        self.cut(&weight, &[rows, width], &named("weight", &|_| true))?;
        self.cut(&bias, &[rows], &named("bias", &|part| part != "k_proj"))?;
        let key = parts.iter().position(|part| *part == "k_proj");
        if let (Some(key), Some(tensor)) = (key, self.file.tensors.get(&bias))
            && tensor.shape == [rows]
            && decode(self.file, tensor, width * key as u64, width)?
                .iter()
                .any(|value| *value != 0.0)
        {
            self.differences.push(format!(
                "`{bias}` gives the key projection a bias, which Whisper does not have"
            ));
        }
        Ok(())
    }
}

fn decode(file: &Ct2File, tensor: &Ct2Tensor, from: u64, count: u64) -> Result<Vec<f32>, ImportError> {
    let size = tensor.encoding.block_bytes();
    let mut input = vec![0; (count * size) as usize];
    std::fs::File::open(&file.path)
        .and_then(|source| source.read_exact_at(&mut input, tensor.offset + from * size))
        .map_err(ImportError::io("read", &file.path))?;
    let mut values = vec![0.0; count as usize];
    tensor.encoding.decode(&input, &mut values);
    Ok(values)
}

fn layers(file: &Ct2File, side: &str) -> usize {
    (0..LAYERS_MAX)
        .take_while(|layer| {
            file.tensors
                .contains_key(&format!("{side}/layer_{layer}/ffn/linear_0/weight"))
        })
        .count()
}

/// Plans the import of an opened CTranslate2 Whisper model, whose `tokenizer.json` (and, if there is one,
/// `config.json`) lie in `folder`.
///
/// # Errors
/// [`ImportError::Unsupported`] for another specification, [`ImportError::Tensors`] when the tensors are not
/// exactly Whisper's, [`ImportError::Tokenizer`] without a usable `tokenizer.json`.
pub(crate) fn plan(file: &Ct2File, folder: &Path, format: FloatFormat) -> Result<WhisperImport, ImportError> {
    let unsupported = |what: String| ImportError::Unsupported {
        path: file.path.clone(),
        what,
    };
    if file.specification != "WhisperSpec" {
        return Err(unsupported(format!(
            "it is a CTranslate2 model of kind `{}`; `WhisperSpec` is handled",
            file.specification
        )));
    }
    if let Some(activation) = file.scalars.get("decoder/activation")
        && *activation != GELU
    {
        return Err(unsupported(format!(
            "its activation has number {activation}; {GELU} (exact GELU) is handled"
        )));
    }
    // The sizes come from four tensors; if one is missing, the list of differences says so.
    let shape = |name: &str, at: usize| {
        file.tensors
            .get(name)
            .and_then(|tensor| tensor.shape.get(at).copied())
            .unwrap_or(1)
    };
    let width = shape("encoder/conv1/weight", 0);
    let mels = shape("encoder/conv1/weight", 1);
    let positions = shape("encoder/position_encodings/encodings", 0);
    let targets = shape("decoder/position_encodings/encodings", 0);
    let vocabulary = shape("decoder/embeddings/weight", 0);
    let inner = shape("encoder/layer_0/ffn/linear_0/weight", 0);
    let (encoder_layers, decoder_layers) = (layers(file, "encoder"), layers(file, "decoder"));
    let heads = |side: &str| -> Result<u64, ImportError> {
        match file.scalars.get(&format!("{side}/num_heads")) {
            None => Ok((width / 64).max(1)),
            Some(heads) if *heads >= 1.0 && *heads <= width as f64 && width % (*heads as u64) == 0 => {
                Ok(*heads as u64)
            }
            Some(heads) => Err(unsupported(format!(
                "its {side} claims {heads} attention heads for a width of {width}"
            ))),
        }
    };
    let (encoder_heads, decoder_heads) = (heads("encoder")?, heads("decoder")?);

    let mut planner = Planner {
        file,
        plans: Vec::new(),
        differences: Vec::new(),
        used: BTreeSet::new(),
    };
    for (conv, inputs) in [("conv1", mels), ("conv2", width)] {
        let (name, stored) = (format!("model.encoder.{conv}"), format!("encoder/{conv}"));
        planner.copy(
            &format!("{name}.weight"),
            &format!("{stored}/weight"),
            &[width, inputs, 3],
        )?;
        planner.copy(&format!("{name}.bias"), &format!("{stored}/bias"), &[width])?;
    }
    for (side, count, rows) in [
        ("encoder", encoder_layers.max(1), positions),
        ("decoder", decoder_layers.max(1), targets),
    ] {
        planner.copy(
            &format!("model.{side}.embed_positions.weight"),
            &format!("{side}/position_encodings/encodings"),
            &[rows, width],
        )?;
        planner.norm(
            &format!("model.{side}.layer_norm"),
            &format!("{side}/layer_norm"),
            width,
        )?;
        for layer in 0..count {
            let name = |part: &str| format!("model.{side}.layers.{layer}.{part}");
            let stored = |part: &str| format!("{side}/layer_{layer}/{part}");
            planner.norm(
                &name("self_attn_layer_norm"),
                &stored("self_attention/layer_norm"),
                width,
            )?;
            let parts = ["q_proj", "k_proj", "v_proj"];
            planner.fused(
                &name("self_attn"),
                &stored("self_attention/linear_0"),
                &parts,
                width,
            )?;
            planner.linear(
                &name("self_attn.out_proj"),
                &stored("self_attention/linear_1"),
                width,
                width,
            )?;
            if side == "decoder" {
                planner.norm(
                    &name("encoder_attn_layer_norm"),
                    &stored("attention/layer_norm"),
                    width,
                )?;
                planner.linear(
                    &name("encoder_attn.q_proj"),
                    &stored("attention/linear_0"),
                    width,
                    width,
                )?;
                planner.fused(
                    &name("encoder_attn"),
                    &stored("attention/linear_1"),
                    &parts[1..],
                    width,
                )?;
                planner.linear(
                    &name("encoder_attn.out_proj"),
                    &stored("attention/linear_2"),
                    width,
                    width,
                )?;
            }
            planner.norm(&name("final_layer_norm"), &stored("ffn/layer_norm"), width)?;
            planner.linear(&name("fc1"), &stored("ffn/linear_0"), inner, width)?;
            planner.linear(&name("fc2"), &stored("ffn/linear_1"), width, inner)?;
        }
    }
    planner.copy(
        "model.decoder.embed_tokens.weight",
        "decoder/embeddings/weight",
        &[vocabulary, width],
    )?;
    let Planner {
        plans,
        mut differences,
        used,
        ..
    } = planner;
    for name in file.tensors.keys().filter(|name| !used.contains(*name)) {
        differences.push(format!("`{name}` is unexpected"));
    }
    let tied = file.aliases.get("decoder/projection/weight");
    if tied.is_none_or(|target| target != "decoder/embeddings/weight") {
        differences.push("`decoder/projection/weight` does not stand for `decoder/embeddings/weight`".into());
    }
    if !differences.is_empty() {
        differences.truncate(20);
        return Err(ImportError::Tensors {
            path: file.path.clone(),
            differences,
        });
    }

    let end = if vocabulary == ENGLISH_VOCABULARY {
        50_256
    } else {
        50_257
    };
    let config = json!({
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": width,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": encoder_heads,
        "decoder_attention_heads": decoder_heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "num_mel_bins": mels,
        "max_source_positions": positions,
        "max_target_positions": targets,
        "vocab_size": vocabulary,
        "activation_function": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": file.scalars.get("decoder/scale_embeddings").is_some_and(|flag| *flag != 0.0),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
        "tie_word_embeddings": true,
        "torch_dtype": format.torch_name(),
        "use_cache": true,
    });
    let preprocessor = json!({
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": mels,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 30 * 16_000,
        "nb_max_frames": 30 * 16_000 / 160,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": false,
        "dither": 0.0,
    });
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": targets,
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    });
    let mut files = vec![
        ("config.json", pretty(&config)),
        ("preprocessor_config.json", pretty(&preprocessor)),
        ("tokenizer_config.json", pretty(&tokenizer_config)),
        ("tokenizer.json", tokenizer(folder)?),
    ];
    if let Some(generation) = generation_config(folder, end, targets)? {
        files.push(("generation_config.json", pretty(&generation)));
    }
    Ok(WhisperImport { plans, files })
}

/// Reads a small file that may be missing.
fn read_small(path: &Path) -> Result<Option<Vec<u8>>, ImportError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImportError::io("open", path)(error)),
        Ok(facts) if facts.len() > JSON_BYTES_MAX => {
            return Err(ImportError::Unsupported {
                path: path.to_path_buf(),
                what: format!("it has {} bytes; at most {JSON_BYTES_MAX} are read", facts.len()),
            });
        }
        Ok(_) => {}
    }
    std::fs::read(path)
        .map(Some)
        .map_err(ImportError::io("read", path))
}

/// The `tokenizer.json` beside the model, byte for byte, once it has proved to load.
fn tokenizer(folder: &Path) -> Result<Vec<u8>, ImportError> {
    let path = folder.join("tokenizer.json");
    let wrong = |what: String| ImportError::Tokenizer {
        path: path.clone(),
        what,
    };
    let bytes = read_small(&path)?
        .ok_or_else(|| wrong("there is no such file; it belongs beside model.bin".into()))?;
    tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| wrong(format!("it does not load: {error}")))?;
    Ok(bytes)
}

/// Generation settings from the `config.json` beside the model, when there is one.
fn generation_config(folder: &Path, end: u64, targets: u64) -> Result<Option<Json>, ImportError> {
    let path = folder.join("config.json");
    let Some(bytes) = read_small(&path)? else {
        return Ok(None);
    };
    let settings: Map<String, Json> =
        serde_json::from_slice(&bytes).map_err(|error| ImportError::Malformed {
            path: path.clone(),
            at: 0,
            what: format!("the settings are not a JSON object: {error}"),
        })?;
    let from = |key: &str| settings.get(key).cloned().unwrap_or(Json::Null);
    Ok(Some(json!({
        "eos_token_id": end,
        "bos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
        "suppress_tokens": from("suppress_ids"),
        "begin_suppress_tokens": from("suppress_ids_begin"),
        "alignment_heads": from("alignment_heads"),
        "max_length": targets,
    })))
}
