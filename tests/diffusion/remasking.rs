use super::brute::{all_close, assert_drawn_from, close, uniforms, weights};
use proptest::prelude::*;
use unmask::diffusion::remasking::{
    RemaskingLoop, cap, conf, posterior, rescale, reverse, sigma_max, unmasking_probability,
};
use unmask::diffusion::{Categorical, Error, Interval, NoiseLevel, Process, Schedule};

/// Any interval with α_s ≥ α_t, the ends of [0, 1] among them.
fn intervals() -> impl Strategy<Value = Interval> {
    let unit = || prop_oneof![6 => 0.0..=1.0f64, 1 => Just(0.0), 1 => Just(1.0)];
    (unit(), unit()).prop_map(|(a, b)| {
        let level = |alpha| NoiseLevel::from_alpha(alpha).unwrap();
        Interval::between(level(a.max(b)), level(a.min(b))).unwrap()
    })
}

proptest! {
    #[test]
    fn the_posterior_is_the_published_one(
        interval in intervals(), share in 0.0..=1.0f64, weights in weights(),
    ) {
        let process = Process::absorbing(4, 3).unwrap();
        let p = Categorical::from_weights(vec![weights[0], weights[1], weights[2], 0.0]).unwrap();
        let sigma = share * sigma_max(&interval);
        let (alpha_s, alpha_t) = (interval.at_s().alpha(), interval.at_t().alpha());
        if alpha_t > 0.0 {
            let kept = reverse(&process, &interval, sigma, 1, &p).unwrap();
            prop_assert_eq!(kept.probabilities(), [0.0, 1.0 - sigma, 0.0, sigma]);
        }
        // Closer to one the published expression itself loses the digits.
        if alpha_t < 0.99 {
            let revealed = (alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t);
            let masked = (1.0 - alpha_s - sigma * alpha_t) / (1.0 - alpha_t);
            let expected: Vec<f64> = (0..4)
                .map(|x| revealed * p.probability(x) + if x == 3 { masked } else { 0.0 })
                .collect();
            let step = reverse(&process, &interval, sigma, 3, &p).unwrap();
            prop_assert!(all_close(step.probabilities(), &expected, 1e-12));
            let revealing = unmasking_probability(&interval, sigma).unwrap().unwrap();
            prop_assert!(close(revealing, revealed, 1e-12));
        }
    }

    #[test]
    fn the_marginals_stay_those_of_the_forward_process(
        interval in intervals(), share in 0.0..=1.0f64, x_0 in 0usize..3,
    ) {
        let process = Process::absorbing(4, 3).unwrap();
        let sigma = share * sigma_max(&interval);
        let mut at_s = vec![0.0; 4];
        let at_t = process.marginal(interval.at_t(), x_0).unwrap();
        for (x_t, q) in at_t.probabilities().iter().enumerate().filter(|(_, q)| **q > 0.0) {
            let step = posterior(&process, &interval, sigma, x_t, x_0).unwrap();
            prop_assert!(close(step.probabilities().iter().sum(), 1.0, 1e-12));
            at_s.iter_mut().zip(step.probabilities()).for_each(|(m, p)| *m += q * p);
        }
        let expected = process.marginal(interval.at_s(), x_0).unwrap();
        prop_assert!(all_close(&at_s, expected.probabilities(), 1e-12));
    }

    #[test]
    fn sigma_zero_is_the_ordinary_posterior(interval in intervals(), x_0 in 0usize..3) {
        let process = Process::absorbing(4, 3).unwrap();
        for x_t in 0..4 {
            let remasking = posterior(&process, &interval, 0.0, x_t, x_0);
            let ordinary = process.posterior(&interval, x_t, x_0);
            match (remasking, ordinary) {
                (Ok(a), Ok(b)) => {
                    prop_assert!(all_close(a.probabilities(), b.probabilities(), 1e-12))
                }
                (a, b) => prop_assert_eq!(a, b),
            }
        }
    }

    #[test]
    fn every_choice_of_sigma_obeys_the_bound(
        interval in intervals(), eta in 0.0..=1.0f64,
        confidences in prop::collection::vec(prop::option::of(0.0..=1.0f64), 0..12),
    ) {
        let (alpha_s, alpha_t) = (interval.at_s().alpha(), interval.at_t().alpha());
        let largest = sigma_max(&interval);
        if alpha_t > 0.0 {
            prop_assert!(close(largest, ((1.0 - alpha_s) / alpha_t).min(1.0), 1e-12));
        } else {
            prop_assert_eq!(largest, 1.0);
        }
        prop_assert_eq!(cap(&interval, eta).unwrap(), eta.min(largest));
        prop_assert!(close(rescale(&interval, eta).unwrap(), eta * largest, 1e-15));
        let sigmas = conf(largest, &confidences).unwrap();
        prop_assert_eq!(sigmas.len(), confidences.len());
        for (sigma, confidence) in sigmas.iter().zip(&confidences) {
            prop_assert!((0.0..=largest).contains(sigma));
            prop_assert!(confidence.is_some() || *sigma == 0.0);
        }
        let total = if confidences.iter().flatten().count() > 0 { largest } else { 0.0 };
        prop_assert!(close(sigmas.iter().sum(), total, 1e-12));
    }

    /// The three phases as the authors' sampler has them, for α = 1 − t and their setting for text.
    #[test]
    fn the_loop_has_the_published_phases(s in 0.0..=1.0f64, t in 0.0..=1.0f64) {
        let (s, t) = (s.min(t), s.max(t));
        let (t_on, t_off, alpha_on, eta) = (0.55, 0.05, 0.9, 0.02);
        let remasking = RemaskingLoop::new(Schedule::LogLinear, t_on, t_off, alpha_on).unwrap();
        let published = |t: f64| if t > t_on {
            (1.0 - t) * alpha_on / (1.0 - t_on)
        } else if t <= t_off {
            1.0 - t * (1.0 - alpha_on) / t_off
        } else {
            alpha_on
        };
        prop_assert!(close(remasking.level(t).unwrap().alpha(), published(t), 1e-14));
        let interval = remasking.interval(s, t).unwrap();
        prop_assert!(close(interval.at_s().alpha(), published(s), 1e-14));
        prop_assert!(close(interval.at_t().alpha(), published(t), 1e-14));
        let sigma = remasking.sigma(s, t, eta).unwrap();
        if t > t_on || t <= t_off {
            prop_assert_eq!(sigma, 0.0);
        } else if s > t_off {
            prop_assert_eq!(sigma, eta);
        }
        prop_assert!(sigma <= sigma_max(&interval));
    }
}

