//! A figure, the bar that it is held to, and the floor beside it.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Map, Value};

/// Everything.
#[derive(Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Its weights.
    pub parameters: usize,
    /// Rounds of each figure.
    pub rounds: usize,
    /// Measured rate of matrix products, in the format of the weights.
    pub matrix_gflops: f64,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// Which side of its bar a figure has to be on.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// At least so much.
    AtLeast(f64),
    /// Less than so much.
    Below(f64),
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Its name, as `--only` takes it.
    pub name: &'static str,
    /// What it is.
    pub what: String,
    /// The median of the rounds; `None` if it was not measured.
    pub value: Option<f64>,
    /// What it should be.
    pub bar: Option<Bar>,
    /// Whether it is.
    pub holds: Option<bool>,
    /// What the operations, over the measured matrix rate, allow.
    pub floor: Option<f64>,
    /// Why it was not measured.
    pub not_measured: Option<String>,
    /// What the figure is made of.
    pub details: Map<String, Value>,
}

impl Figure {
    /// A figure with a floor beside it; `details` is an object.
    pub fn new(name: &'static str, what: String, value: f64, floor: f64, details: Value) -> Self {
        Self {
            name,
            what,
            value: Some(value),
            bar: None,
            holds: None,
            floor: Some(floor),
            not_measured: None,
            details: match details {
                Value::Object(details) => details,
                _ => Map::new(),
            },
        }
    }

    /// The same, held to a bar.
    pub fn held_to(self, bar: Bar) -> Self {
        let holds = self.value.map(|value| match bar {
            Bar::AtLeast(least) => value >= least,
            Bar::Below(limit) => value < limit,
        });
        Self {
            bar: Some(bar),
            holds,
            ..self
        }
    }

    /// A figure that this model does not have.
    pub fn not_measured(name: &'static str, what: &str, reason: String) -> Self {
        Self {
            name,
            what: what.to_owned(),
            value: None,
            bar: None,
            holds: None,
            floor: None,
            not_measured: Some(reason),
            details: Map::new(),
        }
    }
}

impl Report {
    /// As text.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{}, {} weights; medians of {} rounds; matrix products at {:.0} GFLOP/s\n\n",
            self.model, self.parameters, self.rounds, self.matrix_gflops
        );
        let mut line = |cells: [&str; 5], what: &str| {
            let [name, value, bar, holds, floor] = cells;
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "{name:<10}{value:>10}{bar:>10}  {holds:<6}{floor:>10}  {what}"
            );
        };
        line(["figure", "value", "bar", "", "floor"], "");
        for figure in &self.figures {
            let number = |value: Option<f64>| value.map_or("-".to_owned(), short);
            let bar = match figure.bar {
                Some(Bar::AtLeast(least)) => format!(">= {}", short(least)),
                Some(Bar::Below(limit)) => format!("< {}", short(limit)),
                None => "-".into(),
            };
            let holds = match figure.holds {
                Some(true) => "holds",
                Some(false) => "fails",
                None => "",
            };
            let (value, floor) = (number(figure.value), number(figure.floor));
            line([figure.name, &value, &bar, holds, &floor], &figure.what);
            if let Some(reason) = &figure.not_measured {
                line([""; 5], &format!("not measured: {reason}"));
            }
            for (name, value) in &figure.details {
                let value = match value.as_f64().filter(|_| value.is_f64()) {
                    Some(number) => short(number),
                    None => value.to_string(),
                };
                line([""; 5], &format!("  {name}: {value}"));
            }
        }
        out
    }
}

fn short(number: f64) -> String {
    match number.abs() {
        small if small < 1.0 => format!("{number:.4}"),
        small if small < 100.0 => format!("{number:.2}"),
        _ => format!("{number:.0}"),
    }
}
