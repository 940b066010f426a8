//! What `unmask train` promises, tested from outside.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use candle_core::{DType, Device};
use serde_json::Value;
use tempfile::TempDir;
use unmask::diffusion::Schedule;
use unmask::models::llada::LladaConfig;
use unmask::train::checkpoint::{load_state, state_path, write_atomically};
use unmask::train::data::Data;
use unmask::train::layout::Layout;
use unmask::train::network::{ComposedNetwork, Network};
use unmask::train::run::Event;
use unmask::train::{
    self, ModelDtype, Objective, Precision, TimeSampling, TrainConfig, TrainDevice, TrainError,
    Trainer,
};

/// Sentences of a small grammar, the same every time; two documents in three languages.
fn text(sentences: usize) -> String {
    let (who, does, what) = (
        ["the cat", "a small dog", "my sister", "der Bär", "le héros"],
        ["sees", "likes", "follows", "paints"],
        ["the moon", "a red ball", "the river", "ein Haus", "l’été"],
    );
    let mut state = 1u64;
    let mut pick = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut text = String::new();
    for i in 0..sentences {
        if i % 40 == 39 {
            text += "\n<|doc|>\n";
        }
        text += &format!("{} {} {}. ", who[pick(5)], does[pick(4)], what[pick(5)]);
    }
    text
}

struct Case {
    directory: TempDir,
    config: TrainConfig,
}

impl Case {
    /// A run of a tiny model that takes about a second.
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("train.txt"), text(1500)).unwrap();
        fs::write(at("valid.txt"), text(300)).unwrap();
        let config = TrainConfig {
            vocab_size: Some(300),
            context: 24,
            layers: 2,
            hidden: 32,
            heads: 2,
            batch: 8,
            steps: 60,
            lr: 5e-3,
            ema: 0.9,
            valid_every: 20,
            valid_windows: 16,
            save_every: 20,
            ..TrainConfig::new(vec![at("train.txt")], at("valid.txt"), at("out"))
        };
        Self { directory, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self) -> Result<Trainer, TrainError> {
        train::run(self.config.clone(), |_| {})
    }

    fn fails(&self) -> String {
        match self.run() {
            Ok(_) => panic!("the run should fail"),
            Err(error) => error.to_string(),
        }
    }

    fn trainer(&self) -> Trainer {
        let data = Data::prepare(&self.config, None).unwrap();
        Trainer::new(self.config.clone(), data).unwrap()
    }

    /// Starts the run and kills it when its log has so many lines.
    fn kill_after(&self, mut command: Command, lines: usize) {
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let log = self.config.out.join("log.jsonl");
        while fs::read_to_string(&log).unwrap_or_default().lines().count() < lines {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Trains so many steps and leaves the run resumable, as if it had been killed.
    fn stop_at(&self, step: u64) {
        let mut trainer = self.trainer();
        for _ in 0..step {
            trainer.step().unwrap();
        }
        fs::create_dir_all(self.config.out.join("state")).unwrap();
        trainer.write_tokenizer(&self.config.out).unwrap();
        trainer.save_state(&self.config.out).unwrap();
    }

    /// The command line of this run.
    fn command(&self) -> Command {
        let config = &self.config;
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
        command.arg("train").arg("--data").args(&config.data);
        command
            .arg("--valid")
            .arg(&config.valid)
            .arg("--out")
            .arg(&config.out);
        for (name, value) in [
            ("vocab-size", config.vocab_size.unwrap().to_string()),
            ("context", config.context.to_string()),
            ("layers", config.layers.to_string()),
            ("hidden", config.hidden.to_string()),
            ("heads", config.heads.to_string()),
            ("batch", config.batch.to_string()),
            ("steps", config.steps.to_string()),
            ("lr", config.lr.to_string()),
            ("ema", config.ema.to_string()),
            ("valid-every", config.valid_every.to_string()),
            ("valid-windows", config.valid_windows.to_string()),
            ("save-every", config.save_every.to_string()),
        ] {
            command.arg(format!("--{name}")).arg(value);
        }
        command
    }
}

/// The log without what depends on the clock.
fn log(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let fields = line.as_object_mut().unwrap();
            fields.remove("seconds");
            fields.remove("tokens_per_second");
            line
        })
        .collect()
}

