//! Sets of an automaton's states, and where they lead.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::{ConstraintError, TokenDfa};
use crate::canvas::TokenId;
use crate::sampling::TokenSet;

/// The most bytes of the sets that are kept; then those that are not in use are forgotten.
const MOST_BYTES: usize = 1 << 21;

/// A step's share of work for a canvas, in states, edges and words of sets that are looked at: once it is spent,
/// what is left is put off to the next step. It takes some tens of milliseconds.
///
/// A step looks at one slot and commits one token at least, so that it may go beyond the share by two passes over
/// a gap (`MAX_PASS`) and by finding the tokens between two sets, which never takes more than a share since an
/// automaton's edges and sets of tokens have 64 MiB at most.
pub const STEP_WORK: usize = 1 << 26;

/// The most that following a gap from end to end in both directions may take, whatever is committed to it. What
/// a token changes is mostly settled within few slots, so that forms of everyday use, of which this is the worst
/// that could be, take a small part of it.
pub(super) const MAX_PASS: usize = 8 * STEP_WORK;

/// Refuses a gap of `slots` slots that takes more work than `most`.
pub(super) fn check_work(work: usize, most: usize, slots: usize) -> Result<(), ConstraintError> {
    match work > most {
        true => Err(ConstraintError::TooLarge(format!(
            "following it over {slots} slots may take more than {most} operations a step; ask for a shorter gap or \
             a simpler form"
        ))),
        false => Ok(()),
    }
}

/// The most results of each kind that are kept.
const MOST_RESULTS: usize = 1 << 16;

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

    fn full(states: usize) -> Self {
        let mut set = Self::empty(states);
        set.has_ended = true;
        (0..states as u32).for_each(|state| set.insert(state));
        set
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

    /// Leaves what is in another as well.
    fn keep(&mut self, other: &Self) {
        self.has_ended &= other.has_ended;
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= other;
        }
    }
}

/// Keeps a result, in the place of all others if they are many.
fn keep<Key: Eq + Hash>(results: &mut HashMap<Key, SetId>, key: Key, result: SetId) {
    if results.len() >= MOST_RESULTS {
        results.clear();
    }
    results.insert(key, result);
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
    all: SetId,
    sets: Vec<Arc<StateSet>>,
    ids: HashMap<Arc<StateSet>, SetId>,
    /// By the set that is followed and the one that the result is part of.
    after_any: HashMap<(SetId, SetId), SetId>,
    before_any: HashMap<(SetId, SetId), SetId>,
    before: HashMap<(SetId, SetId, TokenId), SetId>,
    allowed: HashMap<(SetId, SetId), Arc<TokenSet>>,
    /// States, edges and words of sets that were looked at.
    work: usize,
    /// At how many sets those that are not in use are forgotten.
    most_sets: usize,
}

