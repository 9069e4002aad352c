//! The tree keeps its order: a module of `src/` imports only from modules above it, no two files import each
//! other, and files stay readable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
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
/// Where code stands.
const CODE_FOLDERS: [&str; 8] = [
    "src",
    "actors",
    "pipelines",
    "crates",
    "tests",
    "examples",
    "benches",
    "fuzz",
];
/// Tiny models and fakes; only tests may import it.
const TEST_SUPPORT: &str = "testing";
/// Longest line of code or comment, in characters.
const COLUMNS_MAX: usize = 110;
/// From this length on a file is split by thought, or argued for in [`LONG_FILES`].
const LINES_MAX: usize = 500;
/// Files that are longer, and why they are one thought.
const LONG_FILES: &[(&str, &str)] = &[];

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
fn no_files_import_each_other_in_a_circle() {
    let packages = [
        "",
        "actors",
        "pipelines",
        "crates/embedded-broker",
        "crates/model-import",
        "crates/fuzz-targets",
    ];
    let circles: Vec<String> = packages
        .iter()
        .flat_map(|package| circular(&file_imports(&root().join(package).join("src"))))
        .collect();
    assert!(
        circles.is_empty(),
        "files that import each other:\n{}",
        circles.join("\n")
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
    for folder in CODE_FOLDERS {
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

#[test]
fn files_are_split_by_thought_or_argued_for() {
    let mut long = Vec::new();
    for folder in CODE_FOLDERS {
        for path in rust_files(&root().join(folder)) {
            let lines = read(&path).lines().count();
            let argued = LONG_FILES.iter().any(|(known, _)| *known == shown(&path));
            if lines > LINES_MAX && !argued {
                long.push(format!("{} has {lines}", shown(&path)));
            }
        }
    }
    assert!(
        long.is_empty(),
        "more than {LINES_MAX} lines: split by thought, or list with a reason in `LONG_FILES`:\n{}",
        long.join("\n")
    );
}

#[test]
fn decisions_have_one_form_and_a_row_in_their_index() {
    let folder = root().join("docs/decisions");
    let index = read(&folder.join("README.md"));
    for entry in fs::read_dir(&folder).expect("the decisions") {
        let path = entry.expect("the folder can be listed").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name == "README.md" {
            continue;
        }
        let text = read(&path);
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with("## ")).collect();
        let form = ["## Context", "## Decision", "## Consequences"];
        assert_eq!(headings, form, "docs/decisions/{name}");
        let status = text.lines().nth(2).unwrap_or_default();
        assert!(
            status.starts_with("Status: "),
            "docs/decisions/{name}: `Status: ` under its title"
        );
        assert!(
            index.contains(&format!("]({name})")),
            "docs/decisions/README.md lacks {name}"
        );
    }
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

/// Which files of a package name something of which others. What a file takes from a module above it counts
/// as taken from the file that the module has it from; what the module defines itself does not count.
fn file_imports(source: &Path) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let files: BTreeMap<Vec<String>, PathBuf> = rust_files(source)
        .into_iter()
        .filter(|path| module_of(source, path).is_some())
        .map(|path| (module_path(source, &path), path))
        .collect();
    let names: BTreeMap<Vec<String>, Vec<Named>> = files
        .iter()
        .map(|(module, path)| {
            let code: Vec<String> = code_lines(&read(path)).map(|(_, line)| line).collect();
            (module.clone(), named_paths(&code.join("\n"), module))
        })
        .collect();
    // The deepest file on a path, and the name behind it.
    let on_path = |path: &[String]| {
        (0..=path.len())
            .rev()
            .find(|len| files.contains_key(&path[..*len]))
            .map(|len| (path[..len].to_vec(), path.get(len).cloned()))
    };
    let mut imports = BTreeMap::new();
    for (module, path) in &files {
        let mut taken = BTreeSet::new();
        let own = names[module].iter().filter(|named| !named.reexported);
        for (mut file, mut name) in own.filter_map(|named| on_path(&named.path)) {
            // What a module re-exports comes from the file that has it.
            while let Some(origin) = names[&file]
                .iter()
                .filter(|named| named.path.last() == name.as_ref())
                .find_map(|named| on_path(&named.path).filter(|(found, _)| *found != file))
            {
                (file, name) = origin;
            }
            if !module.starts_with(&file) {
                taken.insert(files[&file].clone());
            }
        }
        imports.insert(path.clone(), taken);
    }
    imports
}

/// Each file from which a walk over imports comes back to it, with the files that it imports.
fn circular(imports: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> Vec<String> {
    let reaches_itself = |start: &PathBuf| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&PathBuf> = imports[start].iter().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(&imports[file]);
            }
        }
        seen.contains(start)
    };
    let listed = |taken: &BTreeSet<PathBuf>| taken.iter().map(|path| shown(path)).collect::<Vec<_>>();
    imports
        .iter()
        .filter(|(file, _)| reaches_itself(file))
        .map(|(file, taken)| format!("{} -> {}", shown(file), listed(taken).join(", ")))
        .collect()
}

