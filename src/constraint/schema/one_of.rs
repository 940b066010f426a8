//! `oneOf`: a value is valid by exactly one of several schemas.

use serde_json::{Map, Value};

use super::budget::{Budget, size};
use super::keywords::{Keywords, Kind, is_same};
use super::refused;
use crate::constraint::ConstraintError;

/// How many definitions are followed, one to the next.
const MAX_REFERENCES: usize = 16;

/// How many comparisons of two values are one unit of work.
const COMPARISONS: usize = 64;

/// Checks that no value is valid by two of `parts`, as far as that can be seen from their types, their constants
/// and a property that tells them apart.
pub(super) fn check_disjoint(
    parts: &[Value],
    root: &Value,
    path: &str,
    budget: &mut Budget,
) -> Result<(), ConstraintError> {
    for (index, part) in parts.iter().enumerate() {
        for (earlier, other) in parts[..index].iter().enumerate() {
            if are_disjoint(part, other, root, budget)? {
                continue;
            }
            return Err(refused(
                path,
                format!(
                    "a value might be valid by schemas {earlier} and {index}; allowed: schemas of different types, of \
                     different constants, or of objects with a required property of different constants, or anyOf"
                ),
            ));
        }
    }
    Ok(())
}

fn are_disjoint(
    a: &Value,
    b: &Value,
    root: &Value,
    budget: &mut Budget,
) -> Result<bool, ConstraintError> {
    let (Some(a), Some(b)) = (resolved(a, root), resolved(b, root)) else {
        return Ok(false);
    };
    budget.spend(1 + size(a).saturating_mul(size(b)) / COMPARISONS)?;
    let (mut a, mut b) = (Keywords::new(a, ""), Keywords::new(b, ""));
    let (Ok(of_a), Ok(of_b)) = (a.kinds(), b.kinds()) else {
        return Ok(false);
    };
    if let (Some(of_a), Some(of_b)) = (&of_a, &of_b)
        && !of_a
            .iter()
            .any(|kind| of_b.iter().any(|other| overlap(*kind, *other)))
    {
        return Ok(true);
    }
    if let (Ok(Some(of_a)), Ok(Some(of_b))) =
        (a.literals(of_a.as_deref()), b.literals(of_b.as_deref()))
    {
        return Ok(share_none(&of_a, &of_b));
    }
    let is_object = |kinds: Option<Vec<Kind>>| kinds.as_deref() == Some(&[Kind::Object]);
    if !is_object(of_a) || !is_object(of_b) {
        return Ok(false);
    }
    let (Ok(required), Ok(of_b)) = (a.names("required"), b.names("required")) else {
        return Ok(false);
    };
    let (Ok(Some(a)), Ok(Some(b))) = (a.schemas("properties"), b.schemas("properties")) else {
        return Ok(false);
    };
    for name in required.iter().filter(|name| of_b.contains(name)) {
        let both = (constants(a.get(*name), root), constants(b.get(*name), root));
        if let (Some(a), Some(b)) = both {
            budget.spend((a.len() + b.len() + a.len() * b.len()) / COMPARISONS)?;
            if share_none(&a, &b) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn share_none(a: &[&Value], b: &[&Value]) -> bool {
    !a.iter().any(|a| b.iter().any(|b| is_same(a, b)))
}

fn overlap(a: Kind, b: Kind) -> bool {
    let is_number = |kind| matches!(kind, Kind::Integer | Kind::Number);
    a == b || (is_number(a) && is_number(b))
}

/// The values that a schema allows, if it names them.
fn constants<'a>(schema: Option<&'a Value>, root: &'a Value) -> Option<Vec<&'a Value>> {
    let fields = resolved(schema?, root)?;
    Keywords::new(fields, "").literals(None).ok()?
}

/// What a schema refers to, or itself.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Map<String, Value>> {
    let mut fields = schema.as_object()?;
    for _ in 0..MAX_REFERENCES {
        let Some(reference) = fields.get("$ref") else {
            return Some(fields);
        };
        let pointer = reference.as_str()?.strip_prefix('#')?;
        fields = root.pointer(pointer)?.as_object()?;
    }
    None
}
