//! Lark's notation, as far as llguidance reads it:
//! <https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>.
//!
//! The grammar is read as one of characters: where terminals meet, every way to split a text counts, as by Lark's
//! Earley parser with the lexer `dynamic_complete`. Priorities and aliases change no text.

use std::collections::HashMap;

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};

use super::cursor::Cursor;
use super::rules::{
    Classes, Expr, MAX_GROUPS, MAX_REPEATED, MAX_WORK, RuleId, RuleTable, Rules, braced_counts,
    check_counts, count,
};
use crate::constraint::{ByteDfa, ConstraintError};

/// The most bytes of a regular expression.
const MAX_PATTERN: usize = 4096;

/// The rule of whole texts.
const START: &str = "start";

/// The rule of what may come between terminals, which no grammar can name.
const IGNORED: &str = "%ignore";

/// The terminals of `%import common`.
const COMMON: &str = include_str!("common.lark");

/// What the names of those terminals begin with.
const COMMON_PREFIX: &str = "common.";

/// Reads a grammar.
pub(super) fn parse(cursor: Cursor) -> Result<Rules, ConstraintError> {
    let mut rules = RuleTable::default();
    let ignored = rules.mention(IGNORED, 0, &cursor)?;
    let mut parser = Parser {
        cursor,
        rules,
        prefix: "",
        ignored,
        ignores: Vec::new(),
        patterns: Patterns::default(),
        classes: Classes::default(),
    };
    parser.statements()?;
    let Parser {
        cursor,
        mut rules,
        ignores,
        ..
    } = parser;
    let ignores = match ignores.is_empty() {
        true => Expr::empty(),
        false => Expr::either(ignores).repeat(0, None),
    };
    rules.define(IGNORED, 0, ignores, &cursor)?;
    rules.finish(START, &cursor).map(|mut rules| {
        let whole = vec![Expr::Rule(ignored), Expr::Rule(rules.start)];
        rules.start = rules.bodies.len();
        rules.bodies.push(Expr::Sequence(whole));
        rules
    })
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    rules: RuleTable,
    /// What the names of rules begin with that are not as they are written.
    prefix: &'static str,
    ignored: RuleId,
    /// What may come between terminals.
    ignores: Vec<Expr>,
    patterns: Patterns,
    classes: Classes,
}

/// The regular expressions of a grammar: one automaton for each, however often it is written.
#[derive(Default)]
struct Patterns {
    /// By pattern and flags.
    known: HashMap<(String, String), Expr>,
    /// States that were made for them.
    made: usize,
}

impl Patterns {
    /// The texts of a pattern with its flags, as [`ByteDfa::part`] reads them.
    fn language(&mut self, pattern: String, flags: &str) -> Result<Expr, ConstraintError> {
        let key = (pattern, flags.to_owned());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let language = Expr::of(ByteDfa::part(&key.0, flags, &mut self.made))?;
        if self.made > MAX_WORK {
            return Err(ConstraintError::TooLarge(format!(
                "its regular expressions come to more than {MAX_WORK} states"
            )));
        }
        self.known.insert(key, language.clone());
        Ok(language)
    }
}

impl<'a> Parser<'a> {
    /// Skips white space within a line, and comments.
    fn skip_in_line(&mut self) {
        self.cursor.take_while(|c| c != '\n' && c.is_whitespace());
        if self.cursor.peek() == Some('#') || self.comes("//") {
            self.cursor.take_while(|character| character != '\n');
        }
    }

    /// Skips white space and comments.
    fn skip(&mut self) {
        self.skip_in_line();
        while self.cursor.eat("\n") {
            self.skip_in_line();
        }
    }

    fn comes(&self, what: &str) -> bool {
        self.cursor.clone().eat(what)
    }

