//! GGUF files of the Llama family (architectures `llama` and `qwen2`) in the Hugging Face layout.
//!
//! | GGUF | Hugging Face |
//! |---|---|
//! | `token_embd.weight` | `model.embed_tokens.weight` |
//! | `blk.N.attn_{q,k,v}.{weight,bias}`, `blk.N.attn_output.weight` | `model.layers.N.self_attn.{q,k,v,o}_proj.…` |
//! | `blk.N.ffn_{gate,up,down}.weight` | `model.layers.N.mlp.{gate,up,down}_proj.weight` |
//! | `blk.N.attn_norm.weight`, `blk.N.ffn_norm.weight` | `model.layers.N.{input,post_attention}_layernorm.weight` |
//! | `output_norm.weight`, `output.weight` | `model.norm.weight`, `lm_head.weight` |
//!
//! Architecture `llama` stores the rows of q and k with the two rotary halves interleaved; they are put back.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use serde_json::{Value as Json, json};

use super::bpe;
use super::gguf::{GgufFile, GgufTensor};
use super::json::pretty;
use super::tensors::{RowOrder, TensorPlan};
use super::{FloatFormat, ImportError};

const LAYERS_MAX: u64 = 1 << 10;
const WIDTH_MAX: u64 = 1 << 17;
const HEADS_MAX: u64 = 1 << 12;
const POSITIONS_MAX: u64 = 1 << 28;
/// Rows that are compared when a file holds both an input and an output matrix.
const TIE_SAMPLE_ROWS: u64 = 256;
/// Two copies of one matrix at different precision differ by a few per cent; two matrices by more than 100 %.
const TIE_DIFFERENCE_MAX: f64 = 0.1;

/// What is to be written for one GGUF file.
pub(crate) struct LlamaImport {
    pub(crate) architecture: String,
    pub(crate) plans: Vec<TensorPlan>,
    pub(crate) tied: bool,
    pub(crate) licence: Option<String>,
    /// Small files: name and content.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
}

/// The sizes that decide every shape.
struct Sizes {
    layers: u64,
    width: u64,
    heads: u64,
    kv_heads: u64,
    head: u64,
    inner: u64,
    vocabulary: u64,
}

/// Plans the import of an opened GGUF file.
///
/// # Errors
/// [`ImportError::Unsupported`] for an architecture or a setting that is not handled,
/// [`ImportError::Tensors`] when the tensors are not exactly those of the architecture,
/// [`ImportError::Tokenizer`] for the tokenizer.
pub(crate) fn plan(file: &GgufFile, format: FloatFormat) -> Result<LlamaImport, ImportError> {
    let architecture = file.text("general.architecture")?.to_owned();
    if !matches!(architecture.as_str(), "llama" | "qwen2") {
        return Err(unsupported(
            file,
            format!("its architecture is `{architecture}`; handled are `llama` and `qwen2`"),
        ));
    }
    refuse_what_changes_the_mathematics(file, &architecture)?;
    let sizes = sizes(file, &architecture)?;
    let interleaved = architecture == "llama";
    let attention_bias = interleaved && file.tensors.contains_key("blk.0.attn_q.bias");
    let mut plans = Vec::new();
    let mut differences = Vec::new();
    let mut known = BTreeSet::new();
    for (stored, name, shape, order) in expected(&sizes, &architecture, attention_bias) {
        known.insert(stored.clone());
        match file.tensors.get(&stored) {
            None if stored == "output.weight" => {} // tied
            None => differences.push(format!("`{stored}` is missing")),
            Some(tensor) if tensor.shape != shape => differences.push(format!(
                "`{stored}` has shape {:?}, expected {shape:?}",
                tensor.shape
            )),
            Some(tensor) => plans.push(planned(name, shape, tensor, order)),
        }
    }
    for stored in file.tensors.keys() {
        if !known.contains(stored) && stored != "rope_freqs.weight" {
            differences.push(format!("`{stored}` is unexpected"));
        }
    }
    if !differences.is_empty() {
        differences.truncate(20);
        return Err(ImportError::Tensors {
            path: file.path.clone(),
            differences,
        });
    }
    let tied = join_tied(file, &mut plans)?;
    let tokenizer = bpe::from_gguf(file)?;
    let config = config(
        file,
        &architecture,
        &sizes,
        tied,
        attention_bias,
        format,
        &tokenizer,
    )?;
    let generation = json!({
        "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad,
    });
    Ok(LlamaImport {
        plans,
        tied,
        licence: file.optional_text("general.license")?.map(str::to_owned),
        files: vec![
            ("config.json", pretty(&config)),
            ("generation_config.json", pretty(&generation)),
            ("tokenizer.json", tokenizer.json),
            ("tokenizer_config.json", pretty(&tokenizer.config)),
        ],
        architecture,
    })
}

