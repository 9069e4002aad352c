//! `ChatTemplate`: the Jinja template of an instruction-tuned model, rendered as the transformers library
//! does.
//!
//! Same settings as there: blocks trimmed, `loopcontrols`, `raise_exception`, Python's JSON in `tojson`, the
//! common methods of Python strings and dictionaries. Two differences, both on purpose: rendering is bounded
//! in steps and in size, because the template comes from a downloaded folder; and `strftime_now` is not
//! there, because the same request must give the same prompt tomorrow (templates that ask `is defined` first
//! fall back to their fixed date).

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::TextError;
use super::error::read_text;

/// Larger than any published template or tokenizer configuration.
const CONFIG_BYTES_MAX: u64 = 16 << 20; // 16 MiB
/// Steps one rendering may take; published templates need a few hundred per message.
const RENDER_STEPS_MAX: u64 = 1_000_000;
/// Bytes one rendering may write beyond what the messages themselves hold.
const RENDER_BYTES_EXTRA_MAX: usize = 1 << 20;
const TEMPLATE_NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A message by `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// A model's chat template with the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token` and so on.
    specials: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json` (a string, or a list of named templates of which `default` is taken).
    ///
    /// # Errors
    /// [`TextError::NoTemplate`] when there is none; [`TextError::Template`] when it does not parse;
    /// reading errors with the file's name.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let config_path = folder.join("tokenizer_config.json");
        let config: serde_json::Value = if config_path.exists() {
            let text = read_text(&config_path, CONFIG_BYTES_MAX)?;
            serde_json::from_str(&text).map_err(|error| TextError::Malformed {
                path: config_path,
                expected: "a tokenizer configuration",
                reason: error.to_string(),
            })?
        } else {
            serde_json::Value::Null
        };
        let jinja_path = folder.join("chat_template.jinja");
        let source = if jinja_path.exists() {
            read_text(&jinja_path, CONFIG_BYTES_MAX)?
        } else {
            template_in_config(&config).ok_or_else(|| TextError::NoTemplate {
                folder: folder.to_path_buf(),
            })?
        };
        Self::new(&source, specials_in_config(&config))
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// [`TextError::Template`] when it does not parse.
    pub fn new(source: &str, specials: BTreeMap<String, String>) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(template_error)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(RENDER_STEPS_MAX));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", python_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(TEMPLATE_NAME, source.to_owned())
            .map_err(template_error)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            specials,
        })
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`TextError::Template`] when the template refuses the conversation, names something that is not
    /// there, or takes too many steps or too much memory.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, TextError> {
        let mut context: BTreeMap<String, Value> = self
            .specials
            .iter()
            .map(|(name, token)| (name.clone(), Value::from(token.clone())))
            .collect();
        let rows: Vec<Value> = messages
            .iter()
            .map(|message| Value::from_pairs([("role", &*message.role), ("content", &*message.content)]))
            .collect();
        context.insert("messages".to_owned(), Value::from(rows));
        context.insert("tools".to_owned(), Value::from(()));
        context.insert("documents".to_owned(), Value::from(()));
        context.insert(
            "add_generation_prompt".to_owned(),
            Value::from(add_generation_prompt),
        );

        let said: usize = messages.iter().map(|message| message.content.len()).sum();
        let mut output = BoundedOutput {
            bytes: Vec::new(),
            limit: said.saturating_mul(2).saturating_add(RENDER_BYTES_EXTRA_MAX),
        };
        let template = self
            .environment
            .get_template(TEMPLATE_NAME)
            .map_err(template_error)?;
        template
            .render_captured_to(Value::from_pairs(context), &mut output)
            .map_err(template_error)?;
        String::from_utf8(output.bytes).map_err(|error| TextError::Template {
            reason: error.to_string(),
        })
    }
}

/// A writer that refuses to grow past its limit.
struct BoundedOutput {
    bytes: Vec<u8>,
    limit: usize,
}

impl std::io::Write for BoundedOutput {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + piece.len() > self.limit {
            return Err(std::io::Error::other(format!(
                "the rendered prompt is larger than {} bytes",
                self.limit
            )));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn template_error(error: Error) -> TextError {
    // The cause of a failed write is one level down.
    let reason = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    TextError::Template { reason }
}

fn template_in_config(config: &serde_json::Value) -> Option<String> {
    match config.get("chat_template")? {
        serde_json::Value::String(source) => Some(source.clone()),
        serde_json::Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(|name| name.as_str()) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}

/// Collects `*_token` entries, written as a string or as an object with `content`.
fn specials_in_config(config: &serde_json::Value) -> BTreeMap<String, String> {
    let mut specials = BTreeMap::new();
    let Some(entries) = config.as_object() else {
        return specials;
    };
    for (name, value) in entries {
        let token = value
            .as_str()
            .or_else(|| value.get("content").and_then(|content| content.as_str()));
        if let (true, Some(token)) = (name.ends_with("_token"), token) {
            specials.insert(name.clone(), token.to_owned());
        }
    }
    specials
}

/// `json.dumps(value, ensure_ascii=False, indent=…)` as Python writes it.
fn python_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and without effect, as with transformers' default.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut text = String::new();
    write_python_json(&json, indent, 0, &mut text);
    Ok(Value::from_safe_string(text))
}

fn write_python_json(json: &serde_json::Value, indent: Option<usize>, depth: usize, text: &mut String) {
    let break_line = |depth: usize, text: &mut String| {
        if let Some(width) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', width.min(16) * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match json {
        serde_json::Value::Array(items) if !items.is_empty() => {
            text.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    text.push_str(separator);
                }
                break_line(depth + 1, text);
                write_python_json(item, indent, depth + 1, text);
            }
            break_line(depth, text);
            text.push(']');
        }
        serde_json::Value::Object(entries) if !entries.is_empty() => {
            text.push('{');
            for (position, (key, item)) in entries.iter().enumerate() {
                if position > 0 {
                    text.push_str(separator);
                }
                break_line(depth + 1, text);
                text.push_str(&serde_json::Value::from(key.as_str()).to_string());
                text.push_str(": ");
                write_python_json(item, indent, depth + 1, text);
            }
            break_line(depth, text);
            text.push('}');
        }
        leaf => text.push_str(&leaf.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, BTreeMap::new()).unwrap()
    }

    fn user(content: &str) -> Vec<ChatMessage> {
        vec![ChatMessage::new("user", content)]
    }

    #[test]
    fn blocks_are_trimmed_as_in_transformers() {
        let template = template(
            "{% for m in messages %}\n    {% if true %}\n[{{ m.content }}]\n    {% endif %}\n{% endfor %}\n",
        );

        assert_eq!(template.render(&user("a"), false).unwrap(), "[a]\n");
    }

    #[test]
    fn a_template_that_raises_is_an_error_with_its_words() {
        let template = template("{{ raise_exception('roles must alternate') }}");

        let error = template.render(&user("a"), false).unwrap_err().to_string();

        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn text_is_never_escaped() {
        let template = template("{{ messages[0].content }}{{ messages[0]['role'] }}");

        assert_eq!(
            template.render(&user("<a> & \"b\""), false).unwrap(),
            "<a> & \"b\"user"
        );
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let template = template(
            "{{ {'k': ['é', 1, 2.5, none, true, [], {}]} | tojson }}|{{ ['a', 'b'] | tojson(indent=2) }}",
        );

        assert_eq!(
            template.render(&[], false).unwrap(),
            "{\"k\": [\"é\", 1, 2.5, null, true, [], {}]}|[\n  \"a\",\n  \"b\"\n]"
        );
    }

    #[test]
    fn methods_of_python_strings_work() {
        let template = template(
            "{{ ' a '.strip() }}{{ 'xay'.lstrip('x').rstrip('y') }}{{ 'ab'.startswith('a') }}{{ 'a-b'.split('-')[1] }}{{ 'ab'.replace('a', 'c').upper() }}",
        );

        assert_eq!(template.render(&[], false).unwrap(), "aaTruebCB");
    }

    #[test]
    fn a_template_that_runs_away_is_stopped() {
        let long_loops = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}";
        let wide = "{% set x = 'y' * 100000 %}{% for a in range(90000) %}{{ x }}{% endfor %}";

        for source in [long_loops, wide] {
            assert!(matches!(
                template(source).render(&[], false),
                Err(TextError::Template { .. })
            ));
        }
    }

    #[test]
    fn a_template_that_asks_for_the_date_first_falls_back_to_its_own() {
        let template = template("{% if strftime_now is defined %}now{% else %}26 Jul 2024{% endif %}");

        assert_eq!(template.render(&[], false).unwrap(), "26 Jul 2024");
    }

    #[test]
    fn the_default_of_several_named_templates_is_taken_and_tokens_may_be_objects() {
        let config = serde_json::json!({
            "bos_token": {"content": "<s>", "special": true}, "add_bos_token": false,
            "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}yes"}]
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();

        let template = ChatTemplate::open(folder.path()).unwrap();

        assert_eq!(template.render(&[], false).unwrap(), "<s>yes");
    }

    #[test]
    fn a_template_file_wins_over_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("tokenizer_config.json"),
            r#"{"chat_template": "no"}"#,
        )
        .unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "yes").unwrap();

        let template = ChatTemplate::open(folder.path()).unwrap();

        assert_eq!(template.render(&[], false).unwrap(), "yes");
    }

    #[test]
    fn a_folder_without_a_template_is_an_error_that_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();

        let error = ChatTemplate::open(folder.path()).err().unwrap().to_string();

        assert!(error.contains("chat_template.jinja"), "{error}");
    }

    proptest! {
        #[test]
        fn no_template_source_can_panic(source in "[{}% a-z'|().\\[\\]0-9~+*-]{0,60}") {
            if let Ok(template) = ChatTemplate::new(&source, BTreeMap::new()) {
                let _ = template.render(&user("x"), true);
            }
        }
    }
}
