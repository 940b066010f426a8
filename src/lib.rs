//! `unmask` serves, trains and evaluates discrete text diffusion language models: masked (absorbing-state) ones,
//! and those of the uniform process.
//!
//! Everything is a [`canvas`]: a sequence of token slots, some fixed, the others masked and part of a
//! gap. A completion is a canvas with one gap at its end; infilling is a canvas with gaps anywhere.
//! One [`engine`] denoises canvases; every endpoint lays one out and reads it back.
//!
//! ```
//! use candle_core::{DType, Device};
//! use unmask::canvas::Canvas;
//! use unmask::engine::{Engine, EngineConfig, Event};
//! use unmask::models::embedded;
//! use unmask::text::{HfTokenizer, Tokenizer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = embedded::checkpoint()?;
//! let tokenizer = HfTokenizer::from_bytes(&checkpoint.tokenizer_json()?)?;
//! let engine = Engine::start(checkpoint.load(DType::F32, &Device::Cpu)?, EngineConfig::default())?;
//! let canvas = Canvas::builder(engine.blank())
//!     .fixed(&tokenizer.encode("The old man sat by the")?)
//!     .gap(3)
//!     .fixed(&tokenizer.encode_continuation(" and smiled.")?)
//!     .build()?;
//! let mut generation = engine.submit(canvas, &engine.spec().default_plan)?;
//! while let Some(event) = generation.next_blocking() {
//!     if let Event::Finished(canvas, statistics) = event {
//!         let tokens: Vec<u32> = canvas.tokens().collect();
//!         let text = tokenizer.decode(&tokens);
//!         assert!(text.starts_with("The old man sat by the") && text.ends_with(" and smiled."));
//!         assert!(canvas.gaps().len() == 1 && statistics.nfe <= 3);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it is for |
//! |---|---|
//! | [`canvas`] | slots, gaps, provenance; a fixed slot cannot be written |
//! | [`diffusion`] | the mathematics: schedules, forward processes, posterior, ELBO; no tensors |
//! | [`decode`] | which slots to commit at a step: score, budget, blocks, revision; pure policy |
//! | [`constraint`] | what a gap may be filled with: regular languages and grammars over the bytes of tokens |
//! | [`sampling`] | the reduction over the vocabulary and its counter-based random numbers |
//! | [`models`] | the [`Denoiser`](models::Denoiser) trait, checkpoint loading, one file a family |
//! | [`hub`] | a checkpoint's directory by the name of a model: the Hugging Face hub and its cache |
//! | [`text`] | tokenizer, text templates with gaps, incremental detokenisation |
//! | [`engine`] | queue, worker thread, ragged denoise steps, events |
//! | [`kernels`] | launches of the CUDA kernels, on a device or on the host's shim; lists to a device and back |
//! | [`selftest`] | whether a device computes what it should |
//! | [`server`] | the HTTP API |
//! | [`train`] | tokenizer training, data, objective, optimiser loop, checkpoints |
//! | [`eval`] | likelihood, infill accuracy, tokens a forward against accuracy, plots |
//!
//! Dependencies point one way: server → eval, engine → models → decode → constraint → sampling → canvas,
//! diffusion. [`text`] stands beside the engine, which knows token ids only; [`models`] names its files and
//! errors. [`train`] writes what [`models`] reads, [`hub`] fetches it.
#![deny(missing_docs)]

pub mod canvas;
pub mod constraint;
pub mod decode;
pub mod diffusion;
pub mod engine;
pub mod eval;
mod floats;
pub mod hub;
pub mod kernels;
pub mod models;
pub mod sampling;
pub mod selftest;
pub mod server;
mod simd;
pub mod text;
pub mod train;