impl StateSets {
    pub fn new(language: &TokenDfa, may_end: bool) -> Self {
        let may_end = may_end && language.has_ends();
        let mut sets = Self {
            may_end,
            end: 0,
            all: 0,
            sets: Vec::new(),
            ids: HashMap::new(),
            after_any: HashMap::new(),
            before_any: HashMap::new(),
            before: HashMap::new(),
            allowed: HashMap::new(),
            work: 0,
            most_sets: 0,
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
        sets.all = sets.id(StateSet::full(language.states()));
        sets.most_sets = most_sets(sets.sets.len(), &sets.sets[0]);
        sets
    }

    fn id(&mut self, set: StateSet) -> SetId {
        self.work += 1 + set.words.len();
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

    /// All states.
    pub fn all(&self) -> SetId {
        self.all
    }

    /// What was looked at so far, in states, edges and words of sets.
    pub fn work(&self) -> usize {
        self.work
    }

    /// The most that following a set, or what is part of it, takes in one direction.
    pub fn most_work(&mut self, language: &TokenDfa, set: SetId) -> usize {
        let set = &self.sets[set as usize];
        let states = set.states().map(|state| 1 + language.edges(state).len());
        let most = 2 + set.words.len() + states.sum::<usize>();
        self.work += most;
        most
    }

    /// What is in both of two sets.
    pub fn both(&mut self, a: SetId, b: SetId) -> SetId {
        let mut both = (*self.sets[a as usize]).clone();
        both.keep(&self.sets[b as usize]);
        self.id(both)
    }

    /// Whether two sets have a state in common.
    pub fn meet(&self, a: SetId, b: SetId) -> bool {
        self.sets[a as usize].meets(&self.sets[b as usize])
    }

    /// The states of `within` that any one token leads to from those of a set.
    pub fn after_any(&mut self, language: &TokenDfa, from: SetId, within: SetId) -> SetId {
        self.work += 1;
        if let Some(known) = self.after_any.get(&(from, within)) {
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
        after.keep(&self.sets[within as usize]);
        let after = self.id(after);
        keep(&mut self.after_any, (from, within), after);
        after
    }

    /// The states of `within` from which any one token leads to a state of a set.
    pub fn before_any(&mut self, language: &TokenDfa, to: SetId, within: SetId) -> SetId {
        self.work += 1;
        if let Some(known) = self.before_any.get(&(to, within)) {
            return *known;
        }
        let set = self.sets[to as usize].clone();
        let before = self.before_where(language, set.has_ended, within, |state| {
            let edges = language.edges(state);
            let found = edges.iter().position(|edge| set.contains(edge.target));
            (found.is_some(), found.unwrap_or(edges.len()))
        });
        keep(&mut self.before_any, (to, within), before);
        before
    }

    /// The states of `within` that `token` leads to from those of a set.
    pub fn after(
        &mut self,
        language: &TokenDfa,
        from: SetId,
        token: TokenId,
        within: SetId,
    ) -> SetId {
        let set = self.sets[from as usize].clone();
        let mut after = StateSet::empty(language.states());
        if language.is_end(token) {
            after.has_ended = self.may_end_from(language, &set);
        } else {
            for state in set.states() {
                let (target, looked_at) = language.target(state, token);
                self.work += 1 + looked_at;
                if let Some(target) = target {
                    after.insert(target);
                }
            }
        }
        after.keep(&self.sets[within as usize]);
        self.id(after)
    }

    /// The states of `within` from which `token` leads to a state of a set.
    pub fn before(
        &mut self,
        language: &TokenDfa,
        to: SetId,
        token: TokenId,
        within: SetId,
    ) -> SetId {
        self.work += 1;
        if let Some(known) = self.before.get(&(to, within, token)) {
            return *known;
        }
        let set = self.sets[to as usize].clone();
        let ends = language.is_end(token) && set.has_ended;
        let before = self.before_where(language, ends, within, |state| {
            let (target, looked_at) = language.target(state, token);
            let leads = target.is_some_and(|target| set.contains(target));
            (leads, looked_at)
        });
        keep(&mut self.before, (to, within, token), before);
        before
    }

    /// The states of `within` that lead to a set, by `leads`, which also says what it looked at, or, where
    /// `ends`, by a stop token.
    fn before_where(
        &mut self,
        language: &TokenDfa,
        ends: bool,
        within: SetId,
        leads: impl Fn(u32) -> (bool, usize),
    ) -> SetId {
        let ends = ends && self.may_end;
        let within = self.sets[within as usize].clone();
        let mut before = StateSet::empty(language.states());
        for state in within.states() {
            self.work += 1;
            let leads = (ends && language.is_accepting(state)) || {
                let (leads, looked_at) = leads(state);
                self.work += looked_at;
                leads
            };
            if leads {
                before.insert(state);
            }
        }
        before.has_ended = ends && within.has_ended;
        self.id(before)
    }

    fn may_end_from(&self, language: &TokenDfa, set: &StateSet) -> bool {
        let is_accepting = |state| language.is_accepting(state);
        self.may_end && (set.has_ended || set.states().any(is_accepting))
    }

    /// The tokens that lead from a state of one set to a state of the other.
    pub fn tokens_between(&mut self, language: &TokenDfa, from: SetId, to: SetId) -> Arc<TokenSet> {
        self.work += 1;
        if let Some(known) = self.allowed.get(&(from, to)) {
            return known.clone();
        }
        let (a, b) = (&self.sets[from as usize], &self.sets[to as usize]);
        let ends = b.has_ended && self.may_end_from(language, a);
        let (tokens, looked_at) = language.tokens_between(a, b, ends);
        self.work += looked_at;
        let tokens = Arc::new(tokens);
        if self.allowed.len() * tokens.bytes() >= MOST_ALLOWED_BYTES {
            self.allowed.clear();
        }
        self.allowed.insert((from, to), tokens.clone());
        tokens
    }

    /// Whether there are so many sets that those not in use should be forgotten.
    pub fn are_many(&self) -> bool {
        self.sets.len() > self.most_sets
    }

    /// Forgets the sets that are not `used`, and names those anew.
    pub fn trim<'a>(&mut self, used: impl Iterator<Item = &'a mut SetId>) {
        let sets = std::mem::take(&mut self.sets);
        self.ids.clear();
        self.after_any.clear();
        self.before_any.clear();
        self.before.clear();
        self.allowed.clear();
        self.id((*sets[0]).clone());
        self.end = self.id((*sets[self.end as usize]).clone());
        self.all = self.id((*sets[self.all as usize]).clone());
        for id in used {
            *id = self.id((*sets[*id as usize]).clone());
        }
        self.most_sets = most_sets(self.sets.len(), &self.sets[0]);
    }
}

/// How many sets may be there, `used` of which are in use.
fn most_sets(used: usize, set: &StateSet) -> usize {
    let of_set = size_of_val(&*set.words) + size_of::<StateSet>();
    (2 * used).max(MOST_BYTES / of_set)
}
