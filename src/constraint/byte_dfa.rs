//! Deterministic automata over bytes.

use std::collections::HashMap;
use std::hash::Hash;

use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::Hir;

use super::ConstraintError;
use super::subsets::Subsets;

/// The most states of an automaton.
const MAX_STATES: usize = 1 << 14;

/// The most bytes of the automata that one is made from.
pub(super) const MAX_BYTES: usize = 1 << 24;

/// Work of [`Subsets`] that counts like a state, where states are counted over many automata.
const WORK_OF_A_STATE: usize = 1 << 11;

/// How deep the groups of a regular expression may nest.
const MAX_NESTING: u32 = 64;

/// No state: what led here is not the beginning of any text of the language.
pub(super) const DEAD: u32 = u32::MAX;

/// The texts that match a pattern from end to end: a deterministic automaton over bytes, from each of whose
/// states the end can be reached. Its texts are UTF-8.
#[derive(Debug, Clone)]
pub struct ByteDfa {
    /// The class of every byte.
    classes: Box<[u8; 256]>,
    class_count: usize,
    /// `[states, classes]`; the first state is where texts begin.
    next: Vec<u32>,
    accepting: Vec<bool>,
}

impl ByteDfa {
    /// The texts that `pattern`, in the syntax of Rust's `regex`, matches from end to end. Look-around other
    /// than `^`, `$` and ASCII word boundaries is not supported.
    ///
    /// # Errors
    /// If the pattern is not one, matches nothing, or is too large.
    pub fn regex(pattern: &str) -> Result<Self, ConstraintError> {
        Self::counted_regex(pattern, &mut 0)
    }

    /// The same as [`Self::regex`]; adds how many states were made on the way to `made`.
    pub(super) fn counted_regex(pattern: &str, made: &mut usize) -> Result<Self, ConstraintError> {
        Self::of_hir(&parsed(pattern, "")?, made)
    }

    /// The texts in which `pattern` matches somewhere; adds how many states were made on the way to `made`.
    pub(super) fn searching(pattern: &str, made: &mut usize) -> Result<Self, ConstraintError> {
        // Parsed by itself first, so that an error is about what was written.
        parsed(pattern, "")?;
        Self::counted_regex(&format!("(?s:.*)(?:{pattern})(?s:.*)"), made)
    }

    /// The texts that `pattern` matches wherever they are part of longer ones, by its flags: of `i`, `s` and `x`
    /// those of Rust's `regex`; others change nothing. Adds how many states were made on the way to `made`.
    pub(super) fn part(
        pattern: &str,
        flags: &str,
        made: &mut usize,
    ) -> Result<Self, ConstraintError> {
        let hir = parsed(pattern, flags)?;
        if !hir.properties().look_set().is_empty() {
            return Err(ConstraintError::Regex(
                "anchors and word boundaries look at what is around a text, which is not supported here".into(),
            ));
        }
        Self::of_hir(&hir, made)
    }

    /// The texts of an expression; adds how many states were made on the way to `made`.
    pub(super) fn of_hir(hir: &Hir, made: &mut usize) -> Result<Self, ConstraintError> {
        let config = thompson::Config::new()
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(MAX_BYTES));
        let nfa = thompson::Compiler::new()
            .configure(config)
            .build_from_hir(hir)
            .map_err(|error| build_error(error.size_limit().is_some(), &error))?;
        Self::of_nfa(&nfa, made)
    }

    /// The texts that an automaton matches from end to end; adds how many states were made on the way, and what
    /// making them took, to `made`.
    pub(super) fn of_nfa(nfa: &NFA, made: &mut usize) -> Result<Self, ConstraintError> {
        let (mut subsets, start) = Subsets::new(nfa)?;
        let dfa = explore(start, &mut subsets, made);
        *made += subsets.work() / WORK_OF_A_STATE;
        dfa
    }

    /// The texts of both; adds how many states were made on the way to `made`.
    pub(super) fn intersection(
        &self,
        other: &Self,
        made: &mut usize,
    ) -> Result<Self, ConstraintError> {
        explore((0, 0), &mut Both(self, other), made)
    }

    /// Number of states; the first is where texts begin.
    pub(super) fn states(&self) -> usize {
        self.accepting.len()
    }

    /// Bytes of memory that it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.classes) + size_of_val(&*self.next) + size_of_val(&*self.accepting)
    }

    /// Where `byte` leads from a state, or [`DEAD`].
    pub(super) fn next(&self, state: u32, byte: u8) -> u32 {
        self.next[state as usize * self.class_count + usize::from(self.classes[usize::from(byte)])]
    }

    /// Where bytes lead from a state, or [`DEAD`].
    pub(super) fn walk(&self, state: u32, bytes: &[u8]) -> u32 {
        let mut state = state;
        for byte in bytes {
            if state == DEAD {
                break;
            }
            state = self.next(state, *byte);
        }
        state
    }

    /// Whether a text may end in a state.
    pub(super) fn is_accepting(&self, state: u32) -> bool {
        self.accepting[state as usize]
    }

    /// Whether `text` is of the language.
    pub fn matches(&self, text: &[u8]) -> bool {
        let state = self.walk(0, text);
        state != DEAD && self.is_accepting(state)
    }
}

