use super::brute::close;
use proptest::prelude::*;
use std::f64::consts::{FRAC_PI_2, PI};
use unmask::diffusion::{DiscreteSchedule, Error, NoiseLevel, Schedule};

/// One of each, with those that reach α(0) = 1 and α(1) = 0 first.
const ALL: [&str; 12] = [
    "log-linear",
    "d3pm",
    "cosine",
    "cosine:0",
    "maskgit",
    "polynomial:2",
    "polynomial:0.5",
    "table:1,0.9,0.4,0.4,0",
    "geometric:1e-5,20",
    "linear-beta:0.1,20",
    "linear-beta:0,3",
    "table:0.99,0.5,0.1",
];
const COMPLETE: usize = 8;

fn schedules() -> impl Iterator<Item = Schedule> {
    ALL.iter().map(|text| text.parse().unwrap())
}

fn relative(a: f64, b: f64, tolerance: f64) -> bool {
    close(a, b, tolerance * b.abs())
}

proptest! {
    #[test]
    fn the_pieces_agree_with_each_other(t in 1e-9..1.0f64) {
        for schedule in schedules() {
            let (alpha, noise) = (schedule.alpha(t), schedule.one_minus_alpha(t));
            let slope = schedule.alpha_prime(t);
            prop_assert!(close(alpha + noise, 1.0, 1e-15), "{schedule}");
            prop_assert!(slope <= 0.0, "{schedule}");
            if slope == 0.0 {
                prop_assert!(schedule.weight(t) == 0.0 && schedule.rate(t) == 0.0);
                continue;
            }
            prop_assert!(relative(schedule.weight(t), -slope / noise, 1e-12), "{schedule} {t}");
            prop_assert!(relative(schedule.rate(t), -slope / alpha, 1e-12), "{schedule} {t}");
            let level = schedule.level(t).unwrap();
            prop_assert_eq!((level.alpha(), level.one_minus_alpha()), (alpha, noise));
        }
    }

    #[test]
    fn the_derivative_is_the_derivative(t in 0.01..0.99f64) {
        let h = 1e-6;
        for schedule in schedules() {
            // Not across an entry of a table.
            let knot = |n: f64| ((t * n).round() / n - t).abs() < 2.0 * h;
            if knot(4.0) || knot(2.0) {
                continue;
            }
            let quotient = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2.0 * h);
            prop_assert!(close(schedule.alpha_prime(t), quotient, 1e-6), "{schedule} {t}");
        }
    }

    #[test]
    fn alpha_never_increases(s in 0.0..=1.0f64, t in 0.0..=1.0f64) {
        let (s, t) = (s.min(t), s.max(t));
        for schedule in schedules() {
            prop_assert!(schedule.alpha(s) >= schedule.alpha(t) - 1e-15, "{schedule}");
            let interval = schedule.interval(s, t).unwrap();
            prop_assert!(close(interval.at_s().alpha(), schedule.alpha(s), 1e-15));
            prop_assert!(close(interval.at_t().alpha(), schedule.alpha(t), 1e-15));
            prop_assert!(close(interval.at_t().one_minus_alpha(), schedule.one_minus_alpha(t), 1e-14));
        }
    }

    #[test]
    fn in_discrete_time_alpha_bar_is_the_product_of_one_minus_beta(steps in 1usize..200) {
        for schedule in schedules() {
            // A linear β_t of more than one is refused, which is tested below.
            let Ok(discrete) = schedule.discretise(steps) else { continue };
            prop_assert_eq!(discrete.steps(), steps);
            prop_assert_eq!(discrete.alpha_bar(0).unwrap(), 1.0);
            let mut product = 1.0;
            for t in 1..=steps {
                let beta = discrete.beta(t).unwrap();
                prop_assert!((0.0..=1.0).contains(&beta));
                product *= 1.0 - beta;
                prop_assert!(close(discrete.alpha_bar(t).unwrap(), product, 1e-12), "{schedule}");
                if !matches!(schedule, Schedule::LinearBeta(_)) {
                    let continuous = schedule.alpha(t as f64 / steps as f64);
                    prop_assert!(close(product, continuous, 1e-12), "{schedule} {t}");
                }
            }
        }
    }

    #[test]
    fn text_round_trips(a in 1e-6..1.0f64, b in 1.0..50.0f64) {
        let made = [
            Schedule::cosine(a).unwrap(),
            Schedule::polynomial(b).unwrap(),
            Schedule::geometric(a, b).unwrap(),
            Schedule::linear_beta(a, b).unwrap(),
            Schedule::table(&[1.0, a, a / 3.0]).unwrap(),
        ];
        for schedule in made.into_iter().chain(schedules()) {
            prop_assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
        }
    }
}

