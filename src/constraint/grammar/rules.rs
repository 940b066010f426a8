//! The rules of a grammar, whatever it was written in.

use std::collections::HashMap;
use std::rc::Rc;

use regex_syntax::hir::{Class, ClassUnicode, Hir};

use super::cursor::Cursor;
use crate::constraint::{ByteDfa, ConstraintError};

/// The most states that are made for the regular expressions of a grammar, for its classes, and for its rules.
pub(super) const MAX_WORK: usize = 100_000;

/// The most rules of a grammar.
const MAX_RULES: usize = 1000;

/// The most that a part may be repeated by count.
const MAX_COUNT: usize = 10_000;

/// How deep groups may nest.
pub(super) const MAX_GROUPS: usize = 64;

/// How often what is repeated may be repeated again.
pub(super) const MAX_REPEATED: usize = 4;

/// The number of a rule.
pub(super) type RuleId = usize;

/// What a rule, or a part of one, stands for.
#[derive(Debug, Clone)]
pub(super) enum Expr {
    /// A text.
    Text(String),
    /// The texts of an automaton.
    Language(Rc<ByteDfa>),
    /// What a rule stands for.
    Rule(RuleId),
    /// One after the other.
    Sequence(Vec<Expr>),
    /// One of them; nothing at all if there is none.
    Either(Vec<Expr>),
    /// One several times.
    Repeat {
        of: Box<Expr>,
        least: usize,
        most: Option<usize>,
    },
}

impl Expr {
    /// Nothing but the empty text.
    pub fn empty() -> Self {
        Self::Sequence(Vec::new())
    }

    /// The parts one after the other.
    pub fn sequence(mut parts: Vec<Self>) -> Self {
        match parts.len() {
            1 => parts.remove(0),
            _ => Self::Sequence(parts),
        }
    }

    /// One of the parts.
    pub fn either(mut parts: Vec<Self>) -> Self {
        match parts.len() {
            1 => parts.remove(0),
            _ => Self::Either(parts),
        }
    }

    /// The part `least` to `most` times.
    pub fn repeat(self, least: usize, most: Option<usize>) -> Self {
        Self::Repeat {
            of: Box::new(self),
            least,
            most,
        }
    }

    /// The texts of an automaton, if there are any.
    pub fn of(language: Result<ByteDfa, ConstraintError>) -> Result<Self, ConstraintError> {
        match language {
            Ok(language) => Ok(Self::Language(Rc::new(language))),
            Err(ConstraintError::Empty) => Ok(Self::Either(Vec::new())),
            Err(error) => Err(error),
        }
    }

    /// Calls `visit` with every rule that it refers to.
    pub fn rules(&self, visit: &mut impl FnMut(RuleId)) {
        match self {
            Self::Text(_) | Self::Language(_) => (),
            Self::Rule(rule) => visit(*rule),
            Self::Sequence(parts) | Self::Either(parts) => {
                parts.iter().for_each(|part| part.rules(visit));
            }
            Self::Repeat { of, .. } => of.rules(visit),
        }
    }

    /// Whether it has a text at all, where of the rules those have one for which `of_rule` holds.
    pub fn has_text(&self, of_rule: &impl Fn(RuleId) -> bool) -> bool {
        match self {
            Self::Text(_) | Self::Language(_) => true,
            Self::Rule(rule) => of_rule(*rule),
            Self::Sequence(parts) => parts.iter().all(|part| part.has_text(of_rule)),
            Self::Either(parts) => parts.iter().any(|part| part.has_text(of_rule)),
            Self::Repeat { of, least, .. } => *least == 0 || of.has_text(of_rule),
        }
    }
}

/// The classes of characters of a grammar: one automaton for each, however often it is written.
#[derive(Default)]
pub(super) struct Classes {
    /// By their ranges of characters.
    known: HashMap<Vec<(char, char)>, Expr>,
    /// States that were made for them.
    made: usize,
}

impl Classes {
    /// One character of a class.
    ///
    /// # Errors
    /// If the classes of the grammar come to too many states.
    pub fn one_of(&mut self, class: ClassUnicode) -> Result<Expr, ConstraintError> {
        let ranges = class.iter().map(|range| (range.start(), range.end()));
        let key: Vec<(char, char)> = ranges.collect();
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let hir = Hir::class(Class::Unicode(class));
        let class = Expr::of(ByteDfa::of_hir(&hir, &mut self.made))?;
        if self.made > MAX_WORK {
            return Err(ConstraintError::TooLarge(format!(
                "its classes of characters come to more than {MAX_WORK} states"
            )));
        }
        self.known.insert(key, class.clone());
        Ok(class)
    }
}

