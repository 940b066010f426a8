//! The weights of a checkpoint as networks read them: tensor by tensor, under the checkpoint's names.

mod dummy;
mod files;
mod layout;
mod record;

use std::fmt::Display;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Shape, Tensor};

pub(super) use dummy::Dummy;
pub use files::NotFinite;
pub(super) use files::SafetensorsFiles;
pub(super) use record::Recorder;

use crate::models::ModelError;
use crate::models::layers::{BlockRows, Linear, WrongProduct, wrong_product};

/// Tensor names with their shapes.
pub type Shapes = std::collections::BTreeMap<String, Vec<usize>>;

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// All of them in this floating-point type. On a CPU, which multiplies f32, it is that of linear layers and
    /// embeddings alone: norms, biases and activations are f32.
    Float(DType),
    /// Linear layers in GGUF's Q8_0: blocks of 32 weights of 8 bits with a 16-bit scale. Embeddings,
    /// norms, biases and routers are f32, and so is a linear layer whose input width is no multiple of 32.
    Q8_0,
}

impl WeightFormat {
    /// The type of linear layers and embeddings that are not quantised, and on a GPU of all else.
    fn dtype(self) -> DType {
        match self {
            Self::Float(dtype) => dtype,
            Self::Q8_0 => DType::F32,
        }
    }

    /// Its name, as `--dtype` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.as_str(),
            Self::Q8_0 => "q8_0",
        }
    }

    /// The blocks that a linear layer of input width `from` is quantised in, if it is.
    pub(super) fn quantization(self, from: usize) -> Option<GgmlDType> {
        let blocks = GgmlDType::Q8_0;
        (self == Self::Q8_0 && from.is_multiple_of(blocks.block_size())).then_some(blocks)
    }

    /// Checks that `device` multiplies with weights held so.
    ///
    /// # Errors
    /// If it does not, or fails.
    pub(crate) fn check_kernels(self, device: &Device) -> std::result::Result<(), ModelError> {
        if device.is_cpu() || self != Self::Q8_0 {
            return Ok(());
        }
        match wrong_product(GgmlDType::Q8_0, device)? {
            None => Ok(()),
            Some(WrongProduct { rows, got, wanted }) => Err(ModelError::QuantizedKernels {
                format: self.name(),
                rows,
                got,
                wanted,
            }),
        }
    }

    /// Bytes of a linear layer's weight `[to, from]`.
    pub(super) fn linear_bytes(self, to: usize, from: usize) -> usize {
        match self.quantization(from) {
            Some(blocks) => to * (from / blocks.block_size()) * blocks.type_size(),
            None => to * from * self.dtype().size_in_bytes(),
        }
    }
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> Self {
        Self::Float(dtype)
    }
}

/// Where tensors come from.
pub(super) trait Source {
    /// The tensor called `name`, converted to `dtype`, on `device`.
    ///
    /// # Errors
    /// If there is none of this shape, it cannot be read, or the device fails.
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor>;

    /// The weight `[to, from]` of a linear layer, as [`Source::tensor`], but with
    /// [`layout::transposed`]'s order in memory on a CPU.
    ///
    /// # Errors
    /// As [`Source::tensor`].
    fn matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        layout::transposed(self.tensor(name, &shape, dtype, device)?)
    }

    /// Gives `take` the rows of the weight `[to, from]` of a linear layer in their order, in f32 on the CPU, some at a
    /// time: each time a whole tensor `[rows, from]`.
    ///
    /// # Errors
    /// As [`Source::tensor`], and what `take` returns.
    fn for_rows(
        &self,
        name: &str,
        shape: [usize; 2],
        take: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        take(self.tensor(name, &shape, DType::F32, &Device::Cpu)?)
    }

    /// Notes that the tensor called `name` is made of weights of linear layers, whose inputs lie along its last
    /// dimension.
    fn note_linear(&self, _name: &str) {}

    /// Notes that a weight `[to, from]` is held quantised besides.
    fn note_quantized_copy(&self, _shape: [usize; 2]) {}

    /// Whether tensors have their shapes only, and no values of their own.
    fn is_hollow(&self) -> bool {
        false
    }
}

/// The tensors of a source whose names begin with a prefix.
#[derive(Clone)]
pub(super) struct Weights<'a> {
    source: &'a dyn Source,
    prefix: String,
    format: WeightFormat,
    device: Device,
}

impl<'a> Weights<'a> {
    /// All tensors of `source`, held as `format` on `device`.
    pub fn new(source: &'a dyn Source, format: WeightFormat, device: &Device) -> Self {
        Self {
            source,
            prefix: String::new(),
            format,
            device: device.clone(),
        }
    }

    /// Those whose names go on with `part` and a dot.
    pub fn pp(&self, part: impl Display) -> Self {
        Self {
            prefix: format!("{}{part}.", self.prefix),
            ..self.clone()
        }
    }

    /// The type of norms, biases and activations.
    pub fn dtype(&self) -> DType {
        match self.device.is_cpu() {
            true => DType::F32,
            false => self.format.dtype(),
        }
    }

    /// Whether what a network makes of them in a row does not depend on the other rows of its batch: so on a CPU,
    /// where they are multiplied in the same order whatever the number of rows.
    pub fn are_batch_invariant(&self) -> bool {
        self.device.is_cpu()
    }

