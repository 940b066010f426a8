//! Which documents and windows are evaluated.

use super::words::Words;
use crate::sampling::philox::Stream;

/// What is chosen: other things are chosen by other random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// Documents of a collection.
    Documents,
    /// Windows that are denoised, of those that are evaluated.
    Denoised,
    /// Windows of the document with this place in the collection.
    Windows {
        /// The place.
        document: usize,
    },
}

/// Cuts 0..`total` into `count` consecutive strata, equal but for one, and takes one number at random from
/// each: (number, size of its stratum). The size is the inverse of the number's probability, and so how many
/// it stands for. If there are no more than `count`, each is taken and stands for itself.
pub(super) fn one_of_each_stratum(
    total: usize,
    count: usize,
    seed: u64,
    choice: Choice,
) -> impl Iterator<Item = (usize, usize)> {
    let (step, slot) = match choice {
        Choice::Documents => (0, 0),
        Choice::Denoised => (0, 1),
        Choice::Windows { document } => (1, document),
    };
    let mut words = Words::new(seed, step, slot, Stream::Sample);
    let count = count.min(total);
    let border = move |stratum| (stratum as u128 * total as u128 / count as u128) as usize;
    (0..count).map(move |stratum| {
        let (first, end) = (border(stratum), border(stratum + 1));
        (first + words.below(end - first), end - first)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn one_is_taken_of_each_stratum_and_they_stand_for_all(
            total in 0usize..200,
            count in 1usize..50,
            seed in any::<u64>(),
        ) {
            let taken: Vec<_> = one_of_each_stratum(total, count, seed, Choice::Documents).collect();
            prop_assert_eq!(taken.len(), count.min(total));
            let mut first = 0;
            for (number, size) in taken {
                prop_assert!((first..first + size).contains(&number));
                first += size;
            }
            prop_assert_eq!(first, total);
        }
    }

    #[test]
    fn a_weighted_mean_over_seeds_is_that_of_all_numbers() {
        // 7 in 3 strata of 2, 2 and 3: no number counts for more than another.
        let (total, runs) = (7usize, 6000u64);
        let mut weights = vec![0; total];
        for seed in 0..runs {
            for (number, size) in one_of_each_stratum(total, 3, seed, Choice::Denoised) {
                weights[number] += size;
            }
        }
        // Of a number in a stratum of k: k · Binomial(6000, 1/k), whose standard deviation is at most 110.
        assert!(
            weights.iter().all(|weight| (5500..6500).contains(weight)),
            "{weights:?}"
        );
    }
}
