//! The JSON that goes over the wire, as it is written: nothing here is checked yet beyond its type.

mod answer;
mod chat;
mod completion;
mod diffusion;
mod infill;
mod number;
mod object;
mod prompt;
mod tokens;

pub(super) use answer::{DiffusionReport, Usage};
pub(super) use chat::{
    AnswerMessage, ApplyTemplateRequest, CHAT_CHUNK_OBJECT, CHAT_OBJECT, Chat, ChatChoice,
    ChatRequest, Content, Delta, MessageFields,
};
pub(super) use completion::{
    COMPLETION_OBJECT, Completion, CompletionChoice, CompletionRequest, StreamOptions,
};
pub(super) use diffusion::DiffusionOptions;
pub(super) use infill::{
    CommittedSlot, GapAnswer, GapFields, GapPosition, INFILL_OBJECT, Infill, InfillChoice,
    InfillRequest, InfillStep, Provenance, STEP_OBJECT, Segment,
};
pub(super) use number::{Integer, Real, Whole};
pub(super) use object::Object;
pub(super) use prompt::{Prompt, PromptItem, Stop};
pub(super) use tokens::{
    DetokenizeRequest, Detokenized, Piece, PieceText, TokenList, TokenizeRequest, Tokenized,
};
