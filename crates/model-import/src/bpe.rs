//! Rebuilds a `tokenizer.json` (byte-level BPE) from the tokenizer metadata of a GGUF file.

use std::collections::HashMap;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value as Json, json};

use super::ImportError;
use super::gguf::GgufFile;
use super::json::in_order;

/// Type numbers of `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// What the tokenizer metadata become.
pub(crate) struct ImportedTokenizer {
    /// The `tokenizer.json`, checked by loading it.
    pub(crate) json: Vec<u8>,
    /// The `tokenizer_config.json`.
    pub(crate) config: Json,
    pub(crate) bos: Option<u64>,
    pub(crate) eos: Option<u64>,
    pub(crate) pad: Option<u64>,
}

/// How text is cut before the merges, by the name GGUF gives it.
fn pre_tokenizer(name: &str) -> Option<(Json, Json, bool)> {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |digits: &str| {
        let pattern = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    };
    let sequence = |first: Json, second: Json| json!({"type": "Sequence", "pretokenizers": [first, second]});
    // Normaliser, pre-tokenizer, and whether a word that is a token of its own skips the merges.
    Some(match name {
        "smollm" => (
            Json::Null,
            sequence(
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ),
            false,
        ),
        "qwen2" => (
            json!({"type": "NFC"}),
            sequence(split(r"\p{N}"), byte_level(false)),
            false,
        ),
        "llama-bpe" => (
            Json::Null,
            sequence(split(r"\p{N}{1,3}"), byte_level(false)),
            true,
        ),
        "gpt-2" => (Json::Null, byte_level(true), false),
        _ => return None,
    })
}

/// A vocabulary in the order of its ids, as `tokenizers` writes it.
struct Vocabulary<'a>(&'a [String]);

impl Serialize for Vocabulary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, token) in self.0.iter().enumerate() {
            map.serialize_entry(token, &id)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct AddedToken<'a> {
    id: usize,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'a str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Vocabulary<'a>,
    merges: Vec<(&'a str, &'a str)>,
}

#[derive(Serialize)]
struct TokenizerFile<'a> {
    version: &'a str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Json,
    pre_tokenizer: Json,
    post_processor: Json,
    decoder: Json,
    model: Bpe<'a>,
}

/// Where the BPE vocabulary ends: special tokens that close the list as one run are kept out of it (the
/// `tokenizers` library hands them the ids that follow); where ordinary tokens come after, all stay in.
fn base_length(types: &[i64]) -> usize {
    let is_special = |kind: &i64| matches!(*kind, CONTROL | USER_DEFINED);
    let Some(first) = types.iter().position(is_special) else {
        return types.len();
    };
    let run = types[first..].iter().take_while(|kind| is_special(kind)).count();
    if types[first + run..].iter().all(|kind| *kind == UNUSED) {
        first
    } else {
        types.len()
    }
}

