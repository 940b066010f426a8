//! Matrices some rows at a time.

use std::ops::Range;

/// The rows of a matrix of `rows` by `width` in parts of at most `entries` entries, or of one row where that has more.
pub(super) fn row_parts(
    rows: usize,
    width: usize,
    entries: usize,
) -> impl Iterator<Item = Range<usize>> {
    let count = (entries / width.max(1)).max(1);
    (0..rows)
        .step_by(count)
        .map(move |start| start..rows.min(start + count))
}
