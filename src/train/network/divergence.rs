//! The loss of the uniform process in tensor operations.

use candle_core::{Device, Result, Tensor};

use crate::train::batch::Batch;

/// What the loss of the uniform process needs of the scored slots, each `[scored, 1]`.
pub struct UniformSlots {
    /// The tokens that are seen, x_t.
    seen: Tensor,
    /// w = K α/(1 − α).
    signal: Tensor,
    /// (1 + w) ln(1 + w) − w: what the divergence of a noised slot has beside the terms of the probabilities.
    certain: Tensor,
    /// 1 where another token is seen than the clean one, else 0.
    noised: Tensor,
}

impl UniformSlots {
    /// Those of a batch; `None` for the absorbing process.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of(batch: &Batch, device: &Device) -> Result<Option<Self>> {
        if batch.signal.is_empty() {
            return Ok(None);
        }
        let rows = batch.scored.len();
        let column = |of: &dyn Fn(usize) -> f32| {
            let values = batch.scored.iter().map(|slot| of(*slot as usize));
            Tensor::from_vec(values.collect(), (rows, 1), device)
        };
        let signal = |slot: usize| batch.signal[slot / batch.context];
        let seen = batch.scored.iter().map(|slot| batch.noisy[*slot as usize]);
        Ok(Some(Self {
            seen: Tensor::from_vec(seen.collect(), (rows, 1), device)?,
            signal: column(&signal)?,
            certain: column(&|slot| {
                let w = f64::from(signal(slot));
                ((1.0 + w) * w.ln_1p() - w) as f32
            })?,
            noised: column(&|slot| f32::from(batch.clean[slot] != batch.noisy[slot]))?,
        }))
    }
}

/// [`plug_in_divergence`](crate::diffusion::elbo::plug_in_divergence) of each scored slot, `[scored, 1]`, in its
/// terms, from the log-probabilities `[scored, V]`; `clean` are those of x_0, `[scored, 1]`.
///
/// # Errors
/// When the device fails.
pub fn plug_in_divergences(
    log_probabilities: &Tensor,
    clean: &Tensor,
    slots: &UniformSlots,
) -> Result<Tensor> {
    let states = log_probabilities.dim(1)? as f64;
    let w = &slots.signal;
    let ln_1p = |y: &Tensor| (y + 1.0)?.log();
    let phi = |y: &Tensor| y - ln_1p(y)?;

    let sum = phi(&log_probabilities.exp()?.broadcast_mul(w)?)?.sum_keepdim(1)?;
    let p_seen = log_probabilities.gather(&slots.seen, 1)?.exp()?;
    let y_seen = (&p_seen * w)?;
    let y_clean = (clean.exp()? * w)?;
    let more = (w + states)?;
    let own = ((ln_1p(&y_seen)? - (&y_seen / (&y_seen + 1.0)?)?)? * &more)?;
    let of_noised = (((own + &sum)? + &slots.certain)? - (w * ln_1p(&y_clean)?)?)?;

    let rest = ((1.0 - &p_seen)? * w)?;
    let x = (&rest / (&y_seen + 1.0)?)?;
    let others = (sum - phi(&y_seen)?)?;
    let of_kept = (((phi(&x)? * (states - 1.0))? + (rest * &x)?)? + others)?;
    let of_kept = (of_kept / (w + 1.0)?)?;
    (&of_kept + (&slots.noised * (of_noised - &of_kept)?)?)?.contiguous()
}
