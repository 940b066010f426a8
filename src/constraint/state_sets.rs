//! Sets of an automaton's states, and where they lead.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use super::{ConstraintError, TokenDfa};
use crate::canvas::TokenId;
use crate::sampling::TokenSet;

/// The most bytes of the sets that are kept; then those that are not in use are forgotten.
const MOST_BYTES: usize = 1 << 21;

/// The most states and edges that are looked at to follow a gap from end to end, which a step may have to do
/// anew: some tens of milliseconds.
const MAX_WORK: usize = 1 << 26;

/// The most results for single tokens that are kept.
const MOST_BEFORE: usize = 1 << 14;

/// The most bytes of the sets of allowed tokens that are kept.
const MOST_ALLOWED_BYTES: usize = 1 << 22;

/// States of an automaton, and after the last of them the state of a text that has ended, after which only
/// stop tokens follow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StateSet {
    has_ended: bool,
    words: Box<[u64]>,
}

impl StateSet {
    fn empty(states: usize) -> Self {
        Self {
            has_ended: false,
            words: vec![0; states.div_ceil(64)].into(),
        }
    }

    fn insert(&mut self, state: u32) {
        self.words[state as usize / 64] |= 1 << (state % 64);
    }

    /// Whether a state is in it.
    pub fn contains(&self, state: u32) -> bool {
        self.words[state as usize / 64] >> (state % 64) & 1 == 1
    }

    /// The automaton's states in it.
    pub fn states(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.words).flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.wrapping_sub(1);
                (bit < 64).then_some(64 * index + bit)
            })
        })
    }

    fn meets(&self, other: &Self) -> bool {
        let mut pairs = self.words.iter().zip(&other.words);
        (self.has_ended && other.has_ended) || pairs.any(|(a, b)| a & b != 0)
    }
}

/// A set by its number, so that equal sets have equal numbers.
pub(super) type SetId = u32;

/// The sets of states of one gap, each once, and what was found out about them.
#[derive(Debug, Clone)]
pub(super) struct StateSets {
    /// Whether stop tokens may follow a text.
    may_end: bool,
    /// Where texts may end.
    end: SetId,
    sets: Vec<Arc<StateSet>>,
    ids: HashMap<Arc<StateSet>, SetId>,
    after_any: HashMap<SetId, SetId>,
    before_any: HashMap<SetId, SetId>,
    before: HashMap<(SetId, TokenId), SetId>,
    allowed: HashMap<(SetId, SetId), Arc<TokenSet>>,
    /// States and edges that were looked at for sets of any tokens.
    work: usize,
}

impl StateSets {
    pub fn new(language: &TokenDfa, may_end: bool) -> Self {
        let may_end = may_end && language.has_ends();
        let mut sets = Self {
            may_end,
            end: 0,
            sets: Vec::new(),
            ids: HashMap::new(),
            after_any: HashMap::new(),
            before_any: HashMap::new(),
            before: HashMap::new(),
            allowed: HashMap::new(),
            work: 0,
        };
        let mut start = StateSet::empty(language.states());
        start.insert(0);
        sets.id(start);
        let mut end = StateSet::empty(language.states());
        end.has_ended = may_end;
        for state in (0..language.states() as u32).filter(|state| language.is_accepting(*state)) {
            end.insert(state);
        }
        sets.end = sets.id(end);
        sets
    }

    fn id(&mut self, set: StateSet) -> SetId {
        let next = self.sets.len() as SetId;
        let set = Arc::new(set);
        let id = *self.ids.entry(set.clone()).or_insert(next);
        if id == next {
            self.sets.push(set);
        }
        id
    }

    /// Where texts begin.
    pub fn start(&self) -> SetId {
        0
    }

    /// Where they may end.
    pub fn end(&self) -> SetId {
        self.end
    }

    /// Whether what was looked at is beyond what a step may take.
    pub fn check_work(&self, slots: usize) -> Result<(), ConstraintError> {
        match self.work > MAX_WORK {
            true => Err(ConstraintError::TooLarge(format!(
                "following it over {slots} slots takes more than {MAX_WORK} operations a step; ask for a shorter \
                 gap or a simpler form"
            ))),
            false => Ok(()),
        }
    }

    /// Whether two sets have a state in common.
    pub fn meet(&self, a: SetId, b: SetId) -> bool {
        self.sets[a as usize].meets(&self.sets[b as usize])
    }