/// The path of a file's module inside its package: `["audio", "wav"]`; that of `lib.rs` is empty.
fn module_path(source: &Path, path: &Path) -> Vec<String> {
    let inside = path
        .strip_prefix(source)
        .expect("a file of the package")
        .with_extension("");
    let names = inside
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    names
        .filter(|name| !matches!(name.as_str(), "mod" | "lib" | "main"))
        .collect()
}

/// A path that a file names.
struct Named {
    path: Vec<String>,
    /// By `pub use`: others may take it from here.
    reexported: bool,
}

/// Every path in code that begins with `crate`, `self`, `super`, or with a name behind `use`, from the
/// package's root on.
fn named_paths(code: &str, module: &[String]) -> Vec<Named> {
    let mut paths = Vec::new();
    let starts = ["crate::", "self::", "super::", "use "];
    let mut at = 0;
    while let Some((found, start)) = starts
        .iter()
        .filter_map(|start| Some((at + code[at..].find(start)?, start)))
        .min()
    {
        let inside_a_name = code[..found].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        at = found + start.len();
        if inside_a_name {
            continue;
        }
        let from = if *start == "use " { at } else { found };
        let line = code[..found].rsplit('\n').next().unwrap_or_default();
        let reexported = line.trim_start().starts_with("pub");
        let mut tree = Vec::new();
        at = from + path_tree(&code[from..], &mut Vec::new(), &mut tree).max(1);
        for path in tree {
            let up = path.iter().take_while(|name| *name == "super").count();
            let path = match path.first().map(String::as_str) {
                Some("crate") => path[1..].to_vec(),
                Some("self") => [module, &path[1..]].concat(),
                _ => [&module[..module.len().saturating_sub(up)], &path[up..]].concat(),
            };
            paths.push(Named { path, reexported });
        }
    }
    paths
}

/// Reads a path such as `a::{b, c::d}` into `[a, b]` and `[a, c, d]`; returns how many bytes it takes.
fn path_tree(code: &str, before: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
    let depth = before.len();
    let mut at = 0;
    loop {
        let rest = &code[at..];
        let name: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        at += name.len();
        if !name.is_empty() {
            before.push(name);
            if let Some(more) = code[at..].strip_prefix("::") {
                at = code.len() - more.len();
                continue;
            }
        } else if rest.starts_with('{') {
            at += 1;
            loop {
                at += code[at..].len() - code[at..].trim_start_matches([' ', '\n', ',']).len();
                if code[at..].starts_with('}') || code[at..].is_empty() {
                    break;
                }
                at += path_tree(&code[at..], before, paths).max(1);
            }
            at = (at + 1).min(code.len());
            before.truncate(depth);
            return at;
        }
        paths.push(before.clone());
        before.truncate(depth);
        return at;
    }
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
