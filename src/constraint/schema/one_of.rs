//! `oneOf`: a value is valid by exactly one of several schemas.

use serde_json::{Map, Value};

use super::keywords::{Keywords, Kind};
use super::refused;
use crate::constraint::ConstraintError;

/// How many definitions are followed, one to the next.
const MAX_REFERENCES: usize = 16;

/// Checks that no value is valid by two of `parts`, as far as that can be seen from their types, their constants
/// and a property that tells them apart.
pub(super) fn check_disjoint(
    parts: &[Value],
    root: &Value,
    path: &str,
) -> Result<(), ConstraintError> {
    for (index, part) in parts.iter().enumerate() {
        let other = parts[..index]
            .iter()
            .position(|other| !are_disjoint(part, other, root));
        if let Some(other) = other {
            return Err(refused(
                path,
                format!(
                    "a value might be valid by schemas {other} and {index}; allowed: schemas of different types, of \
                     different constants, or of objects with a required property of different constants, or anyOf"
                ),
            ));
        }
    }
    Ok(())
}

fn are_disjoint(a: &Value, b: &Value, root: &Value) -> bool {
    let (Some(a), Some(b)) = (resolved(a, root), resolved(b, root)) else {
        return false;
    };
    let (mut a, mut b) = (Keywords::new(a, ""), Keywords::new(b, ""));
    let (Ok(of_a), Ok(of_b)) = (a.kinds(), b.kinds()) else {
        return false;
    };
    if let (Some(of_a), Some(of_b)) = (&of_a, &of_b)
        && !of_a
            .iter()
            .any(|kind| of_b.iter().any(|other| overlap(*kind, *other)))
    {
        return true;
    }
    if let (Ok(Some(of_a)), Ok(Some(of_b))) =
        (a.literals(of_a.as_deref()), b.literals(of_b.as_deref()))
    {
        return !of_a.iter().any(|value| of_b.contains(value));
    }
    let is_object = |kinds: Option<Vec<Kind>>| kinds.as_deref() == Some(&[Kind::Object]);
    if !is_object(of_a) || !is_object(of_b) {
        return false;
    }
    let (Ok(required), Ok(of_b)) = (a.names("required"), b.names("required")) else {
        return false;
    };
    let (Ok(Some(a)), Ok(Some(b))) = (a.schemas("properties"), b.schemas("properties")) else {
        return false;
    };
    required.iter().any(|name| {
        of_b.contains(name)
            && matches!((constants(a.get(*name), root), constants(b.get(*name), root)),
                (Some(a), Some(b)) if !a.iter().any(|value| b.contains(value)))
    })
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
