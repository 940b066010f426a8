//! `unmask eval`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use unmask::engine::{Engine, EngineConfig};
use unmask::eval::likelihood::{self, Estimator};
use unmask::eval::{
    Corpus, DataForm, DataReport, ESTIMATED, InfillReport, LeftOut, Report, RunReport, Selection,
    SpeedReport, bound, depends_on_level, infill, plot, reason_against_guidance,
    reason_against_spans, speed,
};
use unmask::models::{Denoiser, ForwardProcess, ModelSpec};
use unmask::text::documents::read_documents;
use unmask::text::pairs::Pairs;

use crate::cli::all_succeeded;
use crate::cli::model::{ModelArgs, tokenizer};

/// Shown below the help.
pub const EXAMPLES: &str = "Of block-causal models (LLaDA2, SDAR, BD3-LM, some of A2D) and of SEDD of the uniform process only the likelihood is
evaluated.

Examples:
  unmask eval --data valid.txt.zst
  unmask eval --model LLaDA-8B-Base --data valid.txt --parts likelihood --context 1024 --draws 64
  unmask eval --data valid.txt --documents 8 --windows 1 --out results --json
  unmask eval --model my-chat-model --pairs valid.jsonl";

/// Arguments of `unmask eval`.
#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// UTF-8 text, plain or zstd, with documents separated by a line `<|doc|>`
    #[arg(long, value_name = "FILE", required_unless_present = "pairs")]
    data: Option<PathBuf>,
    /// Prompts with answers in the place of --data, as `train --pairs` takes them: JSON lines with `prompt` and
    /// `answer`. Answers alone are scored, each after its prompt
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "windows"])]
    pairs: Option<PathBuf>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write eval.json and the plots infill.svg and speed.svg to this folder
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Seed of all random draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    data_options: DataOptions,
    #[command(flatten)]
    likelihood_options: LikelihoodOptions,
    #[command(flatten)]
    span_options: SpanOptions,
}

#[derive(Args)]
#[command(next_help_heading = "Data options")]
struct DataOptions {
    /// Documents, or pairs, evaluated at most, one at random from each of as many equal parts of the file
    #[arg(long, value_name = "N", default_value_t = 32)]
    documents: usize,
    /// Windows of each document evaluated at most, one at random from each of as many equal parts of it
    #[arg(long, value_name = "N", default_value_t = 2)]
    windows: usize,
    /// Longest window in tokens; a longer document is cut into equal ones [default: the model's context, of a
    /// block-causal model 4096 at most]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Refuse a longer one of the documents that are evaluated, instead of cutting it
    #[arg(long, conflicts_with = "pairs")]
    refuse_long_documents: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Likelihood options")]
struct LikelihoodOptions {
    /// Draws a window, by each estimator; each draw is a forward [default: 8]
    #[arg(long, value_name = "N")]
    draws: Option<usize>,
    /// Estimators: `exact_count`, whose figures are the ones to publish, and `continuous_time`, a check of them and
    /// the one of models whose loss depends on the noise level [default: both]
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    estimators: Option<Vec<EstimatorArg>>,
    /// Classifier-free guidance: what is bounded is the likelihood by the guided model. For --pairs, whose prompts are
    /// masked in the unconditional forward [default: 0]
    #[arg(long, value_name = "SCALE")]
    guidance_scale: Option<f64>,
}

#[derive(Args)]
#[command(next_help_heading = "Infill and speed options")]
struct SpanOptions {
    /// Windows denoised at most, spread at random over all; each takes up to one forward a masked token
    /// [default: 4]
    #[arg(long, value_name = "N")]
    decode_windows: Option<usize>,
    /// Tokens a masked span [default: 4]
    #[arg(long, value_name = "N")]
    span: Option<usize>,
    /// Shares of a window that are masked to measure infilling [default: 0.05,0.25,0.5,0.75,0.95]
    #[arg(long, value_name = "RATES", value_delimiter = ',')]
    mask_rates: Option<Vec<f64>>,
    /// Thresholds of the sampler whose speed is measured [default: 0.5,0.7,0.8,0.9,0.99]
    #[arg(long, value_name = "PROBABILITIES", value_delimiter = ',')]
    thresholds: Option<Vec<f32>>,
    /// Share of a window that is masked to measure speed [default: 0.5]
    #[arg(long, value_name = "RATE")]
    speed_mask_rate: Option<f64>,
}

/// Values of `--estimators`, spelt as in the report and by the HTTP API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum EstimatorArg {
    /// LLaDA's: a number of masked slots, and so many at random.
    #[value(alias = "exact-count")]
    ExactCount,
    /// A time, and each slot masked with its probability.
    #[value(alias = "continuous-time")]
    ContinuousTime,
}

