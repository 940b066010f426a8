//! Python's methods of strings, lists and dicts, paid for where the library has them for nothing.

use std::fmt::{self, Write};

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::pay;

/// The longest way to write a number, in bytes: the digits of the largest float, and some for those asked for.
const LONGEST_NUMBER: usize = 512;

/// A method of `value` that the template engine itself does not know. The engine pays for the text that a method is
/// called on, and for what it returns once that is there. Here is paid beforehand for what may be far larger: what
/// `str.format` and `str.join` make, and the lists that a method walks through, which a template can make long for
/// nothing.
pub(super) fn paid_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let (Some(separator), "join") = (value.as_str(), method) {
        let (items,): (&Value,) = from_args(arguments)?;
        return joined(state, separator, items);
    }
    for walked in std::iter::once(value).chain(arguments) {
        if matches!(walked.kind(), ValueKind::Seq | ValueKind::Iterable) {
            state.consume_fuel(walked.len().unwrap_or(0) as u64)?;
        }
    }
    if let (Some(format), "format") = (value.as_str(), method) {
        pay_for_format(state, format, arguments)?;
    }
    unknown_method_callback(state, value, method, arguments)
}

/// `str.join`.
fn joined(state: &State, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut text = String::new();
    for (at, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        if at > 0 {
            pay(state, separator.len())?;
            text.push_str(separator);
        }
        write_paid(state, &mut text, &item)?;
    }
    Ok(Value::from(text))
}

/// Pays for the longest text that `str.format` could make: each field may hold all of the arguments, padded to the
/// largest number in any of them with characters of four bytes.
fn pay_for_format(state: &State, format: &str, arguments: &[Value]) -> Result<(), Error> {
    let mut given = String::new();
    for argument in arguments {
        write_paid(state, &mut given, argument)?;
    }
    let (mut fields, mut widest) = (0usize, 0usize);
    let mut rest = format;
    while let Some(at) = rest.find('{') {
        rest = &rest[at + 1..];
        if let Some(literal) = rest.strip_prefix('{') {
            rest = literal;
            continue;
        }
        fields += 1;
        let name = rest.split([':', '}']).next().unwrap_or_default();
        if name.contains(['.', '[']) {
            // What an argument leads to may be longer than itself.
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!(
                    "str.format: the field {{{name}}} is not supported; allowed: the name or number of an argument"
                ),
            ));
        }
        let Some(spec) = rest[name.len()..].strip_prefix(':') else {
            continue;
        };
        // The first character may be what is padded with, a brace too.
        let mut characters = spec.char_indices().skip(1);
        let end = characters.find(|(_, character)| *character == '}');
        let spec = &spec[..end.map_or(spec.len(), |(end, _)| end)];
        let digits = spec.split(|character: char| !character.is_ascii_digit());
        let numbers = digits.filter(|digits| !digits.is_empty());
        // One with too many digits to be a number is no smaller.
        let widest_here = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX));
        widest = widest_here.fold(widest, usize::max);
    }
    let field = given.len().saturating_add(widest.saturating_mul(4));
    pay(
        state,
        fields.saturating_mul(field.saturating_add(LONGEST_NUMBER)),
    )
}

/// Writes `value` at the end of `text`, each part of it paid for before it is there.
fn write_paid(state: &State, text: &mut String, value: &Value) -> Result<(), Error> {
    let mut paid = Paid {
        state,
        text,
        refused: None,
    };
    // Nothing may be written of a value, and there may be many of these.
    pay(state, 0)?;
    match (write!(paid, "{value}"), paid.refused) {
        (_, Some(error)) => Err(error),
        (Err(_), None) => Err(ErrorKind::WriteFailure.into()),
        (Ok(()), None) => Ok(()),
    }
}

/// A text that is paid for as it grows.
struct Paid<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    text: &'a mut String,
    refused: Option<Error>,
}

impl Write for Paid<'_, '_, '_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if let Err(error) = pay(self.state, part.len()) {
            self.refused = Some(error);
            return Err(fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}
