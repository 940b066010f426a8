//! The regular expressions of JSON Schema, which are ECMAScript's.

/// White space, as ECMAScript has it.
const SPACE: &str = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}";

/// `pattern` in the syntax of Rust's `regex`, with ECMAScript's meaning: `\d`, `\w` and `\s` are of ASCII or of
/// ECMAScript's own set, a dot is no line terminator, and a class holds no classes.
pub(super) fn in_rust(pattern: &str) -> String {
    let mut rust = String::with_capacity(pattern.len());
    let mut is_in_class = false;
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('d') => rust.push_str("[0-9]"),
                Some('D') => rust.push_str("[^0-9]"),
                Some('w') => rust.push_str("[0-9A-Za-z_]"),
                Some('W') => rust.push_str("[^0-9A-Za-z_]"),
                Some('s') => rust.extend(["[", SPACE, "]"]),
                Some('S') => rust.extend(["[^", SPACE, "]"]),
                Some(escaped) => rust.extend(['\\', escaped]),
                None => rust.push('\\'),
            },
            '.' if !is_in_class => rust.push_str(r"[^\n\r\u{2028}\u{2029}]"),
            '[' if is_in_class => rust.push_str(r"\["),
            '&' | '~' if is_in_class => rust.extend(['\\', character]),
            _ => {
                match character {
                    '[' => is_in_class = true,
                    ']' => is_in_class = false,
                    _ => {}
                }
                rust.push(character);
            }
        }
    }
    rust
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
        ] {
            let language = ByteDfa::searching(&in_rust(pattern)).unwrap();
            assert!(language.matches(yes.as_bytes()), "{pattern}");
            assert!(!language.matches(no.as_bytes()), "{pattern}");
        }
    }
}