/// All files below a directory with their contents.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_loss_falls() {
    for precision in [None, Some(Precision::F32)] {
        let mut case = Case::new();
        case.config.precision = precision;
        let mut validations = Vec::new();
        let trainer = train::run(case.config.clone(), |event| {
            if let Event::Validated(validation) = event {
                validations.push(validation.nats_per_token);
            }
        })
        .unwrap();
        assert_eq!(validations.len(), 4);
        // An untrained head of zeros is the uniform distribution.
        assert!(
            (validations[0] / 300f64.ln() - 1.0).abs() < 0.1,
            "{validations:?}"
        );
        assert!(
            validations.windows(2).all(|pair| pair[1] < pair[0]),
            "{validations:?}"
        );
        assert!(validations[3] < 0.7 * validations[0], "{validations:?}");
        assert_eq!(trainer.progress().best, Some(validations[3]));
    }
}

#[test]
fn the_bound_falls_with_every_objective_time_sampling_and_schedule() {
    let changes: [fn(&mut TrainConfig); 5] = [
        |c| c.objective = Objective::CrossEntropy,
        |c| c.time_sampling = TimeSampling::Uniform,
        |c| c.schedule = Schedule::MaskGit,
        |c| c.schedule = Schedule::polynomial(2.0).unwrap(),
        |c| c.schedule = Schedule::geometric(1e-3, 20.0).unwrap(),
    ];
    let reference = Case::new().trainer();
    for (index, change) in changes.iter().enumerate() {
        let mut case = Case::new();
        change(&mut case.config);
        let trainer = case.trainer();
        assert!(
            trainer.data().valid == reference.data().valid,
            "runs compare"
        );
        assert!(
            trainer.data().batch(&case.config, 0) != reference.data().batch(reference.config(), 0),
            "{index} changes what is trained on"
        );
        let best = case.run().unwrap().progress().best.unwrap();
        assert!(best < 0.75 * 300f64.ln(), "{index}: {best}");
        case.config.resume = true;
        case.run().unwrap();
    }
}

