//! What a CUDA device takes by itself, without what the host does before and after.

use std::time::Instant;

use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Tensor};
use unmask::canvas::TokenId;
use unmask::kernels::transfer;
use unmask::models::{Denoiser, HEAD_ROWS, RaggedBatch};
use unmask::sampling::{Reduction, RowParams};

use super::machine::{copied, synchronised};

/// Launches back to back: so many that the wait at their end is a small part.
const LAUNCHES: usize = 64;

/// Copies that are before the device when it is given a step, few first: 7 and 28 ms at 4.8 TB/s. With the launches of a
/// step they are fewer than the thousand that a driver queues.
const COPIES: [usize; 2] = [64, 256];

/// Seconds that the kernel of the reduction takes: many launches back to back, over their number, of the fastest of
/// several tries. No less than what a launch takes the host. Each launch reads what `logits` `[rows, vocab]` gives. And the
/// bytes of the device that the reduction takes beside them.
pub fn of_reduction(
    tries: usize,
    params: &[RowParams],
    mut logits: impl FnMut() -> candle_core::Result<Tensor>,
) -> anyhow::Result<(f64, usize)> {
    let first = logits()?;
    let mut reduction = Reduction::new(&first, None, params)?;
    let seconds = synchronised(first.device(), tries, || {
        for _ in 0..LAUNCHES {
            reduction.launch(&logits()?)?;
        }
        Ok(())
    })?;
    Ok((seconds / LAUNCHES as f64, reduction.device_bytes()))
}

/// Seconds that the device is busy with a step of a canvas `tokens` whose last `gap` slots are scored, of each of several
/// tries; `None` if the host did not get ahead of the device.
///
/// What the engine does in a step of one canvas that keeps no keys and values, except that nothing comes back: so all of
/// it is launched while the device still copies, and it goes from each launch to the next without waiting for the host.
pub fn of_step(
    model: &dyn Denoiser,
    tokens: &[TokenId],
    gap: usize,
    tries: usize,
) -> anyhow::Result<Option<Vec<f64>>> {
    let mut batch = RaggedBatch::new();
    batch.push(tokens.iter().copied());
    let inputs = batch.row_inputs();
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let scored = &rows[tokens.len() - gap..];
    let params: Vec<RowParams> = scored
        .iter()
        .map(|row| RowParams {
            slot: *row as usize,
            excluded: model.spec().mask_token().unwrap_or(TokenId::MAX),
            ..RowParams::default()
        })
        .collect();
    let scored_inputs = &inputs[tokens.len() - gap..];
    let step = || -> anyhow::Result<()> {
        let hidden = model.hidden(&batch, None)?;
        let chunks = scored.chunks(HEAD_ROWS).zip(params.chunks(HEAD_ROWS));
        for ((scored, params), inputs) in chunks.zip(scored_inputs.chunks(HEAD_ROWS)) {
            let places = transfer::to_device(scored, scored.len(), model.device())?;
            let logits = model.head_rows(&hidden.index_select(&places, 0)?, inputs)?;
            Reduction::new(&logits, None, params)?.launch(&logits)?;
        }
        Ok(())
    };
    // The first one loads kernels.
    step()?;
    let device = model.device().as_cuda_device()?;
    let source = copied(model.device())?;
    for copies in COPIES {
        let times: Option<Vec<f64>> = (0..tries)
            .map(|_| after_copies(device, &source, copies, step))
            .collect::<anyhow::Result<_>>()?;
        if times.is_some() {
            return Ok(times);
        }
    }
    Ok(None)
}

/// Seconds from the end of `copies` of `source` to the end of `work`, which is launched behind them; `None` if the copies
/// were over before all of it was launched.
fn after_copies(
    device: &CudaDevice,
    source: &Tensor,
    copies: usize,
    work: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Option<f64>> {
    let stream = device.cuda_stream();
    let event = || stream.context().new_event(None).w();
    let (begun, ended) = (event()?, event()?);
    Device::Cuda(device.clone()).synchronize()?;
    for _ in 0..copies {
        source.copy()?;
    }
    begun.record(&stream).w()?;
    work()?;
    ended.record(&stream).w()?;
    if begun.try_is_complete().w()? {
        return Ok(None);
    }
    begun.synchronize().w()?;
    let since = Instant::now();
    ended.synchronize().w()?;
    Ok(Some(since.elapsed().as_secs_f64()))
}
