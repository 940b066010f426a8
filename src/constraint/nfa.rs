//! Automata under construction: each piece is put before what follows it, so that an automaton is built from the
//! end of a text to its beginning.

use regex_automata::nfa::thompson::{self, Builder, Transition};
use regex_automata::util::primitives::StateID;

use super::ConstraintError;
use super::byte_dfa::{ByteDfa, DEAD, MAX_BYTES, build_error};

/// A state of an automaton that is being built: what may follow.
pub(super) type Next = StateID;

/// A state, or why there is none.
pub(super) type Built = Result<Next, ConstraintError>;

fn failed(error: thompson::BuildError) -> ConstraintError {
    build_error(error.size_limit().is_some(), &error)
}

/// Bytes from `start` to `end`, and then `next`.
pub(super) fn bytes(start: u8, end: u8, next: Next) -> Transition {
    Transition { start, end, next }
}

/// Builds an automaton.
pub(super) struct NfaBuilder {
    states: Builder,
}

impl NfaBuilder {
    /// An automaton of nothing but the end of its texts.
    pub fn new() -> Result<(Self, Next), ConstraintError> {
        let mut states = Builder::new();
        states.set_size_limit(Some(MAX_BYTES)).map_err(failed)?;
        states.start_pattern().map_err(failed)?;
        let end = states.add_match().map_err(failed)?;
        Ok((Self { states }, end))
    }

    /// The texts from `start` to the end.
    pub fn finish(mut self, start: Next) -> Result<ByteDfa, ConstraintError> {
        self.states.finish_pattern(start).map_err(failed)?;
        let nfa = self.states.build(start, start).map_err(failed)?;
        ByteDfa::of_nfa(&nfa, &mut 0)
    }

    /// One byte from `start` to `end`.
    pub fn range(&mut self, start: u8, end: u8, next: Next) -> Built {
        let state = self.states.add_range(bytes(start, end, next));
        state.map_err(failed)
    }

    /// One of several bytes.
    pub fn sparse(&mut self, transitions: Vec<Transition>) -> Built {
        self.states.add_sparse(transitions).map_err(failed)
    }

    /// Any one of several; nothing if there is none.
    pub fn either(&mut self, alternatives: Vec<Next>) -> Built {
        self.states.add_union(alternatives).map_err(failed)
    }

    /// Nothing at all may follow: not even the end.
    pub fn never(&mut self) -> Built {
        self.states.add_fail().map_err(failed)
    }

    /// A state that further ones may lead back to before what follows it is known; [`Self::also`] says so.
    pub fn later(&mut self) -> Built {
        self.either(Vec::new())
    }

    /// Lets `next` follow a state of [`Self::later`].
    pub fn also(&mut self, state: Next, next: Next) -> Result<(), ConstraintError> {
        self.states.patch(state, next).map_err(failed)
    }

    /// The bytes of `text`.
    pub fn literal(&mut self, text: &str, next: Next) -> Built {
        let mut bytes = text.bytes().rev();
        bytes.try_fold(next, |next, byte| self.range(byte, byte, next))
    }

    /// The texts of `language`.
    pub fn embed(&mut self, language: &ByteDfa, next: Next) -> Built {
        self.embed_with(language, next, |_| None)
    }

    /// The texts of `language`, with the bytes that `escape` says written in another way.
    pub fn embed_with(
        &mut self,
        language: &ByteDfa,
        next: Next,
        escape: impl Fn(u8) -> Option<String>,
    ) -> Built {
        let count = language.states();
        let states: Vec<Next> = (0..count).map(|_| self.later()).collect::<Result<_, _>>()?;
        for (index, state) in (0..).zip(&states) {
            let mut plain: Vec<Transition> = Vec::new();
            for byte in 0..=u8::MAX {
                let target = language.next(index, byte);
                if target == DEAD {
                    continue;
                }
                let target = states[target as usize];
                if let Some(escape) = escape(byte) {
                    let escape = self.literal(&escape, target)?;
                    self.also(*state, escape)?;
                    continue;
                }
                match plain.last_mut() {
                    Some(last) if last.next == target && last.end + 1 == byte => last.end = byte,
                    _ => plain.push(bytes(byte, byte, target)),
                }
            }
            if !plain.is_empty() {
                let plain = self.sparse(plain)?;
                self.also(*state, plain)?;
            }
            if language.is_accepting(index) {
                self.also(*state, next)?;
            }
        }
        Ok(states[0])
    }
}
