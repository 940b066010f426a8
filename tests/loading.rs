//! Loading a checkpoint: made-up weights, checks of stored ones, number formats.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use support::{forward_goldens, golden, logits, max_difference};
use unmask::models::{Checkpoint, Denoiser, RaggedBatch, Segment, WeightFormat};

/// Goldens of every family whose logits depend on tokens alone.
const FAMILIES: [&str; 8] = [
    "llada",
    "llada_moe",
    "llada2_moe",
    "llada21",
    "dream",
    "sdar",
    "a2d_qwen3",
    "mdlm",
];

fn unmask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(arguments)
        .args(["--device", "cpu"])
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn dummy(name: &str) -> Box<dyn Denoiser> {
    let checkpoint = Checkpoint::open_dummy(&golden(name).join("config.json")).unwrap();
    checkpoint.load(DType::F32, &Device::Cpu).unwrap()
}

/// Logits `[rows, V]` of one segment.
fn forward(model: &dyn Denoiser, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut batch = RaggedBatch::new();
    batch.push(tokens.iter().copied());
    let hidden = model.hidden(&batch, None).unwrap();
    model.head(&hidden).unwrap().to_vec2().unwrap()
}

#[test]
fn made_up_weights_are_the_same_every_time_and_give_finite_logits() {
    for family in FAMILIES {
        let tokens = [1, 2, 3, 4, 5];
        let first = forward(&*dummy(family), &tokens);
        assert!(first.iter().flatten().all(|x| x.is_finite()), "{family}");
        assert!(first[0] != first[1], "{family}");
        assert_eq!(first, forward(&*dummy(family), &tokens), "{family}");
    }
}

