//! One training step, one validation.

use std::borrow::Cow;
use std::path::Path;

use super::batch::Batch;
use super::checkpoint::{self, Progress, Record, State};
use super::config::{Precision, TrainConfig, TrainDevice};
use super::cpu::bf16_available;
use super::data::Data;
use super::device::DeviceLearner;
use super::error::TrainError;
use super::initial::Initial;
use super::layout::{Layout, NetworkShape};
use super::learner::{Buffers, HostLearner, Learner};
use super::optimizer::{Moments, Update, average_decay, learning_rate};
use super::throughput::operations;
use crate::kernels::cuda_device;

/// What a training step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// The objective on its batch before the update, in nats per token or per masked token.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The gradient's global norm before clipping.
    pub grad_norm: f64,
    /// Tokens of its batch.
    pub tokens: u64,
    /// Floating-point operations of its matrix products.
    pub operations: f64,
}

/// What a validation found, of the averaged weights on the fixed windows and masks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validation {
    /// Steps done.
    pub step: u64,
    /// The NELBO estimate in nats per token.
    pub nats_per_token: f64,
    /// The same in bits per Unicode character of the text (end tokens count in the loss, not as
    /// characters).
    pub bits_per_character: f64,
    /// Whether it is the lowest so far.
    pub best: bool,
}

/// A model in training.
pub struct Trainer {
    config: TrainConfig,
    data: Data,
    shape: NetworkShape,
    layout: Layout,
    progress: Progress,
    learner: Box<dyn Learner>,
    /// The batch of a step (from 0), made while a device computed the one before.
    next: Option<(u64, Batch)>,
}

impl Trainer {
    /// A trainer at step 0, with random weights.
    ///
    /// # Errors
    /// When the device cannot be used.
    pub fn new(config: TrainConfig, data: Data) -> Result<Self, TrainError> {
        let shape = config.shape(data.vocab);
        let weights = Layout::new(&shape).initial_weights(config.seed);
        Self::at_start(config, data, shape, weights)
    }

    /// A trainer at step 0, with the weights of a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Setting`] when `config` asks for another network; [`TrainError::Init`] when the
    /// weights cannot be read.
    pub fn from_checkpoint(
        config: TrainConfig,
        data: Data,
        initial: &Initial,
    ) -> Result<Self, TrainError> {
        let shape = initial.shape_for(&config)?;
        let weights = initial.weights(&Layout::new(&shape))?;
        Self::at_start(config, data, shape, weights)
    }

    fn at_start(
        mut config: TrainConfig,
        data: Data,
        shape: NetworkShape,
        weights: Vec<f32>,
    ) -> Result<Self, TrainError> {
        let cpu = config.device == TrainDevice::Cpu;
        config.precision.get_or_insert(if cpu && bf16_available() {
            Precision::Bf16
        } else {
            Precision::F32
        });
        let state = State {
            moments: Moments::new(weights.len()),
            average: weights.clone(),
            weights,
            progress: Progress {
                step: 0,
                best: None,
                seconds: 0.0,
                data: data.fingerprint,
            },
            config,
            shape,
        };
        Self::from_state(data, state)
    }

    /// A trainer that continues from a saved state.
    ///
    /// # Errors
    /// [`TrainError::ResumeMismatch`] when the settings or the data are not those of the state.
    pub fn resume(
        mut config: TrainConfig,
        data: Data,
        mut state: State,
    ) -> Result<Self, TrainError> {
        config.precision = config.precision.or(state.config.precision);
        check_same_run(&state, &config)?;
        let mismatch = |field: &str, saved: String, given: String| {
            Err(TrainError::ResumeMismatch {
                field: field.into(),
                saved,
                given,
            })
        };
        if state.shape.vocab != data.vocab {
            return mismatch(
                "the vocabulary size",
                state.shape.vocab.to_string(),
                data.vocab.to_string(),
            );
        }
        if state.progress.data != data.fingerprint {
            let hash = |fingerprint| format!("text {fingerprint:016x}");
            return mismatch(
                "the data",
                hash(state.progress.data),
                hash(data.fingerprint),
            );
        }
        state.config = config;
        Self::from_state(data, state)
    }

