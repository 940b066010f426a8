//! Why there is no constraint.

/// Why a language cannot constrain a gap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// What was written is not a regular expression that can be followed.
    #[error("it is not a regular expression that can be followed: {0}")]
    Regex(String),
    /// A JSON Schema, or a part of one, that cannot be reduced to a regular language.
    #[error("{reason}")]
    Schema {
        /// Where in the schema, as `.properties.name.type`; empty for the schema itself.
        path: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// A grammar, or a part of one, that cannot be followed.
    #[error("{reason} (line {line}, column {column})")]
    Grammar {
        /// Line of the grammar, from 1.
        line: usize,
        /// Character of the line, from 1.
        column: usize,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// There is no text at all that it allows.
    #[error("no text matches it")]
    Empty,
    /// The automaton, or what it is over the vocabulary, is beyond the limits.
    #[error("it is too large: {0}")]
    TooLarge(String),
}
