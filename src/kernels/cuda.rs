//! Kernels on a CUDA device, on the stream that candle computes on.

use candle_core::cuda_backend::cudarc::driver::result::{device as driver, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
use candle_core::cuda_backend::cudarc::driver::sys::cuDriverGetVersion;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaView, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDevice, WrapErr};

use super::packing::{Packing, Part};
use super::staging::Staging;
use super::{Argument, Launch, LaunchError, Machine};

/// The modules that `build.rs` compiles: the names of their kernels begin with the module's, except for
/// those of `layers`.
const MODULES: [(&str, &str); 8] = [
    (
        "attention_merge",
        include_str!(concat!(env!("OUT_DIR"), "/attention_merge.ptx")),
    ),
    (
        "categorical",
        include_str!(concat!(env!("OUT_DIR"), "/categorical.ptx")),
    ),
    (
        "corrupt",
        include_str!(concat!(env!("OUT_DIR"), "/corrupt.ptx")),
    ),
    (
        "experts",
        include_str!(concat!(env!("OUT_DIR"), "/experts.ptx")),
    ),
    (
        "long_attention",
        include_str!(concat!(env!("OUT_DIR"), "/long_attention.ptx")),
    ),
    (
        "posterior",
        include_str!(concat!(env!("OUT_DIR"), "/posterior.ptx")),
    ),
    (
        "ragged_attention",
        include_str!(concat!(env!("OUT_DIR"), "/ragged_attention.ptx")),
    ),
    (
        "layers",
        include_str!(concat!(env!("OUT_DIR"), "/layers.ptx")),
    ),
];

/// The version of CUDA that this build is compiled with, as `cuDriverGetVersion` tells the driver's: 13.1 is 13010.
const CUDA_VERSION: &str = env!("UNMASK_CUDA_VERSION");

/// Refuses a driver that is older than this build's CUDA: it cannot read its kernels, and says so only when the first one
/// is loaded.
///
/// # Errors
/// Names both versions.
pub(super) fn check_driver() -> candle_core::Result<()> {
    let needed: i32 = CUDA_VERSION.parse().map_err(candle_core::Error::wrap)?;
    let mut found = 0;
    // SAFETY: the driver writes one number, and may be asked before anything else.
    unsafe { cuDriverGetVersion(&raw mut found) }.result().w()?;
    if found < needed {
        candle_core::bail!(
            "the NVIDIA driver of this machine is for CUDA {}, and this build needs one for CUDA {} or later: update the \
             driver",
            version(found),
            version(needed)
        );
    }
    Ok(())
}

fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// A kernel of this crate, loaded on `device`.
///
/// # Errors
/// If there is no such kernel, or the driver cannot compile it for this card.
pub fn function(device: &CudaDevice, kernel: &str) -> candle_core::Result<CudaFunction> {
    let [.., layers] = MODULES;
    let (module, ptx) = MODULES
        .into_iter()
        .find(|(module, _)| kernel.starts_with(module))
        .unwrap_or(layers);
    let function = device.get_or_load_custom_func(kernel, &format!("unmask_{module}"), ptx)?;
    Ok(function.into_cuda_function())
}

/// Makes a device that has one stream ready for many short launches.
///
/// - Memory that is freed stays with the process. By default the driver takes it back whenever the host waits for
///   the device, so that every step would ask for all of its memory again.
/// - cudarc orders the uses of memory between streams by two events for each allocation, which are recorded and
///   waited for at every launch. One stream is in order by itself.
/// - Page-locked memory for copies is allocated now, so that a host without any says so at the start.
///
/// # Errors
/// If the driver does not allow it.
pub(super) fn prepare(device: &CudaDevice) -> candle_core::Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    // SAFETY: all operations of a card have one stream, since `cuda_device` makes one device of it for the process.
    unsafe { context.disable_event_tracking() };
    if context.has_async_alloc() {
        let mut threshold = u64::MAX;
        // SAFETY: the context's device; the attribute is a u64.
        unsafe {
            let pool = driver::get_default_mem_pool(context.cu_device()).w()?;
            mem_pool::set_attribute(
                pool,
                CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            )
            .w()?;
        }
    }
    Staging::of(device)?;
    Ok(())
}

/// As [`super::release_unused`].
pub(super) fn release_unused(device: &CudaDevice) -> candle_core::Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    let context = stream.context();
    if context.has_async_alloc() {
        // SAFETY: the context's device, and the pool that its streams allocate from.
        unsafe {
            let pool = driver::get_default_mem_pool(context.cu_device()).w()?;
            mem_pool::trim_to(pool, 0).w()?;
        }
    }
    Ok(())
}

/// As [`super::used_memory`].
pub(super) fn used_memory(device: &CudaDevice) -> candle_core::Result<usize> {
    let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(total - free)
}

