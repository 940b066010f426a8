//! The entries of tensors that lie in the host's memory.

use candle_core::{Result, Storage, Tensor};

/// The entries of f32 tensors on the CPU, row-major; not copied where they are contiguous.
///
/// # Errors
/// If a tensor is on another device or of another type.
pub(crate) fn with_floats<const N: usize, T>(
    tensors: [&Tensor; N],
    read: impl FnOnce([&[f32]; N]) -> T,
) -> Result<T> {
    let tensors = tensors.map(Tensor::contiguous);
    let tensors: Vec<Tensor> = tensors.into_iter().collect::<Result<_>>()?;
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = [[].as_slice(); N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else {
            candle_core::bail!("an operation of the CPU was given a tensor of another device");
        };
        let start = layout.start_offset();
        *slice = &storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()];
    }
    Ok(read(slices))
}