    /// The name of a rule or terminal, if one comes next.
    fn name(&mut self) -> Option<&'a str> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        match self.cursor.peek() {
            Some(first) if first.is_ascii_alphabetic() || first == '_' => {
                Some(self.cursor.take_while(is_of_name))
            }
            _ => None,
        }
    }

    fn unsupported(&self, at: usize, what: &str) -> ConstraintError {
        self.cursor.error(at, format!("{what} not supported"))
    }

    fn statements(&mut self) -> Result<(), ConstraintError> {
        self.skip();
        while self.cursor.peek().is_some() {
            match self.cursor.peek() {
                Some('%') => self.directive()?,
                _ => self.rule()?,
            }
            if !matches!(self.cursor.peek(), None | Some('\n')) {
                return Err(self.cursor.expected("the end of the line"));
            }
            self.skip();
        }
        Ok(())
    }

    fn directive(&mut self) -> Result<(), ConstraintError> {
        let at = self.cursor.at();
        self.cursor.next();
        let name = self.name().unwrap_or_default();
        self.skip_in_line();
        match name {
            "ignore" => {
                let ignored = self.alternatives(true, 0)?;
                self.ignores.push(ignored);
            }
            "import" => self.import()?,
            // The header of llguidance's grammars, without options.
            "llguidance" if self.cursor.eat("{}") => (),
            _ => return Err(self.unsupported(at, &format!("%{name} is"))),
        }
        self.skip_in_line();
        Ok(())
    }

    /// Terminals of `common`: `common.NAME`, `common.NAME -> ALIAS` or `common (NAME, NAME)`.
    fn import(&mut self) -> Result<(), ConstraintError> {
        let at = self.cursor.at();
        if self.name() != Some("common") {
            let allowed =
                "only terminals of common can be imported, as in common.INT; other imports are";
            return Err(self.unsupported(at, allowed));
        }
        if self.cursor.eat(".") {
            let at = self.cursor.at();
            let name = self.name().unwrap_or_default();
            self.skip_in_line();
            let alias = match self.cursor.eat("->") {
                true => {
                    self.skip_in_line();
                    self.name().ok_or_else(|| self.cursor.expected("a name"))?
                }
                false => name,
            };
            return self.import_common(name, alias, at);
        }
        self.skip_in_line();
        if !self.cursor.eat("(") {
            return Err(self.cursor.expected("\".\" or \"(\""));
        }
        loop {
            self.skip();
            let at = self.cursor.at();
            let name = self.name().unwrap_or_default();
            self.import_common(name, name, at)?;
            self.skip();
            if self.cursor.eat(")") {
                return Ok(());
            }
            if !self.cursor.eat(",") {
                return Err(self.cursor.expected("\",\" or \")\""));
            }
        }
    }

    fn import_common(&mut self, name: &str, alias: &str, at: usize) -> Result<(), ConstraintError> {
        if !self.rules.is_defined(&format!("{COMMON_PREFIX}DIGIT")) {
            let mut common = Parser {
                cursor: Cursor::new(COMMON),
                rules: std::mem::take(&mut self.rules),
                prefix: COMMON_PREFIX,
                ignored: self.ignored,
                ignores: Vec::new(),
                patterns: std::mem::take(&mut self.patterns),
                classes: std::mem::take(&mut self.classes),
            };
            common.statements()?;
            self.rules = common.rules;
            self.patterns = common.patterns;
            self.classes = common.classes;
        }
        let common = format!("{COMMON_PREFIX}{name}");
        if !self.rules.is_defined(&common) {
            return Err(self.unsupported(at, &format!("{common} is")));
        }
        let id = self.rules.mention(&common, at, &self.cursor)?;
        self.rules.define(alias, at, Expr::Rule(id), &self.cursor)
    }

    fn rule(&mut self) -> Result<(), ConstraintError> {
        // What shapes a tree alone.
        while self.cursor.eat("?") || self.cursor.eat("!") {}
        let at = self.cursor.at();
        let name = self
            .name()
            .ok_or_else(|| self.cursor.expected("a rule, a terminal or a directive"))?;
        if self.cursor.eat(".") {
            self.cursor.eat("-");
            if count(&mut self.cursor)?.is_none() {
                return Err(self.cursor.expected("a priority"));
            }
        }
        let after = self.cursor.at();
        match self.cursor.peek() {
            Some('{') => return Err(self.unsupported(after, "templates are")),
            Some('[') => return Err(self.unsupported(after, "attributes of rules are")),
            _ if self.comes("::") => return Err(self.unsupported(after, "parameters of rules are")),
            _ => (),
        }
        self.skip_in_line();
        if !self.cursor.eat(":") {
            return Err(self.cursor.expected("\":\""));
        }
        self.skip_in_line();
        let body = self.alternatives(is_terminal(name), 0)?;
        let name = format!("{}{name}", self.prefix);
        self.rules.define(&name, at, body, &self.cursor)
    }

    fn alternatives(&mut self, in_terminal: bool, depth: usize) -> Result<Expr, ConstraintError> {
        let mut alternatives = vec![self.sequence(in_terminal, depth)?];
        loop {
            // Alternatives may go on in the next line.
            let end = self.cursor.at();
            self.skip();
            if !self.cursor.eat("|") {
                if depth == 0 {
                    self.cursor.go_to(end);
                }
                return Ok(Expr::either(alternatives));
            }
            self.skip_in_line();
            if depth > 0 {
                self.skip();
            }
            alternatives.push(self.sequence(in_terminal, depth)?);
        }
    }

    fn sequence(&mut self, in_terminal: bool, depth: usize) -> Result<Expr, ConstraintError> {
        let mut parts = Vec::new();
        while let Some(part) = self.part(in_terminal, depth)? {
            let part = self.repeated(part)?;
            parts.push(part);
            self.skip_in_line();
            if depth > 0 {
                self.skip();
            }
        }
        if self.cursor.eat("->") {
            self.skip_in_line();
            if self.name().is_none() {
                return Err(self.cursor.expected("the name of an alias"));
            }
            self.skip_in_line();
        }
        Ok(Expr::sequence(parts))
    }

    /// A part of a sequence; none at its end.
    fn part(&mut self, in_terminal: bool, depth: usize) -> Result<Option<Expr>, ConstraintError> {
        let at = self.cursor.at();
        let terminal = match self.cursor.peek() {
            None | Some('\n' | '|' | ')' | ']') => return Ok(None),
            Some('-') if self.comes("->") => return Ok(None),
            Some('"') => self.text()?,
            Some('/') => self.regex()?,
            Some(open @ ('(' | '[')) => {
                if depth == MAX_GROUPS {
                    let reason = format!("groups nest deeper than {MAX_GROUPS}");
                    return Err(self.cursor.error(at, reason));
                }
                self.cursor.next();
                self.skip();
                let group = self.alternatives(in_terminal, depth + 1)?;
                let (close, group) = match open {
                    '(' => (")", group),
                    _ => ("]", group.repeat(0, Some(1))),
                };
                if !self.cursor.eat(close) {
                    return Err(self.cursor.expected(&format!("{close:?}")));
                }
                return Ok(Some(group));
            }
            Some('%') => {
                self.cursor.next();
                let name = self.name().unwrap_or_default();
                return Err(self.unsupported(at, &format!("%{name} within a rule is")));
            }
            Some('<') => return Err(self.unsupported(at, "special tokens are")),
            Some('@') => return Err(self.unsupported(at, "other grammars are")),
            Some('&') => return Err(self.unsupported(at, "intersections are")),
            Some('~') => return Err(self.unsupported(at, "complements are")),
            Some(_) => {
                let Some(name) = self.name() else {
                    let what = "a string, a regular expression, a group, a rule or a terminal";
                    return Err(self.cursor.expected(what));
                };
                let after = self.cursor.at();
                if self.comes("::") {
                    return Err(self.unsupported(after, "parameters of rules are"));
                }
                if in_terminal && !is_terminal(name) {
                    let reason = format!("{name} is a rule, and a terminal is made of terminals");
                    return Err(self.cursor.error(at, reason));
                }
                let full = format!("{}{name}", self.prefix);
                let rule = Expr::Rule(self.rules.mention(&full, at, &self.cursor)?);
                if !is_terminal(name) {
                    return Ok(Some(rule));
                }
                rule
            }
        };
        Ok(Some(match in_terminal {
            true => terminal,
            false => Expr::Sequence(vec![terminal, Expr::Rule(self.ignored)]),
        }))
    }

    /// A part with what follows it of `*`, `+`, `?`, `{…}` and `~…`.
    fn repeated(&mut self, mut part: Expr) -> Result<Expr, ConstraintError> {
        for _ in 0..=MAX_REPEATED {
            let end = self.cursor.at();
            self.skip_in_line();
            let (least, most) = if self.cursor.eat("*") {
                (0, None)
            } else if self.cursor.eat("+") {
                (1, None)
            } else if self.cursor.eat("?") {
                (0, Some(1))
            } else if self.cursor.eat("{") {
                braced_counts(&mut self.cursor)?
            } else if self.cursor.eat("~") {
                self.counts()?
            } else {
                self.cursor.go_to(end);
                return Ok(part);
            };
            part = part.repeat(least, most);
        }
        let reason = format!("a part is repeated more than {MAX_REPEATED} times over");
        Err(self.cursor.error(self.cursor.at(), reason))
    }

    /// `n` or `n..m`, from after `~`.
    fn counts(&mut self) -> Result<(usize, Option<usize>), ConstraintError> {
        self.skip_in_line();
        let at = self.cursor.at();
        let number = |parser: &mut Self| {
            let count = count(&mut parser.cursor)?;
            count.ok_or_else(|| parser.cursor.expected("a number"))
        };
        let least = number(self)?;
        let most = match self.cursor.eat("..") {
            true => number(self)?,
            false => least,
        };
        check_counts(least, Some(most), at, &self.cursor)?;
        Ok((least, Some(most)))
    }

    /// A string, with the flag `i` or not, or a range of characters.
    fn text(&mut self) -> Result<Expr, ConstraintError> {
        let at = self.cursor.at();
        let text = self.quoted()?;
        if self.comes("..\"") {
            self.cursor.eat("..");
            let last = self.quoted()?;
            let only = |text: &str| {
                let mut characters = text.chars();
                characters.next().filter(|_| characters.next().is_none())
            };
            return match (only(&text), only(&last)) {
                (Some(first), Some(last)) if first <= last => {
                    let range = ClassUnicodeRange::new(first, last);
                    self.classes.one_of(ClassUnicode::new([range]))
                }
                _ => {
                    let reason = "a range is of two characters, the smaller one first";
                    Err(self.cursor.error(at, reason))
                }
            };
        }
        if self.cursor.eat("i") {
            return self.patterns.language(regex_syntax::escape(&text), "i");
        }
        Ok(Expr::Text(text))
    }

    fn quoted(&mut self) -> Result<String, ConstraintError> {
        let at = self.cursor.at();
        self.cursor.next();
        let mut text = String::new();
        loop {
            let escape = self.cursor.at();
            text.push(match self.cursor.next() {
                None | Some('\n') => {
                    return Err(self.cursor.error(at, "'\"' is missing at the string's end"));
                }
                Some('"') => return Ok(text),
                Some('\\') => match self.cursor.next() {
                    Some('x') => self.cursor.code_point(2)?,
                    Some('u') => self.cursor.code_point(4)?,
                    Some('U') => self.cursor.code_point(8)?,
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some('f') => '\x0c',
                    Some(character @ ('\\' | '"' | '\'' | '/')) => character,
                    _ => {
                        let reason = r#"unknown escape; allowed: \x00, \u0000, \U00000000, \n, \r, \t, \f, \\, \", \', \/"#;
                        return Err(self.cursor.error(escape, reason));
                    }
                },
                Some(character) => character,
            });
        }
    }

    /// A regular expression between slashes, with its flags.
    fn regex(&mut self) -> Result<Expr, ConstraintError> {
        let at = self.cursor.at();
        self.cursor.next();
        let mut pattern = String::new();
        loop {
            match self.cursor.next() {
                None | Some('\n') => {
                    let reason = "'/' is missing at the end of the regular expression";
                    return Err(self.cursor.error(at, reason));
                }
                Some('/') => break,
                Some('\\') => match self.cursor.next() {
                    Some('/') => pattern.push('/'),
                    Some(escaped) => pattern.extend(['\\', escaped]),
                    None => pattern.push('\\'),
                },
                Some(character) => pattern.push(character),
            }
        }
        if pattern.len() > MAX_PATTERN {
            let reason = format!(
                "a regular expression of {} bytes; allowed: at most {MAX_PATTERN}",
                pattern.len()
            );
            return Err(self.cursor.error(at, reason));
        }
        let flags_at = self.cursor.at();
        let flags = self.cursor.take_while(|c| c.is_ascii_alphabetic());
        if let Some(flag) = flags.chars().find(|flag| !"isux".contains(*flag)) {
            let reason = format!("the flag {flag} is not supported; allowed: i, s, u, x");
            return Err(self.cursor.error(flags_at, reason));
        }
        let language = self.patterns.language(pattern, flags);
        language.map_err(|error| match error {
            ConstraintError::TooLarge(_) => error,
            error => self.cursor.error(at, error.to_string()),
        })
    }
}

/// Terminals are written in upper case.
fn is_terminal(name: &str) -> bool {
    name.trim_start_matches('_')
        .starts_with(|c: char| c.is_ascii_uppercase())
}
