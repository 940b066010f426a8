//! Model families.

pub mod llada;