    /// The states that any one token leads to from those of a set.
    pub fn after_any(&mut self, language: &TokenDfa, from: SetId) -> SetId {
        if let Some(known) = self.after_any.get(&from) {
            return *known;
        }
        let set = self.sets[from as usize].clone();
        let mut after = StateSet::empty(language.states());
        for state in set.states() {
            let edges = language.edges(state);
            self.work += 1 + edges.len();
            for edge in edges {
                after.insert(edge.target);
            }
        }
        after.has_ended = self.may_end_from(language, &set);
        let after = self.id(after);
        self.after_any.insert(from, after);
        after
    }

    /// The states from which any one token leads to a state of a set.
    pub fn before_any(&mut self, language: &TokenDfa, to: SetId) -> SetId {
        if let Some(known) = self.before_any.get(&to) {
            return *known;
        }
        let set = self.sets[to as usize].clone();
        let visited = Cell::new(0);
        let before = self.before_where(language, set.has_ended, |state| {
            let edges = language.edges(state);
            let found = edges.iter().position(|edge| set.contains(edge.target));
            visited.set(visited.get() + 1 + found.unwrap_or(edges.len()));
            found.is_some()
        });
        self.work += visited.get();
        self.before_any.insert(to, before);
        before
    }

    /// The states that `token` leads to from those of a set.
    pub fn after(&mut self, language: &TokenDfa, from: SetId, token: TokenId) -> SetId {
        let set = self.sets[from as usize].clone();
        let mut after = StateSet::empty(language.states());
        if language.is_end(token) {
            after.has_ended = self.may_end_from(language, &set);
        } else {
            for state in set.states() {
                if let Some(target) = language.target(state, token) {
                    after.insert(target);
                }
            }
        }
        self.id(after)
    }

    /// The states from which `token` leads to a state of a set.
    pub fn before(&mut self, language: &TokenDfa, to: SetId, token: TokenId) -> SetId {
        if let Some(known) = self.before.get(&(to, token)) {
            return *known;
        }
        let set = self.sets[to as usize].clone();
        let ends = language.is_end(token) && set.has_ended;
        let before = self.before_where(language, ends, |state| {
            let target = language.target(state, token);
            target.is_some_and(|target| set.contains(target))
        });
        if self.before.len() >= MOST_BEFORE {
            self.before.clear();
        }
        self.before.insert((to, token), before);
        before
    }

    /// The states that lead to a set, by `leads` or, where `ends`, by a stop token.
    fn before_where(
        &mut self,
        language: &TokenDfa,
        ends: bool,
        leads: impl Fn(u32) -> bool,
    ) -> SetId {
        let ends = ends && self.may_end;
        let mut before = StateSet::empty(language.states());
        for state in 0..language.states() as u32 {
            if (ends && language.is_accepting(state)) || leads(state) {
                before.insert(state);
            }
        }
        before.has_ended = ends;
        self.id(before)
    }

    fn may_end_from(&self, language: &TokenDfa, set: &StateSet) -> bool {
        let is_accepting = |state| language.is_accepting(state);
        self.may_end && (set.has_ended || set.states().any(is_accepting))
    }

    /// The tokens that lead from a state of one set to a state of the other.
    pub fn tokens_between(&mut self, language: &TokenDfa, from: SetId, to: SetId) -> Arc<TokenSet> {
        if let Some(known) = self.allowed.get(&(from, to)) {
            return known.clone();
        }
        let (a, b) = (&self.sets[from as usize], &self.sets[to as usize]);
        let ends = b.has_ended && self.may_end_from(language, a);
        let tokens = Arc::new(language.tokens_between(a, b, ends));
        if self.allowed.len() * tokens.bytes() >= MOST_ALLOWED_BYTES {
            self.allowed.clear();
        }
        self.allowed.insert((from, to), tokens.clone());
        tokens
    }

    /// Forgets the sets that are not `used`, and names those anew, if the others take much memory.
    pub fn trim<'a>(&mut self, used: impl ExactSizeIterator<Item = &'a mut SetId>) {
        let of_set = size_of_val(&*self.sets[0].words) + size_of::<StateSet>();
        let unused = self.sets.len().saturating_sub(used.len());
        if self.sets.len() * of_set <= MOST_BYTES || unused < self.sets.len() / 2 {
            return;
        }
        let sets = std::mem::take(&mut self.sets);
        self.ids.clear();
        self.after_any.clear();
        self.before_any.clear();
        self.before.clear();
        self.allowed.clear();
        self.id((*sets[0]).clone());
        self.end = self.id((*sets[self.end as usize]).clone());
        for id in used {
            *id = self.id((*sets[*id as usize]).clone());
        }
    }
}
