//! `GET /`: a page to try the model with, in three files that ask for nothing from elsewhere.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const PAGE: &str = include_str!("playground/index.html");
const STYLE: &str = include_str!("playground/playground.css");
const SCRIPT: &str = include_str!("playground/playground.js");

/// What a browser lets the page do: load its two files and speak to this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// The playground.
#[utoipa::path(
    get,
    path = "/",
    tag = "Server",
    operation_id = "playground",
    responses((status = 200, description = "The page", body = String, content_type = "text/html")),
)]
pub(super) async fn page() -> Response {
    file("text/html; charset=utf-8", PAGE)
}

/// Its style sheet.
#[utoipa::path(
    get,
    path = "/playground.css",
    tag = "Server",
    operation_id = "playground_style",
    responses((status = 200, description = "The style sheet", body = String, content_type = "text/css")),
)]
pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", STYLE)
}

/// Its script.
#[utoipa::path(
    get,
    path = "/playground.js",
    tag = "Server",
    operation_id = "playground_script",
    responses((status = 200, description = "The script", body = String, content_type = "text/javascript")),
)]
pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", SCRIPT)
}
