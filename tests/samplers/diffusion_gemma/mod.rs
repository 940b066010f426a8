//! DiffusionGemma's sampler: its steps and whole runs as they were recorded, the engine that follows it, and its plans.

mod engine;
mod plans;
mod recorded;

use candle_core::{DType, Device, Tensor};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Candidate, DecodePlan, Decoder, preset};
use unmask::engine::Engine;
use unmask::models::{AttentionPattern, Denoiser, KvPool, RaggedBatch, Segment};
use unmask::sampling::{Basis, RowParams, RowSample, reduce};

const NAME: &str = "diffusion_gemma";

fn plan() -> DecodePlan {
    preset::by_name("diffusion-gemma").unwrap().plan().clone()
}

fn goes_on(engine: &Engine, prompt: &[TokenId], slots: usize, plan: &DecodePlan) -> Canvas {
    let builder = Canvas::builder(engine.blank()).fixed(prompt).gap(slots);
    engine.spec().with_scratch(plan, builder.build().unwrap())
}

/// The samples of `logits` `[rows, vocab]` by the plan's basis, for slots from `first` on.
fn samples(logits: &Tensor, plan: &DecodePlan, decoder: &Decoder, first: usize) -> Vec<RowSample> {
    let params = |row| RowParams {
        temperature: decoder.temperature(),
        basis: Basis::Sampling,
        seed: plan.sampling.seed,
        step: decoder.steps(),
        slot: first + row,
        ..RowParams::default()
    };
    let params: Vec<RowParams> = (0..logits.dim(0).unwrap()).map(params).collect();
    let samples = reduce(logits, None, &params).unwrap();
    samples.into_iter().map(Result::unwrap).collect()
}

fn candidate(slot: usize, sample: &RowSample) -> Candidate {
    Candidate {
        slot,
        token: sample.token,
        probability: sample.probability,
        most_probable: sample.most_probable,
        best: sample.best,
        second: sample.second,
        entropy: sample.entropy,
        uniform: sample.uniform,
        unmasking: None,
    }
}

/// A text that the network goes on from, outside of any engine: its first token is at position `first`.
struct Text<'a> {
    model: &'a dyn Denoiser,
    pool: KvPool,
    first: usize,
    encoded: usize,
}

impl<'a> Text<'a> {
    fn new(model: &'a dyn Denoiser, first: usize) -> Self {
        Self {
            model,
            pool: KvPool::new(model.spec(), 64, DType::F32, &Device::Cpu).unwrap(),
            first,
            encoded: first,
        }
    }

    fn context(&self) -> Vec<u32> {
        (self.first as u32..self.encoded as u32).collect()
    }

    fn push(&self, tokens: &[TokenId], segment: Segment) -> Tensor {
        let positions: Vec<u32> = (self.encoded..self.encoded + tokens.len())
            .map(|position| position as u32)
            .collect();
        let segment = Segment {
            context: self.context(),
            store: match segment.encodes {
                true => positions.clone(),
                false => Vec::new(),
            },
            ..segment
        };
        let mut batch = RaggedBatch::new();
        batch.push_segment(tokens, &positions, segment);
        self.model.hidden(&batch, Some(&self.pool)).unwrap()
    }

    fn encode(&mut self, tokens: &[TokenId]) {
        let pattern = AttentionPattern::EncodedBlocks { block_length: 8 };
        let segment = Segment {
            allowed: pattern.allowed_among(0..tokens.len(), tokens.len()),
            encodes: true,
            ..Segment::default()
        };
        self.push(tokens, segment);
        self.encoded += tokens.len();
    }

    /// Logits `[block, vocab]` of a block.
    fn logits(&self, block: &[TokenId], signal: Option<Tensor>) -> Tensor {
        let segment = Segment {
            self_conditioning: signal,
            ..Segment::default()
        };
        self.model.head(&self.push(block, segment)).unwrap()
    }
}
