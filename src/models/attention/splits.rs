//! How the keys of a segment are cut into splits, each for blocks of its own of the attention's kernels.
//!
//! A block takes a few queries of a key/value head and goes through keys one after the other, so a segment of few rows keeps
//! few of a card's multiprocessors busy, for as long as it has keys. Cut, as in flash-decoding (Dao et al. 2023), it keeps
//! more of them busy; what they have is merged afterwards. The figures are by arithmetic, and to be measured.

use std::ops::Range;

/// All splits but a segment's last are so many keys, or a multiple. It is one tile of keys or some of `long_attention.cu`
/// (64, of heads of 256 and 512 32 and 16), and one pass or some of all warps of `ragged_attention.cu` (32, of heads of 512
/// 64).
pub(crate) const STEP: usize = 64;

/// The most blocks that a segment which is cut has: about what a card has of multiprocessors, 108 of an A100 and 132 of an
/// H100, of which a block of `ragged_attention.cu` fills one with its registers. More blocks would have to wait.
const MOST_BLOCKS: usize = 128;

/// About the fewest keys of a split. A block takes 4.4 µs for them, at 31 clocks a key and 1.8 GHz, and to launch and run the
/// kernel that merges takes some 3. Shorter splits would save less than that, and cost more partial results: of 64 queries
/// these are half of the bytes of so many keys and values in half precision.
const LEAST_KEYS: usize = 256;

/// The splits, in their order, of the `keys` of a segment whose queries are `blocks` of a kernel; none where its keys are not
/// cut.
///
/// They depend on nothing else: not on what else is in the batch, and not on how many of the keys are cached.
pub(crate) fn splits(keys: usize, blocks: usize) -> Vec<Range<usize>> {
    let most = (MOST_BLOCKS / blocks.max(1)).min(keys.div_ceil(LEAST_KEYS));
    if keys < 2 * LEAST_KEYS || most < 2 {
        return Vec::new();
    }
    let length = keys.div_ceil(most).next_multiple_of(STEP);
    let firsts = (0..keys).step_by(length);
    firsts
        .map(|first| first..keys.min(first + length))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_key_is_in_one_split_of_whole_steps(keys in 0..20_000usize, blocks in 0..300usize) {
            let splits = splits(keys, blocks);
            let mut next = 0;
            for split in &splits {
                prop_assert_eq!(split.start, next);
                prop_assert!(!split.is_empty());
                prop_assert_eq!(split.start % STEP, 0);
                next = split.end;
            }
            if !splits.is_empty() {
                prop_assert_eq!(next, keys);
                prop_assert!(splits.len() >= 2);
                prop_assert!(splits.len() * blocks <= MOST_BLOCKS);
                // But for the last one all are as long, and long enough, to whole steps.
                let (last, others) = splits.split_last().unwrap();
                prop_assert!(others.iter().all(|split| split.len() == others[0].len()));
                prop_assert!(last.len() <= others[0].len());
                prop_assert!(others[0].len() * 2 > LEAST_KEYS);
            }
        }
    }

    #[test]
    fn keys_are_cut_where_they_are_many_and_blocks_are_few() {
        let lengths = |keys, blocks| -> Vec<usize> {
            let splits = splits(keys, blocks);
            splits.iter().map(Range::len).collect()
        };
        // Four rows of 32 heads, of which four share keys and values, over 1,024 slots and 4,096.
        assert_eq!(lengths(1028, 16), [256, 256, 256, 256, 4]);
        assert_eq!(lengths(4100, 16), [576, 576, 576, 576, 576, 576, 576, 68]);
        // 32 rows of 32 heads that share none, over 512.
        assert_eq!(lengths(544, 32), [192, 192, 160]);
        assert_eq!(lengths(1 << 20, 1).len(), 128);
        assert!(lengths(511, 1).is_empty());
        assert!(lengths(1 << 20, 65).is_empty());
    }
}
