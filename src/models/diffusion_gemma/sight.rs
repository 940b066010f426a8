//! What the rows of a batch see in the sliding layers.

use crate::models::batch::Segment;

/// `segments`, for layers that see the last `window` slots: an encoded row those up to itself, and the rows of a
/// block the last `window` − 1 slots before the block besides the whole of it (`DiffusionGemmaDecoderModel` reads
/// what a sliding cache holds).
pub(super) fn within_window(
    segments: &[Segment],
    positions: &[u32],
    window: usize,
) -> Vec<Segment> {
    let of = |segment: &Segment| {
        let positions = &positions[segment.rows.clone()];
        match segment.encodes {
            true => encoded(segment, positions, window),
            false => Segment {
                context: last(&segment.context, window - 1).to_vec(),
                ..segment.clone()
            },
        }
    };
    segments.iter().map(of).collect()
}

fn last<T>(all: &[T], count: usize) -> &[T] {
    &all[all.len().saturating_sub(count)..]
}

fn encoded(segment: &Segment, positions: &[u32], window: usize) -> Segment {
    let (rows, context) = (segment.rows.len(), segment.context.len());
    if context + rows <= window {
        return segment.clone();
    }
    // The context's slots come right before the first row.
    let seen = last(&segment.context, window - 1);
    let first = positions.first().copied().unwrap_or(0);
    let context_from = positions.iter().map(|position| {
        let passed = (position - first) as usize;
        (seen.len() + passed + 1)
            .saturating_sub(window)
            .min(seen.len())
    });
    let allowed = segment.allowed.as_ref().map(|allowed| {
        let pairs = allowed.iter().enumerate();
        let within = |(pair, allowed): (usize, &bool)| {
            let (row, other) = (positions[pair / rows], positions[pair % rows]);
            *allowed && ((row - other.min(row)) as usize) < window
        };
        pairs.map(within).collect()
    });
    Segment {
        allowed,
        context: seen.to_vec(),
        context_from: context_from.collect(),
        ..segment.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The positions that each row of a segment at `first` sees, whose pool slots are positions.
    fn seen(encodes: bool, first: u32, rows: usize, window: usize) -> Vec<Vec<u32>> {
        let causal = (0..rows).flat_map(|row| (0..rows).map(move |other| other <= row));
        let segment = Segment {
            rows: 0..rows,
            allowed: encodes.then(|| causal.collect()),
            context: (0..first).collect(),
            encodes,
            ..Segment::default()
        };
        let positions: Vec<u32> = (first..first + rows as u32).collect();
        let [segment] = within_window(&[segment], &positions, window)
            .try_into()
            .unwrap();
        let of_row = |row: usize| {
            let from = segment.context_from.get(row).copied().unwrap_or(0);
            let own = (0..rows).filter(|other| {
                let allowed = segment.allowed.as_ref();
                allowed.is_none_or(|allowed| allowed[row * rows + other])
            });
            let context = segment.context[from..].iter().copied();
            context.chain(own.map(|other| positions[other])).collect()
        };
        (0..rows).map(of_row).collect()
    }

    #[test]
    fn an_encoded_row_sees_the_last_slots_up_to_itself() {
        for (first, rows, window) in [(0, 7, 3), (5, 4, 3), (5, 2, 9), (3, 4, 1), (2, 6, 4)] {
            for (row, seen) in seen(true, first, rows, window).into_iter().enumerate() {
                let position = first + row as u32;
                let from = (position + 1).saturating_sub(window as u32);
                assert_eq!(seen, (from..=position).collect::<Vec<_>>(), "{first} {row}");
            }
        }
    }

    #[test]
    fn a_block_sees_itself_whatever_the_window_and_the_same_slots_before_it_from_each_row() {
        for (first, rows, window) in [(0, 5, 3), (9, 5, 3), (2, 3, 8), (4, 2, 1)] {
            let from = first - (window as u32 - 1).min(first);
            let expected: Vec<u32> = (from..first + rows as u32).collect();
            for seen in seen(false, first, rows, window) {
                assert_eq!(seen, expected);
            }
        }
    }
}
