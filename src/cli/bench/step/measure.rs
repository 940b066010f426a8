//! The measurements.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use candle_core::{DType, Device};
use futures::future::try_join_all;
use serde_json::{Value, json};
use unmask::canvas::Canvas;
use unmask::engine::{Event, Statistics};
use unmask::kernels;
use unmask::models::WeightFormat;

use super::super::client::{Client, Target};
use super::super::machine::{TRIES, copy_rate, large_products, matrix_rate};
use super::Setup;
use super::report::{Concurrent, DeviceMemory, EngineFigures, Floor, HttpFigures, Memory, Spread};

/// Seeds of the measurements begin here.
const FIRST_SEED: u64 = 1;

/// The least time that a step can take: its matrix products at the measured rate of such products, or on a GPU one
/// read of their weights at the rate of copies, if that is longer. On a CPU, which multiplies f32 whatever type weights
/// are held in, small ones stay in its caches. `None` of 8-bit weights, whose products have other rates.
pub fn floor(
    setup: &Setup,
    device: &Device,
    format: WeightFormat,
) -> anyhow::Result<Option<Floor>> {
    let (dtype, read_ms) = match format {
        WeightFormat::Float(_) if device.is_cpu() => (DType::F32, None),
        WeightFormat::Float(dtype) => {
            let bytes = setup.products.weights() * dtype.size_in_bytes();
            let copy = copy_rate(device, TRIES)?;
            (dtype, Some(bytes as f64 / copy * 1e3))
        }
        WeightFormat::Q8_0 => return Ok(None),
    };
    let rate = matrix_rate(device, dtype, large_products(device), TRIES)?;
    let rows = (setup.prompt_ids.len() + setup.gap) as f64;
    // On average half of the gap is masked and goes through the head.
    let scored = (setup.gap + 1) as f64 / 2.0;
    let products_ms = setup.products.operations(rows, scored) / rate * 1e3;
    Ok(Some(Floor {
        matrix_gflops: rate / 1e9,
        products_ms,
        read_ms,
        step_ms: products_ms.max(read_ms.unwrap_or(0.0)),
    }))
}

/// The path of completions.
const COMPLETIONS: &str = "/v1/completions";

/// Completions one after the other, without HTTP.
pub fn engine(setup: &Setup) -> anyhow::Result<EngineFigures> {
    let mut step_ms = Vec::new();
    let mut tokens_per_second = Vec::new();
    let mut tokens_per_forward = Vec::new();
    for number in 0..=setup.requests {
        let statistics = generate(setup, FIRST_SEED + number as u64)?;
        // The first one warms up.
        if number > 0 {
            let (seconds, nfe) = (statistics.denoising.as_secs_f64(), statistics.nfe as f64);
            step_ms.push(seconds / nfe * 1e3);
            tokens_per_second.push(setup.gap as f64 / seconds);
            tokens_per_forward.push(setup.gap as f64 / nfe);
        }
    }
    Ok(EngineFigures {
        step_ms: Spread::of(step_ms),
        tokens_per_second: Spread::of(tokens_per_second),
        tokens_per_forward: Spread::of(tokens_per_forward),
    })
}

fn generate(setup: &Setup, seed: u64) -> anyhow::Result<Statistics> {
    let canvas = Canvas::builder(setup.engine.blank())
        .fixed(&setup.prompt_ids)
        .gap(setup.gap)
        .build()?;
    let spec = setup.engine.spec();
    let mut plan = spec.default_plan.clone();
    // A measurement is of canvases that keep their length.
    plan.revision = plan.revision.at_fixed_length();
    plan.steps = setup.steps.or(plan.steps);
    plan.sampling.seed = seed;
    let canvas = spec.with_scratch(&plan, canvas);
    let mut generation = setup.engine.submit(canvas, &plan)?;
    loop {
        match generation.next_blocking() {
            Some(Event::Step(_)) => {}
            Some(Event::Finished(_, statistics)) => return Ok(statistics),
            Some(Event::Failed(error)) => return Err(error.into()),
            None => bail!("the engine stopped"),
        }
    }
}

