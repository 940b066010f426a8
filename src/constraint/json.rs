//! JSON as an automaton.
//!
//! Values are written without white space but for one optional space after a comma and after a colon. Numbers
//! have at most 15 digits before and after the point and at most two in the exponent, so that every reader of
//! JSON can hold them.

use regex_automata::nfa::thompson::Transition;

use super::ConstraintError;
use super::byte_dfa::ByteDfa;
use super::nfa::{Built, Next, NfaBuilder, bytes};

/// How deep the values of `json_object` nest, the object itself included.
pub const OBJECT_DEPTH: usize = 4;

/// How deep a value nests of which a schema says nothing.
pub const ANY_DEPTH: usize = 2;

pub(super) const INTEGER: &str = "-?(?:0|[1-9][0-9]{0,14})";
const NUMBER: &str = r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,2})?";

impl ByteDfa {
    /// The JSON objects that nest at most [`OBJECT_DEPTH`] deep.
    ///
    /// # Errors
    /// None is expected.
    pub fn json_object() -> Result<Self, ConstraintError> {
        JsonBuilder::build(|json, end| json.any_object(OBJECT_DEPTH, end))
    }
}

/// Builds automata of JSON texts.
pub(super) struct JsonBuilder {
    /// The automaton.
    pub states: NfaBuilder,
    number: ByteDfa,
    pub integer: ByteDfa,
}

impl JsonBuilder {
    /// The texts that `text` puts before their end.
    pub fn build(text: impl FnOnce(&mut Self, Next) -> Built) -> Result<ByteDfa, ConstraintError> {
        let (states, end) = NfaBuilder::new()?;
        let mut json = Self {
            states,
            number: ByteDfa::regex(NUMBER)?,
            integer: ByteDfa::regex(INTEGER)?,
        };
        let start = text(&mut json, end)?;
        json.states.finish(start)
    }

    /// `text`, and a space or not.
    pub fn separator(&mut self, text: &str, next: Next) -> Built {
        let space = self.states.literal(" ", next)?;
        let next = self.states.either(vec![space, next])?;
        self.states.literal(text, next)
    }

    /// A string whose characters are the texts of `language`.
    pub fn string_of(&mut self, language: &ByteDfa, next: Next) -> Built {
        let close = self.states.literal("\"", next)?;
        let open = self.states.embed_with(language, close, |byte| {
            (byte < b' ' || byte == b'"' || byte == b'\\').then(|| escape(byte))
        })?;
        self.states.literal("\"", open)
    }

    /// One character of a string, as it is or escaped.
    fn character(&mut self, next: Next) -> Built {
        let one_more = self.states.range(0x80, 0xbf, next)?;
        let two_more = self.states.range(0x80, 0xbf, one_more)?;
        let three_more = self.states.range(0x80, 0xbf, two_more)?;
        // Without overlong forms, surrogates and what is beyond U+10FFFF.
        let after_e0 = self.states.range(0xa0, 0xbf, one_more)?;
        let after_ed = self.states.range(0x80, 0x9f, one_more)?;
        let after_f0 = self.states.range(0x90, 0xbf, two_more)?;
        let after_f4 = self.states.range(0x80, 0x8f, two_more)?;
        let control = self.states.sparse(vec![
            bytes(b'0', b'9', next),
            bytes(b'A', b'F', next),
            bytes(b'a', b'f', next),
        ])?;
        let control = self.states.range(b'0', b'1', control)?;
        let control = self.states.literal("00", control)?;
        let short = |byte| bytes(byte, byte, next);
        let mut escapes: Vec<Transition> = b"\"/\\bfnrt".iter().copied().map(short).collect();
        escapes.push(bytes(b'u', b'u', control));
        let escapes = self.states.sparse(escapes)?;
        self.states.sparse(vec![
            bytes(b' ', b'!', next),
            bytes(b'#', b'[', next),
            bytes(b'\\', b'\\', escapes),
            bytes(b']', 0x7f, next),
            bytes(0xc2, 0xdf, one_more),
            bytes(0xe0, 0xe0, after_e0),
            bytes(0xe1, 0xec, two_more),
            bytes(0xed, 0xed, after_ed),
            bytes(0xee, 0xef, two_more),
            bytes(0xf0, 0xf0, after_f0),
            bytes(0xf1, 0xf3, three_more),
            bytes(0xf4, 0xf4, after_f4),
        ])
    }

    /// A string of `least` to `most` characters.
    pub fn string(&mut self, least: usize, most: Option<usize>, next: Next) -> Built {
        let close = self.states.literal("\"", next)?;
        let mut rest = match most {
            Some(most) => {
                let mut rest = close;
                for _ in least..most {
                    let character = self.character(rest)?;
                    rest = self.states.either(vec![close, character])?;
                }
                rest
            }
            None => {
                let rest = self.states.later()?;
                let character = self.character(rest)?;
                self.states.also(rest, character)?;
                self.states.also(rest, close)?;
                rest
            }
        };
        for _ in 0..least {
            rest = self.character(rest)?;
        }
        self.states.literal("\"", rest)
    }

    /// An integer.
    pub fn any_integer(&mut self, next: Next) -> Built {
        let integer = self.integer.clone();
        self.states.embed(&integer, next)
    }

    /// A number.
    pub fn any_number(&mut self, next: Next) -> Built {
        let number = self.number.clone();
        self.states.embed(&number, next)
    }

