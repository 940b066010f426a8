//! Runs of official samplers that draw nothing at random, followed by the engine canvas by canvas.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::GoldenError;
use super::folder::Golden;
use crate::canvas::{Canvas, TokenId};
use crate::decode::DecodePlan;
use crate::engine::{Engine, EngineConfig, Event, StepReport};
use crate::models::{AttentionPattern, Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch};

/// A recorded run.
pub struct Case {
    golden: Golden,
    value: Value,
}

/// One row of a run's batch, without the padding that the official code puts around it.
#[derive(Debug)]
pub struct Row {
    /// Prompt, or text with masks.
    pub prompt: Vec<TokenId>,
    /// The canvas after each step, from the first token of the prompt to the end of the batch's canvas.
    pub canvases: Vec<Vec<TokenId>>,
    /// Slots of the gap after the prompt.
    gap: usize,
}

/// Token ids of a JSON list; `None` if it is none.
pub fn ids(value: &Value) -> Option<Vec<TokenId>> {
    let ids = value.as_array()?.iter();
    ids.map(|id| TokenId::try_from(id.as_u64()?).ok()).collect()
}

impl Case {
    /// The run of `golden` called `name`.
    ///
    /// # Errors
    /// If there is none, or generate.json cannot be read.
    pub fn open(golden: &Golden, name: &str) -> Result<Self, GoldenError> {
        Ok(Self {
            golden: golden.clone(),
            value: golden.run(name)?,
        })
    }

    /// What the run's entry holds under `field`; null if nothing.
    pub fn field(&self, field: &str) -> &Value {
        &self.value[field]
    }

    fn argument(&self, argument: &str) -> &Value {
        &self.value["params"][argument]
    }

    /// That the run lacks `what`, or holds something else there.
    pub fn lacks(&self, what: &str) -> GoldenError {
        let name = self.value["name"].as_str().unwrap_or_default();
        GoldenError::Invalid {
            path: self.golden.path("generate.json"),
            reason: format!("the run {name} lacks {what}, or it is of another type"),
        }
    }

    /// A whole number among the sampler's arguments.
    pub fn number(&self, argument: &str) -> Option<usize> {
        Some(self.argument(argument).as_u64()? as usize)
    }

    /// A number among the sampler's arguments.
    pub fn fraction(&self, argument: &str) -> Option<f32> {
        Some(self.argument(argument).as_f64()? as f32)
    }

    /// A number that the sampler has to be given.
    ///
    /// # Errors
    /// If it was not.
    pub fn needed<T>(&self, argument: &str, value: Option<T>) -> Result<T, GoldenError> {
        value.ok_or_else(|| self.lacks(argument))
    }

    /// A flag among the sampler's arguments.
    ///
    /// # Errors
    /// If there is none.
    pub fn flag(&self, argument: &str) -> Result<bool, GoldenError> {
        self.needed(argument, self.argument(argument).as_bool())
    }

    /// A word among the sampler's arguments.
    ///
    /// # Errors
    /// If there is none.
    pub fn word(&self, argument: &str) -> Result<&str, GoldenError> {
        self.needed(argument, self.argument(argument).as_str())
    }

    /// Token ids among the sampler's arguments; none if it is null.
    ///
    /// # Errors
    /// If they are no list of token ids.
    pub fn tokens(&self, argument: &str) -> Result<Vec<TokenId>, GoldenError> {
        match self.argument(argument) {
            Value::Null => Ok(Vec::new()),
            tokens => self.needed(argument, ids(tokens)),
        }
    }

    /// Token ids under a field of the run.
    ///
    /// # Errors
    /// If they are no list of token ids.
    pub fn ids(&self, field: &str) -> Result<Vec<TokenId>, GoldenError> {
        self.needed(field, ids(self.field(field)))
    }

    /// The canvas after each step, of a run of one row.
    ///
    /// # Errors
    /// If the run has none.
    pub fn canvases(&self) -> Result<Vec<Vec<TokenId>>, GoldenError> {
        let canvases = self.field("canvas_per_step").as_array();
        let canvases = canvases.and_then(|canvases| canvases.iter().map(ids).collect());
        self.needed("canvas_per_step", canvases)
    }

