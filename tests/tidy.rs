//! The tree keeps its order: a module of `src/` imports only from modules above it, and files stay readable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the library, each of which may import from those before it only.
const MODULES: [&str; 16] = [
    "telemetry",
    "util",
    "audio",
    "text",
    "wire",
    "weights",
    "nn",
    "scoring",
    "store",
    "kafka",
    "models",
    "inference",
    "registry",
    "training",
    "evaluation",
    "config",
];
/// Tiny models and fakes; only tests may import it.
const TEST_SUPPORT: &str = "testing";
/// Longest line of code or comment, in characters.
const COLUMNS_MAX: usize = 110;

#[test]
fn a_module_imports_only_from_modules_above_it() {
    let source = root().join("src");
    let mut upward = Vec::new();
    for path in rust_files(&source) {
        let module = module_of(&source, &path);
        let Some(module) = module.filter(|module| module != TEST_SUPPORT && module != "lib") else {
            continue;
        };
        let rank = rank(&module).unwrap_or_else(|| panic!("`src/{module}` is not in the order of modules"));
        for (number, line) in code_lines(&read(&path)) {
            for imported in imports(&line) {
                let allowed = imported == module || self::rank(&imported).is_some_and(|above| above < rank);
                if !allowed {
                    upward.push(format!("{}:{number}: {module} -> {imported}", shown(&path)));
                }
            }
        }
    }
    assert!(
        upward.is_empty(),
        "imports that point upwards:\n{}",
        upward.join("\n")
    );
}

#[test]
fn every_module_of_the_library_has_its_place_in_the_order() {
    let declared: BTreeSet<String> = read(&root().join("src/lib.rs"))
        .lines()
        .filter_map(|line| Some(line.strip_prefix("pub mod ")?.trim_end_matches(';').to_owned()))
        .filter(|module| module != TEST_SUPPORT)
        .collect();

    assert_eq!(declared, MODULES.map(str::to_owned).into());
}

#[test]
fn only_the_kafka_module_names_its_client_library_and_no_source_file_is_an_actor() {
    for path in rust_files(&root().join("src")) {
        let text = read(&path);
        let code: Vec<(usize, String)> = code_lines(&text).collect();
        for (number, line) in code {
            let in_kafka = path.starts_with(root().join("src/kafka"));
            assert!(
                in_kafka || !line.contains("rdkafka::"),
                "{}:{number} names rdkafka",
                shown(&path)
            );
            assert!(!line.contains("kameo::"), "{}:{number} names kameo", shown(&path));
        }
    }
}

#[test]
fn lines_of_code_and_comments_keep_to_the_width() {
    let mut long = Vec::new();
    for folder in [
        "src",
        "actors",
        "pipelines",
        "crates",
        "tests",
        "examples",
        "benches",
    ] {
        for path in rust_files(&root().join(folder)) {
            for (at, line) in read(&path).lines().enumerate() {
                let comment = line.trim_start().strip_prefix("//");
                // Rows of a table cannot be wrapped.
                let text = comment.map(|text| text.trim_start_matches(['/', '!', ' ']));
                let comment = text.is_some_and(|text| !text.starts_with('|'));
                if comment && line.chars().count() > COLUMNS_MAX && !line.contains("http") {
                    long.push(format!("{}:{}", shown(&path), at + 1));
                }
            }
        }
    }
    assert!(
        long.is_empty(),
        "comments beyond {COLUMNS_MAX} columns:\n{}",
        long.join("\n")
    );
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn rank(module: &str) -> Option<usize> {
    MODULES.iter().position(|known| *known == module)
}

/// All Rust files under a folder, none where it does not exist; build outputs are left out.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The module of the library that a file belongs to; none for files of tests.
fn module_of(source: &Path, path: &Path) -> Option<String> {
    let inside = path.strip_prefix(source).ok()?;
    let parts: Vec<String> = inside
        .components()
        .map(|part| {
            let name = part.as_os_str().to_string_lossy();
            name.trim_end_matches(".rs").to_owned()
        })
        .collect();
    if parts
        .iter()
        .any(|part| part == "tests" || part.ends_with("_tests"))
    {
        return None;
    }
    parts.into_iter().next()
}

/// Numbered lines up to the unit tests, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    let unit_tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..unit_tests]
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(at, line)| (at + 1, line.to_owned()))
        .collect::<Vec<_>>()
        .into_iter()
}

/// The modules that a line names by `crate::module`.
fn imports(line: &str) -> Vec<String> {
    line.match_indices("crate::")
        .filter(|(at, _)| !line[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$'))
        .map(|(at, found)| {
            line[at + found.len()..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect::<String>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}