impl EstimatorArg {
    fn estimator(self) -> Estimator {
        match self {
            Self::ExactCount => Estimator::ExactCount,
            Self::ContinuousTime => Estimator::ContinuousTime,
        }
    }
}

/// Values of `--parts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// NELBO, perplexity bound, bits a character and a byte.
    Likelihood,
    /// Accuracy against the mask rate.
    Infill,
    /// Accuracy against tokens a forward.
    Speed,
}

impl Part {
    const ALL: [Self; 3] = [Self::Likelihood, Self::Infill, Self::Speed];

    fn name(self) -> &'static str {
        match self {
            Self::Likelihood => "likelihood",
            Self::Infill => "infill",
            Self::Speed => "speed",
        }
    }

    /// Why this part is not measured of such a model, if it is not.
    fn reason_against(self, spec: &ModelSpec) -> Option<&'static str> {
        let uniform = spec.process() == ForwardProcess::Uniform;
        match self {
            Self::Likelihood => None,
            Self::Infill => reason_against_spans(spec),
            Self::Speed => reason_against_spans(spec)
                .or_else(|| uniform.then_some(speed::THRESHOLDS_ARE_FOR_MASKS)),
        }
    }
}

/// Runs `unmask eval`.
pub fn run(args: EvalArgs) -> anyhow::Result<()> {
    let checkpoint = args.model.checkpoint()?;
    let spec = checkpoint.spec()?;
    unmask::eval::check(&spec)?;
    let tokenizer = tokenizer(&checkpoint)?;
    let (measured, left_out): (Vec<Part>, Vec<Part>) = Part::ALL
        .into_iter()
        .filter(|part| args.parts.contains(part))
        .partition(|part| part.reason_against(&spec).is_none());
    let left_out: Vec<LeftOut> = left_out
        .into_iter()
        .filter_map(|part| {
            let reason = part.reason_against(&spec)?;
            let measure = part.name().to_owned();
            Some(LeftOut { measure, reason })
        })
        .collect();
    if measured.is_empty()
        && let Some(LeftOut { measure, reason }) = left_out.first()
    {
        bail!("--parts {measure} is not measured of this model: {reason}");
    }
    let measures = |part: Part| measured.contains(&part);
    if depends_on_level(&spec) && args.estimators() == [Estimator::ExactCount] {
        let reason = likelihood::EXACT_COUNT_HAS_NO_LEVEL;
        bail!("--estimators exact_count is not for this model: {reason}");
    }
    args.check_options(&measured, &spec)?;
    let (likelihood, infill, speed) = (args.likelihood(), args.infill(), args.speed());
    if measures(Part::Likelihood) {
        likelihood.check()?;
    }
    if measures(Part::Infill) {
        infill.check()?;
    }
    if measures(Part::Speed) {
        speed.check()?;
    }
    let selection = args.selection();
    let (path, form, corpus) = match (&args.pairs, &args.data) {
        (Some(path), _) => {
            let pairs = Pairs::read(path)?;
            let corpus = Corpus::of_pairs(&pairs, &*tokenizer, &spec, &selection);
            (path, DataForm::Pairs, corpus)
        }
        (None, Some(path)) => {
            let texts = read_documents(path)?;
            let corpus = Corpus::new(&texts, &*tokenizer, &spec, &selection);
            (path, DataForm::Documents, corpus)
        }
        (None, None) => bail!("give --data or --pairs"),
    };
    let corpus = corpus.with_context(|| format!("cannot evaluate on {}", path.display()))?;
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let model = args.model.load(&checkpoint)?;
    let weights = args.model.dtype.resolve(model.device());
    let mut report = Report {
        model: checkpoint.name().to_owned(),
        run: RunReport::of(&*model, weights),
        process: spec.process(),
        data: DataReport::of(path.display().to_string(), form, &corpus),
        estimated: ESTIMATED,
        seed: args.seed,
        likelihood: Vec::new(),
        infill: None,
        speed: None,
        left_out: Vec::new(),
    };
    // Minutes or hours of measurement must survive whatever fails after them: what was measured is told, each
    // way out of here is tried, and what failed is told at the end.
    let settings = PartSettings {
        likelihood: measures(Part::Likelihood).then_some((likelihood, args.estimators())),
        infill: measures(Part::Infill).then_some(infill),
        speed: measures(Part::Speed).then_some(speed),
    };
    let mut failed: Vec<anyhow::Error> = Vec::new();
    failed.extend(measure(model, &corpus, settings, &mut report).err());
    report.left_out.extend(left_out);
    failed.extend(print_report(&report, args.json).err());
    if let Some(folder) = &args.out {
        failed.extend(write_report(folder, &report));
    }
    all_succeeded(failed)
}