    /// Slots of a block, whatever the sampler calls it.
    pub fn block_length(&self) -> Option<usize> {
        self.number("block_length").or(self.number("block_size"))
    }

    fn gap(&self) -> usize {
        let gap = self.number("gen_length").or(self.number("max_new_tokens"));
        gap.unwrap_or(0)
    }

    /// The rows of the batch.
    ///
    /// # Errors
    /// If the run's prompts, masks or canvases are not those of a batch.
    pub fn rows(&self) -> Result<Vec<Row>, GoldenError> {
        let prompts = self.field("prompt_ids");
        let is_batch = prompts[0].is_array();
        let of_row = |field: &'static str, value: &Value, row: usize| {
            self.needed(field, ids(if is_batch { &value[row] } else { value }))
        };
        let count = match (is_batch, prompts.as_array()) {
            (true, Some(prompts)) => prompts.len(),
            _ => 1,
        };
        let row = |row: usize| {
            let mut prompt = of_row("prompt_ids", prompts, row)?;
            // Padding is in the prompt where an attention mask says so, and else around it.
            let padding = match (self.field("attention_mask"), self.field("initial_canvas")) {
                (Value::Null, Value::Null) => 0,
                (Value::Null, canvas) => {
                    let canvas = of_row("initial_canvas", canvas, row)?;
                    let mut windows = canvas.windows(prompt.len().max(1));
                    let prompt = windows.position(|window| window == prompt);
                    self.needed("the prompt in its initial_canvas", prompt)?
                }
                (mask, _) => {
                    let mask = of_row("attention_mask", mask, row)?;
                    let padding = mask.iter().take_while(|valid| **valid == 0).count();
                    prompt.drain(..padding.min(prompt.len()));
                    padding
                }
            };
            let canvases = self.field("canvas_per_step").as_array();
            let canvases = self.needed("canvas_per_step", canvases)?.iter();
            let canvases = canvases.map(|canvas| {
                let mut canvas = of_row("canvas_per_step", canvas, row)?;
                canvas.drain(..padding.min(canvas.len()));
                Ok(canvas)
            });
            Ok(Row {
                prompt,
                canvases: canvases.collect::<Result<_, GoldenError>>()?,
                gap: self.gap(),
            })
        };
        (0..count).map(row).collect()
    }
}

/// Which of a run's canvases are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// That after each step.
    Every,
    /// Those that differ from the one before: the official code runs the network in steps that commit nothing, and
    /// goes on with a row while another of its batch is not finished.
    Changes,
}

impl Row {
    /// The run's canvas before any step, laid out for `plan`.
    ///
    /// # Errors
    /// If the model has no mask token, or the row no slot to fill.
    pub fn start(&self, engine: &Engine, plan: &DecodePlan) -> Result<Canvas, GoldenError> {
        let mask = mask_token(engine.spec())?;
        let mut start = self.prompt.clone();
        start.resize(start.len() + self.gap, mask);
        let canvas = Canvas::from_ids(&start, mask)?;
        Ok(engine.spec().with_scratch(plan, canvas))
    }

    /// The canvases that [`trace`] should give, of a canvas of `length` slots.
    ///
    /// # Errors
    /// If the model has no mask token.
    pub fn expected(
        &self,
        spec: &ModelSpec,
        length: usize,
    ) -> Result<Vec<Vec<TokenId>>, GoldenError> {
        let mask = mask_token(spec)?;
        let canvases = self.canvases.iter().map(|canvas| {
            // Padding after the row, or blocks that the official code has not appended yet.
            let mut canvas = canvas.clone();
            canvas.resize(length, mask);
            canvas
        });
        Ok(canvases.collect())
    }

    /// Runs `plan`; the canvases that it gives, and those that it should.
    ///
    /// # Errors
    /// If the engine does not come to an end.
    pub fn run(
        &self,
        engine: &Engine,
        plan: &DecodePlan,
        follow: Follow,
    ) -> Result<[Vec<Vec<TokenId>>; 2], GoldenError> {
        let start = self.start(engine, plan)?;
        let mut expected = self.expected(engine.spec(), start.len())?;
        if follow == Follow::Changes {
            expected.insert(0, start.tokens().collect());
            expected.dedup();
            expected.remove(0);
        }
        Ok([trace(engine, start, plan)?, expected])
    }

