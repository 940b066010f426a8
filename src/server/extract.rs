//! Parses a JSON body, and says exactly where it is wrong.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::receive::Taken;
use super::state::AppState;
use super::wire::Object;

/// A JSON body.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<AppState>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, ApiError> {
        // The request is gone with its body.
        let _taken = request.extensions().get::<Taken>().cloned();
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| ApiError::body(format!("the body cannot be read: {error}")))?;
        parse(&bytes).map(Self)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        ApiError::body(format!("the body is not UTF-8: wrong at byte {at}"))
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = match error.path().to_string() {
            path if path == "." => String::new(),
            path => path,
        };
        let error = error.into_inner();
        if error.is_data() {
            // The path says more than the line does.
            let text = error.to_string();
            let reason = text
                .rsplit_once(" at line ")
                .map_or(&*text, |(text, _)| text);
            ApiError::json(&path, reason)
        } else {
            ApiError::body(format!("the body is not valid JSON: {error}"))
        }
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::body(format!("the body is not valid JSON: {error}")))?;
    Ok(value)
}
