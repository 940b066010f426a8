//! API keys: who a request comes from.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use super::error::ApiError;
use super::state::AppState;

/// Longest key, in bytes.
const MAX_KEY_BYTES: usize = 256;

/// A list of keys that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// A key that no client could send, or that is too long.
    #[error("API key {number}: a key is 1 to {MAX_KEY_BYTES} visible ASCII characters")]
    Unusable {
        /// Which key, from 1.
        number: usize,
    },
    /// A name that is empty or holds what would garble a log.
    #[error("API key {number}: a name is 1 to 64 letters, digits, '-', '_' or '.'")]
    Name {
        /// Which key, from 1.
        number: usize,
    },
    /// Two keys of one name or with one value.
    #[error("API key {number}: an earlier key has the same {what}")]
    Double {
        /// Which key, from 1.
        number: usize,
        /// `name` or `value`.
        what: &'static str,
    },
}

/// The keys that open the server. Without any, it is open to whoever can reach it.
#[derive(Clone, Default)]
pub struct ApiKeys(Arc<[ApiKey]>);

struct ApiKey {
    name: Arc<str>,
    value: Padded,
}

/// A key's bytes, padded, so that comparing two of them takes the same time whatever their lengths are.
struct Padded {
    bytes: [u8; MAX_KEY_BYTES],
    length: u16,
}

impl Padded {
    /// `None` if it is too long.
    fn new(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        let length = text.len() as u16;
        Some(Self { bytes, length })
    }

    fn equals(&self, other: &Self) -> Choice {
        self.bytes.ct_eq(&other.bytes) & self.length.ct_eq(&other.length)
    }
}

impl ApiKeys {
    /// Keys written as `name:key` or `key`; one without a name is called `key-1`, `key-2` and so on by its
    /// place.
    ///
    /// # Errors
    /// Names the first that cannot be used by its place, never by its value.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, ApiKeyError> {
        let mut list: Vec<ApiKey> = Vec::new();
        for (number, text) in (1..).zip(keys) {
            let (name, value) = match text.split_once(':') {
                Some((name, value)) => (name.to_owned(), value),
                None => (format!("key-{number}"), text),
            };
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if !(1..=64).contains(&name.len()) || !name.chars().all(is_name) {
                return Err(ApiKeyError::Name { number });
            }
            let is_visible = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
            let value = Padded::new(value.as_bytes())
                .filter(|_| is_visible)
                .ok_or(ApiKeyError::Unusable { number })?;
            let double = |what| Err(ApiKeyError::Double { number, what });
            if list.iter().any(|key| *key.name == *name) {
                return double("name");
            }
            if list.iter().any(|key| bool::from(key.value.equals(&value))) {
                return double("value");
            }
            let name = name.into();
            list.push(ApiKey { name, value });
        }
        Ok(Self(list.into()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|key| &key.name)
    }

    /// The name of the key with this value. The time that it takes tells nothing of the keys but their
    /// number.
    fn name_of(&self, value: &[u8]) -> Option<Arc<str>> {
        let given = Padded::new(value)?;
        let mut found = None;
        for key in self.0.iter() {
            if bool::from(key.value.equals(&given)) {
                found = Some(key.name.clone());
            }
        }
        found
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Whose request it is, where keys are asked for.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub Arc<str>);

/// Lets requests pass that carry a key, and tells what follows whose it is.
pub(super) async fn check(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let keys = &state.access.keys;
    if keys.is_empty() {
        return next.run(request).await;
    }
    match caller(keys, request.headers()) {
        Ok(caller) => {
            tracing::Span::current().record("key", &*caller.0);
            #[cfg(feature = "otel")]
            if let Some(span) = super::telemetry::RequestSpan::current() {
                span.caller(&caller.0);
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn caller(keys: &ApiKeys, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let given = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| ApiError::unauthorized("there is no authorization header"))?;
    let (scheme, key) = given
        .as_bytes()
        .split_at_checked("Bearer ".len())
        .unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(ApiError::unauthorized(
            "the authorization header is not of the form \"Bearer KEY\"",
        ));
    }
    let name = keys.name_of(key.trim_ascii());
    name.map(Caller)
        .ok_or_else(|| ApiError::unauthorized("the API key is not one of this server's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names_and_only_whole_values_open() {
        let keys = ApiKeys::new(["alice:sk-1", "sk-2", "bob:a:b"]).unwrap();
        let names: Vec<String> = keys.names().map(ToString::to_string).collect();
        assert_eq!(names, ["alice", "key-2", "bob"]);
        let name = |value: &str| keys.name_of(value.as_bytes()).map(|name| name.to_string());
        assert_eq!(name("sk-1").as_deref(), Some("alice"));
        assert_eq!(name("a:b").as_deref(), Some("bob"));
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        for wrong in ["", "sk-", "sk-1 ", "sk-1\0", "SK-1", "alice:sk-1", &long] {
            assert_eq!(name(wrong), None, "{wrong:?}");
        }
        assert!(!format!("{keys:?}").contains("sk-1"));
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused_without_being_said() {
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        for (given, says) in [
            (vec![""], "1 to 256"),
            (vec!["a b"], "visible"),
            (vec![long.as_str()], "1 to 256"),
            (vec![":secret"], "a name"),
            (vec!["a b:secret"], "a name"),
            (vec!["a:secret", "a:other"], "same name"),
            (vec!["a:secret", "b:secret"], "same value"),
        ] {
            let error = ApiKeys::new(given.iter().copied()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