/// The rules of a grammar, each of which is defined.
#[derive(Debug)]
pub(super) struct Rules {
    /// What each stands for.
    pub bodies: Vec<Expr>,
    /// The rule of whole texts.
    pub start: RuleId,
}

/// Rules as they are read.
#[derive(Default)]
pub(super) struct RuleTable {
    ids: HashMap<String, RuleId>,
    rules: Vec<Mentioned>,
}

struct Mentioned {
    name: String,
    /// Where it is mentioned first.
    at: usize,
    body: Option<Expr>,
}

impl RuleTable {
    /// The rule of a name that is written at `at`.
    pub fn mention(
        &mut self,
        name: &str,
        at: usize,
        cursor: &Cursor,
    ) -> Result<RuleId, ConstraintError> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        let id = self.rules.len();
        if id == MAX_RULES {
            return Err(cursor.error(at, format!("there are more than {MAX_RULES} rules")));
        }
        self.ids.insert(name.to_owned(), id);
        self.rules.push(Mentioned {
            name: name.to_owned(),
            at,
            body: None,
        });
        Ok(id)
    }

    /// Defines the rule of a name that is written at `at`.
    pub fn define(
        &mut self,
        name: &str,
        at: usize,
        body: Expr,
        cursor: &Cursor,
    ) -> Result<(), ConstraintError> {
        let id = self.mention(name, at, cursor)?;
        match self.rules[id].body.replace(body) {
            None => Ok(()),
            Some(_) => Err(cursor.error(at, format!("{name} is defined a second time"))),
        }
    }

    /// Whether a rule of this name is defined.
    pub fn is_defined(&self, name: &str) -> bool {
        let id = self.ids.get(name);
        id.is_some_and(|id| self.rules[*id].body.is_some())
    }

    /// The rules, all of which must be defined, `start` among them.
    pub fn finish(self, start: &str, cursor: &Cursor) -> Result<Rules, ConstraintError> {
        let Some(start) = self
            .ids
            .get(start)
            .copied()
            .filter(|_| self.is_defined(start))
        else {
            let reason = format!("there is no rule {start}, which whole texts are of");
            return Err(cursor.error(0, reason));
        };
        let bodies = self.rules.into_iter().map(|rule| {
            let undefined = || cursor.error(rule.at, format!("{} is not defined", rule.name));
            rule.body.ok_or_else(undefined)
        });
        Ok(Rules {
            bodies: bodies.collect::<Result<_, _>>()?,
            start,
        })
    }
}

/// A count of repetitions, if one comes next.
pub(super) fn count(cursor: &mut Cursor) -> Result<Option<usize>, ConstraintError> {
    let at = cursor.at();
    let digits = cursor.take_while(|character| character.is_ascii_digit());
    if digits.is_empty() {
        return Ok(None);
    }
    let count = digits.parse().ok().filter(|count| *count <= MAX_COUNT);
    let too_many = || cursor.error(at, format!("it is {digits}; allowed: at most {MAX_COUNT}"));
    count.map(Some).ok_or_else(too_many)
}

/// `{n}`, `{n,}`, `{,m}` or `{n,m}`, from after the opening brace.
pub(super) fn braced_counts(
    cursor: &mut Cursor,
) -> Result<(usize, Option<usize>), ConstraintError> {
    let at = cursor.at();
    let skip = |cursor: &mut Cursor| {
        cursor.take_while(|character| character == ' ');
    };
    skip(cursor);
    let least = count(cursor)?;
    skip(cursor);
    let (least, most) = if cursor.eat(",") {
        skip(cursor);
        let most = count(cursor)?;
        if least.is_none() && most.is_none() {
            return Err(cursor.expected("a number"));
        }
        (least.unwrap_or(0), most)
    } else {
        let count = least.ok_or_else(|| cursor.expected("a number"))?;
        (count, Some(count))
    };
    skip(cursor);
    if !cursor.eat("}") {
        return Err(cursor.expected("\"}\""));
    }
    check_counts(least, most, at, cursor)?;
    Ok((least, most))
}

/// Refuses counts the wrong way round.
pub(super) fn check_counts(
    least: usize,
    most: Option<usize>,
    at: usize,
    cursor: &Cursor,
) -> Result<(), ConstraintError> {
    match most {
        Some(most) if most < least => {
            let reason = format!("at least {least} and at most {most} contradict one another");
            Err(cursor.error(at, reason))
        }
        _ => Ok(()),
    }
}
