//! `unmask chat`.

use std::io::{BufRead, IsTerminal, Read, StdinLock, Write};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::Map;
use unmask::canvas::{Canvas, Splice, TokenId};
use unmask::decode::DecodePlan;
use unmask::engine::{Engine, EngineConfig, Event, StepReport};
use unmask::models::ModelSpec;
use unmask::text::{ChatEnding, ChatMessage, ChatTemplate, Tokenizer};

use crate::cli::animate::Animation;
use crate::cli::decode_args::DecodeArgs;
use crate::cli::model::{ModelArgs, tokenizer};

/// Shown below the help.
pub const EXAMPLES: &str = "In the chat:
  /reset  forgets what was said
  /exit   ends the chat, as the end of the input (Ctrl-D) does
  //…     says a message that begins with /

Examples:
  unmask chat --model GSAI-ML/LLaDA-8B-Instruct --system \"Answer in one sentence.\"
  echo \"What is 2 + 2?\" | unmask chat --model LLaDA-8B-Instruct --gap 64 --steps 32";

/// Tokens of an answer when `--gap` does not say.
const DEFAULT_GAP: usize = 256;

/// Longest line of input, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Arguments of `unmask chat`.
#[derive(Args)]
pub struct ChatArgs {
    /// What the model is told before the first message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens an answer has at most [default: 256, or as many as the model's limit leaves]
    #[arg(long, value_name = "N")]
    gap: Option<usize>,
    /// Redraw the canvas as it is denoised, where standard output is a terminal
    #[arg(long)]
    animate: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    decode: DecodeArgs,
}

