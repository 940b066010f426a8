use super::brute::{close, integral, processes, uniforms, weights};
use super::toy::{Toy, sequences};
use proptest::prelude::*;
use unmask::diffusion::{
    Categorical, Error, Process, Schedule,
    elbo::{nelbo_integrand, plug_in_divergence, prior_term, reconstruction_term},
};

const COMPLETE: [&str; 6] = [
    "log-linear",
    "cosine",
    "cosine:0",
    "maskgit",
    "polynomial:2",
    "polynomial:0.5",
];

/// The diffusion part of the bound of the exact denoiser.
fn exact_bound(toy: &Toy, process: &Process, schedule: &Schedule) -> f64 {
    integral(0.0, 1.0, |t| {
        let level = schedule.level(t).unwrap();
        let denoisers = |x_t: &[usize]| toy.denoisers(process, level, x_t);
        toy.expectation(process, level, denoisers, |x_t, x_0, p| {
            nelbo_integrand(process, schedule, t, x_t, x_0, p).unwrap()
        })
    })
}

#[test]
fn the_bound_of_the_exact_denoiser_is_the_entropy_of_the_absorbing_process() {
    for (slots, tokens, seed) in [(1, 4, 7), (2, 3, 8), (3, 2, 9)] {
        let toy = Toy::new(slots, tokens, uniforms(seed));
        let process = Process::absorbing(tokens + 1, tokens).unwrap();
        for schedule in COMPLETE {
            let bound = exact_bound(&toy, &process, &schedule.parse().unwrap());
            assert!(
                close(bound, toy.entropy(), 1e-11),
                "{schedule}: {bound} {}",
                toy.entropy()
            );
        }
    }
}

#[test]
fn the_bound_of_the_exact_denoiser_is_the_entropy_of_the_uniform_process() {
    for (slots, tokens, seed) in [(1, 4, 10), (2, 3, 11), (3, 2, 12)] {
        let toy = Toy::new(slots, tokens, uniforms(seed));
        let process = Process::uniform(tokens).unwrap();
        for schedule in COMPLETE {
            let bound = exact_bound(&toy, &process, &schedule.parse().unwrap());
            assert!(
                close(bound, toy.entropy(), 1e-11),
                "{schedule}: {bound} {}",
                toy.entropy()
            );
        }
    }
}

/// With signal left at t = 1 and noise at t = 0 the other two terms make up the difference.
#[test]
fn prior_and_reconstruction_complete_the_bound_where_the_schedule_stops_short() {
    let toy = Toy::new(1, 4, uniforms(13));
    let data: Vec<f64> = toy.sequences.iter().map(|(_, p)| *p).collect();
    for process in [
        Process::uniform(4).unwrap(),
        Process::absorbing(5, 4).unwrap(),
    ] {
        let mut padded = data.clone();
        padded.resize(process.states(), 0.0);
        let data = Categorical::new(padded).unwrap();
        for schedule in ["geometric:1e-3,3", "linear-beta:0.1,4"] {
            let schedule: Schedule = schedule.parse().unwrap();
            let (first, last) = (schedule.level(0.0).unwrap(), schedule.level(1.0).unwrap());
            let prior = process.noised(last, &data).unwrap();
            let mut ends = 0.0;
            for (x_0, p) in data
                .probabilities()
                .iter()
                .enumerate()
                .filter(|(_, p)| **p > 0.0)
            {
                ends += p * prior_term(&process, last, x_0, &prior).unwrap();
            }
            let denoisers = |x_t: &[usize]| toy.denoisers(&process, first, x_t);
            ends += toy.expectation(&process, first, denoisers, |x_t, x_0, p| {
                reconstruction_term(&process, first, x_t, x_0, p).unwrap()
            });
            let bound = ends + exact_bound(&toy, &process, &schedule);
            assert!(
                close(bound, toy.entropy(), 1e-11),
                "{schedule}: {bound} {}",
                toy.entropy()
            );
        }
    }
}

