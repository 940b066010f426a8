//! The engine against a network and a decoder by themselves.

use unmask::canvas::TokenId;
use unmask::decode::{Budget, Candidate, Decoder, EarlyStop};
use unmask::engine::{Engine, EngineConfig};

use super::{NAME, Text, candidate, goes_on, samples};
use crate::support::{denoise, engine, load};

/// A network and a decoder by themselves, and what the engine makes of them.
#[test]
fn the_engine_encodes_and_denoises_block_after_block() {
    let model = load(NAME);
    for (prefill_rows, seed) in [(256, 3), (2, 4)] {
        let config = EngineConfig {
            prefill_rows,
            ..EngineConfig::unshared()
        };
        let engine = Engine::start(load(NAME), config).unwrap();
        let mut plan = engine.spec().default_plan.clone();
        plan.steps_per_block = Some(5);
        plan.budget = Budget::EntropyBound(4.0);
        plan.early_stop = EarlyStop::Never;
        plan.sampling.seed = seed;
        let prompt: Vec<TokenId> = (0..11).map(|i| 7 + 31 * i).collect();
        let canvas = goes_on(&engine, &prompt, 20, &plan);
        assert_eq!((canvas.len(), canvas.scratch()), (11 + 24, 31..35));
        let (reports, finished) = denoise(&engine, canvas.clone(), &plan);
        assert_eq!(reports.len(), 15);

        let mut canvas = plan.noised(canvas);
        let mut told: Vec<TokenId> = canvas.tokens().collect();
        let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
        let mut text = Text::new(&*model, 0);
        text.encode(&prompt);
        let mut signal = None;
        for report in reports {
            let block = decoder.block();
            let held: Vec<TokenId> = block.clone().map(|slot| canvas.token(slot)).collect();
            let logits = text.logits(&held, signal.take());
            let temperature = f64::from(decoder.temperature());
            signal = model
                .self_conditioning(&(&logits / temperature).unwrap())
                .ok();
            let candidates: Vec<Candidate> = samples(&logits, &plan, &decoder, block.start)
                .iter()
                .zip(block.clone())
                .map(|(sample, slot)| candidate(slot, sample))
                .collect();
            decoder.advance(&mut canvas, &candidates);
            for (slot, commit) in report.committed {
                told[slot] = commit.token;
            }
            for (slot, noise) in report.noise {
                told[slot] = noise;
            }
            let tokens: Vec<TokenId> = canvas.tokens().collect();
            assert_eq!(told, tokens, "step {}", report.step);
            if decoder.block() != block {
                text.encode(&tokens[block]);
                signal = None;
            }
        }
        assert!(decoder.is_done());
        assert_eq!(finished.tokens().collect::<Vec<_>>(), told);
        assert_eq!(finished.masked(), 0);
    }
}

#[test]
fn a_stop_token_ends_the_text_after_its_block() {
    let engine = engine(NAME);
    let mut plan = engine.spec().default_plan.clone();
    plan.steps_per_block = Some(2);
    plan.sampling.logit_bias = unmask::sampling::LogitBias::new([(502, 100.0)]);
    let canvas = goes_on(&engine, &[1, 2, 3], 24, &plan);
    let (_, finished) = denoise(&engine, canvas, &plan);
    assert!((3..11).all(|slot| finished.token(slot) == 502));
    assert_eq!(finished.masked(), 16);
}
