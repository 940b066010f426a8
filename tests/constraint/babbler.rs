//! A model that says anything, over a vocabulary of bytes and of pieces of JSON.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use unmask::canvas::{Canvas, TokenId};
use unmask::constraint::{CanvasConstraint, GapConstraint, TokenDfa, Vocabulary};
use unmask::decode::DecodePlan;
use unmask::engine::{Engine, EngineConfig, Event, StepReport, Submission};
use unmask::models::{
    AttentionPattern, Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation,
    RaggedBatch,
};

use crate::random::mix;

/// Tokens of more than a byte, with a part of a character and two of one spelling among them.
const PIECES: &[&[u8]] = &[
    b"{\"",
    b"\":",
    b"\": ",
    b"\",\"",
    b"\", \"",
    b"\"}",
    b"]}",
    b"},{",
    b"true",
    b"false",
    b"null",
    b"name",
    b"age",
    b"items",
    b"kind",
    b"[]",
    b"{}",
    b"[{",
    b"10",
    b"2024",
    b"ab",
    b"abc",
    b"ab",
    b" the",
    "é".as_bytes(),
    "😀".as_bytes(),
    b"\xf0\x9f",
    b"\\n",
    b"\\u00",
    b"-1",
    b"0.",
    b"e+",
    b"\"a\"",
    b",\"b\":",
];
/// Ends a text.
pub const STOP: TokenId = 256 + PIECES.len() as TokenId;
/// The mask token.
pub const MASK: TokenId = STOP + 1;
/// A special token.
const SPECIAL: TokenId = STOP + 2;
const VOCABULARY: usize = SPECIAL as usize + 1;

/// The bytes of a token.
pub fn bytes(token: TokenId) -> &'static [u8] {
    const BYTES: [u8; 256] = {
        let mut bytes = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            bytes[byte] = byte as u8;
            byte += 1;
        }
        bytes
    };
    let index = token as usize;
    match index {
        0..256 => &BYTES[index..=index],
        _ => PIECES.get(index - 256).copied().unwrap_or_default(),
    }
}

/// The model's vocabulary.
pub fn vocabulary() -> Arc<Vocabulary> {
    Arc::new(Vocabulary::new(VOCABULARY, &[STOP], bytes))
}

/// Logits by slot, by token and by what the slot's neighbours hold.
pub struct Babbler {
    spec: ModelSpec,
}

impl Babbler {
    pub fn engine() -> Engine {
        Self::engine_with(EngineConfig::unshared(), |_| ())
    }

    pub fn engine_with(config: EngineConfig, adapt: impl FnOnce(&mut ModelSpec)) -> Engine {
        let mut spec = ModelSpec {
            family: "babbler",
            parameters: 0,
            active_parameters: 0,
            hidden_size: 1,
            layers: 0,
            kv_heads: 1,
            head_dim: 1,
            other_layers: Default::default(),
            vocab_size: VOCABULARY,
            max_canvas: 512,
            sliding_window: None,
            corruption: Corruption::Absorbing { mask_token: MASK },
            parameterisation: Parameterisation::Logits,
            noise_conditioned: false,
            self_conditioned: false,
            noise_schedule: None,
            stop_tokens: vec![STOP],
            resize_tokens: None,
            attention: AttentionPattern::Bidirectional,
            logit_shift: 0,
            default_plan: DecodePlan::default(),
        };
        adapt(&mut spec);
        Engine::start(Box::new(Self { spec }), config).unwrap()
    }
}

impl Denoiser for Babbler {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn is_batch_invariant(&self) -> bool {
        true
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        let mut rows = Vec::new();
        for segment in batch.segments() {
            let tokens = &batch.tokens()[segment.rows.clone()];
            for (at, position) in batch.positions()[segment.rows.clone()].iter().enumerate() {
                let left = at.checked_sub(1).map_or(MASK, |left| tokens[left]);
                let right = tokens.get(at + 1).copied().unwrap_or(MASK);
                let word =
                    mix(u64::from(*position) << 40 | u64::from(left) << 20 | u64::from(right));
                rows.push((word >> 40) as f32);
            }
        }
        Ok(Tensor::from_vec(rows, (batch.rows(), 1), &Device::Cpu)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let rows: Vec<f32> = hidden.flatten_all()?.to_vec1()?;
        let vocab = self.spec.vocab_size;
        let logits = rows.iter().flat_map(|row| {
            (0..vocab as u64).map(move |token| {
                let word = mix(*row as u64 * 4096 + token);
                (word >> 40) as f32 / (1u64 << 24) as f32 * 4.0
            })
        });
        let logits: Vec<f32> = logits.collect();
        Ok(Tensor::from_vec(logits, (rows.len(), vocab), &Device::Cpu)?)
    }
}

/// Constrains gaps of a canvas; stop tokens may follow where nothing else does.
pub fn constrained(
    canvas: &Canvas,
    plan: &DecodePlan,
    gaps: &[(usize, Arc<TokenDfa>)],
) -> CanvasConstraint {
    let gaps = gaps.iter().map(|(gap, language)| GapConstraint {
        gap: *gap,
        language: language.clone(),
        may_end: plan.sampling.may_stop_in(canvas, *gap),
    });
    CanvasConstraint::new(canvas, gaps).unwrap()
}

/// Denoises a canvas within a constraint; the steps, and the finished canvas.
pub fn denoise(
    engine: &Engine,
    canvas: &Canvas,
    plan: &DecodePlan,
    constraint: Option<CanvasConstraint>,
) -> (Vec<StepReport>, Canvas) {
    let generation = engine.enqueue(Submission {
        constraint,
        ..Submission::new(canvas.clone(), plan)
    });
    let mut generation = generation.unwrap();
    let mut steps = Vec::new();
    loop {
        match generation.next_blocking().unwrap() {
            Event::Step(report) => steps.push(report),
            Event::Finished(canvas, _) => return (steps, canvas),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// The text of a gap up to a stop token or a masked slot, after which there is nothing else.
pub fn text(canvas: &Canvas, gap: usize) -> String {
    let mut slots = canvas.gaps()[gap].clone();
    let is_text = |slot: &usize| canvas.token(*slot) != STOP && !canvas.is_masked(*slot);
    let count = slots.clone().take_while(is_text).count();
    let text: Vec<u8> = slots
        .by_ref()
        .take(count)
        .flat_map(|slot| bytes(canvas.token(slot)))
        .copied()
        .collect();
    assert!(slots.all(|slot| !is_text(&slot)));
    String::from_utf8(text).expect("UTF-8")
}