#[test]
fn the_absorbing_bound_of_any_denoiser_depends_on_the_schedule_through_its_ends_alone() {
    let toy = Toy::new(2, 3, uniforms(14));
    let process = Process::absorbing(4, 3).unwrap();
    // A denoiser that is wrong but does not know the time; arbitrary, from the pattern of x_t.
    let denoisers = |x_t: &[usize]| {
        let code = x_t.iter().fold(1, |code, state| 5 * code + state);
        let mut uniform = uniforms(code as u64);
        let mut slot = || {
            let weights = (0..4).map(|state| if state == 3 { 0.0 } else { uniform() + 0.01 });
            Categorical::from_weights(weights.collect()).unwrap()
        };
        Some(vec![slot(), slot()])
    };
    let bound = |schedule: &Schedule, from: f64, to: f64| {
        integral(from, to, |t| {
            let level = schedule.level(t).unwrap();
            toy.expectation(&process, level, denoisers, |x_t, x_0, p| {
                nelbo_integrand(&process, schedule, t, x_t, x_0, p).unwrap()
            })
        })
    };
    let reference = bound(&Schedule::LogLinear, 0.0, 1.0);
    assert!(reference > toy.entropy());
    for schedule in COMPLETE {
        let other = bound(&schedule.parse().unwrap(), 0.0, 1.0);
        assert!(
            close(other, reference, 1e-12),
            "{schedule}: {other} {reference}"
        );
    }
    let table: Schedule = "table:1,0.9,0.4,0.4,0".parse().unwrap();
    let pieces = (0..4).map(|i| f64::from(i) / 4.0);
    let pieces: f64 = pieces.map(|from| bound(&table, from, from + 0.25)).sum();
    assert!(close(pieces, reference, 1e-12), "{pieces} {reference}");

    for schedule in ["geometric:1e-2,4", "linear-beta:0.1,6"] {
        let schedule: Schedule = schedule.parse().unwrap();
        let part = bound(
            &Schedule::LogLinear,
            schedule.one_minus_alpha(0.0),
            schedule.one_minus_alpha(1.0),
        );
        let other = bound(&schedule, 0.0, 1.0);
        assert!(close(other, part, 1e-12), "{schedule}: {other} {part}");
    }
}

proptest! {
    /// Σ_{y≠x} R(x, y) (s_θ − r − r ln(s_θ/r)) with the rate matrix and the scores written out.
    #[test]
    fn both_closed_forms_are_the_rate_form(
        process in processes(), t in 0.01..0.99f64, weights in weights(),
        x_t: prop::sample::Index, x_0: prop::sample::Index,
    ) {
        let k = process.states();
        let (x_t, x_0) = (x_t.index(k), x_0.index(k));
        let schedule: Schedule = "cosine".parse().unwrap();
        let p = Categorical::from_weights(weights[..k].to_vec()).unwrap();
        let level = schedule.level(t).unwrap();
        let integrand = nelbo_integrand(&process, &schedule, t, x_t, x_0, &p);
        let q = |to, from| process.transition(level, to, from).unwrap();
        if q(x_t, x_0) == 0.0 {
            let impossible = matches!(integrand, Err(Error::Impossible { .. }));
            prop_assert!(impossible);
            return Ok(());
        }
        // An unmasked slot is certain of itself.
        let p = match process.mask() {
            Some(mask) if mask != x_t => Categorical::one_hot(k, x_t).unwrap(),
            _ => p,
        };
        let mut expected = 0.0;
        for y in (0..k).filter(|y| *y != x_t) {
            let rate = process.jump_rate(schedule.rate(t), x_t, y).unwrap();
            let scores = (0..k).filter(|x| q(x_t, *x) > 0.0);
            let score: f64 = scores.map(|x| p.probability(x) * q(y, x) / q(x_t, x)).sum();
            let true_score = q(y, x_0) / q(x_t, x_0);
            let log = if true_score > 0.0 { true_score * (score / true_score).ln() } else { 0.0 };
            if rate > 0.0 {
                expected += rate * (score - true_score - log);
            }
        }
        let integrand = integrand.unwrap();
        prop_assert!(close(integrand, expected, 1e-12 * (1.0 + expected)), "{integrand} {expected}");
    }

    /// α′/(Kα) [K/x̄_i − K/(x̄_θ)_i − Σ_j x̄_j/x̄_i ln((x̄_θ)_i x̄_j / ((x̄_θ)_j x̄_i))], as UDLM prints it,
    /// with x̄ = Kα x + (1 − α) 1 and i = x_t.
    #[test]
    fn the_uniform_integrand_of_a_plug_in_denoiser_is_that_of_udlm(
        k in 2usize..=8, t in 0.01..0.99f64, weights in weights(),
        x_t: prop::sample::Index, x_0: prop::sample::Index,
    ) {
        let (i, x_0) = (x_t.index(k), x_0.index(k));
        let process = Process::uniform(k).unwrap();
        let schedule: Schedule = "polynomial:1.5".parse().unwrap();
        let (alpha, slope) = (schedule.alpha(t), schedule.alpha_prime(t));
        let plug_in = Categorical::from_weights(weights[..k].to_vec()).unwrap();
        let bar = |p: f64| k as f64 * alpha * p + 1.0 - alpha;
        let x: Vec<f64> = (0..k).map(|j| bar(f64::from(u8::from(j == x_0)))).collect();
        let theta: Vec<f64> = plug_in.probabilities().iter().map(|p| bar(*p)).collect();
        let sum: f64 =
            (0..k).map(|j| x[j] / x[i] * (theta[i] * x[j] / (theta[j] * x[i])).ln()).sum();
        let states = k as f64;
        let expected = slope / (states * alpha) * (states / x[i] - states / theta[i] - sum);

        let level = schedule.level(t).unwrap();
        let denoiser = process.denoiser_from_leave_one_out(level, i, &plug_in).unwrap();
        let integrand = nelbo_integrand(&process, &schedule, t, i, x_0, &denoiser).unwrap();
        prop_assert!(close(integrand, expected, 1e-12 * (1.0 + expected)), "{integrand} {expected}");

        let divergence = plug_in_divergence(process.signal(level), i, x_0, plug_in.probabilities());
        let closed = schedule.rate(t) / states * divergence;
        prop_assert!(close(closed, expected, 1e-12 * (1.0 + expected)), "{closed} {expected}");
    }
}

