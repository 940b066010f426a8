//! Where a parser is in a grammar.

use crate::constraint::ConstraintError;

/// A place in a text.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The beginning of a text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// How many bytes are behind.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Goes back, or ahead, to a place that it was at.
    pub fn go_to(&mut self, at: usize) {
        self.at = at;
    }

    /// The next character; none at the end.
    pub fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Takes the next character.
    pub fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    /// Takes `what` if it comes next; whether it does.
    pub fn eat(&mut self, what: &str) -> bool {
        let comes = self.rest().starts_with(what);
        if comes {
            self.at += what.len();
        }
        comes
    }

    /// Takes the characters up to the first that is not of a kind.
    pub fn take_while(&mut self, is_of_kind: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|character| !is_of_kind(character));
        let taken = &rest[..length.unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    /// Takes so many hexadecimal digits, the number of a character.
    pub fn code_point(&mut self, digits: usize) -> Result<char, ConstraintError> {
        let at = self.at;
        let number = self.rest().get(..digits).unwrap_or_default();
        let is_number = number.len() == digits && number.bytes().all(|b| b.is_ascii_hexdigit());
        let point = u32::from_str_radix(number, 16).ok().filter(|_| is_number);
        match point.and_then(char::from_u32) {
            Some(character) => {
                self.at += digits;
                Ok(character)
            }
            None => Err(self.error(
                at,
                format!(
                    "{digits} hexadecimal digits, the number of a character, have to come here"
                ),
            )),
        }
    }

    /// What comes next, for an error.
    pub fn coming(&self) -> String {
        match self.peek() {
            Some(character) => format!("{character:?}"),
            None => "the end of the grammar".to_owned(),
        }
    }

    /// The error that is found at a place.
    pub fn error(&self, at: usize, reason: impl Into<String>) -> ConstraintError {
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConstraintError::Grammar {
            line,
            column: before[start..].chars().count() + 1,
            reason: reason.into(),
        }
    }

    /// The error that something else has to come next.
    pub fn expected(&self, what: &str) -> ConstraintError {
        self.error(
            self.at,
            format!("{what} has to come here, and {} does", self.coming()),
        )
    }
}