    /// Where the tensors are put.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A tensor.
    ///
    /// # Errors
    /// If there is none of this shape, or the device fails.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.get_as(shape, name, self.dtype())
    }

    /// A tensor of type `dtype`, whatever the others are.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_as(&self, shape: impl Into<Shape>, name: &str, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        self.source
            .tensor(&self.name(name), shape.dims(), dtype, &self.device)
    }

    /// A table of embeddings `[vocab, hidden]`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn table(&self, shape: [usize; 2], name: &str) -> Result<Tensor> {
        self.get_as(&shape, name, self.format.dtype())
    }

    /// The linear layer `[rows, from]` → `[rows, to]` of `weight` `[to, from]` and, with `bias`, `bias` `[to]`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn linear(&self, from: usize, to: usize, bias: bool) -> Result<Linear> {
        let bias = bias.then(|| self.get(to, "bias")).transpose()?;
        let (name, shape) = (self.name("weight"), [to, from]);
        match self.format.quantization(from) {
            Some(blocks) if !self.source.is_hollow() => {
                let mut rows = BlockRows::with_capacity(to, from, blocks);
                self.source
                    .for_rows(&name, shape, &mut |part| rows.push(&part))?;
                Linear::quantized(rows, &self.device, bias)
            }
            _ => {
                let weight = self
                    .source
                    .matrix(&name, shape, self.format.dtype(), &self.device)?;
                Ok(Linear::new(weight, bias))
            }
        }
    }

    /// As [`Weights::linear`] of layers that are stored as one, the rows of the first part before those of
    /// the second: one layer for each output width of `parts`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn linear_parts<const N: usize>(
        &self,
        from: usize,
        parts: [usize; N],
        bias: bool,
    ) -> Result<[Linear; N]> {
        let to = parts.iter().sum();
        let bias = bias.then(|| self.get(to, "bias")).transpose()?;
        let weight = self.before_quantization((to, from), "weight", from)?;
        if self.source.is_hollow() {
            // Noted as a linear layer.
            self.source.matrix(
                &self.name("weight"),
                [to, from],
                self.format.dtype(),
                &self.device,
            )?;
        }
        let mut start = 0;
        let mut layers = Vec::with_capacity(N);
        for part in parts {
            let bias = bias
                .as_ref()
                .map(|bias| bias.narrow(0, start, part)?.force_contiguous())
                .transpose()?;
            layers.push(self.part(weight.narrow(0, start, part)?, bias)?);
            start += part;
        }
        layers
            .try_into()
            .map_err(|_| candle_core::Error::Msg("as many layers as parts".into()))
    }

    /// `count` times the linear layers of [`Weights::linear_parts`], without biases, from the tensor `name` `[count,
    /// Σ parts, from]`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn stacked_linear_parts<const N: usize>(
        &self,
        name: &str,
        count: usize,
        from: usize,
        parts: [usize; N],
    ) -> Result<Vec<[Linear; N]>> {
        let to: usize = parts.iter().sum();
        let stack = self.before_quantization((count, to, from), name, from)?;
        self.source.note_linear(&self.name(name));
        let layer = |index: usize| {
            let weight = stack.narrow(0, index, 1)?.squeeze(0)?;
            let mut start = 0;
            let mut layers = Vec::with_capacity(N);
            for part in parts {
                layers.push(self.part(weight.narrow(0, start, part)?, None)?);
                start += part;
            }
            layers
                .try_into()
                .map_err(|_| candle_core::Error::Msg("as many layers as parts".into()))
        };
        (0..count).map(layer).collect()
    }

    /// The linear layer whose weight is an embedding `[to, from]`: the embedding itself, unless linear layers
    /// are quantised.
    ///
    /// # Errors
    /// If the device fails.
    pub fn tied_linear(&self, embedding: &Tensor) -> Result<Linear> {
        let (to, from) = embedding.dims2()?;
        match self.format.quantization(from) {
            None => Ok(Linear::new(embedding.clone(), None)),
            Some(_) if self.source.is_hollow() => {
                self.source.note_quantized_copy([to, from]);
                Ok(Linear::new(embedding.clone(), None))
            }
            Some(blocks) => {
                Linear::quantized(BlockRows::of(embedding, blocks)?, &self.device, None)
            }
        }
    }

    /// A tensor of weights of linear layers of input width `from`, on the CPU where they are quantised: so a device
    /// holds none of them but in blocks.
    fn before_quantization(
        &self,
        shape: impl Into<Shape>,
        name: &str,
        from: usize,
    ) -> Result<Tensor> {
        let device = match self.format.quantization(from) {
            Some(_) => &Device::Cpu,
            None => &self.device,
        };
        let (name, shape) = (self.name(name), shape.into());
        self.source
            .tensor(&name, shape.dims(), self.format.dtype(), device)
    }

    /// The linear layer of some rows `[to, from]` of a weight.
    fn part(&self, rows: Tensor, bias: Option<Tensor>) -> Result<Linear> {
        match self.format.quantization(rows.dim(1)?) {
            _ if self.source.is_hollow() => Ok(Linear::new(rows, bias)),
            Some(blocks) => Linear::quantized(BlockRows::of(&rows, blocks)?, &self.device, bias),
            None => Ok(Linear::new(layout::transposed(rows)?, bias)),
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Tensors held in memory, for tests of layers.
#[cfg(test)]
impl Source for std::collections::HashMap<String, Tensor> {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = &self[name];
        assert_eq!(tensor.dims(), shape, "{name}");
        tensor.to_dtype(dtype)?.to_device(device)
    }
}
