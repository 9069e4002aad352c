//! JSON files that are the same whatever a build asks of `serde_json`.

use serde_json::Value as Json;

/// The text of a configuration.
pub(crate) fn pretty(json: &Json) -> Vec<u8> {
    let mut text = format!("{:#}", in_order(json.clone()));
    text.push('\n');
    text.into_bytes()
}

/// The same with all keys in order: adapter versions know a model by the digest of its files, and
/// `serde_json` keeps the order of insertion as soon as any crate of a build asks it to.
pub(crate) fn in_order(mut json: Json) -> Json {
    json.sort_all_objects();
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_order_whatever_the_order_of_insertion() {
        let text = pretty(&serde_json::json!({"b": [{"d": 1, "c": 2}], "a": 3}));

        let expected = r#"{
  "a": 3,
  "b": [
    {
      "c": 2,
      "d": 1
    }
  ]
}
"#;
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
