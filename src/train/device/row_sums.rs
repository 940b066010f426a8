//! The gradient of a lookup: sums of the rows that were looked up by the same token.

use candle_core::{Device, Result, Tensor};

/// An index that reads a row of zeros: what candle's lookups make of the largest number.
const NOTHING: u32 = u32::MAX;

/// Rows that are summed at once.
const FAN_IN: usize = 8;

/// For each token the sum of its rows, as a tree: rows of one token are summed by eights, then the sums, until
/// each token has one.
///
/// candle's `index_add` does the same with one thread a column, which on CUDA adds row after row: thousands of
/// dependent reads and writes, of which most have the mask token.
pub struct RowSums {
    /// For each level the rows of the one before, [`FAN_IN`] a sum.
    levels: Vec<Tensor>,
    /// The row of the last level with each token's sum, `[V]`.
    of_token: Tensor,
}

impl RowSums {
    /// The sums over rows of `tokens`, `[rows]`, each less than `vocab`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(tokens: &[u32], vocab: usize, device: &Device) -> Result<Self> {
        let mut rows: Vec<(u32, u32)> = tokens.iter().copied().zip(0..).collect();
        rows.sort_unstable();
        let mut levels = Vec::new();
        while rows.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            let (mut sums, mut indices) = (Vec::new(), Vec::new());
            for of_token in rows.chunk_by(|a, b| a.0 == b.0) {
                for part in of_token.chunks(FAN_IN) {
                    sums.push((part[0].0, (indices.len() / FAN_IN) as u32));
                    indices.extend(part.iter().map(|(_, row)| *row));
                    indices.resize(FAN_IN * sums.len(), NOTHING);
                }
            }
            let count = indices.len();
            levels.push(Tensor::from_vec(indices, count, device)?);
            rows = sums;
        }
        let mut of_token = vec![NOTHING; vocab];
        for (token, row) in rows {
            of_token[token as usize] = row;
        }
        Ok(Self {
            levels,
            of_token: Tensor::from_vec(of_token, vocab, device)?,
        })
    }

    /// `[V, D]` of `rows` `[rows, D]`; zeros for tokens without rows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn sum(&self, rows: &Tensor) -> Result<Tensor> {
        let width = rows.dim(1)?;
        let mut rows = rows.clone();
        for level in &self.levels {
            let parts = rows.index_select(level, 0)?;
            rows = parts.reshape(((), FAN_IN, width))?.sum(1)?;
        }
        rows.index_select(&self.of_token, 0)
    }
}

/// For each of `count` rows its place in `chosen`, or an index that reads zeros: by it a gradient of chosen rows
/// becomes one of all.
pub fn places(chosen: &[u32], count: usize) -> Vec<u32> {
    let mut places = vec![NOTHING; count];
    for (place, row) in (0..).zip(chosen) {
        places[*row as usize] = place;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_token_are_summed_however_many_there_are() {
        let mut tokens = vec![3; 100];
        tokens.extend([0, 5, 0, 4, 4, 4]);
        let rows: Vec<f32> = (0..2 * tokens.len()).map(|i| i as f32).collect();
        let mut expected = vec![[0.0; 2]; 7];
        for (token, row) in tokens.iter().zip(rows.as_chunks::<2>().0) {
            expected[*token as usize][0] += row[0];
            expected[*token as usize][1] += row[1];
        }
        let rows = Tensor::from_vec(rows, (tokens.len(), 2), &Device::Cpu).unwrap();
        let sums = RowSums::new(&tokens, 7, &Device::Cpu).unwrap();
        let found = sums.sum(&rows).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found, expected);
        // None is looked up twice: nothing to sum.
        let single = RowSums::new(&[2, 0], 3, &Device::Cpu).unwrap();
        let found = single.sum(&rows.narrow(0, 0, 2).unwrap()).unwrap();
        assert_eq!(
            found.to_vec2::<f32>().unwrap(),
            [[2., 3.], [0., 0.], [0., 1.]]
        );
    }
}
