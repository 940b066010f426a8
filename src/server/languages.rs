//! The languages that requests hold gaps to. Making one over a large vocabulary takes a while, and clients send
//! the same schema again and again, so that the last ones are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;

use crate::constraint::{ByteDfa, ConstraintError, TokenDfa, Vocabulary};

/// How many languages are kept; each takes 64 MiB at most, and most a thousandth of that.
const KEPT: usize = 8;

/// What a language is made from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// A regular expression.
    Regex(String),
    /// Any JSON object.
    Object,
    /// A JSON Schema.
    Schema(Value),
}

impl Source {
    fn bytes(&self) -> Result<ByteDfa, ConstraintError> {
        match self {
            Self::Regex(pattern) => ByteDfa::regex(pattern),
            Self::Object => ByteDfa::json_object(),
            Self::Schema(schema) => ByteDfa::json_schema(schema),
        }
    }
}

/// The languages that were made last, the latest at the end.
#[derive(Default)]
pub(super) struct Languages {
    vocabulary: OnceLock<Arc<Vocabulary>>,
    /// Held while one is made: one at a time, so that however many are asked for, they take one processor, and
    /// requests for the same one make it once.
    making: Mutex<()>,
    kept: Mutex<VecDeque<(Source, Arc<TokenDfa>)>>,
}

impl Languages {
    /// The language of `source` over the tokens of a vocabulary, which is always the same.
    ///
    /// # Errors
    /// If there is no such language.
    pub fn of(
        &self,
        source: Source,
        vocabulary: impl FnOnce() -> Vocabulary,
    ) -> Result<Arc<TokenDfa>, ConstraintError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let take = |kept: &mut VecDeque<(Source, _)>| {
            let at = kept.iter().position(|(known, _)| *known == source)?;
            kept.remove(at)
        };
        let mut known = take(&mut kept());
        let making = match &known {
            Some(_) => None,
            None => Some(self.making.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        if making.is_some() {
            // It may have been made meanwhile.
            known = take(&mut kept());
        }
        let (source, language) = match known {
            Some(known) => known,
            None => {
                let bytes = source.bytes()?;
                let vocabulary = self.vocabulary.get_or_init(|| Arc::new(vocabulary()));
                let language = Arc::new(TokenDfa::new(bytes, vocabulary.clone())?);
                (source, language)
            }
        };
        let mut kept = kept();
        kept.push_back((source, language.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(language)
    }
}
