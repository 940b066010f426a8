//! `unmask generate`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use unmask::canvas::{Canvas, TokenId};
use unmask::constraint::{ByteDfa, ConstraintError};
use unmask::decode::DecodePlan;
use unmask::engine::EngineConfig;
use unmask::text::Layout;
use unmask::text::gaps::Piece;

use crate::cli::decode_args::DecodeArgs;
use crate::cli::denoise::{Form, denoise, denoise_each};
use crate::cli::model::{ModelArgs, tokenizer_for};
use crate::cli::output::OutputArgs;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask generate \"Once upon a time\" --gap 48 --temperature 0.8 --seed 1
  unmask generate \"Once upon a time\" --n 8 --seed 1 --json > samples.jsonl
  unmask generate \"Once upon a time\" --preset fast-dllm --animate
  unmask generate --model LLaDA-8B-Base --prompt-ids 1,2,3 --gap 64 --steps 32 --trace steps.jsonl";

/// Arguments of `unmask generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// The text to complete
    #[arg(required_unless_present = "prompt_ids", conflicts_with = "prompt_ids")]
    prompt: Option<String>,
    /// The token ids to complete
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    prompt_ids: Option<Vec<TokenId>>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 32)]
    gap: usize,
    /// Complete so many times, with the seeds SEED, SEED + 1 and so on; texts have an empty line between them, and
    /// --json prints one line each
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000),
        conflicts_with_all = ["trace", "animate"]
    )]
    n: Option<u64>,
    /// A regular expression that the whole completion matches, in the syntax of Rust's `regex`
    #[arg(long, value_name = "PATTERN", group = "form")]
    regex: Option<String>,
    /// A grammar, GBNF or Lark, of which the whole completion is a text
    #[arg(long, value_name = "GRAMMAR", group = "form")]
    grammar: Option<String>,
    /// A file with such a grammar
    #[arg(long, value_name = "FILE", group = "form")]
    grammar_file: Option<PathBuf>,
    /// A file with a JSON Schema by which the completion is valid
    #[arg(long, value_name = "FILE", group = "form")]
    json_schema: Option<PathBuf>,
    /// The text that guidance leads away from; it stands in the place of the prompt there
    #[arg(long, value_name = "TEXT", requires = "guidance_scale")]
    negative_prompt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `unmask generate`.
pub fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let regex = args.regex.as_deref().map(Form::regex);
    let grammar = args.grammar.as_deref().map(Form::grammar);
    let grammar_file = args.grammar_file.as_deref().map(Form::grammar_file);
    let schema = args.json_schema.as_deref().map(schema);
    // One at most is given.
    let forms = [regex, grammar, grammar_file, schema].into_iter().flatten();
    let forms = forms.collect::<anyhow::Result<Vec<Form>>>()?;
    let checkpoint = args.model.checkpoint()?;
    let spec = checkpoint.spec()?;
    let mut plan = args.decode.plan(&spec)?;
    let has_text = args.prompt.is_some() || args.negative_prompt.is_some() || !forms.is_empty();
    let tokenizer = tokenizer_for(&checkpoint, has_text || args.output.shows_text())?;
    if let Some(text) = &args.negative_prompt {
        plan.sampling.negative_prompt = Some(tokenizer.encode_prompt(text)?);
        plan.validate()?;
    }
    let prompt_ids = match (&args.prompt, args.prompt_ids) {
        (_, Some(ids)) => ids,
        (Some(prompt), None) => tokenizer.encode_prompt(prompt)?,
        (None, None) => Vec::new(),
    };
    let prompt = args.prompt.unwrap_or_else(|| tokenizer.decode(&prompt_ids));
    let engine = args.model.engine(&checkpoint, EngineConfig::unshared())?;
    let canvas = Canvas::builder(engine.blank())
        .fixed(&prompt_ids)
        .gap(args.gap)
        .build()?;
    let layout = Layout::of(vec![Piece::Text(prompt), Piece::Gap(args.gap)]);
    // A completion ends at the first stop token.
    let read = |canvas: &Canvas| layout.read_until(canvas, &spec.stop_tokens, &*tokenizer);
    let output = &args.output;
    let Some(n) = args.n else {
        let (canvas, statistics) = denoise(&engine, canvas, &plan, &forms, output, &*tokenizer)?;
        return output.print(&canvas, &read(&canvas), &plan, &statistics, &*tokenizer);
    };
    let mut is_first = true;
    denoise_each(
        &engine,
        &canvas,
        (0..n).map(|number| nth(&plan, number)),
        &forms,
        &*tokenizer,
        |plan, canvas, statistics| {
            let reading = read(canvas);
            let was_first = std::mem::replace(&mut is_first, false);
            output.print_one_of_several(was_first, canvas, &reading, plan, statistics, &*tokenizer)
        },
    )
}

/// `plan` with the seed of the completion of this number, from 0.
fn nth(plan: &DecodePlan, number: u64) -> DecodePlan {
    let mut plan = plan.clone();
    plan.sampling.seed = plan.sampling.seed.wrapping_add(number);
    plan
}

/// The texts that are valid by the JSON Schema in a file.
fn schema(path: &Path) -> anyhow::Result<Form> {
    let file = path.display();
    let text = std::fs::read(path).with_context(|| {
        format!("--json-schema takes a file with a schema, and {file} cannot be read")
    })?;
    let schema = serde_json::from_slice(&text).with_context(|| format!("--json-schema {file}"))?;
    let language = ByteDfa::json_schema(&schema).map_err(|error| match &error {
        ConstraintError::Schema { path, .. } if !path.is_empty() => {
            anyhow::anyhow!("--json-schema {file}: {path}: {error}")
        }
        _ => anyhow::anyhow!("--json-schema {file}: {error}"),
    })?;
    Ok(Form::Language(language))
}
