use super::brute::{betas, close, integral, processes, uniforms, weights};
use super::toy::Toy;
use proptest::prelude::*;
use unmask::diffusion::{
    Categorical, DiscreteSchedule, NoiseLevel, Process, Schedule,
    elbo::{diffusion_term, discrete_nelbo, nelbo_integrand, prior_term, reconstruction_term},
};

/// The bound of a toy distribution in discrete time, with denoisers that mix the exact one and 1/K.
fn discrete_bound(toy: &Toy, process: &Process, schedule: &DiscreteSchedule, exact: f64) -> f64 {
    let last = schedule.level(schedule.steps()).unwrap();
    let prior = |x_0| prior_term(process, last, x_0, &process.stationary()).unwrap();
    let sequences = toy.sequences.iter();
    let mut bound: f64 = sequences
        .map(|(x_0, p)| p * x_0.iter().map(|x| prior(*x)).sum::<f64>())
        .sum();
    for t in 1..=schedule.steps() {
        let interval = schedule.interval(t - 1, t).unwrap();
        let level = interval.at_t();
        let denoisers = |x_t: &[usize]| blurred(toy, process, level, x_t, exact);
        bound += toy.expectation(process, level, denoisers, |x_t, x_0, p| match t {
            1 => reconstruction_term(process, level, x_t, x_0, p).unwrap(),
            _ => diffusion_term(process, &interval, x_t, x_0, p).unwrap(),
        });
    }
    bound
}

/// `exact` of the exact leave-one-out posterior and the rest spread over the states other than the mask,
/// as a denoiser. (A blurred *denoiser* of the uniform process has an infinite bound in continuous time:
/// it would have to be certain as t → 0.)
fn blurred(
    toy: &Toy,
    process: &Process,
    level: NoiseLevel,
    x_t: &[usize],
    exact: f64,
) -> Option<Vec<Categorical>> {
    let spread = |state| f64::from(u8::from(Some(state) != process.mask())) * (1.0 - exact) / 3.0;
    let blur = |(slot, p): (usize, Categorical)| {
        let others = process
            .leave_one_out_from_denoiser(level, x_t[slot], &p)
            .unwrap();
        let mixed = others.probabilities().iter().enumerate();
        let mixed = mixed.map(|(state, p)| exact * p + spread(state)).collect();
        let mixed = Categorical::from_weights(mixed).unwrap();
        process
            .denoiser_from_leave_one_out(level, x_t[slot], &mixed)
            .unwrap()
    };
    Some(
        toy.denoisers(process, level, x_t)?
            .into_iter()
            .enumerate()
            .map(blur)
            .collect(),
    )
}

fn continuous_bound(toy: &Toy, process: &Process, schedule: &Schedule, exact: f64) -> f64 {
    integral(0.0, 1.0, |t| {
        let level = schedule.level(t).unwrap();
        let denoisers = |x_t: &[usize]| blurred(toy, process, level, x_t, exact);
        toy.expectation(process, level, denoisers, |x_t, x_0, p| {
            nelbo_integrand(process, schedule, t, x_t, x_0, p).unwrap()
        })
    })
}

proptest! {
    /// A single slot has nothing to factorise, so the bound is tight for every T and every schedule,
    /// also one that leaves signal at T, if the prior is the distribution of x_T.
    #[test]
    fn the_bound_of_the_exact_denoiser_of_one_slot_is_its_entropy_for_every_t(
        process in processes(), betas in betas(), weights in weights(),
    ) {
        let schedule = DiscreteSchedule::from_betas(&betas).unwrap();
        let mut weights = weights[..process.states()].to_vec();
        if let Some(mask) = process.mask() {
            weights[mask] = 0.0;
        }
        let data = Categorical::from_weights(weights).unwrap();
        let last = schedule.level(schedule.steps()).unwrap();
        let prior = process.noised(last, &data).unwrap();
        let mut bound = 0.0;
        for (x_0, p) in data.probabilities().iter().enumerate().filter(|(_, p)| **p > 0.0) {
            let terms = discrete_nelbo(&process, &schedule, x_0, &prior, |x_t, t| {
                process.denoiser_from_leave_one_out(schedule.level(t)?, x_t, &data)
            }).unwrap();
            prop_assert!(terms.prior >= 0.0 && terms.diffusion >= 0.0);
            bound += p * terms.total();
        }
        prop_assert!(close(bound, data.entropy(), 1e-12), "{bound} {}", data.entropy());
    }

    #[test]
    fn the_absorbing_diffusion_term_is_a_weighted_cross_entropy(
        k in 3usize..=8, s in 0.0..1.0f64, share in 0.01..1.0f64, weights in weights(),
    ) {
        let process = Process::absorbing(k, k - 1).unwrap();
        let mut weights = weights[..k].to_vec();
        weights[k - 1] = 0.0;
        let p = Categorical::from_weights(weights).unwrap();
        let interval = Schedule::LogLinear.interval(s, s + (1.0 - s) * share).unwrap();
        let weight = interval.unmasking_probability().unwrap();
        let term = diffusion_term(&process, &interval, k - 1, 0, &p).unwrap();
        prop_assert!(close(term, -weight * p.probability(0).ln(), 1e-12));
        if interval.at_t().alpha() > 0.0 {
            prop_assert_eq!(diffusion_term(&process, &interval, 0, 0, &p).unwrap(), 0.0);
            prop_assert_eq!(reconstruction_term(&process, interval.at_t(), 0, 0, &p).unwrap(), 0.0);
        }
        let masked = reconstruction_term(&process, interval.at_t(), k - 1, 0, &p).unwrap();
        prop_assert!(close(masked, -p.probability(0).ln(), 1e-12));
    }
}

#[test]
fn the_prior_term_vanishes_once_no_signal_is_left() {
    let left = NoiseLevel::from_alpha(0.25).unwrap();
    for process in [
        Process::absorbing(4, 3).unwrap(),
        Process::uniform(4).unwrap(),
    ] {
        let pi = process.stationary();
        assert_eq!(
            prior_term(&process, NoiseLevel::PURE_NOISE, 1, &pi).unwrap(),
            0.0
        );
        let prior = prior_term(&process, left, 1, &pi).unwrap();
        match process.mask() {
            Some(_) => assert_eq!(prior, f64::INFINITY),
            None => {
                let (kept, moved): (f64, f64) = (0.25 + 0.75 / 4.0, 0.75 / 4.0);
                let expected = kept * (4.0 * kept).ln() + 3.0 * moved * (4.0 * moved).ln();
                assert!(close(prior, expected, 1e-15));
            }
        }
    }
}

#[test]
fn the_discrete_bound_converges_to_the_continuous_one_from_above_at_order_one() {
    let toy = Toy::new(2, 3, uniforms(6));
    for process in [
        Process::absorbing(4, 3).unwrap(),
        Process::uniform(3).unwrap(),
    ] {
        for schedule in ["log-linear", "cosine", "polynomial:2", "maskgit"] {
            let schedule: Schedule = schedule.parse().unwrap();
            for exact in [1.0, 0.6] {
                let limit = continuous_bound(&toy, &process, &schedule, exact);
                let gap = |steps| {
                    let discrete = schedule.discretise(steps).unwrap();
                    discrete_bound(&toy, &process, &discrete, exact) - limit
                };
                let (coarse, fine) = (gap(128), gap(256));
                let context = format!("{process:?} {schedule} {exact}: {coarse} {fine}");
                assert!(fine > 0.0 && fine < 0.02, "{context}");
                assert!((1.7..2.3).contains(&(coarse / fine)), "{context}");
            }
        }
    }
}
