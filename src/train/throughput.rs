//! How fast a step is, beside how fast the machine multiplies.

use std::time::{Duration, Instant};

use super::batch::Batch;
use super::error::TrainError;
use super::layout::NetworkShape;

/// How long the machine's rate is measured.
pub const MEASURED: Duration = Duration::from_millis(200);

/// The most products that are timed.
const MOST_PRODUCTS: f64 = 1e6;

/// Floating-point operations of the matrix products of a training step on `batch`, a multiplication and
/// an addition counting as two.
///
/// Forward, a linear layer takes 2 operations a weight and row, and attention 4 a channel for every two
/// slots that see each other; backward takes twice as many. That is the usual 6 N a token and 12 L D a token
/// and layer, but what only scored slots need, the head and everything after the last block's attention,
/// counts for these alone.
pub fn operations(shape: &NetworkShape, batch: &Batch) -> f64 {
    let (d, layers) = (shape.hidden as f64, shape.layers as f64);
    let (tokens, scored) = (batch.tokens() as f64, batch.scored.len() as f64);
    let seen: f64 = batch.texts().map(|text| (text.len() as f64).powi(2)).sum();
    let projections = 3.0 * d * d;
    let rest = d * d + 3.0 * d * shape.mlp as f64;
    let rows =
        (layers - 1.0) * (projections + rest) * tokens + projections * tokens + rest * scored;
    let attention = layers * 2.0 * d * seen;
    let head = d * shape.vocab as f64 * scored;
    6.0 * (rows + attention + head)
}

/// Operations a second of `products`, which does so many products as it is told and returns when they are done. Each
/// takes `operations`; they are done for about [`MEASURED`], in three calls however long one takes.
///
/// # Errors
/// Whatever `products` returns.
pub(super) fn rate(
    operations: f64,
    mut products: impl FnMut(usize) -> Result<(), TrainError>,
) -> Result<f64, TrainError> {
    let mut seconds = |count| {
        let begun = Instant::now();
        products(count)?;
        Ok::<_, TrainError>(begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE))
    };
    // The first one allocates, and wakes what sleeps; the second says how many are to be timed.
    seconds(1)?;
    let count = (MEASURED.as_secs_f64() / seconds(1)?).clamp(1.0, MOST_PRODUCTS) as usize;
    Ok(operations * count as f64 / seconds(count)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Process, Schedule};
    use crate::train::batch::Windows;
    use crate::train::draws::{Purpose, Stream};
    use crate::train::layout::Layout;

    #[test]
    fn operations_are_six_a_parameter_and_token_and_twelve_a_channel_layer_and_seen_slot() {
        let shape = NetworkShape {
            vocab: 50,
            context: 16,
            hidden: 8,
            layers: 3,
            heads: 2,
            mlp: 24,
            tied: false,
            rope_theta: 1e4,
            norm_eps: 1e-5,
        };
        let batch = |starts: &[usize]| {
            let mut windows = Windows::new(16);
            windows.push(&[7; 16], 0, starts);
            windows.push(&[7; 16], 0, starts);
            let process = Process::uniform(50).unwrap();
            let mut stream = Stream::new(1, Purpose::Step, 0);
            Batch::noise(
                windows,
                &[0.5; 2],
                &process,
                &Schedule::LogLinear,
                0.0,
                &mut stream,
            )
            .unwrap()
        };
        // All slots have a loss; norms and the embedding, which is looked up, are no products.
        let weights = Layout::new(&shape).len() - 50 * 8 - 7 * 8;
        let linear = 6.0 * weights as f64 * 32.0;
        let attention = |seen: f64| 12.0 * 8.0 * 3.0 * seen;
        let whole = operations(&shape, &batch(&[]));
        assert_eq!(whole, linear + attention(2.0 * 256.0));
        let split = operations(&shape, &batch(&[4]));
        assert_eq!(split, linear + attention(2.0 * (16.0 + 144.0)));
    }
}
