//! Errors as clients see them: OpenAI's error object with the matching status.

use std::fmt::Display;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::state::Limit;
use crate::decode::PlanError;
use crate::engine::{GenerationError, SubmitError};

/// Tells OpenAI's clients whether to repeat a request by themselves, as they otherwise do at any status of 5xx.
pub(super) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Seconds after which a client is told to try again when the queue is full. A place is free as soon
/// as any sequence ends, which cannot be foreseen, so that this is the shortest wait there is.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

const DEADLINE_EXCEEDED: &str = "deadline_exceeded";

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const RATE_LIMIT: &str = "rate_limit_error";

/// An answer other than success.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

/// The body of an error: `{"error": {…}}`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorObject,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: &'static str,
}

/// The code of an error, among the extensions of an answer that is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct ErrorCode(pub &'static str);

impl ApiError {
    /// The code of a fault of the server.
    pub const INTERNAL: &'static str = "internal_error";

    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: String) -> Self {
        let error = ErrorObject {
            message,
            kind,
            param: None,
            code,
        };
        Self {
            status,
            body: ErrorBody { error },
        }
    }

    /// What went wrong, in one word.
    pub fn code(&self) -> &'static str {
        self.body.error.code
    }

    fn invalid(code: &'static str, param: &str, message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, code, message).about(param)
    }

    fn about(mut self, param: &str) -> Self {
        self.body.error.param = Some(param.to_owned());
        self
    }

    /// A field whose value is not allowed.
    pub fn value(param: &str, given: impl Display, allowed: impl Display) -> Self {
        Self::invalid(
            "invalid_value",
            param,
            format!("{param} is {given}; allowed: {allowed}"),
        )
    }

    /// A field that must be there.
    pub fn missing(param: &str, allowed: impl Display) -> Self {
        Self::invalid(
            "missing_field",
            param,
            format!("{param} is missing; allowed: {allowed}"),
        )
    }

    /// A field that is known, but not supported with this value.
    pub fn unsupported(param: &str, given: impl Display, reason: impl Display) -> Self {
        Self::invalid(
            "unsupported_value",
            param,
            format!("{param} is {given}; {reason}"),
        )
    }

    /// A value that cannot be used, for a reason that names what was given and what is allowed.
    pub fn unusable(param: &str, reason: impl Display) -> Self {
        Self::invalid("invalid_value", param, format!("{param}: {reason}"))
    }

    /// A canvas longer than the model's context, or than a step has rows.
    pub fn canvas_too_long(
        param: &str,
        what: impl Display,
        slots: impl Display,
        limit: Limit,
    ) -> Self {
        Self::invalid(
            "context_length_exceeded",
            param,
            format!(
                "{what}: a canvas of {slots} slots; {}, fixed text and gaps together and the last block whole where \
                 the model knows whole blocks only",
                limit.of_slots()
            ),
        )
    }

    /// A text longer than any that fits such a canvas.
    pub fn text_too_long(param: &str, bytes: usize, limit: Limit) -> Self {
        Self::invalid(
            "context_length_exceeded",
            param,
            format!(
                "{param} has {bytes} bytes, more than the tokens of the longest canvas can hold; {}",
                limit.of_slots()
            ),
        )
    }

    /// A body that is not the JSON that the endpoint takes; `path` is empty for the body as a whole.
    pub fn json(path: &str, reason: &str) -> Self {
        let code = if reason.starts_with("unknown field") {
            "unknown_field"
        } else {
            "invalid_value"
        };
        // Of a field that is there twice the path is that of what holds it.
        let twice = reason
            .strip_prefix("duplicate field `")
            .and_then(|rest| rest.strip_suffix('`'));
        match (path, twice) {
            ("", Some(field)) => Self::invalid(code, field, format!("{field}: it is there twice")),
            ("", None) => {
                let message = format!("the body: {reason}");
                Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, code, message)
            }
            (path, _) => Self::invalid(code, path, format!("{path}: {reason}")),
        }
    }

    /// A body that cannot be read as JSON.
    pub fn body(message: String) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            INVALID_REQUEST,
            "invalid_json",
            message,
        )
    }

    /// A body of another media type than JSON in UTF-8.
    pub fn media_type(given: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            "unsupported_media_type",
            format!("the content-type is {given:?}; allowed: application/json, in utf-8"),
        )
    }

    /// A body that is compressed, or coded in another way.
    pub fn content_encoding(given: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            "unsupported_content_encoding",
            format!("the content-encoding is {given:?}; allowed: none, or identity"),
        )
    }

    /// A path that is not text.
    pub fn path(reason: impl Display) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            INVALID_REQUEST,
            "invalid_path",
            format!("the path cannot be read: {reason}; allowed: UTF-8, percent-encoded"),
        )
    }

    /// A body over the limit.
    pub fn body_too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID_REQUEST,
            "body_too_large",
            format!("the body is larger than this server's limit of {limit} bytes"),
        )
    }

    /// A model that is not served.
    pub fn no_such_model(given: &str, served: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID_REQUEST,
            "model_not_found",
            format!("the model {given:?} does not exist; this server serves {served:?}"),
        )
        .about("model")
    }

    /// A chat with a model that knows none.
    pub fn no_chat_template(model: &str) -> Self {
        Self::invalid(
            "no_chat_template",
            "messages",
            format!(
                "the model {model:?} has no chat template, so that it cannot answer messages; use /v1/completions"
            ),
        )
    }

    /// A path without an endpoint.
    pub fn no_such_path(method: &Method, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID_REQUEST,
            "not_found",
            format!("there is no endpoint {method} {path}"),
        )
    }

    /// An endpoint that does not know the method.
    pub fn wrong_method(method: &Method, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            INVALID_REQUEST,
            "method_not_allowed",
            format!("{path} does not take {method}; the allow header names what it takes"),
        )
    }

    /// A request without a key, or with one that is not known.
    pub fn unauthorized(reason: &str) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID_REQUEST,
            "invalid_api_key",
            format!(
                "{reason}; allowed: an authorization header \"Bearer KEY\" with a key of this server"
            ),
        )
    }

    /// As many requests run as may; `whose` says of whom.
    pub fn too_many_requests(whose: &str, limit: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            RATE_LIMIT,
            "too_many_requests",
            format!("{limit} requests run already, the most that may {whose}; try again later"),
        )
    }

    /// No memory is left for a body that comes in.
    pub fn too_many_bodies(limit: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            RATE_LIMIT,
            "too_many_bodies",
            format!(
                "the bodies that come in take this server's limit of {limit} bytes together; try again later"
            ),
        )
    }

    /// As many requests wait for the form of their answer as may.
    pub fn too_many_forms() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            RATE_LIMIT,
            "too_many_forms",
            "many regular expressions and schemas that are new here are being made ready; try again later".into(),
        )
    }

    /// A request that was not answered in time. Asked again, it would take as long.
    pub fn deadline_exceeded(limit: Duration) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            SERVER,
            DEADLINE_EXCEEDED,
            format!(
                "the request was not answered within this server's limit of {} s",
                limit.as_secs_f64()
            ),
        )
    }

    /// A request that still ran when a server that ends gave up waiting. Asked again, it may reach another.
    pub fn shutting_down() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            SERVER,
            "shutting_down",
            "the server is ending and waits no longer for this request; ask again".into(),
        )
    }

    /// A body that does not come.
    pub fn body_timeout(limit: Duration) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            INVALID_REQUEST,
            "request_timeout",
            format!(
                "the body did not come within this server's limit of {} s",
                limit.as_secs_f64()
            ),
        )
    }

    /// A server that cannot answer requests now.
    pub fn not_ready(reason: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "not_ready", reason)
    }

    /// A fault of the server.
    pub fn internal(message: String) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            Self::INTERNAL,
            message,
        )
    }

    /// A plan that cannot be followed.
    pub fn plan(error: &PlanError) -> Self {
        let field = error.field();
        let path = match field {
            "temperature" | "top_k" | "top_p" | "min_p" | "seed" => field.to_owned(),
            field => format!("diffusion.{field}"),
        };
        // A plan error's text begins with the field's name.
        let text = error.to_string();
        let rest = text.strip_prefix(field).unwrap_or(&text);
        Self::invalid("invalid_value", &path, format!("{path}{rest}"))
    }

    /// What is said of it in a stream that has already begun.
    pub fn into_body(self) -> ErrorBody {
        self.body
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        let bad_request = |code| {
            Self::new(
                StatusCode::BAD_REQUEST,
                INVALID_REQUEST,
                code,
                message.clone(),
            )
        };
        match error {
            SubmitError::QueueFull => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                RATE_LIMIT,
                "queue_full",
                message,
            ),
            SubmitError::CanvasTooLong { .. } | SubmitError::NegativePromptTooLong { .. } => {
                bad_request("context_length_exceeded")
            }
            SubmitError::CacheTooLarge { .. } | SubmitError::CannotEncode { .. } => {
                bad_request("cache_too_large")
            }
            SubmitError::UnknownToken { .. } => bad_request("invalid_value"),
            SubmitError::CannotSeeAhead { .. }
            | SubmitError::OnlyGoesOn { .. }
            | SubmitError::PartialBlock { .. }
            | SubmitError::CannotConstrain { .. } => bad_request("unsupported_value"),
            SubmitError::Plan(error) => Self::plan(&error),
            SubmitError::Stopped => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "stopped", message)
            }
            SubmitError::Blank { .. } => Self::internal(message),
        }
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> Self {
        let message = error.to_string();
        match error {
            GenerationError::Step(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                SERVER,
                "engine_failure",
                message,
            ),
            GenerationError::OutOfMemory => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                "out_of_memory",
                message,
            ),
            GenerationError::Stopped => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "stopped", message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let code = ErrorCode(self.code());
        let mut response = (status, axum::Json(self.body)).into_response();
        response.extensions_mut().insert(code);
        if code.0 == DEADLINE_EXCEEDED {
            let no = HeaderValue::from_static("false");
            response.headers_mut().insert(SHOULD_RETRY, no);
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}
