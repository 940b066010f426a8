//! Decode options on the command line.

use anyhow::bail;
use clap::Args;
use serde::de::DeserializeOwned;
use unmask::canvas::TokenId;
use unmask::decode::{
    BlockEntry, BlockOrigin, Budget, CachePolicy, DecodePlan, EarlyStop, Finish, PlanError,
    Revision, Score, StopTokens, TemperatureSchedule,
};
use unmask::engine::SubmitError;
use unmask::models::ModelSpec;
use unmask::sampling::{Basis, FilterOrder, LogitBias};

/// How a canvas is denoised. What is not given is as the preset has it, or else the model's default.
#[derive(Args)]
#[command(next_help_heading = "Decode options")]
pub struct DecodeArgs {
    /// A published sampler's plan; `unmask inspect` lists them
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Denoise steps over the whole canvas
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Denoise steps a block, in the place of --steps
    #[arg(long, value_name = "N")]
    steps_per_block: Option<usize>,
    /// Slots a block; blocks are denoised one after the other
    #[arg(long, value_name = "N")]
    block_length: Option<usize>,
    /// Where the first block begins: gap, canvas
    #[arg(long, value_name = "WHERE", value_parser = named::<BlockOrigin>)]
    block_origin: Option<BlockOrigin>,
    /// What the first step of a block commits: budget, first_slot
    #[arg(long, value_name = "WHAT", value_parser = named::<BlockEntry>)]
    block_entry: Option<BlockEntry>,
    /// How candidates are ranked: confidence, margin, entropy, random, left_to_right
    #[arg(long, value_name = "NAME")]
    score: Option<Score>,
    /// 0 ranks by score alone, otherwise candidates are drawn by score / temperature
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    score_temperature: Option<f32>,
    /// Token ids, with commas between them; candidates with these tokens rank below all others
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    commit_last: Option<Vec<TokenId>>,
    /// How many are committed a step: even, threshold:P, factor:F, entropy_bound:NATS,
    /// schedule_floor:EPS, schedule_nearest:EPS, ancestral:EPS, analytic:EPS, euler:EPS
    #[arg(long, value_name = "BUDGET")]
    budget: Option<Budget>,
    /// What becomes of the slots that a noise schedule leaves masked: with_last_interval, most_probable, drawn,
    /// drawn_after_short_steps
    #[arg(long, value_name = "HOW", value_parser = named::<Finish>)]
    finish: Option<Finish>,
    /// The fewest that a step commits
    #[arg(long, value_name = "N")]
    at_least: Option<usize>,
    /// What may happen to a committed slot: none, renoise, renoise_rest:STABLE_STEPS,MAX_ENTROPY,
    /// remask_cap:ETA, remask_rescale:ETA, remask_confidence:ETA, remask_confidence_balanced:ETA,
    /// remask_stochastic:ETA, remask_corrector:BETA, remask_loop:ETA,T_ON,T_OFF,ALPHA_ON,
    /// edit:THRESHOLD,MAX_POST_STEPS, resize:MAX_GAP,EXPANSIONS[,right]
    #[arg(long, value_name = "HOW")]
    revise: Option<Revision>,
    /// Which keys and values are taken from earlier steps: auto, none, prefix, dual
    #[arg(long, value_name = "POLICY", value_parser = named::<CachePolicy>)]
    cache: Option<CachePolicy>,
    /// Steps after which the caches prefix and dual recompute everything
    #[arg(long, value_name = "N")]
    cache_refresh: Option<usize>,
    /// Fill gaps by what precedes the end of their block alone, where the model sees no more
    #[arg(long)]
    left_context: bool,
    /// Denoise canvases longer than the model's context, where it is sampled so: each block sees as many slots up
    /// to its end as the context has
    #[arg(long)]
    sliding_window: bool,
    /// When a stop token ends the denoising: never, after_block, at_once
    #[arg(long, value_name = "WHEN", value_parser = named::<EarlyStop>)]
    early_stop: Option<EarlyStop>,
    /// 0 takes the most probable token; holds for all steps unless a schedule is given too
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// How the temperature changes over the steps: constant, linear:END, linear_in_block:END
    #[arg(long, value_name = "SCHEDULE")]
    temperature_schedule: Option<TemperatureSchedule>,
    /// Sample from the k most probable tokens; 0 is all of them
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<i64>,
    /// Sample from the most probable tokens that together have this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Sample from the tokens with at least this share of the most probable one's probability; 0 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Which filter comes first: top_k_first, top_p_first
    #[arg(long, value_name = "ORDER", value_parser = named::<FilterOrder>)]
    filter_order: Option<FilterOrder>,
    /// Numbers from -100 to 100 that are added to the logits of tokens by id, with commas between them, as in
    /// 50:-100,7:2.5
    #[arg(long, value_name = "TOKEN:BIAS", value_delimiter = ',', value_parser = biased)]
    logit_bias: Vec<(TokenId, f32)>,
    /// Which distribution scores and probabilities are of: model, sampling
    #[arg(long, value_name = "NAME", value_parser = named::<Basis>)]
    basis: Option<Basis>,
    /// Where a stop token may be drawn: anywhere, at_end [default: at_end for infill, where only a gap
    /// without text after it may hold one]
    #[arg(long, value_name = "WHERE", value_parser = named::<StopTokens>)]
    stop_tokens: Option<StopTokens>,
    /// Classifier-free guidance; 0 is off
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    guidance_scale: Option<f32>,
    /// Seed of the random draws [default: drawn at random; where there is --json, it reports it]
    #[arg(long)]
    seed: Option<u64>,
}

