//! Documents as windows of tokens.

use super::measure::Sums;
use super::sample::{Choice, one_of_each_stratum};
use super::{EvalError, Target};
use crate::models::ModelSpec;
use crate::text::Tokenizer;
use crate::text::documents::DocumentsError;
use crate::text::pairs::Pairs;

/// Which part of a collection of documents is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// At most this many documents, one at random from each of as many equal parts of the collection; at
    /// least 1.
    pub documents: usize,
    /// At most this many windows a document, one at random from each of as many equal parts of it; at
    /// least 1.
    pub windows: usize,
    /// Longest window in tokens, from 2, or 3 where logits are shifted by one, to the
    /// [`max_context`](super::max_context) of the model; `None` is that.
    pub context: Option<usize>,
    /// Whether a chosen document that is longer than a window is refused, instead of being cut.
    pub refuse_long_documents: bool,
    /// Seed of the choice.
    pub seed: u64,
}

/// Consecutive tokens of a document that are evaluated together, or an answer after its prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The tokens: all of a document's scored, or of a pair those of its answer.
    pub target: Target,
    /// Unicode characters (scalar values) of the scored text: those whose first byte is in it.
    pub characters: usize,
    /// Bytes of the scored text.
    pub bytes: usize,
    /// The windows of the whole collection that it stands for, itself included: the inverse of the
    /// probability with which it was chosen.
    pub weight: usize,
}

/// The evaluated windows of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its place in the collection, from 0.
    pub index: usize,
    /// Its windows that are evaluated, in order.
    pub windows: Vec<Window>,
    /// All its windows, evaluated or not.
    pub available: usize,
}

/// The evaluated documents, or pairs, each of which counts as a document.
///
/// Each document is encoded by itself, as in training: without a token for its beginning or end, and special
/// tokens that are written out in it are text. It is cut into as few windows as fit the context, all of equal
/// length but for one token: no stub is left at the end. Windows do not see each other. Where a model reads the
/// logits of a slot at the one before it (Dream), a window's first token is given and not scored.
///
/// Documents and windows are chosen at random, by the seed, and weighed with the inverse of their
/// probabilities, so that a weighted sum over the evaluated windows estimates the sum over all windows of
/// the collection without bias. All windows of a document that is evaluated whole, and all documents of a
/// small collection, have the weight 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// The documents, each with at least one window.
    pub documents: Vec<Document>,
    /// Chosen documents that were left out, having fewer than 2 tokens.
    pub skipped: usize,
    /// Documents of the whole collection.
    pub available: usize,
    /// Longest allowed window in tokens.
    pub context: usize,
}

impl Corpus {
    /// Encodes and cuts the chosen ones of `texts`.
    ///
    /// # Errors
    /// If a setting is out of range, a text cannot be encoded, is too long where such are refused, or has a token that
    /// the model has not, or no document has 2 tokens.
    pub fn new(
        texts: &[String],
        tokenizer: &dyn Tokenizer,
        spec: &ModelSpec,
        selection: &Selection,
    ) -> Result<Self, EvalError> {
        let mut corpus = Self::empty(texts.len(), spec, selection)?;
        let context = corpus.context;
        let seed = selection.seed;
        let unscored = spec.logit_shift;
        let documents =
            one_of_each_stratum(texts.len(), selection.documents, seed, Choice::Documents);
        for (index, stands_for) in documents {
            let in_document = |source| EvalError::Document {
                number: index + 1,
                source: Box::new(source),
            };
            let tokens = tokenizer
                .encode_as_text(&texts[index])
                .map_err(|error| in_document(error.into()))?;
            if tokens.len() < 2 {
                corpus.skipped += 1;
                continue;
            }
            if selection.refuse_long_documents && tokens.len() > context {
                return Err(DocumentsError::TooLong {
                    number: index + 1,
                    text: "evaluated",
                    tokens: tokens.len(),
                    context,
                }
                .into());
            }
            let count = tokens.len().div_ceil(context);
            let choice = Choice::Windows { document: index };
            let windows = one_of_each_stratum(count, selection.windows, seed, choice)
                .map(|(i, windows)| {
                    let part = i * tokens.len() / count..(i + 1) * tokens.len() / count;
                    let weight = stands_for * windows;
                    let (given, scored) = tokens[part].split_at(unscored);
                    let target = Target::after_prompt(given, scored);
                    let window = Window::new(target, weight, tokenizer);
                    window.target.check(spec).map_err(in_document)?;
                    Ok(window)
                })
                .collect::<Result<_, EvalError>>()?;
            corpus.documents.push(Document {
                index,
                windows,
                available: count,
            });
        }
        match corpus.documents.is_empty() {
            true => Err(EvalError::NoDocuments {
                skipped: corpus.skipped,
            }),
            false => Ok(corpus),
        }
    }

