//! What was measured, and how it is printed.

use std::fmt;
use std::io::Write;

use serde::Serialize;

/// The middle of several measurements, and how far they lie apart.
#[derive(Serialize)]
pub struct Spread {
    least: f64,
    median: f64,
    /// The tenth percentile.
    p10: f64,
    /// The ninetieth percentile.
    p90: f64,
}

impl Spread {
    /// The spread of `values`; all zero if there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = share * values.len().saturating_sub(1) as f64;
            values.get(index.round() as usize).copied().unwrap_or(0.0)
        };
        Self {
            least: at(0.0),
            median: at(0.5),
            p10: at(0.1),
            p90: at(0.9),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:9.3}   (p10 {:.3}, p90 {:.3})",
            self.median, self.p10, self.p90
        )
    }
}

/// Why a model in another format has no [`Floor`].
const NO_FLOOR: &str = "not measured: it is for f32, bf16 and f16";

/// The least that a denoise step can take on this device.
#[derive(Serialize)]
pub struct Floor {
    /// Measured rate of matrix products.
    pub matrix_gflops: f64,
    /// Operations of a step's matrix products over that rate.
    pub products_ms: f64,
    /// One read of the weights of those products at the rate of copies, on a GPU.
    pub read_ms: Option<f64>,
    /// The longer one.
    pub step_ms: f64,
}

/// Completions without HTTP.
#[derive(Serialize)]
pub struct EngineFigures {
    /// A denoise step.
    pub step_ms: Spread,
    /// Tokens a second.
    pub tokens_per_second: Spread,
    /// Tokens a network evaluation.
    pub tokens_per_forward: Spread,
}

/// The part of a completion's first step in which a GPU has nothing to do.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Idle {
    /// As measured.
    Measured {
        /// The step in the engine.
        step_ms: Spread,
        /// What the device is busy for, with all of the step launched before it begins.
        busy_ms: Spread,
        /// Of the medians, the part of the step that is not busy; 0 if the step takes no longer.
        share: f64,
    },
    /// Without figures.
    NotMeasured {
        /// Why.
        not_measured: &'static str,
    },
}

impl Idle {
    /// Of steps that take `step_ms`, for which the device is busy for `busy_ms`.
    pub fn of(step_ms: Spread, busy_ms: Spread) -> Self {
        let share = (1.0 - busy_ms.median / step_ms.median).max(0.0);
        Self::Measured {
            step_ms,
            busy_ms,
            share,
        }
    }
}

/// Completions over HTTP.
#[derive(Serialize)]
pub struct HttpFigures {
    /// From sending the request to the answer's last byte.
    pub latency_ms: Spread,
    /// The part of it that was not spent denoising.
    pub overhead_ms: Spread,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// Completions at the same time.
#[derive(Serialize)]
pub struct Concurrent {
    /// How many.
    pub requests: usize,
    /// How many failed.
    pub errors: usize,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// From sending the request to the answer's last byte.
    pub latency_ms: Spread,
    /// Tokens a second, of all together.
    pub tokens_per_second: f64,
}

/// Resident memory of the process, the clients' part included.
#[derive(Serialize)]
pub struct Memory {
    /// The weights, as they are held.
    pub weights_mb: f64,
    /// Now.
    pub resident_mb: f64,
    /// At its highest.
    pub highest_mb: f64,
}

/// Memory of a GPU, in 10⁶ bytes.
#[derive(Serialize)]
pub struct DeviceMemory {
    /// All that is taken from the device at the end, which is the most that the engine had unless memory ran out and it
    /// gave some back. Weights, keys and values, what steps work in, and what libraries and kernels hold; what other
    /// processes took meanwhile is in it.
    pub taken_mb: f64,
    /// The part of it that is the pool of keys and values, which is taken whether a plan keeps any or not.
    pub kv_pool_mb: f64,
}

/// Everything.
#[derive(Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Tokens a completion.
    pub gap: usize,
    /// The least that a step can take; `None` for a model in a format whose products are not measured.
    pub floor: Option<Floor>,
    /// Without HTTP.
    pub engine: EngineFigures,
    /// What of a step a GPU has nothing to do; `None` on a CPU.
    pub idle: Option<Idle>,
    /// Over HTTP.
    pub http: HttpFigures,
    /// Many at a time.
    pub concurrent: Concurrent,
    /// Memory, if the system says.
    pub memory: Option<Memory>,
    /// Of the GPU; `None` on a CPU.
    pub device_memory: Option<DeviceMemory>,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measured {
                step_ms,
                busy_ms,
                share,
            } => write!(
                f,
                "{:.1} % of a first step ({:.3} ms, for {:.3} of which it is busy)",
                share * 100.0,
                step_ms.median,
                busy_ms.median
            ),
            Self::NotMeasured { not_measured } => write!(f, "not measured: {not_measured}"),
        }
    }
}

impl Report {
    /// Prints the report.
    pub fn print(&self, as_json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if as_json {
            writeln!(out, "{}", serde_json::to_string_pretty(self)?)?;
            return Ok(());
        }
        let Self {
            model,
            gap,
            floor,
            engine,
            idle,
            http,
            concurrent,
            memory,
            device_memory,
        } = self;
        writeln!(out, "{model}, completions of {gap} tokens")?;
        writeln!(out, "denoise step, ms          {}", engine.step_ms)?;
        match floor {
            Some(floor) => writeln!(
                out,
                "  floor, ms               {:9.3}   ({})",
                floor.step_ms,
                match floor
                    .read_ms
                    .is_some_and(|read_ms| read_ms > floor.products_ms)
                {
                    true => "a read of the weights".to_owned(),
                    false => format!("products at {:.0} GFLOP/s", floor.matrix_gflops),
                }
            )?,
            None => writeln!(out, "  floor                   {NO_FLOOR}")?,
        }
        if let Some(idle) = idle {
            writeln!(out, "  the device has nothing to do: {idle}")?;
        }
        writeln!(
            out,
            "tokens/s                  {}",
            engine.tokens_per_second
        )?;
        writeln!(
            out,
            "tokens a forward          {}",
            engine.tokens_per_forward
        )?;
        writeln!(out, "HTTP latency, ms          {}", http.latency_ms)?;
        writeln!(out, "  not denoising, ms       {}", http.overhead_ms)?;
        writeln!(
            out,
            "one at a time, tokens/s   {:9.3}",
            http.tokens_per_second
        )?;
        writeln!(
            out,
            "{} at a time, tokens/s    {:9.3}   ({} errors)",
            concurrent.requests, concurrent.tokens_per_second, concurrent.errors
        )?;
        writeln!(out, "  latency, ms             {}", concurrent.latency_ms)?;
        if let Some(memory) = device_memory {
            writeln!(
                out,
                "device memory, MB         {:9.3}   (of it keys and values {:.3})",
                memory.taken_mb, memory.kv_pool_mb
            )?;
        }
        if let Some(memory) = memory {
            writeln!(
                out,
                "resident memory, MB       {:9.3}   (highest {:.3}, weights {:.3})",
                memory.resident_mb, memory.highest_mb, memory.weights_mb
            )?;
        }
        Ok(())
    }
}
