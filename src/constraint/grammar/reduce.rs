//! From a grammar to an automaton.
//!
//! A rule is put before what follows it, as often as something else follows it. A rule that is part of itself at
//! its end, with the same to follow, is the very state that is being made, so that the recursion is a loop; with
//! something else to follow it is made again within itself, which has to end somewhere.

use std::collections::HashMap;

use super::rules::{Expr, MAX_WORK, RuleId, Rules};
use crate::constraint::nfa::{Built, Next, NfaBuilder};
use crate::constraint::{ByteDfa, ConstraintError};

/// How deep a rule is followed into itself at most, where that is no loop.
pub const NESTING: usize = 16;

/// The most states of an automaton for a rule to be followed deeper into itself.
pub const NESTED_STATES: usize = 4096;

/// Depths that are tried, one after the other.
const DEPTHS: [usize; 9] = [0, 1, 2, 3, 4, 6, 8, 12, NESTING];

/// How deep rules and groups may nest in one another, rules within themselves included.
const MAX_NESTING: usize = 512;

/// The texts of a grammar whose rules are followed into themselves as deep as so many states allow.
pub(super) fn language(mut rules: Rules, states: usize) -> Result<ByteDfa, ConstraintError> {
    remove_textless(&mut rules);
    for (rule, body) in rules.bodies.iter_mut().enumerate() {
        remove_left_recursion(rule, body);
    }
    let recursion = Recursion::of(&rules);
    let mut deepest = Err(ConstraintError::Empty);
    let mut work = 0;
    for depth in DEPTHS {
        let (language, is_whole) = Reducer::new(&rules, &recursion, depth, &mut work).language();
        let is_taken = match (&language, &deepest) {
            (_, Err(_)) => true,
            (Ok(language), Ok(_)) => language.states() <= states || is_whole,
            (Err(_), Ok(_)) => false,
        };
        if is_taken {
            deepest = language;
        }
        match deepest {
            // Deeper there are more.
            Err(ConstraintError::Empty) if !is_whole => (),
            Ok(_) if is_taken && !is_whole => (),
            deepest => return deepest,
        }
    }
    deepest.map_err(|_| {
        ConstraintError::TooLarge(format!(
            "in all of its texts rules nest more than {NESTING} deep within themselves"
        ))
    })
}

/// Lets the rules that no text is of stand for nothing, so that none is followed into itself in vain.
fn remove_textless(rules: &mut Rules) {
    let mut has_text = vec![false; rules.bodies.len()];
    let mut is_changed = true;
    while is_changed {
        is_changed = false;
        // Backwards, as most rules are written before what they are made of.
        for (rule, body) in rules.bodies.iter().enumerate().rev() {
            if !has_text[rule] && body.has_text(&|other| has_text[other]) {
                has_text[rule] = true;
                is_changed = true;
            }
        }
    }
    for (body, has_text) in rules.bodies.iter_mut().zip(has_text) {
        if !has_text {
            *body = Expr::Either(Vec::new());
        }
    }
}

/// Makes `a ::= a x | y` into `a ::= y x*`.
fn remove_left_recursion(rule: RuleId, body: &mut Expr) {
    let alternatives = match body {
        Expr::Either(alternatives) => std::mem::take(alternatives),
        _ => vec![std::mem::replace(body, Expr::empty())],
    };
    let (mut first, mut more) = (Vec::new(), Vec::new());
    for alternative in alternatives {
        match alternative {
            // Nothing new.
            Expr::Rule(left) if left == rule => (),
            Expr::Sequence(mut parts) if matches!(parts.first(), Some(Expr::Rule(left)) if *left == rule) =>
            {
                parts.remove(0);
                more.push(Expr::sequence(parts));
            }
            other => first.push(other),
        }
    }
    let first = Expr::either(first);
    *body = match more.is_empty() {
        true => first,
        false => Expr::Sequence(vec![first, Expr::either(more).repeat(0, None)]),
    };
}

/// Which rules are part of themselves.
struct Recursion {
    /// Rules that are part of each other have the same number.
    components: Vec<usize>,
    /// One rule at least of every circle of rules.
    is_head: Vec<bool>,
}

impl Recursion {
    fn of(rules: &Rules) -> Self {
        let count = rules.bodies.len();
        let mut search = Search {
            references: rules
                .bodies
                .iter()
                .map(|body| {
                    let mut references = Vec::new();
                    body.rules(&mut |rule| references.push(rule));
                    references.sort_unstable();
                    references.dedup();
                    references
                })
                .collect(),
            order: vec![None; count],
            lowest: vec![0; count],
            is_open: vec![false; count],
            stack: Vec::new(),
            count: 0,
            recursion: Self {
                components: vec![usize::MAX; count],
                is_head: vec![false; count],
            },
        };
        search.visit(rules.start);
        search.recursion
    }
}

/// Tarjan's search for strongly connected components.
struct Search {
    references: Vec<Vec<RuleId>>,
    /// When each rule was visited.
    order: Vec<Option<usize>>,
    lowest: Vec<usize>,
    /// Rules that are being visited, one within the other.
    is_open: Vec<bool>,
    stack: Vec<RuleId>,
    count: usize,
    recursion: Recursion,
}

impl Search {
    /// Rules are few enough to visit them one within the other.
    fn visit(&mut self, rule: RuleId) {
        let order = self.count;
        self.count += 1;
        self.order[rule] = Some(order);
        self.lowest[rule] = order;
        self.is_open[rule] = true;
        self.stack.push(rule);
        for index in 0..self.references[rule].len() {
            let other = self.references[rule][index];
            let reached = match self.order[other] {
                None => {
                    self.visit(other);
                    self.lowest[other]
                }
                Some(order) if self.recursion.components[other] == usize::MAX => order,
                Some(_) => continue,
            };
            self.lowest[rule] = self.lowest[rule].min(reached);
            self.recursion.is_head[other] |= self.is_open[other];
        }
        self.is_open[rule] = false;
        if self.lowest[rule] == order {
            while let Some(member) = self.stack.pop() {
                self.recursion.components[member] = rule;
                if member == rule {
                    break;
                }
            }
        }
    }
}

