//! A small server with the file interface of the hub, and a second one that stands for where large files lie.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(super) const REPO: &str = "some-org/tiny-model";

/// How the server misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    #[default]
    None,
    /// Cuts the connection in the middle of a large file, once.
    CutsOnce,
    /// Does the same, and afterwards starts from the beginning.
    CutsOnceAndIgnoresRanges,
    /// Always ends the file too early.
    EndsEarly,
    /// Sends more than it announced in the list of files.
    SendsMore,
    /// Sends other bytes of the same length.
    OtherBytes,
    /// Names another size in the header of the redirection than in the list of files.
    OtherLinkedSize,
    /// Serves another commit than the one that is asked for.
    OtherCommit,
    /// Answers one time in two with 503.
    Busy,
    /// Redirects without end.
    Circle,
    /// Redirects without saying where to.
    Nowhere,
    /// Redirects large files to a path on the same server.
    RelativeRedirect,
    /// Answers the list of files with something that is no JSON.
    NoJson,
}

/// What is asked of a server: path and query, the first byte wanted, and the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) from: usize,
    pub(super) token: Option<String>,
}

/// A hub with one model.
pub(super) struct Hub {
    pub(super) endpoint: String,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
    /// Requests to the server of large files.
    pub(super) asked_storage: Arc<Mutex<Vec<Asked>>>,
}

/// The model: name, content, whether the file is kept outside Git.
pub(super) struct Model {
    pub(super) files: HashMap<String, (Vec<u8>, bool)>,
    /// Only with this token.
    pub(super) token: Option<&'static str>,
    pub(super) fault: Fault,
    /// Sent instead of the true list of files.
    pub(super) listing: Option<serde_json::Value>,
}

pub(super) fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

pub(super) fn git_blob(content: &[u8]) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(format!("blob {}\0", content.len()));
    sha1.update(content);
    hex::encode(sha1.finalize())
}

impl Model {
    /// The list of files as the hub words it.
    pub(super) fn true_listing(&self) -> serde_json::Value {
        let siblings: Vec<_> = self
            .files
            .iter()
            .map(|(name, (content, large))| match large {
                true => json!({
                    "rfilename": name, "size": content.len(), "blobId": "f".repeat(40),
                    "lfs": {"sha256": sha256(content), "size": content.len(), "pointerSize": 135},
                }),
                false => json!({"rfilename": name, "size": content.len(), "blobId": git_blob(content)}),
            })
            .collect();
        json!({"id": REPO, "sha": COMMIT, "private": false, "cardData": {"license": "mit"}, "siblings": siblings})
    }

    /// Serves the model until the test's process ends.
    pub(super) fn serve(self) -> Hub {
        let model = Arc::new(self);
        let (asked, asked_storage) = (Arc::default(), Arc::default());
        // Another name of the same machine: as another server, it must not get the token.
        let (storage, storage_port) = listen();
        let (main, port) = listen();
        let endpoint = format!("http://127.0.0.1:{port}");
        let storage_address = format!("http://localhost:{storage_port}");
        accept(main, Arc::clone(&asked), {
            let model = Arc::clone(&model);
            move |asked, count, stream| model.answer(asked, count, &storage_address, stream)
        });
        accept(
            storage,
            Arc::clone(&asked_storage),
            move |asked, count, stream| {
                let name = asked.path.trim_start_matches("/storage/");
                let content = &model.files[name].0;
                model.send(content, asked, count, "", stream)
            },
        );
        Hub {
            endpoint,
            asked,
            asked_storage,
        }
    }

