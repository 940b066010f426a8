use unmask::diffusion::{Categorical, Error, NoiseLevel, Process, Schedule, elbo, flow, remasking};

#[test]
fn states_out_of_range_are_refused_everywhere() {
    assert_eq!(Process::uniform(1), Err(Error::TooFewStates { states: 1 }));
    assert_eq!(
        Process::absorbing(1, 0),
        Err(Error::TooFewStates { states: 1 })
    );
    assert!(matches!(
        Process::absorbing(4, 4),
        Err(Error::StateOutOfRange { state: 4, .. })
    ));

    let schedule = Schedule::LogLinear;
    let interval = schedule.interval(0.2, 0.5).unwrap();
    let level = interval.at_t();
    let p = Categorical::uniform(4).unwrap();
    let out_of_range = |error: Error| matches!(error, Error::StateOutOfRange { state: 9, .. });
    for process in [
        Process::absorbing(4, 3).unwrap(),
        Process::uniform(4).unwrap(),
    ] {
        assert!(out_of_range(process.transition(level, 9, 0).unwrap_err()));
        assert!(out_of_range(process.transition(level, 0, 9).unwrap_err()));
        assert!(out_of_range(process.jump_rate(1.0, 9, 0).unwrap_err()));
        assert!(out_of_range(process.marginal(level, 9).unwrap_err()));
        assert!(out_of_range(process.corrupt(level, 9, 0.5).unwrap_err()));
        assert!(out_of_range(
            process.posterior(&interval, 9, 0).unwrap_err()
        ));
        assert!(out_of_range(
            process.posterior(&interval, 0, 9).unwrap_err()
        ));
        assert!(out_of_range(process.reverse(&interval, 9, &p).unwrap_err()));
        assert!(out_of_range(process.score(level, 9, &p).unwrap_err()));
        assert!(out_of_range(
            process
                .denoiser_from_leave_one_out(level, 9, &p)
                .unwrap_err()
        ));
        assert!(out_of_range(
            elbo::prior_term(&process, level, 9, &p).unwrap_err()
        ));
        assert!(out_of_range(
            elbo::reconstruction_term(&process, level, 0, 9, &p).unwrap_err()
        ));
        for (x_t, x_0) in [(9, 0), (0, 9)] {
            let integrand = elbo::nelbo_integrand(&process, &schedule, 0.5, x_t, x_0, &p);
            assert!(out_of_range(integrand.unwrap_err()));
        }
        let path = flow::FlowPath {
            process,
            schedule: schedule.clone(),
        };
        assert!(out_of_range(path.velocity(0.5, 9, &p).unwrap_err()));
        assert!(out_of_range(path.noise_prediction(0.5, 9, &p).unwrap_err()));
        assert!(out_of_range(path.probability_path(0.5, 9).unwrap_err()));
    }
    let absorbing = Process::absorbing(4, 3).unwrap();
    assert!(out_of_range(
        remasking::posterior(&absorbing, &interval, 0.1, 9, 0).unwrap_err()
    ));
    assert!(out_of_range(
        remasking::posterior(&absorbing, &interval, 0.1, 3, 9).unwrap_err()
    ));
    assert!(out_of_range(
        remasking::reverse(&absorbing, &interval, 0.1, 9, &p).unwrap_err()
    ));
    assert!(out_of_range(
        flow::euler_step(&[0.0; 4], 9, 0.1).unwrap_err()
    ));
}

#[test]
fn a_denoiser_over_another_number_of_states_is_refused() {
    let schedule = Schedule::LogLinear;
    let interval = schedule.interval(0.2, 0.5).unwrap();
    let level = interval.at_t();
    let p = Categorical::uniform(3).unwrap();
    let mismatch = |error: Error| {
        matches!(
            error,
            Error::LengthMismatch {
                given: 3,
                expected: 4,
                ..
            }
        )
    };
    for process in [
        Process::absorbing(4, 3).unwrap(),
        Process::uniform(4).unwrap(),
    ] {
        for x_t in [0, 3] {
            assert!(mismatch(process.reverse(&interval, x_t, &p).unwrap_err()));
            assert!(mismatch(process.score(level, x_t, &p).unwrap_err()));
            assert!(mismatch(process.noised(level, &p).unwrap_err()));
            let integrand = elbo::nelbo_integrand(&process, &schedule, 0.5, x_t, x_t, &p);
            assert!(mismatch(integrand.unwrap_err()));
            let path = flow::FlowPath {
                process,
                schedule: schedule.clone(),
            };
            assert!(mismatch(path.velocity(0.5, x_t, &p).unwrap_err()));
        }
        let slots = process.reverse_slots(&interval, &[0, 3], &[], || 0.5);
        assert!(matches!(
            slots,
            Err(Error::LengthMismatch {
                given: 0,
                expected: 2,
                ..
            })
        ));
    }
    let absorbing = Process::absorbing(4, 3).unwrap();
    assert!(mismatch(
        remasking::reverse(&absorbing, &interval, 0.1, 3, &p).unwrap_err()
    ));
}

#[test]
fn levels_outside_the_unit_interval_are_refused() {
    for bad in [-0.1, 1.1, f64::NAN] {
        assert!(NoiseLevel::from_alpha(bad).is_err());
        assert!(NoiseLevel::from_beta(bad).is_err());
    }
}