/// Where a rule is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    /// The component that is being made, if any.
    component: usize,
    /// How much deeper its rules may nest.
    depth: usize,
    /// What follows the head of the component that was made last.
    base: Next,
}

struct Reducer<'a> {
    rules: &'a Rules,
    recursion: &'a Recursion,
    depth: usize,
    made: HashMap<(RuleId, Next, Place), Next>,
    /// Whether no rule would have nested deeper.
    is_whole: bool,
    nesting: usize,
    /// States that were made, at other depths too.
    work: &'a mut usize,
}

impl<'a> Reducer<'a> {
    fn new(rules: &'a Rules, recursion: &'a Recursion, depth: usize, work: &'a mut usize) -> Self {
        Self {
            rules,
            recursion,
            depth,
            made: HashMap::new(),
            is_whole: true,
            nesting: 0,
            work,
        }
    }

    /// The texts, and whether they are all of the grammar's.
    fn language(mut self) -> (Result<ByteDfa, ConstraintError>, bool) {
        let language = NfaBuilder::new().and_then(|(mut states, end)| {
            let place = Place {
                component: usize::MAX,
                depth: self.depth,
                base: end,
            };
            let start = self.rule(&mut states, self.rules.start, end, place)?;
            states.finish(start)
        });
        (language, self.is_whole)
    }

    fn spend(&mut self, states: usize) -> Result<(), ConstraintError> {
        *self.work += states;
        match *self.work > MAX_WORK {
            true => Err(ConstraintError::TooLarge(format!(
                "it comes to more than {MAX_WORK} states, with rules taken as often as they are referred to and \
                 parts as often as they are repeated"
            ))),
            false => Ok(()),
        }
    }

    /// What a rule stands for, and then `next`.
    fn rule(
        &mut self,
        states: &mut NfaBuilder,
        rule: RuleId,
        next: Next,
        mut place: Place,
    ) -> Built {
        let component = self.recursion.components[rule];
        if component != place.component {
            place = Place {
                component,
                depth: self.depth,
                base: next,
            };
        } else if self.recursion.is_head[rule] && next != place.base {
            let Some(depth) = place.depth.checked_sub(1) else {
                self.is_whole = false;
                return states.never();
            };
            place.depth = depth;
            place.base = next;
        }
        let key = (rule, next, place);
        if let Some(made) = self.made.get(&key) {
            return Ok(*made);
        }
        let rules = self.rules;
        if !self.recursion.is_head[rule] {
            let start = self.expr(states, &rules.bodies[rule], next, place)?;
            self.made.insert(key, start);
            return Ok(start);
        }
        let start = self.head(states)?;
        self.made.insert(key, start);
        let body = self.expr(states, &rules.bodies[rule], next, place)?;
        states.also(start, body)?;
        Ok(start)
    }

    /// A state that may lead back to itself without a byte: it needs a second way, as the library follows single
    /// ones to their end.
    fn head(&mut self, states: &mut NfaBuilder) -> Built {
        self.spend(1)?;
        let head = states.later()?;
        let never = states.never()?;
        states.also(head, never)?;
        Ok(head)
    }

    /// What an expression stands for, and then `next`.
    fn expr(&mut self, states: &mut NfaBuilder, expr: &Expr, next: Next, place: Place) -> Built {
        if self.nesting == MAX_NESTING {
            return Err(ConstraintError::TooLarge(format!(
                "its rules and groups nest more than {MAX_NESTING} deep"
            )));
        }
        self.nesting += 1;
        let built = self.nested(states, expr, next, place);
        self.nesting -= 1;
        built
    }

    fn nested(&mut self, states: &mut NfaBuilder, expr: &Expr, next: Next, place: Place) -> Built {
        self.spend(1)?;
        match expr {
            Expr::Text(text) => {
                self.spend(text.len())?;
                states.literal(text, next)
            }
            Expr::Language(language) => {
                self.spend(language.states())?;
                states.embed(language, next)
            }
            Expr::Rule(rule) => self.rule(states, *rule, next, place),
            Expr::Sequence(parts) => {
                let mut parts = parts.iter().rev();
                parts.try_fold(next, |next, part| self.expr(states, part, next, place))
            }
            Expr::Either(parts) => {
                let mut either = parts
                    .iter()
                    .map(|part| self.expr(states, part, next, place))
                    .collect::<Result<Vec<_>, _>>()?;
                either.sort_unstable();
                either.dedup();
                match either[..] {
                    [only] => Ok(only),
                    _ => states.either(either),
                }
            }
            Expr::Repeat { of, least, most } => {
                let mut rest = next;
                let mut least = *least;
                match most {
                    Some(most) => {
                        for _ in least..*most {
                            let more = self.expr(states, of, rest, place)?;
                            if more == rest {
                                // It is the empty text alone.
                                break;
                            }
                            rest = states.either(vec![more, next])?;
                        }
                    }
                    None => {
                        let after = self.head(states)?;
                        let more = self.expr(states, of, after, place)?;
                        states.also(after, more)?;
                        states.also(after, next)?;
                        // The one that is there is the last of those that have to be.
                        rest = if least > 0 { more } else { after };
                        least = least.saturating_sub(1);
                    }
                }
                for _ in 0..least {
                    rest = self.expr(states, of, rest, place)?;
                }
                Ok(rest)
            }
        }
    }
}
