//! Bytes from the hub into its cache: resumed, bounded and compared with the digest that the hub's list
//! names.
//!
//! `hf_hub`'s own download is not used: it trusts the server with the name of the file on this disk, takes as
//! many bytes as come, and compares nothing (`docs/decisions/0010-models-from-the-hub.md`).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use backon::{BlockingRetryable, ExponentialBuilder};
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::listing::{Digest, HubFile};
use super::{HubError, HubSettings};
use crate::ImportError;

/// Most redirections from the hub to where a file lies.
const REDIRECTS_MAX: usize = 5;
/// Most bytes of the hub's list of a model's files.
const LISTING_BYTES_MAX: u64 = 16 << 20;
/// Longest wait for a connection, and for an answer to begin.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest that one answer may take; what has come is kept, and the next try goes on behind it.
const BODY_WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Tries of one file or list, beside the first.
const RETRIES_MAX: usize = 4;

/// Asks the hub; sends the token to the hub's own address only.
pub(super) struct HubClient {
    api: Api,
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
    retry_wait: Duration,
}

impl HubClient {
    /// A client for the hub that `settings` name.
    ///
    /// # Errors
    /// [`HubError::Environment`] when the endpoint is not an address.
    pub(super) fn new(settings: &HubSettings) -> Result<Self, HubError> {
        let wrong = |reason: String| HubError::Environment {
            variable: "HF_ENDPOINT",
            reason: format!(
                "`{}`: {reason}, expected an address such as https://huggingface.co",
                settings.endpoint
            ),
        };
        let endpoint: Uri = settings
            .endpoint
            .parse()
            .map_err(|error| wrong(format!("{error}")))?;
        if !matches!(endpoint.scheme_str(), Some("http" | "https")) {
            return Err(wrong("neither http nor https".to_owned()));
        }
        let token = settings.token.clone();
        let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(token.clone())
            .with_progress(false)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(ANSWER_WAIT_MAX))
            .timeout_recv_response(Some(ANSWER_WAIT_MAX))
            .timeout_recv_body(Some(BODY_WAIT_MAX))
            .user_agent(concat!("speechverse/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self {
            api,
            agent,
            endpoint,
            token,
            retry_wait: settings.retry_wait,
        })
    }

    /// The hub's list of the files of `repo`, as it came.
    pub(super) fn listing(&self, repo: &Repo) -> Result<Vec<u8>, ImportError> {
        let url = format!(
            "{}/api/{}",
            self.endpoint.to_string().trim_end_matches('/'),
            repo.api_url()
        );
        let request = self.api.repo(repo.clone());
        self.patiently(|| {
            let mut answer = request
                .info_request()
                .query("blobs", "true")
                .config()
                .http_status_as_error(false)
                .timeout_connect(Some(ANSWER_WAIT_MAX))
                .timeout_recv_response(Some(ANSWER_WAIT_MAX))
                .timeout_recv_body(Some(ANSWER_WAIT_MAX))
                .build()
                .call()
                .map_err(|error| unreachable(&url, &error))?;
            if answer.status() != StatusCode::OK {
                return Err(self.refusal(&url, answer.status()).into());
            }
            let body = answer
                .body_mut()
                .with_config()
                .limit(LISTING_BYTES_MAX)
                .read_to_vec();
            body.map_err(|error| unreachable(&url, &error).into())
        })
    }

    /// Gets a file into `blob`; does nothing when it is there. `arrived` is called with how many of its bytes
    /// are here.
    ///
    /// A file that is half here stays as `{blob}.incomplete`, and the next call gets the rest.
    pub(super) fn file(
        &self,
        repo: &Repo,
        file: &HubFile,
        blob: &Path,
        arrived: &mut dyn FnMut(u64),
    ) -> Result<(), ImportError> {
        if blob.metadata().is_ok_and(|facts| facts.len() == file.bytes) {
            return Ok(());
        }
        let url = self.api.repo(repo.clone()).url(&file.name);
        let commit = repo.revision();
        let mut name = blob.as_os_str().to_owned();
        name.push(".incomplete");
        let part = Path::new(&name);
        let out = OpenOptions::new().create(true).append(true).read(true).open(part);
        let mut out = out.map_err(ImportError::io("open", part))?;
        // Another process may be getting the same file: one of them writes, the other waits for it.
        out.lock().map_err(ImportError::io("lock", part))?;
        if blob.metadata().is_ok_and(|facts| facts.len() == file.bytes) {
            return Ok(());
        }
        self.patiently(|| self.rest(&url, commit, file, &mut out, part, arrived))?;
        if let Err(error) = verify(part, &url, file) {
            std::fs::remove_file(part).map_err(ImportError::io("remove", part))?;
            return Err(error);
        }
        out.sync_all().map_err(ImportError::io("write", part))?;
        std::fs::rename(part, blob).map_err(ImportError::io("move the finished file to", blob))
    }

    /// Appends to `out` what it lacks of the file.
    fn rest(
        &self,
        url: &str,
        commit: &str,
        file: &HubFile,
        out: &mut File,
        part: &Path,
        arrived: &mut dyn FnMut(u64),
    ) -> Result<(), ImportError> {
        let mut here = out.metadata().map_err(ImportError::io("look at", part))?.len();
        if here > file.bytes {
            out.set_len(0).map_err(ImportError::io("write", part))?;
            here = 0;
        }
        if here == file.bytes {
            return Ok(());
        }
        let answer = self.get(url, here, |headers| same_file(url, headers, commit, file))?;
        if answer.status() == StatusCode::OK && here > 0 {
            out.set_len(0).map_err(ImportError::io("write", part))?; // the server does not do ranges
            here = 0;
        }
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(answer.headers(), "content-range").unwrap_or_default();
            let expected = format!("bytes {here}-{}/{}", file.bytes - 1, file.bytes);
            if range != expected {
                return Err(HubError::Answer {
                    url: url.to_owned(),
                    found: format!("the range `{range}`"),
                    expected: format!("`{expected}`"),
                }
                .into());
            }
        }
        // One byte more than there should be is enough to know that there are too many.
        let mut body = answer.into_body().into_reader().take(file.bytes - here + 1);
        let mut block = vec![0; 1 << 16];
        while here <= file.bytes {
            let count = body.read(&mut block).map_err(|error| HubError::Unreachable {
                url: url.to_owned(),
                reason: error.to_string(),
            })?;
            if count == 0 {
                break;
            }
            here += count as u64;
            if here <= file.bytes {
                out.write_all(&block[..count])
                    .map_err(ImportError::io("write", part))?;
                arrived(here);
            }
        }
        if here == file.bytes {
            return Ok(());
        }
        Err(HubError::Size {
            url: url.to_owned(),
            expected: file.bytes,
            found: here,
        }
        .into())
    }

    /// An answer with status 200 or 206 from behind any redirections; `check` looks at the hub's own headers.
    fn get(
        &self,
        url: &str,
        from: u64,
        check: impl Fn(&header::HeaderMap) -> Result<(), HubError>,
    ) -> Result<Response<Body>, HubError> {
        let mut place: Uri = url.parse().map_err(|error| unreachable(url, &error))?;
        for _ in 0..=REDIRECTS_MAX {
            let own =
                place.authority() == self.endpoint.authority() && place.scheme() == self.endpoint.scheme();
            let mut request = self.agent.get(&place).header(header::ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| unreachable(url, &error))?;
            let status = answer.status();
            if own && (status.is_success() || status.is_redirection()) {
                check(answer.headers())?;
            }
            match status.as_u16() {
                200 | 206 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => place = behind(url, &place, answer.headers())?,
                _ => return Err(self.refusal(url, status)),
            }
        }
        Err(unexpected(url, format!("more than {REDIRECTS_MAX} redirections")))
    }

    /// What a status other than success means.
    fn refusal(&self, url: &str, status: StatusCode) -> HubError {
        let url = url.to_owned();
        match status.as_u16() {
            status @ (401 | 403) => HubError::Refused {
                url,
                status,
                token: self.token.is_some(),
            },
            404 => HubError::NotFound { url },
            status => unexpected(&url, format!("HTTP {status}")),
        }
    }

    /// Repeats what may succeed a moment later, with growing pauses.
    fn patiently<T>(&self, work: impl FnMut() -> Result<T, ImportError>) -> Result<T, ImportError> {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(self.retry_wait)
            .with_max_times(RETRIES_MAX);
        work.retry(pauses)
            .when(|error| matches!(error, ImportError::Hub(error) if error.may_pass()))
            .call()
    }
}

