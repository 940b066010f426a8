//! How many sequences and rows an evaluation puts through a model at once.

/// Rows that go through the network at once; a longer sequence goes alone.
const BATCH_ROWS: usize = 2048;

/// `sequences`, in order, in parts of at most [`BATCH_ROWS`] rows together, or of one sequence that has
/// more.
pub(super) fn batches<'a, T>(
    sequences: &'a [T],
    rows: impl Fn(&T) -> usize + 'a,
) -> impl Iterator<Item = &'a [T]> {
    let mut rest = sequences;
    std::iter::from_fn(move || {
        let mut total = 0;
        let fitting = rest.iter().take_while(|sequence| {
            total += rows(sequence);
            total <= BATCH_ROWS
        });
        let count = fitting.count().max(1).min(rest.len());
        let (batch, later) = rest.split_at(count);
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}