#[test]
fn inside_the_loop_as_many_slots_are_revealed_as_masked() {
    let remasking = RemaskingLoop::new(Schedule::LogLinear, 0.55, 0.05, 0.9).unwrap();
    let interval = remasking.interval(0.3, 0.4).unwrap();
    let sigma = remasking.sigma(0.3, 0.4, 0.02).unwrap();
    let revealed = unmasking_probability(&interval, sigma).unwrap().unwrap();
    assert!(close(0.1 * revealed, 0.9 * sigma, 1e-15));
    // 0.02 · 0.9 / 0.1
    assert!(close(revealed, 0.18, 1e-14));
}

#[test]
fn the_least_confident_slots_are_masked_first() {
    let sigmas = conf(0.5, &[Some(0.9), None, Some(0.1), Some(0.9)]).unwrap();
    assert!(sigmas[2] > sigmas[0] && sigmas[0] == sigmas[3] && sigmas[1] == 0.0);
    let ratio: f64 = sigmas[2] / sigmas[0];
    assert!(close(ratio, 0.8f64.exp(), 1e-14));
    assert_eq!(conf(0.5, &[]).unwrap(), Vec::<f64>::new());
    assert_eq!(conf(0.5, &[None, None]).unwrap(), [0.0, 0.0]);
}

/// Slots in a number of which the clean ones are the process's share.
#[test]
fn with_the_mean_of_their_sigmas_the_committed_slots_keep_their_number() {
    for (clean, masked, s) in [(3, 1, 0.1), (1, 3, 0.5), (24, 8, 0.24)] {
        let slots = f64::from(clean + masked);
        let interval = Schedule::LogLinear.interval(s, f64::from(masked) / slots);
        let interval = interval.unwrap();
        let confidences: Vec<_> = (0..clean)
            .map(|slot| Some(f64::from(slot) / 40.0))
            .collect();
        let sigmas = conf(0.7 * sigma_max(&interval), &confidences).unwrap();
        let masked_again: f64 = sigmas.iter().sum();
        let mean = masked_again / f64::from(clean);
        let clean_at_s = |sigma| {
            let revealed = unmasking_probability(&interval, sigma).unwrap().unwrap();
            f64::from(clean) - masked_again + f64::from(masked) * revealed
        };
        assert!(close(clean_at_s(mean), slots * (1.0 - s), 1e-12));
        assert!(clean_at_s(0.0) < slots * (1.0 - s) - 0.05);
    }
}

#[test]
fn draws_follow_the_remasking_step() {
    let process = Process::absorbing(4, 3).unwrap();
    let interval = Schedule::LogLinear.interval(0.5, 0.6).unwrap();
    let p = Categorical::new(vec![0.2, 0.3, 0.5, 0.0]).unwrap();
    let mut uniform = uniforms(16);
    for x_t in [1, 3] {
        let step = reverse(&process, &interval, 0.3, x_t, &p).unwrap();
        assert_drawn_from(step.probabilities(), || step.sample(uniform()));
    }
}

#[test]
fn what_remasking_cannot_do_is_refused() {
    let process = Process::absorbing(4, 3).unwrap();
    let interval = Schedule::LogLinear.interval(0.1, 0.2).unwrap();
    let p = Categorical::uniform(4).unwrap();
    for sigma in [-0.1, 0.2, f64::NAN] {
        let refused = reverse(&process, &interval, sigma, 3, &p);
        assert!(
            matches!(refused, Err(Error::SigmaOutOfRange { .. })),
            "{refused:?}"
        );
    }
    let uniform = Process::uniform(4).unwrap();
    assert_eq!(
        reverse(&uniform, &interval, 0.0, 3, &p),
        Err(Error::NotAbsorbing)
    );
    let pair = posterior(&process, &interval, 0.0, 0, 1);
    assert!(matches!(pair, Err(Error::Impossible { .. })));
    for eta in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(cap(&interval, eta), Err(Error::Parameter { .. })));
        assert!(matches!(
            rescale(&interval, eta),
            Err(Error::Parameter { .. })
        ));
        assert!(matches!(conf(eta, &[]), Err(Error::Parameter { .. })));
    }
    assert!(conf(0.5, &[Some(f64::NAN)]).is_err());
    let loops = |t_on, t_off, alpha| RemaskingLoop::new(Schedule::LogLinear, t_on, t_off, alpha);
    assert!(matches!(
        loops(0.1, 0.2, 0.9),
        Err(Error::TimesReversed { .. })
    ));
    assert!(matches!(
        loops(1.1, 0.2, 0.9),
        Err(Error::TimeOutOfRange { .. })
    ));
    assert!(matches!(
        loops(0.5, 0.2, 1.9),
        Err(Error::AlphaOutOfRange { .. })
    ));
}
