use super::*;

#[test]
fn the_loss_falls() {
    for precision in [None, Some(Precision::F32)] {
        let mut case = Case::new();
        case.config.precision = precision;
        let mut validations = Vec::new();
        let trainer = train::run(case.config.clone(), &NEVER, |event| {
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
fn muon_changes_matrices_alone_and_the_loss_falls() {
    let mut case = Case::new();
    let mut adamw = case.trainer();
    case.config.optimizer = OptimizerKind::Muon;
    let mut muon = case.trainer();
    // A head of zeros gives the blocks no gradient, so that the first step is the same with both.
    adamw.step().unwrap();
    muon.step().unwrap();
    assert!(adamw.weights().unwrap() == muon.weights().unwrap());
    let start = muon.weights().unwrap().to_vec();
    let lr = muon.step().unwrap().lr;
    adamw.step().unwrap();
    let (adamw, muon) = (adamw.weights().unwrap(), muon.weights().unwrap());
    for parameter in Layout::new(&case.config.shape(300)).parameters {
        let range = parameter.range;
        let same = muon[range.clone()] == adamw[range.clone()];
        assert_eq!(same, parameter.role != Role::Matrix, "{}", parameter.name);
        if !same {
            // All directions of a matrix move alike: by the learning rate times the update's size.
            let moved = muon[range.clone()].iter().zip(&start[range.clone()]);
            let square: f32 = moved.map(|(after, before)| (after - before).powi(2)).sum();
            let rms = (square / range.len() as f32).sqrt() / lr as f32;
            assert!((0.01..0.4).contains(&rms), "{} {rms}", parameter.name);
        }
    }

    let best = case.run().unwrap().progress().best.unwrap();
    assert!(best < 0.75 * 300f64.ln(), "{best}");
    case.config.resume = true;
    case.config.optimizer = OptimizerKind::AdamW;
    assert!(case.fails().contains("optimizer"), "{}", case.fails());
}

#[test]
fn the_bound_falls_with_every_objective_time_sampling_and_schedule() {
    let changes: [fn(&mut TrainConfig); 7] = [
        |c| c.objective = Objective::CrossEntropy,
        |c| c.time_sampling = TimeSampling::Uniform,
        |c| c.schedule = Schedule::MaskGit,
        |c| c.schedule = Schedule::polynomial(2.0).unwrap(),
        |c| c.schedule = Schedule::geometric(1e-3, 20.0).unwrap(),
        // Times at which nothing is noised, or next to nothing.
        |c| {
            c.process = ForwardProcess::Uniform;
            c.schedule = "table:1,1,0".parse().unwrap();
        },
        |c| {
            c.process = ForwardProcess::Uniform;
            c.schedule = Schedule::polynomial(16.0).unwrap();
        },
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut case = Case::new();
        change(&mut case.config);
        let trainer = case.trainer();
        let mut reference = Case::new();
        reference.config.process = case.config.process;
        let reference = reference.trainer();
        assert!(
            trainer.data().valid == reference.data().valid,
            "runs compare"
        );
        assert!(
            trainer.data().batch(&case.config, 0).unwrap()
                != reference.data().batch(reference.config(), 0).unwrap(),
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
    let batch = trainer.data().batch(&case.config, 3).unwrap();
    // The untrained network is nearly uniform, so that the mean cross-entropy is nearly ln V.
    let mut network = ComposedNetwork::new(trainer.shape(), &Device::Cpu).unwrap();
    let loss = network.loss(&trainer.weights().unwrap(), &batch).unwrap();
    assert!((loss / 300f64.ln() - 1.0).abs() < 0.02, "{loss}");

    // The weights of masked slots sum to one a token, in expectation and whatever the schedule:
    // ∫ w (1 − α) dt = α(0) − α(1).
    case.config.objective = Objective::Nelbo;
    case.config.batch = 4096;
    for schedule in ["log-linear", "maskgit", "cosine", "polynomial:3"] {
        case.config.schedule = schedule.parse().unwrap();
        let batch = trainer.data().batch(&case.config, 0).unwrap();
        let context = batch.context;
        let sum: f64 = batch
            .scored
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
    let weights = [&first, &second, &third].map(|case| {
        let trainer = case.run().unwrap();
        trainer.weights().unwrap().to_vec()
    });
    assert!(
        weights[0] == weights[1],
        "validation does not disturb training"
    );
    assert!(weights[0] != weights[2]);
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