#[test]
fn the_objective_weighs_masked_slots_as_it_says() {
    let mut case = Case::new();
    let trainer = case.trainer();
    case.config.objective = Objective::CrossEntropy;
    let batch = trainer.data().batch(&case.config, 3);
    // The untrained network is nearly uniform, so that the mean cross-entropy is nearly ln V.
    let mut network = ComposedNetwork::new(trainer.shape(), &Device::Cpu).unwrap();
    let loss = network.loss(trainer.weights(), &batch).unwrap();
    assert!((loss / 300f64.ln() - 1.0).abs() < 0.02, "{loss}");

    // The weights of masked slots sum to one a token, in expectation and whatever the schedule:
    // ∫ w (1 − α) dt = α(0) − α(1).
    case.config.objective = Objective::Nelbo;
    case.config.batch = 4096;
    for schedule in ["log-linear", "maskgit", "cosine", "polynomial:3"] {
        case.config.schedule = schedule.parse().unwrap();
        let batch = trainer.data().batch(&case.config, 0);
        let context = batch.context;
        let sum: f64 = batch
            .masked
            .iter()
            .map(|&slot| f64::from(batch.weights[slot as usize / context]))
            .sum();
        let mean = sum / batch.tokens() as f64;
        assert!((mean - 1.0).abs() < 0.05, "{schedule}: {mean}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let first = Case::new();
    let mut second = Case::new();
    let mut third = Case::new();
    third.config.seed = 1;
    second.config.valid_every = 30;
    let weights = [&first, &second, &third].map(|case| case.run().unwrap().weights().to_vec());
    assert!(
        weights[0] == weights[1],
        "validation does not disturb training"
    );
    assert!(weights[0] != weights[2]);
}

#[test]
fn a_run_killed_at_any_moment_resumes_to_the_same_curve_bit_for_bit() {
    let whole = Case::new();
    let expected = whole.run().unwrap();

    let mut killed = Case::new();
    for lines in [1, 30, 55] {
        let mut command = killed.command();
        if state_path(&killed.config.out).exists() {
            command.arg("--resume");
        }
        killed.kill_after(command, lines);
    }
    killed.config.resume = true;
    let resumed = killed.run().unwrap();
    assert!(resumed.weights() == expected.weights());
    assert!(resumed.average() == expected.average());
    assert_eq!(log(&killed.config.out), log(&whole.config.out));
    let model = |case: &Case| fs::read(case.config.out.join("model.safetensors")).unwrap();
    assert!(model(&killed) == model(&whole));
}

#[test]
fn a_run_resumed_with_other_cadences_keeps_the_best_model_and_its_loss() {
    let mut case = Case::new();
    (case.config.save_every, case.config.valid_every) = (40, 20);
    // The start, 20 steps and their validation, and a few steps on: step 20 is no save of the schedule.
    case.kill_after(case.command(), 1 + 20 + 1 + 3);
    let best = || -> Vec<(u64, f64)> {
        let lines = log(&case.config.out);
        let best = lines.iter().filter(|line| line["best"] == true);
        best.map(|line| {
            let loss = line["valid_nats_per_token"].as_f64().unwrap();
            (line["step"].as_u64().unwrap(), loss)
        })
        .collect()
    };
    let state = load_state(&state_path(&case.config.out)).unwrap();
    let reached = state.progress.step;
    assert!(reached >= 20, "saved with the best model of step 20");
    let mut before = best();
    before.retain(|(step, _)| *step <= reached);
    let (_, loss) = *before.last().unwrap();
    let saved = state.progress.best.unwrap();
    assert!((saved - loss).abs() < 1e-12, "{saved} {loss}");

    // Other steps are validated now, and what is worse than the best before must not replace it.
    let mut config = case.config.clone();
    (config.resume, config.valid_every) = (true, 7);
    let mut lowest = saved;
    train::run(config, |event| {
        if let Event::Validated(validation) = event {
            assert_eq!(validation.best, validation.nats_per_token < lowest);
            lowest = lowest.min(validation.nats_per_token);
        }
    })
    .unwrap();
    let state = load_state(&state_path(&case.config.out)).unwrap();
    assert_eq!(state.progress.best, Some(lowest));
    assert!(best().starts_with(&before));
}

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
fn a_line_of_the_log_that_cannot_be_read_is_reported_and_one_cut_off_is_repeated() {
    let mut case = Case::new();
    case.config.steps = 20;
    case.run().unwrap();
    case.config.resume = true;
    let path = case.config.out.join("log.jsonl");
    let good = fs::read_to_string(&path).unwrap();
    let damaged = good.replacen("\"lr\"", "\"\"", 1);
    assert!(damaged != good);
    fs::write(&path, &damaged).unwrap();
    let error = case.fails();
    assert!(error.contains("log.jsonl is damaged: line 2"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    fs::write(&path, good.clone() + "{\"step\":21,\"lo").unwrap();
    case.run().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), good);
}

#[test]
fn moving_text_from_training_to_validation_is_other_data() {
    let case = Case::new();
    let given = case.trainer().data().tokenizer.clone();
    let fingerprint = |train: &[&str], valid: &[&str]| {
        let long = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| text.repeat(9)).collect();
            texts.join("\n<|doc|>\n")
        };
        fs::write(&case.config.data[0], long(train)).unwrap();
        fs::write(&case.config.valid, long(valid)).unwrap();
        let data = Data::prepare(&case.config, Some(given.clone())).unwrap();
        data.fingerprint
    };
    let (a, b, c) = ("the cat sees the river. ", "my sister. ", "le héros. ");
    let first = fingerprint(&[a, b], &[c]);
    assert_eq!(first, fingerprint(&[a, b], &[c]));
    assert_ne!(first, fingerprint(&[a], &[b, c]));
}