#[test]
fn known_values() {
    let at = |text: &str, t| text.parse::<Schedule>().unwrap().alpha(t);
    assert_eq!(at("log-linear", 0.25), 0.75);
    assert!(close(at("cosine:0", 0.5), 0.5, 1e-15));
    let nichol = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    assert!(close(at("cosine", 0.3), nichol(0.3) / nichol(0.0), 1e-14));
    assert!(close(at("maskgit", 1.0 / 3.0), 0.5, 1e-15));
    assert!(close(at("polynomial:3", 0.5), 0.875, 1e-15));
    assert!(close(at("geometric:0.25,4", 0.5), (-1f64).exp(), 1e-15));
    assert!(close(at("linear-beta:1,3", 1.0), (-2f64).exp(), 1e-15));
    assert!(close(at("table:1,0.8,0", 0.75), 0.4, 1e-15));
    assert_eq!(Schedule::LogLinear.weight(0.25), 4.0);
    assert!(close(
        "maskgit".parse::<Schedule>().unwrap().weight(0.5),
        FRAC_PI_2,
        1e-14
    ));
}

#[test]
fn the_ends_are_exact_where_the_schedule_reaches_them() {
    for schedule in schedules().take(COMPLETE) {
        assert_eq!(
            (schedule.alpha(0.0), schedule.alpha(1.0)),
            (1.0, 0.0),
            "{schedule}"
        );
        assert_eq!(schedule.one_minus_alpha(0.0), 0.0, "{schedule}");
        assert!(
            close(schedule.one_minus_alpha(1.0), 1.0, 1e-15),
            "{schedule}"
        );
        assert_eq!(schedule.weight(0.0), f64::INFINITY, "{schedule}");
        assert_eq!(schedule.rate(1.0), f64::INFINITY, "{schedule}");
        assert!(schedule.weight(1.0).is_finite());
    }
}

#[test]
fn small_noise_and_small_signal_keep_their_digits() {
    let noise = |text: &str, t| text.parse::<Schedule>().unwrap().one_minus_alpha(t);
    let signal = |text: &str, t: f64| text.parse::<Schedule>().unwrap().alpha(t);
    let tiny = 1e-18;
    assert_eq!(noise("log-linear", tiny), tiny);
    assert!(relative(noise("maskgit", tiny), FRAC_PI_2 * tiny, 1e-14));
    assert!(relative(
        noise("cosine:0", tiny),
        (FRAC_PI_2 * tiny).powi(2),
        1e-14
    ));
    let tangent = (FRAC_PI_2 * 0.008 / 1.008).tan();
    assert!(relative(
        noise("cosine", tiny),
        PI / 1.008 * tangent * tiny,
        1e-12
    ));
    assert!(relative(noise("polynomial:2", tiny), tiny * tiny, 1e-13));
    assert!(relative(
        noise("linear-beta:0.1,20", tiny),
        0.1 * tiny,
        1e-14
    ));
    assert!(relative(noise("geometric:1e-18,20", 0.0), 1e-18, 1e-14));

    // 2^-40 before the end, a distance that is exact.
    let left = 2f64.powi(-40);
    let t = 1.0 - left;
    assert_eq!(signal("log-linear", t), left);
    assert!(relative(
        signal("polynomial:3", t),
        3.0 * left - 3.0 * left * left,
        1e-14
    ));
    assert!(relative(
        signal("cosine:0", t),
        (FRAC_PI_2 * left).powi(2),
        1e-12
    ));
    assert!(relative(
        signal("maskgit", t),
        (FRAC_PI_2 * left).powi(2) / 2.0,
        1e-12
    ));
}

#[test]
fn d3pms_absorbing_schedule_is_the_log_linear_one() {
    let discrete = "d3pm".parse::<Schedule>().unwrap().discretise(10).unwrap();
    for t in 1..=10 {
        assert_eq!(discrete.beta(t).unwrap(), 1.0 / (10 - t + 1) as f64);
        assert!(close(
            discrete.alpha_bar(t).unwrap(),
            1.0 - t as f64 / 10.0,
            1e-15
        ));
    }
    assert_eq!(discrete.beta(10).unwrap(), 1.0);
    assert_eq!(discrete, Schedule::LogLinear.discretise(10).unwrap());
}

#[test]
fn linear_betas_are_those_of_the_diffusion_paper_and_approach_continuous_time() {
    let schedule: Schedule = "linear-beta:0.1,20".parse().unwrap();
    let discrete = schedule.discretise(1000).unwrap();
    assert!(close(discrete.beta(1).unwrap(), 1e-4, 1e-18));
    assert!(close(discrete.beta(1000).unwrap(), 0.02, 1e-16));
    let gap = |steps: usize| {
        let discrete = schedule.discretise(steps).unwrap();
        (discrete.alpha_bar(steps / 2).unwrap() - schedule.alpha(0.5)).abs()
    };
    assert!((gap(1000) / gap(2000) - 2.0).abs() < 0.1);
    assert!(matches!(
        schedule.discretise(10),
        Err(Error::BetaOutOfRange { t: 6, .. })
    ));
}

