//! Errors of the engine.

use crate::canvas::{Blank, TokenId};
use crate::decode::PlanError;
use crate::models::ModelError;

/// Why an engine was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine cannot denoise with such a network.
    #[error("a {family} model of this kind cannot be served yet: {reason}")]
    Unsupported {
        /// The model's family.
        family: &'static str,
        /// What the network needs and the engine does not give.
        reason: &'static str,
    },
    /// The device has no room for the keys and values to be cached.
    #[error(
        "no room for {bytes} bytes of cached keys and values ({reason}): give less --kv-memory"
    )]
    KvMemory {
        /// What was asked for.
        bytes: usize,
        /// What the device said.
        reason: String,
    },
    /// The keys and values cannot be made, though the device has room for them.
    #[error("cannot make the cached keys and values: {0}")]
    KvPool(ModelError),
    /// The device has no room for a denoise step of a small canvas.
    #[error(
        "no memory is left for a denoise step beside the model and its cached keys and values: give less --kv-memory, or a \
         --dtype that takes less"
    )]
    StepMemory,
    /// A denoise step of a small canvas failed.
    #[error("the device cannot denoise with this model: {0}")]
    WarmUp(GenerationError),
    /// The system gives no thread.
    #[error(transparent)]
    Thread(#[from] std::io::Error),
}

/// Why a canvas was not queued.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// Too many requests wait already.
    #[error("too many requests are waiting; try again later")]
    QueueFull,
    /// The canvas is longer than the model's context.
    #[error(
        "the canvas has {length} slots, prompt and gaps together and the last block whole where the \
         model knows whole blocks only; the limit is {limit}, that of the model or, if it is less, of the rows of a step"
    )]
    CanvasTooLong {
        /// Slots of the canvas.
        length: usize,
        /// The model's limit, or that of a step's rows if it is less.
        limit: usize,
    },
    /// The canvas with the negative prompt in the place of the prompt is longer than the model's context.
    #[error(
        "with negative_prompt in the place of the prompt the canvas has {length} slots; the limit is {limit}"
    )]
    NegativePromptTooLong {
        /// Slots of that canvas.
        length: usize,
        /// The model's limit, or that of a step's rows if it is less.
        limit: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The canvas was laid out for another model.
    #[error("the canvas's gaps begin as {given}, the model's as {model}")]
    Blank {
        /// The canvas's.
        given: Blank,
        /// The model's.
        model: Blank,
    },
    /// A gap with text after it, for a model that would not see that text.
    #[error(
        "gap {gap} has text after it, which a {family} model does not see beyond the gap's block: its \
         attention is block-causal; ask for left_context to fill gaps by what precedes them alone"
    )]
    CannotSeeAhead {
        /// Index of the gap, from 0.
        gap: usize,
        /// The model's family.
        family: &'static str,
    },
    /// A gap with text or another gap after it, for a model that only goes on from a text.
    #[error(
        "gap {gap} is not the end of the canvas, and a {family} model only goes on from a text: its encoder reads what \
         comes before a block, and the block is denoised as a whole; allowed: one gap with nothing after it"
    )]
    OnlyGoesOn {
        /// Index of the gap, from 0.
        gap: usize,
        /// The model's family.
        family: &'static str,
    },
    /// A gap that ends within a block, for a model that denoises whole blocks after an encoder.
    #[error(
        "the canvas has {slots} slots from its gap on, and a {family} model denoises whole blocks of {block_length}; \
         allowed: a multiple of {block_length}, to which scratch slots fill it up"
    )]
    PartialBlock {
        /// Slots from the start of the gap to the end of the canvas, scratch slots included.
        slots: usize,
        /// Slots of a block.
        block_length: usize,
        /// The model's family.
        family: &'static str,
    },
    /// There is no memory for what the encoder has to leave.
    #[error(
        "the keys and values that the encoder leaves of this canvas take {needed} slots, and there is memory for \
         {limit}: allowed: a shorter canvas, or a server with more --kv-memory"
    )]
    CannotEncode {
        /// Slots of the key/value pool that the request needs.
        needed: usize,
        /// All slots of the pool.
        limit: usize,
    },
    /// A constraint on the gaps of a model that has no masked slots.
    #[error(
        "this {family} model was trained on the uniform process, in which every slot changes at every step, so \
         that gaps cannot be held to a constraint; allowed: none"
    )]
    CannotConstrain {
        /// The model's family.
        family: &'static str,
    },
    /// The plan's cache needs more memory than there is.
    #[error(
        "caching the keys and values of this canvas takes {needed} slots, and there is memory for \
         {limit}: allowed: a shorter canvas, the cache policy `none`, or a server with more --kv-memory"
    )]
    CacheTooLarge {
        /// Slots of the key/value pool that the request needs.
        needed: usize,
        /// All slots of the pool.
        limit: usize,
    },
    /// The plan cannot be followed on this canvas.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The worker is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why a generation ended early.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerationError {
    /// The denoise step failed: the model, the device or the sampler said why.
    #[error("the denoise step failed: {0}")]
    Step(String),
    /// The device had no memory for the step.
    #[error(
        "the device has no memory left for this request; try again later, or with a shorter canvas"
    )]
    OutOfMemory,
    /// The engine stopped before the generation was finished.
    #[error("the engine stopped before the generation was finished")]
    Stopped,
}
