use super::*;

#[test]
fn the_command_line_trains_and_says_what_is_wrong() {
    let mut case = Case::new();
    case.config.steps = 2;
    let output = case
        .command()
        .args(["--schedule", "polynomial:-1"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        stderr.contains("--schedule") && stderr.contains("polynomial:-1"),
        "{stderr}"
    );

    for (schedule, says) in [
        ("table:1,1.2,0", "α"),
        ("linear-beta:-1,2", "linear-beta"),
        ("geometric:0,20", "geometric"),
        ("cosine:x", "cosine:x"),
    ] {
        let output = case
            .command()
            .args(["--schedule", schedule])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !case.config.out.exists());
        assert!(
            stderr.contains("--schedule") && stderr.contains(says),
            "{stderr}"
        );
    }

    // What is wrong with a file is said once.
    let output = case
        .command()
        .args(["--tokenizer", "no-such-file"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let reasons = stderr.matches("(os error 2)").count();
    assert!(!output.status.success() && reasons == 1, "{stderr}");

    let mut other = Case::new();
    other.config.steps = 1;
    let options = "--objective cross-entropy --time-sampling uniform --schedule cosine:0.01";
    let output = other.command().args(options.split(' ')).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let saved = load_state(&state_path(&other.config.out)).unwrap().config;
    assert_eq!(saved.objective, Objective::CrossEntropy);
    assert_eq!(saved.time_sampling, TimeSampling::Uniform);
    assert_eq!(saved.schedule, Schedule::cosine(0.01).unwrap());

    let output = case.command().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("step 2/2 loss") && stderr.contains("best validation loss"),
        "{stderr}"
    );
    assert!(stderr.contains("; matrix products at "), "{stderr}");
    assert!(
        stderr.contains(" tokens/s, ") && stderr.contains(" GFLOP/s ("),
        "{stderr}"
    );
    let log = fs::read_to_string(case.config.out.join("log.jsonl")).unwrap();
    let step: Value = serde_json::from_str(log.lines().nth(1).unwrap()).unwrap();
    let number = |field: &str| step[field].as_f64().unwrap();
    assert!(number("operations_per_second") > 0.0);
    assert!(number("product_rate_share") > 0.0, "{step}");

    let output = case.command().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        stderr.contains("already holds a training run; pass --resume"),
        "{stderr}"
    );
}

#[test]
fn the_share_of_the_products_rate_is_the_operations_a_second_over_the_rate_measured() {
    let mut case = Case::new();
    case.config.steps = 3;
    let (mut rate, mut steps) = (None, Vec::new());
    train::run(case.config.clone(), &NEVER, |event| match event {
        Event::Started { product_rate, .. } => rate = Some(*product_rate),
        Event::Step {
            operations_per_second,
            product_rate_share,
            ..
        } => steps.push((*operations_per_second, *product_rate_share)),
        _ => {}
    })
    .unwrap();
    let rate = rate.unwrap();
    assert!(rate.is_finite() && rate > 0.0, "{rate}");
    assert_eq!(steps.len(), 3);
    for (operations, share) in steps {
        assert!(share.is_finite() && share > 0.0, "{share}");
        assert!((share * rate / operations - 1.0).abs() < 1e-12, "{share}");
    }
}

#[test]
fn the_optimiser_and_its_rate_have_defaults_that_a_resumed_run_does_not_change() {
    let settings = |case: &Case, options: &[&str]| {
        // Without the options that every other test gives.
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
        command.arg("train").arg("--data").args(&case.config.data);
        command.arg("--valid").arg(&case.config.valid);
        command.arg("--out").arg(&case.config.out);
        let shape =
            "--vocab-size 300 --context 24 --layers 1 --hidden 16 --heads 1 --batch 2 --steps 1";
        command.args(shape.split(' ')).args(options);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        let config = load_state(&state_path(&case.config.out)).unwrap().config;
        (config.optimizer, config.lr)
    };
    let muon = Case::new();
    assert_eq!(settings(&muon, &[]), (OptimizerKind::Muon, 6e-3));
    assert_eq!(settings(&muon, &["--resume"]), (OptimizerKind::Muon, 6e-3));
    let adamw = Case::new();
    let given = settings(&adamw, &["--optimizer", "adamw"]);
    assert_eq!(given, (OptimizerKind::AdamW, 2e-3));
    assert_eq!(settings(&adamw, &["--resume"]), given);
    let given = Case::new();
    let set = settings(&given, &["--optimizer", "adamw", "--lr", "0.001"]);
    assert_eq!(set, (OptimizerKind::AdamW, 1e-3));
    assert_eq!(settings(&given, &["--resume"]), set);
}

#[test]
fn a_run_is_resumed_by_its_folder_alone() {
    let mut whole = Case::new();
    whole.config.steps = 40;
    assert!(whole.command().output().unwrap().status.success());

    let mut case = Case::new();
    case.config.steps = 40;
    case.config.save_every = 10;
    case.stop_at(10);
    let mut resumed = Command::new(env!("CARGO_BIN_EXE_unmask"));
    resumed
        .arg("train")
        .arg("--out")
        .arg(&case.config.out)
        .arg("--resume");
    let output = resumed.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let model = |case: &Case| fs::read(case.config.out.join("model.safetensors")).unwrap();
    assert!(model(&case) == model(&whole));
}
