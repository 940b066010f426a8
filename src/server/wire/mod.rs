//! The JSON that goes over the wire, as it is written: nothing here is checked yet beyond its type.

mod answer;
mod completion;
mod diffusion;
mod infill;
mod logprobs;
mod number;
mod object;
mod prompt;

pub(super) use answer::{DiffusionReport, Usage};
pub(super) use completion::{COMPLETION_OBJECT, Completion, CompletionChoice, CompletionRequest};
pub(super) use diffusion::DiffusionOptions;
pub(super) use infill::{
    Alternative, CommittedSlot, GapAnswer, GapFields, GapPosition, INFILL_OBJECT, Infill,
    InfillChoice, InfillRequest, InfillStep, Provenance, STEP_OBJECT, Segment,
};
pub(super) use logprobs::{
    ChatLogprobs, CompletionLogprobs, TokenLogprob, TokenLogprobs, TopLogprobs,
};
pub(super) use number::{Integer, Real, Whole};
pub(super) use object::Object;
pub(super) use prompt::{Prompt, PromptItem, Stop};