/// As the driver takes it.
pub fn config(launch: &Launch) -> LaunchConfig {
    let [grid, block] = [launch.grid, launch.block].map(|[x, y, z]| (x, y, z));
    LaunchConfig {
        grid_dim: grid,
        block_dim: block,
        shared_mem_bytes: 0,
    }
}

/// The lists of a [`Packing`], on a device.
pub struct Uploaded(CudaSlice<u8>);

impl Uploaded {
    /// Takes them there, in one copy on the stream that candle computes on.
    ///
    /// # Errors
    /// If the device has no memory for them, or fails.
    pub fn new(device: &CudaDevice, packing: &Packing) -> candle_core::Result<Self> {
        Ok(Self(Staging::of(device)?.upload(packing.bytes())?))
    }

    /// Bytes of the device that they take.
    pub fn bytes(&self) -> usize {
        self.0.num_bytes()
    }

    /// A list, of which `part` is to say where it is in the packing.
    ///
    /// # Errors
    /// If the packing has no such part.
    pub fn list<T: DeviceRepr>(&self, part: Part<T>) -> candle_core::Result<CudaView<'_, T>> {
        let bytes = self.0.try_slice(part.bytes());
        // SAFETY: the bytes are those of as many `T`, aligned as a `T` is, of a packing that `Packing::push` wrote them to.
        let list = bytes.and_then(|bytes| unsafe { bytes.transmute(part.len()) });
        match list {
            Some(list) => Ok(list),
            None => candle_core::bail!("a list of another packing was asked for"),
        }
    }
}

/// A CUDA device that runs kernels on memory of the host, copying it there and back.
pub struct CudaMachine {
    device: CudaDevice,
}

/// An argument on the device.
enum Placed {
    Memory(CudaSlice<u8>),
    Addresses(
        CudaSlice<u64>,
        #[expect(dead_code, reason = "kept while the kernel runs")] Vec<CudaSlice<u8>>,
    ),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl CudaMachine {
    /// Runs kernels on `device`.
    pub fn new(device: CudaDevice) -> Self {
        Self { device }
    }

    /// # Safety
    /// As [`Machine::launch`].
    unsafe fn run(&self, launch: &Launch, arguments: &mut [Argument]) -> candle_core::Result<()> {
        let function = function(&self.device, launch.kernel)?;
        // An empty list is never read, but has to be somewhere.
        let upload = |bytes: &[u8]| match bytes.is_empty() {
            true => self.device.alloc_zeros(1),
            false => self.device.clone_htod(bytes),
        };
        let stream = self.device.cuda_stream();
        let placed = arguments.iter().map(|argument| {
            Ok(match argument {
                Argument::In(bytes) => Placed::Memory(upload(bytes)?),
                Argument::Out(bytes) => Placed::Memory(upload(bytes)?),
                Argument::Addresses(all) => {
                    let memory = all.iter().map(|bytes| upload(bytes));
                    let memory = memory.collect::<candle_core::Result<Vec<_>>>()?;
                    let address = |memory: &CudaSlice<u8>| memory.device_ptr(&stream).0;
                    let addresses: Vec<u64> = memory.iter().map(address).collect();
                    Placed::Addresses(self.device.clone_htod(&addresses)?, memory)
                }
                Argument::U32(number) => Placed::U32(*number),
                Argument::U64(number) => Placed::U64(*number),
                Argument::F32(number) => Placed::F32(*number),
            })
        });
        let placed = placed.collect::<candle_core::Result<Vec<_>>>()?;
        let mut builder = stream.launch_builder(&function);
        for argument in &placed {
            match argument {
                Placed::Memory(memory) => builder.arg(memory),
                Placed::Addresses(addresses, _) => builder.arg(addresses),
                Placed::U32(number) => builder.arg(number),
                Placed::U64(number) => builder.arg(number),
                Placed::F32(number) => builder.arg(number),
            };
        }
        // SAFETY: the caller passes the kernel's parameters in their order, with memory as large as it
        // reads and writes; each is on the device as it was on the host.
        unsafe { builder.launch(config(launch)) }.w()?;
        for (argument, placed) in arguments.iter_mut().zip(&placed) {
            if let (Argument::Out(bytes), Placed::Memory(memory)) = (argument, placed)
                && !bytes.is_empty()
            {
                stream.memcpy_dtoh(memory, *bytes).w()?;
            }
        }
        stream.synchronize().w()
    }
}

impl Machine for CudaMachine {
    fn name(&self) -> String {
        let stream = self.device.cuda_stream();
        let name = stream.context().name();
        name.unwrap_or_else(|error| format!("a CUDA device that does not tell its name ({error})"))
    }

    unsafe fn launch(
        &mut self,
        launch: &Launch,
        arguments: &mut [Argument],
    ) -> Result<(), LaunchError> {
        // SAFETY: the caller promises what `run` asks for.
        let ran = unsafe { self.run(launch, arguments) };
        ran.map_err(|error| LaunchError {
            kernel: launch.kernel,
            reason: error.to_string(),
        })
    }
}
