//! The forward process and the reverse step against `sampling::corrupt` and `sampling::posterior`.

use bytemuck::Zeroable;

use super::element::{ELEMENTS, Element};
use super::random::Random;
use super::{Extent, Failure};
use crate::canvas::TokenId;
use crate::diffusion::{Interval, NoiseLevel, Process};
use crate::kernels::{Argument, Launch, Machine};
use crate::sampling::corrupt::{self, CorruptRow};
use crate::sampling::posterior::{ReverseFound, ReverseRow};

pub(super) fn corrupted(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(10);
    let longest = match extent {
        Extent::Small => 200,
        Extent::Full => 5000,
    };
    let mut tokens = 0;
    for _ in 0..10 {
        for states in [2, 33, 126_464] {
            let process = match random.chance(0.5) {
                true => Process::absorbing(states, random.below(states)),
                false => Process::uniform(states),
            };
            let process = process.map_err(|error| Failure::Differs(error.to_string()))?;
            let (mut clean, mut rows) = (Vec::new(), Vec::new());
            for step in 0..5 {
                let length = random.below(longest);
                // A token that belongs to no row stays as it is.
                clean.push(0);
                let level = NoiseLevel::from_alpha(random.pick(&[0.0, 0.3, 0.99, 1.0]));
                let level = level.map_err(|error| Failure::Differs(error.to_string()))?;
                let (first, slot) = (clean.len() as u32, random.below(50) as u32);
                let seed = u64::from(random.word()) << 20;
                rows.push(CorruptRow::new(
                    seed,
                    step,
                    level,
                    first,
                    length as u32,
                    slot,
                ));
                clean.extend((0..length).map(|_| random.below(states) as TokenId));
            }
            let (mask, states) = corrupt::kernel_noise(&process);
            let mut noisy = clean.clone();
            // SAFETY: the parameters of the kernel; each row names tokens of `clean`, and `noisy` is as long.
            unsafe {
                machine.launch(
                    &Launch::rows("corrupt", rows.len(), machine.row_threads()),
                    &mut [
                        Argument::input(&clean),
                        Argument::input(&rows),
                        Argument::U32(mask),
                        Argument::U32(states),
                        Argument::output(&mut noisy),
                    ],
                )
            }?;
            if noisy != corrupt::corrupt(&clean, &process, &rows) {
                return Err(Failure::Differs(format!("{process:?}, {rows:?}")));
            }
            tokens += clean.len();
        }
    }
    Ok(format!("{tokens} tokens equal"))
}

pub(super) fn reversed(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(11);
    let largest = match extent {
        Extent::Small => 5000,
        Extent::Full => 126_464,
    };
    let mut compared = 0;
    for vocab in [2, 7, 32, 33, 500, largest] {
        for element in ELEMENTS {
            compared += reverse_batch(machine, &mut random, element, vocab)?;
        }
    }
    Ok(format!("{compared} rows equal"))
}

fn reverse_batch(
    machine: &mut dyn Machine,
    random: &mut Random,
    element: Element,
    vocab: usize,
) -> Result<usize, Failure> {
    let explained = |error: crate::diffusion::Error| Failure::Differs(error.to_string());
    let count = 12;
    let (mut logits, mut rows) = (Vec::new(), Vec::new());
    for slot in 0..count {
        let mask = random.below(vocab);
        let is_absorbing = random.chance(0.5);
        let process = match is_absorbing {
            true => Process::absorbing(vocab, mask),
            false => Process::uniform(vocab),
        }
        .map_err(explained)?;
        let alpha_t = random.pick(&[0.01, 0.1, 0.6]);
        let alpha_s = alpha_t + f64::from(random.uniform()) * (1.0 - alpha_t);
        let at = |alpha| NoiseLevel::from_alpha(alpha).map_err(explained);
        let interval = Interval::between(at(alpha_s)?, at(alpha_t)?).map_err(explained)?;
        let x_t = match is_absorbing && random.chance(0.8) {
            true => mask,
            false => random.below(vocab),
        };
        let impossible = is_absorbing.then_some(mask as TokenId);
        let key = (u64::from(random.word()) << 13, 4, slot);
        rows.push(ReverseRow::new(&process, &interval, x_t, impossible, key).map_err(explained)?);
        let character = random.below(5);
        logits.extend((0..vocab).map(|_| match character {
            0 => -1.0,
            1 if random.chance(0.9) => f32::NEG_INFINITY,
            2 => 20.0 * random.normal(),
            3 if slot == 3 => f32::NAN,
            _ => 3.0 * random.normal(),
        }));
    }
    let logits = element.round(&logits);
    let mut found = vec![ReverseFound::zeroed(); rows.len()];
    let kernel = element.kernel(["posterior_f32", "posterior_bf16", "posterior_f16"]);
    // SAFETY: the parameters of the kernel; `vocab` logits for each row, and one result.
    unsafe {
        machine.launch(
            &Launch::rows(kernel, rows.len(), machine.row_threads()),
            &mut [
                Argument::In(&element.encode(&logits)),
                Argument::U64(vocab as u64),
                Argument::U32(vocab as u32),
                Argument::input(&rows),
                Argument::output(&mut found),
            ],
        )
    }?;
    for ((row, logits), found) in rows.iter().zip(logits.chunks(vocab)).zip(&found) {
        let twin = row.draw(logits).ok();
        let given = (found.status == 0).then_some(found.state);
        if twin != given {
            return Err(Failure::Differs(format!(
                "vocabulary of {vocab} {element:?}, {row:?}: {given:?} for {twin:?}"
            )));
        }
    }
    Ok(rows.len())
}
