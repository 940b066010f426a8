//! Log-probabilities as OpenAI's API shows them.
//!
//! A token's log-probability is the model's own at the step that committed the token: given what stood on
//! the whole canvas then, not given the text to the left alone.

use std::fmt::Write;

use super::wire::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TokenLogprobs, TopLogprobs};
use crate::canvas::TokenId;
use crate::sampling::Logprobs;
use crate::text::Tokenizer;

/// A token of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TextToken {
    /// The token.
    pub token: TokenId,
    /// Where it begins in the text, in characters.
    pub offset: usize,
    /// Its log-probabilities; none of a prompt's token.
    pub logprobs: Option<Logprobs>,
}

/// `tokens` in the shape of `/v1/completions`.
pub(super) fn completion_logprobs(
    tokens: &[TextToken],
    tokenizer: &dyn Tokenizer,
) -> CompletionLogprobs {
    let mut lists = CompletionLogprobs::default();
    for TextToken {
        token,
        offset,
        logprobs,
    } in tokens
    {
        let text = legacy_text(tokenizer.bytes(*token));
        let top = logprobs.as_ref().map(|logprobs| {
            let mut top = TopLogprobs::default();
            let best = logprobs.top.iter().copied();
            for (other, logprob) in best.chain([(*token, logprobs.token)]) {
                let text = legacy_text(tokenizer.bytes(other));
                if top.0.iter().all(|(known, _)| *known != text) {
                    top.0.push((text, logprob));
                }
            }
            top
        });
        lists.tokens.push(text);
        lists
            .token_logprobs
            .push(logprobs.as_ref().map(|logprobs| logprobs.token));
        lists.top_logprobs.push(top);
        lists.text_offset.push(*offset);
    }
    lists
}

/// `tokens` in the shape of a chat message; those of a prompt are left out.
pub(super) fn chat_logprobs(tokens: &[TextToken], tokenizer: &dyn Tokenizer) -> ChatLogprobs {
    let content = tokens.iter().filter_map(|token| {
        let logprobs = token.logprobs.as_ref()?;
        let top = logprobs.top.iter();
        Some(TokenLogprobs {
            token: token_logprob(token.token, logprobs.token, tokenizer),
            top_logprobs: top
                .map(|(token, logprob)| token_logprob(*token, *logprob, tokenizer))
                .collect(),
        })
    });
    ChatLogprobs {
        content: content.collect(),
        refusal: None,
    }
}

fn token_logprob(token: TokenId, logprob: f32, tokenizer: &dyn Tokenizer) -> TokenLogprob {
    TokenLogprob {
        token: tokenizer.decode(&[token]),
        logprob,
        bytes: tokenizer.bytes(token).to_vec(),
    }
}

/// A token's text as OpenAI's completions write it.
fn legacy_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
            text
        }),
    }
}
