//! `Tokenizer`: a Hugging Face `tokenizer.json`, with layout and users' words kept apart.
//!
//! Two ways to encode. [`Tokenizer::encode`] reads control tokens such as `<|im_end|>` in the text: for chat
//! layouts that the model's own template wrote. [`Tokenizer::encode_plain`] spells them out as ordinary
//! characters: for everything that a user wrote. Neither adds tokens of its own.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokenizers::ModelWrapper;
use tokenizers::models::unigram::Unigram;

use super::TextError;
use super::error::read_bounded;
use super::token_bytes::TokenBytes;

/// Larger than any published `tokenizer.json`; a bound on what is read into memory.
const TOKENIZER_BYTES_MAX: u64 = 128 << 20; // 128 MiB

/// Turns text into token ids and back.
pub struct Tokenizer {
    /// Recognises control tokens.
    layout: tokenizers::Tokenizer,
    /// Spells control tokens out.
    plain: tokenizers::Tokenizer,
    /// Added tokens that are not mere white space, by id. The one for characters that the vocabulary lacks is
    /// not among them, wherever it is listed: text makes it, and it controls nothing.
    control: HashMap<u32, String>,
    vocab: i64,
    /// Made when it is first asked for.
    token_bytes: OnceLock<Arc<TokenBytes>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` from a model folder.
    ///
    /// # Errors
    /// [`TextError::Read`], [`TextError::TooLarge`] or [`TextError::Malformed`] with the file's name.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("tokenizer.json");
        let bytes = read_bounded(&path, TOKENIZER_BYTES_MAX)?;
        Self::from_bytes(&bytes).map_err(|error| match error {
            TextError::Malformed { expected, reason, .. } => TextError::Malformed {
                path,
                expected,
                reason,
            },
            other => other,
        })
    }

    /// Reads a tokenizer from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Malformed`] when they are not one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        let malformed = |error: tokenizers::Error| TextError::Malformed {
            path: "tokenizer.json".into(),
            expected: "a tokenizer description",
            reason: error.to_string(),
        };
        let mut layout = tokenizers::Tokenizer::from_bytes(bytes).map_err(malformed)?;
        let unknown = unknown_token(bytes, &layout);
        // A length limit stored in the file would cut texts short in silence.
        layout.with_truncation(None).map_err(malformed)?;
        layout.with_padding(None);

        let mut control = HashMap::new();
        let mut marked = Vec::new();
        for (id, token) in layout.get_added_tokens_decoder() {
            // Runs of blanks are a convenience of some vocabularies, not control tokens.
            if token.content.trim().is_empty() || Some(id) == unknown {
                continue;
            }
            control.insert(id, token.content.clone());
            marked.push(token.special(true));
        }
        let mut plain = layout.clone();
        plain.add_special_tokens(marked).map_err(malformed)?;
        plain.set_encode_special_tokens(true);
        if let Some(model) = without_control_pieces(&plain, &control, unknown) {
            plain.with_model(model.map_err(malformed)?);
        }

        let vocab = layout
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |last| i64::from(*last) + 1);
        Ok(Self {
            layout,
            plain,
            control,
            vocab,
            token_bytes: OnceLock::new(),
        })
    }

    /// How many ids there are: the largest one plus one. A model's embedding table may be larger.
    pub fn vocab_size(&self) -> i64 {
        self.vocab
    }

    /// Whether an id is a control token (an added token that is more than white space).
    pub fn is_control(&self, id: i64) -> bool {
        u32::try_from(id).is_ok_and(|id| self.control.contains_key(&id))
    }

    /// What each token spells, for constrained decoding; made once.
    ///
    /// # Errors
    /// [`TextError::TokenBytes`] when the tokenizer's decoder does not go token by token.
    pub fn token_bytes(&self) -> Result<Arc<TokenBytes>, TextError> {
        if let Some(known) = self.token_bytes.get() {
            return Ok(Arc::clone(known));
        }
        let made = TokenBytes::of(&self.layout, self.vocab, |id| self.is_control(id))?;
        Ok(Arc::clone(self.token_bytes.get_or_init(|| Arc::new(made))))
    }

    /// Encodes layout text: control tokens written in it become control tokens. Adds none of its own.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, TextError> {
        Self::ids(&self.layout, text)
    }

    /// Encodes what a user wrote: the spelling of a control token stays spelling.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer refuses the text; [`TextError::ControlToken`] when its
    /// vocabulary yields a control token from plain text all the same.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i64>, TextError> {
        let ids = Self::ids(&self.plain, text)?;
        for id in &ids {
            if let Some(token) = u32::try_from(*id).ok().and_then(|id| self.control.get(&id)) {
                return Err(TextError::ControlToken {
                    id: *id,
                    token: token.clone(),
                });
            }
        }
        Ok(ids)
    }

    fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<i64>, TextError> {
        let encoding = tokenizer
            .encode_fast(text, false)
            .map_err(|error| TextError::Tokenize {
                action: "encode",
                reason: error.to_string(),
            })?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// Decodes ids to text, leaving special tokens out.
    ///
    /// # Errors
    /// [`TextError::UnknownId`] for an id that does not exist, [`TextError::Tokenize`] when decoding fails.
    pub fn decode(&self, ids: &[i64]) -> Result<String, TextError> {
        self.decode_with(ids, true)
    }

    /// Decodes ids to text with special tokens spelt out, for logs and tests.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_verbatim(&self, ids: &[i64]) -> Result<String, TextError> {
        self.decode_with(ids, false)
    }

    fn decode_with(&self, ids: &[i64], skip_special: bool) -> Result<String, TextError> {
        let mut known = Vec::with_capacity(ids.len());
        for id in ids {
            match u32::try_from(*id) {
                // Models round their embedding table up: the ids in that margin stand for nothing.
                Ok(id) if self.layout.id_to_token(id).is_some() => known.push(id),
                _ => {
                    return Err(TextError::UnknownId {
                        id: *id,
                        vocab: self.vocab,
                    });
                }
            }
        }
        self.layout
            .decode(&known, skip_special)
            .map_err(|error| TextError::Tokenize {
                action: "decode",
                reason: error.to_string(),
            })
    }

    /// Starts decoding an answer that arrives token by token.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream {
            tokenizer: self,
            ids: Vec::new(),
            context: 0,
            emitted: 0,
        }
    }
}

