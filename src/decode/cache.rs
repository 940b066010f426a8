//! Which keys and values a denoise step may take from earlier steps.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::decode::PlanError;

/// A scheme of caching keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CachePolicy {
    /// What costs least among the exact: of a block-causal network the finished blocks, whose keys and values
    /// no later slot changes; of a bidirectional one nothing.
    #[default]
    Auto,
    /// Every step recomputes every slot. Exact.
    None,
    /// Every step recomputes its block and what comes after it; what comes before is as it was at the
    /// last refresh (Fast-dLLM's prefix cache, arXiv:2505.22618, section 3.2). Exact for a block-causal
    /// network, approximate for a bidirectional one.
    Prefix,
    /// Every step recomputes its block only; the rest is as it was at the last refresh (Fast-dLLM's
    /// dual cache, arXiv:2505.22618, section 3.2). Approximate; for bidirectional networks.
    Dual,
}

impl CachePolicy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Auto, Self::None, Self::Prefix, Self::Dual];

    /// The policy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Prefix => "prefix",
            Self::Dual => "dual",
        }
    }
}

/// How keys and values are cached.
///
/// What a network that is told the noise level has computed is of the level of that step, as it is of its canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// The scheme.
    pub policy: CachePolicy,
    /// Steps after which the approximate schemes recompute everything, counted within a block; at a block's
    /// first step they always do. `None` is at no other step, at least 1.
    pub refresh: Option<usize>,
}

impl Cache {
    pub(super) fn validate(&self) -> Result<(), PlanError> {
        if self.refresh == Some(0) {
            return Err(PlanError::OutOfRange {
                field: "cache.refresh",
                given: "0".into(),
                allowed: "at least 1",
            });
        }
        if self.refresh.is_some() && matches!(self.policy, CachePolicy::Auto | CachePolicy::None) {
            return Err(PlanError::Invalid {
                field: "cache.refresh",
                reason: format!(
                    "the policy `{}` keeps nothing that grows old; allowed with `prefix` and `dual`",
                    self.policy.name()
                ),
            });
        }
        Ok(())
    }
}
