//! What a file holds that is not what its name promises: the usual ways in which the fetching of models goes
//! wrong.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// How much of a file's beginning is looked at, bytes; a pointer of Git LFS has fewer.
const BEGINNING_BYTES: usize = 1024;

/// What `beginning` shows the file to be, and what to do; none where it is none of the usual mistakes.
pub fn mistaken_for(beginning: &[u8]) -> Option<String> {
    let beginning = &beginning[..beginning.len().min(BEGINNING_BYTES)];
    let text = beginning
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(beginning)
        .trim_ascii_start();
    let begins = |mark: &[u8]| {
        text.get(..mark.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(mark))
    };
    if begins(b"version https://git-lfs.github.com/spec/") {
        let pointer = String::from_utf8_lossy(text);
        let size = pointer
            .lines()
            .find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
        let size = size.map_or_else(String::new, |bytes| format!(" of {bytes} bytes"));
        return Some(format!(
            "a pointer of Git LFS, in place of the file itself{size}: run `git lfs pull` in the folder, or fetch the \
             model again"
        ));
    }
    let page = [&b"<!doctype html"[..], b"<html", b"<head"]
        .iter()
        .any(|mark| begins(mark));
    let found = if page {
        "a web page (HTML), as a server sends in place of a file that it does not give out: fetch the file itself"
    } else if begins(b"<?xml") || begins(b"<error>") {
        "an XML message of a server, in place of the file: fetch the file itself"
    } else if beginning.starts_with(b"GGUF") {
        "a GGUF file: convert it with `models import`"
    } else if beginning.starts_with(b"PK\x03\x04") || beginning.starts_with(b"\x80\x02}") {
        "a zip archive or a pickle, as `torch.save` writes: pickle is never read, convert it to safetensors"
    } else if beginning.starts_with(b"\x1f\x8b") {
        "a gzip archive: unpack it"
    } else {
        return None;
    };
    Some(found.to_owned())
}

/// As [`mistaken_for`], of a file's beginning.
///
/// # Errors
/// When it cannot be read.
pub fn file_mistaken_for(path: &Path) -> std::io::Result<Option<String>> {
    let mut beginning = Vec::with_capacity(BEGINNING_BYTES);
    File::open(path)?
        .take(BEGINNING_BYTES as u64)
        .read_to_end(&mut beginning)?;
    Ok(mistaken_for(&beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_mistakes_are_called_what_they_are() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 269060280\n";
        for (beginning, words) in [
            (
                pointer.as_bytes(),
                "pointer of Git LFS, in place of the file itself of 269060280 bytes",
            ),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "pointer of Git LFS",
            ),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"\xef\xbb\xbf\n  <HTML lang=en>", "web page"),
            (b"<?xml version=\"1.0\"?><Error/>", "XML message"),
            (b"GGUF\x03\x00", "GGUF"),
            (b"PK\x03\x04", "pickle"),
            (b"\x1f\x8b\x08", "gzip"),
        ] {
            let found = mistaken_for(beginning).unwrap_or_default();
            assert!(found.contains(words), "{words}: {found}");
        }
        for other in [
            &b""[..],
            b"{\"a\": 1}",
            b"[",
            b"<",
            b"<|im_start|>",
            b"version 2",
            &[0x40, 0, 0, 0, 0, 0, 0, 0, b'{'],
        ] {
            assert_eq!(mistaken_for(other), None);
        }
    }
}