#[test]
fn a_config_json_alone_is_enough_to_generate() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/a2d_qwen3/config.json");
    let config = config.display().to_string();
    let arguments = [
        "generate",
        "--load-format",
        "dummy",
        "--model",
        &config,
        "ab",
        "--gap",
        "3",
    ];
    let output = unmask(&[&arguments[..], &["--ids"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let ids = String::from_utf8(output.stdout).unwrap();
    assert!(ids.starts_with("97,98,"), "{ids}");
    assert_eq!(ids.split(',').count(), 5, "{ids}");

    let output = unmask(&["generate", "--load-format", "dummy", "ab"]);
    assert!(stderr(&output).contains("--model has to name a config.json"));
    let output = unmask(&[
        "inspect",
        "--check",
        "--load-format",
        "dummy",
        "--model",
        &config,
    ]);
    assert!(stderr(&output).contains("--load-format dummy has none"));
}

#[test]
fn a_mask_token_that_no_file_names_is_the_last_token_and_said_to_stand_in() {
    let config = golden("llada2_moe").join("config.json");
    let mut json = support::json(&config);
    json["mask_token_id"] = serde_json::Value::Null;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let checkpoint = Checkpoint::open_dummy(folder.path()).unwrap();
    let spec = checkpoint.spec().unwrap();
    assert_eq!(spec.mask_token(), Some(spec.vocab_size as u32 - 1));
    assert!(checkpoint.mask_stands_in());
    assert!(
        !Checkpoint::open_dummy(&golden("llada"))
            .unwrap()
            .mask_stands_in()
    );
}

/// A copy of the golden LLaDA checkpoint in which some values of a tensor are `values`.
fn broken(tensor: &str, values: &[f32]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(golden("llada").join(file), folder.path().join(file)).unwrap();
    }
    let bytes = std::fs::read(golden("llada").join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            if name == tensor {
                for (i, value) in values.iter().enumerate() {
                    data[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes());
                }
            }
            (name.to_owned(), view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let file = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
    folder
}

#[test]
fn inspect_check_names_file_tensor_and_number_of_values_that_are_not_finite() {
    let golden = golden("llada").display().to_string();
    let output = unmask(&["inspect", "--check", "--model", &golden]);
    assert!(output.status.success(), "{}", stderr(&output));

    let tensor = "model.transformer.blocks.1.ff_norm.weight";
    let folder = broken(
        tensor,
        &[f32::NAN, f32::INFINITY, f32::NAN, f32::NEG_INFINITY, 1.0],
    );
    let path = folder.path().display().to_string();
    let output = unmask(&["inspect", "--check", "--model", &path]);
    assert!(!output.status.success() && output.stdout.is_empty());
    let expected = format!(
        "weights that are not finite numbers, 4 in all:\n{path}/model.safetensors: tensor {tensor} holds 2 NaN and 2 \
         infinite values of 64"
    );
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    // Without --check nothing is read.
    assert!(unmask(&["inspect", "--model", &path]).status.success());
}

#[test]
fn a_tensor_of_integers_is_not_taken_for_weights() {
    let tensor = "model.transformer.blocks.1.ff_norm.weight";
    let folder = broken(tensor, &[]);
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let views = tensors.iter().map(|(name, view)| {
        let dtype = match name == tensor {
            true => Dtype::I32,
            false => view.dtype(),
        };
        let shape = view.shape().to_vec();
        (
            name.to_owned(),
            TensorView::new(dtype, shape, view.data()).unwrap(),
        )
    });
    let views: Vec<_> = views.collect();
    safetensors::serialize_to_file(views, None, &file.with_extension("new")).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    let path = folder.path().display().to_string();
    for arguments in [
        &["inspect", "--check", "--model", &path][..],
        &["generate", "a", "--gap", "2", "--model", &path],
    ] {
        let output = unmask(arguments);
        assert!(!output.status.success());
        let expected = format!("tensor {tensor} is of type I32; allowed: F32");
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    }
}

#[test]
fn a_checkpoint_of_pickle_files_alone_is_refused_with_what_to_do() {
    let folder = broken("", &[]);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("pytorch_model.bin"), b"\x80\x02").unwrap();
    let path = folder.path().display().to_string();
    let output = unmask(&["inspect", "--model", &path]);
    assert!(!output.status.success());
    let says = "pytorch_model.bin is a pickle file, which is never opened";
    assert!(stderr(&output).contains(says), "{}", stderr(&output));
}

/// `unmask serve` ends by itself only where it refuses the model.
#[test]
fn broken_text_files_are_refused_alike_by_inspect_generate_and_serve() {
    let tokenizer = std::fs::read(golden("llada").join("tokenizer.json")).unwrap();
    let template = r#"{"chat_template": "{% if %}"}"#.as_bytes();
    for (file, content, says) in [
        ("tokenizer.json", &b""[..], "tokenizer.json: not valid JSON"),
        (
            "tokenizer.json",
            &tokenizer[..tokenizer.len() / 2],
            "tokenizer.json: not valid JSON",
        ),
        (
            "tokenizer_config.json",
            b"{",
            "tokenizer_config.json: not a JSON object",
        ),
        (
            "tokenizer_config.json",
            template,
            "the model's chat template cannot be read",
        ),
        (
            "chat_template.jinja",
            b"{% for message in messages %}",
            "the model's chat template cannot be read",
        ),
    ] {
        let folder = broken("", &[]);
        std::fs::write(folder.path().join(file), content).unwrap();
        let path = folder.path().display().to_string();
        for command in [
            &["inspect"][..],
            &["inspect", "--check"],
            &["generate", "a", "--gap", "2"],
            &["serve", "--port", "0"],
        ] {
            let output = unmask(&[command, &["--model", &path]].concat());
            let error = stderr(&output);
            assert!(!output.status.success(), "{file}: {command:?}");
            assert!(error.contains(says), "{file}: {command:?}: {error}");
        }
    }
}

#[test]
fn inspect_says_what_texts_are_read_with_and_what_is_not_read() {
    let inspect = |path: &Path, more: &[&str]| {
        let path = path.display().to_string();
        let output = unmask(&[&["inspect", "--model", &path], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&inspect(path, &["--json"])).unwrap()
    };
    let folder = broken("", &[]);
    let said = inspect(folder.path(), &["--check"]);
    assert!(said.contains(" tokens by tokenizer.json\n"), "{said}");
    assert!(said.contains("chat template  none\n"), "{said}");
    assert!(!said.contains("not read"), "{said}");
    let told = json(&golden("llada"));
    assert_eq!(told["tokenizer"]["files"][0], "tokenizer.json");
    assert!(told["tokenizer"]["tokens"].as_u64().unwrap() <= 512);
    assert_eq!(told["chat_template"], true);

    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let options = r#"{"temperature": "hot", "top_p": "x", "top_k": null}"#;
    std::fs::write(folder.path().join("generation_config.json"), options).unwrap();
    let said = inspect(folder.path(), &["--check"]);
    assert!(
        said.contains("tokenizer      none; it cannot be served"),
        "{said}"
    );
    let unread = "not read       of generation_config.json: temperature, top_p\n";
    assert!(said.contains(unread), "{said}");
    let told = json(folder.path());
    assert!(told["tokenizer"].is_null(), "{told}");
    let unread = serde_json::json!(["temperature", "top_p"]);
    assert_eq!(told["generation_config_unread"], unread);
}

#[test]
fn a_generation_config_that_is_no_object_is_refused() {
    let folder = broken("", &[]);
    std::fs::write(folder.path().join("generation_config.json"), "[]").unwrap();
    let path = folder.path().display().to_string();
    let output = unmask(&["inspect", "--model", &path]);
    assert!(!output.status.success());
    let expected = "generation_config.json: it is no JSON object";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
}

/// Relative to the logits' standard deviation; the root of the mean square over all logits, since the
/// goldens' random weights are large and make a single logit of an unlucky row jump. A mixture of experts is
/// allowed more: a row between two experts goes to the other one.
#[test]
fn logits_with_rounded_weights_are_within_a_stated_part_of_a_deviation_of_f32() {
    let formats = [
        (WeightFormat::Float(DType::F16), 0.005, 0.05),
        (WeightFormat::Float(DType::BF16), 0.03, 0.2),
        (WeightFormat::Q8_0, 0.1, 0.3),
    ];
    for family in FAMILIES {
        let checkpoint = Checkpoint::open(&golden(family)).unwrap();
        let load = |format: WeightFormat| checkpoint.load(format, &Device::Cpu).unwrap();
        let longest = checkpoint.spec().unwrap().max_canvas as u32;
        let tokens: Vec<u32> = (0..longest.min(40)).map(|i| (i * 37 + 11) % 400).collect();
        let exact = forward(&*load(DType::F32.into()), &tokens).concat();
        let has_experts = ["llada_moe", "llada2_moe", "llada21"].contains(&family);
        let mean_square = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|x| f64::from(x).powi(2)).sum::<f64>() / exact.len() as f64
        };
        let mean = exact.iter().sum::<f32>() / exact.len() as f32;
        let variance = mean_square(&mut exact.iter().map(|x| x - mean));
        for (format, of_dense, of_experts) in formats {
            let rounded = forward(&*load(format), &tokens).concat();
            let error = mean_square(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b));
            let off = (error / variance).sqrt();
            let bound = if has_experts { of_experts } else { of_dense };
            assert!(off > 0.0, "{family}, {format:?}: nothing is rounded");
            assert!(off < bound, "{family}, {format:?}: {off}");
        }
    }
}

