//! The JSON that goes over the wire, as it is written: nothing here is checked yet beyond its type.

mod answer;
mod chat;
mod completion;
mod diffusion;
mod fim;
mod frame;
mod infill;
mod llama_infill;
mod logprobs;
mod number;
mod object;
mod prompt;
mod response_format;
mod score;
mod tokens;

pub(super) use answer::{Answer, DiffusionReport, Usage};
pub(super) use chat::{
    ASSISTANT, AnswerMessage, ApplyTemplateRequest, CHAT_CHUNK_OBJECT, CHAT_OBJECT, ChatChoice,
    ChatDelta, ChatRequest, Content, MessageFields, RenderedChat,
};
pub(super) use completion::{
    COMPLETION_OBJECT, CompletionChoice, CompletionRequest, StreamOptions,
};
pub(super) use diffusion::DiffusionOptions;
pub(super) use fim::{Delta, FimChoice, FimDelta, FimMessage, FimRequest};
pub(super) use frame::{CanvasFrame, FRAME_OBJECT, GapFrame, SlotFrame, StreamedDiffusion};
pub(super) use infill::{
    Alternative, ChoiceProbability, CommittedSlot, GapAnswer, GapFields, GapLength, GapPosition,
    INFILL_OBJECT, Infill, InfillChoice, InfillRequest, InfillStep, LengthCandidate, Provenance,
    STEP_OBJECT, Segment, SplicedSlot,
};
pub(super) use llama_infill::{
    ExtraInput, GenerationSettings, LlamaChunk, LlamaInfill, LlamaInfillRequest, Timings,
};
pub(super) use logprobs::{
    ChatLogprobs, CompletionLogprobs, TokenLogprob, TokenLogprobs, TopLogprobs,
};
pub(super) use number::{Integer, Real, Whole, as_written};
pub(super) use object::Object;
pub(super) use prompt::{Prompt, PromptItem, Texts};
pub(super) use response_format::ResponseFormat;
pub(super) use score::{
    EstimatorName, SCORE_OBJECT, ScoreAnswer, ScoreReport, ScoreRequest, TextScore,
};
pub(super) use tokens::{
    DetokenizeRequest, Detokenized, Piece, PieceText, TokenList, TokenizeRequest, Tokenized,
};
