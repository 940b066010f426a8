//! SEDD: a diffusion transformer that gives the ratios of probabilities, not the clean token (Lou et
//! al., arXiv:2310.16834).
//!
//! `model/transformer.py` of louaaron/Score-Entropy-Discrete-Diffusion. Its config.json is the whole
//! configuration of the training run, which names no architecture.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::decode::{DecodePlan, Revision, preset};
use crate::diffusion::Schedule;
use crate::kernels::transfer;
use crate::models::checkpoint::config_error;
use crate::models::dit::{Dit, DitShape, FieldNames, GPT2, LOG_LINEAR_EPS, NoiseInput};
use crate::models::fields;
use crate::models::registry::Family;
use crate::models::weights::Weights;
use crate::models::{
    Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation, RaggedBatch, RowInput,
    generation_config,
};

/// The registry's line.
pub(super) const FAMILY: Family = Family {
    name: "sedd",
    architectures: &["SEDD"],
    model_types: &["sedd"],
    inputs: &["sigma"],
    spec: |config| SeddConfig::from_json(config)?.spec(),
    tensors: |config| Ok(SeddConfig::from_json(config)?.shape()?.tensors("")),
    unused: &[],
    generation_config: generation_config::take_over,
    ends_texts: false,
    expand_token: None,
    tokenizer: Some(GPT2),
    load: |config, spec, weights| {
        Ok(Box::new(Sedd::new(
            &SeddConfig::from_json(config)?,
            spec,
            weights,
        )?))
    },
};

const FIELDS: FieldNames = FieldNames {
    vocab: "tokens",
    hidden: "model.hidden_size",
    blocks: "model.n_blocks",
    heads: "model.n_heads",
    length: "model.length",
    cond_dim: "model.cond_dim",
};

/// Whether a config.json is a training configuration of the official code: it says what graph the
/// tokens jump on.
pub(super) fn is_training_configuration(config: &Value) -> bool {
    config["graph"]["type"].is_string() && config["model"].is_object()
}

/// The parts of the configuration that decide the network.
#[derive(Debug, Clone, Deserialize)]
struct SeddConfig {
    /// Tokens of the tokenizer; the mask is one more.
    tokens: usize,
    graph: Graph,
    noise: Noise,
    model: Model,
}

