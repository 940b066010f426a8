//! What `generate` and `infill` print and write.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};
use unmask::canvas::{Canvas, Splice, TokenId};
use unmask::decode::DecodePlan;
use unmask::engine::{Statistics, StepReport};
use unmask::text::{Reading, Tokenizer};

/// Options that choose the output.
#[derive(Args)]
#[command(next_help_heading = "Output options")]
pub struct OutputArgs {
    /// Print JSON: the text, each gap with the provenance of its tokens, the plan, the steps, the forwards of
    /// the network (nfe) and the time taken
    #[arg(long, conflicts_with = "ids")]
    json: bool,
    /// Print token ids instead of text
    #[arg(long)]
    ids: bool,
    /// Redraw the canvas as it is denoised, where standard output is a terminal
    #[arg(long)]
    pub animate: bool,
    /// Write every canvas as a JSON line: the first one before any step, then one for each step that took a
    /// forward or masked slots again
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

impl OutputArgs {
    /// Whether anything is shown as text.
    pub fn shows_text(&self) -> bool {
        self.animate || !self.ids
    }

    /// Prints a finished canvas.
    pub fn print(
        &self,
        canvas: &Canvas,
        reading: &Reading,
        plan: &DecodePlan,
        statistics: &Statistics,
        tokenizer: &dyn Tokenizer,
    ) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let json = document(canvas, reading, plan, statistics, tokenizer);
            writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        } else {
            writeln!(out, "{}", self.plain(canvas, reading))?;
        }
        Ok(())
    }

    /// Prints one of several finished canvases: JSON in one line, and an empty line between texts.
    pub fn print_one_of_several(
        &self,
        is_first: bool,
        canvas: &Canvas,
        reading: &Reading,
        plan: &DecodePlan,
        statistics: &Statistics,
        tokenizer: &dyn Tokenizer,
    ) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let json = document(canvas, reading, plan, statistics, tokenizer);
            writeln!(out, "{json}")?;
            return Ok(());
        }
        if !(self.ids || is_first) {
            writeln!(out)?;
        }
        writeln!(out, "{}", self.plain(canvas, reading))?;
        Ok(())
    }

    /// The text, or the token ids.
    fn plain(&self, canvas: &Canvas, reading: &Reading) -> String {
        if self.ids {
            let read = canvas.tokens().take(canvas.scratch().start);
            let ids: Vec<String> = read.map(|id| id.to_string()).collect();
            ids.join(",")
        } else {
            reading.text.clone()
        }
    }
}

fn document(
    canvas: &Canvas,
    reading: &Reading,
    plan: &DecodePlan,
    statistics: &Statistics,
    tokenizer: &dyn Tokenizer,
) -> Value {
    let gaps: Vec<Value> = canvas
        .gaps()
        .iter()
        .zip(&reading.gaps)
        .map(|(slots, gap)| {
            let provenance: Vec<Value> = slots
                .clone()
                .filter_map(|slot| canvas.gap_slot(slot))
                .filter_map(|slot| Some((slot, slot.provenance()?)))
                .map(|(slot, commit)| {
                    json!({
                        "token": commit.token,
                        "text": tokenizer.decode(&[commit.token]),
                        "probability": commit.probability,
                        "score": commit.score,
                        "step": commit.step,
                        "remasked": slot.remasked(),
                        "edited": slot.edited(),
                    })
                })
                .collect();
            json!({
                "text": gap.text,
                "start": gap.characters.start,
                "end": gap.characters.end,
                "start_byte": gap.bytes.start,
                "end_byte": gap.bytes.end,
                "provenance": provenance,
            })
        })
        .collect();
    json!({
        "text": reading.text,
        "gaps": gaps,
        "plan": plan,
        "steps": statistics.steps,
        "nfe": statistics.nfe,
        "denoise_ms": statistics.denoising.as_secs_f64() * 1e3,
    })
}

/// A file of JSON lines, one canvas a line.
pub struct Trace {
    path: PathBuf,
    file: BufWriter<File>,
    tokens: Vec<TokenId>,
    mask: Option<TokenId>,
}

impl Trace {
    /// Creates the file and writes the canvas before any step, as step 0.
    pub fn create(path: &Path, canvas: &Canvas) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut trace = Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            tokens: canvas.tokens().collect(),
            mask: canvas.mask(),
        };
        let first = json!({"step": 0, "canvas": trace.tokens, "committed": []});
        trace.write(&first)?;
        Ok(trace)
    }

    /// Writes the canvas after a step.
    pub fn step(&mut self, report: &StepReport) -> anyhow::Result<()> {
        for (slot, commit) in &report.committed {
            self.tokens[*slot] = commit.token;
        }
        if let Some(mask) = self.mask {
            for slot in &report.remasked {
                self.tokens[*slot] = mask;
            }
        }
        for (slot, noise) in &report.noise {
            self.tokens[*slot] = *noise;
        }
        let committed: Vec<Value> = report
            .committed
            .iter()
            .map(|(slot, commit)| {
                json!({
                    "slot": slot,
                    "token": commit.token,
                    "probability": commit.probability,
                })
            })
            .collect();
        if let Some(mask) = self.mask {
            Splice::apply(&report.spliced, &mut self.tokens, 0, &mask);
        }
        let mut line = json!({"step": report.step, "canvas": self.tokens, "committed": committed});
        if !report.remasked.is_empty() {
            line["remasked"] = json!(report.remasked);
        }
        if !report.spliced.is_empty() {
            let spliced = report.spliced.iter();
            let spliced: Vec<Value> = spliced
                .map(|splice| json!({"slot": splice.slot, "masked": splice.count}))
                .collect();
            line["spliced"] = json!(spliced);
        }
        self.write(&line)
    }

    /// Makes sure that all lines are in the file.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let flushed = self.file.flush();
        self.written(flushed)
    }

    fn write(&mut self, line: &Value) -> anyhow::Result<()> {
        let written = writeln!(self.file, "{line}");
        self.written(written)
    }

    /// A pipe whose reader has gone is an error here, where for what is printed it is an end: so it is told as text.
    fn written(&self, written: std::io::Result<()>) -> anyhow::Result<()> {
        written.map_err(|error| anyhow!("cannot write {}: {error}", self.path.display()))
    }
}
