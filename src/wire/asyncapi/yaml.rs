//! JSON values as YAML that people can read.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// A value as a YAML document in block style, names in order. Texts are quoted as in JSON, which YAML reads
/// as it is.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

/// Writes a value that stands on lines of its own, indented by `depth` steps.
fn write(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) if !members.is_empty() => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            for (name, member) in sorted {
                let _ = write!(text, "{indent}{}:", key(name));
                write_behind(text, member, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let _ = write!(text, "{indent}-");
                write_behind(text, item, depth);
            }
        }
        scalar => {
            let _ = writeln!(text, "{indent}{scalar}");
        }
    }
}

/// Writes a value behind a key or the dash of an item.
fn write_behind(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            text.push('\n');
            write(text, value, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            write(text, value, depth + 1);
        }
        scalar => {
            let _ = writeln!(text, " {scalar}");
        }
    }
}

/// A name as it is where YAML takes it for a text, else quoted.
fn key(name: &str) -> String {
    let plain = name.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.'))
        && !matches!(
            name,
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    match plain {
        true => name.to_owned(),
        false => Value::from(name).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_in_blocks_and_texts_are_quoted() {
        let value = json!({
            "a": { "$ref": "#/b", "empty": {}, "none": null },
            "list": [1, "two: yes", [true], { "x": "a\nb" }],
            "yes": "no",
        });

        let expected = r##"a:
  "$ref": "#/b"
  empty: {}
  none: null
list:
  - 1
  - "two: yes"
  -
    - true
  -
    x: "a\nb"
"yes": "no"
"##;
        assert_eq!(to_yaml(&value), expected);
    }
}
