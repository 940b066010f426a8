//! The data of a run: texts read and encoded, and the batches made from them.

use tokenizers::Tokenizer;

use super::batch::{Batch, Windows};
use super::beginnings::beginnings;
use super::config::{Objective, TimeSampling, TrainConfig, WindowStart};
use super::draws::{Purpose, Stream, independent_times, stratified_times};
use super::error::TrainError;
use super::pairs;
use super::source::Source;
use super::tokenizer::{self, SpecialTokens};
use crate::diffusion::{Process, Schedule};
use crate::models::ForwardProcess;
use crate::text::documents::{DocumentsError, read_documents};
use crate::text::pairs::Pairs;
use crate::text::{HfTokenizer, Tokenizer as _};

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
    /// The process that noises, over the whole vocabulary.
    pub process: Process,
    /// The training text.
    pub train: Source,
    /// The fixed validation batches.
    pub valid: Vec<Batch>,
    /// Unicode characters that a validation token with a loss stands for, on average. The end token counts
    /// as none.
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
        let texts = match &config.pairs {
            Some(path) => Texts::Pairs(Pairs::read(path)?, Pairs::read(&config.valid)?),
            None => {
                let mut documents = Vec::new();
                for path in &config.data {
                    documents.extend(read_documents(path)?);
                }
                Texts::Documents(documents, read_documents(&config.valid)?)
            }
        };
        let tokenizer = match (given, &texts) {
            (Some(tokenizer), _) => tokenizer,
            (None, Texts::Documents(documents, _)) => {
                tokenizer::train(documents, config.vocab_size_or_default())?
            }
            (None, Texts::Pairs(pairs, _)) => {
                tokenizer::train(&pairs::texts(pairs), config.vocab_size_or_default())?
            }
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
        let of_documents = |which, documents: &[String], start| {
            let tokens = tokenizer::encode(&tokenizer, documents)?;
            if config.refuse_long_documents {
                check_lengths(&tokens, specials.end, config.context, which)?;
            }
            if tokens.len() < config.context {
                return Err(TrainError::CorpusTooShort {
                    which,
                    tokens: tokens.len(),
                    context: config.context,
                });
            }
            let beginnings = match start {
                WindowStart::Anywhere => None,
                start => {
                    let tokenizer = texts_of(&tokenizer)?;
                    let mut places = beginnings(&tokens, specials.end, &tokenizer, start);
                    let last = tokens.len() - config.context;
                    places.retain(|place| *place as usize <= last);
                    if places.is_empty() {
                        // The beginning of the text is one.
                        places.push(0);
                    }
                    Some(places)
                }
            };
            Ok(Source::Documents {
                tokens,
                beginnings,
                end: specials.end,
                packing: config.packing,
            })
        };
        let of_pairs = |pairs: &Pairs| {
            let (context, truncate) = (config.context, config.truncate_pairs);
            let served = texts_of(&tokenizer)?;
            let windows = pairs::windows(pairs, &served, specials, context, truncate)?;
            Ok::<_, TrainError>(Source::Pairs(windows))
        };
        let (train, valid) = match &texts {
            Texts::Documents(train, valid) => (
                of_documents("training", train, config.window_start)?,
                of_documents("validation", valid, WindowStart::Anywhere)?,
            ),
            Texts::Pairs(train, valid) => (of_pairs(train)?, of_pairs(valid)?),
        };
        let process = match config.process {
            ForwardProcess::Absorbing => Process::absorbing(vocab, specials.mask as usize)?,
            ForwardProcess::Uniform => Process::uniform(vocab)?,
        };
        let windows = valid.spread(config.valid_windows, config.context);
        let characters = characters(&windows, &tokenizer)?;
        Ok(Self {
            fingerprint: fingerprint(&train, &valid),
            valid_characters_per_token: characters as f64 / windows.noised() as f64,
            valid: validation_batches(windows, &process)?,
            tokenizer,
            specials,
            vocab,
            process,
            train,
        })
    }

    /// The batch of a step: windows at random places, times drawn and weights set over the whole batch.
    ///
    /// # Errors
    /// If a token of the text is no state of the process, which encoded text cannot hold.
    pub fn batch(&self, config: &TrainConfig, step: u64) -> Result<Batch, TrainError> {
        let mut stream = Stream::new(config.seed, Purpose::Step, step);
        let count = config.batch * config.grad_accumulation;
        let windows = self.train.draw(count, config.context, &mut stream);
        let prompts = windows.prompts.clone();
        let times = match config.time_sampling {
            TimeSampling::LowDiscrepancy => stratified_times(count, &mut stream),
            TimeSampling::Uniform => independent_times(count, &mut stream),
        };
        let batch = Batch::noise(
            windows,
            &times,
            &self.process,
            &config.schedule,
            config.span_share,
            &mut stream,
        )?;
        Ok(match config.objective {
            // Each window weighs the same, whatever share of it is noised: for pairs LLaDA's loss, the
            // mean over pairs of an answer's mean over its tokens.
            Objective::Nelbo => batch.with_factors(prompts.into_iter().map(|prompt| {
                let context = config.context;
                context as f64 / (context - prompt) as f64
            })),
            Objective::CrossEntropy => batch.with_equal_weights(),
        })
    }
}

