//! Sampling with models of the uniform process, held to the distribution that it must draw from.

use candle_core::{DType, Device, Tensor};
use unmask::canvas::{Blank, Canvas};
use unmask::decode::{DecodePlan, preset};
use unmask::engine::{Engine, EngineConfig, Event};
use unmask::eval::Target;
use unmask::eval::likelihood::{self, Estimator, Settings};
use unmask::models::{
    AttentionPattern, Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation,
    RaggedBatch,
};

/// What the model says of every slot, whatever the others hold.
const DATA: [f64; 6] = [0.4, 0.25, 0.15, 0.1, 0.07, 0.03];

/// A model of slots that are independent of each other: p(x_0 | the other slots) is the data's
/// distribution, and so its denoiser is exact.
struct Independent(ModelSpec);

impl Independent {
    fn new() -> Self {
        let preset = preset::by_name("uniform-ancestral").unwrap();
        Self(ModelSpec {
            family: "mock",
            parameters: 0,
            active_parameters: 0,
            hidden_size: 1,
            layers: 0,
            kv_heads: 1,
            head_dim: 1,
            other_layers: Default::default(),
            vocab_size: DATA.len(),
            max_canvas: 4096,
            sliding_window: None,
            corruption: Corruption::Uniform,
            parameterisation: Parameterisation::Logits,
            noise_conditioned: false,
            self_conditioned: false,
            noise_schedule: None,
            stop_tokens: Vec::new(),
            resize_tokens: None,
            attention: AttentionPattern::Bidirectional,
            logit_shift: 0,
            default_plan: preset.plan().clone(),
        })
    }
}

impl Denoiser for Independent {
    fn spec(&self) -> &ModelSpec {
        &self.0
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        Ok(Tensor::zeros((batch.rows(), 1), DType::F32, &Device::Cpu)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let row: Vec<f32> = DATA.iter().map(|p| p.ln() as f32).collect();
        let rows = hidden.dim(0)?;
        Ok(Tensor::new(row.as_slice(), &Device::Cpu)?.broadcast_as((rows, DATA.len()))?)
    }
}

fn denoised(engine: &Engine, plan: &DecodePlan, slots: usize) -> Canvas {
    let canvas = Canvas::builder(engine.blank()).gap(slots).build().unwrap();
    let mut generation = engine.submit(canvas, plan).unwrap();
    loop {
        match generation.next_blocking().unwrap() {
            Event::Step(_) => {}
            Event::Finished(canvas, _) => return canvas,
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_reverse_process_of_an_exact_denoiser_draws_the_data_in_any_number_of_steps() {
    let engine = Engine::start(Box::new(Independent::new()), EngineConfig::unshared()).unwrap();
    assert_eq!(engine.blank(), Blank::Noise { vocab: 6 });
    for steps in [1, 2, 5, 12] {
        let mut counts = [0usize; DATA.len()];
        for seed in 0..8 {
            let mut plan = engine.spec().default_plan.clone();
            plan.steps = Some(steps);
            plan.sampling.seed = seed;
            for token in denoised(&engine, &plan, 2500).tokens() {
                counts[token as usize] += 1;
            }
        }
        let total = counts.iter().sum::<usize>() as f64;
        let chi_squared: f64 = counts
            .iter()
            .zip(DATA)
            .map(|(count, p)| (*count as f64 - p * total).powi(2) / (p * total))
            .sum();
        // The 99.9 % quantile with five degrees of freedom.
        assert!(
            chi_squared < 20.5,
            "{steps} steps: {chi_squared} {counts:?}"
        );
    }
}

#[test]
fn at_temperature_0_the_last_step_takes_the_most_probable_token_given_what_a_slot_holds() {
    let engine = Engine::start(Box::new(Independent::new()), EngineConfig::unshared()).unwrap();
    let mut plan = engine.spec().default_plan.clone();
    plan.sampling.temperature = 0.0;
    plan.steps = Some(1);
    // From pure noise, which says nothing.
    let canvas = denoised(&engine, &plan, 40);
    assert!(canvas.tokens().all(|token| token == 0));
    plan.steps = Some(6);
    let first: Vec<u32> = denoised(&engine, &plan, 40).tokens().collect();
    let again: Vec<u32> = denoised(&engine, &plan, 40).tokens().collect();
    assert_eq!(first, again);
}

#[test]
fn the_estimated_bound_of_an_exact_model_is_minus_the_log_probability_of_the_text() {
    let model = Independent::new();
    let tokens: Vec<u32> = (0..24).map(|slot| slot % 6).collect();
    let expected: f64 = tokens.iter().map(|token| -DATA[*token as usize].ln()).sum();
    let target = Target::after_prompt(&[3, 3], &tokens);
    let settings = Settings {
        estimator: Estimator::ContinuousTime,
        groups: 60,
        strata: 16,
        ..Settings::default()
    };
    let estimate = likelihood::estimate(&model, &[&target], &settings, &mut |_| ()).unwrap();
    let error = estimate[0].standard_error.unwrap();
    let apart = (estimate[0].nelbo - expected).abs();
    assert!(error < 0.03 * expected, "{error} of {expected}");
    assert!(
        apart < 4.0 * error,
        "{} ± {error}, not {expected}",
        estimate[0].nelbo
    );

    let counted = Settings {
        estimator: Estimator::ExactCount,
        ..settings
    };
    let refused = likelihood::estimate(&model, &[&target], &counted, &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("level itself"), "{refused}");
    let guided = Settings {
        guidance_scale: 1.0,
        ..settings
    };
    let refused = likelihood::estimate(&model, &[&target], &guided, &mut |_| ()).unwrap_err();
    assert!(
        refused.to_string().contains("guidance masks the prompt"),
        "{refused}"
    );
}