/// Runs `unmask chat`: one line of standard input a message, one answer after it.
pub fn run(args: ChatArgs) -> anyhow::Result<()> {
    let checkpoint = args.model.checkpoint()?;
    let template = checkpoint.chat_template()?.with_context(|| {
        format!(
            "the model {} has no chat template, so that it cannot chat; `unmask generate` completes texts",
            checkpoint.name()
        )
    })?;
    let plan = args.decode.plan(&checkpoint.spec()?)?;
    let tokenizer = tokenizer(&checkpoint)?;
    let engine = args.model.engine(&checkpoint, EngineConfig::unshared())?;
    let spec = engine.spec().clone();
    let mut chat = Chat {
        template,
        tokenizer,
        engine,
        spec,
        plan,
        gap: args.gap,
        animate: args.animate,
        system: args.system,
        messages: Vec::new(),
    };
    let is_interactive = std::io::stdin().is_terminal();
    let mut input = std::io::stdin().lock();
    while let Some(line) = read_line(&mut input, is_interactive)? {
        let outcome = match line.trim() {
            "" => Ok(()),
            "/exit" => return Ok(()),
            "/reset" => {
                chat.messages.clear();
                Ok(())
            }
            line => match line.strip_prefix('/') {
                None => chat.answer(line),
                Some(said) if said.starts_with('/') => chat.answer(said),
                Some(command) => Err(anyhow::anyhow!(
                    "/{command} is not known; allowed: /reset, /exit, and // before a message that begins with /"
                )),
            },
        };
        match outcome {
            // A script must not go on as if nothing was.
            Err(error) if !is_interactive => return Err(error),
            Err(error) => eprintln!("error: {error:#}"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The next line of input; `None` at its end.
fn read_line(input: &mut StdinLock, is_interactive: bool) -> anyhow::Result<Option<String>> {
    if is_interactive {
        write!(std::io::stdout(), "> ")?;
        std::io::stdout().flush()?;
    }
    let mut line = String::new();
    let length = input.by_ref().take(MAX_LINE).read_line(&mut line)?;
    if length as u64 == MAX_LINE {
        anyhow::bail!("a line of the input is longer than {MAX_LINE} bytes");
    }
    if length == 0 && is_interactive {
        writeln!(std::io::stdout())?;
    }
    Ok((length > 0).then_some(line))
}

struct Chat {
    template: ChatTemplate,
    tokenizer: Arc<dyn Tokenizer>,
    engine: Engine,
    spec: ModelSpec,
    plan: DecodePlan,
    gap: Option<usize>,
    animate: bool,
    system: Option<String>,
    /// What was said, but the system's message.
    messages: Vec<ChatMessage>,
}

impl Chat {
    /// Prints the answer to a message. After an error the message counts as not said.
    fn answer(&mut self, said: &str) -> anyhow::Result<()> {
        let system = self.system.iter().map(|text| message("system", text));
        let before = system.chain(self.messages.iter().cloned());
        let said = message("user", said);
        let messages: Vec<ChatMessage> = before.chain([said.clone()]).collect();
        let prompt = self
            .template
            .render(&messages, ChatEnding::Answer, &Map::new())?;
        let tokens = self.tokenizer.encode(&prompt)?;
        let room = || self.spec.longest_gap(&self.plan, tokens.len(), DEFAULT_GAP);
        let gap = self.gap.unwrap_or_else(room);
        if gap == 0 {
            anyhow::bail!(
                "the chat has {} tokens, which leaves no room for an answer: the model's limit is {} slots; \
                 /reset forgets what was said",
                tokens.len(),
                self.spec.longest_canvas(&self.plan)
            );
        }
        let canvas = Canvas::builder(self.engine.blank())
            .fixed(&tokens)
            .gap_between(gap, 0, gap)
            .build()?;
        let canvas = self.spec.with_scratch(&self.plan, canvas);
        let answer = self.denoise(canvas)?;
        self.messages.extend([said, message("assistant", &answer)]);
        Ok(())
    }

    /// Prints the gap's text as it becomes final, up to the first stop token.
    fn denoise(&self, canvas: Canvas) -> anyhow::Result<String> {
        let mut animation = self
            .animate
            .then(|| Animation::start(&canvas, &*self.tokenizer))
            .transpose()?;
        let gap = canvas.gaps().last().cloned().unwrap_or_default();
        let mut text = AnswerText {
            stop_tokens: &self.spec.stop_tokens,
            start: gap.start,
            slots: vec![None; gap.len()],
            final_before: 0,
            printed: 0,
        };
        let mut generation = self.engine.submit(canvas, &self.plan)?;
        loop {
            match generation.next_blocking() {
                Some(Event::Step(report)) => {
                    if let Some(animation) = &mut animation {
                        animation.step(&report)?;
                    }
                    text.take(&report);
                    if animation.is_none() {
                        text.print(&*self.tokenizer, false)?;
                    }
                    if text.is_stopped() {
                        break;
                    }
                }
                Some(Event::Finished(canvas, _)) => {
                    let gap = canvas.gaps().last().cloned().unwrap_or_default();
                    text.slots = gap.map(|slot| Some(canvas.token(slot))).collect();
                    text.final_before = canvas.len();
                    break;
                }
                Some(Event::Failed(error)) => return Err(error.into()),
                None => anyhow::bail!("the engine stopped before the answer was finished"),
            }
        }
        animation.map_or(Ok(()), Animation::finish)?;
        text.print(&*self.tokenizer, true)?;
        writeln!(std::io::stdout())?;
        Ok(String::from_utf8_lossy(&text.bytes(&*self.tokenizer)).into_owned())
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
        name: None,
    }
}

/// The text of a gap from the left, as far as it is final.
struct AnswerText<'a> {
    stop_tokens: &'a [TokenId],
    /// The gap's first slot.
    start: usize,
    slots: Vec<Option<TokenId>>,
    /// The canvas's slot before which committed slots do not change any more.
    final_before: usize,
    /// Bytes that have been printed.
    printed: usize,
}

impl AnswerText<'_> {
    fn take(&mut self, report: &StepReport) {
        for (slot, commit) in &report.committed {
            let at = slot.checked_sub(self.start);
            if let Some(place) = at.and_then(|at| self.slots.get_mut(at)) {
                *place = Some(commit.token);
            }
        }
        for slot in &report.remasked {
            let at = slot.checked_sub(self.start);
            if let Some(place) = at.and_then(|at| self.slots.get_mut(at)) {
                *place = None;
            }
        }
        Splice::apply(&report.spliced, &mut self.slots, self.start, &None);
        self.final_before = report.final_before;
    }

    /// The tokens up to the first slot that is masked or not final.
    fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        let count = self.final_before.saturating_sub(self.start);
        self.slots.iter().take(count).map_while(|token| *token)
    }

    fn is_stopped(&self) -> bool {
        self.tokens().any(|token| self.stop_tokens.contains(&token))
    }

    /// The bytes of these tokens, up to a stop token.
    fn bytes(&self, tokenizer: &dyn Tokenizer) -> Vec<u8> {
        self.tokens()
            .take_while(|token| !self.stop_tokens.contains(token))
            .flat_map(|token| tokenizer.bytes(token))
            .copied()
            .collect()
    }

    /// Prints what is new; the beginning of a character waits for its end unless this is the end.
    fn print(&mut self, tokenizer: &dyn Tokenizer, is_end: bool) -> anyhow::Result<()> {
        let bytes = self.bytes(tokenizer);
        let new = &bytes[self.printed..];
        let unfinished = new.utf8_chunks().last().map_or(0, |chunk| {
            let end = chunk.invalid();
            match std::str::from_utf8(end) {
                Err(error) if error.error_len().is_none() && !is_end => end.len(),
                _ => 0,
            }
        });
        let complete = new.len() - unfinished;
        let text = String::from_utf8_lossy(&new[..complete]);
        write!(std::io::stdout(), "{text}")?;
        std::io::stdout().flush()?;
        self.printed += complete;
        Ok(())
    }
}
