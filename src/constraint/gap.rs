//! One gap's constraint while it is denoised.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::state_sets::{MAX_PASS, STEP_WORK, SetId, StateSets, check_work};
use super::{ConstraintError, TokenDfa};
use crate::canvas::TokenId;
use crate::sampling::TokenSet;

/// What is committed to a gap, and so what may be: there always is a text of the language that has the
/// committed tokens in their places.
///
/// What a slot holds changes the sets of the slots around it, which are followed only when they are asked for,
/// and only as far as anything changes: so a pass over the gap is the most that any question takes, however many
/// slots changed since the last.
#[derive(Debug, Clone)]
pub(super) struct GapStates {
    language: Arc<TokenDfa>,
    sets: StateSets,
    /// What each slot holds; none where it is masked.
    tokens: Vec<Option<TokenId>>,
    /// `[slots + 1]`: the states that a text may be in before each slot, whatever the slots hold. All other
    /// sets are parts of these.
    live: Vec<SetId>,
    /// `[slots + 1]`: the states that the slots before each can lead to.
    forward: Vec<SetId>,
    /// `[slots + 1]`: the states from which the slots from each on can lead to the end.
    backward: Vec<SetId>,
    /// Where `forward` is to be followed anew from the place before.
    stale_forward: BTreeSet<usize>,
    /// Where `backward` is to be followed anew from the place after.
    stale_backward: BTreeSet<usize>,
}

impl GapStates {
    /// A gap of `slots` masked slots, in which stop tokens may follow a text if `may_end`.
    ///
    /// # Errors
    /// [`ConstraintError::Empty`] if no text fills it, [`ConstraintError::TooLarge`] if following it from end to
    /// end takes long, or may take long once tokens are committed.
    pub fn new(
        language: Arc<TokenDfa>,
        slots: usize,
        may_end: bool,
    ) -> Result<Self, ConstraintError> {
        let mut sets = StateSets::new(&language, may_end);
        let mut live = vec![sets.start()];
        for slot in 0..slots {
            let all = sets.all();
            live.push(sets.after_any(&language, live[slot], all));
            check_work(sets.work(), STEP_WORK, slots)?;
        }
        live[slots] = sets.both(live[slots], sets.end());
        for slot in (0..slots).rev() {
            live[slot] = sets.before_any(&language, live[slot + 1], live[slot]);
            check_work(sets.work(), STEP_WORK, slots)?;
        }
        if !sets.meet(live[0], sets.start()) {
            return Err(ConstraintError::Empty);
        }
        // Committed tokens leave fewer states, so that no pass in both directions takes more than this.
        let mut most = 0;
        for set in &live {
            most += 2 * sets.most_work(&language, *set);
            check_work(most, MAX_PASS, slots)?;
        }
        Ok(Self {
            language,
            sets,
            tokens: vec![None; slots],
            forward: live.clone(),
            backward: live.clone(),
            live,
            stale_forward: BTreeSet::new(),
            stale_backward: BTreeSet::new(),
        })
    }

    /// What was looked at so far, in states, edges and words of sets.
    pub fn work(&self) -> usize {
        self.sets.work()
    }

    /// The tokens each of which may be committed to a slot, whatever it holds.
    pub fn allowed(&mut self, slot: usize) -> Arc<TokenSet> {
        let (from, to) = self.around(slot);
        let allowed = self.sets.tokens_between(&self.language, from, to);
        self.trim();
        allowed
    }

    /// Commits a token to a slot, whatever it held, if the gap can be completed with it; whether it can.
    pub fn commit(&mut self, slot: usize, token: TokenId) -> bool {
        let (from, to) = self.around(slot);
        let within = self.live[slot + 1];
        let after = self.sets.after(&self.language, from, token, within);
        let fits = self.sets.meet(after, to);
        if fits {
            self.set(slot, Some(token));
        }
        self.trim();
        fits
    }

    /// Masks a slot again.
    pub fn free(&mut self, slot: usize) {
        self.set(slot, None);
    }

    fn set(&mut self, slot: usize, token: Option<TokenId>) {
        if std::mem::replace(&mut self.tokens[slot], token) != token {
            self.stale_forward.insert(slot + 1);
            self.stale_backward.insert(slot);
        }
    }

    /// The states that the slots before one can lead to, and those from which the slots after it can lead to the
    /// end.
    fn around(&mut self, slot: usize) -> (SetId, SetId) {
        let language = &self.language;
        while let Some(at) = self.stale_forward.first().copied()
            && at <= slot
        {
            self.stale_forward.pop_first();
            let (from, within) = (self.forward[at - 1], self.live[at]);
            let after = match self.tokens[at - 1] {
                Some(token) => self.sets.after(language, from, token, within),
                None => self.sets.after_any(language, from, within),
            };
            if std::mem::replace(&mut self.forward[at], after) != after && at < self.tokens.len() {
                self.stale_forward.insert(at + 1);
            }
        }
        while let Some(at) = self.stale_backward.last().copied()
            && at > slot
        {
            self.stale_backward.pop_last();
            let (to, within) = (self.backward[at + 1], self.live[at]);
            let before = match self.tokens[at] {
                Some(token) => self.sets.before(language, to, token, within),
                None => self.sets.before_any(language, to, within),
            };
            if std::mem::replace(&mut self.backward[at], before) != before && at > 0 {
                self.stale_backward.insert(at - 1);
            }
        }
        (self.forward[slot], self.backward[slot + 1])
    }

    fn trim(&mut self) {
        if !self.sets.are_many() {
            return;
        }
        let mut used: Vec<&mut SetId> = self.live.iter_mut().collect();
        used.extend(&mut self.forward);
        used.extend(&mut self.backward);
        self.sets.trim(used.into_iter());
    }
}
