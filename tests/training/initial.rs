use super::*;

/// A finished run, and the settings of one that starts from its model.
fn runs() -> (Case, Case) {
    let mut first = Case::new();
    first.config.steps = 20;
    first.run().unwrap();
    let mut second = Case::new();
    second.config.steps = 20;
    second.config.init = Some(first.config.out.clone());
    (first, second)
}

#[test]
fn a_run_starts_from_the_weights_and_the_tokenizer_of_a_checkpoint() {
    let (first, mut second) = runs();
    let best = load_state(&state_path(&first.config.out)).unwrap();
    let best = best.progress.best.unwrap();
    // Another text, on which another tokenizer would have been trained.
    fs::write(&second.config.data[0], text(900)).unwrap();
    second.config.vocab_size = None;
    let mut validations = Vec::new();
    let trainer = train::run(second.config.clone(), &NEVER, |event| {
        if let Event::Validated(validation) = event {
            validations.push(validation.nats_per_token);
        }
    })
    .unwrap();
    assert!(
        (validations[0] / best - 1.0).abs() < 1e-6,
        "{validations:?} {best}"
    );
    assert!(validations[1] < best, "{validations:?} {best}");
    assert_eq!(trainer.shape().vocab, 300);
    let vocabulary = |case: &Case| json(&case.config.out.join("tokenizer.json"))["model"].clone();
    assert_eq!(vocabulary(&second), vocabulary(&first));

    // Resumed, it goes on from its own weights.
    second.config.resume = true;
    second.config.new_lr_schedule = true;
    second.config.steps = 25;
    assert_eq!(second.run().unwrap().progress().step, 25);
    second.config.init = None;
    second.config.steps = 30;
    let error = second.fails();
    assert!(error.contains("cannot resume: init was Some("), "{error}");
}

#[test]
fn a_resumed_run_needs_its_initial_checkpoint_no_more() {
    let (first, mut second) = runs();
    let command = |steps: &str, init: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
        command
            .args(["train", "--batch", "2", "--steps", steps, "--init"])
            .arg(init)
            .arg("--data")
            .arg(&second.config.data[0])
            .arg("--valid")
            .arg(&second.config.valid)
            .arg("--out")
            .arg(&second.config.out);
        command
    };
    let done = |mut command: Command| {
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    };
    done(command("2", &first.config.out));
    // The same checkpoint by another path, and none at all.
    let name = first.config.out.file_name().unwrap();
    let mut resumed = command("3", &first.config.out.join("..").join(name));
    resumed.args(["--resume", "--new-lr-schedule"]);
    done(resumed);
    fs::remove_dir_all(&first.config.out).unwrap();
    let mut resumed = command("4", &first.config.out);
    resumed.args(["--resume", "--new-lr-schedule"]);
    done(resumed);
    let state = load_state(&state_path(&second.config.out)).unwrap();
    assert_eq!(state.progress.step, 4);

    second.config.resume = true;
    second.config.out = second.path("elsewhere");
    let mut nowhere = second.command();
    nowhere.arg("--resume").arg("--init").arg(&first.config.out);
    let stderr = nowhere.output().unwrap().stderr;
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(
        stderr.contains("holds no training state to resume"),
        "{stderr}"
    );
}

#[test]
fn the_shape_of_a_checkpoint_need_not_be_repeated() {
    let (first, second) = runs();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
    command
        .args(["train", "--steps", "1", "--batch", "2", "--init"])
        .arg(&first.config.out)
        .arg("--data")
        .arg(&second.config.data[0])
        .arg("--valid")
        .arg(&second.config.valid)
        .arg("--out")
        .arg(&second.config.out);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let [of_first, of_second] =
        [&first, &second].map(|case| json(&case.config.out.join("config.json")));
    assert_eq!(of_first, of_second);
}

#[test]
fn a_checkpoint_of_another_network_or_vocabulary_is_refused() {
    let (first, good) = runs();
    type Change = fn(&mut TrainConfig);
    let changes: [(&str, Change); 6] = [
        ("layers is 3; allowed: 2, as the checkpoint", |c| {
            c.layers = 3
        }),
        ("hidden is 64; allowed: 32", |c| c.hidden = 64),
        ("heads is 4; allowed: 2", |c| c.heads = 4),
        ("mlp-hidden is 64; allowed: 128", |c| {
            c.mlp_hidden = Some(64)
        }),
        ("tie-head is true; allowed: false", |c| c.tie_head = true),
        ("vocab-size is 301; allowed: 300", |c| {
            c.vocab_size = Some(301)
        }),
    ];
    let mut case = Case::new();
    for (expected, change) in changes {
        case.config.init = good.config.init.clone();
        change(&mut case.config);
        let error = case.fails();
        assert!(error.contains(expected), "{error}");
        assert!(!case.config.out.exists(), "nothing is written");
        case.config = Case::new().config;
    }

    let mut other = Case::new();
    other.config.steps = 1;
    other.config.vocab_size = Some(310);
    other.run().unwrap();
    case.config = good.config.clone();
    case.config.tokenizer = Some(other.config.out.join("tokenizer.json"));
    let error = case.fails();
    assert!(
        error.contains("init: cannot start") && error.contains("another vocabulary"),
        "{error}"
    );

    // What is in the directory.
    case.config = good.config.clone();
    let directory = first.config.out.clone();
    let config = directory.join("config.json");
    let whole = json(&config);
    type Edit = fn(&mut Value);
    let changes: [(&str, Edit); 4] = [
        ("a dream model", |c| {
            c["architectures"] = serde_json::json!(["DreamModel"])
        }),
        ("n_kv_heads is 1", |c| c["n_kv_heads"] = 1.into()),
        ("mask_token_id", |c| c["mask_token_id"] = 7.into()),
        ("300 tokens and its network 304", |c| {
            c["embedding_size"] = 304.into()
        }),
    ];
    for (expected, change) in changes {
        let mut changed = whole.clone();
        change(&mut changed);
        if expected.contains("dream") {
            let dream =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/dream/config.json");
            changed = json(&dream);
        }
        fs::write(&config, changed.to_string()).unwrap();
        let error = case.fails();
        assert!(
            error.contains("init: cannot start") && error.contains(expected),
            "{error}"
        );
    }
    fs::write(&config, whole.to_string()).unwrap();
    fs::write(directory.join("model.safetensors"), "none").unwrap();
    let error = case.fails();
    assert!(error.contains("model.safetensors: not a valid"), "{error}");
    case.config.init = Some(case.path("nowhere"));
    let error = case.fails();
    assert!(
        error.contains("init: cannot start from") && error.contains("nowhere"),
        "{error}"
    );
}
