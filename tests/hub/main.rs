//! Models from a hub: a server on this machine that speaks the hub's paths.

mod damage;
mod outages;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod told;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use server::{COMMIT, INFO, LATER_COMMIT, REPOSITORY, TestHub, etag, id};
use support::golden;
use unmask::hub::{Hub, HubError, Progress, RepositoryId};
use unmask::models::Checkpoint;

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
fn the_address_of_a_hub_may_end_in_a_slash() {
    let hub = TestHub::of("llada");
    let with_slash = hub.hub().with_endpoint(format!("{}/", hub.url));
    let directory = with_slash.fetch(&id(), "main", &mut |_| {}).unwrap();
    assert_same_as_golden(&directory, "llada", "model.safetensors");
}

#[test]
fn what_the_hub_says_of_a_revision_is_asked_for_again_where_it_breaks_off() {
    let hub = TestHub::of("llada");
    hub.change(|contents| contents.broken = [(INFO.into(), 2)].into());
    hub.fetch().unwrap();
    let hub = TestHub::of("llada");
    hub.change(|contents| contents.broken = [(INFO.into(), 4)].into());
    let error = hub.fetch().unwrap_err();
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
    // As `echo` writes it.
    let name = directory.join("../../refs/main");
    let commit = std::fs::read_to_string(&name).unwrap();
    std::fs::write(name, commit + "\n").unwrap();
    assert_eq!(offline().unwrap(), directory);
    assert!(hub.contents.lock().unwrap().requests.is_empty());
    std::fs::remove_file(directory.join("model.safetensors")).unwrap();
    let error = offline().unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_said_with_where_to_look() {
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
        text.contains(&url) && text.contains("HTTPS_PROXY"),
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

    for command in [&inspect[..], &generate] {
        let with_revision = [command, &["--revision", COMMIT]].concat();
        let output = hub.unmask(&with_revision, &[]);
        assert!(output.status.success(), "{output:?}");
    }
    let said = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = hub.unmask(arguments, variables);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = said(&["inspect", "--model", REPOSITORY, "--revision", "v9"], &[]);
    assert!(
        unknown.contains("v9") && unknown.contains("no directory tiny/llada"),
        "{unknown}"
    );
    let directory = golden("llada");
    let local = [
        "inspect",
        "--model",
        directory.to_str().unwrap(),
        "--revision",
        "main",
    ];
    assert!(said(&local, &[]).contains("--revision main"));
    let remasked = [&local[..4], &["remask_cap:0.1"]].concat();
    assert!(said(&remasked, &[]).contains("--revise"));
    assert!(said(&["inspect", "--revision", "main"], &[]).contains("--model"));
    let empty = tempfile::tempdir().unwrap();
    let home = empty.path().to_str().unwrap();
    let offline = said(&inspect, &[("HF_HUB_OFFLINE", "1"), ("HF_HOME", home)]);
    assert!(offline.contains("HF_HUB_OFFLINE"), "{offline}");
}
