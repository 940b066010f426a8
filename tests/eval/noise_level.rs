//! Likelihoods of models whose loss depends on the noise level: log-scores, and networks that are told it.

use candle_core::{Device, Tensor};
use unmask::diffusion::{Categorical, NoiseLevel, Process, Schedule};
use unmask::eval::Target;
use unmask::eval::likelihood::{Estimate, Estimator, Settings, estimate};
use unmask::models::{
    Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation, RaggedBatch, RowInput,
};

use crate::support::mock::MockModel;

/// Slots that are independent draws from one distribution over few tokens, known exactly.
struct Exact {
    spec: ModelSpec,
    process: Process,
    /// p(x_0), `[K]`.
    tokens: Categorical,
}

/// Probabilities of the tokens; of the absorbing process the last state is the mask.
const PROBABILITIES: [f64; 4] = [0.5, 0.3, 0.15, 0.05];
/// α(1) of the schedule, as in the official log-linear one.
const LAST_ALPHA: f64 = 1e-3;

impl Exact {
    fn new(absorbing: bool, parameterisation: Parameterisation) -> Self {
        let states = PROBABILITIES.len() + usize::from(absorbing);
        let mask = states - 1;
        let mut tokens = PROBABILITIES.to_vec();
        tokens.resize(states, 0.0);
        Self {
            spec: ModelSpec {
                vocab_size: states,
                corruption: match absorbing {
                    true => Corruption::Absorbing {
                        mask_token: mask as u32,
                    },
                    false => Corruption::Uniform,
                },
                parameterisation,
                noise_conditioned: true,
                noise_schedule: Some(Schedule::table(&[1.0, LAST_ALPHA]).unwrap()),
                ..MockModel::new().spec().clone()
            },
            process: match absorbing {
                true => Process::absorbing(states, mask).unwrap(),
                false => Process::uniform(states).unwrap(),
            },
            tokens: Categorical::new(tokens).unwrap(),
        }
    }

    /// A row of the network's output.
    fn row(&self, input: &RowInput) -> Vec<f32> {
        let sigma = f64::from(input.sigma.expect("a network that is told the noise level"));
        let level = NoiseLevel::from_beta(-(-sigma).exp_m1()).unwrap();
        let marginal = self.process.noised(level, &self.tokens).unwrap();
        let own = marginal.probability(input.token as usize);
        let number = |token: usize| match self.spec.parameterisation {
            Parameterisation::LogScore => (marginal.probability(token) / own).ln(),
            _ => self.tokens.probability(token).max(1e-30).ln(),
        };
        (0..self.spec.vocab_size)
            .map(|token| number(token) as f32)
            .collect()
    }
}

impl Denoiser for Exact {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        Ok(Tensor::zeros(
            (batch.rows(), 1),
            candle_core::DType::F32,
            &Device::Cpu,
        )?)
    }

    fn head(&self, _: &Tensor) -> Result<Tensor, ModelError> {
        unreachable!("the output depends on the row's noise level")
    }

    fn head_rows(&self, _: &Tensor, rows: &[RowInput]) -> Result<Tensor, ModelError> {
        let numbers: Vec<f32> = rows.iter().flat_map(|row| self.row(row)).collect();
        let shape = (rows.len(), self.spec.vocab_size);
        Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
    }
}

fn estimated(model: &Exact, target: &Target) -> Estimate {
    let settings = Settings {
        estimator: Estimator::ContinuousTime,
        groups: 1000,
        strata: 20,
        ..Settings::default()
    };
    estimate(model, &[target], &settings, &mut |_| ()).unwrap()[0]
}

fn assert_near(got: Estimate, expected: f64, case: &str) {
    let (apart, error) = (got.nelbo - expected, got.standard_error.unwrap());
    assert!(error < 0.05 * expected, "{case}: {error} of {expected}");
    assert!(
        apart.abs() < 4.0 * error + 1e-4 * expected,
        "{case}: {} for {expected} ± {error}",
        got.nelbo
    );
}

#[test]
fn the_exact_network_of_the_absorbing_process_loses_what_is_told_apart_between_the_schedules_ends()
{
    let target = Target::whole(vec![0, 1, 0, 2, 3, 0, 1]);
    let nats: f64 = target
        .tokens
        .iter()
        .map(|token| -PROBABILITIES[*token as usize].ln())
        .sum();
    // A slot is masked at time 1 with probability 1 − α(1).
    let expected = (1.0 - LAST_ALPHA) * nats;
    for parameterisation in [
        Parameterisation::LogScore,
        Parameterisation::Logits,
        Parameterisation::Subs,
    ] {
        let model = Exact::new(true, parameterisation);
        let case = format!("{parameterisation:?}");
        assert_near(estimated(&model, &target), expected, &case);
    }
}

#[test]
fn the_exact_log_scores_of_the_uniform_process_lose_nothing_but_the_prior() {
    let model = Exact::new(false, Parameterisation::LogScore);
    let last = NoiseLevel::from_alpha(LAST_ALPHA).unwrap();
    let prior = model.process.noised(last, &model.tokens).unwrap();
    // E KL(q(x_1 | x_0) ‖ p(x_1)) is what the schedule leaves.
    for token in [0u32, 3] {
        let target = Target::whole(vec![token; 5]);
        let nats = -PROBABILITIES[token as usize].ln();
        let marginal = model.process.marginal(last, token as usize).unwrap();
        let expected = 5.0 * (nats - marginal.kl(&prior).unwrap());
        assert_near(
            estimated(&model, &target),
            expected,
            &format!("token {token}"),
        );
    }
}
