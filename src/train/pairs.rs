//! Pairs of prompt and answer as windows, for supervised fine-tuning.
//!
//! As in LLaDA (GUIDELINES.md of ML-GSAI/LLaDA, "SFT"), the prompt is never noised, and the answer, which
//! ends in the end token and is padded with it to the window, is noised with its padding: the model learns
//! where answers end. A pair's loss is the mean over the tokens of its answer, padding included.

use rayon::prelude::*;

use super::batch::Windows;
use super::error::TrainError;
use super::tokenizer::SpecialTokens;
use crate::text::Tokenizer;
use crate::text::pairs::{EncodedPair, Pairs};

/// Each pair as one text, to train a tokenizer on.
pub fn texts(pairs: &Pairs) -> Vec<String> {
    let pairs = pairs.as_slice().iter();
    pairs
        .map(|pair| format!("{}{}", pair.prompt, pair.answer))
        .collect()
}

/// Each pair as a window of `context` tokens: prompt, answer and end tokens.
///
/// # Errors
/// [`TrainError::Pairs`] names the first line that holds the mask token, or does not fit the window: its
/// prompt alone, or without `truncate` its answer with one end token.
pub fn windows(
    pairs: &Pairs,
    tokenizer: &dyn Tokenizer,
    specials: SpecialTokens,
    context: usize,
    truncate: bool,
) -> Result<Windows, TrainError> {
    let encode = |index| pairs.encode(index, tokenizer, Some(specials.mask));
    let lines = (0..pairs.as_slice().len()).into_par_iter();
    let encoded: Vec<_> = lines.map(encode).collect();
    let mut windows = Windows::new(context);
    for (index, encoded) in encoded.into_iter().enumerate() {
        let EncodedPair {
            prompt: mut window,
            answer,
        } = encoded?;
        let prompt = window.len();
        let room = context.saturating_sub(prompt);
        let reason = if room == 0 {
            Some(format!(
                "the prompt alone has {prompt} tokens, and the window {context}; shorten it or raise --context"
            ))
        } else if answer.len() >= room && !truncate {
            Some(format!(
                "prompt, answer and end token are {} tokens, and the window {context}; shorten them, raise \
                 --context, or pass --truncate-pairs",
                prompt + answer.len() + 1
            ))
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(pairs.refused(index, reason).into());
        }
        window.extend(answer.iter().take(room));
        window.resize(context, specials.end);
        windows.push(&window, prompt, &[]);
    }
    Ok(windows)
}
