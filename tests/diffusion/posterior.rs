use super::brute::{
    Matrix, all_close, assert_drawn_from, betas, close, processes, steps, uniforms, weights,
};
use proptest::prelude::*;
use unmask::diffusion::{
    Categorical, DiscreteSchedule, Error, Interval, NoiseLevel, Process, Schedule,
};

/// Q_{t|s}ᵀ x_t ⊙ Q_{1:s} x_0 / (x_tᵀ Q_{1:t} x_0), or `None` where the denominator is zero.
fn by_matrices(between: &Matrix, until_s: &Matrix, x_t: usize, x_0: usize) -> Option<Vec<f64>> {
    let k = between.len();
    let joint: Vec<f64> = (0..k)
        .map(|x_s| between[x_t][x_s] * until_s[x_s][x_0])
        .collect();
    let evidence: f64 = joint.iter().sum();
    (evidence > 0.0).then(|| joint.iter().map(|p| p / evidence).collect())
}

proptest! {
    #[test]
    fn the_posterior_is_the_matrix_expression_for_any_s_and_t(
        process in processes(), betas in betas(),
    ) {
        let schedule = DiscreteSchedule::from_betas(&betas).unwrap();
        for t in 0..=betas.len() {
            for s in 0..=t {
                let interval = schedule.interval(s, t).unwrap();
                let between = steps(&process, &betas, s, t);
                let until_s = steps(&process, &betas, 0, s);
                for x_t in 0..process.states() {
                    for x_0 in 0..process.states() {
                        let closed = process.posterior(&interval, x_t, x_0);
                        match by_matrices(&between, &until_s, x_t, x_0) {
                            Some(expected) => prop_assert!(
                                all_close(closed.unwrap().probabilities(), &expected, 1e-12)
                            ),
                            None => {
                                let impossible = matches!(closed, Err(Error::Impossible { .. }));
                                prop_assert!(impossible);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_reverse_step_is_the_mean_of_the_posteriors(
        process in processes(), betas in betas(), weights in weights(),
    ) {
        let schedule = DiscreteSchedule::from_betas(&betas).unwrap();
        let p = Categorical::from_weights(weights[..process.states()].to_vec()).unwrap();
        for t in 1..=betas.len() {
            for s in 0..=t {
                let interval = schedule.interval(s, t).unwrap();
                let between = steps(&process, &betas, s, t);
                let until_s = steps(&process, &betas, 0, s);
                for x_t in 0..process.states() {
                    let (mut mean, mut possible) = (vec![0.0; process.states()], 0.0);
                    for x_0 in 0..process.states() {
                        if let Some(posterior) = by_matrices(&between, &until_s, x_t, x_0) {
                            possible += p.probability(x_0);
                            for (mean, q) in mean.iter_mut().zip(posterior) {
                                *mean += q * p.probability(x_0);
                            }
                        }
                    }
                    let reverse = process.reverse(&interval, x_t, &p);
                    if possible == 0.0 {
                        let unreachable = matches!(reverse, Err(Error::Unreachable { .. }));
                        prop_assert!(unreachable);
                        continue;
                    }
                    mean.iter_mut().for_each(|q| *q /= possible);
                    prop_assert!(all_close(reverse.unwrap().probabilities(), &mean, 1e-12));
                }
            }
        }
    }

    #[test]
    fn continuous_time_agrees_with_the_matrices_of_its_levels(
        process in processes(), s in 0.0..1.0f64, share in 0.0..1.0f64, power in 0.3..4.0f64,
    ) {
        let schedule = Schedule::polynomial(power).unwrap();
        let t = s + (1.0 - s) * share;
        let interval = schedule.interval(s, t).unwrap();
        let (alpha_s, alpha_t) = (schedule.alpha(s), schedule.alpha(t));
        prop_assume!(alpha_s > 1e-3 && alpha_t < 1.0 - 1e-6);
        // The matrices are made of 1 − β: what is small in them has lost digits.
        let tolerance = 1e-12f64.max(f64::EPSILON / (1.0 - alpha_t));
        let betas = [1.0 - alpha_s, 1.0 - alpha_t / alpha_s];
        let between = steps(&process, &betas, 1, 2);
        let until_s = steps(&process, &betas, 0, 1);
        for x_t in 0..process.states() {
            for x_0 in 0..process.states() {
                if let Some(expected) = by_matrices(&between, &until_s, x_t, x_0) {
                    let closed = process.posterior(&interval, x_t, x_0).unwrap();
                    prop_assert!(all_close(closed.probabilities(), &expected, tolerance));
                }
            }
        }
    }

    #[test]
    fn posterior_and_marginal_make_the_earlier_marginal(process in processes(), betas in betas()) {
        let schedule = DiscreteSchedule::from_betas(&betas).unwrap();
        let t = betas.len();
        for s in 0..t {
            let interval = schedule.interval(s, t).unwrap();
            for x_0 in 0..process.states() {
                let mut mixed = vec![0.0; process.states()];
                let at_t = process.marginal(interval.at_t(), x_0).unwrap();
                for (x_t, q) in at_t.probabilities().iter().enumerate().filter(|(_, q)| **q > 0.0) {
                    let posterior = process.posterior(&interval, x_t, x_0).unwrap();
                    mixed.iter_mut().zip(posterior.probabilities()).for_each(|(m, p)| *m += q * p);
                }
                let at_s = process.marginal(interval.at_s(), x_0).unwrap();
                prop_assert!(all_close(&mixed, at_s.probabilities(), 1e-12));
            }
        }
    }

    #[test]
    fn the_plug_in_step_is_the_reverse_step_of_the_leave_one_out_reading(
        process in processes(), a in 0.05..0.95f64, b in 0.05..0.95f64, weights in weights(),
    ) {
        let k = process.states();
        let p = Categorical::from_weights(weights[..k].to_vec()).unwrap();
        let betas = [a, b];
        let (until_s, between) = (steps(&process, &betas, 0, 1), steps(&process, &betas, 1, 2));
        let interval = DiscreteSchedule::from_betas(&betas).unwrap().interval(1, 2).unwrap();
        for (x_t, likelihood) in between.iter().enumerate() {
            // Q_{t|s}ᵀ x_t ⊙ Q_{1:s} x_θ, normalised.
            let soft = |x_s: usize| (0..k).map(|x| until_s[x_s][x] * p.probability(x)).sum::<f64>();
            let joint = (0..k).map(|x_s| likelihood[x_s] * soft(x_s)).collect();
            let plug_in = Categorical::from_weights(joint).unwrap();
            let denoiser =
                process.denoiser_from_leave_one_out(interval.at_t(), x_t, &p).unwrap();
            let reverse = process.reverse(&interval, x_t, &denoiser).unwrap();
            prop_assert!(all_close(reverse.probabilities(), plug_in.probabilities(), 1e-12));
            if process.mask().is_none() {
                let back =
                    process.leave_one_out_from_denoiser(interval.at_t(), x_t, &denoiser).unwrap();
                prop_assert!(all_close(back.probabilities(), p.probabilities(), 1e-12));
            }
        }
    }
}

#[test]
fn the_posterior_takes_the_transpose_which_the_absorbing_matrix_tells_apart() {
    let process = Process::absorbing(3, 2).unwrap();
    let betas = [0.5, 0.5];
    let interval = DiscreteSchedule::from_betas(&betas)
        .unwrap()
        .interval(1, 2)
        .unwrap();
    let (q_t, q_s) = (steps(&process, &betas, 1, 2), steps(&process, &betas, 0, 1));
    let (masked, x_0) = (2, 0);

    // By hand: ᾱ_1 = 1/2 and ᾱ_2 = 1/4, so (ᾱ_1 − ᾱ_2)/(1 − ᾱ_2) = 1/3 of the masked slots are revealed.
    let posterior = process.posterior(&interval, masked, x_0).unwrap();
    assert!(all_close(
        posterior.probabilities(),
        &[1.0 / 3.0, 0.0, 2.0 / 3.0],
        1e-15
    ));

    let transposed: Vec<f64> = (0..3).map(|x_s| q_t[masked][x_s] * q_s[x_s][x_0]).collect();
    let untransposed: Vec<f64> = (0..3).map(|x_s| q_t[x_s][masked] * q_s[x_s][x_0]).collect();
    assert!(all_close(&transposed, &[0.25, 0.0, 0.5], 1e-15));
    // Without the transpose a masked slot would stay masked for ever.
    assert!(all_close(&untransposed, &[0.0, 0.0, 0.5], 1e-15));
}

#[test]
fn the_absorbing_posterior_keeps_unmasked_slots_and_reveals_masked_ones_at_the_known_rate() {
    let process = Process::absorbing(4, 3).unwrap();
    let interval = Schedule::LogLinear.interval(0.3, 0.8).unwrap();
    let kept = process.posterior(&interval, 1, 1).unwrap();
    assert_eq!(kept.probabilities(), [0.0, 1.0, 0.0, 0.0]);
    let revealed = process.posterior(&interval, 3, 1).unwrap();
    assert!(all_close(
        revealed.probabilities(),
        &[0.0, 0.625, 0.0, 0.375],
        1e-15
    ));
    assert!(close(
        interval.unmasking_probability().unwrap(),
        0.625,
        1e-15
    ));
}

#[test]
fn an_impossible_pair_is_an_error_that_names_it() {
    let process = Process::absorbing(4, 3).unwrap();
    let interval = Schedule::LogLinear.interval(0.2, 0.5).unwrap();
    let error = process.posterior(&interval, 1, 2).unwrap_err();
    assert_eq!(
        error,
        Error::Impossible {
            x_t: 1,
            x_0: 2,
            alpha: 0.5
        }
    );
    assert!(
        error
            .to_string()
            .contains("x_t = 1 cannot come from x_0 = 2")
    );

    // Masked at t = 0, and unmasked at t = 1.
    let clean = Schedule::LogLinear.interval(0.0, 0.0).unwrap();
    assert!(matches!(
        process.posterior(&clean, 3, 0),
        Err(Error::Impossible { .. })
    ));
    let noise = Schedule::LogLinear.interval(0.5, 1.0).unwrap();
    assert!(matches!(
        process.posterior(&noise, 0, 0),
        Err(Error::Impossible { .. })
    ));
    let p = Categorical::uniform(4).unwrap();
    assert!(matches!(
        process.reverse(&noise, 0, &p),
        Err(Error::Unreachable { .. })
    ));

    // A denoiser that excludes the only state that x_t allows.
    let uniform = Process::uniform(4).unwrap();
    let elsewhere = Categorical::one_hot(4, 2).unwrap();
    let error = uniform.reverse(&clean, 0, &elsewhere).unwrap_err();
    assert_eq!(error, Error::Unreachable { x_t: 0, alpha: 1.0 });
}

#[test]
fn a_step_across_hardly_any_noise_gives_numbers() {
    let p = Categorical::uniform(4).unwrap();
    for process in [
        Process::absorbing(4, 3).unwrap(),
        Process::uniform(4).unwrap(),
    ] {
        for schedule in [
            "log-linear",
            "cosine",
            "maskgit",
            "polynomial:3",
            "geometric:1e-5,20",
        ] {
            let schedule: Schedule = schedule.parse().unwrap();
            let times = [0.0, 1e-300, 1e-12, 0.5, 1.0 - 1e-12, 1.0];
            for (i, t) in times.iter().enumerate() {
                for s in &times[..i] {
                    let interval = schedule.interval(*s, *t).unwrap();
                    for x_t in 0..4 {
                        if let Ok(x_s) = process.reverse(&interval, x_t, &p) {
                            let sum: f64 = x_s.probabilities().iter().sum();
                            assert!(close(sum, 1.0, 1e-12), "{schedule} {s} {t} {x_t} {x_s:?}");
                        }
                    }
                }
            }
        }
    }
    // Of slots masked at 1e-12, half were masked at 0.5e-12.
    let interval = Schedule::LogLinear.interval(0.5e-12, 1e-12).unwrap();
    assert!(close(interval.unmasking_probability().unwrap(), 0.5, 1e-12));
}

#[test]
fn reverse_draws_follow_the_reverse_step() {
    let mut uniform = uniforms(4);
    let p = Categorical::new(vec![0.1, 0.2, 0.3, 0.4, 0.0]).unwrap();
    let interval = Schedule::cosine(0.008).unwrap().interval(0.4, 0.7).unwrap();
    for process in [
        Process::absorbing(5, 4).unwrap(),
        Process::uniform(5).unwrap(),
    ] {
        for x_t in [0, 4] {
            let exact = process.reverse(&interval, x_t, &p).unwrap();
            assert_drawn_from(exact.probabilities(), || {
                process.reverse_draw(&interval, x_t, &p, uniform()).unwrap()
            });
        }
    }
}

#[test]
fn posterior_draws_follow_the_posterior() {
    let mut uniform = uniforms(6);
    let schedule = Schedule::LogLinear;
    for (s, t) in [(0.4, 0.7), (0.0, 0.3), (0.9, 1.0), (0.5, 0.5)] {
        let interval = schedule.interval(s, t).unwrap();
        for (process, pairs) in [
            (Process::absorbing(5, 4).unwrap(), vec![(4, 2), (1, 1)]),
            (Process::uniform(5).unwrap(), vec![(4, 2), (1, 1), (0, 3)]),
        ] {
            for (x_t, x_0) in pairs {
                let Ok(exact) = process.posterior(&interval, x_t, x_0) else {
                    let draw = process.posterior_draw(&interval, x_t, x_0, 0.5);
                    assert!(matches!(draw, Err(Error::Impossible { .. })));
                    continue;
                };
                assert_drawn_from(exact.probabilities(), || {
                    let draw = process.posterior_draw(&interval, x_t, x_0, uniform());
                    draw.unwrap()
                });
            }
        }
    }
}

#[test]
fn a_chain_of_reverse_steps_with_the_exact_denoiser_draws_the_data() {
    // One slot: the exact denoiser is Bayes' rule, and ancestral sampling is then exact for any T.
    let data = Categorical::new(vec![0.5, 0.15, 0.35, 0.0]).unwrap();
    let mut uniform = uniforms(5);
    for process in [
        Process::absorbing(4, 3).unwrap(),
        Process::uniform(4).unwrap(),
    ] {
        let schedule = Schedule::LogLinear.discretise(5).unwrap();
        assert_drawn_from(data.probabilities(), || {
            let mut x = process.stationary().sample(uniform());
            for t in (1..=5).rev() {
                let interval = schedule.interval(t - 1, t).unwrap();
                let denoiser = process
                    .denoiser_from_leave_one_out(interval.at_t(), x, &data)
                    .unwrap();
                let slots = process.reverse_slots(&interval, &[x], &[denoiser], &mut uniform);
                x = slots.unwrap()[0];
            }
            x
        });
    }
}

#[test]
fn an_interval_composes_what_it_is_made_of() {
    let (first, second) = (
        NoiseLevel::from_alpha(0.8).unwrap(),
        NoiseLevel::from_beta(0.5).unwrap(),
    );
    let interval = Interval::new(first, second);
    assert!(close(interval.at_t().alpha(), 0.4, 1e-15));
    assert!(close(interval.at_t().one_minus_alpha(), 0.6, 1e-15));
    let again = Interval::between(first, interval.at_t()).unwrap();
    assert!(close(again.step().alpha(), 0.5, 1e-15));
    assert!(matches!(
        Interval::between(second, first),
        Err(Error::AlphaIncreases {
            earlier: 0.5,
            later: 0.8
        })
    ));
}
