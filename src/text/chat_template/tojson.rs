//! The filter `tojson` as transformers defines it for chat templates: Python's `json.dumps` with
//! `ensure_ascii=False`, without Jinja's escapes for HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::pay;

/// Deepest nesting of lists and objects.
const MAX_DEPTH: usize = 100;

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        // Python writes no space at the end of a line.
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators must be two strings".into())),
    };
    let format = Format {
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let mut writer = Writer {
        out: String::new(),
        format: &format,
    };
    writer.value(state, value, 0)?;
    Ok(Value::from_safe_string(writer.out))
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {reason}"))
}

/// The items of a list or the keys of an object, paid for one by one: a list that a template makes of
/// itself may be far longer than what it cost.
fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let paid = |item| state.consume_fuel(1).map(|()| item);
    value.try_iter()?.map(paid).collect()
}

/// How JSON is written.
struct Format {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    /// Between items.
    item: String,
    /// Between a key and its value.
    key: String,
}

struct Writer<'a> {
    out: String,
    format: &'a Format,
}

impl Writer<'_> {
    fn value(&mut self, state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        let format = self.format;
        if depth > MAX_DEPTH {
            return Err(invalid(format!("nested deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => self.push(state, "null"),
            ValueKind::Bool => self.push(state, if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => match f64::try_from(value.clone()) {
                Ok(number) if !value.is_integer() => self.push(state, &python_float(number)),
                _ => self.push(state, &value.to_string()),
            },
            ValueKind::String => self.string(state, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = items(state, value)?;
                self.push(state, "[")?;
                for (at, item) in items.iter().enumerate() {
                    self.separate(state, at, depth + 1)?;
                    self.value(state, item, depth + 1)?;
                }
                self.close(state, "]", items.is_empty(), depth)
            }
            ValueKind::Map => {
                let mut keys = items(state, value)?;
                if format.sort_keys {
                    keys.sort();
                }
                self.push(state, "{")?;
                for (at, key) in keys.iter().enumerate() {
                    self.separate(state, at, depth + 1)?;
                    self.string(state, &key.to_string())?;
                    self.push(state, &format.key)?;
                    self.value(state, &value.get_item(key)?, depth + 1)?;
                }
                self.close(state, "}", keys.is_empty(), depth)
            }
            other => Err(invalid(format!("a value of type {other} has no JSON"))),
        }
    }

    fn separate(&mut self, state: &State, at: usize, depth: usize) -> Result<(), Error> {
        let format = self.format;
        if at > 0 {
            self.push(state, &format.item)?;
        }
        self.line(state, depth)
    }

    fn close(
        &mut self,
        state: &State,
        bracket: &str,
        is_empty: bool,
        depth: usize,
    ) -> Result<(), Error> {
        if !is_empty {
            self.line(state, depth)?;
        }
        self.push(state, bracket)
    }

    fn line(&mut self, state: &State, depth: usize) -> Result<(), Error> {
        if let Some(indent) = self.format.indent {
            let blanks = indent.saturating_mul(depth);
            pay(state, blanks)?;
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', blanks));
        }
        Ok(())
    }

    fn string(&mut self, state: &State, text: &str) -> Result<(), Error> {
        // JSON of a string cannot fail.
        let json = serde_json::to_string(text).unwrap_or_default();
        match self.format.ensure_ascii {
            true => self.push(state, &escaped(&json)),
            false => self.push(state, &json),
        }
    }

    fn push(&mut self, state: &State, text: &str) -> Result<(), Error> {
        pay(state, text.len())?;
        self.out.push_str(text);
        Ok(())
    }
}

/// JSON with every character that is not ASCII as an escape.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// A number as Python writes it: with an exponent where that is below −4 or above 15.
fn python_float(number: f64) -> String {
    let scientific = format!("{number:e}");
    match scientific.split_once('e') {
        None if number.is_nan() => "NaN".into(),
        None if number > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
        Some((digits, exponent)) => match exponent.parse::<i32>() {
            Ok(exponent) if !(-4..16).contains(&exponent) => {
                let sign = if exponent < 0 { '-' } else { '+' };
                format!("{digits}e{sign}{:02}", exponent.abs())
            }
            // With a point and a digit after it, always.
            _ => format!("{number:?}"),
        },
    }
}
