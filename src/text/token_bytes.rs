//! `TokenBytes`: the bytes that each token of a vocabulary stands for inside a text.
//!
//! What tokens spell, joined, is what the tokenizer decodes, but for a blank at the very beginning that some
//! decoders strip. Constrained decoding works on these bytes, so every way to tokenise an allowed answer is
//! allowed, also across its seams. Source of the idea: guided generation (Willard and Louf, arXiv
//! 2307.09702).

use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Decoder as _, Tokenizer};

use super::TextError;

/// What the tokens of a vocabulary spell. Control tokens and ids without a token spell nothing.
#[derive(Debug)]
pub struct TokenBytes {
    /// Bytes and id, in order of bytes.
    tokens: Vec<(Box<[u8]>, i64)>,
    /// Place in `tokens` of each id.
    places: Vec<Option<u32>>,
    every_byte: bool,
}

impl TokenBytes {
    /// Joins bytes and ids; `vocabulary` is one more than the largest id.
    pub fn new(mut tokens: Vec<(Box<[u8]>, i64)>, vocabulary: i64) -> Self {
        tokens.retain(|(bytes, id)| !bytes.is_empty() && (0..vocabulary).contains(id));
        tokens.sort_unstable();
        let mut places = vec![None; usize::try_from(vocabulary).unwrap_or(0)];
        let mut single = [false; 256];
        for (place, (bytes, id)) in tokens.iter().enumerate() {
            places[usize::try_from(*id).expect("ids are in range")] = u32::try_from(place).ok();
            if let [byte] = **bytes {
                single[usize::from(byte)] = true;
            }
        }
        Self {
            tokens,
            places,
            every_byte: single == [true; 256],
        }
    }

    /// Reads the vocabulary of a tokenizer, but for the ids that `is_control` names.
    pub(super) fn of(
        tokenizer: &Tokenizer,
        vocabulary: i64,
        is_control: impl Fn(i64) -> bool,
    ) -> Result<Self, TextError> {
        let unknown = |found: String| TextError::TokenBytes { found };
        let decoder = tokenizer
            .get_decoder()
            .ok_or_else(|| unknown("no decoder".to_owned()))?;
        let rule = Rule::of(decoder).map_err(|found| unknown(found.to_owned()))?;
        let mut tokens = Vec::new();
        for id in (0..vocabulary).filter(|id| !is_control(*id)) {
            let token = u32::try_from(id).ok().and_then(|id| tokenizer.id_to_token(id));
            if let Some(token) = token {
                tokens.push((rule.bytes(token)?.into_boxed_slice(), id));
            }
        }
        Ok(Self::new(tokens, vocabulary))
    }

    /// Ids end before this.
    pub fn vocabulary(&self) -> i64 {
        i64::try_from(self.places.len()).expect("made from an i64")
    }

    /// The bytes of a token; none for a control token or an id without a token.
    pub fn bytes(&self, id: i64) -> Option<&[u8]> {
        let place = (*self.places.get(usize::try_from(id).ok()?)?)?;
        Some(&self.tokens[usize::try_from(place).ok()?].0)
    }

    /// Whether a word begins with a token: it spells a blank and more, or nothing but a blank.
    pub fn begins_word(&self, id: i64) -> bool {
        self.bytes(id).is_some_and(|bytes| bytes.starts_with(b" "))
    }

    /// All tokens that spell something: their bytes and ids, in order of bytes.
    pub fn tokens(&self) -> &[(Box<[u8]>, i64)] {
        &self.tokens
    }

    /// Whether each of the 256 bytes is a token by itself, so that everything can be spelt from any place on.
    pub fn spells_every_byte(&self) -> bool {
        self.every_byte
    }

    /// Whether tokens spell exactly this, also with a blank before it.
    pub fn can_spell(&self, text: &str) -> bool {
        if self.every_byte {
            return true;
        }
        let blank = format!(" {text}").into_bytes();
        [text.as_bytes(), &blank].into_iter().any(|text| {
            let mut reached = vec![false; text.len() + 1];
            reached[0] = true;
            for start in 0..text.len() {
                if !reached[start] {
                    continue;
                }
                for end in start + 1..=text.len() {
                    let known = self
                        .tokens
                        .binary_search_by(|(bytes, _)| (**bytes).cmp(&text[start..end]));
                    if known.is_ok() {
                        reached[end] = true;
                    } else if !self.is_prefix(&text[start..end]) {
                        break;
                    }
                }
            }
            reached[text.len()]
        })
    }

    /// The token that spells exactly this.
    pub fn id_of(&self, bytes: &[u8]) -> Option<i64> {
        let place = self.tokens.partition_point(|(known, _)| **known < *bytes);
        (self.tokens.get(place))
            .filter(|(known, _)| **known == *bytes)
            .map(|(_, id)| *id)
    }

    /// Whether a token begins so.
    pub(crate) fn is_prefix(&self, start: &[u8]) -> bool {
        let place = self.tokens.partition_point(|(bytes, _)| **bytes < *start);
        (self.tokens.get(place)).is_some_and(|(bytes, _)| bytes.starts_with(start))
    }
}

/// How a decoder turns one token into bytes, wherever it stands but at the very beginning.
struct Rule<'d>(Vec<&'d DecoderWrapper>);

