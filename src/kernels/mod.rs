//! Launches of the kernels under `kernels/`, on whatever runs them: a CUDA device, or the shim that a host
//! compiler builds them with. Copies of lists to a device and back ([`transfer`]).

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod packing;
pub mod ring;
#[cfg(feature = "cuda")]
pub mod staging;
pub mod transfer;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytemuck::{NoUninit, Pod};
use candle_core::Device;

/// Threads of a block that handles a row.
pub const ROW_THREADS: u32 = 512;

/// Numbers that a thread handles where each is computed by itself: 16 bytes in half precision.
const NUMBERS_OF_THREAD: usize = 8;

/// The CUDA device of this number, with one stream for all threads.
///
/// candle's `Device::new_cuda` computes on the default stream of whichever thread calls. Weights and caches are made
/// on one thread and used on another, and nothing orders the streams of two threads: a step might read what is not
/// written yet.
///
/// All callers get the same device: candle lets tensors of two handles of one card meet, whose streams nothing orders.
///
/// # Errors
/// If there is no such device, its driver is older than this build's CUDA, or this build is without the feature `cuda`.
pub fn cuda_device(ordinal: usize) -> candle_core::Result<Device> {
    static DEVICES: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = devices.get(&ordinal) {
        return Ok(device.clone());
    }
    #[cfg(feature = "cuda")]
    cuda::check_driver()?;
    let device = Device::new_cuda_with_stream(ordinal)?;
    #[cfg(feature = "cuda")]
    cuda::prepare(device.as_cuda_device()?)?;
    devices.insert(ordinal, device.clone());
    Ok(device)
}

/// Gives memory that the process holds of a device and does not use back to it: when memory lacks, what libraries and
/// kernels take at their first use has to come from there. Waits for the device. Nothing is held of a CPU.
///
/// # Errors
/// If the device fails.
pub fn release_unused(device: &Device) -> candle_core::Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        cuda::release_unused(device)?;
    }
    let _ = device;
    Ok(())
}

/// Bytes of a device's memory that are not to be had: by whatever holds them, this process and others. `None` of a CPU.
///
/// # Errors
/// If the device fails.
pub fn used_memory(device: &Device) -> candle_core::Result<Option<usize>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::used_memory(device).map(Some);
    }
    let _ = device;
    Ok(None)
}

/// What a device is called in reports.
pub fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// How a kernel is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: [u32; 3],
}

impl Launch {
    /// One block of `threads` a row.
    pub fn rows(kernel: &'static str, rows: usize, threads: u32) -> Self {
        Self {
            kernel,
            grid: [rows as u32, 1, 1],
            block: [threads, 1, 1],
        }
    }

    /// A warp for each of `count` heads, in blocks of `threads`.
    pub fn warps(kernel: &'static str, count: usize, threads: u32) -> Self {
        Self::rows(kernel, count.div_ceil(threads as usize / 32), threads)
    }

    /// Blocks of `threads` for `count` numbers.
    pub fn numbers(kernel: &'static str, count: usize, threads: u32) -> Self {
        let of_block = NUMBERS_OF_THREAD * threads as usize;
        Self::rows(kernel, count.div_ceil(of_block), threads)
    }
}

/// An argument of a kernel, in the order of its parameters.
#[derive(Debug)]
pub enum Argument<'a> {
    /// Memory that the kernel reads.
    In(&'a [u8]),
    /// Memory that the kernel reads and writes.
    Out(&'a mut [u8]),
    /// Memory that holds the addresses of other memory that the kernel reads.
    Addresses(Vec<&'a [u8]>),
    /// A number.
    U32(u32),
    /// A number.
    U64(u64),
    /// A number.
    F32(f32),
}

impl<'a> Argument<'a> {
    /// Memory that the kernel reads.
    pub fn input<T: NoUninit>(values: &'a [T]) -> Self {
        Self::In(bytemuck::cast_slice(values))
    }

    /// Memory that the kernel reads and writes.
    pub fn output<T: Pod>(values: &'a mut [T]) -> Self {
        Self::Out(bytemuck::cast_slice_mut(values))
    }
}

/// Why a kernel could not be run.
#[derive(Debug, thiserror::Error)]
#[error("kernel {kernel}: {reason}")]
pub struct LaunchError {
    /// Its name.
    pub kernel: &'static str,
    /// What went wrong.
    pub reason: String,
}

/// Something that runs kernels on memory of the host, copying where it must.
pub trait Machine {
    /// What it is, in words.
    fn name(&self) -> String;

    /// Threads of a block that handles a row.
    fn row_threads(&self) -> u32 {
        ROW_THREADS
    }

    /// Runs a kernel and waits for it.
    ///
    /// # Errors
    /// If there is no such kernel or the device fails.
    ///
    /// # Safety
    /// `arguments` are the kernel's parameters, all of them, in their order and of their types. Memory is as large as
    /// what the kernel reads and writes with this grid and these threads, and numbers in it that name places name
    /// places inside.
    unsafe fn launch(
        &mut self,
        launch: &Launch,
        arguments: &mut [Argument],
    ) -> Result<(), LaunchError>;
}
