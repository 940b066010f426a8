//! `unmask` serves, trains and evaluates masked (absorbing-state) text diffusion language models.
//!
//! Everything is a [`canvas`]: a sequence of token slots, some fixed, the others masked and part of a
//! gap. A completion is a canvas with one gap at its end; infilling is a canvas with gaps anywhere.
//! One [`engine`] denoises canvases; every endpoint lays one out and reads it back.
//!
//! | module | what it is for |
//! |---|---|
//! | [`canvas`] | slots, gaps, provenance; a fixed slot cannot be written |
//! | [`diffusion`] | the mathematics: schedules, forward processes, posterior, ELBO; no tensors |
//! | [`decode`] | which slots to commit at a step: score, budget, blocks; pure policy |
//! | [`constraint`] | what a gap may be filled with: regular languages over the bytes of tokens |
//! | [`sampling`] | the reduction over the vocabulary and its counter-based random numbers |
//! | [`models`] | the [`Denoiser`](models::Denoiser) trait, checkpoint loading, one file a family |
//! | [`text`] | tokenizer, text templates with gaps, incremental detokenisation |
//! | [`engine`] | queue, worker thread, ragged denoise steps, events |
//! | [`kernels`] | launches of the CUDA kernels, on a device or on the host's shim |
//! | [`selftest`] | every kernel against its CPU twin |
//! | [`server`] | the HTTP API |
//! | [`train`] | tokenizer training, data, objective, optimiser loop, checkpoints |
//! | [`eval`] | likelihood, infill accuracy, tokens a forward against accuracy, plots |
//!
//! Dependencies point one way: server → eval, engine → models → decode → constraint → sampling → canvas,
//! diffusion;
//! [`text`] stands beside the engine, which knows token ids only. [`train`] writes what [`models`] reads.
#![deny(missing_docs)]

pub mod canvas;
pub mod constraint;
pub mod decode;
pub mod diffusion;
pub mod engine;
pub mod eval;
mod floats;
pub mod kernels;
pub mod models;
pub mod sampling;
pub mod selftest;
pub mod server;
mod simd;
pub mod text;
pub mod train;