/// The syntax tree of a pattern with flags, of which `i`, `s` and `x` count.
fn parsed(pattern: &str, flags: &str) -> Result<Hir, ConstraintError> {
    ParserBuilder::new()
        .nest_limit(MAX_NESTING)
        .case_insensitive(flags.contains('i'))
        .dot_matches_new_line(flags.contains('s'))
        .ignore_whitespace(flags.contains('x'))
        .build()
        .parse(pattern)
        .map_err(|error| ConstraintError::Regex(syntax_message(&error)))
}

/// An automaton that is explored from a state.
pub(super) trait Explored {
    /// A state.
    type State: Copy + Eq + Hash;

    /// Where a byte leads from a state, if to any.
    fn step(
        &mut self,
        state: Self::State,
        byte: u8,
    ) -> Result<Option<Self::State>, ConstraintError>;

    /// Whether a text may end in a state.
    fn accepts(&mut self, state: Self::State) -> Result<bool, ConstraintError>;
}

/// The texts of two automata.
struct Both<'a>(&'a ByteDfa, &'a ByteDfa);

impl Explored for Both<'_> {
    type State = (u32, u32);

    fn step(
        &mut self,
        (a, b): (u32, u32),
        byte: u8,
    ) -> Result<Option<(u32, u32)>, ConstraintError> {
        let next = (self.0.next(a, byte), self.1.next(b, byte));
        Ok((next.0 != DEAD && next.1 != DEAD).then_some(next))
    }

    fn accepts(&mut self, (a, b): (u32, u32)) -> Result<bool, ConstraintError> {
        Ok(self.0.is_accepting(a) && self.1.is_accepting(b))
    }
}

/// The automaton of all states that are reached from `start`, whose number is added to `made`.
fn explore<E: Explored>(
    start: E::State,
    explored: &mut E,
    made: &mut usize,
) -> Result<ByteDfa, ConstraintError> {
    let mut ids = HashMap::from([(start, 0)]);
    let mut states = vec![start];
    let mut rows: Vec<[u32; 256]> = Vec::new();
    while let Some(state) = states.get(rows.len()).copied() {
        let mut row = [DEAD; 256];
        for (byte, to) in (0..=u8::MAX).zip(&mut row) {
            if let Some(next) = explored.step(state, byte)? {
                let count = states.len() as u32;
                *to = *ids.entry(next).or_insert_with(|| {
                    states.push(next);
                    count
                });
            }
        }
        rows.push(row);
        if states.len() > MAX_STATES {
            return Err(ConstraintError::TooLarge(format!(
                "its automaton has more than {MAX_STATES} states"
            )));
        }
    }
    *made += states.len();
    let accepting: Vec<bool> = states
        .into_iter()
        .map(|state| explored.accepts(state))
        .collect::<Result<_, _>>()?;
    trimmed(&rows, &accepting)
}