#[test]
fn rows_with_rounded_weights_do_not_depend_on_the_batch() {
    let formats = [DType::BF16.into(), WeightFormat::Q8_0];
    let families = ["llada", "a2d_qwen3", "dream"];
    for (family, format) in families
        .iter()
        .flat_map(|family| formats.map(|f| (*family, f)))
    {
        let checkpoint = Checkpoint::open(&golden(family)).unwrap();
        let model = checkpoint.load(format, &Device::Cpu).unwrap();
        let sequences: Vec<Vec<u32>> = [5usize, 1, 17, 64]
            .iter()
            .map(|length| (0..*length as u32).map(|i| (i * 31 + 7) % 400).collect())
            .collect();
        let mut batch = RaggedBatch::new();
        for tokens in &sequences {
            let positions: Vec<u32> = (0..tokens.len() as u32).collect();
            batch.push_segment(tokens, &positions, Segment::default());
        }
        let hidden = model.hidden(&batch, None).unwrap();
        let together: Vec<Vec<f32>> = model.head(&hidden).unwrap().to_vec2().unwrap();
        let alone = sequences.iter().flat_map(|tokens| forward(&*model, tokens));
        for (row, (together, alone)) in together.iter().zip(alone).enumerate() {
            let difference = together
                .iter()
                .zip(&alone)
                .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(
                difference < 1e-4,
                "{family}, {format:?}, row {row}: {difference}"
            );
        }
    }
}

