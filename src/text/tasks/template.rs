//! Prompts with placeholders to fill: `{labels}`, `{label_names}` and the fields that a task declares.
//!
//! Only the prompts of task files are templates. The instruction of a request or a manifest row is taken word
//! for word, and what is filled in is never looked at again, so nobody's words become a placeholder.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::TaskLabel;

/// The placeholder for the bulleted list of labels, with their descriptions where there are any.
pub const LABELS: &str = "labels";
/// The placeholder for the labels' names in one line: `a, b or c`.
pub const LABEL_NAMES: &str = "label_names";

/// What a request or a manifest row gives to the prompts of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateVariables {
    /// Values of the task's fields, by the field's name or by the key that it declares.
    pub fields: BTreeMap<String, String>,
    /// Labels instead of the task's own.
    pub labels: Option<Vec<TaskLabel>>,
    /// Leaves descriptions out of the list of labels.
    pub bare_labels: bool,
}

impl TemplateVariables {
    /// These labels, without descriptions of their own.
    pub fn with_labels(mut self, labels: &[String]) -> Self {
        let label = |name: &String| TaskLabel {
            name: name.clone(),
            description: String::new(),
        };
        self.labels = Some(labels.iter().map(label).collect());
        self
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Part<'t> {
    Words(&'t str),
    Placeholder(&'t str),
}

/// Takes a template apart. `{{` and `}}` are braces.
fn parts(template: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        if at > 0 {
            parts.push(Part::Words(&rest[..at]));
        }
        let brace = &rest[at..=at];
        let after = &rest[at + 1..];
        if after.starts_with(brace) {
            parts.push(Part::Words(brace));
            rest = &after[1..];
            continue;
        }
        let lone =
            || format!("a lone `{brace}` in `{template}`: write `{brace}{brace}` for the character itself");
        if brace == "}" {
            return Err(lone());
        }
        let (name, after) = after.split_once('}').ok_or_else(lone)?;
        if !is_field_name(name) {
            return Err(format!(
                "`{{{name}}}` in `{template}` is no placeholder: its name must be of a-z, 0-9 and `_`"
            ));
        }
        parts.push(Part::Placeholder(name));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Words(rest));
    }
    Ok(parts)
}

/// Whether a placeholder can have that name.
pub(super) fn is_field_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(fits)
}

/// The names of a template's placeholders.
pub(super) fn placeholders(template: &str) -> Result<Vec<&str>, String> {
    let placeholder = |part| match part {
        Part::Placeholder(name) => Some(name),
        Part::Words(_) => None,
    };
    Ok(parts(template)?.into_iter().filter_map(placeholder).collect())
}

/// Fills a template's placeholders; `value` says with what.
pub(super) fn fill(template: &str, value: &dyn Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let mut filled = String::with_capacity(template.len());
    for part in parts(template)? {
        match part {
            Part::Words(words) => filled.push_str(words),
            Part::Placeholder(name) => filled.push_str(&value(name)?),
        }
    }
    Ok(filled)
}

/// `- label: description;` for each label, a line each; without a description `- label;`.
pub(super) fn bullets(labels: &[TaskLabel], bare: bool) -> String {
    let mut list = String::new();
    for TaskLabel { name, description } in labels {
        if !list.is_empty() {
            list.push('\n');
        }
        let description = description.trim();
        let written = if bare || description.is_empty() {
            write!(list, "- {name};")
        } else {
            write!(list, "- {name}: {description};")
        };
        written.expect("a string takes everything");
    }
    list
}

/// `a, b or c`.
pub(super) fn in_one_line(labels: &[TaskLabel]) -> String {
    let names: Vec<&str> = labels.iter().map(|label| label.name.as_str()).collect();
    match names.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_are_filled_once_and_doubled_braces_are_braces() {
        let value = |name: &str| Ok(format!("<{name} {{labels}}>"));

        let filled = fill("Say {{x}} in {target_language}, {a}{a}.", &value).unwrap();

        assert_eq!(
            filled,
            "Say {x} in <target_language {labels}>, <a {labels}><a {labels}>."
        );
        assert_eq!(placeholders("{{x}} {a} {b_1}").unwrap(), ["a", "b_1"]);
    }

    #[test]
    fn what_is_no_placeholder_is_an_error_that_shows_it() {
        for (bad, part) in [
            ("a { b", "lone `{`"),
            ("a } b", "lone `}`"),
            ("{Labels}", "`{Labels}`"),
            ("{}", "`{}`"),
        ] {
            let error = placeholders(bad).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn labels_are_listed_with_or_without_their_descriptions() {
        let label = |name: &str, description: &str| TaskLabel {
            name: name.into(),
            description: description.into(),
        };
        let labels = [label("a", " first "), label("b", "")];

        assert_eq!(bullets(&labels, false), "- a: first;\n- b;");
        assert_eq!(bullets(&labels, true), "- a;\n- b;");
        assert_eq!(in_one_line(&labels), "a or b");
    }

    proptest! {
        #[test]
        fn no_template_makes_the_filler_panic(template in "\\PC{0,40}|[{}a{}b]{0,12}") {
            let _ = fill(&template, &|name| Ok(name.to_uppercase()));
        }

        #[test]
        fn doubled_braces_give_any_text_back(text in any::<String>()) {
            let template = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(fill(&template, &|_| Err("no placeholder".into())).unwrap(), text);
        }
    }
}
