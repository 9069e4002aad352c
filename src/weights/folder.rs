//! What a model folder lacks, or has in place of what is needed; looked at before anything large is read.

use std::path::Path;

use super::WeightsError;
use super::checkpoint::Checkpoint;
use crate::util::file_mistaken_for;

/// Checks that a model folder holds what is read from it, before anything large is: `config.json`, a whole
/// checkpoint, and the tokenizer where one is needed. Each file is named for what it is.
///
/// # Errors
/// [`WeightsError::Folder`] for a file that is missing or something else, or as [`Checkpoint::open`].
pub fn check_folder(dir: &Path, needs_tokenizer: bool) -> Result<(), WeightsError> {
    let wrong = |name: &str, problem: String| WeightsError::Folder {
        path: dir.join(name),
        problem,
    };
    if !dir.is_dir() {
        return Err(wrong("", "is no folder".to_owned()));
    }
    let needed = ["config.json"]
        .into_iter()
        .chain(needs_tokenizer.then_some("tokenizer.json"));
    for name in needed {
        let path = dir.join(name);
        if !path.exists() {
            let problem = match (path.is_symlink(), name, dir.join("tokenizer.model").exists()) {
                (true, ..) => "is a link to a file that is not there: fetch the model again",
                (_, "tokenizer.json", true) => {
                    "is missing: `tokenizer.model` beside it is not read, save the tokenizer as `tokenizer.json`"
                }
                (_, "tokenizer.json", false) => {
                    "is missing: without it no text can be read or written; fetch it again"
                }
                _ => "is missing: fetch the model again",
            };
            return Err(wrong(name, problem.to_owned()));
        }
        let io = |source| WeightsError::Io {
            path: path.clone(),
            source,
        };
        if path.metadata().map_err(io)?.len() == 0 {
            return Err(wrong(name, "is empty: fetch it again".to_owned()));
        }
        if let Some(found) = file_mistaken_for(&path).map_err(io)? {
            return Err(wrong(name, format!("is {found}")));
        }
    }
    Checkpoint::open(dir).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const EMPTY_CHECKPOINT: &[u8] = b"\x08\0\0\0\0\0\0\0{}      ";

    /// A folder with these files beside what is needed.
    fn folder(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let whole: [(&str, &[u8]); 3] = [
            ("config.json", b"{}"),
            ("tokenizer.json", b"{}"),
            ("model.safetensors", EMPTY_CHECKPOINT),
        ];
        for (name, bytes) in whole.iter().chain(files) {
            std::fs::write(path.join(name), bytes).unwrap();
        }
        (dir, path)
    }

    fn refusal(path: &Path) -> String {
        check_folder(path, true).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_folder_passes_and_an_encoder_needs_no_tokenizer() {
        let (_dir, path) = folder(&[]);
        check_folder(&path, true).unwrap();
        std::fs::remove_file(path.join("tokenizer.json")).unwrap();

        check_folder(&path, false).unwrap();
        assert!(
            refusal(&path).contains("tokenizer.json` is missing"),
            "{}",
            refusal(&path)
        );
        std::fs::write(path.join("tokenizer.model"), "x").unwrap();
        assert!(
            refusal(&path).contains("`tokenizer.model` beside it"),
            "{}",
            refusal(&path)
        );
    }

    #[test]
    fn each_file_that_is_something_else_is_called_what_it_is() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 269060280\n";
        let page = b"<!doctype html><html><body>sign in</body></html>";
        let mut half = EMPTY_CHECKPOINT.to_vec();
        half[0] = 80;
        let cut = b"\x50\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}                          \0\0";
        for (name, bytes, words) in [
            (
                "model.safetensors",
                &pointer[..],
                "pointer of Git LFS, in place of the file itself of 269060280 bytes",
            ),
            ("tokenizer.json", pointer, "pointer of Git LFS"),
            ("config.json", pointer, "pointer of Git LFS"),
            ("model.safetensors", page, "a web page"),
            ("config.json", page, "a web page"),
            ("tokenizer.json", page, "a web page"),
            ("config.json", b"", "is empty"),
            ("model.safetensors", &half, "its end is missing"),
            ("model.safetensors", cut, "its end is missing"),
            ("model.safetensors", b"PK\x03\x04 and so on", "zip archive"),
        ] {
            let (_dir, path) = folder(&[(name, bytes)]);

            let message = refusal(&path);

            assert!(
                message.contains(name) && message.contains(words),
                "{name}: {message}"
            );
        }
    }

    #[test]
    fn what_stands_in_the_place_of_a_checkpoint_is_named() {
        for (name, words) in [
            ("pytorch_model.bin", "pickle"),
            ("pytorch_model-00001-of-00002.bin", "pickle"),
            ("model.gguf", "models import"),
            ("model.safetensors.part", "broke off"),
            ("model-00001-of-00002.safetensors", "another name"),
        ] {
            let (_dir, path) = folder(&[(name, b"x")]);
            std::fs::remove_file(path.join("model.safetensors")).unwrap();

            let message = refusal(&path);

            assert!(
                message.contains(name) && message.contains(words),
                "{name}: {message}"
            );
        }
        let (_dir, path) = folder(&[]);
        for name in ["model.safetensors", "config.json"] {
            std::fs::remove_file(path.join(name)).unwrap();
            std::os::unix::fs::symlink("../blobs/absent", path.join(name)).unwrap();
            let message = refusal(&path);
            assert!(
                message.contains(name) && message.contains("a link to a file that is not there"),
                "{message}"
            );
        }
        assert!(refusal(&path.join("absent")).contains("is no folder"));
    }
}
