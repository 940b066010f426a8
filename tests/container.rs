//! Promises of the container's start script.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn write_program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Starts `serve --port 1` where there are builds for `builds`, and `nvidia-smi` does `nvidia_smi`.
fn start(builds: &[u32], nvidia_smi: Option<&str>) -> Output {
    let folder = TempDir::new().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    if let Some(script) = nvidia_smi {
        write_program(&bin.join("nvidia-smi"), script);
    }
    for build in builds {
        let path = folder.path().join(format!("unmask-{build}"));
        write_program(&path, &format!("echo {build} \"$@\""));
    }
    fs::write(folder.path().join("unmask-notes.txt"), "no build").unwrap();
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/start-cuda"))
        .args(["serve", "--port", "1"])
        .env("UNMASK_BUILDS", folder.path())
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .output()
        .unwrap()
}

fn started(builds: &[u32], cards: &str) -> String {
    let output = start(builds, Some(&format!("printf '{cards}'")));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_newest_build_that_the_weakest_card_runs_is_started() {
    let builds = [75, 80, 90, 100];
    for (cards, build) in [
        ("8.0\\n", 80),
        ("8.9\\n", 80),
        ("9.0\\n", 90),
        // Builds for 9.0 and 10.0 run on nothing else.
        ("10.3\\n", 80),
        ("12.0\\n10.0\\n", 100),
    ] {
        assert_eq!(
            started(&builds, cards),
            format!("{build} serve --port 1\n"),
            "{cards}"
        );
    }
}

#[test]
fn it_says_why_no_build_is_started() {
    let older = refusal(start(&[80, 90], Some("echo 7.5")));
    assert!(
        older.contains("builds for compute capabilities 80 90, none of which runs on a card of 75")
    );
    assert!(older.contains("--build-arg COMPUTE_CAPS=75"), "{older}");
    let no_driver = refusal(start(&[80], None));
    assert!(no_driver.contains("--gpus all"), "{no_driver}");
    let failing = refusal(start(&[80], Some("echo broken; exit 9")));
    assert!(failing.contains("--gpus all"), "{failing}");
    let silent = refusal(start(&[80], Some("echo N/A")));
    assert!(
        silent.contains("no compute capability; it says: N/A"),
        "{silent}"
    );
    let empty = refusal(start(&[], Some("echo 8.0")));
    assert!(empty.contains("there is no build in"), "{empty}");
}
