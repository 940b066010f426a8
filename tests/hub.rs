//! Models from a hub: a server on this machine that speaks the hub's paths.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
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
use support::golden;
use tempfile::TempDir;
use unmask::models::Checkpoint;
use unmask::models::hub::{Hub, HubError, Progress, RepositoryId};

const REPOSITORY: &str = "tiny/llada";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LATER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What the hub holds and how it behaves.
struct Contents {
    commit: &'static str,
    files: BTreeMap<String, Vec<u8>>,
    /// Who may not have a token goes in with this status.
    denied: Option<StatusCode>,
    /// The only token that is let in.
    token: Option<&'static str>,
    /// Files of which so many downloads break off after half of what they should bring.
    broken: HashMap<String, usize>,
    /// Files of which so many downloads stop after half of what they should bring, and stay open.
    stalled: HashMap<String, usize>,
    /// What the next requests whose paths end so are answered with.
    failing: Vec<(&'static str, StatusCode)>,
    /// Whether files are elsewhere on the hub than where they are asked for.
    moved: bool,
    /// What stands before every etag.
    etag_prefix: &'static str,
    /// The requests that came: method-less paths with the range that they asked for.
    requests: Vec<(String, Option<String>)>,
}

type Shared = Arc<Mutex<Contents>>;

/// A hub on this machine.
struct TestHub {
    url: String,
    contents: Shared,
    cache: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl TestHub {
    /// A hub that has the files of a golden checkpoint and one that nobody needs.
    fn of(golden_name: &str) -> Self {
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

    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
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

    fn change(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.contents.lock().unwrap());
    }

    fn hub(&self) -> Hub {
        Hub::new(self.cache.path()).with_endpoint(&self.url)
    }

    fn fetch(&self) -> Result<PathBuf, HubError> {
        self.hub().fetch(&id(), "main", &mut |_| {})
    }

    /// Downloads of a file's bytes: its requests but those for its metadata.
    fn downloads(&self, file: &str) -> Vec<String> {
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
    fn unmask(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(arguments)
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_HOME", self.cache.path())
            .env("HF_ENDPOINT", &self.url)
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }
}

fn id() -> RepositoryId {
    RepositoryId::parse(REPOSITORY).unwrap()
}

async fn answer(State(contents): State<Shared>, request: Request) -> Response {
    let mut contents = contents.lock().unwrap();
    let path = request.uri().path().to_owned();
    let range = text(request.headers(), header::RANGE.as_str());
    contents.requests.push((path.clone(), range.clone()));
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
        return axum::Json(info).into_response();
    }
    let prefix = format!("/{REPOSITORY}/resolve/{}/", contents.commit);
    if contents.moved && path.starts_with(&prefix) {
        return Redirect::temporary(&format!("/elsewhere{path}")).into_response();
    }
    let path = path.strip_prefix("/elsewhere").unwrap_or(&path);
    let Some(name) = path.strip_prefix(&prefix) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(bytes) = contents.files.get(name).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
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
    let etag = format!("\"{}{}\"", contents.etag_prefix, etag(&bytes));
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
        End::Broken => {
            // By then the half is on its way.
            let broken = stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(std::io::Error::other("broken off"))
            });
            Body::from_stream(stream::iter([Ok(half)]).chain(broken))
        }
        End::Stalled => {
            let half = stream::iter([std::io::Result::Ok(half)]);
            Body::from_stream(half.chain(stream::pending()))
        }
    };
    response.body(body).unwrap()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().unwrap().to_owned())
}

