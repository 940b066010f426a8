//! What was measured under each load, and how it is printed.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use unmask::engine::{EngineStatus, Phases};

use super::load::Load;
use super::probe::Health;
use super::quantiles::Quantiles;
use super::tally::Tally;

/// Everything.
#[derive(Serialize)]
pub struct Report {
    /// The served model's name, or the server's URL.
    pub of: String,
    /// The seed of requests and arrivals.
    pub seed: u64,
    /// Measured rate of f32 matrix products; `None` for a server elsewhere, or a model on another device or in
    /// another format.
    pub matrix_gflops: Option<f64>,
    /// One a load.
    pub levels: Vec<Level>,
}

/// What was measured under one load. Times are in milliseconds.
#[derive(Serialize)]
pub struct Level {
    /// Clients of a closed loop.
    pub concurrency: Option<usize>,
    /// Requests a second of an open loop.
    pub rate: Option<f64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Requests that were answered.
    pub requests: u64,
    /// Those that were not, by status, `stream` for errors within a stream, or `connection`.
    pub errors: BTreeMap<String, u64>,
    /// What was said of the first of each.
    pub first_errors: BTreeMap<String, String>,
    /// Those whose clients hung up before the answer's end.
    pub hung_up: u64,
    /// Arrivals of an open loop that found too many requests under way.
    pub not_sent: u64,
    /// Answered requests a second.
    pub requests_per_second: f64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all completions.
    pub completion_tokens: u64,
    /// Tokens of completions a second.
    pub tokens_per_second: f64,
    /// Slots committed a network evaluation of their request.
    pub tokens_per_forward: Option<f64>,
    /// Until a stream showed a committed slot, of those requests that ask for frames.
    pub first_commit_ms: Option<Quantiles>,
    /// Until the first piece of text: for most plans later, as text comes from left to right.
    pub first_text_ms: Option<Quantiles>,
    /// Latency without the wait in the queue, over the tokens of the completion.
    pub per_token_ms: Option<Quantiles>,
    /// From sending a request, or in an open loop from when it was due, to its last byte.
    pub latency_ms: Option<Quantiles>,
    /// What the server says of the wait for the first step.
    pub queued_ms: Option<Quantiles>,
    /// `/health` meanwhile, ten times a second: from connecting to the last byte.
    pub health_ms: Option<Quantiles>,
    /// Times at which `/health` was not answered with status 200.
    pub health_failures: u64,
    /// What the engine did meanwhile; `None` for a server elsewhere.
    pub engine: Option<EngineShare>,
}

/// What an engine did under a load.
#[derive(Serialize)]
pub struct EngineShare {
    /// Steps; each is one batch.
    pub steps: u64,
    /// Rows a step.
    pub rows_per_step: f64,
    /// Rows a step that went through the head.
    pub scored_rows_per_step: f64,
    /// Slots whose keys and values were found computed by an earlier request.
    pub reused_slots: u64,
    /// Milliseconds a step.
    pub step_ms: f64,
    /// Shares of a step's time.
    pub phases: BTreeMap<&'static str, f64>,
    /// The part of the time in which a step was under way.
    pub busy: f64,
    /// The least that the matrix products of a step take, attention left out.
    pub floor_step_ms: Option<f64>,
}

impl EngineShare {
    /// What was done between `before` and `after` in `seconds`, of which matrix products take
    /// `floor_seconds`.
    pub fn between(
        before: &EngineStatus,
        after: &EngineStatus,
        seconds: f64,
        floor_seconds: impl Fn(f64, f64) -> Option<f64>,
    ) -> Self {
        let steps = after.steps - before.steps;
        let per_step = |before: u64, after: u64| (after - before) as f64 / steps.max(1) as f64;
        let times = before.phases.durations().into_iter();
        let times = times.zip(after.phases.durations());
        let times = times.map(|(before, after)| (after - before).as_secs_f64());
        let times: Vec<f64> = times.collect();
        let total: f64 = times.iter().sum();
        let shares = times.iter().map(|time| time / total.max(f64::MIN_POSITIVE));
        let rows_per_step = per_step(before.rows, after.rows);
        let scored_rows_per_step = per_step(before.scored, after.scored);
        Self {
            steps,
            rows_per_step,
            scored_rows_per_step,
            reused_slots: after.reused - before.reused,
            step_ms: total * 1e3 / steps.max(1) as f64,
            phases: Phases::NAMES.into_iter().zip(shares).collect(),
            busy: total / seconds,
            floor_step_ms: floor_seconds(rows_per_step, scored_rows_per_step)
                .map(|seconds| seconds * 1e3),
        }
    }
}

impl Level {
    /// What `tally` came to under `load`.
    pub fn of(load: Load, tally: &Tally, health: &Health, engine: Option<EngineShare>) -> Self {
        let (concurrency, rate) = match load {
            Load::Closed(clients) => (Some(clients), None),
            Load::Open(rate) => (None, Some(rate)),
        };
        let errors = tally.errors.iter();
        Self {
            concurrency,
            rate,
            seconds: tally.seconds,
            requests: tally.answered,
            errors: errors
                .clone()
                .map(|(kind, errors)| (kind.clone(), errors.count))
                .collect(),
            first_errors: errors
                .map(|(kind, errors)| (kind.clone(), errors.first.clone()))
                .collect(),
            hung_up: tally.hung_up,
            not_sent: tally.not_sent,
            requests_per_second: tally.answered as f64 / tally.seconds,
            prompt_tokens: tally.prompt_tokens,
            completion_tokens: tally.completion_tokens,
            tokens_per_second: tally.completion_tokens as f64 / tally.seconds,
            tokens_per_forward: (tally.nfe > 0.0).then(|| tally.committed / tally.nfe),
            first_commit_ms: tally.first_commit.quantiles(),
            first_text_ms: tally.first_text.quantiles(),
            per_token_ms: tally.per_token.quantiles(),
            latency_ms: tally.latency.quantiles(),
            queued_ms: tally.queued.quantiles(),
            health_ms: health.times.quantiles(),
            health_failures: health.failures,
            engine,
        }
    }

