//! How much work one schema may make.

use serde_json::{Map, Value};

use crate::constraint::ConstraintError;

/// The most units of work for one schema. A unit is about a state of an automaton, or a keyword.
pub(super) const MAX_WORK: usize = 100_000;

/// What is left of the work that a schema may make.
pub(super) struct Budget(usize);

impl Budget {
    /// All of it.
    pub fn new() -> Self {
        Self(MAX_WORK)
    }

    /// Takes what a piece of work costs.
    ///
    /// # Errors
    /// If less than that is left.
    pub fn spend(&mut self, units: usize) -> Result<(), ConstraintError> {
        match self.0.checked_sub(units) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(ConstraintError::TooLarge(format!(
                "it comes to more than {MAX_WORK} keywords and states of patterns, with counted items, alternatives \
                 and definitions taken as often as they are referred to"
            ))),
        }
    }

    /// How much is spent.
    #[cfg(test)]
    pub fn spent(&self) -> usize {
        MAX_WORK - self.0
    }
}

/// How much there is to read in a schema, without the schemas within it.
pub(super) fn size(fields: &Map<String, Value>) -> usize {
    let lists = fields.values().filter_map(Value::as_array);
    fields.len() + lists.map(Vec::len).sum::<usize>()
}
