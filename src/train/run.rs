//! The loop of `unmask train`.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::checkpoint::{load_state, state_path, write_atomically};
use super::config::TrainConfig;
use super::data::Data;
use super::error::TrainError;
use super::initial::Initial;
use super::log::{Log, LogLine};
use super::plot::loss_svg;
use super::tokenizer;
use super::trainer::{StepReport, Trainer, Validation, check_same_run};

/// What happens in a run, for whoever watches it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The output directory's file system has no locks: nothing refuses a second run there.
    Unlocked,
    /// The data is read and the model built.
    Started {
        /// Training tokens.
        train_tokens: usize,
        /// Size of the vocabulary.
        vocab: usize,
        /// Parameters of the network.
        parameters: usize,
        /// Steps done before (more than 0 when resumed).
        step: u64,
        /// Floating-point operations a second of the machine's matrix products, measured just before.
        product_rate: f64,
    },
    /// A step is done.
    Step {
        /// What it did.
        report: StepReport,
        /// Its speed.
        tokens_per_second: f64,
        /// Floating-point operations a second of its matrix products, the rest of the step included in the
        /// time.
        operations_per_second: f64,
        /// The share of the measured rate that this is.
        product_rate_share: f64,
    },
    /// A validation is done.
    Validated(Validation),
    /// The state is saved; the run can be resumed from this step.
    Saved {
        /// Steps done.
        step: u64,
    },
}

/// Trains a model from start (or from its last saved state) to end, or until `stop` is set: then the step
/// that is under way is finished and the state saved, and the trainer that is returned has done fewer steps
/// than its settings say. It is not asked before [`Event::Started`].
///
/// # Errors
/// See [`TrainError`]. Whatever fails, the files of the last save and of the best model are intact.
pub fn run(
    config: TrainConfig,
    stop: &AtomicBool,
    mut watch: impl FnMut(&Event),
) -> Result<Trainer, TrainError> {
    config.check()?;
    let out = config.out.clone();
    let state_file = state_path(&out);
    let given = config
        .tokenizer
        .as_deref()
        .map(tokenizer::load)
        .transpose()?;
    let mut initial = None;
    // Until the end of the run, so that no two write to one directory.
    let mut _lock = None;
    let (state, given) = if config.resume {
        _lock = state_file
            .exists()
            .then(|| lock(&out, &mut watch))
            .transpose()?;
        let state = load_state(&state_file)?;
        check_same_run(&state, &config)?;
        let saved = tokenizer::load(&out.join("tokenizer.json"))?;
        if given.is_some_and(|given| given.get_vocab(true) != saved.get_vocab(true)) {
            return Err(TrainError::ResumeMismatch {
                field: "tokenizer".into(),
                saved: "another vocabulary".into(),
                given: "the given file".into(),
            });
        }
        (Some(state), Some(saved))
    } else {
        if state_file.exists() {
            return Err(TrainError::RunExists { path: out });
        }
        refuse_foreign_model(&out)?;
        initial = config.init.as_deref().map(Initial::open).transpose()?;
        match &initial {
            Some(initial) => {
                // Before the texts are read, which takes much longer.
                initial.shape_for(&config)?;
                (None, Some(initial.tokenizer_for(given.as_ref())?))
            }
            None => (None, given),
        }
    };
    let data = Data::prepare(&config, given)?;
    if !config.resume {
        // After all that may be wrong with the settings, which leaves no directory behind.
        _lock = Some(lock(&out, &mut watch)?);
        if state_file.exists() {
            return Err(TrainError::RunExists { path: out });
        }
    }
    let mut trainer = match (state, &initial) {
        (Some(state), _) => Trainer::resume(config, data, state)?,
        (None, Some(initial)) => Trainer::from_checkpoint(config, data, initial)?,
        (None, None) => Trainer::new(config, data)?,
    };
    // The tokenizer, which resuming needs, comes before the first state, and the state before whatever
    // makes the directory a model, so that a run that is killed in between can be resumed or begun again.
    trainer.write_tokenizer(&out)?;
    let step = trainer.progress().step;
    let validated = step > 0 || trainer.progress().best.is_some();
    let mut log = Log::open(&out.join("log.jsonl"), validated.then_some(step))?;
    let product_rate = trainer.product_rate()?;
    watch(&Event::Started {
        train_tokens: trainer.data().train.tokens().len(),
        vocab: trainer.shape().vocab,
        parameters: trainer.parameters(),
        step: trainer.progress().step,
        product_rate,
    });
    if step == 0 {
        trainer.save_state(&out)?;
    }
    trainer.write_model_files(&out)?;
    if !validated && validate(&mut trainer, &mut log, &mut watch)? {
        trainer.save_state(&out)?;
    }
    let (steps, valid_every, save_every) = (
        trainer.config().steps,
        trainer.config().valid_every,
        trainer.config().save_every,
    );
    let mut stopped = stop.load(Ordering::Acquire);
    while trainer.progress().step < steps && !stopped {
        let start = Instant::now();
        let report = trainer.step()?;
        // A clock too coarse for the step must not make the speed infinite, which JSON cannot hold.
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        trainer.add_seconds(seconds);
        let tokens_per_second = report.tokens as f64 / seconds;
        let operations_per_second = report.operations / seconds;
        let product_rate_share = operations_per_second / product_rate;
        log.push(LogLine::Step {
            step: report.step,
            loss: report.loss,
            lr: report.lr,
            grad_norm: report.grad_norm,
            tokens: report.tokens * report.step,
            tokens_per_second,
            operations_per_second: Some(operations_per_second),
            product_rate_share: Some(product_rate_share),
            seconds: trainer.progress().seconds,
        })?;
        watch(&Event::Step {
            report,
            tokens_per_second,
            operations_per_second,
            product_rate_share,
        });
        let step = report.step;
        let mut save = step.is_multiple_of(save_every) || step == steps;
        if step.is_multiple_of(valid_every) || step == steps {
            save |= validate(&mut trainer, &mut log, &mut watch)?;
        }
        // Asked once, so that no step after this save is lost.
        stopped = stop.load(Ordering::Acquire);
        if save || stopped {
            trainer.save_state(&out)?;
            watch(&Event::Saved { step });
        }
    }
    Ok(trainer)
}

