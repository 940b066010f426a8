//! Safetensors files, mapped into memory one tensor at a time.
//!
//! A mapping of a whole checkpoint would count as resident memory for as long as it lives, beside the
//! copies that the device holds. So only headers are kept, and a tensor's bytes are mapped while it is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use memmap2::{Mmap, MmapOptions};
use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::{Shapes, Source, layout};
use crate::models::ModelError;
use crate::models::row_parts::row_parts;

/// Bytes of a safetensors file before its header.
const LENGTH_BYTES: usize = 8;
/// Values that one task looks at.
const CHUNK: usize = 1 << 16;
/// Entries of a matrix that are read together: 16 MB in f32.
const PART: usize = 1 << 22;

/// The opened weight files of a checkpoint.
pub(in crate::models) struct SafetensorsFiles<'a> {
    storages: Vec<Storage>,
    tensors: BTreeMap<String, Entry>,
    /// Called with the number of bytes of every tensor that was read.
    progress: &'a dyn Fn(u64),
}

enum Storage {
    Mapped { path: PathBuf, file: File },
    Static(&'static [u8]),
}

struct Entry {
    storage: usize,
    info: TensorInfo,
    /// Where the file's data begins.
    data: usize,
}

/// A tensor that holds numbers which are not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFinite {
    /// The file.
    pub file: PathBuf,
    /// The tensor's name.
    pub tensor: String,
    /// How many of its values are NaN.
    pub nan: usize,
    /// How many are infinite.
    pub infinite: usize,
    /// How many there are in all.
    pub values: usize,
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: tensor {} holds {} NaN and {} infinite values of {}",
            self.file.display(),
            self.tensor,
            self.nan,
            self.infinite,
            self.values
        )
    }
}

impl SafetensorsFiles<'static> {
    /// Opens files and reads their headers.
    ///
    /// # Errors
    /// Names the file that cannot be read, is no safetensors file, or holds a tensor that another one
    /// holds too.
    pub fn open(paths: &[PathBuf]) -> std::result::Result<Self, ModelError> {
        let mut files = Self::empty();
        for path in paths {
            let io = |source| ModelError::Io {
                path: path.clone(),
                source,
            };
            let file = File::open(path).map_err(io)?;
            // An empty file cannot be mapped.
            if file.metadata().map_err(io)?.len() == 0 {
                return Err(invalid(path, SafeTensorError::HeaderTooSmall));
            }
            // SAFETY: the mapping is read only; a checkpoint must not be changed while it is being
            // loaded, as the documentation of `--model` says.
            let mapped = unsafe { Mmap::map(&file) }.map_err(io)?;
            let header = SafeTensors::read_metadata(&mapped).map_err(|e| invalid(path, e))?;
            let path = path.clone();
            files.add(Storage::Mapped { path, file }, header)?;
        }
        Ok(files)
    }

    /// The safetensors file in `bytes`.
    ///
    /// # Errors
    /// If it is none.
    pub fn of_bytes(bytes: &'static [u8]) -> std::result::Result<Self, ModelError> {
        let mut files = Self::empty();
        let storage = Storage::Static(bytes);
        let header = SafeTensors::read_metadata(bytes).map_err(|e| invalid(storage.path(), e))?;
        files.add(storage, header)?;
        Ok(files)
    }

    fn empty() -> Self {
        Self {
            storages: Vec::new(),
            tensors: BTreeMap::new(),
            progress: &|_| {},
        }
    }

    fn add(
        &mut self,
        storage: Storage,
        (header, metadata): (usize, Metadata),
    ) -> std::result::Result<(), ModelError> {
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                storage: self.storages.len(),
                info: info.clone(),
                data: LENGTH_BYTES + header,
            };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                let other = self.storages[other.storage].path().display();
                return Err(ModelError::Invalid {
                    file: storage.path().display().to_string(),
                    reason: format!("tensor {name} is in {other} too"),
                });
            }
        }
        self.storages.push(storage);
        Ok(())
    }
}

