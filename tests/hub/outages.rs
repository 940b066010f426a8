//! A model that is whole in the cache, while the hub or the disk is not as it should be.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use axum::http::StatusCode;
use unmask::hub::HubError;

use crate::server::{COMMIT, LATER_COMMIT, REPOSITORY, TestHub, id};

fn repository(hub: &TestHub) -> PathBuf {
    hub.cache.path().join("models--tiny--llada")
}

fn fetch_commit(hub: &TestHub) -> Result<PathBuf, HubError> {
    hub.hub().fetch(&id(), COMMIT, &mut |_| {})
}

/// A hub whose model was fetched, and has a later commit since.
fn moved_on() -> (TestHub, PathBuf) {
    let hub = TestHub::of("llada");
    let directory = hub.fetch().unwrap();
    hub.change(|contents| {
        contents.commit = LATER_COMMIT;
        contents
            .files
            .insert("generation_config.json".into(), b"{}".to_vec());
    });
    (hub, directory)
}

#[test]
fn a_hub_that_does_not_answer_is_done_without() {
    let hub = TestHub::of("llada");
    let directory = hub.fetch().unwrap();
    for status in [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_REQUEST,
    ] {
        hub.change(|contents| contents.down = Some(status));
        assert_eq!(hub.fetch().unwrap(), directory, "{status}");
    }
    let nowhere = hub.hub().with_endpoint("http://127.0.0.1:1");
    let got = nowhere.fetch(&id(), "main", &mut |_| {});
    assert_eq!(got.unwrap(), directory);
    // Nor does an answer that is no hub's say anything of the model.
    hub.change(|contents| (contents.down, contents.commit) = (None, "../../etc"));
    assert_eq!(hub.fetch().unwrap(), directory);
}

#[test]
fn a_later_commit_that_cannot_be_had_leaves_the_one_before() {
    let (hub, before) = moved_on();
    hub.change(|contents| {
        contents.failing = vec![("generation_config.json", StatusCode::BAD_GATEWAY); 4];
    });
    assert_eq!(hub.fetch().unwrap(), before);
    assert!(hub.contents.lock().unwrap().failing.is_empty());
    assert!(hub.fetch().unwrap().ends_with(LATER_COMMIT));
}

#[test]
fn what_is_taken_from_the_cache_is_said_with_its_commit_and_the_reason() {
    let hub = TestHub::of("llada");
    let inspect = ["inspect", "--model", REPOSITORY];
    assert!(hub.unmask(&inspect, &[]).status.success());
    hub.change(|contents| contents.down = Some(StatusCode::SERVICE_UNAVAILABLE));
    let output = hub.unmask(&inspect, &[]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    let is_it = |line: &&str| line.contains("WARN") && line.contains("taken from the cache");
    let warning = said.lines().find(is_it).unwrap();
    for part in [COMMIT, "status 503", REPOSITORY] {
        assert!(warning.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_model_of_which_a_file_is_missing_needs_the_hub() {
    let hub = TestHub::of("llada");
    let directory = hub.fetch().unwrap();
    std::fs::remove_file(directory.join("model.safetensors")).unwrap();
    hub.change(|contents| contents.down = Some(StatusCode::SERVICE_UNAVAILABLE));
    for error in [hub.fetch().unwrap_err(), fetch_commit(&hub).unwrap_err()] {
        let is_busy = matches!(error, HubError::Status { status: 503, .. });
        assert!(is_busy, "{error}");
    }
}

#[test]
fn a_commit_that_was_fetched_is_had_without_asking() {
    let hub = TestHub::of("llada");
    let directory = hub.fetch().unwrap();
    hub.change(|contents| contents.requests.clear());
    assert_eq!(fetch_commit(&hub).unwrap(), directory);
    assert_eq!(hub.requests(), 0);
}

/// Other clients download what they are asked for.
#[test]
fn a_commit_in_the_cache_of_another_client_is_completed_once() {
    let hub = TestHub::of("llada");
    let directory = hub.fetch().unwrap();
    std::fs::remove_file(repository(&hub).join("refs").join(COMMIT)).unwrap();
    std::fs::remove_file(directory.join("tokenizer_config.json")).unwrap();
    assert_eq!(fetch_commit(&hub).unwrap(), directory);
    assert!(directory.join("tokenizer_config.json").exists());
    hub.change(|contents| contents.requests.clear());
    assert_eq!(fetch_commit(&hub).unwrap(), directory);
    assert_eq!(hub.requests(), 0);
}

#[test]
fn what_the_hub_refuses_is_not_served_unasked() {
    let hub = TestHub::of("llada");
    hub.fetch().unwrap();
    let refusals = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
    ];
    for status in refusals {
        hub.change(|contents| contents.down = Some(status));
        let error = hub.fetch().unwrap_err();
        assert!(
            matches!(error, HubError::RefusedButCached { .. }),
            "{error}"
        );
        let text = error.to_string();
        for part in [COMMIT, "HF_HUB_OFFLINE=1", REPOSITORY] {
            assert!(text.contains(part), "{part}: {text}");
        }
        hub.hub()
            .offline()
            .fetch(&id(), "main", &mut |_| {})
            .unwrap();
    }
}

#[test]
fn the_names_of_commits_are_written_only_where_they_change() {
    let hub = TestHub::of("llada");
    hub.fetch().unwrap();
    let names = ["main", COMMIT].map(|name| repository(&hub).join("refs").join(name));
    let written = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    for name in &names {
        let file = std::fs::File::options().append(true).open(name).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    hub.fetch().unwrap();
    for name in &names {
        assert_eq!(written(name), SystemTime::UNIX_EPOCH);
    }
}

/// Directories where files should be written stand for a disk that takes none: nothing is forbidden to root.
#[test]
fn a_cache_that_has_everything_need_not_be_written() {
    let hub = TestHub::of("llada");
    let directory = hub.fetch().unwrap();
    for name in ["main", COMMIT] {
        let name = repository(&hub).join("refs").join(name);
        std::fs::remove_file(&name).unwrap();
        std::fs::create_dir(&name).unwrap();
    }
    assert_eq!(hub.fetch().unwrap(), directory);
    assert_eq!(fetch_commit(&hub).unwrap(), directory);
}

#[test]
fn a_later_commit_that_the_disk_does_not_take_leaves_the_one_before() {
    let (hub, before) = moved_on();
    std::fs::write(repository(&hub).join("snapshots").join(LATER_COMMIT), "").unwrap();
    assert_eq!(hub.fetch().unwrap(), before);
}

#[test]
fn a_cache_that_cannot_be_used_is_said_once() {
    let hub = TestHub::of("llada");
    std::fs::write(hub.cache.path().join("hub"), "no directory").unwrap();
    let output = hub.unmask(&["inspect", "--model", REPOSITORY], &[]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("os error").count(), 1, "{said}");
    let cache = hub.cache.path().join("hub");
    assert!(said.contains(cache.to_str().unwrap()), "{said}");
}
