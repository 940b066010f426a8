//! Downloads that are not what the hub has.

use std::path::PathBuf;

use unmask::hub::HubError;

use crate::server::{TestHub, etag, id};
use crate::support::golden;

const WEIGHTS: &str = "model.safetensors";

fn weights() -> Vec<u8> {
    std::fs::read(golden("llada").join(WEIGHTS)).unwrap()
}

/// A file of the weights in the cache: by an ending, of their contents as a whole without one.
fn blob(hub: &TestHub, ending: &str) -> PathBuf {
    let blobs = hub.cache.path().join("models--tiny--llada/blobs");
    blobs.join(format!("{}{ending}", etag(&weights())))
}

fn assert_refused_and_removed(hub: &TestHub) {
    let error = hub.fetch().unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    let text = error.to_string();
    for part in [WEIGHTS, &etag(&weights()), "start again"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for ending in ["", ".part"] {
        assert!(!blob(hub, ending).exists(), "{ending}");
    }
    let offline = hub.hub().offline().fetch(&id(), "main", &mut |_| {});
    assert!(matches!(offline, Err(HubError::NotCached { .. })));
}

fn assert_had(hub: &TestHub) {
    let directory = hub.fetch().unwrap();
    assert!(std::fs::read(directory.join(WEIGHTS)).unwrap() == weights());
}

#[test]
fn weights_that_come_with_another_hash_are_refused_and_removed() {
    let hub = TestHub::of("llada");
    hub.change(|contents| _ = contents.damaged.insert(WEIGHTS));
    assert_refused_and_removed(&hub);
    hub.change(|contents| contents.damaged.clear());
    assert_had(&hub);
}

#[test]
fn the_part_that_a_download_continues_is_hashed_with_it() {
    for length in [100, weights().len()] {
        let hub = TestHub::of("llada");
        std::fs::create_dir_all(blob(&hub, "").parent().unwrap()).unwrap();
        std::fs::write(blob(&hub, ".part"), vec![0; length]).unwrap();
        assert_refused_and_removed(&hub);
        assert_had(&hub);
        let ranges = hub.downloads(WEIGHTS);
        assert_eq!(ranges.last().unwrap(), "bytes=0-");
    }
}

#[test]
fn a_download_that_breaks_off_is_hashed_over_all_its_attempts() {
    for (damaged, times) in [(false, 3), (true, 3)] {
        let hub = TestHub::of("llada");
        hub.change(|contents| {
            contents.broken.insert(WEIGHTS.into(), times);
            contents.damaged.extend(damaged.then_some(WEIGHTS));
        });
        match damaged {
            true => assert_refused_and_removed(&hub),
            false => assert_had(&hub),
        }
        assert!(hub.downloads(WEIGHTS).len() > times);
    }
}

#[test]
fn a_part_that_is_longer_than_the_file_is_begun_anew() {
    let hub = TestHub::of("llada");
    std::fs::create_dir_all(blob(&hub, "").parent().unwrap()).unwrap();
    std::fs::write(blob(&hub, ".part"), [weights(), vec![0]].concat()).unwrap();
    assert_had(&hub);
}

#[test]
fn contents_of_another_length_are_downloaded_again() {
    let hub = TestHub::of("llada");
    std::fs::create_dir_all(blob(&hub, "").parent().unwrap()).unwrap();
    std::fs::write(blob(&hub, ""), &weights()[..100]).unwrap();
    assert_had(&hub);
}