    /// Encodes the chosen ones of `pairs`, as in serving: special tokens that are written out in them are
    /// recognised. Each has one window, in which its answer is scored after its prompt.
    ///
    /// # Errors
    /// If a setting is out of range, or a pair cannot be encoded, holds the mask token or does not fit the
    /// context.
    pub fn of_pairs(
        pairs: &Pairs,
        tokenizer: &dyn Tokenizer,
        spec: &ModelSpec,
        selection: &Selection,
    ) -> Result<Self, EvalError> {
        let available = pairs.as_slice().len();
        let mut corpus = Self::empty(available, spec, selection)?;
        let context = corpus.context;
        let (seed, choice) = (selection.seed, Choice::Documents);
        for (index, weight) in one_of_each_stratum(available, selection.documents, seed, choice) {
            let pair = pairs.encode(index, tokenizer, spec.mask_token())?;
            let target = Target::after_prompt(&pair.prompt, &pair.answer);
            let length = target.tokens.len();
            if length > context {
                let reason = format!(
                    "prompt and answer are {length} tokens, and the context {context}; shorten them"
                );
                return Err(pairs.refused(index, reason).into());
            }
            let checked = target.check(spec);
            checked.map_err(|error| pairs.refused(index, error.to_string()))?;
            corpus.documents.push(Document {
                index,
                windows: vec![Window::new(target, weight, tokenizer)],
                available: 1,
            });
        }
        Ok(corpus)
    }

    /// Checks a selection of so many documents; none of them is in it yet.
    fn empty(available: usize, spec: &ModelSpec, selection: &Selection) -> Result<Self, EvalError> {
        let limit = super::max_context(spec);
        let context = selection.context.unwrap_or(limit);
        // Equal windows are more than half as long: none has fewer tokens than are unscored and one.
        let least = 2 + spec.logit_shift;
        if !(least..=limit).contains(&context) {
            let whose = match limit == spec.max_canvas {
                true => "the model's context of",
                false => "what is evaluated of a block-causal model,",
            };
            let allowed = format!("{least} to {whose} {limit} tokens");
            return Err(EvalError::setting("context", context, allowed));
        }
        for (field, value) in [
            ("documents", selection.documents),
            ("windows", selection.windows),
        ] {
            if value == 0 {
                return Err(EvalError::setting(field, 0, "at least 1"));
            }
        }
        Ok(Self {
            documents: Vec::new(),
            skipped: 0,
            available,
            context,
        })
    }

    /// Every window with its document's place in [`Corpus::documents`].
    pub fn windows(&self) -> impl Iterator<Item = (usize, &Window)> {
        let documents = self.documents.iter().enumerate();
        documents.flat_map(|(i, document)| document.windows.iter().map(move |window| (i, window)))
    }

    /// Weighted sums of (document's place, weight, numerator, denominator) by document.
    pub(super) fn by_document(
        &self,
        parts: impl IntoIterator<Item = (usize, usize, f64, f64)>,
    ) -> Vec<Sums> {
        let mut sums = vec![Sums::default(); self.documents.len()];
        for (document, weight, numerator, denominator) in parts {
            sums[document].add(weight as f64, numerator, denominator);
        }
        sums
    }
}

impl Window {
    fn new(target: Target, weight: usize, tokenizer: &dyn Tokenizer) -> Self {
        let scored = || target.slots.iter().map(|slot| target.tokens[*slot]);
        let characters = scored().map(|token| tokenizer.characters(token)).sum();
        let bytes = scored().map(|token| tokenizer.bytes(token).len()).sum();
        Self {
            target,
            characters,
            bytes,
            weight,
        }
    }
}
