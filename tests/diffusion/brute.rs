//! What the closed forms are compared with: matrices written out from their definitions, a quadrature,
//! a seeded generator and a χ² test. Nothing here calls the code under test, but for its types.

use proptest::prelude::*;
use unmask::diffusion::{Noise, Process};

/// `[K][K]`, row first: `m[to][from]`.
pub type Matrix = Vec<Vec<f64>>;

pub fn identity(k: usize) -> Matrix {
    (0..k)
        .map(|i| (0..k).map(|j| f64::from(u8::from(i == j))).collect())
        .collect()
}

/// Q_t from its definition: (1 − β) I + β e_m 1ᵀ or (1 − β) I + β 11ᵀ/K.
pub fn q(process: &Process, beta: f64) -> Matrix {
    let k = process.states();
    let mut matrix = identity(k);
    for (i, row) in matrix.iter_mut().enumerate() {
        for entry in row.iter_mut() {
            let noise = match process.noise() {
                Noise::Absorbing { mask } => f64::from(u8::from(i == mask)),
                Noise::Uniform => 1.0 / k as f64,
            };
            *entry = (1.0 - beta) * *entry + beta * noise;
        }
    }
    matrix
}

/// a · b.
pub fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let k = a.len();
    let entry = |i: usize, j: usize| (0..k).map(|l| a[i][l] * b[l][j]).sum();
    (0..k)
        .map(|i| (0..k).map(|j| entry(i, j)).collect())
        .collect()
}

/// Q_b ⋯ Q_{a+1}: the steps after a up to b.
pub fn steps(process: &Process, betas: &[f64], after: usize, until: usize) -> Matrix {
    let matrices = betas[after..until].iter().map(|beta| q(process, *beta));
    matrices.fold(identity(process.states()), |so_far, next| {
        product(&next, &so_far)
    })
}

/// A process over 2 to 8 states.
pub fn processes() -> impl Strategy<Value = Process> {
    (2usize..=8, any::<bool>(), any::<prop::sample::Index>()).prop_map(|(k, absorbing, mask)| {
        match absorbing {
            true => Process::absorbing(k, mask.index(k)).unwrap(),
            false => Process::uniform(k).unwrap(),
        }
    })
}

/// β_1, …, β_T for T of 1 to 8: anything in [0, 1], its ends and very small values among them.
pub fn betas() -> impl Strategy<Value = Vec<f64>> {
    let beta = prop_oneof![
        8 => 0.0..=1.0f64,
        1 => Just(0.0),
        1 => Just(1.0),
        1 => 1e-14..1e-6f64,
    ];
    prop::collection::vec(beta, 1..=8)
}

/// K positive weights.
pub fn weights() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(0.01..1.0f64, 8)
}

pub fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance
}

pub fn all_close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(*a, *b, tolerance))
}

/// ∫ f over [from, to] by tanh-sinh quadrature, which endures integrable singularities at the ends.
pub fn integral(from: f64, to: f64, mut f: impl FnMut(f64) -> f64) -> f64 {
    const STEP: f64 = 1.0 / 32.0;
    let half = (to - from) / 2.0;
    let mut node = |k: i32| {
        let x = f64::from(k) * STEP;
        let argument = std::f64::consts::FRAC_PI_2 * x.sinh();
        // The distance to the nearer end, computed as such.
        let gap = half * 2.0 / (1.0 + (2.0 * argument.abs()).exp());
        let t = if k < 0 { from + gap } else { to - gap };
        if t <= from || t >= to {
            return 0.0;
        }
        let weight = std::f64::consts::FRAC_PI_2 * x.cosh() / argument.cosh().powi(2);
        half * STEP * weight * f(t)
    };
    (-140..=140).map(&mut node).sum()
}

/// SplitMix64: uniform numbers in [0, 1) at a fixed seed.
pub fn uniforms(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws 200,000 states and requires that χ² against `probabilities` lies below its 99.9 % quantile
/// (Wilson–Hilferty), and that no impossible state is drawn.
pub fn assert_drawn_from(probabilities: &[f64], mut draw: impl FnMut() -> usize) {
    const DRAWS: usize = 200_000;
    let mut counts = vec![0usize; probabilities.len()];
    (0..DRAWS).for_each(|_| counts[draw()] += 1);
    let (mut chi_squared, mut freedom) = (0.0, -1.0);
    for (count, p) in counts.iter().zip(probabilities) {
        if *p == 0.0 {
            assert_eq!(*count, 0, "a state of probability zero was drawn");
            continue;
        }
        let expected = p * DRAWS as f64;
        chi_squared += (*count as f64 - expected).powi(2) / expected;
        freedom += 1.0;
    }
    if freedom == 0.0 {
        return;
    }
    let spread: f64 = 2.0 / (9.0 * freedom);
    let quantile = freedom * (1.0 - spread + 3.09 * spread.sqrt()).powi(3);
    assert!(
        chi_squared < quantile,
        "χ² = {chi_squared} with {freedom} degrees of freedom"
    );
}