fn unsupported(file: &GgufFile, what: String) -> ImportError {
    ImportError::Unsupported {
        path: file.path.clone(),
        what,
    }
}

/// Settings that the layout written here cannot express, or that the models here do not have.
fn refuse_what_changes_the_mathematics(file: &GgufFile, architecture: &str) -> Result<(), ImportError> {
    let scaling = format!("{architecture}.rope.scaling.type");
    if let Some(kind) = file.optional_text(&scaling)?
        && kind != "none"
    {
        return Err(unsupported(
            file,
            format!("it scales its rotary positions (`{scaling}` is `{kind}`), which is not handled"),
        ));
    }
    let experts = format!("{architecture}.expert_count");
    if file.metadata.contains_key(&experts) {
        return Err(unsupported(
            file,
            "it is a mixture of experts, which is not handled".into(),
        ));
    }
    let Some(factors) = file.tensors.get("rope_freqs.weight") else {
        return Ok(());
    };
    if factors.elements() > WIDTH_MAX {
        return Err(unsupported(
            file,
            format!("`rope_freqs.weight` has {} values", factors.elements()),
        ));
    }
    if decode(file, factors, 0, factors.elements())?
        .iter()
        .any(|factor| *factor != 1.0)
    {
        return Err(unsupported(
            file,
            "`rope_freqs.weight` scales single rotary frequencies (Llama 3.1 and later), which is not handled".into(),
        ));
    }
    Ok(())
}

fn sizes(file: &GgufFile, architecture: &str) -> Result<Sizes, ImportError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let width = file.size(&key("embedding_length"), WIDTH_MAX)?;
    let heads = file.size(&key("attention.head_count"), HEADS_MAX)?;
    let kv_heads = file
        .optional_size(&key("attention.head_count_kv"), HEADS_MAX)?
        .unwrap_or(heads);
    let head = match file.optional_size(&key("attention.key_length"), WIDTH_MAX)? {
        Some(head) => head,
        None => width / heads,
    };
    if heads % kv_heads != 0 || head == 0 || head % 2 != 0 {
        return Err(unsupported(
            file,
            format!(
                "{heads} attention heads over {kv_heads} key heads of {head} values do not divide evenly"
            ),
        ));
    }
    let rotary = file.optional_size(&key("rope.dimension_count"), WIDTH_MAX)?;
    if rotary.is_some_and(|rotary| rotary != head) {
        return Err(unsupported(
            file,
            format!("only part of each head is rotated ({rotary:?} of {head}), which is not handled"),
        ));
    }
    let vocabulary = match file.tensors.get("token_embd.weight") {
        Some(table) => table.shape[0],
        None => 0, // reported with all other missing tensors
    };
    Ok(Sizes {
        layers: file.size(&key("block_count"), LAYERS_MAX)?,
        width,
        heads,
        kv_heads,
        head,
        inner: file.size(&key("feed_forward_length"), 1 << 20)?,
        vocabulary,
    })
}

type Expected = (String, String, Vec<u64>, RowOrder);

/// Every tensor the architecture has: stored name, written name, shape, row order.
fn expected(sizes: &Sizes, architecture: &str, attention_bias: bool) -> Vec<Expected> {
    let (width, inner) = (sizes.width, sizes.inner);
    let queries = sizes.heads * sizes.head;
    let keys = sizes.kv_heads * sizes.head;
    let rotary = if architecture == "llama" {
        RowOrder::SplitHalves {
            head_rows: sizes.head,
        }
    } else {
        RowOrder::AsStored
    };
    let plain = RowOrder::AsStored;
    let mut all: Vec<Expected> = Vec::new();
    let mut add = |stored: String, name: String, shape: &[u64], order: RowOrder| {
        all.push((stored, name, shape.to_vec(), order));
    };
    let table = [sizes.vocabulary, width];
    add(
        "token_embd.weight".into(),
        "model.embed_tokens.weight".into(),
        &table,
        plain,
    );
    add(
        "output_norm.weight".into(),
        "model.norm.weight".into(),
        &[width],
        plain,
    );
    add("output.weight".into(), "lm_head.weight".into(), &table, plain);
    for layer in 0..sizes.layers {
        let from = |name: &str| format!("blk.{layer}.{name}");
        let to = |name: &str| format!("model.layers.{layer}.{name}");
        for (stored, name, rows, order) in [
            ("attn_q", "self_attn.q_proj", queries, rotary),
            ("attn_k", "self_attn.k_proj", keys, rotary),
            ("attn_v", "self_attn.v_proj", keys, plain),
        ] {
            add(
                from(&format!("{stored}.weight")),
                to(&format!("{name}.weight")),
                &[rows, width],
                order,
            );
            if architecture == "qwen2" || attention_bias {
                add(
                    from(&format!("{stored}.bias")),
                    to(&format!("{name}.bias")),
                    &[rows],
                    order,
                );
            }
        }
        let output = [width, queries];
        add(
            from("attn_output.weight"),
            to("self_attn.o_proj.weight"),
            &output,
            plain,
        );
        if attention_bias {
            add(
                from("attn_output.bias"),
                to("self_attn.o_proj.bias"),
                &[width],
                plain,
            );
        }
        add(
            from("ffn_gate.weight"),
            to("mlp.gate_proj.weight"),
            &[inner, width],
            plain,
        );
        add(
            from("ffn_up.weight"),
            to("mlp.up_proj.weight"),
            &[inner, width],
            plain,
        );
        add(
            from("ffn_down.weight"),
            to("mlp.down_proj.weight"),
            &[width, inner],
            plain,
        );
        add(
            from("attn_norm.weight"),
            to("input_layernorm.weight"),
            &[width],
            plain,
        );
        add(
            from("ffn_norm.weight"),
            to("post_attention_layernorm.weight"),
            &[width],
            plain,
        );
    }
    all
}