/// As different as the contents are.
fn etag(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn assert_same_as_golden(directory: &Path, golden_name: &str, file: &str) {
    let got = std::fs::read(directory.join(file)).unwrap();
    let expected = std::fs::read(golden(golden_name).join(file)).unwrap();
    assert!(got == expected, "{file}");
}

#[test]
fn a_model_is_downloaded_once_with_the_files_that_it_needs() {
    let hub = TestHub::of("llada");
    let mut last = BTreeMap::new();
    let directory = hub
        .hub()
        .fetch(&id(), "main", &mut |progress: Progress| {
            assert!(progress.received <= progress.total);
            last.insert(
                progress.file.to_owned(),
                (progress.received, progress.total),
            );
        })
        .unwrap();
    assert!(directory.ends_with(format!("models--tiny--llada/snapshots/{COMMIT}")));
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors",
    ] {
        assert_same_as_golden(&directory, "llada", file);
        let size = std::fs::metadata(directory.join(file)).unwrap().len();
        assert_eq!(last[file], (size, size));
    }
    let names: Vec<_> = std::fs::read_dir(&directory).unwrap().collect();
    assert_eq!(names.len(), 5, "nothing else is downloaded");
    assert_eq!(
        Checkpoint::open(&directory).unwrap().spec().unwrap().family,
        "llada"
    );

    hub.change(|contents| contents.requests.clear());
    assert_eq!(hub.fetch().unwrap(), directory);
    let contents = hub.contents.lock().unwrap();
    assert_eq!(contents.requests.len(), 1, "{:?}", contents.requests);
}

#[test]
fn shards_are_those_of_the_index() {
    let hub = TestHub::of("llada/sharded");
    let directory = hub.fetch().unwrap();
    let index = support::json(&directory.join("model.safetensors.index.json"));
    let shards = index["weight_map"].as_object().unwrap().values();
    for shard in shards {
        assert_same_as_golden(&directory, "llada/sharded", shard.as_str().unwrap());
    }
    // One that is not there is missed by its name.
    let lost = "model-00002-of-00003.safetensors";
    let hub = TestHub::of("llada/sharded");
    hub.change(|contents| _ = contents.files.remove(lost).unwrap());
    let error = hub.fetch().unwrap_err().to_string();
    assert!(error.contains(lost), "{error}");
}

