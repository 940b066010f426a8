//! Page-locked memory of the host, through which lists go to a CUDA device and come back.
//!
//! A copy from or to such memory is asynchronous by the driver's contract: the device reads and writes it after the
//! call. So what is to be copied is written to a [`Ring`] whose parts are not written again before an event says that
//! the copies from them are over, and what is copied back is read after a wait for an event of its own.
//!
//! cudarc's `PinnedHostSlice` does not serve: it copies all of its length, and its event is not recorded where cudarc's
//! tracking of events is off, as it is on our devices ([`prepare`](super::cuda)).

use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::result::malloc_host;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, CudaView, DeviceRepr, DriverError,
};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};

use super::packing::ALIGNMENT;
use super::ring::{Reader, Ring};

/// Parts of the ring that lists go to the device from.
const PARTS: usize = 4;

/// Bytes of a part, the most that a list may have to go by the ring: a step's lists are some kilobytes, with bits of
/// allowed tokens for a block of slots half a megabyte.
const PART_BYTES: usize = 1 << 20;

/// Bytes that are read from the device at once: what is found for 256 rows has 11 KiB, the most probable tokens of each
/// 40 KiB.
const READ_BYTES: usize = 64 << 10;

/// The page-locked memory of one device: 4 MiB and 64 KiB, which the process keeps, as it keeps the device.
pub struct Staging {
    stream: Arc<CudaStream>,
    uploads: Mutex<Uploads>,
    reads: Mutex<Reads>,
}

struct Uploads {
    memory: &'static mut [u8],
    ring: Ring,
    copies: Copies,
}

/// The copies from the ring, all on one stream.
struct Copies {
    stream: Arc<CudaStream>,
    /// Of each part, recorded when it is left.
    left: Vec<CudaEvent>,
}

struct Reads {
    memory: &'static mut [u8],
    /// Recorded after each copy.
    copied: CudaEvent,
}

impl Reader for Copies {
    type Error = DriverError;

    fn mark(&mut self, part: usize) -> std::result::Result<(), DriverError> {
        self.left[part].record(&self.stream)
    }

    fn wait(&mut self, part: usize) -> std::result::Result<(), DriverError> {
        self.left[part].synchronize()
    }
}

impl Staging {
    /// That of `device`, allocated when it is first asked for.
    ///
    /// # Errors
    /// If there is no page-locked memory to be had.
    pub fn of(device: &CudaDevice) -> Result<&'static Self> {
        static ALL: Mutex<Vec<(DeviceId, &'static Staging)>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, staging)) = all.iter().find(|(id, _)| *id == device.id()) {
            return Ok(staging);
        }
        let staging: &Self = Box::leak(Box::new(Self::new(device.cuda_stream())?));
        all.push((device.id(), staging));
        Ok(staging)
    }

    fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let event = || context.new_event(None).w();
        let ring = Ring::new(PARTS, PART_BYTES);
        let uploads = Uploads {
            memory: page_locked(context, ring.bytes())?,
            ring,
            copies: Copies {
                stream: stream.clone(),
                left: (0..PARTS).map(|_| event()).collect::<Result<_>>()?,
            },
        };
        let reads = Reads {
            memory: page_locked(context, READ_BYTES)?,
            copied: event()?,
        };
        Ok(Self {
            stream,
            uploads: Mutex::new(uploads),
            reads: Mutex::new(reads),
        })
    }

    /// `list` on the device, by one copy that the host does not wait for. One of more than a mebibyte goes from where it
    /// is, which the driver has read when the call returns, since that memory is pageable.
    ///
    /// # Errors
    /// If the device has no memory for it, or fails.
    pub fn upload<T: Pod + DeviceRepr>(&self, list: &[T]) -> Result<CudaSlice<T>> {
        const { assert!(align_of::<T>() <= ALIGNMENT) };
        // SAFETY: the copy writes all of it, and whatever reads it comes after the copy on the stream.
        let mut uploaded = unsafe { self.stream.alloc::<T>(list.len()) }.w()?;
        if list.is_empty() {
            return Ok(uploaded);
        }
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let Uploads {
            memory,
            ring,
            copies,
        } = &mut *uploads;
        // Marks and copies are asked for under one lock and on one stream: the event of a part comes after every copy
        // from it, of steps that fail on their way as well. A copy whose call fails may yet take place; its bytes are
        // taken all the same.
        match ring.place(size_of_val(list), copies).w()? {
            Some(place) => {
                let staged: &mut [T] = bytemuck::cast_slice_mut(&mut memory[place]);
                staged.copy_from_slice(list);
                self.stream.memcpy_htod(&*staged, &mut uploaded).w()?;
            }
            None => {
                drop(uploads);
                self.stream.memcpy_htod(list, &mut uploaded).w()?;
            }
        }
        Ok(uploaded)
    }

    /// What `from` holds once all that was asked of the device before is done, by one copy and one wait for each 64 KiB.
    ///
    /// # Errors
    /// If the device fails, in this or in anything that was asked of it before.
    pub fn read<T: Pod + DeviceRepr>(&self, from: &CudaView<T>) -> Result<Vec<T>> {
        const { assert!(size_of::<T>() > 0 && size_of::<T>() <= READ_BYTES) };
        let mut list = Vec::with_capacity(from.len());
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let Reads { memory, copied } = &mut *reads;
        while list.len() < from.len() {
            let count = (from.len() - list.len()).min(READ_BYTES / size_of::<T>());
            let piece = from.slice(list.len()..list.len() + count);
            let staged: &mut [T] = bytemuck::cast_slice_mut(&mut memory[..count * size_of::<T>()]);
            // A copy of a read that failed may still be under way to this memory: it is before this one on the stream,
            // so what is there after the wait is this one's.
            self.stream.memcpy_dtoh(&piece, staged).w()?;
            copied.record(&self.stream).w()?;
            copied.synchronize().w()?;
            list.extend_from_slice(staged);
        }
        Ok(list)
    }
}

/// Page-locked memory of the host, zeroed. It is never freed, so that no copy can be under way to or from memory that
/// is another's by now.
fn page_locked(context: &CudaContext, bytes: usize) -> Result<&'static mut [u8]> {
    context.bind_to_thread().w()?;
    // SAFETY: without flags any size is allowed; a failure is told.
    let memory = match unsafe { malloc_host(bytes, 0) } {
        Ok(memory) => memory.cast::<u8>(),
        Err(error) => candle_core::bail!(
            "the host has no {} KiB of page-locked memory for copies to and from the device ({error}); give it or its \
             container more memory",
            bytes >> 10
        ),
    };
    // SAFETY: the driver gave these bytes to nobody else and does not take them back; they are written before they are
    // read.
    unsafe {
        memory.write_bytes(0, bytes);
        Ok(slice::from_raw_parts_mut(memory, bytes))
    }
}