    /// Checks that `plan` gives the recorded canvases.
    ///
    /// # Errors
    /// If it does not.
    pub fn check(
        &self,
        engine: &Engine,
        plan: &DecodePlan,
        follow: Follow,
    ) -> Result<(), GoldenError> {
        let [got, expected] = self.run(engine, plan, follow)?;
        if got == expected {
            return Ok(());
        }
        let step = got
            .iter()
            .zip(&expected)
            .take_while(|(a, b)| a == b)
            .count();
        let canvas = |of: &[Vec<TokenId>]| match of.get(step) {
            Some(canvas) => format!("{canvas:?}"),
            None => "none".into(),
        };
        Err(GoldenError::Differs(format!(
            "the canvas after step {} is {}, the recorded one {}",
            step + 1,
            canvas(&got),
            canvas(&expected)
        )))
    }
}

/// The mask token of a model of the absorbing process.
///
/// # Errors
/// If the model has none.
pub(super) fn mask_token(spec: &ModelSpec) -> Result<TokenId, GoldenError> {
    let mask = spec.mask_token();
    mask.ok_or_else(|| GoldenError::Differs(format!("a {} model without masks", spec.family)))
}

/// Denoises `canvas` to the end; the steps, and the finished canvas.
///
/// # Errors
/// If the engine refuses the canvas or fails.
pub fn denoise(
    engine: &Engine,
    canvas: Canvas,
    plan: &DecodePlan,
) -> Result<(Vec<StepReport>, Canvas), GoldenError> {
    let mut generation = engine.submit(canvas, plan)?;
    let mut steps = Vec::new();
    loop {
        match generation.next_blocking() {
            Some(Event::Step(report)) => steps.push(report),
            Some(Event::Finished(canvas, _)) => return Ok((steps, canvas)),
            Some(Event::Failed(error)) => return Err(GoldenError::Differs(error.to_string())),
            None => return Err(GoldenError::Differs("the engine gave no last event".into())),
        }
    }
}

/// The canvas after every step.
///
/// # Errors
/// As [`denoise`].
pub fn trace(
    engine: &Engine,
    start: Canvas,
    plan: &DecodePlan,
) -> Result<Vec<Vec<TokenId>>, GoldenError> {
    let mut tokens: Vec<TokenId> = start.tokens().collect();
    let (steps, _) = denoise(engine, start, plan)?;
    let canvases = steps.into_iter().map(|report| {
        for (slot, commit) in report.committed {
            tokens[slot] = commit.token;
        }
        tokens.clone()
    });
    Ok(canvases.collect())
}

/// A golden checkpoint's network under another spec.
struct Respecified {
    spec: ModelSpec,
    model: Box<dyn Denoiser>,
    temperature: f64,
}

impl Denoiser for Respecified {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn dtype(&self) -> DType {
        self.model.dtype()
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        self.model.hidden(batch, pool)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok((self.model.head(hidden)? / self.temperature)?)
    }
}

/// An engine on `model`, whose spec `change` has changed and whose logits are divided by `temperature`: what is an
/// argument of an official sampler (block length, stop tokens, shift) is a property of the model here, and greedy plans
/// know no temperature.
///
/// # Errors
/// If no engine is started.
pub fn respecified(
    model: Box<dyn Denoiser>,
    temperature: f32,
    change: impl FnOnce(&mut ModelSpec),
) -> Result<Engine, GoldenError> {
    let mut spec = model.spec().clone();
    change(&mut spec);
    let model = Box::new(Respecified {
        spec,
        model,
        temperature: f64::from(temperature),
    });
    Ok(Engine::start(model, EngineConfig::unshared())?)
}

/// Makes a model block-causal in blocks of another length.
pub fn set_block_length(spec: &mut ModelSpec, block_length: usize) {
    spec.attention = AttentionPattern::BlockCausal { block_length };
    spec.default_plan.block_length = Some(block_length);
}
