//! `unmask inspect`.

use std::io::Write;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use unmask::models::{Checkpoint, ModelSpec};

use crate::cli::model::{ModelArgs, with_byte_progress};

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask inspect
  unmask inspect --model GSAI-ML/LLaDA-8B-Instruct --check
  unmask inspect --model config.json --load-format dummy --json";

/// Arguments of `unmask inspect`.
#[derive(Args)]
pub struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Read every weight too, and fail if one is NaN or infinite
    #[arg(long)]
    check: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `unmask inspect`.
pub fn run(args: InspectArgs) -> anyhow::Result<()> {
    let checkpoint = args.model.checkpoint()?;
    let spec = checkpoint.spec()?;
    let texts = Texts::of(&checkpoint)?;
    let unread = checkpoint.unread_generation_fields()?;
    if args.check {
        check(&checkpoint)?;
    }
    let mut out = std::io::stdout().lock();
    let device = args.model.device.resolve()?;
    let format = args.model.dtype.resolve(&device);
    let shapes = checkpoint.shapes()?;
    let weight_bytes = checkpoint.weight_bytes(format)?;
    let presets: Vec<_> = spec
        .presets()
        .iter()
        .map(|preset| json!({"name": preset.name, "description": preset.description}))
        .collect();
    if args.json {
        let json = json!({
            "name": checkpoint.name(),
            "spec": spec,
            "tokenizer": texts.tokenizer,
            "chat_template": texts.has_chat_template,
            "generation_config_unread": unread,
            "dtype": format.name(),
            "weight_bytes": weight_bytes,
            "presets": presets,
            "tensors": shapes,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    writeln!(out, "model          {}", checkpoint.name())?;
    writeln!(out, "family         {}", spec.family)?;
    let active = match spec.active_parameters {
        active if active == spec.parameters => String::new(),
        active => format!(", {active} of them active in a row"),
    };
    writeln!(
        out,
        "parameters     {} in {} tensors{active}",
        spec.parameters,
        shapes.len()
    )?;
    writeln!(
        out,
        "network        {} layers of width {}, {} key/value heads of {}{}",
        spec.layers,
        spec.hidden_size,
        spec.kv_heads,
        spec.head_dim,
        other_shapes(&spec)
    )?;
    writeln!(out, "vocabulary     {}", spec.vocab_size)?;
    let sliding = spec.sliding_window.map_or(String::new(), |sliding| {
        format!(", with sliding_window {}", sliding.max_canvas)
    });
    writeln!(
        out,
        "canvas         at most {} slots{sliding}",
        spec.max_canvas
    )?;
    match spec.mask_token() {
        Some(mask) if checkpoint.mask_stands_in() => writeln!(
            out,
            "mask token     {mask}, which stands in for one that config.json does not name"
        )?,
        Some(mask) => writeln!(out, "mask token     {mask}")?,
        None => writeln!(out, "mask token     none (uniform process)")?,
    }
    let endless = match spec.never_stops() {
        true => ", so that the default plan, which stops at one, fills every gap",
        false => "",
    };
    writeln!(out, "stop tokens    {:?}{endless}", spec.stop_tokens)?;
    writeln!(out, "tokenizer      {}", texts.tokenizer_line(&checkpoint))?;
    let chat_template = match texts.has_chat_template {
        true => "there",
        false => "none",
    };
    writeln!(out, "chat template  {chat_template}")?;
    writeln!(
        out,
        "default plan   {}",
        serde_json::to_string(&spec.default_plan)?
    )?;
    if !unread.is_empty() {
        let unread = unread.join(", ");
        writeln!(out, "not read       of generation_config.json: {unread}")?;
    }
    writeln!(
        out,
        "weights        {weight_bytes} bytes in {}",
        format.name()
    )?;
    writeln!(
        out,
        "presets        {}",
        spec.presets()
            .iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(", ")
    )?;
    if args.check {
        writeln!(
            out,
            "checked        {} tensors: every weight is a finite number",
            shapes.len()
        )?;
    }
    Ok(())
}

/// What a checkpoint's texts are read and written with.
struct Texts {
    tokenizer: Option<TokenizerReport>,
    has_chat_template: bool,
}

/// A tokenizer and where it is from.
#[derive(Serialize)]
struct TokenizerReport {
    files: &'static [&'static str],
    tokens: usize,
}

impl Texts {
    /// Reads them as the server does, and fails where it would.
    fn of(checkpoint: &Checkpoint) -> anyhow::Result<Self> {
        let context = || format!("the model {} has broken files", checkpoint.name());
        let tokenizer = checkpoint.tokenizer().with_context(context)?;
        let files = checkpoint.tokenizer_files()?;
        Ok(Self {
            tokenizer: tokenizer.map(|tokenizer| TokenizerReport {
                files,
                tokens: tokenizer.vocab_size(),
            }),
            has_chat_template: checkpoint.chat_template().with_context(context)?.is_some(),
        })
    }

    fn tokenizer_line(&self, checkpoint: &Checkpoint) -> String {
        match &self.tokenizer {
            Some(TokenizerReport { files, tokens }) => {
                format!("{tokens} tokens by {}", files.join(" and "))
            }
            None if checkpoint.is_dummy() => "none; texts are bytes".into(),
            None => "none; it cannot be served, and generates from token ids alone".into(),
        }
    }
}

/// Reads every weight of `checkpoint`.
fn check(checkpoint: &Checkpoint) -> anyhow::Result<()> {
    if checkpoint.is_dummy() {
        bail!("--check reads the weights of a checkpoint; --load-format dummy has none");
    }
    let context = || format!("cannot check the model {}", checkpoint.name());
    let total = checkpoint.stored_bytes().with_context(context)?;
    let found = with_byte_progress("checking", total, |progress| {
        checkpoint.not_finite(progress)
    })?
    .with_context(context)?;
    if found.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    bail!(
        "weights that are not finite numbers, {} in all:\n{}",
        found.iter().map(|f| f.nan + f.infinite).sum::<usize>(),
        lines.join("\n")
    )
}

/// The key/value heads of the layers that have others than most, as the end of a sentence; nothing if all are alike.
fn other_shapes(spec: &ModelSpec) -> String {
    let mut shapes: Vec<_> = spec.other_layers.values().collect();
    shapes.sort_by_key(|shape| (shape.heads, shape.head_dim));
    let alike = shapes.chunk_by(|a, b| a == b);
    let texts = alike.map(|shapes| {
        let (count, shape) = (shapes.len(), shapes[0]);
        format!(", {} of {} in {count} of them", shape.heads, shape.head_dim)
    });
    texts.collect()
}
