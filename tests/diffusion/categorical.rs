use super::brute::{all_close, assert_drawn_from, close, uniforms, weights};
use proptest::prelude::*;
use unmask::diffusion::Categorical;

proptest! {
    #[test]
    fn kl_is_cross_entropy_minus_entropy(p in weights(), q in weights()) {
        let p = Categorical::from_weights(p).unwrap();
        let q = Categorical::from_weights(q).unwrap();
        let kl = p.kl(&q).unwrap();
        prop_assert!(close(kl, p.cross_entropy(&q).unwrap() - p.entropy(), 1e-12));
        prop_assert!(kl >= 0.0);
        prop_assert_eq!(p.kl(&p).unwrap(), 0.0);
    }

    #[test]
    fn a_small_kl_keeps_its_digits(p in weights(), shift in 1e-9..1e-7f64) {
        // KL(p ‖ p + ε) = ε²/2 Σ d²/p + O(ε³), far below the rounding of an entropy.
        let p = Categorical::from_weights(p).unwrap();
        let mut moved = p.probabilities().to_vec();
        moved[0] += shift;
        moved[1] -= shift;
        let expected = shift * shift / 2.0 * (1.0 / p.probability(0) + 1.0 / p.probability(1));
        let kl = p.kl(&Categorical::new(moved).unwrap()).unwrap();
        prop_assert!(close(kl / expected, 1.0, 1e-4), "{kl} {expected}");
    }

    #[test]
    fn a_draw_inverts_the_cumulative_distribution(p in weights(), u in 0.0..1.0f64) {
        let p = Categorical::from_weights(p).unwrap();
        let state = p.sample(u);
        let below: f64 = p.probabilities()[..state].iter().sum();
        prop_assert!(below <= u + 1e-15 && u <= below + p.probability(state) + 1e-15);
    }
}

#[test]
fn entropies_of_known_distributions() {
    let uniform = Categorical::uniform(8).unwrap();
    let point = Categorical::one_hot(8, 3).unwrap();
    assert!(close(uniform.entropy(), 8f64.ln(), 1e-15));
    assert_eq!(point.entropy().to_bits(), 0f64.to_bits());
    assert!(close(point.kl(&uniform).unwrap(), 8f64.ln(), 1e-15));
    assert_eq!(uniform.kl(&point).unwrap(), f64::INFINITY);
    assert_eq!(uniform.cross_entropy(&point).unwrap(), f64::INFINITY);
}

#[test]
fn draws_follow_the_distribution_and_never_give_an_impossible_state() {
    let p = Categorical::new(vec![0.0, 0.5, 0.0, 0.3, 0.2, 0.0]).unwrap();
    let mut uniform = uniforms(1);
    assert_drawn_from(p.probabilities(), || p.sample(uniform()));
    assert_eq!((p.sample(0.0), p.sample(-1.0)), (1, 1));
    // The first half of [0, 1) does not contain 1/2.
    assert_eq!((p.sample(0.5 - 1e-16), p.sample(0.5)), (1, 3));
    assert_eq!(
        (p.sample(1.0 - f64::EPSILON), p.sample(1.0), p.sample(2.0)),
        (4, 4, 4)
    );
}

#[test]
fn weights_are_normalised_and_nonsense_is_refused() {
    let p = Categorical::from_weights(vec![1.0, 3.0]).unwrap();
    assert!(all_close(p.probabilities(), &[0.25, 0.75], 0.0));
    for bad in [
        vec![],
        vec![0.0, 0.0],
        vec![-1.0, 2.0],
        vec![f64::NAN, 1.0],
        vec![f64::INFINITY],
    ] {
        assert!(Categorical::from_weights(bad).is_err());
    }
    assert!(Categorical::new(vec![0.5, 0.4]).is_err());
    assert!(Categorical::uniform(0).is_err());
    assert!(p.kl(&Categorical::uniform(3).unwrap()).is_err());
}