    /// true or false.
    pub fn boolean(&mut self, next: Next) -> Built {
        let either = [
            self.states.literal("true", next)?,
            self.states.literal("false", next)?,
        ];
        self.states.either(either.into())
    }

    /// Any value that nests at most `depth` deep; at 0 no array and no object.
    pub fn any_value(&mut self, depth: usize, next: Next) -> Built {
        let mut either = vec![
            self.string(0, None, next)?,
            self.any_number(next)?,
            self.boolean(next)?,
            self.states.literal("null", next)?,
        ];
        if depth > 0 {
            either.push(self.any_object(depth, next)?);
            either.push(self.array(0, None, next, |json, next| json.any_value(depth - 1, next))?);
        }
        self.states.either(either)
    }

    /// Any object that nests at most `depth` deep, itself included.
    pub fn any_object(&mut self, depth: usize, next: Next) -> Built {
        self.map(next, |json, next| {
            json.any_value(depth.saturating_sub(1), next)
        })
    }

    /// An object of any keys with values of one kind.
    pub fn map(&mut self, next: Next, value: impl FnOnce(&mut Self, Next) -> Built) -> Built {
        let close = self.states.literal("}", next)?;
        let after = self.states.later()?;
        let entry = value(self, after)?;
        let entry = self.separator(":", entry)?;
        let entry = self.string(0, None, entry)?;
        let more = self.separator(",", entry)?;
        self.states.also(after, more)?;
        self.states.also(after, close)?;
        let inside = self.states.either(vec![entry, close])?;
        self.states.literal("{", inside)
    }

    /// An array of `least` to `most` items of one kind.
    pub fn array(
        &mut self,
        least: usize,
        most: Option<usize>,
        next: Next,
        mut item: impl FnMut(&mut Self, Next) -> Built,
    ) -> Built {
        self.tuple(0, least, most, next, |json, _, next| item(json, next))
    }

    /// An array of `least` to `most` items, of which the first `distinct` may each be of a kind of its own, and
    /// the others are of one; `item` is given the index of each.
    pub fn tuple(
        &mut self,
        distinct: usize,
        least: usize,
        most: Option<usize>,
        next: Next,
        mut item: impl FnMut(&mut Self, usize, Next) -> Built,
    ) -> Built {
        let close = self.states.literal("]", next)?;
        if most == Some(0) {
            return self.states.literal("[", close);
        }
        let counted = most.unwrap_or(least.max(distinct).max(1));
        // What follows the last item that is counted, then that of each before it.
        let mut after = match most {
            Some(_) => close,
            None => {
                let after = self.states.later()?;
                let more = item(self, counted, after)?;
                let more = self.separator(",", more)?;
                self.states.also(after, more)?;
                self.states.also(after, close)?;
                after
            }
        };
        for count in (1..counted).rev() {
            let more = item(self, count, after)?;
            let more = self.separator(",", more)?;
            after = match count >= least {
                true => self.states.either(vec![more, close])?,
                false => more,
            };
        }
        let mut inside = item(self, 0, after)?;
        if least == 0 {
            inside = self.states.either(vec![inside, close])?;
        }
        self.states.literal("[", inside)
    }
}

/// How a byte is written in a string.
fn escape(byte: u8) -> String {
    match byte {
        b'"' | b'\\' => format!("\\{}", char::from(byte)),
        0x08 => "\\b".into(),
        0x0c => "\\f".into(),
        b'\n' => "\\n".into(),
        b'\r' => "\\r".into(),
        b'\t' => "\\t".into(),
        _ => format!("\\u{byte:04x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_json_up_to_their_depth() {
        let object = ByteDfa::json_object().unwrap();
        for text in [
            "{}",
            r#"{"a":1}"#,
            r#"{"a": [1, -2.5e10,{"b":null}], "ä\n\"\u001f":"😀"}"#,
            r#"{"a":{"b":{"c":{}}}}"#,
        ] {
            assert!(object.matches(text.as_bytes()), "{text}");
            serde_json::from_str::<serde_json::Value>(text).unwrap();
        }
        for text in [
            "",
            "[]",
            r#"{"a":01}"#,
            r#"{"a":1,}"#,
            r#"{"a":1e999}"#,
            "{ }",
            r#"{"a":{"b":{"c":{"d":{}}}}}"#,
        ] {
            assert!(!object.matches(text.as_bytes()), "{text}");
        }
        assert!(!object.matches(b"{\"\xff\":1}"));
        assert!(!object.matches(b"{\"\xed\xa0\x80\":1}"));
        assert!(!object.matches(b"{\"\n\":1}"));
    }

    #[test]
    fn arrays_and_strings_are_as_long_as_they_say() {
        for (least, most) in [
            (0, Some(0)),
            (0, Some(2)),
            (2, Some(3)),
            (1, None),
            (3, None),
        ] {
            let inside = |count: usize| least <= count && most.is_none_or(|most| count <= most);
            let arrays = JsonBuilder::build(|json, end| {
                json.array(least, most, end, |json, next| json.boolean(next))
            });
            let strings = JsonBuilder::build(|json, end| json.string(least, most, end));
            let (arrays, strings) = (arrays.unwrap(), strings.unwrap());
            for count in 0..6 {
                let array = format!("[{}]", vec!["true"; count].join(", "));
                assert_eq!(arrays.matches(array.as_bytes()), inside(count), "{array}");
                let string = format!("\"{}\"", ["é", "\\n"].repeat(3)[..count].concat());
                assert_eq!(
                    strings.matches(string.as_bytes()),
                    inside(count),
                    "{string}"
                );
            }
        }
    }
}