#[derive(Debug, Clone, Deserialize)]
struct Graph {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Noise {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    sigma_min: f64,
    #[serde(default)]
    sigma_max: f64,
}

impl Noise {
    /// The schedules of the official `noise_lib.py`.
    fn schedule(&self) -> Result<Schedule, ModelError> {
        let schedule = match self.kind.as_str() {
            // α(t) = 1 − (1 − 10⁻³) t
            "loglinear" => Schedule::table(&[1.0, LOG_LINEAR_EPS]),
            "geometric" => Schedule::geometric(self.sigma_min, self.sigma_max),
            other => {
                return Err(config_error(format!(
                    "noise.type is {other:?}; only \"loglinear\" and \"geometric\" are supported"
                )));
            }
        };
        schedule.map_err(|error| config_error(format!("noise: {error}")))
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Model {
    #[serde(rename = "type", default = "ddit")]
    kind: String,
    hidden_size: usize,
    cond_dim: usize,
    length: usize,
    n_blocks: usize,
    n_heads: usize,
    scale_by_sigma: bool,
}

fn ddit() -> String {
    "ddit".into()
}

impl SeddConfig {
    fn from_json(config: &Value) -> Result<Self, ModelError> {
        let config: Self = fields::read(config)?;
        let graph = &config.graph.kind;
        if !["absorb", "uniform"].contains(&graph.as_str()) {
            return Err(config_error(format!(
                "graph.type is {graph:?}; only \"absorb\" and \"uniform\" are supported"
            )));
        }
        if config.model.kind != ddit() {
            return Err(config_error(format!(
                "model.type is {:?}; only \"ddit\" is supported",
                config.model.kind
            )));
        }
        if config.model.scale_by_sigma && !config.is_absorbing() {
            return Err(config_error(
                "model.scale_by_sigma is true; with graph.type \"uniform\" only false is supported"
                    .into(),
            ));
        }
        if config.tokens == 0 {
            return Err(config_error("tokens is 0; it must be at least 1".into()));
        }
        Ok(config)
    }

    fn is_absorbing(&self) -> bool {
        self.graph.kind == "absorb"
    }

    fn shape(&self) -> Result<DitShape, ModelError> {
        let mask = usize::from(self.is_absorbing());
        let model = &self.model;
        let shape = DitShape {
            vocab: self.tokens.saturating_add(mask),
            hidden: model.hidden_size,
            blocks: model.n_blocks,
            heads: model.n_heads,
            length: model.length,
            noise: NoiseInput::Given {
                cond_dim: model.cond_dim,
            },
        };
        shape.check(&FIELDS)?;
        Ok(shape)
    }

    fn spec(&self) -> Result<ModelSpec, ModelError> {
        let shape = self.shape()?;
        let corruption = if self.is_absorbing() {
            Corruption::Absorbing {
                mask_token: shape.last_token(),
            }
        } else {
            Corruption::Uniform
        };
        let revision = match corruption {
            Corruption::Absorbing { .. } => Revision::None,
            Corruption::Uniform => Revision::Renoise,
        };
        Ok(ModelSpec {
            noise_schedule: Some(self.noise.schedule()?),
            default_plan: DecodePlan {
                revision,
                ..preset::sedd_analytic()
            },
            ..shape.spec(FAMILY.name, corruption, Parameterisation::LogScore)
        })
    }
}

/// A SEDD network.
struct Sedd {
    dit: Dit,
    scale_by_sigma: bool,
}

impl Sedd {
    fn new(config: &SeddConfig, spec: ModelSpec, weights: Weights) -> Result<Self, ModelError> {
        Ok(Self {
            dit: Dit::new(spec, &config.shape()?, weights)?,
            scale_by_sigma: config.model.scale_by_sigma,
        })
    }

    /// ln(e^σ − 1) + ln(V − 1): what the absorbing process makes of a uniform prediction, so that the
    /// network's own output is about zero on average.
    fn scale(&self, row: &RowInput) -> Result<f32, ModelError> {
        match row.sigma {
            Some(sigma) if sigma.is_finite() && sigma > 0.0 => {
                let others = (self.spec().vocab_size - 1) as f64;
                Ok((f64::from(sigma).exp_m1().ln() + others.ln()) as f32)
            }
            Some(sigma) => Err(ModelError::Batch(format!(
                "sigma is {sigma}; a score needs one that is finite and greater than 0"
            ))),
            None => Err(ModelError::Batch(
                "a row has no sigma; a score depends on the noise level".into(),
            )),
        }
    }
}

impl Denoiser for Sedd {
    fn spec(&self) -> &ModelSpec {
        self.dit.spec()
    }

    fn device(&self) -> &Device {
        self.dit.device()
    }

    fn is_batch_invariant(&self) -> bool {
        self.dit.is_batch_invariant()
    }

    fn dtype(&self) -> DType {
        self.dit.dtype()
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        self.dit.hidden(batch, pool)
    }

    /// The output layer alone: the log-score up to the scale of its noise level, and with an entry for
    /// a row's own token that means nothing.
    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        self.dit.head(hidden)
    }

    /// The log-score, in f32: with `scale_by_sigma`, the head's output − ln(e^σ − 1) − ln(V − 1); 0 at a row's
    /// own token.
    fn head_rows(&self, hidden: &Tensor, rows: &[RowInput]) -> Result<Tensor, ModelError> {
        let mut scores = self.head(hidden)?.to_dtype(DType::F32)?;
        let (count, device) = (scores.dim(0)?, self.device());
        if rows.len() != count {
            return Err(ModelError::Batch(format!(
                "{count} hidden states, but what {} rows were computed from",
                rows.len()
            )));
        }
        if self.scale_by_sigma {
            let scales: Vec<f32> = rows
                .iter()
                .map(|row| self.scale(row))
                .collect::<Result<_, _>>()?;
            scores = scores.broadcast_sub(&transfer::to_device(&scales, (count, 1), device)?)?;
        }
        let own: Vec<u32> = rows.iter().map(|row| row.token).collect();
        let own = transfer::to_device(&own, (count, 1), device)?;
        let zeros = Tensor::zeros((count, 1), DType::F32, device)?;
        Ok(scores.scatter(&own, &zeros, 1)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::registry::family_of;

    /// louaaron/sedd-small, the parts that the family reads and some that it does not.
    fn released() -> Value {
        json!({
            "ngpus": 8, "tokens": 50257, "training": {"batch_size": 512, "ema": 0.9999},
            "graph": {"type": "absorb", "file": "data", "report_all": false},
            "noise": {"type": "loglinear", "sigma_min": 0.0001, "sigma_max": 20},
            "sampling": {"predictor": "euler", "steps": 128, "noise_removal": true},
            "model": {
                "name": "small", "type": "ddit", "hidden_size": 768, "cond_dim": 128, "length": 1024,
                "n_blocks": 12, "n_heads": 12, "scale_by_sigma": true, "dropout": 0.1
            }
        })
    }

    fn spec(config: &Value) -> Result<ModelSpec, ModelError> {
        (family_of(config)?.spec)(config)
    }

    #[test]
    fn the_released_models_have_their_published_sizes_and_mask() {
        let small = spec(&released()).unwrap();
        assert_eq!(small.parameters, 169_627_218);
        assert_eq!(small.mask_token(), Some(50257));
        assert_eq!(small.parameterisation, Parameterisation::LogScore);
        assert!(small.noise_conditioned);

        let mut medium = released();
        medium["model"]["hidden_size"] = 1024.into();
        medium["model"]["n_blocks"] = 24.into();
        medium["model"]["n_heads"] = 16.into();
        assert_eq!(spec(&medium).unwrap().parameters, 424_477_010);
    }

    #[test]
    fn a_uniform_model_has_no_mask() {
        let mut config = released();
        config["graph"]["type"] = "uniform".into();
        config["model"]["scale_by_sigma"] = false.into();
        let spec = spec(&config).unwrap();
        assert_eq!(spec.corruption, Corruption::Uniform);
        assert_eq!((spec.mask_token(), spec.vocab_size), (None, 50257));
    }

    #[test]
    fn a_network_that_is_not_built_is_refused_by_name() {
        let edited = |edit: fn(&mut Value)| {
            let mut config = released();
            edit(&mut config);
            spec(&config).unwrap_err().to_string()
        };
        let error = edited(|config| config["graph"]["type"] = "uniform".into());
        assert!(error.contains("model.scale_by_sigma"), "{error}");
        let error = edited(|config| config["graph"]["type"] = "roulette".into());
        assert!(
            error.contains("roulette") && error.contains("absorb"),
            "{error}"
        );
        let error = edited(|config| config["model"]["n_blocks"] = 0.into());
        assert!(error.contains("model.n_blocks is 0"), "{error}");
        let error = edited(|config| config["tokens"] = 0.into());
        assert!(error.contains("tokens is 0"), "{error}");
    }
}
