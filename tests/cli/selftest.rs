//! `unmask selftest` and `unmask bench`.

use std::path::Path;

use serde_json::Value;

use crate::{refusal, stdout, unmask};

#[test]
fn bench_has_a_floor_for_the_products_that_it_measures_and_says_why_there_is_none_for_others() {
    let bench = |more: &[&str]| {
        let few = "bench --device cpu --gap 2 --requests 1 --concurrency 1";
        let arguments: Vec<&str> = few.split(' ').chain(more.iter().copied()).collect();
        stdout(&arguments)
    };
    let floor = |dtype: &str| {
        let report: Value = serde_json::from_str(&bench(&["--json", "--dtype", dtype])).unwrap();
        report["floor"].clone()
    };
    assert!(floor("f32")["step_ms"].as_f64().unwrap() > 0.0);
    assert!(floor("q8_0").is_null());
    let text = bench(&["--dtype", "q8_0"]);
    assert!(
        text.contains("floor                   not measured: it is for f32"),
        "{text}"
    );
}

#[test]
fn bench_times_completions_at_once_and_leaves_open_what_only_a_gpu_has() {
    let arguments = "bench --device cpu --gap 2 --requests 1 --concurrency 3 --json";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let report: Value = serde_json::from_str(&stdout(&arguments)).unwrap();
    let concurrent = &report["concurrent"];
    assert_eq!(
        (&concurrent["requests"], &concurrent["errors"]),
        (&3.into(), &0.into())
    );
    let [seconds, rate] =
        ["seconds", "tokens_per_second"].map(|name| concurrent[name].as_f64().unwrap());
    let tokens = seconds * rate;
    assert!((1.0..6.0 + 1e-6).contains(&tokens), "{tokens} tokens");
    assert!(report["memory"]["highest_mb"].as_f64().unwrap() > 0.0);
    for of_gpu in ["idle", "device_memory"] {
        assert!(report[of_gpu].is_null(), "{report}");
    }
}

#[test]
fn the_minutes_of_a_selftest_have_a_limit() {
    for minutes in ["10081", "18446744073709551615", "307445734561825861"] {
        let error = refusal(&["selftest", "--device", "cpu", "--soak", minutes]);
        assert!(
            error.contains("--soak <MINUTES>") && error.contains("10080"),
            "{error}"
        );
    }
}

#[test]
fn selftest_without_a_gpu_checks_the_model_and_says_what_it_did_not_run() {
    let report = stdout(&["selftest", "--device", "cpu"]);
    assert!(report.contains("not run  categorical: "), "{report}");
    for passed in [
        "passed   model: logits in every format equal those of the CPU in f32",
        "passed   model: a canvas's logits are the same in any batch",
        "passed   engine: answers keep their promises",
    ] {
        assert!(report.contains(passed), "{report}");
    }
    let families = report.lines().filter(|line| line.contains("--goldens"));
    assert_eq!(families.count(), 1, "{report}");
    assert!(
        report.contains("not run  engine: goes on without memory: "),
        "{report}"
    );
    assert!(report.contains("3 passed, 0 failed"), "{report}");
}

#[test]
fn selftest_checks_the_goldens_it_is_given_and_fails_for_one_it_cannot_use() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(goldens.join(from)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
    };
    copy("sdar", "sdar");
    std::fs::create_dir(folder.path().join("notes")).unwrap();
    let directory = folder.path().to_str().unwrap().to_owned();
    let arguments = ["selftest", "--device", "cpu", "--goldens", &directory];
    let report = stdout(&arguments);
    assert!(report.contains("passed   golden sdar: logits"), "{report}");
    assert!(
        report.contains("passed   golden sdar: canvases"),
        "{report}"
    );
    assert!(report.contains("without a checkpoint: notes"), "{report}");
    copy("sdar", "broken");
    std::fs::remove_file(folder.path().join("broken/config.json")).unwrap();
    let output = unmask(&arguments);
    assert!(!output.status.success());
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(
        report.contains("FAILED   golden broken: logits"),
        "{report}"
    );
    assert!(
        report.contains("passed   golden sdar: canvases"),
        "{report}"
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("2 checks failed"), "{error}");
}
