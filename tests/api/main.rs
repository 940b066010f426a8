//! The HTTP API, against a real listening server.

mod blocks;
mod chat;
mod cli;
mod completions;
mod errors;
mod infill;
mod lifecycle;
mod mock;
mod models;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
