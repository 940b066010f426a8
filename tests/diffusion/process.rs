use super::brute::{
    Matrix, all_close, assert_drawn_from, betas, close, processes, q, steps, uniforms, weights,
};
use proptest::prelude::*;
use unmask::diffusion::{Categorical, DiscreteSchedule, NoiseLevel, Process, Schedule};

fn closed_form(process: &Process, level: NoiseLevel) -> Matrix {
    let k = process.states();
    let entry = |to, from| process.transition(level, to, from).unwrap();
    (0..k)
        .map(|to| (0..k).map(|from| entry(to, from)).collect())
        .collect()
}

fn same(a: &Matrix, b: &Matrix) -> bool {
    a.iter().zip(b).all(|(a, b)| all_close(a, b, 1e-12))
}

proptest! {
    #[test]
    fn the_closed_forms_are_the_matrix_products(process in processes(), betas in betas()) {
        let schedule = DiscreteSchedule::from_betas(&betas).unwrap();
        for t in 1..=betas.len() {
            let step = closed_form(&process, schedule.step(t).unwrap());
            prop_assert!(same(&step, &q(&process, betas[t - 1])));
            let cumulative = closed_form(&process, schedule.level(t).unwrap());
            prop_assert!(same(&cumulative, &steps(&process, &betas, 0, t)));
            for s in 0..=t {
                let between = closed_form(&process, schedule.interval(s, t).unwrap().step());
                prop_assert!(same(&between, &steps(&process, &betas, s, t)), "{s} {t}");
            }
        }
    }

    #[test]
    fn columns_are_distributions(process in processes(), alpha in 0.0..=1.0f64) {
        let matrix = closed_form(&process, NoiseLevel::from_alpha(alpha).unwrap());
        for from in 0..process.states() {
            let column: Vec<f64> = matrix.iter().map(|row| row[from]).collect();
            prop_assert!(close(column.iter().sum(), 1.0, 1e-12));
            let level = NoiseLevel::from_alpha(alpha).unwrap();
            let marginal = process.marginal(level, from).unwrap();
            prop_assert!(all_close(marginal.probabilities(), &column, 0.0));
        }
    }

    #[test]
    fn noising_a_distribution_is_the_matrix_vector_product(
        process in processes(), alpha in 0.0..=1.0f64, weights in weights(),
    ) {
        let level = NoiseLevel::from_alpha(alpha).unwrap();
        let p = Categorical::from_weights(weights[..process.states()].to_vec()).unwrap();
        let matrix = q(&process, 1.0 - alpha);
        let expected: Vec<f64> = matrix.iter()
            .map(|row| row.iter().zip(p.probabilities()).map(|(q, p)| q * p).sum())
            .collect();
        let noised = process.noised(level, &p).unwrap();
        prop_assert!(all_close(noised.probabilities(), &expected, 1e-12));
    }

    #[test]
    fn rates_are_the_derivative_of_the_transitions(process in processes(), t in 0.1..0.9f64) {
        let schedule = Schedule::polynomial(2.0).unwrap();
        let h = 1e-6;
        let step = schedule.interval(t, t + h).unwrap().step();
        for from in 0..process.states() {
            let mut column = 0.0;
            for to in 0..process.states() {
                let rate = process.jump_rate(schedule.rate(t), to, from).unwrap();
                let unit = f64::from(u8::from(to == from));
                let moved = (process.transition(step, to, from).unwrap() - unit) / h;
                prop_assert!(close(rate, moved, 1e-4 * (1.0 + rate.abs())), "{rate} {moved}");
                column += rate;
            }
            prop_assert!(close(column, 0.0, 1e-12));
        }
    }
}

#[test]
fn pure_noise_is_the_stationary_distribution_and_no_noise_the_data() {
    for process in [
        Process::absorbing(5, 2).unwrap(),
        Process::uniform(5).unwrap(),
    ] {
        let pi = process.stationary();
        for x_0 in 0..5 {
            assert_eq!(process.marginal(NoiseLevel::PURE_NOISE, x_0).unwrap(), pi);
            let clean = process.marginal(NoiseLevel::CLEAN, x_0).unwrap();
            assert_eq!(clean, Categorical::one_hot(5, x_0).unwrap());
        }
        let level = NoiseLevel::from_alpha(0.3).unwrap();
        assert!(all_close(
            process.noised(level, &pi).unwrap().probabilities(),
            pi.probabilities(),
            1e-15
        ));
    }
}

#[test]
fn corruption_draws_follow_the_marginal() {
    let mut uniform = uniforms(2);
    for process in [
        Process::absorbing(6, 5).unwrap(),
        Process::uniform(6).unwrap(),
    ] {
        for alpha in [0.0, 0.1, 0.5, 0.97, 1.0] {
            let level = NoiseLevel::from_alpha(alpha).unwrap();
            let marginal = process.marginal(level, 1).unwrap();
            assert_drawn_from(marginal.probabilities(), || {
                process.corrupt(level, 1, uniform()).unwrap()
            });
        }
    }
}

#[test]
fn slots_are_corrupted_independently() {
    let process = Process::uniform(2).unwrap();
    let level = NoiseLevel::from_alpha(0.4).unwrap();
    let mut uniform = uniforms(3);
    // Two slots as one state of four; q(0 | 0) = 0.4 + 0.3.
    let expected = [0.7 * 0.3, 0.7 * 0.7, 0.3 * 0.3, 0.3 * 0.7];
    assert_drawn_from(&expected, || {
        let pair = process.corrupt_slots(level, &[0, 1], &mut uniform).unwrap();
        2 * pair[0] + pair[1]
    });
}

#[test]
fn a_tiny_noise_level_is_not_rounded_away() {
    let process = Process::absorbing(3, 2).unwrap();
    let level = NoiseLevel::from_beta(1e-20).unwrap();
    assert_eq!(process.marginal(level, 0).unwrap().probability(2), 1e-20);
    assert_eq!(process.corrupt(level, 0, 0.5e-20).unwrap(), 2);
    assert_eq!(process.corrupt(level, 0, 2e-20).unwrap(), 0);
}
