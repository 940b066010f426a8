//! Reads the gap of a completion from left to right, as far as it is final and committed without a hole.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::completion_text::CompletionText;
use super::logprobs::TextToken;
use super::run::Reader;
use crate::canvas::{Canvas, Splice, TokenId};
use crate::engine::StepReport;
use crate::sampling::Logprobs;
use crate::text::Tokenizer;

/// The reader of one completion.
pub(super) struct CompletionReader {
    tokenizer: Arc<dyn Tokenizer>,
    stop_tokens: Arc<[TokenId]>,
    gap: Range<usize>,
    /// Slots that the gap began with.
    asked: usize,
    /// The canvas's slot before which committed slots do not change any more.
    final_before: usize,
    /// Whether the gap holds a whole text, however it ends.
    is_whole: bool,
    /// How long it may be denoised once a line is certain.
    time_limit: Option<Duration>,
    /// The gap's tokens where they are committed.
    slots: Vec<Option<TokenId>>,
    /// Their log-probabilities, if they were asked for.
    logprobs: Option<Vec<Option<Logprobs>>>,
    /// How many slots have been read.
    read: usize,
    text: CompletionText,
    /// What no frame has brought yet; at first the echoed prompt.
    unsent: String,
    /// Tokens that begin in text that no frame has brought yet, if log-probabilities were asked for.
    waiting: VecDeque<TextToken>,
    /// Characters of an echoed prompt.
    echoed: usize,
    /// Characters that frames have brought.
    sent_characters: usize,
    sent: TextPiece,
}

/// A piece of a completion.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TextPiece {
    /// The text.
    pub text: String,
    /// The tokens that begin in it, with their log-probabilities; empty if they were not asked for.
    pub tokens: Vec<TextToken>,
}

impl TextPiece {
    /// Pieces that follow one another as one; `None` if there are none.
    pub fn joined(pieces: impl IntoIterator<Item = Self>) -> Option<Self> {
        pieces.into_iter().reduce(|mut whole, piece| {
            whole.text.push_str(&piece.text);
            whole.tokens.extend(piece.tokens);
            whole
        })
    }
}

/// A finished completion.
pub(super) struct CompletionAnswer {
    /// Its text and tokens.
    pub piece: TextPiece,
    /// Why it ended: `stop` or `length`.
    pub finish_reason: &'static str,
    /// The stop string that ended it, if one did.
    pub stop: Option<String>,
    /// How many tokens it was read from.
    pub tokens: usize,
}

/// A prompt that comes back before its completion.
pub(super) struct Echo {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
}

impl CompletionReader {
    /// Reads the slots of `gap`, up to a stop token or one of `stops`.
    pub fn new(
        tokenizer: Arc<dyn Tokenizer>,
        stop_tokens: Arc<[TokenId]>,
        stops: Arc<[String]>,
        gap: Range<usize>,
    ) -> Self {
        Self {
            tokenizer,
            stop_tokens,
            final_before: 0,
            is_whole: false,
            time_limit: None,
            slots: vec![None; gap.len()],
            logprobs: None,
            read: 0,
            text: CompletionText::new(stops),
            asked: gap.len(),
            unsent: String::new(),
            waiting: VecDeque::new(),
            echoed: 0,
            sent_characters: 0,
            sent: TextPiece::default(),
            gap,
        }
    }

    /// Knows that the gap is filled with a text that is complete, whether or not a stop token follows it.
    pub fn of_whole_text(self) -> Self {
        Self {
            is_whole: true,
            ..self
        }
    }

    /// Ends with what is certain when it has been denoised for as long as `limit`, if that has a line break.
    pub fn within(self, limit: Option<Duration>) -> Self {
        Self {
            time_limit: limit,
            ..self
        }
    }

    /// Reads log-probabilities too.
    pub fn with_logprobs(mut self) -> Self {
        self.logprobs = Some(vec![None; self.gap.len()]);
        self
    }

    /// Brings a prompt before the completion.
    pub fn after(mut self, echo: &Echo) -> Self {
        self.echoed = echo.text.chars().count();
        self.unsent = echo.text.clone();
        if self.logprobs.is_some() {
            let mut text = CompletionText::new([].into());
            self.waiting.extend(echo.tokens.iter().map(|&token| {
                let bytes = self.tokenizer.bytes(token);
                let offset = text.offset_of(bytes);
                text.push(bytes);
                TextToken {
                    token,
                    offset,
                    logprobs: None,
                }
            }));
        }
        self
    }

