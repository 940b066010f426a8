//! Constrained denoising: what a gap may be filled with, at every step and in the end.

#[path = "../support/mod.rs"]
mod support;

mod allowed;
mod babbler;
mod earley;

mod engine;
mod grammars;
mod random;
mod schemas;
mod validator;
