//! What the machine allows: the measured rates of copies and of matrix products, and the time that a model's
//! products take at them.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use unmask::models::{Checkpoint, ModelSpec};

/// Tries of which the fastest counts.
pub const TRIES: usize = 8;
/// Bytes of the tensor whose copies are timed: far more than a cache holds.
const COPY_BYTES: usize = 1 << 28;

/// Seconds that `work` takes until the device is done with it: of the fastest of several tries, after one that
/// does not count.
pub fn synchronised(
    device: &Device,
    tries: usize,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let mut fastest = f64::INFINITY;
    for number in 0..=tries {
        device.synchronize()?;
        let begun = Instant::now();
        work()?;
        device.synchronize()?;
        if number > 0 {
            fastest = fastest.min(begun.elapsed().as_secs_f64());
        }
    }
    Ok(fastest)
}

/// The tensor whose copies are timed.
pub fn copied(device: &Device) -> candle_core::Result<Tensor> {
    Tensor::ones(COPY_BYTES / 4, DType::F32, device)
}

/// Bytes a second that copies within a device's memory read and write.
pub fn copy_rate(device: &Device, tries: usize) -> anyhow::Result<f64> {
    let source = copied(device)?;
    let seconds = synchronised(device, tries, || {
        source.copy()?;
        Ok(())
    })?;
    Ok(2.0 * COPY_BYTES as f64 / seconds)
}

/// Operations a second of products of matrices `[rows, inner]` and `[inner, columns]`.
pub fn matrix_rate(
    device: &Device,
    dtype: DType,
    [rows, inner, columns]: [usize; 3],
    tries: usize,
) -> anyhow::Result<f64> {
    let matrix = |shape| Tensor::rand(-1.0f32, 1.0, shape, device)?.to_dtype(dtype);
    let (left, right) = (matrix((rows, inner))?, matrix((inner, columns))?);
    let operations = 2.0 * rows as f64 * inner as f64 * columns as f64;
    // Short products are repeated, so that the clock can tell.
    let repeats = (2e8 / operations).ceil() as usize;
    let seconds = synchronised(device, tries, || {
        for _ in 0..repeats {
            left.matmul(&right)?;
        }
        Ok(())
    })?;
    Ok(operations * repeats as f64 / seconds)
}

/// The shape of products large enough for a device to be at its fastest.
pub fn large_products(device: &Device) -> [usize; 3] {
    match device.is_cpu() {
        true => [1024; 3],
        false => [4096; 3],
    }
}

/// The rate of large f32 products on the CPU.
pub fn cpu_rate() -> anyhow::Result<f64> {
    let shape = large_products(&Device::Cpu);
    matrix_rate(&Device::Cpu, DType::F32, shape, TRIES)
}

/// What the products of a model's linear layers take.
#[derive(Debug, Clone, Copy)]
pub struct Products {
    /// Weights that every row is multiplied by: all but the embedding and the head.
    body: usize,
    /// Weights that every scored row is multiplied by.
    head: usize,
}

impl Products {
    /// Those of `checkpoint`. Of a mixture of E experts, k of which each row goes to, k / E of the weights count:
    /// so many operations a row takes, whichever experts they are.
    pub fn of(checkpoint: &Checkpoint) -> anyhow::Result<Self> {
        let ModelSpec {
            vocab_size,
            hidden_size,
            parameters,
            active_parameters,
            ..
        } = checkpoint.spec()?;
        let table = [vocab_size, hidden_size];
        let shapes = checkpoint.shapes()?;
        let body = shapes.values().filter(|shape| **shape != table);
        Ok(Self {
            body: body
                .map(|shape| shape.iter().product::<usize>())
                .sum::<usize>()
                - (parameters - active_parameters),
            head: vocab_size * hidden_size,
        })
    }

    /// Weights that a step reads at the least, whatever it denoises: those of all products, of a mixture those of the
    /// experts of one row.
    pub fn weights(&self) -> usize {
        self.body + self.head
    }

    /// Operations of the matrix products on `rows` rows, of which `scored` go through the head.
    pub fn operations(&self, rows: f64, scored: f64) -> f64 {
        2.0 * (self.body as f64 * rows + self.head as f64 * scored)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn products(config: &str) -> Products {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/configs");
        let path = configs.join(config);
        Products::of(&Checkpoint::open_dummy(&path).unwrap()).unwrap()
    }

    #[test]
    fn a_mixture_of_experts_takes_what_a_dense_network_of_its_active_size_takes_and_its_router() {
        let [experts, dense] = ["llada-moe.json", "llada-moe-dense.json"].map(products);
        let router = (experts.body - dense.body) as f64;
        // 12 layers of 16 experts and width 512.
        assert_eq!(router, 12.0 * 16.0 * 512.0);
        for rows in [1.0, 32.0, 4096.0] {
            let more = experts.operations(rows, 7.0) - dense.operations(rows, 7.0);
            assert_eq!(more, 2.0 * router * rows);
        }
    }
}