impl<'a> SafetensorsFiles<'a> {
    /// The same files without the tensors whose names begin as one of `unused`.
    pub fn without(mut self, unused: &[&str]) -> Self {
        self.tensors
            .retain(|name, _| !unused.iter().any(|begin| name.starts_with(begin)));
        self
    }

    /// The same files; `progress` is called with the number of bytes of every tensor that is read.
    pub fn with_progress(self, progress: &'a dyn Fn(u64)) -> Self {
        Self {
            storages: self.storages,
            tensors: self.tensors,
            progress,
        }
    }

    /// Name and shape of every tensor.
    pub fn shapes(&self) -> Shapes {
        let shape = |(name, entry): (&String, &Entry)| (name.clone(), entry.info.shape.clone());
        self.tensors.iter().map(shape).collect()
    }

    /// The first tensor whose numbers are not those of weights as they are, and their type: integers, and 8-bit
    /// floats, stand for weights by a scale of their own.
    pub fn not_weights(&self) -> Option<(&str, Dtype)> {
        let plain = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];
        let mut tensors = self.tensors.iter();
        let (name, entry) = tensors.find(|(_, entry)| !plain.contains(&entry.info.dtype))?;
        Some((name, entry.info.dtype))
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let lengths = self.tensors.values().map(|entry| entry.length() as u64);
        lengths.sum()
    }

    /// The file that holds a tensor, or the first file if none does.
    pub fn file_of(&self, name: &str) -> &Path {
        let storage = self.tensors.get(name).map_or(0, |entry| entry.storage);
        self.storages
            .get(storage)
            .map_or(Path::new("model.safetensors"), Storage::path)
    }

    /// Reads every tensor and returns those that hold numbers which are not finite.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn not_finite(&self) -> std::result::Result<Vec<NotFinite>, ModelError> {
        let mut found = Vec::new();
        for (name, entry) in &self.tensors {
            let storage = &self.storages[entry.storage];
            let (nan, infinite) =
                storage.with_bytes(entry, |bytes| count_not_finite(bytes, entry.info.dtype))?;
            if nan + infinite > 0 {
                found.push(NotFinite {
                    file: storage.path().to_owned(),
                    tensor: name.clone(),
                    nan,
                    infinite,
                    values: entry.info.shape.iter().product(),
                });
            }
            (self.progress)(entry.length() as u64);
        }
        Ok(found)
    }

    fn read<T>(
        &self,
        name: &str,
        shape: &[usize],
        read: impl FnOnce(&[u8], Dtype) -> Result<T>,
    ) -> Result<T> {
        let Some(entry) = self.tensors.get(name) else {
            candle_core::bail!("tensor {name} is missing");
        };
        if entry.info.shape != shape {
            candle_core::bail!(
                "tensor {name} has shape {:?} instead of {shape:?}",
                entry.info.shape
            );
        }
        let storage = &self.storages[entry.storage];
        let value = storage
            .with_bytes(entry, |bytes| read(bytes, entry.info.dtype))
            .map_err(candle_core::Error::wrap)??;
        (self.progress)(entry.length() as u64);
        Ok(value)
    }
}

impl Entry {
    fn length(&self) -> usize {
        let (start, end) = self.info.data_offsets;
        end - start
    }
}

impl Storage {
    fn path(&self) -> &Path {
        match self {
            Self::Mapped { path, .. } => path,
            Self::Static(_) => Path::new("model.safetensors"),
        }
    }

    /// Gives `read` the bytes of a tensor.
    fn with_bytes<T>(
        &self,
        entry: &Entry,
        read: impl FnOnce(&[u8]) -> T,
    ) -> std::result::Result<T, ModelError> {
        let (start, length) = (entry.data + entry.info.data_offsets.0, entry.length());
        if length == 0 {
            return Ok(read(&[]));
        }
        match self {
            Self::Static(bytes) => Ok(read(&bytes[start..start + length])),
            Self::Mapped { path, file } => {
                // SAFETY: as in `open`.
                let mapped = unsafe {
                    MmapOptions::new()
                        .offset(start as u64)
                        .len(length)
                        .map(file)
                };
                let mapped = mapped.map_err(|source| ModelError::Io {
                    path: path.clone(),
                    source,
                })?;
                Ok(read(&mapped))
            }
        }
    }
}

