//! The subset construction, a state at a time and with its work counted.
//!
//! Automata of clients are bounded by what making them costs: a short pattern can have few states that each take
//! very long to find.

use std::collections::HashMap;
use std::rc::Rc;

use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::look::Look;
use regex_automata::util::primitives::StateID;

use super::ConstraintError;
use super::byte_dfa::Explored;

/// The most places that one construction looks at.
const MAX_WORK: usize = 1 << 25;

/// The most places that all sets together have.
const MAX_PLACES: usize = 1 << 24;

/// The deterministic automaton of a nondeterministic one: its states are the sets of places where a text can
/// stand, and are found as they are asked for.
pub(super) struct Subsets<'a> {
    nfa: &'a NFA,
    /// Whether what surrounds a place decides whether a text can be there.
    looks: bool,
    sets: Vec<Set>,
    ids: HashMap<Set, u32>,
    /// Where each class of bytes leads from the state that was asked for last.
    row: (Option<u32>, Vec<Option<Step>>),
    closure: Closure,
    places: usize,
}

/// A state: where a text can stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Set {
    /// Places from which a byte leads on, at which a text ends, or from which a look leads on; ascending.
    places: Rc<[StateID]>,
    /// The byte before, or one that is as good, where looks ask for it.
    before: Option<u8>,
}

/// Where a byte leads: to a state, or to none.
type Step = Option<u32>;

/// What surrounds a place: the bytes before and after it, none at the ends of a text.
type Surroundings = (Option<u8>, Option<u8>);

impl<'a> Subsets<'a> {
    /// The automaton of `nfa`, and the state in which texts begin.
    ///
    /// # Errors
    /// If it looks around for word boundaries of Unicode, which more than one byte decides, or is too large.
    pub fn new(nfa: &'a NFA) -> Result<(Self, u32), ConstraintError> {
        let looks = nfa.look_set_any();
        if looks.contains_word_unicode() {
            return Err(ConstraintError::Regex(
                "word boundaries of Unicode are not supported; (?-u:\\b) is one of ASCII".into(),
            ));
        }
        let mut subsets = Self {
            nfa,
            looks: !looks.is_empty(),
            sets: Vec::new(),
            ids: HashMap::new(),
            row: (None, vec![None; nfa.byte_classes().alphabet_len()]),
            closure: Closure::new(nfa),
            places: 0,
        };
        subsets.closure.begin();
        subsets.closure.follow(nfa, nfa.start_anchored(), None)?;
        let start = subsets.state(None)?;
        Ok((subsets, start))
    }

    /// Places that were looked at.
    pub fn work(&self) -> usize {
        self.closure.work
    }

    /// The state of the closure's places, after the byte `before`.
    fn state(&mut self, before: Option<u8>) -> Result<u32, ConstraintError> {
        let set = Set {
            places: self.closure.sorted().into(),
            before: before.filter(|_| self.looks),
        };
        if let Some(id) = self.ids.get(&set) {
            return Ok(*id);
        }
        self.places += set.places.len();
        if self.places > MAX_PLACES {
            return Err(too_large());
        }
        let id = self.sets.len() as u32;
        self.sets.push(set.clone());
        self.ids.insert(set, id);
        Ok(id)
    }

    /// The places of a state, of those behind a look the ones that `surroundings` let through.
    fn standing(
        &mut self,
        state: u32,
        after: Option<u8>,
    ) -> Result<Rc<[StateID]>, ConstraintError> {
        let Set { places, before } = self.sets[state as usize].clone();
        if !self.looks {
            return Ok(places);
        }
        self.closure.begin();
        for place in &*places {
            self.closure
                .follow(self.nfa, *place, Some((before, after)))?;
        }
        Ok(self.closure.sorted().into())
    }

    fn found(&mut self, state: u32, byte: u8) -> Result<Step, ConstraintError> {
        let places = self.standing(state, Some(byte))?;
        self.closure.begin();
        for place in &*places {
            let next = match self.nfa.state(*place) {
                State::ByteRange { trans } => trans.matches_byte(byte).then_some(trans.next),
                State::Sparse(transitions) => transitions.matches_byte(byte),
                State::Dense(transitions) => transitions.matches_byte(byte),
                _ => None,
            };
            self.closure.work += 1;
            if let Some(next) = next {
                self.closure.follow(self.nfa, next, None)?;
            }
        }
        match self.closure.is_empty() {
            true => Ok(None),
            false => self.state(Some(byte)).map(Some),
        }
    }
}

impl Explored for Subsets<'_> {
    type State = u32;

    fn step(&mut self, state: u32, byte: u8) -> Result<Option<u32>, ConstraintError> {
        if self.row.0 != Some(state) {
            self.row.0 = Some(state);
            self.row.1.fill(None);
        }
        // All bytes of a class lead to the same place, and a look takes them for the same.
        let class = usize::from(self.nfa.byte_classes().get(byte));
        if let Some(step) = self.row.1[class] {
            return Ok(step);
        }
        let step = self.found(state, byte)?;
        self.row.1[class] = Some(step);
        Ok(step)
    }

    fn accepts(&mut self, state: u32) -> Result<bool, ConstraintError> {
        let places = self.standing(state, None)?;
        let is_end = |place: &StateID| matches!(self.nfa.state(*place), State::Match { .. });
        Ok(places.iter().any(is_end))
    }
}

/// Places that are reached without a byte.
struct Closure {
    /// In which round each place was seen last.
    seen: Vec<u32>,
    round: u32,
    open: Vec<StateID>,
    places: Vec<StateID>,
    work: usize,
}

impl Closure {
    fn new(nfa: &NFA) -> Self {
        Self {
            seen: vec![0; nfa.states().len()],
            round: 0,
            open: Vec::new(),
            places: Vec::new(),
            work: 0,
        }
    }

    fn begin(&mut self) {
        self.round += 1;
        self.places.clear();
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn sorted(&mut self) -> &[StateID] {
        self.places.sort_unstable();
        &self.places
    }

    /// Adds the places that are reached from `place`. Without `surroundings` a look is such a place itself.
    fn follow(
        &mut self,
        nfa: &NFA,
        place: StateID,
        surroundings: Option<Surroundings>,
    ) -> Result<(), ConstraintError> {
        self.open.push(place);
        while let Some(place) = self.open.pop() {
            self.work += 1;
            if self.work > MAX_WORK {
                return Err(too_large());
            }
            if std::mem::replace(&mut self.seen[place], self.round) == self.round {
                continue;
            }
            match nfa.state(place) {
                State::ByteRange { .. }
                | State::Sparse(_)
                | State::Dense(_)
                | State::Match { .. } => {
                    self.places.push(place);
                }
                State::Look { look, next } => match surroundings {
                    None => self.places.push(place),
                    Some(surroundings) if is_true(nfa, *look, surroundings) => {
                        self.open.push(*next)
                    }
                    Some(_) => {}
                },
                State::Union { alternates } => self.open.extend(alternates.iter()),
                State::BinaryUnion { alt1, alt2 } => self.open.extend([*alt1, *alt2]),
                State::Capture { next, .. } => self.open.push(*next),
                State::Fail => {}
            }
        }
        Ok(())
    }
}

/// Whether a look is true between the two bytes.
fn is_true(nfa: &NFA, look: Look, (before, after): Surroundings) -> bool {
    let text: Vec<u8> = before.into_iter().chain(after).collect();
    let at = usize::from(before.is_some());
    nfa.look_matcher().matches(look, &text, at)
}

fn too_large() -> ConstraintError {
    ConstraintError::TooLarge("finding where a text can stand in it takes too long".into())
}