#[test]
fn a_tokenizer_that_no_model_can_use_is_refused() {
    let mut case = Case::new();
    case.config.steps = 1;
    case.run().unwrap();
    let good = json(&case.config.out.join("tokenizer.json"));
    case.config.out = case.path("second");
    case.config.vocab_size = None;
    let file = case.path("tokenizer.json");
    case.config.tokenizer = Some(file.clone());
    let fails = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut bad = good.clone();
        change(bad["model"]["vocab"].as_object_mut().unwrap());
        fs::write(&file, bad.to_string()).unwrap();
        case.run().map(|_| ()).unwrap_err()
    };
    let vocabulary = good["model"]["vocab"].as_object().unwrap();
    let last = vocabulary.iter().find(|(_, id)| **id == 299).unwrap().0;

    let hole = fails(&|vocab| vocab[last] = 400.into());
    assert!(
        matches!(
            hole,
            TrainError::TokenizerIds {
                tokens: 300,
                largest_id: 400,
                ..
            }
        ),
        "{hole}"
    );
    assert!(hole.to_string().contains("0 to 299"), "{hole}");
    let words = fails(&|vocab| {
        vocab.insert("▁word".into(), 300.into());
    });
    assert!(words.to_string().contains("not byte-level"), "{words}");
    let letter = fails(&|vocab| {
        let id = vocab.remove("~").unwrap();
        vocab.insert("~~".into(), id);
    });
    assert!(letter.to_string().contains("the byte 0x7e"), "{letter}");
}

#[test]
fn a_resumption_with_other_settings_or_data_is_refused_and_leaves_the_run_intact() {
    let mut case = Case::new();
    case.config.steps = 20;
    case.run().unwrap();
    case.config.resume = true;
    let before = files(&case.config.out);
    let good = case.config.clone();
    type Change = fn(&mut TrainConfig);
    let changes: [(&str, Change); 12] = [
        (
            "vocab-size was 300 when the run was saved and is 320 now",
            |c| c.vocab_size = Some(320),
        ),
        ("hidden was 32 when the run was saved and is 64 now", |c| {
            c.hidden = 64
        }),
        ("layers", |c| c.layers = 3),
        ("context", |c| c.context = 16),
        ("tie-head", |c| c.tie_head = true),
        ("lr", |c| c.lr = 1e-3),
        ("steps", |c| c.steps = 30),
        ("dtype was F32 when the run was saved and is F16 now", |c| {
            c.dtype = ModelDtype::F16
        }),
        ("objective", |c| c.objective = Objective::CrossEntropy),
        ("time-sampling", |c| c.time_sampling = TimeSampling::Uniform),
        (
            "schedule was \"log-linear\" when the run was saved and is \"maskgit\" now",
            |c| c.schedule = Schedule::MaskGit,
        ),
        ("the data", |c| c.data = vec![c.valid.clone()]),
    ];
    for (expected, change) in changes {
        case.config = good.clone();
        change(&mut case.config);
        let error = case.fails();
        assert!(
            error.contains("cannot resume") && error.contains(expected),
            "{error}"
        );
        assert!(
            files(&case.config.out) == before,
            "{expected}: the run is intact"
        );
    }
    case.config = good;
    case.run().unwrap();
}

#[test]
fn a_run_may_be_extended_or_shortened_when_a_new_lr_schedule_is_asked_for() {
    let mut case = Case::new();
    case.config.steps = 20;
    case.run().unwrap();
    case.config.resume = true;
    case.config.new_lr_schedule = true;
    case.config.steps = 40;
    let extended = case.run().unwrap();
    assert_eq!(extended.progress().step, 40);
    case.config.steps = 50;
    case.config.layers = 3;
    assert!(case.fails().contains("layers"));

    let mut case = Case::new();
    case.stop_at(10);
    case.config.resume = true;
    case.config.new_lr_schedule = true;
    for steps in [9, 10] {
        case.config.steps = steps;
        let error = case.fails();
        assert!(
            error.contains(&format!("steps is {steps};")) && error.contains("more than 10"),
            "{error}"
        );
    }
    case.config.steps = 15;
    assert_eq!(case.run().unwrap().progress().step, 15);
    let lines = log(&case.config.out);
    let rate = lines.iter().rev().find_map(|line| line["lr"].as_f64());
    let floor = case.config.lr * case.config.min_lr_ratio;
    assert!(
        (rate.unwrap() / floor - 1.0).abs() < 1e-9,
        "{rate:?} {floor}"
    );
}

