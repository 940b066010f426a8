//! Automata over tokens.

use std::collections::HashMap;
use std::sync::Arc;

use super::byte_dfa::{ByteDfa, DEAD};
use super::state_sets::{STEP_WORK, StateSet, StateSets};
use super::{ConstraintError, Vocabulary};
use crate::canvas::TokenId;
use crate::sampling::TokenSet;

/// The most bytes of the sets of tokens that lead from state to state.
const MAX_SET_BYTES: usize = 1 << 26;

/// The most nodes of the vocabulary's tree that are looked at, and tokens that are found: about a second of work.
const MAX_WORK: usize = 1 << 28;

/// A language over the tokens of a vocabulary: which tokens lead from which state to which other. All of it is
/// made at once, so that denoising only follows it; beside its automaton over bytes it takes 64 MiB at most.
#[derive(Debug)]
pub struct TokenDfa {
    bytes: ByteDfa,
    vocabulary: Arc<Vocabulary>,
    /// From each state, ascending by where they lead.
    edges: Vec<Box<[Edge]>>,
    /// What edges are named by.
    sets: Vec<Tokens>,
    /// Bytes of edges and sets.
    memory: usize,
}

/// All tokens that lead to one state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    pub target: u32,
    /// Which set of tokens.
    pub set: u32,
}

/// A set of tokens in the form that takes less memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Tokens {
    Few(Box<[TokenId]>),
    Many(TokenSet),
}

impl Tokens {
    fn new(mut tokens: Vec<TokenId>, vocab: usize) -> Self {
        if tokens.len() <= vocab.div_ceil(32) {
            tokens.sort_unstable();
            return Self::Few(tokens.into());
        }
        let mut set = TokenSet::empty(vocab);
        tokens.iter().for_each(|token| set.insert(*token));
        Self::Many(set)
    }

    fn contains(&self, token: TokenId) -> bool {
        match self {
            Self::Few(tokens) => tokens.binary_search(&token).is_ok(),
            Self::Many(tokens) => tokens.contains(token),
        }
    }

    fn bytes(&self, vocab: usize) -> usize {
        4 * match self {
            Self::Few(tokens) => tokens.len(),
            Self::Many(_) => vocab.div_ceil(32),
        }
    }
}

impl TokenDfa {
    /// The texts of `bytes`, as tokens of `vocabulary` end to end.
    ///
    /// # Errors
    /// [`ConstraintError::TooLarge`]
    pub fn new(bytes: ByteDfa, vocabulary: Arc<Vocabulary>) -> Result<Self, ConstraintError> {
        let vocab = vocabulary.size();
        let mut ids: HashMap<Tokens, u32> = HashMap::new();
        let mut edges = Vec::with_capacity(bytes.states());
        let (mut memory, mut work, mut found) = (0, 0, 0);
        // The tokens that lead to each state from one, and the states that any leads to.
        let mut by_target: Vec<Vec<TokenId>> = vec![Vec::new(); bytes.states()];
        let mut targets = Vec::new();
        for state in 0..bytes.states() as u32 {
            work += vocabulary.follow(
                state,
                |state, byte| Some(bytes.next(state, byte)).filter(|next| *next != DEAD),
                |token, target| {
                    let tokens = &mut by_target[target as usize];
                    if tokens.is_empty() {
                        targets.push(target);
                    }
                    tokens.push(token);
                    found += 1;
                },
            );
            targets.sort_unstable();
            let of_state = targets.drain(..).map(|target| {
                // Taken whole: room kept for every state would come to many times what the sets take.
                let tokens = std::mem::take(&mut by_target[target as usize]);
                let set = Tokens::new(tokens, vocab);
                let count = ids.len() as u32;
                let of_set = set.bytes(vocab);
                let set = *ids.entry(set).or_insert_with(|| {
                    memory += of_set;
                    count
                });
                Edge { target, set }
            });
            let of_state: Box<[Edge]> = of_state.collect();
            memory += size_of_val(&*of_state);
            edges.push(of_state);
            if memory > MAX_SET_BYTES || work + found > MAX_WORK {
                return Err(ConstraintError::TooLarge(format!(
                    "over this model's vocabulary of {vocab} tokens its automaton of {} states takes more than {}",
                    bytes.states(),
                    match memory > MAX_SET_BYTES {
                        true => format!("{} MiB", MAX_SET_BYTES >> 20),
                        false => "a second to make".to_owned(),
                    }
                )));
            }
        }
        let mut sets: Vec<(Tokens, u32)> = ids.into_iter().collect();
        sets.sort_unstable_by_key(|(_, id)| *id);
        Ok(Self {
            bytes,
            vocabulary,
            edges,
            sets: sets.into_iter().map(|(set, _)| set).collect(),
            memory,
        })
    }

