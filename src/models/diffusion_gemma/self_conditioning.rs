//! Self-conditioning: what the network predicted in the step before joins the embeddings (Chen et al.,
//! arXiv:2208.04202).

use candle_core::{Module, Result, Tensor};

use super::config::Config;
use super::layer::mlp;
use crate::models::batch::Segment;
use crate::models::layers::{GatedMlp, RmsNorm};
use crate::models::weights::Weights;

/// norm(embeddings + mlp(norm(signal))), the outer norm without a weight (`DiffusionGemmaSelfConditioning`).
pub(super) struct SelfConditioning {
    pre_norm: RmsNorm,
    mlp: GatedMlp,
    post_norm: RmsNorm,
}

impl SelfConditioning {
    pub fn load(config: &Config, weights: Weights) -> Result<Self> {
        let hidden = config.hidden_size;
        let (dtype, device) = (weights.dtype(), weights.device());
        Ok(Self {
            pre_norm: RmsNorm::load(hidden, config.norm_eps, weights.pp("pre_norm"))?,
            post_norm: RmsNorm::without_weight(hidden, config.norm_eps, dtype, device)?,
            mlp: mlp(hidden, config.intermediate_size, weights)?,
        })
    }

    /// What the rows of `segments` begin with, `[rows, hidden]`: those that are encoded with `embedded` as it is, the
    /// others with their signal, which is zero where a segment has none.
    pub fn forward(&self, embedded: &Tensor, segments: &[Segment]) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(segments.len());
        for segment in segments.iter().filter(|segment| !segment.rows.is_empty()) {
            let rows = embedded.narrow(0, segment.rows.start, segment.rows.len())?;
            parts.push(match (segment.encodes, &segment.self_conditioning) {
                (true, _) => rows,
                // The MLP has no biases: of no signal it makes none.
                (false, None) => self.post_norm.forward(&rows)?,
                (false, Some(signal)) => {
                    let signal = signal.to_dtype(rows.dtype())?;
                    let signal = self.mlp.forward(&self.pre_norm.forward(&signal)?)?;
                    self.post_norm.forward(&(rows + signal)?)?
                }
            });
        }
        match parts.as_slice() {
            [part] => part.contiguous(),
            parts => Tensor::cat(parts, 0),
        }
    }
}