/// Dream is published with vocab.json and merges.txt in the place of a tokenizer.json.
#[test]
fn a_model_without_a_tokenizer_json_is_downloaded_with_its_vocabulary() {
    let hub = TestHub::of("dream");
    assert!(!hub.fetch().unwrap().join("vocab.json").exists());

    let hub = TestHub::of("dream");
    hub.change(|contents| _ = contents.files.remove("tokenizer.json"));
    let directory = hub.fetch().unwrap();
    for file in ["vocab.json", "merges.txt", "model.safetensors"] {
        assert_same_as_golden(&directory, "dream", file);
    }
    let arguments = ["generate", "--model", REPOSITORY, "A cat", "--gap", "2"];
    let output = hub.unmask(&arguments, &[]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_cannot_be_served_is_refused_before_its_weights_are_downloaded() {
    let refused = |file: &str, says: &str, change: fn(&mut Value)| {
        let hub = TestHub::of("dream");
        hub.change(|contents| {
            contents.files.remove("tokenizer.json");
            let mut json: Value = serde_json::from_slice(&contents.files[file]).unwrap();
            change(&mut json);
            contents
                .files
                .insert(file.into(), json.to_string().into_bytes());
        });
        let error = hub.fetch().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(hub.downloads("model.safetensors").is_empty());
    };
    let class = "tokenizer_class is \"BertTokenizer\"";
    refused("tokenizer_config.json", class, |config| {
        config["tokenizer_class"] = "BertTokenizer".into();
    });
    refused("config.json", "\"DreamForCausalLM\"", |config| {
        config["architectures"] = json!(["DreamForCausalLM"]);
    });
    refused("config.json", "use_mrope is true", |config| {
        config["use_mrope"] = true.into();
    });
}

#[test]
fn a_model_without_any_tokenizer_is_downloaded_and_says_whose_it_takes_when_there_are_texts() {
    let hub = TestHub::of("mdlm");
    hub.change(|contents| {
        for file in [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ] {
            contents.files.remove(file);
        }
    });
    hub.fetch().unwrap();
    let output = hub.unmask(
        &["generate", "--model", REPOSITORY, "A cat", "--gap", "2"],
        &[],
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("use that of openai-community/gpt2: put it into")
            && error.contains(&format!("models--tiny--llada/snapshots/{COMMIT}")),
        "{error}"
    );
}

#[test]
fn a_new_commit_brings_only_the_files_that_differ() {
    let hub = TestHub::of("llada");
    hub.fetch().unwrap();
    hub.change(|contents| {
        contents.commit = LATER_COMMIT;
        contents
            .files
            .insert("generation_config.json".into(), b"{}".to_vec());
        contents.requests.clear();
    });
    let directory = hub.fetch().unwrap();
    assert!(directory.ends_with(LATER_COMMIT));
    assert_same_as_golden(&directory, "llada", "model.safetensors");
    assert_eq!(hub.downloads("generation_config.json").len(), 1);
    assert!(hub.downloads("model.safetensors").is_empty());
    // The commit before is still there by its hash.
    let before = hub
        .hub()
        .offline()
        .fetch(&id(), COMMIT, &mut |_| {})
        .unwrap();
    assert_same_as_golden(&before, "llada", "model.safetensors");
}

#[test]
fn a_download_that_breaks_off_is_continued() {
    let hub = TestHub::of("llada");
    hub.change(|contents| _ = contents.broken.insert("model.safetensors".into(), 2));
    let directory = hub.fetch().unwrap();
    assert_same_as_golden(&directory, "llada", "model.safetensors");
    let ranges = hub.downloads("model.safetensors");
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[0], "bytes=0-");
    assert_ne!(ranges[2], "bytes=0-");
}

#[test]
fn a_download_that_always_breaks_off_is_an_error_and_leaves_no_broken_file() {
    let hub = TestHub::of("llada");
    hub.change(|contents| _ = contents.broken.insert("config.json".into(), 1000));
    let error = hub.fetch().unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
    let error = hub
        .hub()
        .offline()
        .fetch(&id(), "main", &mut |_| {})
        .unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    hub.change(|contents| contents.broken.clear());
    let directory = hub.fetch().unwrap();
    assert_same_as_golden(&directory, "llada", "config.json");
}

#[test]
fn a_download_that_stalls_is_continued_over_another_connection() {
    let hub = TestHub::of("llada");
    hub.change(|contents| _ = contents.stalled.insert("model.safetensors".into(), 1));
    let directory = hub
        .hub()
        .with_patience(Duration::from_millis(500))
        .fetch(&id(), "main", &mut |_| {})
        .unwrap();
    assert_same_as_golden(&directory, "llada", "model.safetensors");
    let ranges = hub.downloads("model.safetensors");
    assert_eq!(ranges[0], "bytes=0-");
    assert!(ranges.len() > 1 && ranges[1] != "bytes=0-", "{ranges:?}");
}

#[test]
fn a_hub_that_takes_connections_and_says_nothing_is_given_up() {
    let cache = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hub = Hub::new(cache.path())
        .with_endpoint(format!("http://{}", silent.local_addr().unwrap()))
        .with_patience(Duration::from_millis(20));
    let error = hub.fetch(&id(), "main", &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
}

#[test]
fn a_hub_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let hub = TestHub::of("llada");
    hub.change(|contents| {
        contents.failing = vec![
            ("revision/main", StatusCode::SERVICE_UNAVAILABLE),
            ("revision/main", StatusCode::TOO_MANY_REQUESTS),
            ("config.json", StatusCode::BAD_GATEWAY),
            ("model.safetensors", StatusCode::INTERNAL_SERVER_ERROR),
            ("model.safetensors", StatusCode::GATEWAY_TIMEOUT),
        ];
    });
    let directory = hub.fetch().unwrap();
    assert_same_as_golden(&directory, "llada", "model.safetensors");
    assert!(hub.contents.lock().unwrap().failing.is_empty());

    let hub = TestHub::of("llada");
    hub.change(|contents| contents.failing = vec![("main", StatusCode::GONE); 2]);
    let error = hub.fetch().unwrap_err();
    let is_gone = matches!(error, HubError::Status { status: 410, .. });
    assert!(is_gone, "{error}");
    assert_eq!(hub.contents.lock().unwrap().requests.len(), 1);
}

#[test]
fn a_file_that_another_process_downloads_is_waited_for_and_used() {
    let hub = TestHub::of("llada");
    let file = "model.safetensors";
    let bytes = std::fs::read(golden("llada").join(file)).unwrap();
    let blobs = hub.cache.path().join("models--tiny--llada/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let named = |ending: &str| blobs.join(format!("{}{ending}", etag(&bytes)));
    std::fs::write(named(".part"), &bytes[..100]).unwrap();
    let lock = std::fs::File::create(named(".lock")).unwrap();
    lock.lock().unwrap();
    let mut seen = 0;
    let directory = hub
        .hub()
        .fetch(&id(), "main", &mut |progress| {
            if progress.file != file {
                return;
            }
            // What the other has is told; then it is done.
            assert_eq!(progress.received, 100);
            seen += 1;
            if seen == 3 {
                std::fs::write(named(".part"), &bytes).unwrap();
                std::fs::rename(named(".part"), named("")).unwrap();
                lock.unlock().unwrap();
            }
        })
        .unwrap();
    assert_same_as_golden(&directory, "llada", file);
    assert!(hub.downloads(file).is_empty());
}

#[test]
fn the_time_to_wait_for_the_hub_is_a_number_of_seconds() {
    let hub = TestHub::of("llada");
    let inspect = |seconds| {
        let variables = [("HF_HUB_DOWNLOAD_TIMEOUT", seconds)];
        hub.unmask(&["inspect", "--model", REPOSITORY], &variables)
    };
    for seconds in ["0", "soon", "-1"] {
        let output = inspect(seconds);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        let expected = format!("HF_HUB_DOWNLOAD_TIMEOUT is {seconds:?}");
        assert!(error.contains(&expected), "{error}");
    }
    assert!(inspect("60").status.success());
}

#[test]
fn what_the_hub_says_of_a_file_is_found_behind_its_redirects() {
    let hub = TestHub::of("llada");
    hub.change(|contents| contents.moved = true);
    let directory = hub.fetch().unwrap();
    assert_same_as_golden(&directory, "llada", "model.safetensors");
}

#[test]
fn an_etag_that_leads_out_of_the_cache_is_refused() {
    let hub = TestHub::of("llada");
    hub.change(|contents| contents.etag_prefix = "../");
    let error = hub.fetch().unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
    let left = std::fs::read_dir(hub.cache.path().join("models--tiny--llada"));
    assert!(left.is_err(), "nothing is written");
}

#[test]
fn what_the_hub_does_not_have_is_said() {
    let hub = TestHub::of("llada");
    let other = RepositoryId::parse("tiny/none").unwrap();
    for (id, revision) in [(&other, "main"), (&id(), "v9")] {
        let error = hub.hub().fetch(id, revision, &mut |_| {}).unwrap_err();
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&id.to_string()) && text.contains(revision),
            "{text}"
        );
    }
    for revision in ["../main", "", "a//b", "..", "a b"] {
        let error = hub.hub().fetch(&id(), revision, &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, HubError::Revision { .. }),
            "{revision}: {error}"
        );
    }
    hub.change(|contents| _ = contents.files.remove("model.safetensors"));
    let error = hub.fetch().unwrap_err().to_string();
    assert!(error.contains("pickle files are never opened"), "{error}");
    hub.change(|contents| _ = contents.files.remove("config.json"));
    let error = hub.fetch().unwrap_err().to_string();
    assert!(error.contains("no config.json"), "{error}");
}

