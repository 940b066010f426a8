//! How the kernels of `kernels/experts.cu` are launched: their names, grids, and the lists that stand between them.

use bytemuck::{Pod, Zeroable};

use super::Router;
use crate::kernels::Launch;

/// Rows of a tile, as the kernels have it.
pub(crate) const ROWS_OF_TILE: usize = 8;

/// Threads of a block, but for the router.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;

/// Columns of the activations, and of the outputs, that a warp computes.
const ACTIVATIONS_OF_WARP: usize = 2;
const OUTPUTS_OF_WARP: usize = 4;

/// activation(gate(x)) ⊙ up(x) of each entry, for f32, bf16 and f16.
pub(crate) const GATE_UP: [&str; 3] = [
    "experts_gate_up_f32",
    "experts_gate_up_bf16",
    "experts_gate_up_f16",
];

/// down of each entry's activations.
pub(crate) const DOWN: [&str; 3] = ["experts_down_f32", "experts_down_bf16", "experts_down_f16"];

/// The weighted sum of a row's entries.
pub(crate) const SUM: [&str; 3] = ["experts_sum_f32", "experts_sum_bf16", "experts_sum_f16"];

/// Rows of one expert: `rows` entries from `first` on in the order by expert. No work if `rows` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ExpertTile {
    pub expert: u32,
    pub first: u32,
    pub rows: u32,
}

/// The most tiles that `entries`, an entry for each of a row's experts, can come to.
pub(crate) fn most_tiles(entries: usize, experts: usize) -> usize {
    let used = experts.min(entries);
    used + (entries - used) / ROWS_OF_TILE
}

/// The choice of experts, a block a row.
pub(crate) fn route(router: &Router, rows: usize, experts: usize) -> Launch {
    let kernel = match router {
        Router::Softmax { .. } => "experts_route_softmax",
        Router::GroupedSigmoid { .. } => "experts_route_grouped",
    };
    Launch::rows(kernel, rows, experts.next_multiple_of(32) as u32)
}

/// Entries by expert, a warp an expert.
pub(crate) fn group(experts: usize) -> Launch {
    Launch::warps("experts_group", experts, THREADS as u32)
}

/// One of [`GATE_UP`].
pub(crate) fn gate_up(kernel: &'static str, tiles: usize, intermediate: usize) -> Launch {
    blocks(
        kernel,
        tiles,
        intermediate.div_ceil(WARPS * ACTIVATIONS_OF_WARP),
    )
}

/// One of [`DOWN`].
pub(crate) fn down(kernel: &'static str, tiles: usize, hidden: usize) -> Launch {
    blocks(kernel, tiles, hidden.div_ceil(WARPS * OUTPUTS_OF_WARP))
}

/// One of [`SUM`].
pub(crate) fn sum(kernel: &'static str, rows: usize, hidden: usize) -> Launch {
    blocks(kernel, rows, hidden.div_ceil(THREADS))
}

/// Those that share weights, tiles of one expert, follow each other.
fn blocks(kernel: &'static str, x: usize, y: usize) -> Launch {
    Launch {
        kernel,
        grid: [x as u32, y as u32, 1],
        block: [THREADS as u32, 1, 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over all distributions of entries.
    fn most(entries: usize, experts: usize) -> usize {
        match experts {
            0 => 0,
            1 => entries.div_ceil(ROWS_OF_TILE),
            _ => (0..=entries)
                .map(|own| own.div_ceil(ROWS_OF_TILE) + most(entries - own, experts - 1))
                .max()
                .unwrap_or(0),
        }
    }

    #[test]
    fn some_distribution_of_entries_comes_to_as_many_tiles_and_none_to_more() {
        for experts in 1..=4 {
            for entries in 1..=35 {
                assert_eq!(most_tiles(entries, experts), most(entries, experts));
            }
        }
    }
}
