//! A hub on this machine, which speaks the hub's paths.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use unmask::hub::{Hub, HubError, RepositoryId};

use crate::support::golden;

pub const REPOSITORY: &str = "tiny/llada";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const LATER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What the hub says of a revision, among files that break off.
pub const INFO: &str = "the revision";

/// What the hub holds and how it behaves.
pub struct Contents {
    pub commit: &'static str,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Who may not have a token goes in with this status.
    pub denied: Option<StatusCode>,
    /// The only token that is let in.
    pub token: Option<&'static str>,
    /// Files of which so many downloads break off after half of what they should bring; as `INFO` what the hub says of
    /// a revision.
    pub broken: HashMap<String, usize>,
    /// Files of which so many downloads stop after half of what they should bring, and stay open.
    pub stalled: HashMap<String, usize>,
    /// What the next requests whose paths end so are answered with.
    pub failing: Vec<(&'static str, StatusCode)>,
    /// Whether files are elsewhere on the hub than where they are asked for.
    pub moved: bool,
    /// What stands before every etag.
    pub etag_prefix: &'static str,
    /// Files whose last byte is another than the one that the hub has.
    pub damaged: BTreeSet<&'static str>,
    /// What every request is answered with, if the hub is down.
    pub down: Option<StatusCode>,
    /// The requests that came: method-less paths with the range that they asked for.
    pub requests: Vec<(String, Option<String>)>,
}

type Shared = Arc<Mutex<Contents>>;

/// A hub on this machine.
pub struct TestHub {
    pub url: String,
    pub contents: Shared,
    pub cache: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl TestHub {
    /// A hub that has the files of a golden checkpoint and one that nobody needs.
    pub fn of(golden_name: &str) -> Self {
        let mut files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(golden(golden_name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, std::fs::read(path).unwrap())
            })
            .collect();
        files.insert("pytorch_model.bin".into(), b"pickle".to_vec());
        Self::with(files)
    }

    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let contents = Arc::new(Mutex::new(Contents {
            commit: COMMIT,
            files,
            denied: None,
            token: None,
            broken: HashMap::new(),
            stalled: HashMap::new(),
            failing: Vec::new(),
            moved: false,
            etag_prefix: "",
            damaged: BTreeSet::new(),
            down: None,
            requests: Vec::new(),
        }));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(contents.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            url,
            contents,
            cache: tempfile::tempdir().unwrap(),
            _runtime: runtime,
        }
    }

    pub fn change(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.contents.lock().unwrap());
    }

    pub fn hub(&self) -> Hub {
        Hub::new(self.cache.path()).with_endpoint(&self.url)
    }

    pub fn fetch(&self) -> Result<PathBuf, HubError> {
        self.hub().fetch(&id(), "main", &mut |_| {})
    }

    /// Requests since the contents were last changed to have none.
    pub fn requests(&self) -> usize {
        self.contents.lock().unwrap().requests.len()
    }

    /// Downloads of a file's bytes: its requests but those for its metadata.
    pub fn downloads(&self, file: &str) -> Vec<String> {
        let contents = self.contents.lock().unwrap();
        let of_file = contents
            .requests
            .iter()
            .filter(|(path, _)| path.ends_with(file));
        of_file
            .filter_map(|(_, range)| range.clone())
            .filter(|range| range != "bytes=0-0")
            .collect()
    }

    /// Runs `unmask` with this hub and cache in its environment.
    pub fn unmask(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied()).output().unwrap()
    }

    /// `unmask` with this hub and cache in its environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
        command
            .args(arguments)
            .env_remove("RUST_LOG")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_HOME", self.cache.path())
            .env("HF_ENDPOINT", &self.url);
        command
    }
}

pub fn id() -> RepositoryId {
    RepositoryId::parse(REPOSITORY).unwrap()
}

