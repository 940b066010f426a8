//! Text: documents of files, tokenizer, texts with gaps, detokenisation.

pub mod documents;
mod error;
pub mod gaps;
mod layout;
mod tokenizer;

pub use error::TextError;
pub use layout::{GapText, Layout, Reading};
pub use tokenizer::{ByteTokenizer, HfTokenizer, Tokenizer};