impl<'d> Rule<'d> {
    /// The decoder's steps; the name of the first one that does not go token by token.
    fn of(decoder: &'d DecoderWrapper) -> Result<Self, &'static str> {
        let mut steps = Vec::new();
        let mut open = vec![decoder];
        while let Some(step) = open.pop() {
            match step {
                DecoderWrapper::Sequence(sequence) => open.extend(sequence.get_decoders().iter().rev()),
                DecoderWrapper::BPE(_) => return Err("a `BPEDecoder`"),
                DecoderWrapper::WordPiece(_) => return Err("a `WordPiece` decoder"),
                DecoderWrapper::CTC(_) => return Err("a `CTC` decoder"),
                DecoderWrapper::Strip(strip) if strip.content != ' ' => {
                    return Err("a `Strip` decoder of something else than blanks");
                }
                // Joins pieces, or strips blanks at the ends of the whole text.
                DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_) => {}
                DecoderWrapper::ByteLevel(_)
                | DecoderWrapper::Metaspace(_)
                | DecoderWrapper::Replace(_)
                | DecoderWrapper::ByteFallback(_) => steps.push(step),
            }
        }
        Ok(Self(steps))
    }

    fn bytes(&self, mut token: String) -> Result<Vec<u8>, TextError> {
        for step in &self.0 {
            match step {
                DecoderWrapper::ByteLevel(_) => {
                    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                    return Ok(bytes.unwrap_or_else(|| token.into_bytes()));
                }
                DecoderWrapper::ByteFallback(_) => {
                    let digits = (token.strip_prefix("<0x"))
                        .and_then(|rest| rest.strip_suffix('>'))
                        .filter(|digits| digits.len() == 2);
                    if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                        return Ok(vec![byte]);
                    }
                }
                DecoderWrapper::Metaspace(space) => token = token.replace(space.get_replacement(), " "),
                other => {
                    let pieces = other
                        .decode_chain(vec![token])
                        .map_err(|error| TextError::Tokenize {
                            action: "decode",
                            reason: error.to_string(),
                        })?;
                    token = pieces.concat();
                }
            }
        }
        Ok(token.into_bytes())
    }
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 stands for itself, the
/// rest, in order, for U+0100 and up.
fn byte_of(character: char) -> Option<u8> {
    static BYTES: std::sync::LazyLock<std::collections::HashMap<char, u8>> = std::sync::LazyLock::new(|| {
        let itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let rest = (0..=255u8).filter(|byte| !itself(*byte)).zip(0x100u32..);
        let moved = rest.map(|(byte, code)| (char::from_u32(code).expect("far below the surrogates"), byte));
        let map: std::collections::HashMap<char, u8> = (0..=255u8)
            .filter(|byte| itself(*byte))
            .map(|byte| (char::from(byte), byte))
            .chain(moved)
            .collect();
        debug_assert!(
            ByteLevel::alphabet()
                .into_iter()
                .all(|character| map.contains_key(&character))
        );
        map
    });
    BYTES.get(&character).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::text::tiny::byte_tokenizer_json;

    #[test]
    fn a_byte_vocabulary_spells_every_byte_and_no_control_token() {
        let tokenizer = crate::text::Tokenizer::from_bytes(byte_tokenizer_json().as_bytes()).unwrap();
        let token_bytes = tokenizer.token_bytes().unwrap();

        assert!(token_bytes.spells_every_byte());
        assert_eq!(token_bytes.tokens().len(), 256);
        assert_eq!(token_bytes.bytes(256), None);
        assert_eq!(token_bytes.bytes(-1), None);
        let ids = tokenizer.encode_plain("né 🎧").unwrap();
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|id| token_bytes.bytes(*id).unwrap())
            .copied()
            .collect();
        assert_eq!(bytes, "né 🎧".as_bytes());
    }

    /// A tokenizer as T5's: pieces with `▁` for a blank.
    pub(crate) fn metaspace_json(pieces: &[&str]) -> String {
        let vocab: Vec<(String, f64)> = [("<unk>".to_owned(), 0.0)]
            .into_iter()
            .chain(pieces.iter().map(|piece| ((*piece).to_owned(), -1.0)))
            .collect();
        let space = serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": space, "decoder": space,
            "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false}
        })
        .to_string()
    }

    #[test]
    fn a_vocabulary_of_pieces_knows_what_it_cannot_spell() {
        let json = metaspace_json(&["▁yes", "▁", "y", "no", "▁n", "o"]);
        let tokenizer = crate::text::Tokenizer::from_bytes(json.as_bytes()).unwrap();
        let token_bytes = tokenizer.token_bytes().unwrap();

        assert!(!token_bytes.spells_every_byte());
        assert_eq!(token_bytes.bytes(1), Some(&b" yes"[..]));
        for (text, can) in [
            ("yes", true),
            ("no", true),
            ("on", false),
            ("y no", true),
            ("yesno", true),
            ("s", false),
        ] {
            assert_eq!(token_bytes.can_spell(text), can, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_pieces_spell_joined_is_what_the_tokenizer_decodes(ids in prop::collection::vec(1i64..7, 1..12)) {
            let json = metaspace_json(&["▁yes", "▁", "y", "no", "▁n", "é"]);
            let tokenizer = crate::text::Tokenizer::from_bytes(json.as_bytes()).unwrap();
            let token_bytes = tokenizer.token_bytes().unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| token_bytes.bytes(*id).unwrap()).copied().collect();
            let spelt = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), spelt.strip_prefix(' ').unwrap_or(&spelt));
        }

        #[test]
        fn what_bytes_spell_joined_is_what_the_tokenizer_decodes(ids in prop::collection::vec(0i64..256, 0..30)) {
            let tokenizer = crate::text::Tokenizer::from_bytes(byte_tokenizer_json().as_bytes()).unwrap();
            let token_bytes = tokenizer.token_bytes().unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| token_bytes.bytes(*id).unwrap()).copied().collect();
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), String::from_utf8_lossy(&bytes));
        }
    }
}