fn unreachable(url: &str, error: &dyn std::fmt::Display) -> HubError {
    HubError::Unreachable {
        url: url.to_owned(),
        reason: error.to_string(),
    }
}

fn unexpected(url: &str, found: String) -> HubError {
    HubError::Answer {
        url: url.to_owned(),
        found,
        expected: "the file".to_owned(),
    }
}

fn text<'a>(headers: &'a header::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Where a redirection leads: another server, or another path on the same one.
fn behind(url: &str, from: &Uri, headers: &header::HeaderMap) -> Result<Uri, HubError> {
    let location =
        text(headers, "location").ok_or_else(|| unexpected(url, "a redirection to nowhere".to_owned()))?;
    let wrong = || unexpected(url, format!("a redirection to {location:?}"));
    let target: Uri = location.parse().map_err(|_| wrong())?;
    if target.host().is_some() {
        let safe = target.scheme() == from.scheme() || target.scheme_str() == Some("https");
        return if safe { Ok(target) } else { Err(wrong()) };
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = target.into_parts().path_and_query;
    Uri::from_parts(parts).map_err(|_| wrong())
}

/// Checks that the hub speaks of the commit and the file that its list named, where it says so.
fn same_file(url: &str, headers: &header::HeaderMap, commit: &str, file: &HubFile) -> Result<(), HubError> {
    let etag =
        text(headers, "x-linked-etag").or_else(|| text(headers, "x-repo-commit").and(text(headers, "etag")));
    let size = file.bytes.to_string();
    let said = [
        ("commit", text(headers, "x-repo-commit"), commit),
        ("size", text(headers, "x-linked-size"), &size),
        (
            "ETag",
            etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"')),
            file.digest.hex(),
        ),
    ];
    for (what, found, expected) in said {
        if let Some(found) = found.filter(|found| *found != expected) {
            return Err(HubError::Answer {
                url: url.to_owned(),
                found: format!("{what} `{found}`"),
                expected: format!("`{expected}`, as the hub's list of files has it"),
            });
        }
    }
    Ok(())
}

/// Checks that the file at `path`, which came from `source`, has the listed digest.
///
/// # Errors
/// [`HubError::Digest`]; [`ImportError::Io`].
pub(super) fn verify(path: &Path, source: &str, file: &HubFile) -> Result<(), ImportError> {
    let mut input = File::open(path).map_err(ImportError::io("open", path))?;
    let (mut sha256, mut sha1) = (Sha256::new(), Sha1::new());
    sha1.update(format!("blob {}\0", file.bytes));
    let mut block = vec![0; 1 << 20];
    loop {
        let count = input.read(&mut block).map_err(ImportError::io("read", path))?;
        if count == 0 {
            break;
        }
        match file.digest {
            Digest::Sha256(_) => sha256.update(&block[..count]),
            Digest::GitBlob(_) => sha1.update(&block[..count]),
        }
    }
    let found = match file.digest {
        Digest::Sha256(_) => hex::encode(sha256.finalize()),
        Digest::GitBlob(_) => hex::encode(sha1.finalize()),
    };
    if found == file.digest.hex() {
        return Ok(());
    }
    Err(HubError::Digest {
        url: source.to_owned(),
        expected: file.digest.hex().to_owned(),
        found,
    }
    .into())
}
