//! `unmask train`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;

use anyhow::Context;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use unmask::diffusion::Schedule;
use unmask::models::ForwardProcess;
use unmask::train::checkpoint::{load_config, state_path};
use unmask::train::run::Event;
use unmask::train::{
    self, Initial, ModelDtype, Objective, OptimizerKind, Packing, Precision, TimeSampling,
    TrainConfig, TrainDevice, TrainError, WindowStart,
};

use super::signals;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask train --data train.txt.zst --valid valid.txt.zst --out my-model
  unmask train --out my-model --resume
  unmask train --out my-model --resume --new-lr-schedule --steps 8000
  unmask train --init my-model --pairs train.jsonl --valid valid.jsonl --out my-chat-model --lr 0.0003";

/// Arguments of `unmask train`.
#[derive(clap::Args)]
pub struct TrainArgs {
    /// Training text: UTF-8 or zstd, documents separated by a line `<|doc|>`.
    #[arg(long, required_unless_present_any = ["pairs", "resume"], num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Supervised fine-tuning in the place of --data: JSON lines with `prompt` and `answer`, in which special
    /// tokens are recognised. Answers alone are noised; each pair has a window of its own, padded with
    /// end-of-text.
    #[arg(long, conflicts_with = "data", value_name = "prompts.jsonl")]
    pairs: Option<PathBuf>,
    /// With --pairs: cut answers off that do not fit the window, instead of refusing them.
    #[arg(long, requires = "pairs")]
    truncate_pairs: bool,
    /// Refuse a document, of either text, that is longer than a window. Windows begin anywhere all the same.
    #[arg(long, conflicts_with = "pairs")]
    refuse_long_documents: bool,
    /// Validation text, or pairs, in the same form.
    #[arg(long, required_unless_present = "resume", value_name = "FILE")]
    valid: Option<PathBuf>,
    /// Output directory: a Hugging Face directory with the best model; `state/` resumes the run.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Continue the run in the output directory. What is not given is as the run has it; what is given must not
    /// change what it does.
    #[arg(long)]
    resume: bool,
    /// With --resume: follow --steps, --lr, --warmup and --min-lr-ratio as they are given now, to
    /// extend a run or to end it earlier.
    #[arg(long, requires = "resume")]
    new_lr_schedule: bool,
    /// A checkpoint in the LLaDA architecture to start from, with its tokenizer: a model that `train`
    /// wrote, or one like it. What is not given of the network's shape is the checkpoint's.
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,
    /// A tokenizer to use instead of training one; it must have <|mask|>, <|endoftext|> and <|pad|>.
    #[arg(long, value_name = "tokenizer.json")]
    tokenizer: Option<PathBuf>,
    /// Size of the vocabulary, special tokens included [default: 4096, or the given tokenizer's].
    #[arg(long)]
    vocab_size: Option<usize>,
    /// Window length in tokens [default: 128, or the longest canvas of --init].
    #[arg(long)]
    context: Option<usize>,
    /// Transformer blocks [default: 6].
    #[arg(long)]
    layers: Option<usize>,
    /// Width of the residual stream [default: 256].
    #[arg(long)]
    hidden: Option<usize>,
    /// Attention heads [default: 4].
    #[arg(long)]
    heads: Option<usize>,
    /// Width of the gated MLP [default: 8/3 of hidden, rounded up to a multiple of 64].
    #[arg(long)]
    mlp_hidden: Option<usize>,
    /// Use the transposed embedding as the head.
    #[arg(long)]
    tie_head: bool,
    /// Windows a pass [default: 32].
    #[arg(long)]
    batch: Option<usize>,
    /// Passes a step [default: 1].
    #[arg(long)]
    grad_accumulation: Option<usize>,
    /// What noise is: masks, or random tokens [default: absorbing, or the process of --init].
    #[arg(long, value_enum)]
    process: Option<ProcessName>,
    /// Which slots of a window see each other: all, or those of one document [default: stream].
    #[arg(long, value_enum)]
    packing: Option<PackingName>,
    /// Where windows begin: at any token, or where a sentence or a paragraph does [default: anywhere].
    #[arg(long, value_enum)]
    window_start: Option<WindowStartName>,
    /// Share of windows in which runs of up to 16 slots are noised together, as gaps of an infilling are [default: 0.0].
    #[arg(long)]
    span_share: Option<f64>,
    /// What a step descends on: the integrand of the likelihood bound, or the plain mean
    /// cross-entropy of masked tokens [default: nelbo].
    #[arg(long, value_enum)]
    objective: Option<ObjectiveName>,
    /// How the diffusion times of a step are drawn [default: low-discrepancy].
    #[arg(long, value_enum)]
    time_sampling: Option<TimeSamplingName>,
    /// Noise schedule of training, such as log-linear, cosine, maskgit, polynomial:2, geometric:0.001,20 [default: log-linear].
    #[arg(long, value_name = "NAME")]
    schedule: Option<Schedule>,
    /// The optimiser of the blocks' matrices; embedding, head and norms are AdamW's [default: muon, or that of the
    /// resumed run].
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,
    /// Optimiser steps [default: 4000].
    #[arg(long)]
    steps: Option<u64>,
    /// Peak learning rate [default: 0.006 with Muon, 0.002 with AdamW, or that of the resumed run].
    #[arg(long)]
    lr: Option<f64>,
    /// Steps of linear warm-up [default: a twentieth of steps].
    #[arg(long)]
    warmup: Option<u64>,
    /// Final learning rate as a fraction of the peak [default: 0.05].
    #[arg(long)]
    min_lr_ratio: Option<f64>,
    /// Decoupled weight decay of the matrices [default: 0.1].
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Largest global gradient norm [default: 1.0].
    #[arg(long)]
    clip: Option<f64>,
    /// Decay of the average of the weights that is validated and exported; 0 turns it off [default: 0.999].
    #[arg(long)]
    ema: Option<f64>,
    /// Seed of the initial weights and of all draws [default: 0].
    #[arg(long)]
    seed: Option<u64>,
    /// Steps between validations [default: 250].
    #[arg(long)]
    valid_every: Option<u64>,
    /// Windows of a validation [default: 256].
    #[arg(long)]
    valid_windows: Option<usize>,
    /// Steps between saves of the resumable state [default: 250].
    #[arg(long)]
    save_every: Option<u64>,
    /// Number format of the exported model [default: f32].
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Where to train: `cpu`, `cuda` or `cuda:N` [default: cpu].
    #[arg(long, value_parser = parse_device)]
    device: Option<TrainDevice>,
    /// Factors of matrix products; weights, gradients and sums are f32 either way [default: bf16 on a
    /// processor that multiplies it, else f32, or that of the resumed run].
    #[arg(long, value_enum)]
    precision: Option<MatrixPrecision>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum MatrixPrecision {
    F32,
    Bf16,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ProcessName {
    Absorbing,
    Uniform,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PackingName {
    Stream,
    Documents,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum WindowStartName {
    Anywhere,
    Sentence,
    Paragraph,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ObjectiveName {
    Nelbo,
    CrossEntropy,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum OptimizerName {
    #[value(name = "adamw")]
    AdamW,
    Muon,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum TimeSamplingName {
    LowDiscrepancy,
    Uniform,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    F32,
    F16,
}

fn parse_device(text: &str) -> Result<TrainDevice, String> {
    let ordinal = match text.split_once(':') {
        None if text == "cpu" => return Ok(TrainDevice::Cpu),
        None if text == "cuda" => Some(0),
        Some(("cuda", ordinal)) => ordinal.parse().ok(),
        _ => None,
    };
    ordinal
        .map(TrainDevice::Cuda)
        .ok_or_else(|| "allowed: cpu, cuda, cuda:N".into())
}

impl TrainArgs {
    /// The settings: what is not given is that of the resumed run; or else by default, but for a network's
    /// size with --init, which is the checkpoint's.
    fn config(self) -> Result<TrainConfig, TrainError> {
        let args = self;
        let saved = match args.resume {
            true => Some(load_config(&state_path(&args.out))?),
            false => None,
        };
        let base = match (&saved, &args.init) {
            (Some(saved), _) => saved.clone(),
            (None, init) => {
                // The command line is refused without a text, its validation and a directory, which replace these.
                let base = TrainConfig::new(Vec::new(), PathBuf::new(), PathBuf::new());
                match init {
                    Some(init) => base.starting_from(&Initial::open(init)?),
                    None => base,
                }
            }
        };
        let is_other_text = !args.data.is_empty() || args.pairs.is_some();
        let optimizer = match (args.optimizer, &saved) {
            (Some(OptimizerName::AdamW), _) => OptimizerKind::AdamW,
            (Some(OptimizerName::Muon), _) | (None, None) => OptimizerKind::Muon,
            (None, Some(saved)) => saved.optimizer,
        };
        let lr = match (args.lr, &saved, optimizer) {
            (Some(lr), ..) => lr,
            (None, Some(saved), _) => saved.lr,
            (None, None, OptimizerKind::Muon) => 6e-3,
            (None, None, OptimizerKind::AdamW) => 2e-3,
        };
        Ok(TrainConfig {
            data: match is_other_text {
                true => args.data,
                false => base.data,
            },
            pairs: match is_other_text {
                true => args.pairs,
                false => base.pairs,
            },
            valid: args.valid.unwrap_or(base.valid),
            out: args.out,
            truncate_pairs: args.truncate_pairs || (base.truncate_pairs && !is_other_text),
            refuse_long_documents: args.refuse_long_documents
                || (base.refuse_long_documents && !is_other_text),
            init: args.init.or(base.init),
            tokenizer: args.tokenizer,
            vocab_size: args.vocab_size.or(base.vocab_size),
            context: args.context.unwrap_or(base.context),
            layers: args.layers.unwrap_or(base.layers),
            hidden: args.hidden.unwrap_or(base.hidden),
            heads: args.heads.unwrap_or(base.heads),
            mlp_hidden: args.mlp_hidden.or(base.mlp_hidden),
            tie_head: args.tie_head || base.tie_head,
            batch: args.batch.unwrap_or(base.batch),
            grad_accumulation: args.grad_accumulation.unwrap_or(base.grad_accumulation),
            process: match args.process {
                Some(ProcessName::Absorbing) => ForwardProcess::Absorbing,
                Some(ProcessName::Uniform) => ForwardProcess::Uniform,
                None => base.process,
            },
            packing: match args.packing {
                Some(PackingName::Stream) => Packing::Stream,
                Some(PackingName::Documents) => Packing::Documents,
                None => base.packing,
            },
            window_start: match args.window_start {
                Some(WindowStartName::Anywhere) => WindowStart::Anywhere,
                Some(WindowStartName::Sentence) => WindowStart::Sentence,
                Some(WindowStartName::Paragraph) => WindowStart::Paragraph,
                None => base.window_start,
            },
            span_share: args.span_share.unwrap_or(base.span_share),
            objective: match args.objective {
                Some(ObjectiveName::Nelbo) => Objective::Nelbo,
                Some(ObjectiveName::CrossEntropy) => Objective::CrossEntropy,
                None => base.objective,
            },
            time_sampling: match args.time_sampling {
                Some(TimeSamplingName::LowDiscrepancy) => TimeSampling::LowDiscrepancy,
                Some(TimeSamplingName::Uniform) => TimeSampling::Uniform,
                None => base.time_sampling,
            },
            schedule: args.schedule.unwrap_or(base.schedule),
            optimizer,
            steps: args.steps.unwrap_or(base.steps),
            lr,
            warmup: args.warmup.or(base.warmup),
            min_lr_ratio: args.min_lr_ratio.unwrap_or(base.min_lr_ratio),
            weight_decay: args.weight_decay.unwrap_or(base.weight_decay),
            clip: args.clip.unwrap_or(base.clip),
            ema: args.ema.unwrap_or(base.ema),
            seed: args.seed.unwrap_or(base.seed),
            valid_every: args.valid_every.unwrap_or(base.valid_every),
            valid_windows: args.valid_windows.unwrap_or(base.valid_windows),
            save_every: args.save_every.unwrap_or(base.save_every),
            dtype: match args.dtype {
                Some(Dtype::F32) => ModelDtype::F32,
                Some(Dtype::F16) => ModelDtype::F16,
                None => base.dtype,
            },
            device: args.device.unwrap_or(base.device),
            precision: args.precision.map(|precision| match precision {
                MatrixPrecision::F32 => Precision::F32,
                MatrixPrecision::Bf16 => Precision::Bf16,
            }),
            resume: args.resume,
            new_lr_schedule: args.new_lr_schedule,
        })
    }
}

/// Runs `unmask train`.
pub fn run(args: TrainArgs) -> anyhow::Result<()> {
    let config = args.config()?;
    let (out, steps) = (config.out.clone(), config.steps);
    let mut reporter = Reporter::new(steps);
    stop_at_signals(reporter.bar.clone())?;
    let watch = |event: &Event| {
        if let Event::Started { .. } = event {
            CAN_STOP.store(true, Ordering::Relaxed);
        }
        reporter.show(event);
    };
    let trainer = train::run(config, &STOP, watch).context("training stopped")?;
    reporter.finish();
    let progress = trainer.progress();
    if progress.step < steps {
        reporter.line(&format!(
            "stopped at step {} of {steps}, which is saved; unmask train --out {} --resume continues",
            progress.step,
            out.display()
        ));
        std::process::exit(STATUS.load(Ordering::Relaxed).into());
    }
    if let Some(best) = progress.best {
        reporter.line(&format!(
            "best validation loss {best:.4} nats/token; model in {}",
            out.display()
        ));
    }
    Ok(())
}

/// Whether a signal asked the run to end after its step.
static STOP: AtomicBool = AtomicBool::new(false);
/// The exit status that goes with it.
static STATUS: AtomicU8 = AtomicU8::new(0);
/// Whether the run has come to where it asks for [`STOP`]; there is nothing to save before.
static CAN_STOP: AtomicBool = AtomicBool::new(false);

/// From now on the first SIGTERM or SIGINT sets [`STOP`], and the second ends the process at once.
fn stop_at_signals(bar: Option<ProgressBar>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot start the async runtime")?;
    let signals = {
        let _within = runtime.enter();
        signals::termination().context("cannot wait for signals")?
    };
    let end = signals.for_each(move |signal| {
        if STOP.load(Ordering::Relaxed) || !CAN_STOP.load(Ordering::Relaxed) {
            std::process::exit(signal.status.into());
        }
        STATUS.store(signal.status, Ordering::Relaxed);
        STOP.store(true, Ordering::Release);
        let text = format!(
            "{}: the run is saved and ends after this step; another signal ends it at once",
            signal.name
        );
        say(bar.as_ref(), &text);
        futures::future::ready(())
    });
    thread::spawn(move || runtime.block_on(end));
    Ok(())
}

/// Writes a line to standard error. That nobody reads it any more, as where the signal also ended what it is
/// piped to, must not end the run.
fn say(bar: Option<&ProgressBar>, line: &str) {
    match bar {
        Some(bar) => bar.println(line),
        None => _ = writeln!(std::io::stderr(), "{line}"),
    }
}

/// Shows a run: a bar on a terminal, plain lines elsewhere.
struct Reporter {
    bar: Option<ProgressBar>,
    steps: u64,
    /// Running averages over some tens of steps, and the weight that corrects their start.
    loss: f64,
    speed: f64,
    operations: f64,
    share: f64,
    weight: f64,
}

impl Reporter {
    /// Plain lines appear once in so many steps.
    const LINE_EVERY: u64 = 50;

    fn new(steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            let style =
                ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{elapsed} < {eta}]");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message("reading and encoding the text");
            bar
        });
        if bar.is_none() {
            say(None, "reading and encoding the text");
        }
        Self {
            bar,
            steps,
            loss: 0.0,
            speed: 0.0,
            operations: 0.0,
            share: 0.0,
            weight: 0.0,
        }
    }

    fn line(&self, text: &str) {
        say(self.bar.as_ref(), text);
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Unlocked => self.line(
                "the file system of --out has no file locks: see to it that no second run trains there",
            ),
            Event::Started {
                train_tokens,
                vocab,
                parameters,
                step,
                product_rate,
            } => {
                self.line(&format!(
                    "{parameters} parameters, vocabulary {vocab}, {train_tokens} training tokens, at step {step}; \
                     matrix products at {:.1} GFLOP/s",
                    product_rate / 1e9
                ));
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                    bar.reset_eta();
                }
            }
            Event::Step {
                report,
                tokens_per_second,
                operations_per_second,
                product_rate_share,
            } => {
                self.weight = 0.95 * self.weight + 0.05;
                let weight = self.weight;
                let average = |sum: &mut f64, new: f64| {
                    *sum = 0.95 * *sum + 0.05 * new;
                    *sum / weight
                };
                let loss = average(&mut self.loss, report.loss);
                let speed = average(&mut self.speed, *tokens_per_second);
                let operations = average(&mut self.operations, *operations_per_second) / 1e9;
                let share = average(&mut self.share, *product_rate_share) * 100.0;
                let speeds = format!(
                    "{speed:.0} tokens/s, {operations:.1} GFLOP/s ({share:.0} % of the matrix products' rate)"
                );
                if let Some(bar) = &self.bar {
                    bar.set_position(report.step);
                    bar.set_message(format!("loss {loss:.3} {speeds}"));
                } else if report.step.is_multiple_of(Self::LINE_EVERY) || report.step == self.steps
                {
                    let left = (self.steps - report.step) as f64 * report.tokens as f64 / speed;
                    self.line(&format!(
                        "step {}/{} loss {loss:.4} lr {:.2e} grad norm {:.3} {speeds}, {left:.0} s left",
                        report.step, self.steps, report.lr, report.grad_norm
                    ));
                }
            }
            Event::Validated(validation) => self.line(&format!(
                "step {}: validation {:.4} nats/token, {:.4} bits/character{}",
                validation.step,
                validation.nats_per_token,
                validation.bits_per_character,
                if validation.best { " (best)" } else { "" }
            )),
            Event::Saved { .. } => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