/// Builds the tokenizer files, and loads the result to make sure that every special token has its id.
///
/// # Errors
/// [`ImportError::Tokenizer`] for another kind of tokenizer, or for one that contradicts itself.
pub(crate) fn from_gguf(file: &GgufFile) -> Result<ImportedTokenizer, ImportError> {
    let wrong = |what: String| ImportError::Tokenizer {
        path: file.path.clone(),
        what,
    };
    let model = file.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(wrong(format!(
            "it is of kind `{model}`; byte-level BPE (`gpt2`) is handled"
        )));
    }
    let pre = file.text("tokenizer.ggml.pre")?;
    let Some((normalizer, pre_tokenizer, ignore_merges)) = pre_tokenizer(pre) else {
        return Err(wrong(format!(
            "it cuts text by the rule `{pre}`; handled are smollm, qwen2, llama-bpe and gpt-2"
        )));
    };
    let tokens = file.texts("tokenizer.ggml.tokens")?;
    let types = file.integers("tokenizer.ggml.token_type")?;
    if tokens.len() != types.len() || tokens.is_empty() {
        return Err(wrong(format!(
            "it has {} tokens, but {} token types",
            tokens.len(),
            types.len()
        )));
    }
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = ids.insert(token.as_str(), id) {
            return Err(wrong(format!("ids {other} and {id} are both `{token}`")));
        }
    }
    if let Some(table) = file.tensors.get("token_embd.weight")
        && table.shape[0] < tokens.len() as u64
    {
        return Err(wrong(format!(
            "it has {} tokens, but the embedding table only {} rows",
            tokens.len(),
            table.shape[0]
        )));
    }
    let merges = file
        .texts("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| {
            merge
                .split_once(' ')
                .ok_or_else(|| wrong(format!("merge `{merge}` does not consist of two parts")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let token_at = |key: &str| -> Result<Option<u64>, ImportError> {
        // Ids start at 0, which `size` does not accept.
        match file.metadata.get(key) {
            None => Ok(None),
            Some(super::gguf::Value::Integer(0)) => Ok(Some(0)),
            Some(_) => file.size(key, tokens.len() as u64 - 1).map(Some),
        }
    };
    let bos = token_at("tokenizer.ggml.bos_token_id")?;
    let eos = token_at("tokenizer.ggml.eos_token_id")?;
    let pad = token_at("tokenizer.ggml.padding_token_id")?;
    let text_of = |id: Option<u64>| id.map(|id| tokens[id as usize].as_str());

    let base = base_length(types);
    let added_tokens = types
        .iter()
        .enumerate()
        .filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, kind)| AddedToken {
            id,
            content: &tokens[id],
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: *kind == CONTROL,
        })
        .collect::<Vec<_>>();
    let special_ids: Vec<(usize, &str)> = added_tokens
        .iter()
        .map(|token| (token.id, token.content))
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let post_processor = match text_of(bos) {
        Some(token) if file.flag("tokenizer.ggml.add_bos_token")? => begin_with(token, bos),
        _ => Json::Null,
    };
    let tokenizer = TokenizerFile {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens,
        normalizer: in_order(normalizer),
        pre_tokenizer: in_order(pre_tokenizer),
        post_processor: in_order(post_processor),
        decoder: in_order(byte_level),
        model: Bpe {
            r#type: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges,
            vocab: Vocabulary(&tokens[..base]),
            merges,
        },
    };
    let json = serde_json::to_vec(&tokenizer)
        .map_err(|error| wrong(format!("it cannot be written as JSON: {error}")))?;
    let loaded = tokenizers::Tokenizer::from_bytes(&json)
        .map_err(|error| wrong(format!("its merges and vocabulary do not fit together: {error}")))?;
    for (id, token) in special_ids {
        let given = loaded.token_to_id(token);
        if given != u32::try_from(id).ok() {
            return Err(wrong(format!(
                "special token `{token}` should have id {id}, but gets {given:?}"
            )));
        }
    }

    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.size(&format!("{}.context_length", file.text("general.architecture")?), u64::from(u32::MAX))?,
        "clean_up_tokenization_spaces": false,
    });
    for (name, value) in [
        ("bos_token", text_of(bos)),
        ("eos_token", text_of(eos)),
        ("pad_token", text_of(pad)),
        ("chat_template", file.optional_text("tokenizer.chat_template")?),
    ] {
        if let Some(value) = value {
            config[name] = json!(value);
        }
    }
    Ok(ImportedTokenizer {
        json,
        config,
        bos,
        eos,
        pad,
    })
}

/// A post-processor that puts the begin-of-sequence token first.
fn begin_with(token: &str, id: Option<u64>) -> Json {
    let special = |kind: u32| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let sequence = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let mut special_tokens = serde_json::Map::new();
    special_tokens.insert(
        token.to_owned(),
        json!({"id": token, "ids": [id], "tokens": [token]}),
    );
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": special_tokens,
    })
}
