//! Text: tokenizer, texts with gaps, detokenisation.

mod error;
pub mod gaps;
mod tokenizer;

pub use error::TextError;
pub use tokenizer::{ByteTokenizer, HfTokenizer, Tokenizer};
