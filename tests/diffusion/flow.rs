use super::brute::{all_close, close, processes, weights};
use proptest::prelude::*;
use unmask::diffusion::flow::{FlowPath, corrector_remasking, euler_step, stochastic_remasking};
use unmask::diffusion::{Categorical, Error, Process, Schedule, remasking};

const SCHEDULES: [&str; 5] = [
    "log-linear",
    "cosine",
    "polynomial:2",
    "geometric:1e-3,5",
    "linear-beta:1,6",
];

fn paths(process: Process) -> impl Iterator<Item = FlowPath> {
    SCHEDULES.iter().map(move |text| FlowPath {
        process,
        schedule: text.parse().unwrap(),
    })
}

/// The exact p_{1|τ} of one slot with data distribution `data`.
fn denoiser(path: &FlowPath, tau: f64, x: usize, data: &Categorical) -> Categorical {
    path.process
        .denoiser_from_leave_one_out(path.level(tau).unwrap(), x, data)
        .unwrap()
}

/// Data on every state but the mask.
fn data(process: &Process, weights: &[f64]) -> Categorical {
    let mut weights = weights[..process.states()].to_vec();
    if let Some(mask) = process.mask() {
        weights[mask] = 0.0;
    }
    Categorical::from_weights(weights).unwrap()
}

/// `errors` at h, h/2, h/4, … fall by four each time: the local error is O(h²).
fn assert_second_order(errors: &[f64], context: &str) {
    for pair in errors.windows(2) {
        let ratio = pair[0] / pair[1];
        assert!((3.5..4.5).contains(&ratio), "{context}: {errors:?}");
    }
}

fn distance(a: &Categorical, b: &Categorical) -> f64 {
    a.probabilities()
        .iter()
        .zip(b.probabilities())
        .map(|(a, b)| (a - b).abs())
        .sum()
}

