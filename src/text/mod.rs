//! Text: documents and pairs of files, tokenizer, chat templates, texts with gaps, detokenisation.

mod chat_template;
pub mod documents;
mod error;
pub mod gaps;
mod layout;
pub mod pairs;
mod pieces;
mod tokenizer;

pub use chat_template::{ChatEnding, ChatFiles, ChatMessage, ChatTemplate, ChatTemplateError};
pub use error::TextError;
pub use layout::{GapText, Layout, Reading};
pub use tokenizer::{ByteTokenizer, HfTokenizer, Tokenizer};
