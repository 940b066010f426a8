//! What an engine denoises before its first request.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use unmask::canvas::Canvas;
use unmask::engine::{Engine, EngineConfig, EngineStatus, StartError};
use unmask::models::{Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch};

use crate::end;
use crate::support::load;
use crate::support::mock::MockModel;

/// One of each attention, and of each kind of output.
const FAMILIES: [&str; 9] = [
    "llada",
    "dream",
    "llada2_moe",
    "sdar",
    "diffusion_gemma",
    "mdlm",
    "bd3lm",
    "sedd_absorb",
    "sedd_uniform",
];

/// What a segment of a forward was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    rows: usize,
    reads_cached: bool,
    keeps: bool,
    /// Of how many in its batch.
    beside: usize,
}

/// A model whose forwards are written down.
struct Watched {
    model: Box<dyn Denoiser>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Watched {
    fn new(model: Box<dyn Denoiser>) -> (Self, Arc<Mutex<Vec<Seen>>>) {
        let seen = Arc::default();
        let watched = Self {
            model,
            seen: Arc::clone(&seen),
        };
        (watched, seen)
    }
}

impl Denoiser for Watched {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn dtype(&self) -> DType {
        self.model.dtype()
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        let segments = batch.segments();
        let seen = segments.iter().map(|segment| Seen {
            rows: segment.rows.len(),
            reads_cached: !segment.context.is_empty(),
            keeps: !segment.store.is_empty(),
            beside: segments.len(),
        });
        self.seen.lock().unwrap().extend(seen);
        self.model.hidden(batch, pool)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        self.model.head(hidden)
    }
}

fn start(model: Box<dyn Denoiser>, warms_up: Option<bool>) -> Result<Engine, StartError> {
    let config = EngineConfig {
        warms_up,
        ..EngineConfig::unshared()
    };
    Engine::start(model, config)
}

fn without_times(status: EngineStatus) -> EngineStatus {
    EngineStatus {
        phases: Default::default(),
        ..status
    }
}

#[test]
fn a_warm_up_launches_short_and_long_segments_with_and_without_cached_keys_and_guided_ones() {
    for family in ["llada", "dream", "llada2_moe", "sdar"] {
        let (model, seen) = Watched::new(load(family));
        start(Box::new(model), Some(true)).unwrap();
        let seen = seen.lock().unwrap();
        for (what, is_met) in [
            (
                "cached keys are read",
                seen.iter().any(|seen| seen.reads_cached),
            ),
            (
                "no cached keys are read",
                seen.iter().any(|seen| !seen.reads_cached),
            ),
            ("keys are kept", seen.iter().any(|seen| seen.keeps)),
            (
                "more rows than the attention kernel for few takes",
                seen.iter().any(|seen| seen.rows > 64),
            ),
            ("guidance", seen.iter().any(|seen| seen.beside == 2)),
        ] {
            assert!(is_met, "{family}, {what}: {seen:?}");
        }
    }
}

#[test]
fn requests_do_not_notice_that_an_engine_was_warmed_up() {
    for family in FAMILIES {
        let answers = [false, true].map(|warms_up| {
            let engine = start(load(family), Some(warms_up)).unwrap();
            let at_start = without_times(engine.status());
            let mut plan = engine.spec().default_plan.clone();
            (plan.sampling.seed, plan.sampling.temperature) = (7, 1.0);
            let canvas = Canvas::builder(engine.blank()).fixed(&[5, 9, 40]).gap(8);
            let canvas = engine.spec().with_scratch(&plan, canvas.build().unwrap());
            let (answer, statistics) = end(engine.submit(canvas, &plan).unwrap()).unwrap();
            let counts = (statistics.steps, statistics.nfe, statistics.committed);
            engine.close();
            let status = without_times(engine.status());
            (
                at_start,
                answer,
                counts,
                statistics.cache,
                (status.steps, status.rows, status.reused),
            )
        });
        let [cold, warm] = answers;
        assert_eq!(cold.0.steps, 0, "{family}");
        assert_eq!(warm, cold, "{family}");
    }
}

#[test]
fn a_model_that_takes_no_canvas_of_the_warm_up_is_started_all_the_same() {
    // Its encoder has nowhere to leave keys and values.
    let config = EngineConfig {
        warms_up: Some(true),
        kv_memory: 0,
        ..EngineConfig::unshared()
    };
    assert!(
        Engine::start(load("diffusion_gemma"), config)
            .unwrap()
            .is_running()
    );
}

#[test]
fn a_cpu_is_not_warmed_up_unless_it_is_asked_for() {
    let (model, seen) = Watched::new(load("llada"));
    start(Box::new(model), None).unwrap();
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn a_warm_up_that_fails_ends_the_start_with_its_reason() {
    for (model, reason) in [
        (MockModel::new().damaged(), "cannot denoise with this model"),
        (MockModel::new().panicking_on(0), "token 0 was met"),
        (MockModel::new().with_room_for(5), "give less --kv-memory"),
    ] {
        let error = start(Box::new(model), Some(true)).err().unwrap();
        assert!(error.to_string().contains(reason), "{error}");
    }
}
