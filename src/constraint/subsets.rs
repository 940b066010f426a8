//! The subset construction, a state at a time and with its work counted.

use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, Config, DFA};
use regex_automata::nfa::thompson::NFA;
use regex_automata::{Anchored, Input, MatchKind};

use super::ConstraintError;
use super::byte_dfa::{Explored, MAX_BYTES, MAX_STATES, build_error};

/// The most work of one construction: bytes of sets, each times the classes of bytes that lead on from it.
const MAX_WORK: usize = 1 << 28;

/// The deterministic automaton of a nondeterministic one: its states are the sets of places where a text can
/// stand, and are found as they are asked for.
pub(super) struct Subsets {
    dfa: DFA,
    cache: Cache,
    /// Bytes of one state's transitions.
    row_bytes: usize,
    /// Classes of bytes, each of which leads from every state.
    classes: usize,
    work: usize,
}

impl Subsets {
    /// The automaton of `nfa`, and the state in which texts begin.
    ///
    /// # Errors
    /// If it looks around in a way that cannot be followed.
    pub fn new(nfa: &NFA) -> Result<(Self, LazyStateID), ConstraintError> {
        let classes = nfa.byte_classes().alphabet_len();
        let row_bytes = classes.next_power_of_two() * size_of::<LazyStateID>();
        // Of all matches and not of the preferred ones alone, so that no text is lost. What does not fit is an
        // error and not forgotten.
        let config = Config::new()
            .match_kind(MatchKind::All)
            .cache_capacity(MAX_BYTES + MAX_STATES * row_bytes)
            .skip_cache_capacity_check(true)
            .minimum_cache_clear_count(Some(0));
        let dfa = DFA::builder()
            .configure(config)
            .build_from_nfa(nfa.clone())
            .map_err(|error| build_error(false, &error))?;
        let mut cache = dfa.create_cache();
        let start = dfa
            .start_state_forward(&mut cache, &Input::new("").anchored(Anchored::Yes))
            .map_err(|error| ConstraintError::Regex(error.to_string()))?;
        let subsets = Self {
            dfa,
            cache,
            row_bytes,
            classes,
            work: 0,
        };
        Ok((subsets, start))
    }

    /// What was done: bytes of sets, each times the classes of bytes.
    pub fn work(&self) -> usize {
        self.work
    }
}

impl Explored for Subsets {
    type State = LazyStateID;

    fn step(
        &mut self,
        state: LazyStateID,
        byte: u8,
    ) -> Result<Option<LazyStateID>, ConstraintError> {
        let before = self.cache.memory_usage();
        let next = self
            .dfa
            .next_state(&mut self.cache, state, byte)
            .map_err(|_| too_large())?;
        let grown = self.cache.memory_usage() - before;
        self.work += grown.saturating_sub(self.row_bytes) * self.classes;
        if self.work > MAX_WORK {
            return Err(too_large());
        }
        Ok((!next.is_dead() && !next.is_quit()).then_some(next))
    }

    fn accepts(&mut self, state: LazyStateID) -> Result<bool, ConstraintError> {
        // Matches are reported one byte late, or at the end.
        let end = self.dfa.next_eoi_state(&mut self.cache, state);
        Ok(end.map_err(|_| too_large())?.is_match())
    }
}

fn too_large() -> ConstraintError {
    ConstraintError::TooLarge("a text can stand at too many places of it at once".into())
}
