//! The mixture of experts: each row goes through a few of many MLPs.

#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod grouped;
mod router;

use candle_core::{DType, Result, Tensor};

use crate::kernels::transfer;
use crate::models::layers::{Activation, GatedMlp, Linear, product};
use crate::models::weights::Weights;

pub(crate) use router::Router;

/// A mixture of experts, with an MLP beside it that every row goes through where the family has one.
pub(crate) struct MixtureOfExperts {
    /// `[experts, hidden]`, in f32.
    gate: Tensor,
    router: Router,
    experts: Vec<GatedMlp>,
    experts_per_row: usize,
    shared: Option<GatedMlp>,
    #[cfg(feature = "cuda")]
    on_device: Option<Box<cuda::DeviceExperts>>,
}

/// What stands before an expert's number in the names of its weights, but not in those of an expert that all rows
/// go through.
pub(in crate::models) const EXPERTS: &str = ".experts.";

/// How large a mixture of experts is.
#[derive(Debug, Clone, Copy)]
pub(in crate::models) struct ExpertShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of one expert.
    pub intermediate: usize,
    /// Number of experts.
    pub experts: usize,
    /// Experts that a row goes to.
    pub per_row: usize,
}

impl MixtureOfExperts {
    /// Of a router's weight `gate` `[experts, hidden]`, in f32, and experts of which a row goes to `per_row`.
    ///
    /// # Errors
    /// If the device fails.
    pub(in crate::models) fn new(
        gate: Tensor,
        router: Router,
        experts: Vec<GatedMlp>,
        per_row: usize,
        shared: Option<GatedMlp>,
    ) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "cuda")]
            on_device: cuda::DeviceExperts::new(&router, &experts, per_row)?.map(Box::new),
            gate,
            router,
            experts,
            experts_per_row: per_row,
            shared,
        })
    }

    /// As from a checkpoint without a shared MLP: `gate` `[experts, hidden]`, in f32, and of each expert the weights
    /// gate and up `[intermediate, hidden]` and down `[hidden, intermediate]`, around an `activation`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn from_tensors(
        gate: Tensor,
        router: Router,
        activation: Activation,
        experts: Vec<[Tensor; 3]>,
        per_row: usize,
    ) -> Result<Self> {
        let experts = experts.into_iter().map(|weights| {
            let [gate, up, down] = weights.map(|weight| Linear::new(weight, None));
            GatedMlp::new(gate, up, down).with_activation(activation)
        });
        Self::new(gate, router, experts.collect(), per_row, None)
    }

    /// From `gate.weight` and `experts.E.{gate,up,down}_proj.weight`.
    pub(in crate::models) fn load(
        shape: ExpertShape,
        router: Router,
        shared: Option<GatedMlp>,
        weights: &Weights,
    ) -> Result<Self> {
        let ExpertShape {
            hidden,
            intermediate,
            experts,
            per_row,
        } = shape;
        // The choice of experts jumps: it is made in f32 whatever the weights' type.
        let gate = weights.get_as((experts, hidden), "gate.weight", DType::F32)?;
        let experts = (0..experts)
            .map(|expert| {
                GatedMlp::load(
                    hidden,
                    intermediate,
                    false,
                    weights.pp("experts").pp(expert),
                )
            })
            .collect::<Result<_>>()?;
        Self::new(gate, router, experts, per_row, shared)
    }

    /// `[rows, hidden]` → `[rows, hidden]`. The experts' outputs are summed in f32.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_by(x, x)
    }

    /// As [`MixtureOfExperts::forward`], where the experts of a row are chosen by another tensor `[rows, hidden]`.
    pub fn forward_by(&self, x: &Tensor, routed_by: &Tensor) -> Result<Tensor> {
        if x.dim(0)? == 0 {
            return Ok(x.clone());
        }
        let logits = product(&routed_by.to_dtype(DType::F32)?, &self.gate)?;
        let sum = match self.on_device(x, &logits)? {
            Some(sum) => sum,
            None => self.by_expert(x, &logits)?,
        };
        match &self.shared {
            Some(shared) => sum + shared.forward(x)?,
            None => Ok(sum),
        }
    }

    /// All of it on the device; `None` where the host has to choose.
    #[cfg(feature = "cuda")]
    fn on_device(&self, x: &Tensor, logits: &Tensor) -> Result<Option<Tensor>> {
        match &self.on_device {
            Some(experts) => experts.forward(x, logits),
            None => Ok(None),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn on_device(&self, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The host reads the logits and chooses; rows are gathered by expert, so that each expert that is used is one
    /// product.
    fn by_expert(&self, x: &Tensor, logits: &Tensor) -> Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let device = x.device();
        let mut routed = vec![Vec::new(); self.experts.len()];
        let logits = transfer::to_host::<f32>(logits)?;
        for (row, logits) in logits.chunks(self.experts.len()).enumerate() {
            for (expert, weight) in self.router.route(logits, self.experts_per_row) {
                routed[expert].push((row as u32, weight));
            }
        }
        // One upload for all experts, each of which takes its part.
        let (order, weights): (Vec<u32>, Vec<f32>) = routed.iter().flatten().copied().unzip();
        let count = order.len();
        let order = transfer::to_device(&order, count, device)?;
        let weights = transfer::to_device(&weights, (count, 1), device)?;
        let (mut outputs, mut first) = (Vec::new(), 0);
        for (expert, routed) in self.experts.iter().zip(&routed) {
            if routed.is_empty() {
                continue;
            }
            let part = |of: &Tensor| of.narrow(0, first, routed.len());
            let output = expert.forward(&x.index_select(&part(&order)?, 0)?)?;
            outputs.push(
                output
                    .to_dtype(DType::F32)?
                    .broadcast_mul(&part(&weights)?)?,
            );
            first += routed.len();
        }
        Tensor::zeros((rows, hidden), DType::F32, device)?
            .index_add(&order, &Tensor::cat(&outputs, 0)?, 0)?
            .to_dtype(x.dtype())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;

    const SHAPE: ExpertShape = ExpertShape {
        hidden: 12,
        intermediate: 7,
        experts: 8,
        per_row: 3,
    };

    /// Values in (−0.5, 0.5) without a pattern.
    fn values(seed: usize, shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|i| ((seed * 7919 + i * 104_729) as f32 * 0.618).sin() / 2.0)
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn tensors() -> HashMap<String, Tensor> {
        let mut tensors =
            HashMap::from([("gate.weight".to_owned(), values(1, &[SHAPE.experts, 12]))]);
        for expert in 0..SHAPE.experts {
            for (seed, (name, shape)) in [
                ("gate_proj", [7, 12]),
                ("up_proj", [7, 12]),
                ("down_proj", [12, 7]),
            ]
            .into_iter()
            .enumerate()
            {
                tensors.insert(
                    format!("experts.{expert}.{name}.weight"),
                    values(2 + expert * 3 + seed, &shape),
                );
            }
        }
        tensors
    }

    #[test]
    fn experts_by_groups_of_rows_equal_experts_row_by_row() {
        let tensors = tensors();
        let weights = Weights::new(&tensors, DType::F32.into(), &Device::Cpu);
        let routers = [
            Router::Softmax {
                bias: None,
                normalized: false,
                scales: None,
            },
            Router::GroupedSigmoid {
                bias: values(50, &[8]).to_vec1().unwrap(),
                groups: 4,
                kept_groups: 2,
                scale: 2.5,
            },
        ];
        for router in routers {
            for shared in [false, true] {
                let shared = shared
                    .then(|| GatedMlp::load(12, 7, false, weights.pp("experts").pp(0)).unwrap());
                let experts =
                    MixtureOfExperts::load(SHAPE, router.clone(), shared.clone(), &weights)
                        .unwrap();
                let x = values(99, &[17, 12]);
                let got: Vec<Vec<f32>> = experts.forward(&x).unwrap().to_vec2().unwrap();
                for (row, got) in got.iter().enumerate() {
                    let x = x.narrow(0, row, 1).unwrap();
                    let logits = x.matmul(&experts.gate.t().unwrap()).unwrap();
                    let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
                    let mut expected = shared.as_ref().map_or(vec![0.0; 12], |shared| {
                        shared
                            .forward(&x)
                            .unwrap()
                            .flatten_all()
                            .unwrap()
                            .to_vec1()
                            .unwrap()
                    });
                    for (expert, weight) in router.route(&logits, SHAPE.per_row) {
                        let output = experts.experts[expert].forward(&x).unwrap();
                        let output: Vec<f32> = output.flatten_all().unwrap().to_vec1().unwrap();
                        expected
                            .iter_mut()
                            .zip(output)
                            .for_each(|(e, o)| *e += weight * o);
                    }
                    for (got, expected) in got.iter().zip(&expected) {
                        assert!((got - expected).abs() < 1e-5, "{got} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_rows_give_no_rows() {
        let router = Router::Softmax {
            bias: None,
            normalized: true,
            scales: None,
        };
        let tensors = tensors();
        let weights = Weights::new(&tensors, DType::F32.into(), &Device::Cpu);
        let experts = MixtureOfExperts::load(SHAPE, router, None, &weights).unwrap();
        let x = Tensor::zeros((0, 12), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(experts.forward(&x).unwrap().dims(), [0, 12]);
    }
}
