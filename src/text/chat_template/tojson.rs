//! The filter `tojson` as transformers defines it for chat templates: Python's `json.dumps` with
//! `ensure_ascii=False`, without Jinja's escapes for HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

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
    let mut writer = Writer {
        out: String::new(),
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
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

struct Writer {
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    /// Between items.
    item: String,
    /// Between a key and its value.
    key: String,
}

impl Writer {
    fn value(&mut self, state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        state.consume_fuel(1)?;
        if depth > MAX_DEPTH {
            return Err(invalid(format!("nested deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => match f64::try_from(value.clone()) {
                Ok(number) if !value.is_integer() => self.out.push_str(&python_float(number)),
                _ => self.out.push_str(&value.to_string()),
            },
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = items(state, value)?;
                self.open('[');
                for (at, item) in items.iter().enumerate() {
                    self.separate(at, depth + 1);
                    self.value(state, item, depth + 1)?;
                }
                self.close(']', items.is_empty(), depth);
            }
            ValueKind::Map => {
                let mut keys = items(state, value)?;
                if self.sort_keys {
                    keys.sort();
                }
                self.open('{');
                for (at, key) in keys.iter().enumerate() {
                    self.separate(at, depth + 1);
                    self.string(&key.to_string());
                    self.out.push_str(&self.key.clone());
                    self.value(state, &value.get_item(key)?, depth + 1)?;
                }
                self.close('}', keys.is_empty(), depth);
            }
            other => return Err(invalid(format!("a value of type {other} has no JSON"))),
        }
        Ok(())
    }

    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
    }

    fn separate(&mut self, at: usize, depth: usize) {
        if at > 0 {
            self.out.push_str(&self.item.clone());
        }
        self.line(depth);
    }

    fn close(&mut self, bracket: char, is_empty: bool, depth: usize) {
        if !is_empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        // JSON of a string cannot fail.
        let json = serde_json::to_string(text).unwrap_or_default();
        if !self.ensure_ascii {
            self.out.push_str(&json);
            return;
        }
        for character in json.chars() {
            if character.is_ascii() {
                self.out.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(self.out, "\\u{unit:04x}");
                }
            }
        }
    }
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