impl Source for SafetensorsFiles<'_> {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.read(name, shape, |bytes, stored| {
            let view = TensorView::new(stored, shape.to_vec(), bytes)?;
            view.load(device)?.to_dtype(dtype)
        })
    }

    fn matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        if device.is_cpu() && dtype == DType::F32 {
            let read = self.read(name, &shape, |bytes, stored| {
                layout::transposed_from_bytes(bytes, stored, shape)
            })?;
            if let Some(weight) = read {
                return Ok(weight);
            }
        }
        layout::transposed(self.tensor(name, &shape, dtype, device)?)
    }

    fn for_rows(
        &self,
        name: &str,
        shape: [usize; 2],
        take: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        let [to, from] = shape;
        self.read(name, &shape, |bytes, stored| {
            let row_bytes = bytes.len() / to.max(1);
            for rows in row_parts(to, from, PART) {
                let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                let view = TensorView::new(stored, vec![rows.len(), from], bytes)?;
                take(view.load(&Device::Cpu)?.to_dtype(DType::F32)?)?;
            }
            Ok(())
        })
    }
}

fn invalid(path: &Path, error: SafeTensorError) -> ModelError {
    ModelError::Invalid {
        file: path.display().to_string(),
        reason: format!("not a valid safetensors file: {error}"),
    }
}

/// How many of the values are NaN, and how many infinite; none of types that know neither.
fn count_not_finite(bytes: &[u8], dtype: Dtype) -> (usize, usize) {
    match dtype {
        Dtype::F64 => count(bytes, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => count(bytes, f32::from_le_bytes),
        Dtype::BF16 => count(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => count(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::F8_E4M3 => count(
            bytes,
            |[b]: [u8; 1]| if b & 0x7f == 0x7f { f32::NAN } else { 0.0 },
        ),
        Dtype::F8_E5M2 => count(bytes, |[b]: [u8; 1]| match b & 0x7f {
            0x7c => f32::INFINITY,
            0x7d.. => f32::NAN,
            _ => 0.0,
        }),
        _ => (0, 0),
    }
}

fn count<const SIZE: usize>(
    bytes: &[u8],
    decode: impl Fn([u8; SIZE]) -> f32 + Sync,
) -> (usize, usize) {
    let (values, _) = bytes.as_chunks::<SIZE>();
    values
        .par_chunks(CHUNK)
        .map(|values| {
            values.iter().fold((0, 0), |(nan, infinite), value| {
                let value = decode(*value);
                (
                    nan + usize::from(value.is_nan()),
                    infinite + usize::from(value.is_infinite()),
                )
            })
        })
        .reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_comes_in_parts_of_whole_rows_that_are_all_of_it() -> Result<()> {
        let shape = [PART / (1 << 16) * 2 + 3, 1 << 16];
        let values = (0..shape[0] * shape[1]).map(|i| bf16::from_f32((i % 251) as f32));
        let bytes: Vec<u8> = values.flat_map(bf16::to_le_bytes).collect();
        let view = TensorView::new(Dtype::BF16, shape.to_vec(), &bytes)?;
        let file = safetensors::serialize([("w", view)], None)?;
        let files = SafetensorsFiles::of_bytes(file.leak()).unwrap();
        let mut parts = Vec::new();
        files.for_rows("w", shape, &mut |part| {
            parts.push(part);
            Ok(())
        })?;
        let rows: Vec<usize> = parts.iter().map(|part| part.dims()[0]).collect();
        assert_eq!(rows, [64, 64, 3]);
        let together = Tensor::cat(&parts, 0)?;
        let whole = files.tensor("w", &shape, DType::F32, &Device::Cpu)?;
        let apart = (together - whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert_eq!(apart, 0.0);
        Ok(())
    }
}
