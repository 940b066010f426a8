//! Lists that a kernel reads, end to end, so that one copy takes them all to a device.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::NoUninit;

/// Bytes to which the beginning of each list is aligned: more than any kernel's struct asks for.
pub const ALIGNMENT: usize = 16;

/// Lists of plain numbers in one piece of memory.
#[derive(Debug, Clone)]
pub struct Packing {
    bytes: Vec<u8>,
}

/// Where a list of a [`Packing`] is.
#[derive(Debug)]
pub struct Part<T> {
    first: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Part<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Part<T> {}

impl<T> Part<T> {
    /// Entries of the list.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the list has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes within [`Packing::bytes`].
    pub fn bytes(&self) -> Range<usize> {
        self.first..self.first + self.len * size_of::<T>()
    }
}

impl Default for Packing {
    fn default() -> Self {
        Self::new()
    }
}

impl Packing {
    /// Without lists.
    pub fn new() -> Self {
        // A list without entries is never read, but has to be somewhere: within the memory, which is never empty.
        Self {
            bytes: vec![0; ALIGNMENT],
        }
    }

    /// Appends a list.
    pub fn push<T: NoUninit>(&mut self, list: &[T]) -> Part<T> {
        const { assert!(align_of::<T>() <= ALIGNMENT) };
        let first = match list.is_empty() {
            true => 0,
            false => self.bytes.len(),
        };
        self.bytes.extend_from_slice(bytemuck::cast_slice(list));
        let aligned = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(aligned, 0);
        Part {
            first,
            len: list.len(),
            element: PhantomData,
        }
    }

    /// All lists, and what aligns them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
        let chunks = bytes.chunks_exact(size_of::<T>());
        chunks.map(bytemuck::pod_read_unaligned).collect()
    }

    #[test]
    fn lists_of_any_length_are_found_aligned_where_their_parts_say() {
        for lengths in [[0, 0, 0], [1, 3, 2], [5, 0, 7], [17, 4, 0]] {
            let words: Vec<u64> = (0..lengths[0]).map(|i| i << 40 | 3).collect();
            let numbers: Vec<f32> = (0..lengths[1]).map(|i| i as f32 - 0.5).collect();
            let bytes: Vec<u8> = (0..lengths[2]).map(|i| i as u8 + 9).collect();
            let mut packing = Packing::new();
            let of_words = packing.push(&words);
            let of_numbers = packing.push(&numbers);
            let of_bytes = packing.push(&bytes);
            let all = packing.bytes();
            assert_eq!(read::<u64>(&all[of_words.bytes()]), words);
            assert_eq!(read::<f32>(&all[of_numbers.bytes()]), numbers);
            assert_eq!(all[of_bytes.bytes()], bytes);
            for (first, len) in [
                (of_words.bytes().start, of_words.len()),
                (of_numbers.bytes().start, of_numbers.len()),
                (of_bytes.bytes().start, of_bytes.len()),
            ] {
                assert!(first.is_multiple_of(ALIGNMENT) && first < all.len());
                assert_eq!(len == 0, first == 0);
            }
            assert_eq!(of_bytes.is_empty(), bytes.is_empty());
        }
    }
}
