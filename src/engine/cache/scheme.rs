//! Which scheme of caching a plan comes to on a model.

use serde::Serialize;
use utoipa::ToSchema;

use crate::decode::{Cache, CachePolicy, PlanError};
use crate::models::AttentionPattern;

/// What is cached of a canvas while it is denoised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheScheme {
    /// Nothing: every step recomputes the canvas. Exact.
    #[default]
    None,
    /// What comes before the current block, as of the last refresh. Approximate.
    Prefix,
    /// Everything but the current block, as of the last refresh. Approximate.
    Dual,
    /// The finished blocks of a block-causal network, or what an encoder left of all before the current block. Exact.
    Block,
}

impl CacheScheme {
    /// What `cache` comes to for a network of this attention.
    ///
    /// # Errors
    /// If the network does not allow the policy.
    pub fn of(cache: Cache, attention: AttentionPattern) -> Result<Self, PlanError> {
        if let AttentionPattern::EncodedBlocks { .. } = attention {
            return Self::of_encoded(cache);
        }
        let block_causal = matches!(attention, AttentionPattern::BlockCausal { .. });
        match (cache.policy, block_causal) {
            (CachePolicy::None, _) | (CachePolicy::Auto, false) => Ok(Self::None),
            (CachePolicy::Prefix, false) => Ok(Self::Prefix),
            (CachePolicy::Dual, false) => Ok(Self::Dual),
            (CachePolicy::Prefix, true) if cache.refresh.is_some() => Err(PlanError::Invalid {
                field: "cache.refresh",
                reason: "this model's attention is block-causal: what comes before a block never grows \
                         old; leave it out"
                    .into(),
            }),
            (CachePolicy::Auto | CachePolicy::Prefix, true) => Ok(Self::Block),
            (CachePolicy::Dual, true) => Err(PlanError::Invalid {
                field: "cache.policy",
                reason: "this model's attention is block-causal: nothing after a block is seen, and what \
                         comes before it is cached exactly; allowed: auto, prefix, none"
                    .into(),
            }),
        }
    }

    /// What `cache` comes to for a network that reads what its encoder left.
    fn of_encoded(cache: Cache) -> Result<Self, PlanError> {
        let (field, reason) = match cache.policy {
            CachePolicy::Prefix if cache.refresh.is_some() => (
                "cache.refresh",
                "what this model's encoder leaves never grows old; leave it out",
            ),
            CachePolicy::Auto | CachePolicy::Prefix => return Ok(Self::Block),
            CachePolicy::None | CachePolicy::Dual => (
                "cache.policy",
                "this model reads the keys and values that its encoder left of all before a block, and nothing \
                 after the block; allowed: auto, prefix",
            ),
        };
        Err(PlanError::Invalid {
            field,
            reason: reason.to_owned(),
        })
    }
}
