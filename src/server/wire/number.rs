//! Numbers whose errors say in plain words what is allowed.

use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde_json::Value;
use utoipa::ToSchema;

/// `value` as JSON that is read back from its text: there an f32 of 0.7 is 0.7, where as a value it would be
/// 0.699999988079071.
///
/// # Errors
/// If it cannot be written.
pub fn as_written(value: &impl Serialize) -> serde_json::Result<Value> {
    serde_json::from_str(&serde_json::to_string(value)?)
}

/// A whole number of at least 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(format = "uint64")]
pub struct Whole(pub u64);

/// A whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
pub struct Integer(pub i64);

/// A number that is finite as an `f32`.
#[derive(Debug, Clone, Copy, PartialEq, ToSchema)]
pub struct Real(pub f32);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;
        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a whole number of at least 0")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Whole, E> {
                u64::try_from(value)
                    .map(Whole)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }
        }
        deserializer.deserialize_u64(WholeVisitor)
    }
}

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IntegerVisitor;
        impl Visitor<'_> for IntegerVisitor {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Integer, E> {
                i64::try_from(value)
                    .map(Integer)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &"less than 2^63"))
            }
        }
        deserializer.deserialize_i64(IntegerVisitor)
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RealVisitor;
        impl Visitor<'_> for RealVisitor {
            type Value = Real;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number within ±3.4e38")
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Real, E> {
                let narrow = value as f32;
                if narrow.is_finite() {
                    Ok(Real(narrow))
                } else {
                    Err(E::invalid_value(Unexpected::Float(value), &self))
                }
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Real, E> {
                Ok(Real(value as f32))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Real, E> {
                Ok(Real(value as f32))
            }
        }
        deserializer.deserialize_f64(RealVisitor)
    }
}
