//! Decode options on the command line.

use clap::Args;
use unmask::decode::{BlockOrigin, Budget, DecodePlan, Score, preset};

/// How a canvas is denoised. What is not given is as the preset has it, or else the model's default.
#[derive(Args)]
#[command(next_help_heading = "Decode options")]
pub struct DecodeArgs {
    /// A published sampler's plan: llada, llada-random, fast-dllm, left-to-right
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Denoise steps over the whole canvas
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Slots a block; blocks are denoised one after the other
    #[arg(long, value_name = "N")]
    block_length: Option<usize>,
    /// Where the first block begins: gap, canvas
    #[arg(long, value_name = "WHERE", value_parser = block_origin)]
    block_origin: Option<BlockOrigin>,
    /// How candidates are ranked: confidence, margin, entropy, random, left_to_right
    #[arg(long, value_name = "NAME")]
    score: Option<Score>,
    /// How many are committed a step: even, threshold:P, factor:F, entropy_bound:NATS
    #[arg(long, value_name = "BUDGET")]
    budget: Option<Budget>,
    /// 0 takes the most probable token
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Sample from the k most probable tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the most probable tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Classifier-free guidance; 0 is off
    #[arg(long, value_name = "W")]
    guidance_scale: Option<f32>,
    /// Seed of the random draws [default: drawn at random and reported]
    #[arg(long)]
    seed: Option<u64>,
}

fn block_origin(text: &str) -> Result<BlockOrigin, String> {
    match text {
        "gap" => Ok(BlockOrigin::Gap),
        "canvas" => Ok(BlockOrigin::Canvas),
        _ => Err("allowed: gap, canvas".to_owned()),
    }
}

impl DecodeArgs {
    /// The plan that the options ask for, from the model's `default` plan.
    pub fn plan(&self, default: &DecodePlan) -> anyhow::Result<DecodePlan> {
        let mut plan = match &self.preset {
            Some(name) => preset::by_name(name)?.plan,
            None => default.clone(),
        };
        plan.steps = self.steps.or(plan.steps);
        plan.block_length = self.block_length.or(plan.block_length);
        plan.block_origin = self.block_origin.unwrap_or(plan.block_origin);
        plan.score = self.score.unwrap_or(plan.score);
        plan.budget = self.budget.unwrap_or(plan.budget);
        let sampling = &mut plan.sampling;
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_k = self.top_k.or(sampling.top_k);
        sampling.top_p = self.top_p.or(sampling.top_p);
        sampling.guidance_scale = self.guidance_scale.unwrap_or(sampling.guidance_scale);
        sampling.seed = match self.seed {
            Some(seed) => seed,
            None => getrandom::u64()?,
        };
        plan.validate()?;
        Ok(plan)
    }
}
