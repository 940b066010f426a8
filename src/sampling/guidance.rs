//! Classifier-free guidance: logits that are led away from others.

use candle_core::{DType, Result, Tensor};

use crate::kernels::transfer;

/// What leads rows of logits c: u + (w + 1)(c − u) takes their place.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// u `[rows, vocab]`, of the type of c.
    pub unconditional: Tensor,
    /// w of each row; `None` for a row that is not guided, whose u is its c.
    pub scales: Vec<Option<f32>>,
}

impl Guidance {
    /// The guided logits `[rows, vocab]`, in f32.
    ///
    /// # Errors
    /// If `conditional` is not as u is, or the device fails.
    pub fn apply(&self, conditional: &Tensor) -> Result<Tensor> {
        let (rows, device) = (self.scales.len(), conditional.device());
        let weights: Vec<f32> = (self.scales.iter().copied().map(weight)).collect();
        let weights = transfer::to_device(&weights, (rows, 1), device)?;
        let is_guided: Vec<u8> = (self.scales.iter().map(|scale| scale.is_some().into())).collect();
        let is_guided = transfer::to_device(&is_guided, (rows, 1), device)?;
        let conditional = conditional.to_dtype(DType::F32)?;
        let unconditional = self.unconditional.to_dtype(DType::F32)?;
        let direction = (&conditional - &unconditional)?;
        let guided = (unconditional + direction.broadcast_mul(&weights)?)?;
        // What is not guided stays as it is: c − c is NaN where c is −∞.
        (is_guided.broadcast_as(conditional.shape())?).where_cond(&guided, &conditional)
    }
}

/// w + 1 of a row; 1 without guidance.
pub(super) fn weight(scale: Option<f32>) -> f32 {
    scale.map_or(1.0, |scale| scale + 1.0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_row_that_is_not_guided_stays_as_it_is_beside_one_that_is() {
        let c = [[1.0f32, f32::NEG_INFINITY], [2.0, -1.0]];
        let u = [[1.0f32, f32::NEG_INFINITY], [1.0, 1.0]];
        let guidance = Guidance {
            unconditional: Tensor::new(&u, &Device::Cpu).unwrap(),
            scales: vec![None, Some(0.5)],
        };
        let guided = guidance.apply(&Tensor::new(&c, &Device::Cpu).unwrap());
        let expected = [vec![1.0, f32::NEG_INFINITY], vec![2.5, -2.0]];
        assert_eq!(guided.unwrap().to_vec2::<f32>().unwrap(), expected);
    }
}