#[test]
fn a_gated_model_is_had_with_the_right_token_only() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let hub = TestHub::of("llada");
        hub.change(|contents| {
            contents.denied = Some(status);
            contents.token = Some("secret");
        });
        let error = hub.fetch().unwrap_err();
        assert!(matches!(
            error,
            HubError::Denied {
                has_token: false,
                ..
            }
        ));
        let text = error.to_string();
        assert!(
            text.contains("HF_TOKEN") && text.contains(REPOSITORY),
            "{text}"
        );
        let fetch = |token| {
            hub.hub()
                .with_token(token)
                .fetch(&id(), "main", &mut |_| {})
        };
        let error = fetch("wrong").unwrap_err();
        assert!(matches!(
            error,
            HubError::Denied {
                has_token: true,
                ..
            }
        ));
        assert!(
            !error.to_string().contains("wrong"),
            "a token is never shown"
        );
        assert_same_as_golden(&fetch("secret").unwrap(), "llada", "config.json");
    }
}

#[test]
fn a_stored_token_is_used_an_empty_one_is_none_and_one_that_cannot_be_read_is_said() {
    let hub = TestHub::of("llada");
    hub.change(|contents| {
        contents.denied = Some(StatusCode::UNAUTHORIZED);
        contents.token = Some("secret");
    });
    let inspect = || hub.unmask(&["inspect", "--model", REPOSITORY], &[]);
    let said = || {
        let output = inspect();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let stored = hub.cache.path().join("token");
    std::fs::write(&stored, "\n").unwrap();
    assert!(said().contains("set HF_TOKEN"), "{}", said());
    std::fs::remove_file(&stored).unwrap();
    std::fs::create_dir(&stored).unwrap();
    assert!(said().contains(stored.to_str().unwrap()), "{}", said());
    std::fs::remove_dir(&stored).unwrap();
    std::fs::write(&stored, "secret\n").unwrap();
    assert!(inspect().status.success());
}

#[test]
fn offline_the_cache_alone_is_used() {
    let hub = TestHub::of("llada");
    let offline = || hub.hub().offline().fetch(&id(), "main", &mut |_| {});
    let error = offline().unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
    let directory = hub.fetch().unwrap();
    hub.change(|contents| contents.requests.clear());
    assert_eq!(offline().unwrap(), directory);
    assert!(hub.contents.lock().unwrap().requests.is_empty());
    std::fs::remove_file(directory.join("model.safetensors")).unwrap();
    let error = offline().unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_said_with_the_way_out() {
    let cache = tempfile::tempdir().unwrap();
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let hub = Hub::new(cache.path()).with_endpoint(&url);
    let error = hub.fetch(&id(), "main", &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&url) && text.contains("HF_HUB_OFFLINE=1"),
        "{text}"
    );
}

#[test]
fn an_answer_that_is_none_of_the_hubs_is_said() {
    let hub = TestHub::of("llada");
    hub.change(|contents| contents.commit = "../../etc");
    let error = hub.fetch().unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
}

#[test]
fn the_command_line_takes_a_model_by_its_name() {
    let hub = TestHub::of("llada");
    let inspect = ["inspect", "--json", "--model", REPOSITORY];
    let output = hub.unmask(&inspect, &[]);
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["name"], REPOSITORY);
    assert!(hub.cache.path().join("hub/models--tiny--llada").is_dir());
    let generate = [
        "generate",
        "--model",
        REPOSITORY,
        "--prompt-ids",
        "5,6",
        "--gap",
        "2",
        "--ids",
    ];
    let output = hub.unmask(&generate, &[("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "")]);
    assert!(output.status.success(), "{output:?}");

    let with_revision = [&inspect[..], &["--model-revision", COMMIT]].concat();
    assert!(hub.unmask(&with_revision, &[]).status.success());
    let said = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = hub.unmask(arguments, variables);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = said(
        &["inspect", "--model", REPOSITORY, "--model-revision", "v9"],
        &[],
    );
    assert!(
        unknown.contains("v9") && unknown.contains("no directory tiny/llada"),
        "{unknown}"
    );
    let directory = golden("llada");
    let local = [
        "inspect",
        "--model",
        directory.to_str().unwrap(),
        "--model-revision",
        "main",
    ];
    assert!(said(&local, &[]).contains("--model-revision"));
    assert!(said(&["inspect", "--model-revision", "main"], &[]).contains("--model"));
    let empty = tempfile::tempdir().unwrap();
    let home = empty.path().to_str().unwrap();
    let offline = said(&inspect, &[("HF_HUB_OFFLINE", "1"), ("HF_HOME", home)]);
    assert!(offline.contains("HF_HUB_OFFLINE"), "{offline}");
}