fn planned(name: String, shape: Vec<u64>, tensor: &GgufTensor, order: RowOrder) -> TensorPlan {
    TensorPlan {
        name,
        shape,
        encoding: tensor.encoding,
        offset: tensor.offset,
        order,
        scales: None,
    }
}

/// Decodes `count` values of `tensor` from value `from` on.
fn decode(file: &GgufFile, tensor: &GgufTensor, from: u64, count: u64) -> Result<Vec<f32>, ImportError> {
    let malformed = || unsupported(file, "a sampled row does not consist of whole blocks".into());
    let start = tensor.encoding.bytes_for(from).ok_or_else(malformed)?;
    let bytes = tensor.encoding.bytes_for(count).ok_or_else(malformed)?;
    let mut input = vec![0; bytes as usize];
    std::fs::File::open(&file.path)
        .and_then(|source| source.read_exact_at(&mut input, tensor.offset + start))
        .map_err(ImportError::io("read", &file.path))?;
    let mut values = vec![0.0; count as usize];
    tensor.encoding.decode(&input, &mut values);
    Ok(values)
}

/// Some converters store one tied matrix twice, at two precisions. The better copy is kept, once.
///
/// Gives back whether the model ties its input and output matrices.
fn join_tied(file: &GgufFile, plans: &mut Vec<TensorPlan>) -> Result<bool, ImportError> {
    let Some(output) = file.tensors.get("output.weight") else {
        return Ok(true);
    };
    let input = &file.tensors["token_embd.weight"];
    let (rows, width) = (input.shape[0], input.shape[1]);
    let step = (rows / TIE_SAMPLE_ROWS).max(1);
    let (mut difference, mut magnitude) = (0.0, 0.0);
    for row in (0..rows).step_by(step as usize) {
        let left = decode(file, input, row * width, width)?;
        let right = decode(file, output, row * width, width)?;
        for (left, right) in left.iter().zip(&right) {
            difference += f64::from((left - right).abs());
            magnitude += f64::from(right.abs());
        }
    }
    // Written so that a magnitude of nothing, or of NaN, counts as two matrices.
    let same = difference < TIE_DIFFERENCE_MAX * magnitude;
    if !same {
        return Ok(false);
    }
    let bits =
        |tensor: &GgufTensor| tensor.encoding.block_bytes() as f64 / tensor.encoding.block_elements() as f64;
    let better = if bits(input) > bits(output) { input } else { output };
    plans.retain(|plan| plan.name != "lm_head.weight");
    for plan in plans.iter_mut() {
        if plan.name == "model.embed_tokens.weight" {
            plan.encoding = better.encoding;
            plan.offset = better.offset;
        }
    }
    Ok(true)
}

fn config(
    file: &GgufFile,
    architecture: &str,
    sizes: &Sizes,
    tied: bool,
    attention_bias: bool,
    format: FloatFormat,
    tokenizer: &bpe::ImportedTokenizer,
) -> Result<Json, ImportError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let theta = key("rope.freq_base");
    let class = if architecture == "llama" {
        "LlamaForCausalLM"
    } else {
        "Qwen2ForCausalLM"
    };
    Ok(json!({
        "architectures": [class],
        "model_type": architecture,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": file.size(&key("context_length"), POSITIONS_MAX)?,
        "rms_norm_eps": file.number(&key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": if file.metadata.contains_key(&theta) { file.number(&theta)? } else { 10_000.0 },
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "attention_bias": attention_bias,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
        "torch_dtype": format.torch_name(),
        "use_cache": true,
    }))
}
