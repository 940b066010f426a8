//! The languages that requests hold gaps to. Making one over a large vocabulary takes a while, and clients send
//! the same schema again and again, so that the last ones are kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;

use crate::constraint::{ByteDfa, ConstraintError, TokenDfa, Vocabulary};

/// What a language is made from.
#[derive(Debug)]
pub(super) enum Source {
    /// A regular expression.
    Regex(String),
    /// A grammar.
    Grammar(String),
    /// Any JSON object.
    Object,
    /// A JSON Schema.
    Schema(Value),
}

impl Source {
    /// What tells it from others. The order of a schema's properties counts.
    fn key(&self) -> String {
        match self {
            Self::Regex(pattern) => format!("regex {pattern}"),
            Self::Grammar(grammar) => format!("grammar {grammar}"),
            Self::Object => "object".to_owned(),
            Self::Schema(schema) => format!("schema {schema}"),
        }
    }

    fn over(&self, vocabulary: &Arc<Vocabulary>) -> Result<TokenDfa, ConstraintError> {
        let bytes = match self {
            Self::Regex(pattern) => ByteDfa::regex(pattern),
            Self::Grammar(grammar) => return TokenDfa::grammar(grammar, vocabulary),
            Self::Object => ByteDfa::json_object(),
            Self::Schema(schema) => ByteDfa::json_schema(schema),
        };
        TokenDfa::new(bytes?, vocabulary.clone())
    }
}

/// The most languages that are kept, and the most bytes that they take together.
const MOST_KEPT: usize = 64;
const MOST_KEPT_BYTES: usize = 256 << 20;

/// The most requests that wait for a language to be made: each waits in a thread of its own.
pub(super) const MOST_WAITING: usize = 32;

/// Why there is no language.
#[derive(Debug)]
pub(super) enum LanguageError {
    /// Too many requests wait for theirs.
    Busy,
    /// It is none that a gap can be held to.
    Constraint(ConstraintError),
}

type Made = Result<Arc<TokenDfa>, ConstraintError>;

/// The languages that were made, those that were asked for last at the end, and what could not be made.
#[derive(Default)]
pub(super) struct Languages {
    vocabulary: OnceLock<Arc<Vocabulary>>,
    /// Held while one is made: one at a time, so that however many are asked for, they take one processor, and
    /// requests for the same one make it once.
    making: Mutex<()>,
    /// Requests that make one or wait to.
    waiting: AtomicUsize,
    kept: Mutex<VecDeque<(String, Made)>>,
}

impl Languages {
    /// The language of `source` over the tokens of a vocabulary, which is always the same.
    ///
    /// # Errors
    /// If there is no such language, or too many requests wait for theirs.
    pub fn of(
        &self,
        source: Source,
        vocabulary: impl FnOnce() -> Vocabulary,
    ) -> Result<Arc<TokenDfa>, LanguageError> {
        let key = source.key();
        if let Some(made) = self.known(&key) {
            return made.map_err(LanguageError::Constraint);
        }
        let waiting = Waiting::of(&self.waiting)?;
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been made meanwhile.
        let made = self.known(&key).unwrap_or_else(|| {
            let vocabulary = self.vocabulary.get_or_init(|| Arc::new(vocabulary()));
            let made = source.over(vocabulary).map(Arc::new);
            self.keep(key, made.clone());
            made
        });
        drop((making, waiting));
        made.map_err(LanguageError::Constraint)
    }

    /// What is kept under `key`, which moves to the end.
    fn known(&self, key: &str) -> Option<Made> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == key)?;
        let entry = kept.remove(at)?;
        let made = entry.1.clone();
        kept.push_back(entry);
        Some(made)
    }

    fn keep(&self, key: String, made: Made) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((key, made));
        let bytes = |(key, made): &(String, Made)| {
            key.len() + made.as_ref().map_or(0, |language| language.memory_bytes())
        };
        let mut all: usize = kept.iter().map(bytes).sum();
        while kept.len() > 1 && (kept.len() > MOST_KEPT || all > MOST_KEPT_BYTES) {
            all -= kept.pop_front().as_ref().map_or(0, bytes);
        }
    }
}

/// A request that is counted while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn of(count: &'a AtomicUsize) -> Result<Self, LanguageError> {
        let waiting = Self(count);
        match count.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            true => Err(LanguageError::Busy),
            false => Ok(waiting),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vocabulary() -> Vocabulary {
        let bytes: Vec<[u8; 1]> = (0..128).map(|byte| [byte]).collect();
        Vocabulary::new(128, &[], |token| &bytes[token as usize])
    }

    fn made(languages: &Languages, source: Source) -> Arc<TokenDfa> {
        languages.of(source, vocabulary).unwrap()
    }

    #[test]
    fn a_language_is_made_once_and_the_order_of_properties_makes_another() {
        let languages = Languages::default();
        let schema = |properties: Value| {
            let required = ["a", "b"];
            Source::Schema(
                json!({"type": "object", "properties": properties, "required": required}),
            )
        };
        let (a, b) = (json!({"type": "null"}), json!({"type": "null"}));
        let ab = made(&languages, schema(json!({"a": a, "b": b})));
        let ba = made(&languages, schema(json!({"b": b, "a": a})));
        assert!(!Arc::ptr_eq(&ab, &ba));
        let again = made(&languages, schema(json!({"a": a, "b": b})));
        assert!(Arc::ptr_eq(&ab, &again));
    }

    #[test]
    fn those_that_were_not_asked_for_lately_are_forgotten_and_failures_are_kept() {
        let languages = Languages::default();
        let regex = |index: usize| Source::Regex(format!("a{{{index}}}"));
        let first = made(&languages, regex(1));
        for index in 2..=MOST_KEPT {
            made(&languages, regex(index));
        }
        assert!(Arc::ptr_eq(&first, &made(&languages, regex(1))));
        made(&languages, regex(MOST_KEPT + 1));
        assert!(Arc::ptr_eq(&first, &made(&languages, regex(1))));
        for _ in 0..2 {
            let failed = languages.of(Source::Regex("(".into()), vocabulary);
            assert!(matches!(failed, Err(LanguageError::Constraint(_))));
        }
        let kept = languages.kept.lock().unwrap();
        assert_eq!(kept.len(), MOST_KEPT);
        assert_eq!(kept.iter().filter(|(_, made)| made.is_err()).count(), 1);
    }

    #[test]
    fn no_more_than_so_many_requests_wait() {
        let languages = Languages::default();
        let waiting: Vec<_> = (0..MOST_WAITING)
            .map(|_| Waiting::of(&languages.waiting).unwrap())
            .collect();
        let refused = languages.of(Source::Object, vocabulary);
        assert!(matches!(refused, Err(LanguageError::Busy)));
        drop(waiting);
        made(&languages, Source::Regex("a".into()));
    }
}
