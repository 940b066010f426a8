//! The tokens of a model by their bytes.

use crate::canvas::TokenId;

/// The longest token, in bytes, that may be part of a constrained gap.
const LONGEST: usize = 1 << 10;

/// The tokens that a text can be made of, as a tree of their bytes, and those that end one.
#[derive(Debug)]
pub struct Vocabulary {
    size: usize,
    /// The bytes of every token, end to end.
    bytes: Vec<u8>,
    /// Where those of each token begin; one entry more for the end.
    starts: Vec<u32>,
    /// The tree's nodes, parents before children, each subtree in one piece.
    nodes: Vec<Node>,
    /// The tokens in the order of the nodes at which they end.
    order: Vec<TokenId>,
    ends: Vec<TokenId>,
    longest: usize,
}

/// One more byte of some tokens.
#[derive(Debug, Clone, Copy)]
struct Node {
    byte: u8,
    /// Bytes on the way here, from 1.
    depth: u16,
    /// The node after this one's subtree.
    after: u32,
    /// The tokens that end here: from this one in the order up to the next node's.
    tokens: u32,
}

impl Vocabulary {
    /// `size` tokens, of which `bytes` gives what each stands for. Those without bytes, such as special
    /// tokens, are not part of any text; `ends` are the stop tokens, which are not either.
    pub fn new<'a>(
        size: usize,
        ends: &[TokenId],
        mut bytes: impl FnMut(TokenId) -> &'a [u8],
    ) -> Self {
        let mut all = Vec::new();
        let mut starts = Vec::with_capacity(size + 1);
        for token in 0..size as TokenId {
            starts.push(all.len() as u32);
            let of_token = bytes(token);
            if of_token.len() <= LONGEST && !ends.contains(&token) {
                all.extend_from_slice(of_token);
            }
        }
        starts.push(all.len() as u32);
        let mut vocabulary = Self {
            size,
            bytes: all,
            starts,
            nodes: Vec::new(),
            order: Vec::new(),
            ends: ends.to_vec(),
            longest: 0,
        };
        let mut order: Vec<TokenId> = (0..size as TokenId)
            .filter(|token| !vocabulary.bytes(*token).is_empty())
            .collect();
        order.sort_by_key(|token| vocabulary.bytes(*token));
        let mut nodes: Vec<Node> = Vec::new();
        // The nodes on the way to the last token.
        let mut path: Vec<usize> = Vec::new();
        for (at, token) in (0..).zip(&order) {
            let bytes = vocabulary.bytes(*token);
            let shared = path.iter().zip(bytes);
            let shared = shared.take_while(|(node, byte)| nodes[**node].byte == **byte);
            let shared = shared.count();
            for node in path.drain(shared..) {
                nodes[node].after = nodes.len() as u32;
            }
            for (depth, byte) in bytes.iter().enumerate().skip(shared) {
                path.push(nodes.len());
                nodes.push(Node {
                    byte: *byte,
                    depth: depth as u16 + 1,
                    after: 0,
                    tokens: at,
                });
            }
        }
        for node in path {
            nodes[node].after = nodes.len() as u32;
        }
        vocabulary.longest = nodes
            .iter()
            .map(|node| node.depth)
            .max()
            .unwrap_or(0)
            .into();
        vocabulary.nodes = nodes;
        vocabulary.order = order;
        vocabulary
    }

    /// Number of tokens.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The bytes of a token; empty if it is not part of any text.
    pub(super) fn bytes(&self, token: TokenId) -> &[u8] {
        let token = token as usize;
        match (self.starts.get(token), self.starts.get(token + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// The stop tokens.
    pub(super) fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Follows the bytes of all tokens from `start`: `next` is where a byte leads from a state, none if
    /// nowhere, and `found` is told of each token that can be followed to its end, and where it leads. How
    /// many nodes were looked at.
    pub(super) fn follow(
        &self,
        start: u32,
        mut next: impl FnMut(u32, u8) -> Option<u32>,
        mut found: impl FnMut(TokenId, u32),
    ) -> usize {
        let mut states = vec![start; self.longest + 1];
        let (mut at, mut looked_at) = (0, 0);
        while let Some(node) = self.nodes.get(at) {
            looked_at += 1;
            let depth = usize::from(node.depth);
            let Some(state) = next(states[depth - 1], node.byte) else {
                at = node.after as usize;
                continue;
            };
            states[depth] = state;
            at += 1;
            let tokens = self.nodes.get(at).map(|node| node.tokens as usize);
            for token in &self.order[node.tokens as usize..tokens.unwrap_or(self.order.len())] {
                found(*token, state);
            }
        }
        looked_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found_once_with_all_its_bytes() {
        let tokens: [&[u8]; 9] = [b"b", b"ab", b"", b"a", b"abc", b"b", b"ba", b"stop", b"c"];
        let vocabulary = Vocabulary::new(9, &[7], |token| tokens[token as usize]);
        let mut seen = Vec::new();
        let lengths = |state, _| Some(state + 1);
        vocabulary.follow(0, lengths, |token, length| seen.push((token, length)));
        seen.sort_unstable();
        assert_eq!(
            seen,
            [(0, 1), (1, 2), (3, 1), (4, 3), (5, 1), (6, 2), (8, 1)]
        );
        let mut without_b = Vec::new();
        let next = |state, byte| (byte != b'b').then_some(state);
        vocabulary.follow(0, next, |token, _| without_b.push(token));
        assert_eq!(without_b, [3, 8]);
        assert!(vocabulary.bytes(7).is_empty() && vocabulary.bytes(99).is_empty());
    }
}
