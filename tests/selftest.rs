//! What `unmask selftest` checks on a device holds on the CPU, and a golden that is not right is told.

use std::path::{Path, PathBuf};

use candle_core::Device;
use unmask::selftest::goldens::folder::Golden;
use unmask::selftest::goldens::{self, Goldens};
use unmask::selftest::{engine, model};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// A copy of a golden under `name`, each file changed by `edit`.
fn copy_of(
    golden: &str,
    name: &str,
    edit: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>,
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(name);
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(directory().join(golden)).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let file = path.file_name().unwrap().to_str().unwrap();
        if let Some(bytes) = edit(file, std::fs::read(&path).unwrap()) {
            std::fs::write(copy.join(file), bytes).unwrap();
        }
    }
    folder
}

/// The only golden in a folder.
fn only(folder: &tempfile::TempDir) -> Golden {
    let goldens = Goldens::open(folder.path()).unwrap().goldens;
    let [golden] = <[Golden; 1]>::try_from(goldens).unwrap();
    golden
}

fn replaced(file: &str, of: &str, from: &str, to: &str, bytes: Vec<u8>) -> Vec<u8> {
    if file != of {
        return bytes;
    }
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(from), "{file}");
    text.replace(from, to).into_bytes()
}

#[test]
fn logits_and_canvases_of_every_golden_equal_the_official_ones() {
    let found = Goldens::open(&directory()).unwrap();
    let families = [
        "a2d_qwen3",
        "bd3lm",
        "diffusion_gemma",
        "dream",
        "llada",
        "llada21",
        "llada2_moe",
        "llada_moe",
        "mdlm",
        "sdar",
        "sedd_absorb",
        "sedd_uniform",
    ];
    let names: Vec<String> = found.goldens.iter().map(Golden::name).collect();
    for family in families {
        assert!(names.iter().any(|name| name == family), "{names:?}");
    }
    assert!(found.others.contains(&"text".into()), "{:?}", found.others);
    for golden in found.goldens {
        let name = golden.name();
        let logits = goldens::logits(&golden, &Device::Cpu).map(Some);
        let runs = goldens::runs(&golden, &Device::Cpu);
        // The draws of its runs are replayed by the samplers' tests.
        let is_followed = runs.as_ref().is_ok_and(Option::is_some);
        assert!(
            is_followed || name == "diffusion_gemma" || runs.is_err(),
            "{name}"
        );
        for checked in [logits, runs] {
            let seen = checked.unwrap_or_else(|error| panic!("{name}: {error}"));
            println!("{name}: {}", seen.as_deref().unwrap_or("not followed"));
        }
    }
}

#[test]
fn a_golden_of_another_network_or_with_the_cases_of_another_family_does_not_hold() {
    let other = directory().join("dream/forward.safetensors");
    let other = std::fs::read(other).unwrap();
    let from = "\"rms_norm_eps\": 1e-05";
    let folder = copy_of("llada", "llada", |file, bytes| {
        Some(replaced(
            file,
            "config.json",
            from,
            "\"rms_norm_eps\": 0.1",
            bytes,
        ))
    });
    let error = goldens::logits(&only(&folder), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("f32 differs by "), "{error}");

    let folder = copy_of("llada", "llada", |file, bytes| {
        Some(if file == "forward.safetensors" {
            other.clone()
        } else {
            bytes
        })
    });
    let error = goldens::logits(&only(&folder), &Device::Cpu).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("forward.safetensors: of the family llada"),
        "{error}"
    );
    assert!(error.contains("nothing is known"), "{error}");
}

#[test]
fn a_run_that_ends_in_another_canvas_does_not_hold_and_is_named() {
    let folder = copy_of("llada", "llada", |file, bytes| {
        if file != "generate.json" {
            return Some(bytes);
        }
        let mut runs: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let run = runs.as_array_mut().unwrap().iter_mut();
        let run = run.filter(|run| run["name"] == "cfg").last().unwrap();
        let canvases = run["canvas_per_step"].as_array_mut().unwrap();
        let last = canvases.last_mut().unwrap();
        let token = if last[0].is_array() {
            &mut last[0][20]
        } else {
            &mut last[20]
        };
        *token = (token.as_u64().unwrap() ^ 1).into();
        Some(serde_json::to_vec(&runs).unwrap())
    });
    let error = goldens::runs(&only(&folder), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("the run cfg"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_used_is_refused_with_the_reason() {
    let refusal = |folder: &tempfile::TempDir| {
        let golden = only(folder);
        let logits = goldens::logits(&golden, &Device::Cpu).unwrap_err();
        let runs = goldens::runs(&golden, &Device::Cpu).unwrap_err();
        let [logits, runs] = [logits, runs].map(|error| error.to_string());
        assert_eq!(logits, runs);
        logits
    };
    let unknown = copy_of("sdar", "later", |file, bytes| {
        let class = "SDARForCausalLM";
        Some(replaced(file, "config.json", class, "LaterModel", bytes))
    });
    let error = refusal(&unknown);
    assert!(
        error.contains("\"LaterModel\"") && error.contains("known: "),
        "{error}"
    );

    let without = |missing: &'static str| {
        copy_of("mdlm", "mdlm", move |file, bytes| {
            (file != missing).then_some(bytes)
        })
    };
    assert!(refusal(&without("config.json")).contains("config.json"));
    assert!(refusal(&without("model.safetensors")).contains("model.safetensors"));
    let error = goldens::logits(&only(&without("forward.safetensors")), &Device::Cpu);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("forward.safetensors"), "{error}");
    for missing in ["generate.json", "sampler.safetensors"] {
        let error = goldens::runs(&only(&without(missing)), &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
    }

    let empty = tempfile::tempdir().unwrap();
    std::fs::create_dir(empty.path().join("text")).unwrap();
    let error = Goldens::open(empty.path()).err().unwrap().to_string();
    assert!(
        error.contains("no folder of a golden checkpoint"),
        "{error}"
    );
    let error = Goldens::open(&empty.path().join("none")).err().unwrap();
    assert!(error.to_string().contains("cannot read"), "{error}");
}

#[test]
fn the_embedded_model_in_every_format_stays_near_its_logits_in_f32() {
    let seen = model::equals_the_cpu(&Device::Cpu).unwrap();
    println!("{seen}");
    for format in ["f32 0.0e0", "bf16 ", "f16 ", "q8_0 "] {
        assert!(seen.contains(format), "{seen}");
    }
}

#[test]
fn answers_of_the_engine_keep_their_promises_alone_and_among_others() {
    let seen = engine::keeps_its_promises(&Device::Cpu).unwrap();
    println!("{seen}");
    let equal = seen.split("f32 ").nth(1).unwrap();
    let words: Vec<&str> = equal.split(' ').collect();
    assert_eq!(words[0], words[2], "{seen}");
}

#[test]
fn what_answers_of_a_device_are_compared_with_holds_on_the_cpu() {
    let seen = engine::answers_as_the_cpu(&Device::Cpu).unwrap();
    println!("{seen}");
    println!("{}", engine::draws_by_its_logits(&Device::Cpu).unwrap());
}