/// The same automaton without the states from which the end cannot be reached.
fn trimmed(rows: &[[u32; 256]], accepting: &[bool]) -> Result<ByteDfa, ConstraintError> {
    let mut sources: Vec<Vec<u32>> = vec![Vec::new(); rows.len()];
    for (from, row) in (0..).zip(rows) {
        let mut last = DEAD;
        for &to in row {
            if to != DEAD && to != last {
                sources[to as usize].push(from);
            }
            last = to;
        }
    }
    let mut is_alive = accepting.to_vec();
    let mut open: Vec<usize> = (0..rows.len()).filter(|state| accepting[*state]).collect();
    while let Some(state) = open.pop() {
        for &source in &sources[state] {
            if !std::mem::replace(&mut is_alive[source as usize], true) {
                open.push(source as usize);
            }
        }
    }
    if !is_alive[0] {
        return Err(ConstraintError::Empty);
    }
    let mut ids = vec![DEAD; rows.len()];
    let alive: Vec<usize> = (0..rows.len()).filter(|state| is_alive[*state]).collect();
    for (id, state) in (0..).zip(&alive) {
        ids[*state] = id;
    }
    let id = |to: u32| ids.get(to as usize).copied().unwrap_or(DEAD);
    // Bytes that lead to the same state from every state are one class.
    let mut columns: HashMap<Vec<u32>, u8> = HashMap::new();
    let mut classes = Box::new([0; 256]);
    for (byte, class) in classes.iter_mut().enumerate() {
        let column: Vec<u32> = alive.iter().map(|state| id(rows[*state][byte])).collect();
        let count = columns.len() as u8;
        *class = *columns.entry(column).or_insert(count);
    }
    let mut next = vec![DEAD; alive.len() * columns.len()];
    for (column, class) in &columns {
        for (state, to) in column.iter().enumerate() {
            next[state * columns.len() + usize::from(*class)] = *to;
        }
    }
    Ok(ByteDfa {
        classes,
        class_count: columns.len(),
        next,
        accepting: alive.iter().map(|state| accepting[*state]).collect(),
    })
}

/// The error of a library's builder.
pub(super) fn build_error(is_too_large: bool, error: &dyn std::error::Error) -> ConstraintError {
    if is_too_large {
        return ConstraintError::TooLarge(format!(
            "its automaton takes more than {} MiB",
            MAX_BYTES >> 20
        ));
    }
    let innermost = std::iter::successors(Some(error), |error| error.source());
    let message = innermost.last().map(ToString::to_string);
    ConstraintError::Regex(message.unwrap_or_default())
}

/// What is wrong with a pattern, in one line.
fn syntax_message(error: &regex_syntax::Error) -> String {
    let (kind, span) = match error {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), error.span()),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), error.span()),
        other => return other.to_string(),
    };
    format!(
        "{kind} (line {}, column {})",
        span.start.line, span.start.column
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        ByteDfa::regex(pattern).unwrap().matches(text.as_bytes())
    }

    #[test]
    fn a_text_matches_from_end_to_end_whichever_match_is_preferred() {
        for (pattern, yes, no) in [
            ("a|ab", "ab", "abc"),
            ("(?:a|ab)(?:c|bcd)?", "abcd", "acd"),
            (r"^\d{2}$", "12", "123"),
            ("ä+", "ää", "a"),
            ("a??", "a", "aa"),
            ("(?i)yes", "yEs", "ye"),
        ] {
            assert!(matches(pattern, yes), "{pattern}");
            assert!(!matches(pattern, no), "{pattern}");
        }
        let anywhere = ByteDfa::searching("^a|b$", &mut 0).unwrap();
        assert!(anywhere.matches(b"axx") && anywhere.matches(b"xxb"));
        assert!(!anywhere.matches(b"xax"));
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_a_reason() {
        for (pattern, reason) in [
            ("(", "unclosed group (line 1, column 1)"),
            (r"a(?=b)", "look-around"),
            (r"\bword", "word boundar"),
        ] {
            let error = ByteDfa::regex(pattern).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert_eq!(
            ByteDfa::regex("a[a&&b]").unwrap_err(),
            ConstraintError::Empty
        );
        for pattern in [
            r"(?:a{1000}){1000}",
            r"(?:.*a.{14}|b)",
            r"\w{900}",
            r"((x{0,40}y?){0,40}z?){0,4}",
            // Few sets, most bytes of which lead into one that takes long to find.
            &format!(
                "[ab]*a[ab]{{10}}[!-`c-~](?:{}[!-~]?){{0,80}}|[!#%'-)]",
                "(|)".repeat(300)
            ),
        ] {
            let error = ByteDfa::regex(pattern).unwrap_err();
            assert!(matches!(error, ConstraintError::TooLarge(_)), "{error}");
        }
    }
}