#[test]
fn a_damaged_state_is_refused() {
    let mut case = Case::new();
    case.config.steps = 20;
    case.run().unwrap();
    case.config.resume = true;
    let path = state_path(&case.config.out);
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for bad in [&flipped[..], &good[..good.len() - 8], &good[..5], b""] {
        fs::write(&path, bad).unwrap();
        let error = case.fails();
        assert!(error.contains("state.safetensors is damaged"), "{error}");
    }
    fs::write(&path, &good).unwrap();
    case.run().unwrap();
}

#[test]
fn bad_input_is_refused_with_its_reason() {
    let case = Case::new;
    let check = |case: Case, expected: &[&str]| {
        let error = case.fails();
        for part in expected {
            assert!(error.contains(part), "{error:?} should contain {part:?}");
        }
    };

    let empty = case();
    fs::write(&empty.config.data[0], "\n<|doc|>\n  \n").unwrap();
    check(empty, &["train.txt", "no documents"]);

    let binary = case();
    let mut bytes = text(3).into_bytes();
    bytes[17] = 0xff;
    fs::write(&binary.config.valid, bytes).unwrap();
    check(binary, &["valid.txt", "not UTF-8", "offset 17"]);

    let mut compressed = case();
    compressed.config.data = vec![compressed.path("train.txt.zst")];
    let bytes = zstd::encode_all(text(100).as_bytes(), 3).unwrap();
    fs::write(&compressed.config.data[0], &bytes[..bytes.len() / 2]).unwrap();
    check(compressed, &["cannot decompress", "train.txt.zst"]);

    let mut missing = case();
    missing.config.data.push(missing.path("nowhere.txt"));
    check(missing, &["cannot read", "nowhere.txt"]);

    let mut small = case();
    small.config.vocab_size = Some(200);
    check(small, &["vocab-size is 200", "259"]);

    let mut large = case();
    large.config.vocab_size = Some(5000);
    check(
        large,
        &["vocab-size is 5000", "tokens only", "use --vocab-size"],
    );

    let mut long = case();
    fs::write(&long.config.data[0], text(500)).unwrap();
    long.config.context = 8192;
    check(long, &["the training text is", "one window of 8192"]);

    let mut longer = case();
    longer.config.context = 8193;
    check(longer, &["context is 8193; allowed: 2 to 8192"]);

    let mut wide = case();
    (wide.config.batch, wide.config.grad_accumulation) = (1 << 16, 1 << 14);
    check(
        wide,
        &["batch is 65536 (with grad-accumulation 16384 and context 24)"],
    );

    let mut half = case();
    half.config.device = TrainDevice::Cuda(0);
    half.config.precision = Some(Precision::Bf16);
    check(half, &["precision is bf16; allowed: f32", "CUDA"]);

    let mut heads = case();
    heads.config.heads = 3;
    check(heads, &["heads is 3 (with hidden 32)"]);

    let mut steps = case();
    steps.config.steps = 0;
    check(steps, &["steps is 0", "1 to"]);

    let mut nan = case();
    nan.config.lr = f64::NAN;
    check(nan, &["lr is NaN"]);

    let mut device = case();
    device.config.device = TrainDevice::Cuda(0);
    if !candle_core::utils::cuda_is_available() {
        check(device, &["device is cuda:0", "cpu"]);
    }

    let mut unwritable = case();
    fs::write(unwritable.path("file"), "").unwrap();
    unwritable.config.out = unwritable.path("file").join("out");
    check(unwritable, &["cannot create", "file"]);

    let mut nothing = case();
    nothing.config.resume = true;
    check(
        nothing,
        &["no training state to resume", "state.safetensors"],
    );

    let mut tokenizer = case();
    tokenizer.config.tokenizer = Some(tokenizer.path("valid.txt"));
    check(tokenizer, &["tokenizer", "valid.txt"]);
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
fn weights_that_are_no_numbers_stop_the_run() {
    let mut case = Case::new();
    case.config.steps = 1;
    case.run().unwrap();
    let mut state = load_state(&state_path(&case.config.out)).unwrap();
    state.weights[0] = f32::NAN;
    let layout = Layout::new(&state.shape);
    state.weights[layout.final_norm.start] = f32::NAN;
    let data = Data::prepare(&case.config, None).unwrap();
    let mut trainer = Trainer::resume(case.config.clone(), data, state).unwrap();
    assert!(matches!(
        trainer.step(),
        Err(TrainError::Diverged { step: 2, .. })
    ));

    let best = trainer.progress().best;
    let mut state = load_state(&state_path(&case.config.out)).unwrap();
    state.average[layout.final_norm.start] = f32::NAN;
    let data = Data::prepare(&case.config, None).unwrap();
    let mut trainer = Trainer::resume(case.config.clone(), data, state).unwrap();
    let error = trainer.validate().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("diverged at step 1: validation loss NaN"),
        "{error}"
    );
    assert_eq!(trainer.progress().best, best, "the best loss is kept");
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

        let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
        let id = |token: &str| tokenizer.token_to_id(token);
        assert_eq!(id("<|mask|>"), Some(config.mask_token_id));
        assert_eq!(id("<|endoftext|>"), Some(config.eos_token_id));
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
fn a_tokenizer_can_be_taken_from_another_run() {
    let mut first = Case::new();
    first.config.steps = 1;
    first.run().unwrap();
    let mut second = Case::new();
    second.config.steps = 1;
    second.config.vocab_size = None;
    second.config.tokenizer = Some(first.config.out.join("tokenizer.json"));
    assert_eq!(second.run().unwrap().shape().vocab, 300);

    let mut other = Case::new();
    other.config.vocab_size = Some(310);
    other.config.tokenizer = second.config.tokenizer.clone();
    let error = other.fails();
    assert!(
        error.contains("vocab-size is 310") && error.contains("300"),
        "{error}"
    );
}

#[test]
fn accumulated_passes_equal_one_large_batch() {
    let mut large = Case::new();
    large.config.precision = Some(Precision::F32);
    let mut passes = Case::new();
    passes.config.precision = Some(Precision::F32);
    (passes.config.batch, passes.config.grad_accumulation) = (2, 4);
    let (mut large, mut passes) = (large.trainer(), passes.trainer());
    for _ in 0..3 {
        let (a, b) = (large.step().unwrap(), passes.step().unwrap());
        assert!(
            (a.loss / b.loss - 1.0).abs() < 1e-5 && (a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4
        );
    }
}

#[test]
fn validation_repeats_exactly_and_is_the_same_for_every_seed() {
    let mut case = Case::new();
    let mut trainer = case.trainer();
    let first = trainer.validate().unwrap();
    assert_eq!(
        trainer.validate().unwrap().nats_per_token,
        first.nats_per_token
    );
    case.config.seed = 9;
    assert!(case.trainer().data().valid == trainer.data().valid);
    let characters = trainer.data().valid_characters_per_token;
    let expected = first.nats_per_token / std::f64::consts::LN_2 / characters;
    assert!(
        (first.bits_per_character - expected).abs() < 1e-12 && (1.0..20.0).contains(&characters)
    );
}

#[test]
fn zstd_and_plain_text_are_the_same_corpus() {
    let case = Case::new();
    let plain = case.trainer().data().fingerprint;
    let text = fs::read(&case.config.data[0]).unwrap();
    fs::write(
        &case.config.data[0],
        zstd::encode_all(text.as_slice(), 3).unwrap(),
    )
    .unwrap();
    assert_eq!(case.trainer().data().fingerprint, plain);
}

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

    let output = case.command().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        stderr.contains("already holds a training run; pass --resume"),
        "{stderr}"
    );
}