/// What is measured of each part; `None` of one that is not.
struct PartSettings {
    likelihood: Option<(likelihood::Settings, Vec<Estimator>)>,
    infill: Option<infill::Settings>,
    speed: Option<speed::Settings>,
}

/// Measures part by part into `report`, up to the first that fails.
fn measure(
    model: Box<dyn Denoiser>,
    corpus: &Corpus,
    settings: PartSettings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let by_level = depends_on_level(model.spec());
    let windows = report.data.windows;
    if let Some((likelihood, estimators)) = settings.likelihood {
        for estimator in estimators {
            if by_level && estimator == Estimator::ExactCount {
                report.left_out.push(LeftOut {
                    measure: format!("likelihood, {}", estimator.name()),
                    reason: likelihood::EXACT_COUNT_HAS_NO_LEVEL,
                });
                continue;
            }
            let settings = likelihood::Settings {
                estimator,
                ..likelihood
            };
            let name = format!("likelihood, {}", estimator.name());
            let forwards = windows * settings.groups * settings.strata;
            report
                .likelihood
                .push(with_progress(name, forwards, |progress| {
                    bound::evaluate(&*model, corpus, &settings, progress)
                })?);
        }
    }
    if let Some(infill) = &settings.infill {
        let name = "infill, one forward".to_owned();
        let forwards = windows * infill.mask_rates.len();
        report.infill = Some(InfillReport {
            span: infill.span,
            one_forward: with_progress(name, forwards, |progress| {
                infill::one_forward(&*model, corpus, infill, progress)
            })?,
            decoded: Vec::new(),
        });
    }
    if settings.infill.is_some() || settings.speed.is_some() {
        // One canvas at a time: what is measured must not depend on which canvases happen to share a
        // batch, whose sums round differently.
        let config = EngineConfig {
            max_sequences: 1,
            ..EngineConfig::unshared()
        };
        let engine = Engine::start(model, config)?;
        if let (Some(infill), Some(report)) = (&settings.infill, &mut report.infill) {
            let name = "infill, default plan".to_owned();
            let canvases = infill.decode_windows.min(windows) * infill.mask_rates.len();
            report.decoded = with_progress(name, canvases, |progress| {
                infill::decoded(&engine, corpus, infill, progress)
            })?;
        }
        if let Some(speed) = &settings.speed {
            let windows = speed.decode_windows.min(windows);
            let canvases = windows * speed.thresholds.len();
            report.speed = Some(SpeedReport {
                span: speed.span,
                mask_rate: speed.mask_rate,
                windows,
                points: with_progress("speed".to_owned(), canvases, |progress| {
                    speed::evaluate(&engine, corpus, speed, progress)
                })?,
            });
        }
    }
    Ok(())
}

impl EvalArgs {
    /// Refuses options that no measured part has a use for.
    fn check_options(&self, measured: &[Part], spec: &ModelSpec) -> anyhow::Result<()> {
        let (likelihood, spans) = (&self.likelihood_options, &self.span_options);
        let options: [(&str, bool, &[Part]); 8] = [
            ("draws", likelihood.draws.is_some(), &[Part::Likelihood]),
            (
                "estimators",
                likelihood.estimators.is_some(),
                &[Part::Likelihood],
            ),
            (
                "guidance-scale",
                likelihood.guidance_scale.is_some(),
                &[Part::Likelihood],
            ),
            (
                "decode-windows",
                spans.decode_windows.is_some(),
                &[Part::Infill, Part::Speed],
            ),
            ("span", spans.span.is_some(), &[Part::Infill, Part::Speed]),
            ("mask-rates", spans.mask_rates.is_some(), &[Part::Infill]),
            ("thresholds", spans.thresholds.is_some(), &[Part::Speed]),
            (
                "speed-mask-rate",
                spans.speed_mask_rate.is_some(),
                &[Part::Speed],
            ),
        ];
        for (option, given, parts) in options {
            if !given || parts.iter().any(|part| measured.contains(part)) {
                continue;
            }
            let names: Vec<&str> = parts.iter().map(|part| part.name()).collect();
            let names = names.join(" or ");
            let asked_for = parts.iter().filter(|part| self.parts.contains(part));
            if let Some(reason) = asked_for.filter_map(|p| p.reason_against(spec)).next() {
                bail!("--{option} is for --parts {names}, not measured of this model: {reason}");
            }
            bail!("--{option} is for --parts {names}");
        }
        if likelihood.guidance_scale.is_some() {
            if self.pairs.is_none() {
                bail!(
                    "--guidance-scale is for --pairs: without prompts there is nothing to guide by"
                );
            }
            if let Some(reason) = reason_against_guidance(spec) {
                bail!("--guidance-scale is not for this model: {reason}");
            }
        }
        Ok(())
    }

