//! Official sampler runs, canvas by canvas.

use candle_core::{Device, Tensor};
use serde_json::Value;
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{DecodePlan, preset};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{AttentionPattern, Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch};

use crate::support::{golden, ids, json, load, trace};

/// A recorded run.
pub struct Case(Value);

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

/// The recorded run called `name`.
pub fn case(family: &str, name: &str) -> Case {
    let Value::Array(cases) = json(&golden(family).join("generate.json")) else {
        panic!("generate.json holds a list of cases");
    };
    let found = cases.into_iter().find(|case| case["name"] == name);
    Case(found.unwrap_or_else(|| panic!("no case {name} of {family}")))
}

impl Case {
    /// A whole number among the sampler's arguments.
    pub fn number(&self, argument: &str) -> Option<usize> {
        Some(self.0["params"][argument].as_u64()? as usize)
    }

    /// A number among the sampler's arguments.
    pub fn fraction(&self, argument: &str) -> Option<f32> {
        Some(self.0["params"][argument].as_f64()? as f32)
    }

    /// A flag among the sampler's arguments.
    pub fn flag(&self, argument: &str) -> bool {
        self.0["params"][argument].as_bool().unwrap()
    }

    /// A word among the sampler's arguments.
    pub fn word(&self, argument: &str) -> &str {
        self.0["params"][argument].as_str().unwrap()
    }

    /// Token ids among the sampler's arguments; none if it is null.
    pub fn tokens(&self, argument: &str) -> Vec<TokenId> {
        match &self.0["params"][argument] {
            Value::Null => Vec::new(),
            tokens => ids(tokens),
        }
    }

    /// What the run returned.
    pub fn output(&self) -> Vec<TokenId> {
        ids(&self.0["output_ids"])
    }

    /// Slots of a block, whatever the sampler calls it.
    pub fn block_length(&self) -> Option<usize> {
        self.number("block_length").or(self.number("block_size"))
    }

    fn gap(&self) -> usize {
        let gap = self.number("gen_length").or(self.number("max_new_tokens"));
        gap.unwrap_or(0)
    }

    /// The row of a run that has one.
    pub fn row(&self) -> Row {
        let [row] = <[Row; 1]>::try_from(self.rows()).unwrap();
        row
    }

    /// The rows of the batch.
    pub fn rows(&self) -> Vec<Row> {
        let prompts = &self.0["prompt_ids"];
        let is_batch = prompts[0].is_array();
        let of_row = |value: &Value, row: usize| match is_batch {
            true => ids(&value[row]),
            false => ids(value),
        };
        let count = if is_batch {
            prompts.as_array().unwrap().len()
        } else {
            1
        };
        let row = |row: usize| {
            let mut prompt = of_row(prompts, row);
            // Padding is in the prompt where an attention mask says so, and else around it.
            let padding = match (&self.0["attention_mask"], &self.0["initial_canvas"]) {
                (Value::Null, Value::Null) => 0,
                (Value::Null, canvas) => {
                    let canvas = of_row(canvas, row);
                    let mut windows = canvas.windows(prompt.len());
                    windows.position(|window| window == prompt).unwrap()
                }
                (mask, _) => {
                    let mask = of_row(mask, row);
                    let padding = mask.iter().take_while(|valid| **valid == 0).count();
                    prompt.drain(..padding);
                    padding
                }
            };
            let canvases = self.0["canvas_per_step"].as_array().unwrap().iter();
            Row {
                prompt,
                canvases: canvases
                    .map(|canvas| of_row(canvas, row)[padding..].to_vec())
                    .collect(),
                gap: self.gap(),
            }
        };
        (0..count).map(row).collect()
    }
}

impl Row {
    /// The run's canvas before any step, laid out for `plan`.
    pub fn start(&self, engine: &Engine, plan: &DecodePlan) -> Canvas {
        let mut start = self.prompt.clone();
        start.resize(start.len() + self.gap, engine.mask_token().unwrap());
        let canvas = Canvas::from_ids(&start, engine.mask_token().unwrap()).unwrap();
        engine.spec().with_scratch(plan, canvas)
    }

    /// Runs `plan` and compares every canvas.
    pub fn assert_equal(&self, engine: &Engine, plan: &DecodePlan, name: &str) {
        let start = self.start(engine, plan);
        let expected: Vec<_> = self
            .canvases
            .iter()
            .map(|canvas| {
                // Padding after the row, or blocks that the official code has not appended yet.
                let mut canvas = canvas.clone();
                canvas.resize(start.len(), engine.mask_token().unwrap());
                canvas
            })
            .collect();
        assert_eq!(trace(engine, start, plan), expected, "{name}");
    }

    /// As [`Row::assert_equal`], of the canvases that differ from the one before: the official code
    /// runs the network in steps that commit nothing, and goes on with a row while another of its batch
    /// is not finished.
    pub fn assert_same_changes(mut self, engine: &Engine, plan: &DecodePlan, name: &str) {
        let start = self.start(engine, plan);
        let start: Vec<_> = start.tokens().collect();
        self.canvases.insert(0, start);
        self.canvases.dedup();
        self.canvases.remove(0);
        self.assert_equal(engine, plan, name);
    }
}

/// The plan of a preset, as the model of `engine` takes it.
pub fn preset_plan(engine: &Engine, name: &str) -> DecodePlan {
    engine.spec().plan(&preset::by_name(name).unwrap())
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

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        self.model.hidden(batch, pool)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok((self.model.head(hidden)? / self.temperature)?)
    }
}

/// An engine on a golden checkpoint whose spec `change` has changed: what is an argument of an official
/// sampler (block length, stop tokens, shift) is a property of the model here.
pub fn respecified(name: &str, change: impl FnOnce(&mut ModelSpec)) -> Engine {
    tempered(name, 1.0, change)
}

/// As [`respecified`], with logits divided by a temperature, which greedy plans do not know.
pub fn tempered(name: &str, temperature: f32, change: impl FnOnce(&mut ModelSpec)) -> Engine {
    let model = load(name);
    let mut spec = model.spec().clone();
    change(&mut spec);
    let model = Box::new(Respecified {
        spec,
        model,
        temperature: f64::from(temperature),
    });
    Engine::start(model, EngineConfig::unshared()).unwrap()
}

/// Makes a model block-causal in blocks of another length.
pub fn set_block_length(spec: &mut ModelSpec, block_length: usize) {
    spec.attention = AttentionPattern::BlockCausal { block_length };
    spec.default_plan.block_length = Some(block_length);
}
