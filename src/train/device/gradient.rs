//! The gradient of a pass.

use candle_core::{DType, Device, Result, Tensor};

use super::arrangement::{Arrangement, Place};

/// A gradient in f32, the numbers of each group in one tensor.
pub struct Gradient {
    groups: Vec<Tensor>,
}

impl Gradient {
    /// Zeros.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn zeros(arrangement: &Arrangement, device: &Device) -> Result<Self> {
        let groups = arrangement.groups.iter();
        let groups = groups.map(|plan| Tensor::zeros(plan.len, DType::F32, device));
        Ok(Self {
            groups: groups.collect::<Result<_>>()?,
        })
    }

    /// Writes that of a parameter.
    ///
    /// # Errors
    /// When it is of another shape, or the device fails.
    pub fn set(&self, place: &Place, values: &Tensor) -> Result<()> {
        if values.dims() != place.shape {
            candle_core::bail!(
                "a gradient of {:?} for a parameter of {:?}",
                values.dims(),
                place.shape
            );
        }
        let values = values.to_dtype(DType::F32)?.flatten_all()?;
        self.groups[place.group].slice_set(&values, 0, place.range.start)
    }

    /// The sum with another pass's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        let pairs = self.groups.iter().zip(&other.groups);
        Ok(Self {
            groups: pairs.map(|(a, b)| a + b).collect::<Result<_>>()?,
        })
    }

    /// The numbers of each group.
    pub fn groups(&self) -> &[Tensor] {
        &self.groups
    }
}
