//! Ten thousand steps of everything at once.

use std::collections::VecDeque;

use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Cache, CachePolicy, DecodePlan};
use unmask::engine::{Engine, EngineConfig, Generation, SubmitError};

use crate::digest::{DigestModel, Fault, MASK};
use crate::end;

const STEPS: u64 = 10_000;
const MOST: usize = 24;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// A canvas that begins like many others, and a plan.
fn request(random: &mut Random) -> (Canvas, DecodePlan) {
    let prompt = random.below(60);
    let kind = random.below(3) as TokenId;
    let mut tokens: Vec<TokenId> = (0..prompt as TokenId)
        .map(|i| (i * 7 + kind) % MASK)
        .collect();
    if let Some(last) = tokens.last_mut() {
        *last = random.below(MASK as usize) as TokenId;
    }
    let gap = 1 + random.below(12);
    let canvas = Canvas::builder(MASK)
        .fixed(&tokens)
        .gap(gap)
        .build()
        .unwrap();
    let mut plan = DecodePlan {
        block_length: Some(4),
        block_origin: [Default::default(), unmask::decode::BlockOrigin::Canvas][random.below(2)],
        cache: Cache {
            policy: [CachePolicy::Auto, CachePolicy::Auto, CachePolicy::None][random.below(3)],
            refresh: None,
        },
        ..DecodePlan::default()
    };
    plan.sampling.guidance_scale = [0.0, 0.0, 0.0, 1.0][random.below(4)];
    (canvas, plan)
}

fn recomputed(engine: &Engine, canvas: &Canvas, plan: &DecodePlan) -> Vec<TokenId> {
    let plan = DecodePlan {
        cache: Cache {
            policy: CachePolicy::None,
            refresh: None,
        },
        ..plan.clone()
    };
    let generation = engine.submit(canvas.clone(), &plan).unwrap();
    let (canvas, _) = end(generation).unwrap();
    canvas.tokens().collect()
}

#[test]
fn every_request_ends_once_with_the_right_answer_and_no_memory_is_lost() {
    let faults = |forward| match forward % 97 {
        50 => Some(Fault::Panic),
        71 => Some(Fault::Error),
        _ => None,
    };
    let config = EngineConfig {
        max_sequences: 9,
        max_queue: MOST,
        step_rows: Some(64),
        prefill_rows: 16,
        // Two floats a slot: 512 slots, far fewer than nine of the longest canvases need.
        kv_memory: 512 * 8,
        ..EngineConfig::default()
    };
    let engine = Engine::start(Box::new(DigestModel::new(4, faults)), config).unwrap();
    let reference = DigestModel::new(4, |_| None);
    let reference = Engine::start(Box::new(reference), EngineConfig::default()).unwrap();
    let mut random = Random(7);
    let mut open: VecDeque<(Canvas, DecodePlan, Generation)> = VecDeque::new();
    let (mut finished, mut failed, mut refused) = (0, 0, 0);
    while engine.status().steps < STEPS {
        let (canvas, plan) = request(&mut random);
        match engine.submit(canvas.clone(), &plan) {
            Ok(_) if random.below(8) == 0 => {}
            Ok(generation) => open.push_back((canvas, plan, generation)),
            Err(SubmitError::QueueFull) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if open.len() < MOST {
            continue;
        }
        let (canvas, plan, generation) = open.pop_front().unwrap();
        match end(generation) {
            Ok((answer, _)) => {
                finished += 1;
                if finished % 8 == 0 {
                    let tokens: Vec<TokenId> = answer.tokens().collect();
                    assert_eq!(tokens, recomputed(&reference, &canvas, &plan));
                }
            }
            Err(error) => {
                assert!(error.contains("injected"), "{error}");
                failed += 1;
            }
        }
        let status = engine.status();
        assert!(status.running <= 9 && status.queued <= MOST && status.kv_used <= status.kv_slots);
    }
    for (_, _, generation) in open {
        match end(generation) {
            Ok(_) => finished += 1,
            Err(error) => assert!(error.contains("injected"), "{error}"),
        }
    }
    assert!(
        finished > 100 && failed > 10,
        "{finished} {failed} {refused}"
    );
    assert!(engine.status().reused > 0);
    // The last have ended; the worker looks once more before it waits.
    let (canvas, plan) = request(&mut random);
    while end(engine.submit(canvas.clone(), &plan).unwrap()).is_err() {}
    for _ in 0..1000 {
        let status = engine.status();
        if status.kv_used + status.running + status.queued == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let status = engine.status();
    assert_eq!((status.kv_used, status.running, status.queued), (0, 0, 0));
}