    fn selection(&self) -> Selection {
        Selection {
            documents: self.data_options.documents,
            windows: self.data_options.windows,
            context: self.data_options.context,
            refuse_long_documents: self.data_options.refuse_long_documents,
            seed: self.seed,
        }
    }

    /// Documents are the independent samples, so that all draws of a window can be one stratified group.
    fn likelihood(&self) -> likelihood::Settings {
        likelihood::Settings {
            groups: 1,
            strata: self.likelihood_options.draws.unwrap_or(8),
            guidance_scale: self.likelihood_options.guidance_scale.unwrap_or(0.0),
            seed: self.seed,
            ..likelihood::Settings::default()
        }
    }

    fn estimators(&self) -> Vec<Estimator> {
        let chosen = &self.likelihood_options.estimators;
        let is_chosen = |estimator: &Estimator| match chosen {
            Some(chosen) => chosen.iter().any(|name| name.estimator() == *estimator),
            None => true,
        };
        Estimator::ALL.into_iter().filter(is_chosen).collect()
    }

    fn infill(&self) -> infill::Settings {
        let options = &self.span_options;
        let rates = options.mask_rates.clone();
        infill::Settings {
            mask_rates: rates.unwrap_or_else(|| vec![0.05, 0.25, 0.5, 0.75, 0.95]),
            span: options.span.unwrap_or(4),
            decode_windows: options.decode_windows.unwrap_or(4),
            seed: self.seed,
        }
    }

    fn speed(&self) -> speed::Settings {
        let options = &self.span_options;
        let thresholds = options.thresholds.clone();
        speed::Settings {
            thresholds: thresholds.unwrap_or_else(|| vec![0.5, 0.7, 0.8, 0.9, 0.99]),
            mask_rate: options.speed_mask_rate.unwrap_or(0.5),
            span: options.span.unwrap_or(4),
            decode_windows: options.decode_windows.unwrap_or(4),
            seed: self.seed,
        }
    }
}

fn print_report(report: &Report, json: bool) -> anyhow::Result<()> {
    let text = match json {
        true => serde_json::to_string_pretty(report)? + "\n",
        false => report.to_string(),
    };
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot print the report")
}

/// Writes the report and then its plots; what cannot be drawn or written does not keep the rest from
/// being written.
fn write_report(folder: &Path, report: &Report) -> Vec<anyhow::Error> {
    let write = |name: &str, text: anyhow::Result<String>| {
        let path = folder.join(name);
        text.and_then(|text| Ok(std::fs::write(&path, text)?))
            .with_context(|| format!("cannot write {}", path.display()))
            .err()
    };
    let json = serde_json::to_string_pretty(report).map_err(Into::into);
    let infill = report.infill.as_ref();
    let speed = report.speed.as_ref();
    [
        write("eval.json", json),
        infill.and_then(|infill| write("infill.svg", plot::infill_svg(infill).map_err(Into::into))),
        speed.and_then(|speed| write("speed.svg", plot::speed_svg(speed).map_err(Into::into))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs `work` with a progress bar of `total` on standard error.
fn with_progress<T, E>(
    name: String,
    total: usize,
    work: impl FnOnce(&mut dyn FnMut(usize)) -> Result<T, E>,
) -> anyhow::Result<T>
where
    anyhow::Error: From<E>,
{
    let style = ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} {eta:>4}")?;
    let bar = ProgressBar::new(total as u64)
        .with_style(style)
        .with_message(name);
    let result = work(&mut |done| bar.inc(done as u64));
    bar.finish_and_clear();
    Ok(result?)
}
