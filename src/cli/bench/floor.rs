//! What the machine allows: the measured rate of matrix products, and the time that a model's products take
//! at it.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use unmask::models::{Checkpoint, ModelSpec};

/// Rows and columns of the products that the machine's rate is measured by.
const SIZE: usize = 1024;

/// Operations a second of f32 products of matrices `[rows, inner]` and `[inner, columns]` on the CPU: of the
/// fastest of several tries.
pub fn matrix_rate(rows: usize, inner: usize, columns: usize) -> anyhow::Result<f64> {
    const TRIES: usize = 8;
    let left = Tensor::rand(-1.0f32, 1.0, (rows, inner), &Device::Cpu)?;
    let right = Tensor::rand(-1.0f32, 1.0, (inner, columns), &Device::Cpu)?;
    let operations = 2.0 * rows as f64 * inner as f64 * columns as f64;
    // Short products are repeated, so that the clock can tell.
    let repeats = (2e8 / operations).ceil() as usize;
    let mut fastest = Duration::MAX;
    for _ in 0..TRIES {
        let begun = Instant::now();
        for _ in 0..repeats {
            // The product has to be there for the time to be that of a product.
            left.matmul(&right)?.to_dtype(DType::F32)?;
        }
        fastest = fastest.min(begun.elapsed());
    }
    Ok(operations * repeats as f64 / fastest.as_secs_f64())
}

/// The rate of large products.
pub fn machine_rate() -> anyhow::Result<f64> {
    matrix_rate(SIZE, SIZE, SIZE)
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
