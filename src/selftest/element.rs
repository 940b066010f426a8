//! Element types of a kernel's tensors.

use candle_core::DType;
use half::{bf16, f16};

/// A type of numbers that kernels read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    Bf16,
    F16,
}

pub(super) const ELEMENTS: [Element; 3] = [Element::F32, Element::Bf16, Element::F16];

impl Element {
    /// The kernel of this type among the names of a kernel for f32, bf16 and f16.
    pub fn kernel(self, names: [&'static str; 3]) -> &'static str {
        names[self as usize]
    }

    /// As candle has it.
    pub fn dtype(self) -> DType {
        [DType::F32, DType::BF16, DType::F16][self as usize]
    }

    /// `values` rounded to this type, as bytes.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let bytes = |value: &f32| match self {
            Self::F32 => value.to_le_bytes().to_vec(),
            Self::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            Self::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }

    /// The numbers of `bytes`.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => numbers(bytes).map(f32::from_le_bytes).collect(),
            Self::Bf16 => numbers(bytes)
                .map(|x| bf16::from_le_bytes(x).to_f32())
                .collect(),
            Self::F16 => numbers(bytes)
                .map(|x| f16::from_le_bytes(x).to_f32())
                .collect(),
        }
    }

    /// `values` rounded to this type.
    pub fn round(self, values: &[f32]) -> Vec<f32> {
        self.decode(&self.encode(values))
    }
}

/// Numbers of N bytes each.
fn numbers<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    let (numbers, _) = bytes.as_chunks();
    numbers.iter().copied()
}
