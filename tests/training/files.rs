use super::*;

#[test]
fn a_model_that_is_not_of_a_run_is_not_overwritten() {
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ] {
        let mut case = Case::new();
        case.config.steps = 1;
        fs::create_dir_all(&case.config.out).unwrap();
        let file = case.config.out.join(name);
        fs::write(&file, "a model").unwrap();
        let error = case.fails();
        assert!(error.contains(name) && error.contains("--out"), "{error}");
        let left = files(&case.config.out);
        assert_eq!(left, [(file, b"a model".to_vec())]);
    }
}

#[test]
fn a_failed_write_leaves_the_previous_checkpoint_and_no_part_of_a_new_one() {
    let mut case = Case::new();
    case.config.steps = 20;
    case.run().unwrap();
    let (state, model) = (
        state_path(&case.config.out),
        case.config.out.join("model.safetensors"),
    );
    let read = || [&state, &model].map(|path| fs::read(path).unwrap());
    let before = read();
    let partial = || {
        let mut names = files(&case.config.out).into_iter().map(|(path, _)| path);
        names.find(|path| path.to_string_lossy().ends_with(".partial"))
    };

    // A directory cannot be replaced by a file, on any system.
    let blocked = case.path("blocked");
    fs::create_dir(&blocked).unwrap();
    fs::write(blocked.join("file"), "").unwrap();
    let error = write_atomically(&blocked, b"contents").unwrap_err();
    assert!(error.to_string().contains("blocked"), "{error}");
    assert!(!case.path("blocked.partial").exists());

    // No file may grow beyond 64 blocks of 512 or 1024 bytes: less than a state or a model.
    if cfg!(target_os = "linux") {
        assert!(before.iter().all(|bytes| bytes.len() > 64 * 1024));
        case.config.steps = 40;
        let mut train = case.command();
        train.args(["--resume", "--new-lr-schedule"]);
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""])
            .arg(train.get_program())
            .args(train.get_args())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(stderr.contains("cannot write"), "{stderr}");
        assert!(read() == before, "the checkpoint is intact");
        assert_eq!(partial(), None);
        (case.config.resume, case.config.new_lr_schedule) = (true, true);
        assert_eq!(case.run().unwrap().progress().step, 40);
    }
}

#[test]
fn a_finished_run_is_not_overwritten() {
    let mut case = Case::new();
    case.config.steps = 1;
    case.run().unwrap();
    let before = files(&case.config.out);
    assert!(case.fails().contains("already holds a training run"));
    assert!(files(&case.config.out) == before);
}