#[test]
fn a_linear_layer_of_a_width_that_is_no_multiple_of_32_is_not_quantised() {
    // 32 does not divide the MLP's width of 40.
    let mut json = support::json(&golden("llada").join("config.json"));
    json["d_model"] = 64.into();
    json["mlp_hidden_size"] = 40.into();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let checkpoint = Checkpoint::open_dummy(folder.path()).unwrap();
    let bytes = |format: WeightFormat| checkpoint.weight_bytes(format).unwrap();
    let (layers, vocab) = (json["n_layers"].as_u64().unwrap() as usize, 512);
    let kv = json["n_kv_heads"].as_u64().unwrap() * 64 / json["n_heads"].as_u64().unwrap();
    let quantized = layers * (2 * 64 * 64 + 2 * 64 * kv as usize + 2 * 64 * 40) + 64 * vocab;
    let saved = quantized * 4 - quantized / 32 * 34;
    assert_eq!(bytes(DType::F32.into()) - bytes(WeightFormat::Q8_0), saved);
    let model = checkpoint.load(WeightFormat::Q8_0, &Device::Cpu).unwrap();
    assert!(
        forward(&*model, &[1, 2, 3])
            .iter()
            .flatten()
            .all(|x| x.is_finite())
    );
}

/// The head of a tied model is the embedding, which stays f32, and has an 8-bit copy.
#[test]
fn a_tied_head_is_quantised_beside_its_embedding() {
    let mut json = support::json(&golden("a2d_qwen3").join("config.json"));
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = |tied: bool| {
        json["tie_word_embeddings"] = tied.into();
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        let checkpoint = Checkpoint::open_dummy(folder.path()).unwrap();
        checkpoint.weight_bytes(WeightFormat::Q8_0).unwrap()
    };
    assert_eq!(bytes(true), bytes(false));
}

#[test]
fn shards_load_as_the_whole_does_and_report_every_byte() {
    let whole = Checkpoint::open(&golden("llada")).unwrap();
    let sharded = Checkpoint::open(&golden("llada").join("sharded")).unwrap();
    let read = std::cell::Cell::new(0);
    let count = |bytes| read.set(read.get() + bytes);
    let model = sharded
        .load_with_progress(DType::F32, &Device::Cpu, &count)
        .unwrap();
    assert_eq!(read.get(), sharded.stored_bytes().unwrap());
    let goldens = forward_goldens("llada");
    let input = &goldens["case0.input_ids"];
    let rows = vec![None; input.dim(0).unwrap()];
    let whole = whole.load(DType::F32, &Device::Cpu).unwrap();
    let difference = max_difference(
        &logits(&*model, input, None, &rows),
        &logits(&*whole, input, None, &rows),
    );
    assert_eq!(difference, 0.0);
}