    fn from_state(data: Data, state: State) -> Result<Self, TrainError> {
        let buffers = Buffers::from(&state);
        let (shape, config) = (&state.shape, &state.config);
        let precision = config.precision.unwrap_or(Precision::F32);
        let learner: Box<dyn Learner> = match config.device {
            TrainDevice::Cpu => {
                precision.check()?;
                let kind = config.optimizer;
                Box::new(HostLearner::new(shape, precision, kind, buffers))
            }
            TrainDevice::Cuda(ordinal) => Box::new(DeviceLearner::new(
                shape,
                &cuda_device(ordinal)?,
                precision,
                config.optimizer,
                buffers,
            )?),
        };
        Ok(Self {
            data,
            layout: Layout::new(shape),
            learner,
            config: state.config,
            shape: state.shape,
            progress: state.progress,
            next: None,
        })
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The data.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The network's shape.
    pub fn shape(&self) -> &NetworkShape {
        &self.shape
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        self.layout.len()
    }

    /// The weights that are trained, by [`Layout`].
    ///
    /// # Errors
    /// When they cannot be read from the device.
    pub fn weights(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        self.learner.weights()
    }

    /// Their moving average, which is validated and exported.
    ///
    /// # Errors
    /// When it cannot be read from the device.
    pub fn average(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        self.learner.average()
    }

    /// Step, best loss, time.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Adds to the time that the run has taken.
    pub fn add_seconds(&mut self, seconds: f64) {
        self.progress.seconds += seconds;
    }

    /// Measures how many floating-point operations a second the machine does in matrix products like the
    /// network's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn product_rate(&mut self) -> Result<f64, TrainError> {
        self.learner.product_rate()
    }

    /// Does one step.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] when the loss or the gradient is not finite; the weights are then
    /// those before the step.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let (config, data) = (&self.config, &self.data);
        let step = self.progress.step;
        let batch = match self.next.take() {
            Some((of, batch)) if of == step => batch,
            _ => data.batch(config, step)?,
        };
        let passes: Vec<Batch> = (0..config.grad_accumulation)
            .map(|pass| batch.slice(pass * config.batch..(pass + 1) * config.batch))
            .collect();
        let lr = learning_rate(
            step,
            config.steps,
            config.warmup_steps(),
            config.lr,
            config.min_lr_ratio,
        );
        let update = Update {
            lr,
            weight_decay: config.weight_decay,
            clip: config.clip,
            average_decay: average_decay(step, config.ema),
            step,
        };
        let next = &mut self.next;
        let mut prepare = || {
            if step + 1 < config.steps {
                // An error is met again, by the step whose batch it is.
                *next = data.batch(config, step + 1).ok().map(|it| (step + 1, it));
            }
        };
        let measured = self.learner.step(&passes, &update, &mut prepare)?;
        if !measured.is_finite() {
            return Err(TrainError::Diverged {
                step: step + 1,
                loss: measured.loss,
                grad_norm: Some(measured.grad_norm),
            });
        }
        self.progress.step += 1;
        Ok(StepReport {
            step: self.progress.step,
            loss: measured.loss,
            lr,
            grad_norm: measured.grad_norm,
            tokens: batch.tokens() as u64,
            operations: operations(&self.shape, &batch),
        })
    }

    /// Validates the averaged weights and remembers the best loss.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] when the loss is not finite; the best loss is then as before.
    pub fn validate(&mut self) -> Result<Validation, TrainError> {
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in &self.data.valid {
            sum += self.learner.average_loss(batch)? * batch.tokens() as f64;
            tokens += batch.tokens();
        }
        let nats_per_token = sum / tokens as f64;
        if !nats_per_token.is_finite() {
            return Err(TrainError::Diverged {
                step: self.progress.step,
                loss: nats_per_token,
                grad_norm: None,
            });
        }
        let best = self.progress.best;
        let best = best.is_none_or(|best| nats_per_token < best);
        if best {
            self.progress.best = Some(nats_per_token);
        }
        let bits = nats_per_token / std::f64::consts::LN_2;
        let bits_per_character = bits / self.data.valid_characters_per_token;
        Ok(Validation {
            step: self.progress.step,
            nats_per_token,
            bits_per_character,
            best,
        })
    }

    /// Writes `tokenizer.json`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write_tokenizer(&self, out: &Path) -> Result<(), TrainError> {
        checkpoint::write_tokenizer(out, &self.data.tokenizer)
    }

    /// Writes the Hugging Face directory but its weights and `tokenizer.json`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write_model_files(&self, out: &Path) -> Result<(), TrainError> {
        let (specials, process) = (self.data.specials, self.config.process);
        checkpoint::write_model_files(out, &self.shape, specials, process)
    }

    /// Writes the averaged weights as the directory's model.
    ///
    /// # Errors
    /// When the directory cannot be written, or the weights cannot be read from the device.
    pub fn write_model(&self, out: &Path) -> Result<(), TrainError> {
        let average = self.learner.average()?;
        checkpoint::write_model(out, &self.layout, &average, self.config.dtype)
    }

    /// Writes how the model came about, beside it.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write_record(&self, out: &Path, validation: &Validation) -> Result<(), TrainError> {
        let (config, progress) = (&self.config, &self.progress);
        let windows = config.batch * config.grad_accumulation;
        checkpoint::write_record(
            out,
            &Record {
                unmask_version: env!("CARGO_PKG_VERSION"),
                step: progress.step,
                tokens: progress.step * (windows * config.context) as u64,
                seconds: progress.seconds,
                train_tokens: self.data.train.tokens().len(),
                data_fingerprint: format!("{:016x}", progress.data),
                valid_nats_per_token: validation.nats_per_token,
                valid_bits_per_character: validation.bits_per_character,
                settings: config,
            },
        )
    }

    /// Writes the resumable state.
    ///
    /// # Errors
    /// When the directory cannot be written, or the state cannot be read from the device.
    pub fn save_state(&self, out: &Path) -> Result<(), TrainError> {
        checkpoint::save_state(
            &checkpoint::state_path(out),
            &self.config,
            &self.shape,
            &self.progress,
            &self.learner.buffers()?,
        )
    }
}

