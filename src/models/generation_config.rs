//! The fields of a generation_config.json, and which of them were looked at.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::decode::{DecodePlan, PlanError};
use crate::models::checkpoint::GENERATION_CONFIG;
use crate::models::{ModelError, fields};

/// A generation_config.json that is read. Such a file has fields of every sampler that its authors ever ran the model
/// with; those that nobody here asks for can be named afterwards.
pub(super) struct GenerationConfig<'a> {
    fields: &'a Value,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> GenerationConfig<'a> {
    /// Of `fields`, an object, none of which is looked at yet.
    pub fn new(fields: &'a Value) -> Self {
        Self {
            fields,
            read: RefCell::default(),
        }
    }

    /// A field; null if it is not there.
    pub fn get(&self, name: &'static str) -> &'a Value {
        self.read.borrow_mut().insert(name);
        &self.fields[name]
    }

    /// A field, if it is there. One that is null counts as absent.
    ///
    /// # Errors
    /// If it is of the wrong type.
    pub fn optional<T: DeserializeOwned>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, ModelError> {
        self.read.borrow_mut().insert(name);
        fields::optional(GENERATION_CONFIG, self.fields, name)
    }

    /// Names of the fields that are there, not null, and that nobody has looked at.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let fields = self.fields.as_object().into_iter().flatten();
        let unread =
            fields.filter(|(name, value)| !value.is_null() && !read.contains(name.as_str()));
        unread.map(|(name, _)| name.clone()).collect()
    }
}

/// Takes what transformers' own `GenerationConfig` says of drawing tokens into the default `plan`, for families whose
/// official sampler has no such class of its own. As there, `temperature` (1 where it is absent), `top_k`, `top_p` and
/// `min_p` count where `do_sample` is true, and are not looked at otherwise; where it is false the most probable tokens
/// are taken. Transformers' own defaults, 50 for `top_k` and false for `do_sample`, are those of its autoregressive
/// sampler and not taken: where `do_sample` is absent the plan stays, and an absent `top_k` is all tokens.
///
/// # Errors
/// Names the field that is of the wrong type or out of range.
pub(super) fn take_over(
    options: &GenerationConfig,
    plan: &mut DecodePlan,
) -> Result<(), ModelError> {
    let refused = |error: PlanError| invalid(error.to_string());
    let sampling = &mut plan.sampling;
    match options.optional("do_sample")? {
        None => return Ok(()),
        Some(false) => sampling.set_temperature(0.0),
        Some(true) => {
            sampling.set_temperature(options.optional("temperature")?.unwrap_or(1.0));
            sampling
                .set_top_k(options.optional("top_k")?.unwrap_or(0))
                .map_err(refused)?;
            sampling.top_p = options.optional("top_p")?;
            sampling.min_p = options.optional("min_p")?;
        }
    }
    plan.validate().map_err(refused)
}

/// A generation_config.json that is refused.
pub(super) fn invalid(reason: String) -> ModelError {
    ModelError::Invalid {
        file: GENERATION_CONFIG.into(),
        reason,
    }
}
