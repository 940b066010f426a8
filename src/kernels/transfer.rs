//! Lists of the host as tensors of a device, and back.

use bytemuck::Pod;
use candle_core::shape::ShapeWithOneHole;
use candle_core::{Device, Result, Tensor, WithDType};
#[cfg(feature = "cuda")]
use candle_core::{
    Storage,
    cuda_backend::{CudaDType, CudaStorage, cudarc::driver::DeviceRepr},
    op::BackpropOp,
};

#[cfg(feature = "cuda")]
use super::staging::Staging;

/// What lists that go to any device and back are made of.
#[cfg(feature = "cuda")]
pub trait Number: WithDType + Pod + CudaDType + DeviceRepr {}
#[cfg(feature = "cuda")]
impl<T: WithDType + Pod + CudaDType + DeviceRepr> Number for T {}

/// What lists that go to any device and back are made of.
#[cfg(not(feature = "cuda"))]
pub trait Number: WithDType + Pod {}
#[cfg(not(feature = "cuda"))]
impl<T: WithDType + Pod> Number for T {}

/// A tensor of `list`: [`Tensor::from_slice`], which to a CUDA device goes through page-locked memory.
///
/// # Errors
/// If `list` is not as long as `shape` says, or the device has no memory for it or fails.
pub fn to_device<T: Number>(
    list: &[T],
    shape: impl ShapeWithOneHole,
    device: &Device,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let shape = shape.into_shape(list.len())?;
        let slice = Staging::of(device)?.upload(list)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
        return Ok(Tensor::from_storage(
            storage,
            shape,
            BackpropOp::none(),
            false,
        ));
    }
    Tensor::from_slice(list, shape, device)
}

/// The numbers of `tensor` in the order of its rows, once they are computed: from a CUDA device through page-locked
/// memory.
///
/// # Errors
/// If `tensor` is of other numbers, or its device fails.
pub fn to_host<T: Number>(tensor: &Tensor) -> Result<Vec<T>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = tensor.device() {
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("a tensor of a CUDA device is not in its memory");
        };
        let first = layout.start_offset();
        let count = layout.shape().elem_count();
        let numbers = storage.as_cuda_slice::<T>()?.slice(first..first + count);
        return Staging::of(device)?.read(&numbers);
    }
    tensor.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back_as_it_went_in_the_order_of_rows() -> Result<()> {
        let list: Vec<u32> = (0..6).collect();
        let tensor = to_device(&list, (2, ()), &Device::Cpu)?;
        assert_eq!(tensor.dims(), [2, 3]);
        assert_eq!(to_host::<u32>(&tensor)?, list);
        assert_eq!(to_host::<u32>(&tensor.t()?)?, [0, 3, 1, 4, 2, 5]);
        assert!(to_device(&list, 5, &Device::Cpu).is_err());
        assert!(to_host::<f32>(&tensor).is_err());
        Ok(())
    }
}
