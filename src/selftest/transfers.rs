//! Lists that go to a device and come back.

use candle_core::{Device, Tensor};

use super::Failure;
use super::random::Random;
use crate::kernels::transfer;

/// Lists of words that together are more than can be under way at once.
const LISTS: usize = 600;

/// The most numbers of a list but a few.
const MOST_NUMBERS: usize = 20_000;

/// Numbers of the lists that are longer than those of a step: of more than one mebibyte.
const LONG: usize = 300_000;

/// Many lists of many lengths go there before any comes back: what is under way is not overwritten, and what is read is
/// there.
pub(super) fn lists(device: &Device) -> Result<String, Failure> {
    let mut random = Random::new(53);
    let mut sent = Vec::with_capacity(LISTS);
    for i in 0..LISTS {
        let count = match i % 200 {
            0 => 0,
            100 => LONG,
            _ => random.below(MOST_NUMBERS),
        };
        let words: Vec<u32> = (0..count as u32).map(|j| j ^ (i as u32) << 20).collect();
        let placed = transfer::to_device(&words, count, device)?;
        // What is computed of a list is computed of its numbers, and not of the next list's.
        let doubled = match count {
            0 => placed.clone(),
            _ => (&placed + &placed)?,
        };
        sent.push((words, placed, doubled));
    }
    let mut bytes = 0;
    for (i, (words, placed, doubled)) in sent.iter().enumerate() {
        let wanted: Vec<u32> = words.iter().map(|word| 2 * word).collect();
        if &back(placed)? != words || back(doubled)? != wanted {
            return Err(Failure::Differs(format!(
                "list {i}, of {} numbers, is another on the device",
                words.len()
            )));
        }
        bytes += size_of_val(words.as_slice());
    }
    // Read within a tensor, and in the order of rows.
    let rows = transfer::to_device(&[0.5f32, -1.0, 2.0, 3.5, f32::MIN, 6.0], (3, 2), device)?;
    let column = transfer::to_host::<f32>(&rows.narrow(0, 1, 2)?.t()?)?;
    if column != [2.0, f32::MIN, 3.5, 6.0] {
        return Err(Failure::Differs(format!("columns are read as {column:?}")));
    }
    Ok(format!("{LISTS} lists, {} MiB", bytes >> 20))
}

fn back(tensor: &Tensor) -> candle_core::Result<Vec<u32>> {
    transfer::to_host(tensor)
}
