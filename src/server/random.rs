//! Seeds and identifiers.

use super::error::ApiError;

/// Random seeds stay below this, so that JavaScript's numbers hold them exactly.
const SEED_BITS: u32 = 53;

/// A seed for a request that names none, below 2⁵³.
pub(super) fn seed() -> Result<u64, ApiError> {
    Ok(bits()? >> (u64::BITS - SEED_BITS))
}

/// An identifier of 32 hexadecimal digits.
pub(super) fn identifier() -> Result<String, ApiError> {
    Ok(format!("{:016x}{:016x}", bits()?, bits()?))
}

fn bits() -> Result<u64, ApiError> {
    getrandom::u64()
        .map_err(|error| ApiError::internal(format!("the system gives no random numbers: {error}")))
}