proptest! {
    /// Kolmogorov's equation: Σ_x u(y, x) p_τ(x) = d p_τ(y) / dτ, for the forward, the backward and every
    /// corrector velocity.
    #[test]
    fn velocities_generate_the_path(
        process in processes(), tau in 0.02..0.98f64, weights in weights(), beta in 0.0..5.0f64,
    ) {
        let data = data(&process, &weights);
        for path in paths(process) {
            let p = process.noised(path.level(tau).unwrap(), &data).unwrap();
            let pi = process.stationary();
            let k = process.states();
            let mut flows = vec![vec![0.0; k]; 3];
            for (x, mass) in p.probabilities().iter().enumerate() {
                let denoiser = denoiser(&path, tau, x, &data);
                let velocities = [
                    path.velocity(tau, x, &denoiser).unwrap(),
                    path.backward_velocity(tau, x, &denoiser).unwrap(),
                    path.corrector_velocity(tau, x, &denoiser, beta).unwrap(),
                ];
                for (flow, velocity) in flows.iter_mut().zip(velocities) {
                    let size: f64 = velocity.iter().map(|u| u.abs()).sum();
                    prop_assert!(close(velocity.iter().sum(), 0.0, 1e-12 * (1.0 + size)));
                    flow.iter_mut().zip(velocity).for_each(|(flow, u)| *flow += u * mass);
                }
            }
            let kappa_dot = path.kappa_dot(tau);
            let derivative: Vec<f64> = (0..k)
                .map(|y| kappa_dot * (data.probability(y) - pi.probability(y)))
                .collect();
            for flow in flows {
                prop_assert!(all_close(&flow, &derivative, 1e-12), "{} {flow:?}", path.schedule);
            }
        }
    }

    #[test]
    fn the_path_is_the_forward_marginal_with_the_clock_reversed(
        process in processes(), tau in 0.0..=1.0f64, x_1: prop::sample::Index,
    ) {
        let x_1 = x_1.index(process.states());
        for path in paths(process) {
            let kappa = path.kappa(tau);
            prop_assert_eq!(kappa, path.schedule.alpha(1.0 - tau));
            let pi = process.stationary();
            let expected: Vec<f64> = (0..process.states())
                .map(|x| (1.0 - kappa) * pi.probability(x) + kappa * f64::from(u8::from(x == x_1)))
                .collect();
            let marginal = path.probability_path(tau, x_1).unwrap();
            prop_assert!(all_close(marginal.probabilities(), &expected, 1e-12));
        }
    }

    #[test]
    fn an_euler_step_is_the_ancestral_step_for_linear_kappa(
        k in 3usize..=8, tau in 0.0..1.0f64, share in 0.0..=1.0f64, weights in weights(),
    ) {
        let process = Process::absorbing(k, k - 1).unwrap();
        let path = FlowPath { process, schedule: Schedule::LogLinear };
        let p = data(&process, &weights);
        let t = 1.0 - tau;
        let s = t * (1.0 - share);
        let velocity = path.velocity(tau, k - 1, &p).unwrap();
        let euler = euler_step(&velocity, k - 1, t - s).unwrap();
        let interval = path.schedule.interval(s, t).unwrap();
        let ancestral = process.reverse(&interval, k - 1, &p).unwrap();
        prop_assert!(all_close(euler.probabilities(), ancestral.probabilities(), 1e-12));
    }

    /// Re-masking at whatever rate, with the surplus revealed, leaves the marginals exactly alone.
    #[test]
    fn remasking_rates_are_allowed_and_keep_the_marginals(
        s in 0.0..1.0f64, share in 0.001..1.0f64, eta in 0.0..50.0f64, x_0 in 0usize..3,
    ) {
        let process = Process::absorbing(4, 3).unwrap();
        for path in paths(process) {
            let t = s + (1.0 - s) * share;
            let interval = path.schedule.interval(s, t).unwrap();
            for sigma in [
                stochastic_remasking(&interval, t - s, eta).unwrap(),
                corrector_remasking(&interval, eta).unwrap(),
            ] {
                let mut at_s = vec![0.0; 4];
                let at_t = process.marginal(interval.at_t(), x_0).unwrap();
                for (x_t, q) in at_t.probabilities().iter().enumerate().filter(|(_, q)| **q > 0.0) {
                    let step =
                        remasking::posterior(&process, &interval, sigma, x_t, x_0).unwrap();
                    at_s.iter_mut().zip(step.probabilities()).for_each(|(m, p)| *m += q * p);
                }
                let expected = process.marginal(interval.at_s(), x_0).unwrap();
                prop_assert!(all_close(&at_s, expected.probabilities(), 1e-12));
            }
        }
    }

    /// The reversed noising of the uniform process is the flow-matching velocity plus a term in detailed
    /// balance with the path, κ̇/(κK) min(1, q(y)/q(x)).
    #[test]
    fn the_uniform_reverse_rate_is_the_velocity_plus_a_detailed_balance_term(
        k in 2usize..=8, tau in 0.05..0.95f64, x: prop::sample::Index, x_1: prop::sample::Index,
    ) {
        let (x, x_1) = (x.index(k), x_1.index(k));
        let process = Process::uniform(k).unwrap();
        let known = Categorical::one_hot(k, x_1).unwrap();
        for path in paths(process) {
            let level = path.level(tau).unwrap();
            let score = process.score(level, x, &known).unwrap();
            let velocity = path.velocity(tau, x, &known).unwrap();
            let rate = path.schedule.rate(1.0 - tau);
            for y in (0..k).filter(|y| *y != x) {
                let reverse = process.jump_rate(rate, x, y).unwrap() * score[y];
                let balanced = rate / k as f64 * score[y].min(1.0);
                let sum = velocity[y] + balanced;
                prop_assert!(close(reverse, sum, 1e-12 * (1.0 + sum)), "{reverse} {sum}");
            }
        }
    }

    #[test]
    fn the_noise_prediction_is_bayes_rule(
        process in processes(), tau in 0.05..0.95f64, weights in weights(),
    ) {
        let data = data(&process, &weights);
        let pi = process.stationary();
        let k = process.states();
        for path in paths(process) {
            let kappa = path.kappa(tau);
            for x in 0..k {
                // P(x_0 = y, x_τ = x): kept from the data with probability κ, else the noise itself.
                let joint = (0..k)
                    .map(|y| {
                        let same = f64::from(u8::from(x == y));
                        pi.probability(y) * (kappa * data.probability(x) + (1.0 - kappa) * same)
                    })
                    .collect();
                let expected = Categorical::from_weights(joint).unwrap();
                let given = denoiser(&path, tau, x, &data);
                let noise = path.noise_prediction(tau, x, &given).unwrap();
                prop_assert!(all_close(noise.probabilities(), expected.probabilities(), 1e-12));
            }
        }
    }
}

#[test]
fn an_euler_step_is_the_ancestral_step_to_first_order_for_other_schedules() {
    let process = Process::absorbing(4, 3).unwrap();
    let p = Categorical::new(vec![0.2, 0.3, 0.5, 0.0]).unwrap();
    for path in paths(process).skip(1) {
        let t = 0.4;
        let errors = [0.02, 0.01, 0.005, 0.0025].map(|h| {
            let velocity = path.velocity(1.0 - t, 3, &p).unwrap();
            let euler = euler_step(&velocity, 3, h).unwrap();
            let interval = path.schedule.interval(t - h, t).unwrap();
            distance(&euler, &process.reverse(&interval, 3, &p).unwrap())
        });
        assert_second_order(&errors, &path.schedule.to_string());
    }
}

#[test]
fn an_euler_step_moves_the_uniform_marginal_along_the_path_to_first_order() {
    let process = Process::uniform(3).unwrap();
    let data = Categorical::new(vec![0.2, 0.1, 0.7]).unwrap();
    for path in paths(process).skip(1) {
        for beta in [0.0, 2.0] {
            let errors = [0.02, 0.01, 0.005, 0.0025].map(|h| {
                let tau = 0.6;
                let before = process.noised(path.level(tau).unwrap(), &data).unwrap();
                let mut after = vec![0.0; 3];
                for (x, mass) in before.probabilities().iter().enumerate() {
                    let p = denoiser(&path, tau, x, &data);
                    let velocity = path.corrector_velocity(tau, x, &p, beta).unwrap();
                    let step = euler_step(&velocity, x, h).unwrap();
                    after
                        .iter_mut()
                        .zip(step.probabilities())
                        .for_each(|(a, p)| *a += mass * p);
                }
                let expected = process.noised(path.level(tau + h).unwrap(), &data).unwrap();
                distance(&Categorical::new(after).unwrap(), &expected)
            });
            assert_second_order(&errors, &format!("{} {beta}", path.schedule));
        }
    }
}

