//! What the figures are measured with: an engine, canvases, and a record of its steps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use candle_core::{DType, Device};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Budget, Cache, CachePolicy, DecodePlan, EarlyStop, Revision};
use unmask::engine::{Engine, EngineConfig, Event, Generation, StepSummary};
use unmask::models::{AttentionPattern, Checkpoint, Corruption, Denoiser};

use crate::cli::bench::machine::{Products, TRIES, large_products, matrix_rate};

/// The most steps that are recorded between two readings.
const MAX_STEPS: usize = 1 << 16;

/// A step as it is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub rows: usize,
    pub seconds: f64,
}

/// An engine on the measured model.
pub struct Setup {
    pub engine: Engine,
    pub products: Products,
    /// Operations a second of the machine's matrix products.
    pub rate: f64,
    /// Where it computes.
    pub device: Device,
    /// In what.
    pub dtype: DType,
    pub rounds: usize,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Setup {
    /// Starts an engine on `model`.
    ///
    /// # Errors
    /// If its canvases have no masks, or are denoised after an encoder.
    pub fn new(
        checkpoint: &Checkpoint,
        model: Box<dyn Denoiser>,
        (device, dtype): (Device, DType),
        rounds: usize,
    ) -> anyhow::Result<Self> {
        let engine = Engine::start(model, EngineConfig::default())?;
        let spec = engine.spec();
        ensure!(
            !matches!(spec.attention, AttentionPattern::EncodedBlocks { .. }),
            "bench engine commits an even share of the masked slots a step, and a {} model has no masks: it denoises \
             all slots of a block in every step",
            spec.family
        );
        ensure!(
            matches!(spec.corruption, Corruption::Absorbing { .. }),
            "bench engine commits an even share of the masked slots a step, and a {} model of this kind has no masks: \
             it draws all slots anew in every step",
            spec.family
        );
        let steps = Arc::<Mutex<Vec<Step>>>::default();
        let record = steps.clone();
        engine.on_step(move |step: &StepSummary| {
            let mut steps = lock(&record);
            if steps.len() < MAX_STEPS {
                steps.push(Step {
                    rows: step.rows,
                    seconds: step.phases.total().as_secs_f64(),
                });
            }
        });
        Ok(Self {
            engine,
            products: Products::of(checkpoint)?,
            rate: matrix_rate(&device, dtype, large_products(&device), TRIES)?,
            device,
            dtype,
            rounds,
            steps,
        })
    }

    /// A canvas of `length` slots that begins with a prompt of `prompt` tokens, which differs by `number`.
    pub fn canvas(&self, prompt: usize, length: usize, number: usize) -> anyhow::Result<Canvas> {
        let spec = self.engine.spec();
        let is_text = |token: &TokenId| {
            spec.mask_token() != Some(*token) && !spec.stop_tokens.contains(token)
        };
        let tokens: Vec<TokenId> = (0..spec.vocab_size.min(256) as TokenId)
            .filter(is_text)
            .collect();
        let token = |slot: usize| tokens[(31 * number + 7 * slot + slot * slot) % tokens.len()];
        let canvas = Canvas::builder(self.engine.blank())
            .fixed(&(0..prompt).map(token).collect::<Vec<_>>())
            .gap(length - prompt)
            .build()?;
        Ok(spec.with_scratch(&self.plan(None), canvas))
    }

    /// A plan that commits an even share of the masked slots in each of so many steps, or one a step. A
    /// block-causal model takes at most four steps a block instead.
    pub fn plan(&self, steps: Option<usize>) -> DecodePlan {
        let spec = self.engine.spec();
        let default = &spec.default_plan;
        let (block_length, steps, steps_per_block) = match spec.attention {
            AttentionPattern::BlockCausal { block_length } => {
                let most = steps.map(|steps| steps.min(block_length).min(4));
                (Some(block_length), None, most)
            }
            _ => (None, steps, None),
        };
        DecodePlan {
            steps,
            steps_per_block,
            block_length,
            block_origin: default.block_origin,
            score: default.score,
            budget: Budget::Even,
            revision: Revision::None,
            early_stop: EarlyStop::Never,
            ..DecodePlan::default()
        }
    }

    /// The same with blocks of `block_length` and a cache.
    pub fn cached_plan(&self, block_length: usize, policy: CachePolicy) -> DecodePlan {
        DecodePlan {
            block_length: Some(block_length),
            cache: Cache {
                policy,
                refresh: None,
            },
            ..self.plan(None)
        }
    }

    /// Denoises canvases at a time; seconds until all are finished.
    pub fn together(&self, canvases: &[Canvas], plan: &DecodePlan) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let generations = canvases
            .iter()
            .map(|canvas| Ok(self.engine.submit(canvas.clone(), plan)?))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for mut generation in generations {
            while step(&mut generation)?.is_some() {}
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Denoises canvases one after the other; seconds until all are finished.
    pub fn in_turn(&self, canvases: &[Canvas], plan: &DecodePlan) -> anyhow::Result<f64> {
        let turns = canvases.chunks(1).map(|canvas| self.together(canvas, plan));
        turns.sum()
    }

    /// Denoises one canvas for the first `count` steps alone; what the engine recorded of them.
    pub fn first_steps(
        &self,
        canvas: Canvas,
        plan: &DecodePlan,
        count: usize,
    ) -> anyhow::Result<Vec<Step>> {
        self.recorded();
        let mut generation = self.engine.submit(canvas, plan)?;
        for _ in 0..count {
            ensure!(
                step(&mut generation)?.is_some(),
                "the canvas was finished too soon"
            );
        }
        drop(generation);
        self.settle();
        let mut steps = self.recorded();
        steps.truncate(count);
        Ok(steps)
    }

    /// Waits until nothing runs.
    pub fn settle(&self) {
        while self.engine.status().running > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Milliseconds that the linear layers of a step take at the machine's rate, attention left out.
    pub fn floor_ms(&self, rows: f64, scored: f64) -> f64 {
        self.products.operations(rows, scored) / self.rate * 1e3
    }

    fn recorded(&self) -> Vec<Step> {
        std::mem::take(&mut *lock(&self.steps))
    }
}

/// The time since the generation's first step began when its next step is taken; `None` if it is finished. A
/// reader that is late may get several steps as one.
pub fn step(generation: &mut Generation) -> anyhow::Result<Option<Duration>> {
    match generation.next_blocking() {
        Some(Event::Step(report)) => Ok(Some(report.statistics.denoising)),
        Some(Event::Finished(..)) => Ok(None),
        Some(Event::Failed(error)) => Err(error.into()),
        None => bail!("the engine stopped"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