    /// The load by name.
    pub fn load(&self) -> String {
        match (self.concurrency, self.rate) {
            (Some(clients), _) => Load::Closed(clients).to_string(),
            (None, rate) => Load::Open(rate.unwrap_or_default()).to_string(),
        }
    }
}

impl Report {
    /// Fails unless a request was answered, or its client hung up first.
    pub fn check_answered(&self) -> anyhow::Result<()> {
        let mut levels = self.levels.iter();
        if levels.any(|level| level.requests + level.hung_up > 0) {
            return Ok(());
        }
        let mut errors = self.levels.iter().flat_map(|level| &level.first_errors);
        match errors.next() {
            Some((kind, first)) => anyhow::bail!("no request was answered: {kind}: {first}"),
            None => anyhow::bail!("no request was sent in the time of --duration"),
        }
    }

    /// As a table.
    pub fn table(&self) -> String {
        let mut out = format!("{}, seed {}; times in ms\n", self.of, self.seed);
        let header = [
            "load",
            "answered",
            "errors",
            "req/s",
            "tok/s",
            "tok/fwd",
            "commit p50",
            "p99",
            "text p50",
            "p99",
            "a token",
            "latency p50",
            "p90",
            "p99",
            "queue p50",
            "p99",
        ];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.levels.iter().map(row));
        let widths: Vec<usize> = (0..header.len())
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        for row in rows {
            let cells = row.iter().zip(&widths);
            let cells: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:>width$}"))
                .collect();
            out += &cells.join("  ");
            out.push('\n');
        }
        for level in &self.levels {
            // Writing to a string does not fail.
            let _ = write_engine(&mut out, level, self.matrix_gflops);
            let _ = write_health(&mut out, level);
            if level.hung_up > 0 {
                let _ = writeln!(out, "{}: {} hung up", level.load(), level.hung_up);
            }
            for (kind, message) in &level.first_errors {
                let count = level.errors[kind];
                let _ = writeln!(out, "{}: {count} × {kind}: {message}", level.load());
            }
            if level.not_sent > 0 {
                let _ = writeln!(
                    out,
                    "{}: {} arrivals were not sent: --max-in-flight requests were under way",
                    level.load(),
                    level.not_sent
                );
            }
        }
        out
    }
}

fn row(level: &Level) -> Vec<String> {
    let times = |quantiles: &Option<Quantiles>, of: &[fn(&Quantiles) -> f64]| -> Vec<String> {
        let cell = |of: &fn(&Quantiles) -> f64| quantiles.as_ref().map(of);
        of.iter()
            .map(|of| cell(of).map_or("-".into(), |value| format!("{value:.1}")))
            .collect()
    };
    let errors: u64 = level.errors.values().sum();
    let per_forward = level.tokens_per_forward;
    let mut row = vec![
        level.load(),
        level.requests.to_string(),
        errors.to_string(),
        format!("{:.2}", level.requests_per_second),
        format!("{:.1}", level.tokens_per_second),
        per_forward.map_or("-".into(), |tokens| format!("{tokens:.2}")),
    ];
    let [p50, p90, p99]: [fn(&Quantiles) -> f64; 3] = [|q| q.p50, |q| q.p90, |q| q.p99];
    row.extend(times(&level.first_commit_ms, &[p50, p99]));
    row.extend(times(&level.first_text_ms, &[p50, p99]));
    row.extend(times(&level.per_token_ms, &[p50]));
    row.extend(times(&level.latency_ms, &[p50, p90, p99]));
    row.extend(times(&level.queued_ms, &[p50, p99]));
    row
}

fn write_health(out: &mut String, level: &Level) -> std::fmt::Result {
    write!(out, "{}: /health ", level.load())?;
    match &level.health_ms {
        Some(times) => write!(
            out,
            "p50 {:.1}, p99 {:.1}, most {:.1} ms of {}",
            times.p50, times.p99, times.max, times.count
        )?,
        None => write!(out, "never answered")?,
    }
    writeln!(out, "; {} failed", level.health_failures)
}

fn write_engine(out: &mut String, level: &Level, rate: Option<f64>) -> std::fmt::Result {
    let Some(engine) = &level.engine else {
        return Ok(());
    };
    write!(
        out,
        "{}: {} steps of {:.1} rows, {:.1} scored, {:.2} ms",
        level.load(),
        engine.steps,
        engine.rows_per_step,
        engine.scored_rows_per_step,
        engine.step_ms
    )?;
    if let (Some(floor), Some(rate)) = (engine.floor_step_ms, rate) {
        write!(out, " (floor {floor:.2} ms at {rate:.0} GFLOP/s)")?;
    }
    let phases = Phases::NAMES.iter().filter_map(|name| {
        let share = engine.phases.get(name)?;
        Some(format!("{name} {:.1} %", share * 100.0))
    });
    let phases: Vec<String> = phases.collect();
    writeln!(
        out,
        "; {}; busy {:.0} % of the time",
        phases.join(", "),
        engine.busy * 100.0
    )
}