/// Compares the settings that decide the course of a run with the saved ones. Paths, precision and
/// the cadence of validations and saves may change, and with a new schedule what the learning rate
/// follows. The checkpoint that a run started from is not looked at again.
///
/// # Errors
/// [`TrainError::ResumeMismatch`] names the first setting that differs; [`TrainError::Setting`] when a
/// new schedule ends at or before the step reached; [`TrainError::UnwritableSettings`].
pub fn check_same_run(state: &State, given: &TrainConfig) -> Result<(), TrainError> {
    fn same<T: PartialEq + std::fmt::Debug>(
        field: &str,
        saved: T,
        given: T,
    ) -> Result<(), TrainError> {
        if saved == given {
            return Ok(());
        }
        Err(TrainError::ResumeMismatch {
            field: field.into(),
            saved: format!("{saved:?}"),
            given: format!("{given:?}"),
        })
    }
    let new_lr_schedule = given.new_lr_schedule;
    // The saved settings went through JSON, which may move a number by its last digit.
    let given: &TrainConfig = &serde_json::to_string(given)
        .and_then(|text| serde_json::from_str(&text))
        .map_err(TrainError::UnwritableSettings)?;
    let saved = &state.config;
    if saved.init.is_some() != given.init.is_some() {
        same("init", &saved.init, &given.init)?;
    }
    let vocab = state.shape.vocab;
    same("vocab-size", vocab, given.vocab_size.unwrap_or(vocab))?;
    let shapes = (saved.shape(0), given.shape(0));
    same("context", shapes.0.context, shapes.1.context)?;
    same("layers", shapes.0.layers, shapes.1.layers)?;
    same("hidden", shapes.0.hidden, shapes.1.hidden)?;
    same("heads", shapes.0.heads, shapes.1.heads)?;
    same("mlp-hidden", shapes.0.mlp, shapes.1.mlp)?;
    same("tie-head", saved.tie_head, given.tie_head)?;
    same("optimizer", saved.optimizer, given.optimizer)?;
    same("batch", saved.batch, given.batch)?;
    same(
        "grad-accumulation",
        saved.grad_accumulation,
        given.grad_accumulation,
    )?;
    let kind = |config: &TrainConfig| match config.pairs {
        Some(_) => "pairs",
        None => "documents",
    };
    same("the data", kind(saved), kind(given))?;
    same("truncate-pairs", saved.truncate_pairs, given.truncate_pairs)?;
    same("process", saved.process, given.process)?;
    same("packing", saved.packing, given.packing)?;
    same("window-start", saved.window_start, given.window_start)?;
    same("span-share", saved.span_share, given.span_share)?;
    same("objective", saved.objective, given.objective)?;
    same("time-sampling", saved.time_sampling, given.time_sampling)?;
    same(
        "schedule",
        saved.schedule.to_string(),
        given.schedule.to_string(),
    )?;
    if !new_lr_schedule {
        same("steps", saved.steps, given.steps)?;
        same("lr", saved.lr, given.lr)?;
        same("warmup", saved.warmup_steps(), given.warmup_steps())?;
        same("min-lr-ratio", saved.min_lr_ratio, given.min_lr_ratio)?;
    } else if given.steps <= state.progress.step {
        return Err(TrainError::Setting {
            field: "steps",
            given: given.steps.to_string(),
            allowed: format!(
                "with a new schedule more than {}, the step that the run has reached",
                state.progress.step
            ),
        });
    }
    same("dtype", saved.dtype, given.dtype)?;
    same("weight-decay", saved.weight_decay, given.weight_decay)?;
    same("clip", saved.clip, given.clip)?;
    same("ema", saved.ema, given.ema)?;
    same("seed", saved.seed, given.seed)?;
    same("valid-windows", saved.valid_windows, given.valid_windows)
}
