//! Who uses which block of the key/value pool.
//!
//! Sequences take blocks and give them back. A block whose contents depend only on the tokens up to its
//! end can be published under them; it is then found by other sequences that begin with the same tokens,
//! and stays after its last user has gone until its place is needed, the least recently used first.

use std::collections::{BTreeMap, HashMap};

use crate::canvas::TokenId;

/// A block of the pool, by its number.
pub(in crate::engine) type BlockId = u32;

/// What a published block holds: the tokens in its slots, and what comes before them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::engine) struct Contents {
    /// What comes before.
    pub before: Before,
    /// The block's tokens.
    pub tokens: Box<[TokenId]>,
}

/// What comes before a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::engine) enum Before {
    /// Nothing but so many unused slots.
    Nothing(usize),
    /// The contents published under this number.
    Published(u64),
}

#[derive(Debug, Clone, Default)]
struct Block {
    users: usize,
    published: Option<(u64, Contents)>,
    /// When it was last given back by its last user.
    idle_since: u64,
}

/// The blocks of a pool.
#[derive(Debug)]
pub(in crate::engine) struct Blocks {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    /// Published blocks that nobody uses, by when they fell idle.
    idle: BTreeMap<u64, BlockId>,
    by_contents: HashMap<Contents, BlockId>,
    clock: u64,
    published: u64,
}

impl Blocks {
    /// `count` free blocks.
    pub fn new(count: usize) -> Self {
        Self {
            blocks: vec![Block::default(); count],
            free: (0..count as BlockId).rev().collect(),
            idle: BTreeMap::new(),
            by_contents: HashMap::new(),
            clock: 0,
            published: 0,
        }
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody uses.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Takes `count` blocks, or none if there are not so many.
    pub fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if self.available() < count {
            return None;
        }
        let taken = (0..count).filter_map(|_| self.take_one()).collect();
        Some(taken)
    }

    fn take_one(&mut self) -> Option<BlockId> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let (_, id) = self.idle.pop_first()?;
                if let Some((_, contents)) = self.blocks[id as usize].published.take() {
                    self.by_contents.remove(&contents);
                }
                id
            }
        };
        self.blocks[id as usize].users = 1;
        Some(id)
    }

    /// Gives back one use of a block.
    pub fn give_back(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        debug_assert!(
            block.users > 0,
            "block {id} is given back more often than taken"
        );
        block.users = block.users.saturating_sub(1);
        if block.users > 0 {
            return;
        }
        if block.published.is_some() {
            self.clock += 1;
            block.idle_since = self.clock;
            self.idle.insert(self.clock, id);
        } else {
            self.free.push(id);
        }
    }

    /// The block that holds `contents`, used once more, and the number it is published under.
    pub fn find(&mut self, contents: &Contents) -> Option<(BlockId, u64)> {
        let id = *self.by_contents.get(contents)?;
        let block = &mut self.blocks[id as usize];
        let (number, _) = block.published.as_ref()?;
        let number = *number;
        if block.users == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.users += 1;
        Some((id, number))
    }

    /// Publishes what a block in use holds; the number it is published under, which is that of another
    /// block if that holds the same already.
    pub fn publish(&mut self, id: BlockId, contents: Contents) -> u64 {
        if let Some(other) = self.by_contents.get(&contents)
            && let Some((number, _)) = &self.blocks[*other as usize].published
        {
            return *number;
        }
        self.published += 1;
        self.by_contents.insert(contents.clone(), id);
        self.blocks[id as usize].published = Some((self.published, contents));
        self.published
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(before: Before, tokens: &[TokenId]) -> Contents {
        Contents {
            before,
            tokens: tokens.into(),
        }
    }

    #[test]
    fn a_published_block_is_found_until_its_place_is_needed() {
        let mut blocks = Blocks::new(2);
        let first = blocks.take(1).unwrap()[0];
        let of_first = contents(Before::Nothing(0), &[1, 2]);
        let number = blocks.publish(first, of_first.clone());
        blocks.give_back(first);
        assert_eq!(blocks.available(), 2);
        assert_eq!(blocks.find(&of_first), Some((first, number)));
        assert_eq!(blocks.take(2), None);
        blocks.give_back(first);
        assert_eq!(blocks.take(2).unwrap().len(), 2);
        assert_eq!(blocks.find(&of_first), None);
    }

    #[test]
    fn the_block_that_was_used_last_is_evicted_last() {
        let mut blocks = Blocks::new(3);
        let ids = blocks.take(3).unwrap();
        let each = |i: usize| contents(Before::Nothing(0), &[i as TokenId]);
        for (i, id) in ids.iter().enumerate() {
            blocks.publish(*id, each(i));
        }
        ids.iter().for_each(|id| blocks.give_back(*id));
        let (found, _) = blocks.find(&each(0)).unwrap();
        blocks.give_back(found);
        blocks.take(2).unwrap();
        assert!(blocks.find(&each(0)).is_some());
        assert!(blocks.find(&each(1)).is_none() && blocks.find(&each(2)).is_none());
    }

    #[test]
    fn the_same_tokens_after_others_are_other_contents() {
        let mut blocks = Blocks::new(2);
        let ids = blocks.take(2).unwrap();
        let number = blocks.publish(ids[0], contents(Before::Nothing(0), &[5]));
        blocks.publish(ids[1], contents(Before::Published(number), &[5]));
        assert!(blocks.find(&contents(Before::Nothing(1), &[5])).is_none());
        assert!(
            blocks
                .find(&contents(Before::Published(number + 9), &[5]))
                .is_none()
        );
    }

    proptest! {
        /// Blocks are in the hands of their users, idle or free, and never in two hands that did not
        /// find the same contents.
        #[test]
        fn no_block_is_lost_or_handed_out_twice(moves in prop::collection::vec((0u8..4, 0u32..6), 1..200)) {
            let mut blocks = Blocks::new(5);
            let mut held: Vec<(BlockId, Option<u32>)> = Vec::new();
            for (kind, token) in moves {
                let key = contents(Before::Nothing(0), &[token]);
                match kind {
                    0 => {
                        if let Some(taken) = blocks.take(1) {
                            prop_assert!(held.iter().all(|(id, _)| *id != taken[0]));
                            held.push((taken[0], None));
                        }
                    }
                    1 => {
                        if let Some((id, None)) = held.last().copied() {
                            let known = blocks.find(&key).map(|(other, _)| blocks.give_back(other));
                            blocks.publish(id, key);
                            if known.is_none() {
                                held.last_mut().unwrap().1 = Some(token);
                            }
                        }
                    }
                    2 => {
                        if let Some((id, _)) = blocks.find(&key) {
                            let holders = held.iter().filter(|(other, _)| *other == id);
                            for (_, of) in holders {
                                prop_assert_eq!(*of, Some(token));
                            }
                            held.push((id, Some(token)));
                        }
                    }
                    _ => {
                        if !held.is_empty() {
                            let (id, _) = held.remove(token as usize % held.len());
                            blocks.give_back(id);
                        }
                    }
                }
                let mut used: Vec<_> = held.iter().map(|(id, _)| *id).collect();
                used.sort_unstable();
                used.dedup();
                prop_assert_eq!(blocks.available(), blocks.total() - used.len());
            }
        }
    }
}
