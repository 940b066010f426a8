//! Text: documents and pairs of files, tokenizer and its files, chat templates, texts with gaps, detokenisation.

mod chat_template;
pub mod documents;
mod error;
pub mod gaps;
mod layout;
pub mod pairs;
mod pieces;
pub mod special_tokens;
mod tokenizer;
pub mod vocabulary;

pub use chat_template::{ChatEnding, ChatFiles, ChatMessage, ChatTemplate, ChatTemplateError};
pub use error::TextError;
pub use layout::{GapText, Layout, Reading};
pub use tokenizer::{ByteTokenizer, HfTokenizer, Tokenizer};
pub use vocabulary::VocabularyFiles;