#[test]
fn the_plug_in_divergence_keeps_its_digits_where_hardly_any_signal_is_left() {
    let others = [0.5, 0.2, 0.15, 0.1, 0.05];
    for (x_t, x_0) in [(0, 0), (0, 1), (3, 3), (2, 4)] {
        let ratio = |w: f64| plug_in_divergence(w, x_t, x_0, &others) / (w * w);
        let (coarse, fine) = (ratio(1e-4), ratio(1e-7));
        assert!(
            fine > 0.0 && (coarse / fine - 1.0).abs() < 1e-3,
            "{coarse} {fine}"
        );
    }
    // A network that is certain and right costs nothing, at any time.
    for w in [1e-6, 1.0, 1e9] {
        let right = plug_in_divergence(w, 2, 2, &[0.0, 0.0, 1.0]);
        assert!(right.abs() < 1e-12, "{right}");
        let right = plug_in_divergence(w, 1, 2, &[0.0, 0.0, 1.0]);
        assert!(right.abs() < 1e-9 * w.max(1e-3), "{right}");
    }
}

#[test]
fn the_score_of_the_exact_denoiser_is_the_ratio_of_marginals() {
    let toy = Toy::new(2, 3, uniforms(15));
    let level = Schedule::LogLinear.level(0.6).unwrap();
    for process in [
        Process::absorbing(4, 3).unwrap(),
        Process::uniform(3).unwrap(),
    ] {
        for x_t in sequences(2, process.states()) {
            let denoisers = toy.denoisers(&process, level, &x_t).unwrap();
            for slot in 0..2 {
                if process.mask().is_some_and(|mask| mask != x_t[slot]) {
                    let score = process.score(level, x_t[slot], &denoisers[slot]);
                    assert!(matches!(score, Err(Error::NoScore { .. })));
                    continue;
                }
                let score = process.score(level, x_t[slot], &denoisers[slot]).unwrap();
                for (y, score) in score.iter().enumerate() {
                    let mut moved = x_t.clone();
                    moved[slot] = y;
                    let ratio =
                        toy.marginal(&process, level, &moved) / toy.marginal(&process, level, &x_t);
                    assert!(
                        close(*score, ratio, 1e-12),
                        "{x_t:?} {slot} {y}: {score} {ratio}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_integrand_is_finite_at_both_ends() {
    let p = Categorical::new(vec![0.2, 0.3, 0.5, 0.0]).unwrap();
    let absorbing = Process::absorbing(4, 3).unwrap();
    let uniform = Process::uniform(4).unwrap();
    let at = |process, t, x_t| nelbo_integrand(process, &Schedule::LogLinear, t, x_t, 1, &p);
    assert!(close(at(&absorbing, 1.0, 3).unwrap(), -0.3f64.ln(), 1e-15));
    assert_eq!(at(&absorbing, 0.0, 1).unwrap(), 0.0);
    assert!(matches!(
        at(&absorbing, 0.0, 3),
        Err(Error::Impossible { .. })
    ));
    assert_eq!(at(&uniform, 1.0, 2).unwrap(), 0.0);
    assert!(at(&uniform, 1.0 - 1e-12, 2).unwrap() < 1e-9);
    assert!(matches!(
        at(&uniform, 0.0, 1),
        Err(Error::NoScore { x_t: 1, alpha: 1.0 })
    ));
    assert!(matches!(
        at(&uniform, 0.0, 2),
        Err(Error::Impossible { .. })
    ));
    assert!(matches!(
        at(&uniform, 1.5, 2),
        Err(Error::TimeOutOfRange { .. })
    ));
}

/// A denoiser of equal probabilities has −ln p = ln V at every masked slot: weight × expected masks = 1.
#[test]
fn an_ignorant_denoiser_costs_the_logarithm_of_the_vocabulary() {
    let process = Process::absorbing(6, 5).unwrap();
    let p = Categorical::new(vec![0.2, 0.2, 0.2, 0.2, 0.2, 0.0]).unwrap();
    let bound = integral(0.0, 1.0, |t| {
        t * nelbo_integrand(&process, &Schedule::LogLinear, t, 5, 2, &p).unwrap()
    });
    assert!(close(bound, 5f64.ln(), 1e-12), "{bound}");
}
