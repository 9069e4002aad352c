//! A tokenizer small enough to write down: one id per byte, and three control tokens.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A `tokenizer.json` whose ids are the 256 bytes (in the order of the byte-level alphabet), then
/// `<|im_start|>` 256, `<|im_end|>` 257 and `<tool>` 258 (an added token that is not marked special).
///
/// It carries a stored length limit of 8 on purpose: a reader that honoured it would cut texts short.
pub fn byte_tokenizer_json() -> String {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab = serde_json::Map::new();
    for (id, character) in alphabet.iter().enumerate() {
        vocab.insert(character.to_string(), id.into());
    }
    let mut added = Vec::new();
    for (id, content, special) in [
        (256, "<|im_start|>", true),
        (257, "<|im_end|>", true),
        (258, "<tool>", false),
    ] {
        vocab.insert(content.to_owned(), id.into());
        added.push(serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special
        }));
    }
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": []
        }
    })
    .to_string()
}
