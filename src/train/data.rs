//! Documents into one stream of tokens, and windows of it.

use tokenizers::Tokenizer;

use super::config::{Objective, TimeSampling, TrainConfig};
use super::draws::{Batch, Purpose, Stream, independent_times, stratified_times};
use super::error::TrainError;
use super::tokenizer::{self, SpecialTokens};
use crate::diffusion::Schedule;
use crate::text::documents::read_documents;

/// Windows of a validation batch.
const VALIDATION_BATCH: usize = 32;

/// The data of a run.
pub struct Data {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Its special tokens.
    pub specials: SpecialTokens,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// The training text, documents end to end, each followed by the end token.
    pub train: Vec<u32>,
    /// The fixed validation batches.
    pub valid: Vec<Batch>,
    /// Unicode characters a validation token stands for, on average. The end token counts as none.
    pub valid_characters_per_token: f64,
    /// A hash of the tokens of both texts and of where one ends and the other begins.
    pub fingerprint: u64,
}

impl Data {
    /// Reads the files, trains the tokenizer unless one is given, encodes.
    ///
    /// # Errors
    /// See [`TrainError`].
    pub fn prepare(config: &TrainConfig, given: Option<Tokenizer>) -> Result<Self, TrainError> {
        let mut documents = Vec::new();
        for path in &config.data {
            documents.extend(read_documents(path)?);
        }
        let valid_documents = read_documents(&config.valid)?;
        let tokenizer = match given {
            Some(tokenizer) => tokenizer,
            None => tokenizer::train(&documents, config.vocab_size_or_default())?,
        };
        let vocab = tokenizer.get_vocab_size(true);
        if let Some(given) = config.vocab_size.filter(|&given| given != vocab) {
            return Err(TrainError::Setting {
                field: "vocab-size",
                given: given.to_string(),
                allowed: format!("{vocab}, the size of the tokenizer in use"),
            });
        }
        let specials = tokenizer::special_tokens(&tokenizer)?;
        let train = tokenizer::encode(&tokenizer, &documents)?;
        let valid = tokenizer::encode(&tokenizer, &valid_documents)?;
        let context = config.context;
        for (which, tokens) in [("training", train.len()), ("validation", valid.len())] {
            if tokens < context {
                return Err(TrainError::CorpusTooShort {
                    which,
                    tokens,
                    context,
                });
            }
        }
        let fingerprint = fingerprint(&train, &valid);
        let windows = validation_windows(&valid, context, config.valid_windows);
        let characters: usize = windows
            .chunks(context)
            .map(|window| {
                let text = tokenizer.decode(window, true);
                text.map(|text| text.chars().count())
                    .map_err(|error| TrainError::Tokenizer(error.to_string()))
            })
            .sum::<Result<_, _>>()?;
        let valid_characters_per_token = characters as f64 / windows.len() as f64;
        // The same for every run, so that runs compare.
        let mut stream = Stream::new(0, Purpose::Validation, 0);
        let times = stratified_times(windows.len() / context, &mut stream);
        let valid = windows
            .chunks(VALIDATION_BATCH * context)
            .zip(times.chunks(VALIDATION_BATCH))
            .map(|(clean, times)| {
                Batch::noise(
                    context,
                    clean.to_vec(),
                    times,
                    specials.mask,
                    Schedule::LogLinear,
                    &mut stream,
                )
            })
            .collect();
        Ok(Self {
            tokenizer,
            specials,
            vocab,
            train,
            valid,
            valid_characters_per_token,
            fingerprint,
        })
    }

    /// The batch of a step: windows at random places, times drawn and weights set over the whole batch.
    pub fn batch(&self, config: &TrainConfig, step: u64) -> Batch {
        let mut stream = Stream::new(config.seed, Purpose::Step, step);
        let windows = config.batch * config.grad_accumulation;
        let context = config.context;
        let mut clean = Vec::with_capacity(windows * context);
        for _ in 0..windows {
            let start = stream.below(self.train.len() - context + 1);
            clean.extend_from_slice(&self.train[start..start + context]);
        }
        let times = match config.time_sampling {
            TimeSampling::LowDiscrepancy => stratified_times(windows, &mut stream),
            TimeSampling::Uniform => independent_times(windows, &mut stream),
        };
        let batch = Batch::noise(
            context,
            clean,
            &times,
            self.specials.mask,
            config.schedule.clone(),
            &mut stream,
        );
        match config.objective {
            Objective::Nelbo => batch,
            Objective::CrossEntropy => batch.with_equal_weights(),
        }
    }
}

/// Up to `count` windows, spread evenly over the text and without overlap.
fn validation_windows(tokens: &[u32], context: usize, count: usize) -> Vec<u32> {
    let fitting = tokens.len() / context;
    let count = count.min(fitting);
    (0..count)
        .flat_map(|i| {
            let start = i * fitting / count * context;
            tokens[start..start + context].iter().copied()
        })
        .collect()
}

/// FNV-1a, 64 bits, over the number of training tokens, which tells where the validation text begins,
/// and the tokens of both texts.
fn fingerprint(train: &[u32], valid: &[u32]) -> u64 {
    let tokens = train.iter().chain(valid).map(|&token| u64::from(token));
    let words = std::iter::once(train.len() as u64).chain(tokens);
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