/// The error with the option by which its field of the plan is given, where that has another name.
pub fn with_option(error: anyhow::Error) -> anyhow::Error {
    let field = error.chain().find_map(|cause| {
        let of_submission = cause.downcast_ref().and_then(|error| match error {
            SubmitError::Plan(error) => Some(error),
            _ => None,
        });
        let error: Option<&PlanError> = cause.downcast_ref().or(of_submission);
        error.map(PlanError::field)
    });
    match field {
        Some("revision") => error.context("--revise"),
        _ => error,
    }
}

/// Reads the name of an enum's variant as it is written over HTTP.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// Reads a token id and what is added to its logit.
fn biased(text: &str) -> Result<(TokenId, f32), String> {
    let (token, bias) = text.split_once(':').unwrap_or((text, ""));
    match (token.parse(), bias.parse::<f32>()) {
        (Ok(token), Ok(bias)) if bias.abs() <= LogitBias::LARGEST => Ok((token, bias)),
        _ => {
            Err("allowed: a token id, a colon and a number from -100 to 100, as in 50:-100".into())
        }
    }
}

impl DecodeArgs {
    /// The plan for a canvas with several gaps, none of which may be left unfilled because of a stop token
    /// in another.
    pub fn infill_plan(&self, spec: &ModelSpec) -> anyhow::Result<DecodePlan> {
        if self.early_stop.is_some_and(|stop| stop != EarlyStop::Never) {
            bail!(
                "early_stop: a stop token in one gap must not leave the others unfilled; allowed: never"
            );
        }
        let mut plan = DecodePlan {
            early_stop: EarlyStop::Never,
            ..self.plan(spec)?
        };
        plan.sampling.stop_tokens = self.stop_tokens.unwrap_or(StopTokens::AtEnd);
        Ok(plan)
    }

    /// The plan that the options ask for, for the model of `spec`.
    pub fn plan(&self, spec: &ModelSpec) -> anyhow::Result<DecodePlan> {
        let preset = self.preset.as_deref().map(|name| spec.preset(name));
        let preset = preset.transpose()?;
        let mut plan = match &preset {
            Some(preset) => spec.plan(preset),
            None => spec.default_plan.clone(),
        };
        // A plan has one of these: to give the one takes the other back.
        if self.steps.is_some() || self.steps_per_block.is_some() {
            plan.steps = self.steps;
            plan.steps_per_block = self.steps_per_block;
        }
        plan.block_length = self.block_length.or(plan.block_length);
        plan.block_origin = self.block_origin.unwrap_or(plan.block_origin);
        plan.block_entry = self.block_entry.unwrap_or(plan.block_entry);
        if let Some(budget) = self.budget {
            plan.replace_budget(budget);
        }
        plan.score = self.score.unwrap_or(plan.score);
        plan.score_temperature = self.score_temperature.unwrap_or(plan.score_temperature);
        if let Some(tokens) = &self.commit_last {
            plan.commit_last.clone_from(tokens);
        }
        plan.at_least = self.at_least.unwrap_or(plan.at_least);
        plan.finish = self.finish.unwrap_or(plan.finish);
        plan.revision = self.revise.unwrap_or(plan.revision);
        plan.early_stop = self.early_stop.unwrap_or(plan.early_stop);
        plan.cache.policy = self.cache.unwrap_or(plan.cache.policy);
        plan.cache.refresh = self.cache_refresh.or(plan.cache.refresh);
        plan.left_context |= self.left_context;
        plan.sliding_window |= self.sliding_window;
        let sampling = &mut plan.sampling;
        if let Some(temperature) = self.temperature {
            sampling.set_temperature(temperature);
        }
        sampling.temperature_schedule = self
            .temperature_schedule
            .unwrap_or(sampling.temperature_schedule);
        if let Some(top_k) = self.top_k {
            sampling.set_top_k(top_k)?;
        }
        sampling.top_p = self.top_p.or(sampling.top_p);
        sampling.min_p = self.min_p.or(sampling.min_p);
        sampling.filter_order = self.filter_order.unwrap_or(sampling.filter_order);
        sampling.basis = self.basis.unwrap_or(sampling.basis);
        sampling.logit_bias = self.logit_bias(spec)?;
        sampling.stop_tokens = self.stop_tokens.unwrap_or(sampling.stop_tokens);
        sampling.guidance_scale = self.guidance_scale.unwrap_or(sampling.guidance_scale);
        sampling.seed = match self.seed {
            Some(seed) => seed,
            None => getrandom::u64()?,
        };
        plan.validate()?;
        plan.check_asked(self.score, self.finish)?;
        if let Some(preset) = &preset {
            spec.check_preset(preset, &plan)?;
        }
        Ok(plan)
    }

    /// The bias that `--logit-bias` gives, for the vocabulary of `spec`.
    fn logit_bias(&self, spec: &ModelSpec) -> anyhow::Result<LogitBias> {
        let entries = &self.logit_bias;
        for (i, (token, _)) in entries.iter().enumerate() {
            if *token as usize >= spec.vocab_size {
                bail!(
                    "logit_bias: token {token} is not in the vocabulary; allowed: 0 to {}",
                    spec.vocab_size.saturating_sub(1)
                );
            }
            if Some(*token) == spec.mask_token() {
                bail!("logit_bias: token {token} is the mask token, which is never drawn");
            }
            if entries[..i].iter().any(|(other, _)| other == token) {
                bail!("logit_bias: token {token} is given twice; allowed: once");
            }
        }
        Ok(LogitBias::new(entries.iter().copied()))
    }
}