    fn answer(
        &self,
        asked: &Asked,
        count: usize,
        storage: &str,
        stream: &mut TcpStream,
    ) -> std::io::Result<()> {
        if self.fault == Fault::Busy && count.is_multiple_of(2) {
            return respond(stream, "503 Service Unavailable", "", b"later");
        }
        if self.token.is_some() && asked.token.as_deref() != self.token {
            return respond(stream, "401 Unauthorized", "X-Error-Code: GatedRepo\r\n", b"no");
        }
        let path = asked.path.split('?').next().unwrap_or_default();
        for revision in ["main", "refs%2Fpr%2F1", COMMIT] {
            if path == format!("/api/models/{REPO}/revision/{revision}") {
                if self.fault == Fault::NoJson {
                    return respond(stream, "200 OK", "", b"<html>not today</html>");
                }
                let listing = self.listing.clone().unwrap_or_else(|| self.true_listing());
                return respond(stream, "200 OK", "", listing.to_string().as_bytes());
            }
        }
        if let Some(name) = path.strip_prefix("/storage/") {
            return self.send(&self.files[name].0, asked, count, "", stream);
        }
        let prefix = format!("/{REPO}/resolve/{COMMIT}/");
        let Some((name, (content, large))) = path
            .strip_prefix(&prefix)
            .and_then(|name| self.files.get_key_value(name))
        else {
            return respond(
                stream,
                "404 Not Found",
                "X-Error-Code: EntryNotFound\r\n",
                b"Entry not found",
            );
        };
        let commit = if self.fault == Fault::OtherCommit {
            "f".repeat(40)
        } else {
            COMMIT.to_owned()
        };
        let mut headers = format!("X-Repo-Commit: {commit}\r\n");
        if !large {
            headers += &format!("ETag: \"{}\"\r\n", git_blob(content));
            return self.send(content, asked, count, &headers, stream);
        }
        let size = content.len() + usize::from(self.fault == Fault::OtherLinkedSize);
        headers += &format!(
            "X-Linked-Size: {size}\r\nX-Linked-ETag: \"{}\"\r\n",
            sha256(content)
        );
        match self.fault {
            Fault::Circle => headers += &format!("Location: {path}\r\n"),
            Fault::Nowhere => {}
            Fault::RelativeRedirect => headers += &format!("Location: /storage/{name}\r\n"),
            _ => headers += &format!("Location: {storage}/storage/{name}\r\n"),
        }
        respond(stream, "302 Found", &headers, b"")
    }

    /// Sends a file, or the part of it that is asked for.
    fn send(
        &self,
        content: &[u8],
        asked: &Asked,
        count: usize,
        headers: &str,
        stream: &mut TcpStream,
    ) -> std::io::Result<()> {
        let large = content.len() > 4_000;
        let mut content = content.to_vec();
        match self.fault {
            Fault::SendsMore => content.extend(b"and more"),
            Fault::OtherBytes => content[17] ^= 1,
            Fault::EndsEarly => content.truncate(content.len() - 1),
            _ => {}
        }
        let ranges = self.fault != Fault::CutsOnceAndIgnoresRanges;
        let from = if ranges { asked.from } else { 0 };
        let (status, range) = match from {
            0 => ("200 OK", String::new()),
            _ => {
                let range = format!(
                    "Content-Range: bytes {from}-{}/{}\r\n",
                    content.len() - 1,
                    content.len()
                );
                ("206 Partial Content", range)
            }
        };
        let body = &content[from.min(content.len())..];
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}{headers}Connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        let cuts = matches!(self.fault, Fault::CutsOnce | Fault::CutsOnceAndIgnoresRanges);
        if cuts && large && count == 0 {
            return stream.write_all(&body[..body.len() / 2]);
        }
        stream.write_all(body)
    }
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Answers one connection after the other; `answer` gets the request and how many came before it.
fn accept(
    listener: TcpListener,
    log: Arc<Mutex<Vec<Asked>>>,
    answer: impl Fn(&Asked, usize, &mut TcpStream) -> std::io::Result<()> + Send + 'static,
) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asked = read_request(&stream);
            let count = {
                let mut log = log.lock().unwrap();
                log.push(asked.clone());
                log.len() - 1
            };
            // A client that has seen enough may hang up.
            let _ = answer(&asked, count, &mut stream);
        }
    });
}

fn read_request(stream: &TcpStream) -> Asked {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let mut asked = Asked {
        path: request.split(' ').nth(1).unwrap_or_default().to_owned(),
        from: 0,
        token: None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "range" => {
                let from = value.trim_start_matches("bytes=").split('-').next();
                asked.from = from.and_then(|from| from.parse().ok()).unwrap_or(0);
            }
            "authorization" => asked.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    asked
}

fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())
}
