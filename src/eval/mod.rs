//! Evaluation: how well a model predicts given texts, and how fast it may fill them.
//!
//! | module | what it measures |
//! |---|---|
//! | [`likelihood`] | the NELBO of a token sequence, by Monte Carlo; optionally after a prompt |
//! | [`bound`] | the same over a [`Corpus`]: perplexity, bits a character, bits a byte |
//! | [`infill`] | accuracy at masked spans against the mask rate |
//! | [`speed`] | accuracy against tokens a forward, with the threshold sampler |
//!
//! [`Report`] puts them together, [`plot`] draws it. Every random draw is keyed by a seed, so that an
//! evaluation can be repeated.

mod batches;
pub mod bound;
mod corpus;
mod decoding;
mod error;
pub mod infill;
pub mod likelihood;
mod measure;
mod noised;
pub mod plot;
mod report;
mod sample;
mod scorer;
mod spans;
pub mod speed;
mod supported;
mod table;
mod target;
mod words;

pub use corpus::{Corpus, Document, Selection, Window};
pub use error::EvalError;
pub use measure::Measure;
pub use report::{
    DataForm, DataReport, ESTIMATED, InfillReport, LeftOut, Report, RunReport, SpeedReport,
};
pub use supported::{
    check, depends_on_level, max_context, reason_against_guidance, reason_against_spans,
};
pub use target::Target;