/// The output directory is a run's as long as it has this.
struct Lock(File);

impl Drop for Lock {
    /// Closing the file is not enough: a process that is being started elsewhere in this one holds it too, for a moment.
    fn drop(&mut self) {
        // Fails only where there are no locks.
        let _ = self.0.unlock();
    }
}

/// Takes the output directory for this run.
fn lock(out: &Path, watch: &mut impl FnMut(&Event)) -> Result<Lock, TrainError> {
    let directory = out.join("state");
    fs::create_dir_all(&directory).map_err(TrainError::io("create", &directory))?;
    let path = directory.join("lock");
    let file = File::create(&path).map_err(TrainError::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(TrainError::RunIsActive { path: out.into() }),
        // Some network file systems have no locks: a run there is on its own.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
            watch(&Event::Unlocked);
            Ok(Lock(file))
        }
        Err(TryLockError::Error(error)) => Err(TrainError::io("lock", &path)(error)),
    }
}

/// Refuses a directory with a model that no run left there.
fn refuse_foreign_model(out: &Path) -> Result<(), TrainError> {
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ] {
        let file = out.join(name);
        if file.exists() {
            return Err(TrainError::ModelExists { file });
        }
    }
    Ok(())
}

/// Validates, logs and plots; writes the model if it is the best so far, and says whether it is. The
/// state must then be saved at once: a run resumed from an older one would know a worse best loss, and
/// replace the model by one that is worse.
fn validate(
    trainer: &mut Trainer,
    log: &mut Log,
    watch: &mut impl FnMut(&Event),
) -> Result<bool, TrainError> {
    let start = Instant::now();
    let validation = trainer.validate()?;
    trainer.add_seconds(start.elapsed().as_secs_f64());
    let out = trainer.config().out.clone();
    log.push(LogLine::Validation {
        step: validation.step,
        valid_nats_per_token: validation.nats_per_token,
        valid_bits_per_character: validation.bits_per_character,
        best: validation.best,
        seconds: trainer.progress().seconds,
    })?;
    write_atomically(&out.join("loss.svg"), loss_svg(log.lines())?.as_bytes())?;
    if validation.best {
        trainer.write_model(&out)?;
        trainer.write_record(&out, &validation)?;
    }
    watch(&Event::Validated(validation));
    Ok(validation.best)
}
