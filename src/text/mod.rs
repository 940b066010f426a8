//! Text: tokenizer, texts with gaps, detokenisation.

mod error;
pub mod gaps;
mod layout;
mod tokenizer;

pub use error::TextError;
pub use layout::{GapText, Layout, Reading};
pub use tokenizer::{ByteTokenizer, HfTokenizer, Tokenizer};