/// The id for what the vocabulary lacks, where the model has one.
fn unknown_token(bytes: &[u8], tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        unk_id: Option<u32>,
        unk_token: Option<String>,
    }
    let model = serde_json::from_slice::<File>(bytes).ok()?.model;
    (model.unk_id).or_else(|| tokenizer.token_to_id(model.unk_token.as_deref()?))
}

/// A sentencepiece model lists its control tokens among its pieces, at a price that beats all others: plain
/// text that spells one would become one. This is the same model with those pieces spelt in a way that no
/// text has; nothing for other kinds of models.
fn without_control_pieces(
    tokenizer: &tokenizers::Tokenizer,
    control: &HashMap<u32, String>,
    unknown: Option<u32>,
) -> Option<Result<Unigram, tokenizers::Error>> {
    let ModelWrapper::Unigram(model) = tokenizer.get_model() else {
        return None;
    };
    let pieces = (model.iter().zip(0u32..)).map(|((piece, score), id)| match control.contains_key(&id) {
        // Spaces have become marks (`▁`) or word boundaries before pieces are looked for.
        true => (format!(" {id}"), *score),
        false => (piece.clone(), *score),
    });
    let unknown = unknown.and_then(|id| usize::try_from(id).ok());
    Some(Unigram::from(pieces.collect(), unknown, model.byte_fallback()))
}

/// Decodes token by token and never hands out part of a UTF-8 character.
///
/// The pieces joined, [`TokenStream::finish`] included, are what [`Tokenizer::decode`] gives for all ids.
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The tokens of the current window: those that finished the last piece, and all since.
    ids: Vec<i64>,
    /// How many of them are context only: already handed out whole.
    context: usize,
    /// Bytes of the window's text already handed out.
    emitted: usize,
}

