//! A group of parameters, and its update.

use candle_core::{DType, Device, Result, Tensor};

use super::arrangement::{GroupPlan, LINE, Rule};
use super::muon;
use crate::train::optimizer::Update;
use crate::train::optimizer::adamw::Coefficients;

/// What is kept of a group between steps, each number f32 and all of one length.
pub struct Group {
    plan: GroupPlan,
    /// The weights.
    pub weights: Tensor,
    /// Their moving average.
    pub average: Tensor,
    /// AdamW's first moment, or Muon's momentum.
    pub first: Tensor,
    /// AdamW's second moment.
    pub second: Option<Tensor>,
}

impl Group {
    /// A group of these numbers; Muon has no second moment.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(
        plan: &GroupPlan,
        [weights, average, first, second]: [Vec<f32>; 4],
        device: &Device,
    ) -> Result<Self> {
        let place = |values: Vec<f32>| Tensor::from_vec(values, plan.len, device);
        Ok(Self {
            plan: plan.clone(),
            weights: place(weights)?,
            average: place(average)?,
            first: place(first)?,
            second: match plan.rule {
                Rule::AdamW => Some(place(second)?),
                Rule::Muon => None,
            },
        })
    }

    /// Follows `gradient`, multiplied by the number `scale`, where `go`, a u8, is not 0; else all stays as it is.
    /// `dtype` is that of Muon's products.
    ///
    /// # Errors
    /// When the device fails. The group is then as it was.
    pub fn update(
        &mut self,
        gradient: &Tensor,
        scale: &Tensor,
        go: &Tensor,
        update: &Update,
        dtype: DType,
    ) -> Result<()> {
        let gradient = gradient.broadcast_mul(scale)?;
        let (first, second, change) = match &self.second {
            Some(second) => {
                let Coefficients {
                    keep,
                    new,
                    size,
                    root,
                    epsilon,
                } = Coefficients::new(update);
                let first = mixed(&self.first, keep[0], &gradient, new[0])?;
                let second = mixed(second, keep[1], &gradient.sqr()?, new[1])?;
                let divisor = second.sqrt()?.affine(root.into(), epsilon.into())?;
                let change = (&first / divisor)?.affine(size.into(), 0.0)?;
                (first, Some(second), change)
            }
            None => {
                let first = mixed(&self.first, muon::MOMENTUM, &gradient, 1.0)?;
                let direction = mixed(&first, muon::MOMENTUM, &gradient, 1.0)?;
                let change = muon::change(&direction, &self.plan, update.lr, dtype)?;
                (first, None, change)
            }
        };
        let keep = update.keep(self.plan.decays);
        let weights = (self.weights.affine(keep.into(), 0.0)? - change)?;
        let share = (1.0 - update.average_decay) as f32;
        let towards = (&weights - &self.average)?.affine(share.into(), 0.0)?;
        let average = (&self.average + towards)?;

        let go = go.broadcast_as(self.plan.len)?;
        let first = go.where_cond(&first, &self.first)?;
        let second = match (second, &self.second) {
            (Some(new), Some(old)) => Some(go.where_cond(&new, old)?),
            _ => None,
        };
        let weights = go.where_cond(&weights, &self.weights)?;
        let average = go.where_cond(&average, &self.average)?;
        (self.first, self.second) = (first, second);
        (self.weights, self.average) = (weights, average);
        Ok(())
    }
}

/// a x + b y
fn mixed(x: &Tensor, a: f32, y: &Tensor, b: f32) -> Result<Tensor> {
    let x = x.affine(a.into(), 0.0)?;
    if b == 1.0 {
        return x + y;
    }
    x + y.affine(b.into(), 0.0)?
}

/// The sum of the squares of a group's numbers, in f64: short sums in f32, and their sum.
///
/// candle's sum of a whole tensor is one block of threads on CUDA.
///
/// # Errors
/// When the device fails.
pub fn squares(values: &Tensor) -> Result<Tensor> {
    let lines = values.reshape(((), LINE))?.sqr()?.sum(1)?;
    lines.to_dtype(DType::F64)?.sum_all()
}