/// The texts of training and of validation.
enum Texts {
    Documents(Vec<String>, Vec<String>),
    Pairs(Pairs, Pairs),
}

/// Checks that each document fits a window; `text` is "training" or "validation".
fn check_lengths(
    tokens: &[u32],
    end: u32,
    context: usize,
    text: &'static str,
) -> Result<(), DocumentsError> {
    let mut documents = tokens
        .split(|token| *token == end)
        .map(<[u32]>::len)
        .zip(1..);
    match documents.find(|(length, _)| *length > context) {
        None => Ok(()),
        Some((tokens, number)) => Err(DocumentsError::TooLong {
            number,
            text,
            tokens,
            context,
        }),
    }
}

/// The tokenizer as it is served.
fn texts_of(tokenizer: &Tokenizer) -> Result<HfTokenizer, TrainError> {
    let json = tokenizer.to_string(false);
    let json = json.map_err(|error| TrainError::Tokenizer(error.to_string()))?;
    HfTokenizer::from_bytes(json.as_bytes())
        .map_err(|error| TrainError::Tokenizer(error.to_string()))
}

/// Unicode characters that the slots with a loss stand for.
fn characters(windows: &Windows, tokenizer: &Tokenizer) -> Result<usize, TrainError> {
    let tokenizer = texts_of(tokenizer)?;
    let parts = windows.tokens.chunks(windows.context).zip(&windows.prompts);
    let tokens = parts.flat_map(|(window, &prompt)| &window[prompt..]);
    Ok(tokens.map(|token| tokenizer.characters(*token)).sum())
}

/// The windows noised at times and with draws that are the same for every run, so that runs compare.
fn validation_batches(windows: Windows, process: &Process) -> Result<Vec<Batch>, TrainError> {
    let mut stream = Stream::new(0, Purpose::Validation, 0);
    let times = stratified_times(windows.len(), &mut stream);
    // Each token with a loss weighs the same.
    let factor = windows.tokens.len() as f64 / windows.noised() as f64;
    let schedule = Schedule::LogLinear;
    let batch = Batch::noise(windows, &times, process, &schedule, 0.0, &mut stream)?;
    let count = batch.windows();
    let batch = batch.with_factors(std::iter::repeat_n(factor, count));
    Ok((0..count)
        .step_by(VALIDATION_BATCH)
        .map(|first| batch.slice(first..(first + VALIDATION_BATCH).min(count)))
        .collect())
}

/// FNV-1a, 64 bits, over the number of training tokens, which tells where the validation text begins,
/// and the tokens of both texts.
fn fingerprint(train: &Source, valid: &Source) -> u64 {
    let (train, valid) = (train.tokens(), valid.tokens());
    let tokens = train.iter().chain(valid).map(|&token| u64::from(token));
    let words = std::iter::once(train.len() as u64).chain(tokens);
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
