use unmask::train::trainer::check_same_run;

use super::*;

#[test]
fn a_run_killed_at_any_moment_resumes_to_the_same_curve_bit_for_bit() {
    let mut whole = Case::new();
    whole.config.steps = 200;
    let expected = whole.run().unwrap();

    let mut killed = Case::new();
    killed.config.steps = 200;
    let mut reached = Vec::new();
    for lines in [1, 60, 120] {
        let mut command = killed.command();
        if state_path(&killed.config.out).exists() {
            command.arg("--resume");
        }
        reached.push(killed.kill_after(command, lines));
    }
    assert!(reached.iter().any(|step| *step < 200), "{reached:?}");
    killed.config.resume = true;
    let resumed = killed.run().unwrap();
    assert!(resumed.weights().unwrap() == expected.weights().unwrap());
    assert!(resumed.average().unwrap() == expected.average().unwrap());
    assert_eq!(log(&killed.config.out), log(&whole.config.out));
    let model = |case: &Case| fs::read(case.config.out.join("model.safetensors")).unwrap();
    assert!(model(&killed) == model(&whole));
}

#[test]
fn a_run_that_is_asked_to_stop_saves_its_last_step_and_resumes_to_the_same_curve() {
    let mut whole = Case::new();
    whole.config.save_every = 1000;
    let expected = whole.run().unwrap();

    let mut stopped = Case::new();
    stopped.config.save_every = 1000;
    // 20 is validated too, before the stop.
    for last in [7, 20] {
        let stop = AtomicBool::new(false);
        let mut saved = 0;
        let trainer = train::run(stopped.config.clone(), &stop, |event| match event {
            Event::Step { report, .. } if report.step == last => {
                stop.store(true, Ordering::Release);
            }
            Event::Saved { step } => saved = *step,
            _ => {}
        })
        .unwrap();
        assert_eq!((trainer.progress().step, saved), (last, last));
        stopped.config.resume = true;
    }
    // One that is stopped before its first step does none.
    let stop = AtomicBool::new(true);
    let trainer = train::run(stopped.config.clone(), &stop, |_| {}).unwrap();
    assert_eq!(trainer.progress().step, 20);
    let resumed = stopped.run().unwrap();
    assert!(resumed.weights().unwrap() == expected.weights().unwrap());
    assert_eq!(log(&stopped.config.out), log(&whole.config.out));
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_after_its_step_without_the_loss_of_one() {
    use rustix::process::{Pid, Signal, kill_process};

    // More steps than there is time for, so that the run does not end before its signal.
    let config = |case: &mut Case| (case.config.steps, case.config.save_every) = (1 << 20, 1 << 20);
    let mut case = Case::new();
    config(&mut case);
    let path = case.config.out.join("log.jsonl");
    let lines = || {
        fs::read_to_string(&path)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let signals = [
        (Signal::TERM, "SIGTERM", 143, true),
        (Signal::INT, "SIGINT", 130, true),
        (Signal::TERM, "", 143, false),
    ];
    for (signal, name, status, is_read) in signals {
        let mut command = case.command();
        if path.exists() {
            command.arg("--resume");
        }
        let before = lines();
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        if !is_read {
            // As where standard error is piped to a program that the signal ends too.
            drop(child.stderr.take());
        }
        while lines() < before + 5 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        let step = log(&case.config.out).last().unwrap()["step"].as_u64();
        let state = load_state(&state_path(&case.config.out)).unwrap();
        assert_eq!(Some(state.progress.step), step);
        if is_read {
            let stopped = format!("stopped at step {} of", state.progress.step);
            for said in [name, &stopped, "--resume"] {
                assert!(stderr.contains(said), "{said}: {stderr}");
            }
        }
    }

    let reached = load_state(&state_path(&case.config.out)).unwrap();
    let reached = reached.progress.step;
    let mut whole = Case::new();
    config(&mut whole);
    let stop = AtomicBool::new(false);
    train::run(whole.config.clone(), &stop, |event| {
        if let Event::Step { report, .. } = event {
            stop.store(report.step == reached, Ordering::Release);
        }
    })
    .unwrap();
    assert_eq!(log(&case.config.out), log(&whole.config.out));
    let model = |case: &Case| fs::read(case.config.out.join("model.safetensors")).unwrap();
    assert!(model(&case) == model(&whole));
}

#[test]
fn a_run_resumed_with_other_cadences_keeps_the_best_model_and_its_loss() {
    let mut case = Case::new();
    case.config.steps = 200;
    (case.config.save_every, case.config.valid_every) = (40, 20);
    // The start, 20 steps and their validation, and a few steps on: step 20 is no save of the schedule.
    let reached = case.kill_after(case.command(), 1 + 20 + 1 + 3);
    assert!(reached < 200, "{reached}");
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
    train::run(config, &NEVER, |event| {
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
fn a_resumption_with_another_vocabulary_is_refused_and_leaves_the_run_intact() {
    let mut case = Case::new();
    case.config.steps = 20;
    case.run().unwrap();
    let mut other = Case::new();
    other.config.steps = 1;
    other.config.vocab_size = Some(310);
    other.run().unwrap();
    let tokenizer = |case: &Case| case.config.out.join("tokenizer.json");
    let before = files(&case.config.out);
    let good = case.config.clone();
    case.config.resume = true;

    case.config.tokenizer = Some(tokenizer(&other));
    let error = case.fails();
    assert!(
        error.contains("cannot resume: tokenizer was another vocabulary"),
        "{error}"
    );
    assert!(files(&case.config.out) == before);

    // The run's own tokenizer replaced: by one of another size, and by one that spells otherwise.
    case.config = good;
    case.config.resume = true;
    case.config.vocab_size = None;
    let own = fs::read(tokenizer(&case)).unwrap();
    fs::copy(tokenizer(&other), tokenizer(&case)).unwrap();
    let error = case.fails();
    assert!(
        error.contains("the vocabulary size was 300") && error.contains("310 now"),
        "{error}"
    );
    let mut swapped: Value = serde_json::from_slice(&own).unwrap();
    let vocabulary = swapped["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocabulary["a"].clone(), vocabulary["e"].clone());
    vocabulary.insert("a".into(), b);
    vocabulary.insert("e".into(), a);
    fs::write(tokenizer(&case), swapped.to_string()).unwrap();
    let error = case.fails();
    assert!(
        error.contains("cannot resume: the data was text"),
        "{error}"
    );
    fs::write(tokenizer(&case), own).unwrap();
    assert!(files(&case.config.out) == before);
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
    // Its network is another than its settings', and no length changes.
    let field = br#"\"heads\":"#;
    let at = good.windows(field.len()).rposition(|bytes| bytes == field);
    let mut headless = good.clone();
    headless[at.unwrap() + field.len()] = b'0';
    for bad in [
        &flipped[..],
        &headless,
        &good[..good.len() - 8],
        &good[..5],
        b"",
    ] {
        fs::write(&path, bad).unwrap();
        let error = case.fails();
        assert!(error.contains("state.safetensors is damaged"), "{error}");
    }
    fs::write(&path, &good).unwrap();
    case.run().unwrap();
}

#[cfg(unix)]
#[test]
fn settings_that_a_state_cannot_hold_are_refused_when_they_are_compared() {
    use std::os::unix::ffi::OsStringExt;

    let mut case = Case::new();
    case.stop_at(1);
    let state = load_state(&state_path(&case.config.out)).unwrap();
    let name = std::ffi::OsString::from_vec(b"caf\xe9.txt".to_vec());
    case.config.data = vec![name.into()];
    let error = check_same_run(&state, &case.config)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the settings cannot be written as JSON"),
        "{error}"
    );
}
