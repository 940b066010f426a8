//! The regular expressions of JSON Schema, which are ECMAScript's.

use std::iter::Peekable;
use std::str::Chars;

/// White space, as ECMAScript has it.
const SPACE: &str = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}";

/// The class of no character.
const NONE: &str = "[a&&b]";

/// `pattern` in the syntax of Rust's `regex`, with ECMAScript's meaning: `\d`, `\w`, `\b` and `\s` are of ASCII or of
/// ECMAScript's own set, a dot is no line terminator, and a class holds neither classes nor operators on sets.
pub(super) fn in_rust(pattern: &str) -> String {
    let mut rust = String::with_capacity(pattern.len());
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.next_if_eq(&'b').is_some() => rust.push_str(r"(?-u:\b)"),
            '\\' if characters.next_if_eq(&'B').is_some() => rust.push_str(r"(?-u:\B)"),
            '\\' => rust.push_str(&escape(&mut characters).0),
            '.' => rust.push_str(r"[^\n\r\u{2028}\u{2029}]"),
            '[' => class(&mut characters, &mut rust),
            _ => rust.push(character),
        }
    }
    rust
}

/// What is after a backslash, with it, and whether it is a set of characters.
fn escape(characters: &mut Peekable<Chars<'_>>) -> (String, bool) {
    let set = match characters.next() {
        Some('d') => "[0-9]".into(),
        Some('D') => "[^0-9]".into(),
        Some('w') => "[0-9A-Za-z_]".into(),
        Some('W') => "[^0-9A-Za-z_]".into(),
        Some('s') => format!("[{SPACE}]"),
        Some('S') => format!("[^{SPACE}]"),
        Some(kind @ ('p' | 'P')) => {
            let mut property = format!("\\{kind}");
            braced(characters, &mut property);
            property
        }
        Some(kind @ ('x' | 'u')) => {
            let mut number = format!("\\{kind}");
            let digits = if kind == 'x' { 2 } else { 4 };
            if kind == 'u' && characters.peek() == Some(&'{') {
                braced(characters, &mut number);
            } else {
                let digits = (0..digits).map_while(|_| characters.next_if(char::is_ascii_hexdigit));
                number.extend(digits);
            }
            return (number, false);
        }
        Some('0') => return (r"\x00".into(), false),
        // To Rust these are the beginning and the end of a word.
        Some(character @ ('<' | '>')) => return (character.into(), false),
        Some(escaped) => return (format!("\\{escaped}"), false),
        None => return ("\\".into(), false),
    };
    (set, true)
}

/// Adds what is in braces, and them, if they come next.
fn braced(characters: &mut Peekable<Chars<'_>>, to: &mut String) {
    if characters.peek() == Some(&'{') {
        for character in characters.by_ref() {
            to.push(character);
            if character == '}' {
                break;
            }
        }
    }
}

/// A class, from after its opening bracket.
fn class(characters: &mut Peekable<Chars<'_>>, rust: &mut String) {
    let is_negated = characters.next_if_eq(&'^').is_some();
    if characters.next_if_eq(&']').is_some() {
        rust.push_str(if is_negated { "(?s:.)" } else { NONE });
        return;
    }
    rust.push_str(if is_negated { "[^" } else { "[" });
    // Whether a dash that comes next makes a range of what is before it.
    let mut may_range = false;
    while let Some(character) = characters.next() {
        if character == ']' {
            rust.push(']');
            return;
        }
        let is_dash = character == '-' && may_range;
        if is_dash && characters.peek().is_some_and(|next| *next != ']') {
            let Some(end) = characters.next() else {
                return;
            };
            let (end, is_set) = member(end, characters);
            // Beside a set a dash is itself.
            rust.push_str(if is_set { r"\-" } else { "-" });
            rust.push_str(&end);
            may_range = false;
            continue;
        }
        let (text, is_set) = member(character, characters);
        rust.push_str(&text);
        may_range = !is_set;
    }
}

/// A character of a class or a set within it, and whether it is a set.
fn member(character: char, characters: &mut Peekable<Chars<'_>>) -> (String, bool) {
    match character {
        '\\' if characters.next_if_eq(&'b').is_some() => (r"\x08".into(), false),
        '\\' => escape(characters),
        '[' | '^' | '-' | '&' | '~' => (format!("\\{character}"), false),
        _ => (character.into(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::ByteDfa;

    #[test]
    fn patterns_mean_what_they_mean_in_ecmascript() {
        for (pattern, yes, no) in [
            (r"^\d+$", "12", "١"),
            (r"^[\d-]$", "-", "a"),
            (r"^\w$", "_", "ä"),
            (r"^.$", "ä", "\r"),
            (r"^[.]$", ".", "a"),
            (r"^[[&&a]$", "[", "b"),
            (r"^\S$", "a", "\u{feff}"),
            (r"^a\/b$", "a/b", "ab"),
            ("b", "abc", "ac"),
            (r"^(?:[]|a])$", "a]", "]"),
            (r"^[^]$", "\n", ""),
            (r"^[^]$", "ä", "aa"),
            (r"^[^^]$", "a", "^"),
            (r"^[a-z&&b]$", "&", "-"),
            (r"^[a-z&&b]$", "c", "1"),
            (r"^[a-z--b]$", "c", "~"),
            (r"^[a-c--]$", "-", "d"),
            (r"^[+--]$", ",", "."),
            (r"^[--/]$", ".", "+"),
            (r"^[a~~b]$", "a", "c"),
            (r"^[\x41-\x43-z]$", "z", "Y"),
            (r"^[\u0041-\u{43}]$", "B", "D"),
            (r"^[\d-z]$", "-", "a"),
            (r"^[\b]$", "\u{8}", "b"),
            (r"^\<a\>$", "<a>", "a"),
            (r"\bcat\b", "a cat.", "cats"),
            (r"\bcat\b", "écaté", "_cat"),
            (r"^a\B", "ab", "a b"),
            (r"^.\B.$", "é-", "é_"),
        ] {
            let language = ByteDfa::searching(&in_rust(pattern), &mut 0).unwrap();
            assert!(language.matches(yes.as_bytes()), "{pattern}");
            assert!(!language.matches(no.as_bytes()), "{pattern}");
        }
    }

    #[test]
    fn a_class_of_nothing_matches_nothing() {
        for pattern in ["[]", "[]a]", r"[^\s\S]"] {
            let error = ByteDfa::searching(&in_rust(pattern), &mut 0).unwrap_err();
            assert_eq!(
                error,
                crate::constraint::ConstraintError::Empty,
                "{pattern}"
            );
        }
    }
}