#[test]
fn the_remasking_of_a_corrector_is_its_euler_step_to_first_order() {
    let process = Process::absorbing(4, 3).unwrap();
    let p = Categorical::new(vec![0.2, 0.3, 0.5, 0.0]).unwrap();
    let (t, beta) = (0.4, 1.5);
    for path in paths(process) {
        for x in [0, 3] {
            let errors = [0.02, 0.01, 0.005, 0.0025].map(|h| {
                let interval = path.schedule.interval(t - h, t).unwrap();
                let sigma = corrector_remasking(&interval, beta).unwrap();
                let step = remasking::reverse(&process, &interval, sigma, x, &p).unwrap();
                let velocity = path.corrector_velocity(1.0 - t, x, &p, beta).unwrap();
                distance(&step, &euler_step(&velocity, x, h).unwrap())
            });
            // For linear κ the two agree to the last bits.
            if path.schedule == Schedule::LogLinear {
                assert!(errors.iter().all(|error| *error < 1e-12), "{errors:?}");
            } else {
                assert_second_order(&errors, &format!("{} {x}", path.schedule));
            }
        }
    }
}

/// Campbell et al.: with linear κ, masked slots are revealed at rate (1 + η κ)/(1 − κ) and unmasked ones masked
/// at rate η.
#[test]
fn stochastic_remasking_is_campbells_to_first_order() {
    let process = Process::absorbing(3, 2).unwrap();
    let p = Categorical::new(vec![0.4, 0.6, 0.0]).unwrap();
    let (t, eta) = (0.3, 4.0);
    let kappa = 1.0 - t;
    for x in [0, 2] {
        let errors = [0.02, 0.01, 0.005, 0.0025].map(|h| {
            let interval = Schedule::LogLinear.interval(t - h, t).unwrap();
            let sigma = stochastic_remasking(&interval, h, eta).unwrap();
            let step = remasking::reverse(&process, &interval, sigma, x, &p).unwrap();
            let revealed = h * (1.0 + eta * kappa) / (1.0 - kappa);
            let campbell = match x {
                2 => vec![0.4 * revealed, 0.6 * revealed, 1.0 - revealed],
                _ => vec![1.0 - h * eta, 0.0, h * eta],
            };
            distance(&step, &Categorical::new(campbell).unwrap())
        });
        assert_second_order(&errors, &format!("{x}"));
    }
}

#[test]
fn strength_zero_never_remasks_and_an_unbounded_one_meets_the_limit() {
    for path in paths(Process::absorbing(4, 3).unwrap()) {
        let interval = path.schedule.interval(0.3, 0.4).unwrap();
        assert_eq!(stochastic_remasking(&interval, 0.1, 0.0).unwrap(), 0.0);
        assert_eq!(corrector_remasking(&interval, 0.0).unwrap(), 0.0);
        let limit = remasking::sigma_max(&interval);
        assert_eq!(stochastic_remasking(&interval, 0.1, 1e9).unwrap(), limit);
        assert_eq!(corrector_remasking(&interval, 1e9).unwrap(), limit);
    }
    let whole = Schedule::LogLinear.interval(1.0, 1.0).unwrap();
    assert_eq!(corrector_remasking(&whole, 1.0).unwrap(), 1.0);
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            corrector_remasking(&whole, bad),
            Err(Error::Parameter { .. })
        ));
        assert!(matches!(
            stochastic_remasking(&whole, 0.1, bad),
            Err(Error::Parameter { .. })
        ));
    }
}

#[test]
fn a_step_longer_than_the_velocity_allows_is_refused() {
    let path = FlowPath {
        process: Process::absorbing(3, 2).unwrap(),
        schedule: Schedule::LogLinear,
    };
    let p = Categorical::new(vec![0.5, 0.5, 0.0]).unwrap();
    let velocity = path.velocity(0.75, 2, &p).unwrap();
    assert_eq!(velocity, [2.0, 2.0, -4.0]);
    let error = euler_step(&velocity, 2, 0.5).unwrap_err();
    assert_eq!(
        error,
        Error::StepTooLong {
            step: 0.5,
            largest: 0.25
        }
    );
    assert!(euler_step(&velocity, 2, -0.1).is_err());
    assert!(euler_step(&[-1.0, 1.0], 1, 0.1).is_err());
    let last = euler_step(&velocity, 2, 0.25).unwrap();
    assert_eq!(last.probabilities(), [0.5, 0.5, 0.0]);
    assert!(matches!(
        path.velocity(1.5, 2, &p),
        Err(Error::TimeOutOfRange { .. })
    ));
}