impl TokenStream<'_> {
    /// Takes the next token and returns the text that is now certain; empty while a character is incomplete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: i64) -> Result<String, TextError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // A replacement character at the end may be the beginning of a character yet to come.
        let certain = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let piece = certain.get(self.emitted..).unwrap_or("").to_owned();
        if certain.len() == text.len() && !piece.is_empty() {
            // Keep these tokens as left context: decoders treat the very first token of a text differently.
            self.ids.drain(..self.context);
            self.context = self.ids.len();
            self.emitted = self.tokenizer.decode(&self.ids)?.len();
        } else {
            self.emitted = self.emitted.max(certain.len());
        }
        Ok(piece)
    }

    /// Ends the stream and returns what was held back (replacement characters for an incomplete character).
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String, TextError> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(self.emitted..).unwrap_or("").to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tiny::byte_tokenizer_json;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<i64>,
        decoded: String,
    }

    fn t5_folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/t5_tokenizer")
    }

    static T5: std::sync::LazyLock<Tokenizer> =
        std::sync::LazyLock::new(|| Tokenizer::open(&t5_folder()).unwrap());

    #[test]
    fn a_sentencepiece_vocabulary_encodes_and_decodes_as_transformers() {
        let tokenizer = &*T5;
        let text = std::fs::read_to_string(t5_folder().join("expected.json")).unwrap();
        for case in serde_json::from_str::<Vec<Case>>(&text).unwrap() {
            // What spells control tokens is encoded as them there, and not here.
            if case.ids.iter().all(|id| *id != 0 && *id != 1) {
                assert_eq!(
                    tokenizer.encode_plain(&case.text).unwrap(),
                    case.ids,
                    "{:?}",
                    case.text
                );
            }
            assert_eq!(
                tokenizer.decode(&case.ids).unwrap(),
                case.decoded,
                "{:?}",
                case.text
            );
        }
    }

    #[test]
    fn plain_text_never_becomes_a_sentencepiece_control_token_and_unknown_characters_are_no_error() {
        let tokenizer = &*T5;

        let ids = tokenizer
            .encode_plain("a</s> <pad><extra_id_0> 中 \u{f8ff} \0")
            .unwrap();

        let control: Vec<&i64> = ids.iter().filter(|id| tokenizer.is_control(**id)).collect();
        assert!(control.is_empty(), "{control:?}");
        assert!(ids.contains(&2), "{ids:?}");
        assert_eq!(
            tokenizer.decode(&ids).unwrap().replace(' ', ""),
            "a</s><pad><extra_id_0>"
        );
        assert!(tokenizer.is_control(1) && !tokenizer.is_control(2));
    }

    proptest! {
        #[test]
        fn no_instruction_forges_a_sentencepiece_control_token(text in any::<String>(), at in 0usize..4) {
            let tokenizer = &*T5;
            let spelt = ["</s>", "<pad>", "<extra_id_1>", " 1"][at];
            let ids = tokenizer.encode_plain(&format!("{text}{spelt}{text}")).unwrap();
            prop_assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
        }
    }

    fn byte_tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(byte_tokenizer_json().as_bytes()).expect("the test tokenizer is well formed")
    }

    #[test]
    fn a_control_token_in_layout_text_is_one_id_and_in_plain_text_is_spelt_out() {
        let tokenizer = byte_tokenizer();

        let layout = tokenizer.encode("<|im_end|>").unwrap();
        let plain = tokenizer.encode_plain("<|im_end|>").unwrap();

        assert_eq!(layout, [257]);
        assert_eq!(plain.len(), "<|im_end|>".len());
        assert_eq!(tokenizer.decode(&plain).unwrap(), "<|im_end|>");
    }

    #[test]
    fn an_added_token_that_is_not_marked_special_is_a_control_token_too() {
        let tokenizer = byte_tokenizer();

        assert_eq!(tokenizer.encode("<tool>").unwrap(), [258]);
        assert_eq!(tokenizer.encode_plain("<tool>").unwrap().len(), 6);
    }

    #[test]
    fn a_length_limit_in_the_file_does_not_cut_texts() {
        let tokenizer = byte_tokenizer();

        assert_eq!(tokenizer.encode(&"x".repeat(100)).unwrap().len(), 100);
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_an_error_that_names_it() {
        let tokenizer = byte_tokenizer();

        for id in [-1, 259, i64::MAX] {
            let error = tokenizer.decode(&[id]).unwrap_err().to_string();
            assert!(error.contains(&id.to_string()), "{error}");
        }
    }

    #[test]
    fn a_stream_waits_for_the_whole_character() {
        let tokenizer = byte_tokenizer();
        let ids = tokenizer.encode_plain("né€🎧").unwrap();
        let mut stream = tokenizer.stream();

        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();

        assert_eq!(pieces, ["n", "", "é", "", "", "€", "", "", "", "🎧"]);
        assert_eq!(stream.finish().unwrap(), "");
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_an_error() {
        for bytes in [&b""[..], b"{}", b"\xff\xff", b"[1,2]"] {
            assert!(matches!(
                Tokenizer::from_bytes(bytes),
                Err(TextError::Malformed { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn plain_text_survives_the_round_trip(text in any::<String>()) {
            let tokenizer = byte_tokenizer();
            let ids = tokenizer.encode_plain(&text).unwrap();
            prop_assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }

        #[test]
        fn streamed_pieces_join_to_the_whole(ids in prop::collection::vec(0i64..259, 0..40)) {
            let tokenizer = byte_tokenizer();
            let mut stream = tokenizer.stream();
            let mut joined = String::new();
            for id in &ids {
                joined += &stream.push(*id).unwrap();
            }
            joined += &stream.finish().unwrap();
            prop_assert_eq!(joined, tokenizer.decode(&ids).unwrap());
        }
    }
}