async fn answer(State(contents): State<Shared>, request: Request) -> Response {
    let mut contents = contents.lock().unwrap();
    let path = request.uri().path().to_owned();
    let range = text(request.headers(), header::RANGE.as_str());
    contents.requests.push((path.clone(), range.clone()));
    if let Some(status) = contents.down {
        return status.into_response();
    }
    let token = text(request.headers(), header::AUTHORIZATION.as_str());
    let expected = contents.token.map(|token| format!("Bearer {token}"));
    if let Some(status) = contents.denied
        && (token.is_none() || token != expected)
    {
        return status.into_response();
    }
    let fails = |(ending, _): &(&str, _)| path.ends_with(ending);
    if let Some(index) = contents.failing.iter().position(fails) {
        return contents.failing.remove(index).1.into_response();
    }
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPOSITORY}/revision/")) {
        if revision != "main" && revision != contents.commit {
            return StatusCode::NOT_FOUND.into_response();
        }
        let names = contents.files.keys();
        let siblings: Vec<Value> = names.map(|name| json!({"rfilename": name})).collect();
        let info = json!({"id": REPOSITORY, "sha": contents.commit, "siblings": siblings});
        let json = info.to_string().into_bytes();
        // What lies between compresses where it may.
        assert!(!accepts_gzip(request.headers()));
        return match contents.broken.get_mut(INFO).filter(|times| **times > 0) {
            Some(times) => {
                *times -= 1;
                let length = json.len();
                let body = broken_off(json[..length / 2].to_vec());
                ([(header::CONTENT_LENGTH, length)], body).into_response()
            }
            None => json.into_response(),
        };
    }
    let prefix = format!("/{REPOSITORY}/resolve/{}/", contents.commit);
    if contents.moved && path.starts_with(&prefix) {
        return Redirect::temporary(&format!("/elsewhere{path}")).into_response();
    }
    let path = path.strip_prefix("/elsewhere").unwrap_or(&path);
    let Some(name) = path.strip_prefix(&prefix) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(mut bytes) = contents.files.get(name).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let etag = match name.ends_with(".safetensors") {
        true => etag(&bytes),
        false => small_etag(&bytes),
    };
    // What lies between compresses where it may, and says so of the contents.
    let compressed = match accepts_gzip(request.headers()) {
        true => "-gzip",
        false => "",
    };
    let etag = format!("\"{}{etag}{compressed}\"", contents.etag_prefix);
    if let Some(last) = bytes.last_mut().filter(|_| contents.damaged.contains(name)) {
        *last ^= 1;
    }
    let mut end = End::Whole;
    if range.as_deref() != Some("bytes=0-0") {
        let contents = &mut *contents;
        for (files, then) in [
            (&mut contents.broken, End::Broken),
            (&mut contents.stalled, End::Stalled),
        ] {
            if let Some(times) = files.get_mut(name).filter(|times| **times > 0) {
                *times -= 1;
                end = then;
            }
        }
    }
    let mut answer = file(&bytes, &range.unwrap(), contents.commit, end);
    answer
        .headers_mut()
        .insert(header::ETAG, etag.parse().unwrap());
    answer
}

/// How an answer ends: as it should, or after its first half.
#[derive(Clone, Copy)]
enum End {
    Whole,
    Broken,
    Stalled,
}

/// The part of a file that a range asks for.
fn file(bytes: &[u8], range: &str, commit: &str, ending: End) -> Response {
    let (start, end) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |last: usize| last + 1);
    if start >= bytes.len() {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let part = bytes[start..end].to_vec();
    let response = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header("x-repo-commit", commit)
        .header("x-linked-size", bytes.len())
        .header(header::CONTENT_LENGTH, part.len())
        .header(
            header::CONTENT_RANGE,
            format!("bytes {start}-{}/{}", end - 1, bytes.len()),
        );
    let half = part[..part.len() / 2].to_vec();
    let body = match ending {
        End::Whole => Body::from(part),
        End::Broken => broken_off(half),
        End::Stalled => {
            let half = stream::iter([std::io::Result::Ok(half)]);
            Body::from_stream(half.chain(stream::pending()))
        }
    };
    response.body(body).unwrap()
}

/// A body that breaks off after these bytes.
fn broken_off(bytes: Vec<u8>) -> Body {
    // By then they are on their way.
    let broken = stream::once(async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Err(std::io::Error::other("broken off"))
    });
    Body::from_stream(stream::iter([Ok(bytes)]).chain(broken))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = text(headers, header::ACCEPT_ENCODING.as_str());
    accepted.is_some_and(|accepted| accepted.contains("gzip"))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().unwrap().to_owned())
}

/// The SHA-256, by which the hub knows weights.
pub fn etag(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let digits = digest.as_ref().iter();
    digits.map(|byte| format!("{byte:02x}")).collect()
}

/// As different as the contents are, and not their SHA-256.
fn small_etag(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