    /// Reads on up to the first slot that is masked or not final; whether a stop token or a stop string has come.
    fn read(&mut self) -> bool {
        while self.gap.start + self.read < self.final_before
            && let Some(Some(token)) = self.slots.get(self.read)
        {
            let token = *token;
            self.read += 1;
            if self.stop_tokens.contains(&token) {
                // Nothing after it can complete a stop string.
                let rest = self.text.finish();
                self.unsent.push_str(&rest);
                return true;
            }
            let bytes = self.tokenizer.bytes(token);
            if let Some(logprobs) = &mut self.logprobs {
                self.waiting.push_back(TextToken {
                    token,
                    offset: self.echoed + self.text.offset_of(bytes),
                    logprobs: logprobs[self.read - 1].take(),
                });
            }
            let text = self.text.push(bytes);
            self.unsent.push_str(&text);
            if self.text.is_stopped() {
                return true;
            }
        }
        false
    }

    /// What has become certain since the last frame; `is_end` says that nothing follows.
    fn frame(&mut self, is_end: bool) -> Option<TextPiece> {
        let text = std::mem::take(&mut self.unsent);
        self.sent_characters += text.chars().count();
        // Tokens of a stop string are not part of the text.
        let all = is_end && !self.text.is_stopped();
        let mut tokens = Vec::new();
        while let Some(token) = self.waiting.front()
            && (all || token.offset < self.sent_characters)
        {
            tokens.extend(self.waiting.pop_front());
        }
        self.sent.text.push_str(&text);
        self.sent.tokens.extend_from_slice(&tokens);
        (!text.is_empty() || !tokens.is_empty()).then_some(TextPiece { text, tokens })
    }

    fn is_late(&self, denoising: Duration) -> bool {
        let has_line = || {
            [&self.sent.text, &self.unsent]
                .iter()
                .any(|text| text.contains('\n'))
        };
        self.time_limit.is_some_and(|limit| denoising >= limit) && has_line()
    }

    fn answer(&mut self, finish_reason: &'static str) -> CompletionAnswer {
        CompletionAnswer {
            piece: std::mem::take(&mut self.sent),
            finish_reason,
            stop: self.text.stop().map(str::to_owned),
            tokens: self.read,
        }
    }
}

impl Reader for CompletionReader {
    type Frame = TextPiece;
    type Answer = CompletionAnswer;

    fn step(&mut self, report: &StepReport) -> (Option<TextPiece>, Option<CompletionAnswer>) {
        if let Some(logprobs) = &mut self.logprobs {
            for (slot, of_slot) in &report.logprobs {
                if self.gap.contains(slot) {
                    logprobs[slot - self.gap.start] = Some(of_slot.clone());
                }
            }
        }
        // Slots are replaced only where nothing was committed, so that what was read stays where it is.
        for (slot, commit) in &report.committed {
            if self.gap.contains(slot) {
                self.slots[slot - self.gap.start] = Some(commit.token);
            }
        }
        for slot in &report.remasked {
            if self.gap.contains(slot) {
                self.slots[slot - self.gap.start] = None;
            }
        }
        Splice::apply(&report.spliced, &mut self.slots, self.gap.start, &None);
        if let Some(logprobs) = &mut self.logprobs {
            Splice::apply(&report.spliced, logprobs, self.gap.start, &None);
        }
        self.gap = Splice::resized(&report.spliced, &self.gap);
        self.final_before = report.final_before;
        let stopped = self.read();
        if !stopped && self.is_late(report.statistics.denoising) {
            // The rest of a character may be about to be committed: half of one is no text.
            let rest = self.text.cut();
            self.unsent.push_str(&rest);
            return (self.frame(true), Some(self.answer("length")));
        }
        let frame = self.frame(stopped);
        (frame, stopped.then(|| self.answer("stop")))
    }

    fn finish(&mut self, canvas: &Canvas) -> (Option<TextPiece>, CompletionAnswer) {
        for (at, slot) in self.gap.clone().enumerate() {
            self.slots[at] = canvas.provenance(slot).map(|commit| commit.token);
        }
        self.final_before = canvas.len();
        let stopped = self.read();
        let rest = self.text.finish();
        self.unsent.push_str(&rest);
        // A gap that the network made shorter ends where the network ended it.
        let is_ended = stopped || self.is_whole || self.gap.len() < self.asked;
        let reason = if is_ended || self.text.is_stopped() {
            "stop"
        } else {
            "length"
        };
        (self.frame(true), self.answer(reason))
    }
}
