//! `unmask infill`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use unmask::canvas::{Canvas, TokenId};
use unmask::engine::EngineConfig;
use unmask::text::Layout;
use unmask::text::gaps::{self, Piece};

use crate::cli::decode_args::DecodeArgs;
use crate::cli::denoise::{Form, denoise};
use crate::cli::model::{ModelArgs, tokenizer_for};
use crate::cli::output::OutputArgs;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask infill \"The old {{4}} was very {{2}} of his garden.\" --seed 1
  unmask infill --canvas-ids 5,0,0,7 --ids        # where 0 is the mask token
  unmask infill \"\\{{ and }} stay, {{3}} does not\" --json";

/// Arguments of `unmask infill`.
#[derive(Args)]
pub struct InfillArgs {
    /// A text with gaps: `{{8}}` is a gap of 8 tokens, `\{{` two literal braces
    #[arg(required_unless_present = "canvas_ids", conflicts_with = "canvas_ids")]
    text: Option<String>,
    /// The token ids of the whole canvas; runs of the mask token are the gaps
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    canvas_ids: Option<Vec<TokenId>>,
    /// A regular expression that the whole text of a gap matches, in the syntax of Rust's `regex`; once a gap
    #[arg(long, value_name = "PATTERN", group = "form")]
    regex: Vec<String>,
    /// A grammar, GBNF or Lark, of which the whole text of a gap is one; once a gap
    #[arg(long, value_name = "GRAMMAR", group = "form")]
    grammar: Vec<String>,
    /// A file with such a grammar; once a gap
    #[arg(long, value_name = "FILE", group = "form")]
    grammar_file: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `unmask infill`.
pub fn run(args: InfillArgs) -> anyhow::Result<()> {
    let regexes = args.regex.iter().map(|pattern| Form::regex(pattern));
    let grammars = args.grammar.iter().map(|text| Form::grammar(text));
    let files = args
        .grammar_file
        .iter()
        .map(|path| Form::grammar_file(path));
    // Of one kind at most any are given.
    let forms = regexes.chain(grammars).chain(files);
    let forms = forms.collect::<anyhow::Result<Vec<Form>>>()?;
    let checkpoint = args.model.checkpoint()?;
    let spec = checkpoint.spec()?;
    let plan = args.decode.infill_plan(&spec)?;
    let has_text = args.canvas_ids.is_none() || !forms.is_empty();
    let tokenizer = tokenizer_for(&checkpoint, has_text || args.output.shows_text())?;
    let engine = args.model.engine(&checkpoint, EngineConfig::unshared())?;
    let (layout, canvas) = match args.canvas_ids {
        Some(ids) => {
            let mask = engine.mask_token().context(
                "--canvas-ids marks gaps by the mask token, and this model was trained on the uniform process, \
                 which has none; write the text with {{N}} instead",
            )?;
            let canvas = Canvas::from_ids(&ids, mask)?;
            let pieces = ids
                .chunk_by(|a, b| (*a == mask) == (*b == mask))
                .map(|run| match run[0] == mask {
                    true => Piece::Gap(run.len()),
                    false => Piece::Text(tokenizer.decode(run)),
                })
                .collect();
            (Layout::of(pieces), canvas)
        }
        None => {
            let pieces = gaps::parse(&args.text.unwrap_or_default())?;
            ensure!(
                pieces.iter().any(|piece| matches!(piece, Piece::Gap(_))),
                "the text has no gap; write {{{{8}}}} where 8 tokens are to be filled in"
            );
            Layout::new(pieces, &*tokenizer, engine.blank())?
        }
    };
    let (canvas, statistics) = denoise(&engine, canvas, &plan, &forms, &args.output, &*tokenizer)?;
    let reading = layout.read_until(&canvas, &spec.stop_tokens, &*tokenizer);
    args.output
        .print(&canvas, &reading, &plan, &statistics, &*tokenizer)
}