/// Completions one after the other over HTTP.
pub async fn http(setup: &Setup, target: &Target) -> anyhow::Result<HttpFigures> {
    let mut client = Client::connect(target).await?;
    let mut latency_ms = Vec::new();
    let mut overhead_ms = Vec::new();
    let (mut tokens, mut total) = (0, Duration::ZERO);
    for number in 0..=setup.requests {
        let (answer, elapsed) = client.ask(COMPLETIONS, &body(setup, number as u64)).await?;
        if number > 0 {
            let latency = elapsed.as_secs_f64() * 1e3;
            let denoising = number_at(&answer, "/diffusion/denoise_ms")?;
            latency_ms.push(latency);
            overhead_ms.push(latency - denoising);
            tokens += completion_tokens(&answer)?;
            total += elapsed;
        }
    }
    Ok(HttpFigures {
        latency_ms: Spread::of(latency_ms),
        overhead_ms: Spread::of(overhead_ms),
        tokens_per_second: tokens as f64 / total.as_secs_f64(),
    })
}

/// Completions all at once over HTTP, each on a connection of its own.
pub async fn concurrent(setup: &Setup, target: &Target) -> anyhow::Result<Concurrent> {
    let connecting = (0..setup.concurrency).map(|_| Client::connect(target));
    let clients = try_join_all(connecting).await?;
    let begun = Instant::now();
    let answers = clients.into_iter().enumerate().map(|(number, mut client)| {
        let body = body(setup, number as u64);
        async move { client.ask(COMPLETIONS, &body).await }
    });
    let answers = futures::future::join_all(answers).await;
    let elapsed = begun.elapsed().as_secs_f64();
    let errors = answers.iter().filter(|answer| answer.is_err()).count();
    if let Some(error) = answers.iter().find_map(|answer| answer.as_ref().err()) {
        eprintln!(
            "{errors} of {} requests failed, the first: {error:#}",
            answers.len()
        );
    }
    let mut tokens = 0;
    let mut latency_ms = Vec::new();
    for (answer, latency) in answers.into_iter().flatten() {
        tokens += completion_tokens(&answer)?;
        latency_ms.push(latency.as_secs_f64() * 1e3);
    }
    Ok(Concurrent {
        requests: setup.concurrency,
        errors,
        seconds: elapsed,
        latency_ms: Spread::of(latency_ms),
        tokens_per_second: tokens as f64 / elapsed,
    })
}

fn body(setup: &Setup, number: u64) -> Value {
    let mut body = json!({
        "prompt": setup.prompt,
        "max_tokens": setup.gap,
        "seed": FIRST_SEED + number,
    });
    if let Some(steps) = setup.steps {
        body["diffusion"] = json!({"steps": steps});
    }
    body
}

fn completion_tokens(answer: &Value) -> anyhow::Result<u64> {
    Ok(number_at(answer, "/usage/completion_tokens")? as u64)
}

fn number_at(answer: &Value, pointer: &str) -> anyhow::Result<f64> {
    answer
        .pointer(pointer)
        .and_then(Value::as_f64)
        .with_context(|| format!("the answer has no number at {pointer}"))
}

/// What the device gave since `before` bytes of it were in use; `None` on a CPU.
pub fn device_memory(
    setup: &Setup,
    device: &Device,
    before: Option<usize>,
) -> anyhow::Result<Option<DeviceMemory>> {
    let held = kernels::used_memory(device)?;
    let slot_bytes = setup.engine.spec().kv_width() * setup.kv_dtype.size_in_bytes();
    Ok(held.zip(before).map(|(held, before)| DeviceMemory {
        taken_mb: held.saturating_sub(before) as f64 / 1e6,
        kv_pool_mb: (setup.engine.status().kv_slots * slot_bytes) as f64 / 1e6,
    }))
}

/// Resident memory of this process, now and at its highest; `None` where the system does not say.
pub fn memory(weight_bytes: usize) -> Option<Memory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let megabytes = |field: &str| {
        let line = status.lines().find(|line| line.starts_with(field))?;
        let kibibytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes * 1024.0 / 1e6)
    };
    Some(Memory {
        weights_mb: weight_bytes as f64 / 1e6,
        resident_mb: megabytes("VmRSS:")?,
        highest_mb: megabytes("VmHWM:")?,
    })
}
