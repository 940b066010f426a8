//! Errors of text handling.

use crate::canvas::CanvasError;

/// Why a text could not be handled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer file cannot be used.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// A file that stands for a tokenizer.json cannot be used.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: &'static str,
        /// What is wrong, and what can be done.
        reason: String,
    },
    /// A text cannot be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// Tokens cannot be decoded.
    #[error("the tokens cannot be decoded: {0}")]
    Decode(String),
    /// The text cannot be laid out on a canvas.
    #[error(transparent)]
    Canvas(#[from] CanvasError),
    /// A gap of more slots than can be counted.
    #[error("at byte {at}: a gap of more tokens than any canvas has slots")]
    GapTooLong {
        /// Byte offset of the braces in the text.
        at: usize,
    },
    /// A gap mark that is none.
    #[error(
        "at byte {at}: {{{{ must be followed by a number of tokens, at least 1, and }}}}, such as {{{{8}}}}; write \\{{{{ for literal braces"
    )]
    GapSyntax {
        /// Byte offset of the braces in the text.
        at: usize,
    },
}