#[test]
fn the_exported_directory_is_a_llada_checkpoint_that_has_the_validated_loss() {
    for (tied, dtype) in [(false, ModelDtype::F32), (true, ModelDtype::F16)] {
        let mut case = Case::new();
        case.config.tie_head = tied;
        case.config.dtype = dtype;
        let trainer = case.run().unwrap();
        let out = &case.config.out;

        let config = json(&out.join("config.json"));
        assert_eq!(config["architectures"], serde_json::json!(["LLaDAModelLM"]));
        assert_eq!(config["model_type"], "llada");
        assert_eq!(config["weight_tying"], tied);
        let config: LladaConfig = serde_json::from_value(config).unwrap();
        assert_eq!(
            (config.vocab_size, config.d_model, config.n_layers),
            (300, 32, 2)
        );

        let tensors =
            candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu).unwrap();
        let mut expected = BTreeSet::from(["wte".to_owned(), "ln_f".to_owned()]);
        if !tied {
            expected.insert("ff_out".to_owned());
        }
        for layer in 0..2 {
            let parts = [
                "attn_norm",
                "ff_norm",
                "q_proj",
                "k_proj",
                "v_proj",
                "attn_out",
                "ff_proj",
            ];
            for part in parts.iter().chain(&["up_proj", "ff_out"]) {
                expected.insert(format!("blocks.{layer}.{part}"));
            }
        }
        let expected: BTreeSet<String> = expected
            .iter()
            .map(|name| format!("model.transformer.{name}.weight"))
            .collect();
        assert_eq!(tensors.keys().cloned().collect::<BTreeSet<_>>(), expected);
        assert_eq!(
            tensors["model.transformer.blocks.1.ff_out.weight"].dims(),
            [32, 128]
        );

        // The weights on disk, in another implementation of the network, have the loss reported.
        let weights: Vec<f32> = Layout::new(trainer.shape())
            .parameters
            .iter()
            .flat_map(|parameter| {
                let tensor = tensors[&parameter.name].to_dtype(DType::F32).unwrap();
                tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            })
            .collect();
        let mut network = ComposedNetwork::new(trainer.shape(), &Device::Cpu).unwrap();
        let [batch] = &trainer.data().valid[..] else {
            panic!("16 windows make one batch")
        };
        let loss = network.loss(&weights, batch).unwrap();
        let best = trainer.progress().best.unwrap();
        assert!((loss / best - 1.0).abs() < 5e-3, "{loss} {best}");

        let record = json(&out.join("training.json"));
        assert_eq!(record["valid_nats_per_token"].as_f64(), Some(best));
        let settings = &record["settings"];
        assert_eq!(settings["objective"], "nelbo");
        assert_eq!(settings["seed"].as_u64(), Some(case.config.seed));
        let seen =
            record["step"].as_u64().unwrap() as usize * case.config.batch * case.config.context;
        assert_eq!(record["tokens"].as_u64(), Some(seen as u64));

        let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
        let id = |token: &str| tokenizer.token_to_id(token);
        assert_eq!(id("<|mask|>"), Some(config.mask_token_id));
        assert_eq!(id("<|endoftext|>"), Some(config.eos_token_id[0]));
        assert_eq!(id("<|pad|>"), config.pad_token_id);
        assert_eq!(
            json(&out.join("tokenizer_config.json"))["mask_token"],
            "<|mask|>"
        );
        assert_eq!(
            json(&out.join("special_tokens_map.json"))["eos_token"]["content"],
            "<|endoftext|>"
        );
        assert!(
            fs::read_to_string(out.join("loss.svg"))
                .unwrap()
                .contains("NELBO")
        );
    }
}

#[test]
fn the_config_has_every_field_of_the_official_one() {
    let mut case = Case::new();
    case.config.steps = 1;
    case.run().unwrap();
    let ours = json(&case.config.out.join("config.json"));
    let official = "activation_type alibi alibi_bias_max architectures attention_dropout attention_layer_norm \
        attention_layer_norm_with_affine auto_map bias_for_layer_norm block_group_size block_type d_model \
        embedding_dropout embedding_size eos_token_id flash_attention include_bias include_qkv_bias \
        init_cutoff_factor init_device init_fn init_std input_emb_norm layer_norm_type layer_norm_with_affine \
        mask_token_id max_sequence_length mlp_hidden_size mlp_ratio model_type multi_query_attention n_heads \
        n_kv_heads n_layers pad_token_id precision residual_dropout rms_norm_eps rope rope_full_precision \
        rope_theta scale_logits transformers_version use_cache vocab_size weight_tying";
    let ours: BTreeSet<&str> = ours
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(ours, official.split_whitespace().collect());
}

#[test]
fn two_runs_do_not_write_to_one_directory() {
    let mut case = Case::new();
    case.config.steps = 20;
    let mut refused = Vec::new();
    let mut second = case.config.clone();
    train::run(case.config.clone(), &NEVER, |event| {
        if matches!(event, Event::Saved { .. }) {
            second.resume = true;
            let error = train::run(second.clone(), &NEVER, |_| {}).err().unwrap();
            refused.push(error.to_string());
        }
    })
    .unwrap();
    assert!(!refused.is_empty());
    for error in refused {
        assert!(
            error.contains("is training in") && error.contains("--out"),
            "{error}"
        );
    }
    // The lock ends with its run.
    (second.steps, second.new_lr_schedule) = (30, true);
    train::run(second, &NEVER, |_| {}).unwrap();
}