    /// Number of states; the first is where texts begin.
    pub fn states(&self) -> usize {
        self.edges.len()
    }

    /// Bytes of memory that it takes, about.
    pub fn memory_bytes(&self) -> usize {
        self.memory + self.bytes.memory_bytes()
    }

    /// Which numbers of tokens, from 0 to `most`, a text can have; with `may_end` it is then filled up with
    /// stop tokens, so that its own tokens may be fewer. Fewer numbers are looked at where that would take long.
    pub fn lengths(&self, most: usize, may_end: bool) -> Vec<bool> {
        let mut sets = StateSets::new(self, may_end);
        let mut reached = sets.start();
        let mut lengths = Vec::new();
        while lengths.len() <= most && sets.work() <= STEP_WORK {
            lengths.push(sets.meet(reached, sets.end()));
            let all = sets.all();
            reached = sets.after_any(self, reached, all);
        }
        lengths
    }

    /// The states from which any token leads, as edges.
    pub(super) fn edges(&self, state: u32) -> &[Edge] {
        &self.edges[state as usize]
    }

    /// Where a token leads from a state, none if it may not follow; and how many bytes or edges were looked at,
    /// the fewer of both.
    pub(super) fn target(&self, state: u32, token: TokenId) -> (Option<u32>, usize) {
        let bytes = self.vocabulary.bytes(token);
        let edges = self.edges(state);
        if bytes.len() > edges.len() {
            let holds = |edge: &&Edge| self.sets[edge.set as usize].contains(token);
            let edge = edges.iter().find(holds);
            return (edge.map(|edge| edge.target), edges.len());
        }
        let target = Some(self.bytes.walk(state, bytes));
        let target = target.filter(|state| *state != DEAD && !bytes.is_empty());
        (target, bytes.len())
    }

    /// Whether a text may end in a state.
    pub(super) fn is_accepting(&self, state: u32) -> bool {
        self.bytes.is_accepting(state)
    }

    /// Whether there are tokens that end a text.
    pub(super) fn has_ends(&self) -> bool {
        !self.vocabulary.ends().is_empty()
    }

    /// Whether a token ends a text.
    pub(super) fn is_end(&self, token: TokenId) -> bool {
        self.vocabulary.ends().contains(&token)
    }

    /// The tokens that lead from a state of `from` to one of `to`, and the stop tokens if `ends`; and how many
    /// states, edges and words of sets were looked at.
    pub(super) fn tokens_between(
        &self,
        from: &StateSet,
        to: &StateSet,
        ends: bool,
    ) -> (TokenSet, usize) {
        let mut looked_at = self.vocabulary.size().div_ceil(32);
        let mut is_taken = vec![false; self.sets.len()];
        let mut tokens = TokenSet::empty(self.vocabulary.size());
        for state in from.states() {
            looked_at += 1 + self.edges(state).len();
            for edge in self.edges(state) {
                if to.contains(edge.target)
                    && !std::mem::replace(&mut is_taken[edge.set as usize], true)
                {
                    let set = &self.sets[edge.set as usize];
                    looked_at += set.bytes(self.vocabulary.size()) / 4;
                    match set {
                        Tokens::Few(few) => few.iter().for_each(|token| tokens.insert(*token)),
                        Tokens::Many(many) => tokens.extend(many),
                    }
                }
            }
        }
        if ends {
            let ends = self.vocabulary.ends().iter();
            ends.for_each(|token| tokens.insert(*token));
        }
        (tokens, looked_at)
    }
}