#[test]
fn a_beta_of_one_in_the_middle_leaves_no_signal_but_keeps_the_later_steps() {
    let discrete = DiscreteSchedule::from_betas(&[0.5, 1.0, 0.25, 0.5]).unwrap();
    assert_eq!(discrete.alpha_bar(2).unwrap(), 0.0);
    assert_eq!(discrete.beta(3).unwrap(), 0.25);
    let interval = discrete.interval(2, 4).unwrap();
    assert_eq!(interval.step().alpha(), 0.375);
    assert_eq!(discrete.interval(3, 3).unwrap().step(), NoiseLevel::CLEAN);
}

#[test]
fn invalid_schedules_are_typed_errors() {
    assert_eq!(Schedule::LogLinear.discretise(0), Err(Error::NoSteps));
    assert_eq!(DiscreteSchedule::from_betas(&[]), Err(Error::NoSteps));
    assert_eq!(DiscreteSchedule::from_alpha_bars(&[]), Err(Error::NoSteps));
    assert_eq!(DiscreteSchedule::mutual_information(0), Err(Error::NoSteps));
    for value in [-0.1, 1.5] {
        let betas = DiscreteSchedule::from_betas(&[0.5, value]);
        assert_eq!(betas, Err(Error::BetaOutOfRange { t: 2, value }));
    }
    assert!(DiscreteSchedule::from_betas(&[f64::NAN]).is_err());
    let increasing = Error::AlphaIncreases {
        earlier: 0.5,
        later: 0.6,
    };
    assert_eq!(Schedule::table(&[1.0, 0.5, 0.6]), Err(increasing.clone()));
    assert_eq!(
        DiscreteSchedule::from_alpha_bars(&[0.5, 0.6]),
        Err(increasing)
    );
    assert_eq!(Schedule::table(&[]), Err(Error::ShortTable { entries: 0 }));
    assert_eq!(
        Schedule::table(&[1.0]),
        Err(Error::ShortTable { entries: 1 })
    );
    assert_eq!(
        Schedule::table(&[1.2, 0.5]),
        Err(Error::AlphaOutOfRange { value: 1.2 })
    );
    assert!(Schedule::table(&[f64::NAN, 0.5]).is_err());
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            Schedule::polynomial(bad),
            Err(Error::Parameter { .. })
        ));
        assert!(matches!(
            Schedule::geometric(bad, 20.0),
            Err(Error::Parameter { .. })
        ));
    }
    assert!(Schedule::geometric(2.0, 1.0).is_err());
    assert!(Schedule::linear_beta(2.0, 1.0).is_err());
    assert!(Schedule::linear_beta(0.0, 0.0).is_err());
    assert!(Schedule::cosine(-0.1).is_err());
}

#[test]
fn text_that_is_no_schedule_says_what_is_expected() {
    let message = |text: &str| text.parse::<Schedule>().unwrap_err().to_string();
    assert!(message("linear").contains("log-linear, cosine"));
    assert!(message("").contains("unknown noise schedule"));
    assert!(message("polynomial").contains("polynomial:POWER"));
    assert!(message("polynomial:two").contains("polynomial:two"));
    assert!(message("log-linear:1").contains("without parameters"));
    assert!(message("geometric:1e-5").contains("geometric:MIN,MAX"));
    assert!(message("geometric:0,20").contains("minimum is 0"));
    assert!(message("table:").contains("table:ALPHA"));
    assert!(message("cosine:1,2").contains("OFFSET"));
}

#[test]
fn times_outside_the_schedule_are_refused() {
    let schedule = Schedule::LogLinear;
    for t in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(
            schedule.level(t),
            Err(Error::TimeOutOfRange { name: "t", .. })
        ));
        assert!(schedule.alpha(t).is_nan() && schedule.weight(t).is_nan());
        assert!(schedule.one_minus_alpha(t).is_nan() && schedule.rate(t).is_nan());
        assert!(schedule.alpha_prime(t).is_nan());
    }
    let reversed = Error::TimesReversed { s: 0.6, t: 0.5 };
    assert_eq!(schedule.interval(0.6, 0.5), Err(reversed));
    let discrete = schedule.discretise(3).unwrap();
    assert_eq!(
        discrete.beta(0),
        Err(Error::StepOutOfRange {
            t: 0,
            first: 1,
            last: 3
        })
    );
    assert_eq!(
        discrete.level(4),
        Err(Error::StepOutOfRange {
            t: 4,
            first: 0,
            last: 3
        })
    );
    assert!(matches!(
        discrete.interval(2, 1),
        Err(Error::TimesReversed { .. })
    ));
}
