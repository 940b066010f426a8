//! GBNF: <https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md>.

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};

use super::cursor::Cursor;
use super::rules::{Classes, Expr, MAX_GROUPS, MAX_REPEATED, RuleTable, Rules, braced_counts};
use crate::constraint::ConstraintError;

/// The rule of whole texts.
const START: &str = "root";

/// Reads a grammar.
///
/// A rule ends where the next begins, so that its alternatives may go on in any line.
pub(super) fn parse(cursor: Cursor) -> Result<Rules, ConstraintError> {
    let mut parser = Parser {
        cursor,
        rules: RuleTable::default(),
        classes: Classes::default(),
    };
    parser.skip();
    while parser.cursor.peek().is_some() {
        parser.rule()?;
    }
    parser.rules.finish(START, &parser.cursor)
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    rules: RuleTable,
    classes: Classes,
}

impl<'a> Parser<'a> {
    /// Skips white space and comments.
    fn skip(&mut self) {
        self.cursor.take_while(char::is_whitespace);
        while self.cursor.peek() == Some('#') {
            self.cursor.take_while(|character| character != '\n');
            self.cursor.take_while(char::is_whitespace);
        }
    }

    /// A name, if one comes next.
    fn name(&mut self) -> Option<&'a str> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        Some(self.cursor.take_while(is_of_name)).filter(|name| !name.is_empty())
    }

    fn rule(&mut self) -> Result<(), ConstraintError> {
        let at = self.cursor.at();
        let name = self
            .name()
            .ok_or_else(|| self.cursor.expected("the name of a rule"))?;
        self.skip();
        if !self.cursor.eat("::=") {
            return Err(self.cursor.expected("\"::=\""));
        }
        self.skip();
        let body = self.alternatives(0)?;
        self.rules.define(name, at, body, &self.cursor)
    }

    fn alternatives(&mut self, depth: usize) -> Result<Expr, ConstraintError> {
        let mut alternatives = vec![self.sequence(depth)?];
        while self.cursor.eat("|") {
            self.skip();
            alternatives.push(self.sequence(depth)?);
        }
        Ok(Expr::either(alternatives))
    }

    fn sequence(&mut self, depth: usize) -> Result<Expr, ConstraintError> {
        let mut parts: Vec<Expr> = Vec::new();
        while let Some(part) = self.part(depth)? {
            self.skip();
            let part = self.repeated(part)?;
            parts.push(part);
        }
        Ok(Expr::sequence(parts))
    }

    /// A part of a sequence; none at its end.
    fn part(&mut self, depth: usize) -> Result<Option<Expr>, ConstraintError> {
        let at = self.cursor.at();
        let part = match self.cursor.peek() {
            Some('"') => {
                self.cursor.next();
                let mut text = String::new();
                while let Some(character) = self.character('"', at)? {
                    text.push(character);
                }
                Expr::Text(text)
            }
            Some('[') => {
                self.cursor.next();
                self.class(at)?
            }
            Some('.') => {
                self.cursor.next();
                let any = ClassUnicodeRange::new('\0', char::MAX);
                self.classes.one_of(ClassUnicode::new([any]))?
            }
            Some('(') => {
                if depth == MAX_GROUPS {
                    let reason = format!("groups nest deeper than {MAX_GROUPS}");
                    return Err(self.cursor.error(at, reason));
                }
                self.cursor.next();
                self.skip();
                let group = self.alternatives(depth + 1)?;
                if !self.cursor.eat(")") {
                    return Err(self.cursor.expected("\")\""));
                }
                group
            }
            Some('<' | '!') => {
                return Err(self.cursor.error(
                    at,
                    "tokens by name or number are not supported; allowed: their text",
                ));
            }
            Some('|' | ')') | None => return Ok(None),
            Some(_) => {
                let Some(name) = self.name() else {
                    return Err(self.cursor.expected("a string, a class, a group or a rule"));
                };
                // The next rule, or a part of this one.
                let after = self.cursor.at();
                self.skip();
                if depth == 0 && self.cursor.eat("::=") {
                    self.cursor.go_to(at);
                    return Ok(None);
                }
                self.cursor.go_to(after);
                Expr::Rule(self.rules.mention(name, at, &self.cursor)?)
            }
        };
        Ok(Some(part))
    }

    /// A part with what follows it of `*`, `+`, `?` and `{…}`.
    fn repeated(&mut self, mut part: Expr) -> Result<Expr, ConstraintError> {
        for _ in 0..=MAX_REPEATED {
            let (least, most) = if self.cursor.eat("*") {
                (0, None)
            } else if self.cursor.eat("+") {
                (1, None)
            } else if self.cursor.eat("?") {
                (0, Some(1))
            } else if self.cursor.eat("{") {
                braced_counts(&mut self.cursor)?
            } else {
                return Ok(part);
            };
            self.skip();
            part = part.repeat(least, most);
        }
        let reason = format!("a part is repeated more than {MAX_REPEATED} times over");
        Err(self.cursor.error(self.cursor.at(), reason))
    }

    /// One character, as it is or escaped; none where `end` closes what began at `at`.
    fn character(&mut self, end: char, at: usize) -> Result<Option<char>, ConstraintError> {
        let escape = self.cursor.at();
        let character = match self.cursor.next() {
            None => {
                return Err(self
                    .cursor
                    .error(at, format!("{end:?} is missing at its end")));
            }
            Some(character) if character == end => return Ok(None),
            Some('\\') => match self.cursor.next() {
                Some('x') => self.cursor.code_point(2)?,
                Some('u') => self.cursor.code_point(4)?,
                Some('U') => self.cursor.code_point(8)?,
                Some('t') => '\t',
                Some('r') => '\r',
                Some('n') => '\n',
                Some(character @ ('\\' | '"' | '[' | ']' | '-' | '^')) => character,
                _ => {
                    let reason = r#"unknown escape; allowed: \x00, \u0000, \U00000000, \t, \r, \n, \\, \", \[, \], \-, \^"#;
                    return Err(self.cursor.error(escape, reason));
                }
            },
            Some(character) => character,
        };
        Ok(Some(character))
    }

    /// A class that began at `at`, from after its opening bracket.
    fn class(&mut self, at: usize) -> Result<Expr, ConstraintError> {
        let is_negated = self.cursor.eat("^");
        let mut ranges = Vec::new();
        loop {
            let range_at = self.cursor.at();
            let Some(first) = self.character(']', at)? else {
                break;
            };
            let dash = self.cursor.at();
            // A dash at the end is itself.
            let is_range = self.cursor.eat("-") && self.cursor.peek() != Some(']');
            let last = if is_range {
                self.character(']', at)?.unwrap_or(first)
            } else {
                self.cursor.go_to(dash);
                first
            };
            if last < first {
                let reason = format!("{first:?} comes after {last:?}");
                return Err(self.cursor.error(range_at, reason));
            }
            ranges.push(ClassUnicodeRange::new(first, last));
        }
        if ranges.is_empty() && !is_negated {
            return Err(self.cursor.error(at, "the class has no characters"));
        }
        let mut class = ClassUnicode::new(ranges);
        if is_negated {
            class.negate();
        }
        self.classes.one_of(class)
    }
}
