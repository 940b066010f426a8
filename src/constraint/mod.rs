//! What a gap may be filled with: a regular language over the bytes of its tokens.
//!
//! Slots of a gap are filled in any order, several a step, so that it is not enough to follow a parser from
//! left to right: at every step the gap must remain completable. A [`ByteDfa`] is the language, of a regular
//! expression, a grammar or a JSON Schema; a [`TokenDfa`] is the same over the tokens of a [`Vocabulary`]; and a
//! [`CanvasConstraint`] keeps for each slot the states that can be reached from the left and those from which
//! the end can be reached on the right, and so knows the tokens that may be committed to it.

mod byte_dfa;
mod canvas;
mod error;
mod gap;
mod grammar;
mod json;
mod nfa;
mod schema;
mod state_sets;
mod subsets;
mod token_dfa;
mod vocabulary;

pub use byte_dfa::ByteDfa;
pub use canvas::{CanvasConstraint, GapConstraint};
pub use error::ConstraintError;
pub use grammar::{NESTED_STATES, NESTING};
pub use json::{ANY_DEPTH, OBJECT_DEPTH};
pub use schema::RECURSION;
pub use state_sets::STEP_WORK;
pub use token_dfa::TokenDfa;
pub use vocabulary::Vocabulary;
