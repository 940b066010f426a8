//! What a network reads, without reading it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use candle_core::{DType, Device, Result, Tensor};

use super::{Shapes, Source, WeightFormat};

/// A source that notes what is asked of it. Its tensors are views of a single zero, so that the largest
/// network takes no memory.
#[derive(Default)]
pub(in crate::models) struct Recorder {
    tensors: RefCell<Shapes>,
    linear: RefCell<BTreeSet<String>>,
    quantized_copies: RefCell<Vec<[usize; 2]>>,
}

impl Recorder {
    /// Name and shape of every tensor that was asked for.
    pub fn shapes(self) -> Shapes {
        self.tensors.into_inner()
    }

    /// Bytes that those tensors take when they are held as `format`.
    pub fn bytes(&self, format: WeightFormat) -> usize {
        let linear = self.linear.borrow();
        let tensors = self.tensors.borrow();
        let bytes = tensors.iter().map(|(name, shape)| match shape[..] {
            [ref to @ .., from] if linear.contains(name) => {
                format.linear_bytes(to.iter().product(), from)
            }
            _ => shape.iter().product::<usize>() * format.dtype().size_in_bytes(),
        });
        let copies = self.quantized_copies.borrow();
        let copies = copies
            .iter()
            .map(|[to, from]| format.linear_bytes(*to, *from));
        bytes.chain(copies).fold(0, usize::saturating_add)
    }
}

impl Source for Recorder {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.tensors
            .borrow_mut()
            .insert(name.to_owned(), shape.to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.linear.borrow_mut().insert(name.to_owned());
        self.tensor(name, &shape, dtype, device)
    }

    fn note_linear(&self, name: &str) {
        self.linear.borrow_mut().insert(name.to_owned());
    }

    fn note_quantized_copy(&self, shape: [usize; 2]) {
        self.quantized_copies.borrow_mut().push(shape);
    }

    fn is_hollow(&self) -> bool {
        true
    }
}
