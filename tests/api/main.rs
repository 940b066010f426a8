//! The HTTP API, against a real listening server.

mod access;
mod bench;
mod blocks;
mod chat;
mod cli;
#[cfg(feature = "otel")]
mod collector;
mod completions;
mod conformance;
mod connections;
mod constraints;
mod encoded;
mod errors;
mod fim;
mod frames;
mod fuzz;
#[path = "../support/fuzz.rs"]
mod fuzzed;
mod gaps;
mod infill;
mod lifecycle;
mod log;
mod logprobs;
mod metrics;
mod mock;
mod models;
mod openapi;
#[cfg(feature = "otel")]
mod otel;
mod playground;
mod refusals;
mod resizing;
mod score;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
mod uniform;
