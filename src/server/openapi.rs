//! `GET /openapi.json`, generated from the wire types, and `GET /docs`, a page that shows it.

use std::sync::LazyLock;

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::error::ApiError;
use super::wire::{Answer, CanvasFrame, FimChoice, FimDelta, InfillStep, LlamaChunk};
use super::{
    chat, completions, fim, infill, llama_infill, metrics, models, playground, probes, score,
    tokens,
};

/// The page. It asks for nothing but `/openapi.json`.
const PAGE: &str = include_str!("docs.html");

/// What a browser lets the page do.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "unmask",
        description = "Completion, infilling and scoring by masked text diffusion language models."
    ),
    paths(
        completions::create,
        chat::create,
        infill::create,
        fim::create,
        llama_infill::create,
        score::create,
        tokens::tokenize,
        tokens::detokenize,
        chat::apply_template,
        models::list,
        models::retrieve,
        probes::health,
        probes::ready,
        metrics::get,
        get,
        docs,
        playground::page,
        playground::style,
        playground::script,
    ),
    components(schemas(CanvasFrame, Answer<FimChoice<FimDelta>>, InfillStep, LlamaChunk)),
    modifiers(&Keys),
)]
struct Api;

/// That requests carry an API key where the server asks for one.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut Document) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("api_key", bearer);
    }
}

/// The description of this API.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "Server",
    operation_id = "openapi",
    responses((status = 200, description = "This document", body = Object)),
)]
pub(super) async fn get() -> Result<Json<&'static Value>, ApiError> {
    let document = DOCUMENT.as_ref();
    document
        .map(Json)
        .map_err(|error| ApiError::internal(format!("the description of this API: {error}")))
}

/// It is the same for every server of this build.
static DOCUMENT: LazyLock<serde_json::Result<Value>> = LazyLock::new(|| {
    let mut document = serde_json::to_value(Api::openapi())?;
    let_kinds_overlap(&mut document);
    take_links_out(&mut document);
    Ok(document)
});

/// An empty list is a list of texts and one of tokens: a value may be of several of its kinds, which the schemas
/// that are derived from enums would exclude.
fn let_kinds_overlap(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(kinds) = fields.remove("oneOf") {
                fields.insert("anyOf".into(), kinds);
            }
            fields.values_mut().for_each(let_kinds_overlap);
        }
        Value::Array(items) => items.iter_mut().for_each(let_kinds_overlap),
        _ => {}
    }
}

/// Takes out of descriptions what only rustdoc can follow.
fn take_links_out(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = without_links(text);
            }
            fields.values_mut().for_each(take_links_out);
        }
        Value::Array(items) => items.iter_mut().for_each(take_links_out),
        _ => {}
    }
}

/// `text` with the links of rustdoc to code as the code alone.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((code, after)) = link.split_once("`]") else {
            break;
        };
        plain.extend([before, "`", code, "`"]);
        let target = after
            .strip_prefix('(')
            .and_then(|link| link.split_once(')'));
        rest = target.map_or(after, |(_, rest)| rest);
    }
    plain + rest
}

/// A page to read it.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "Server",
    operation_id = "docs",
    responses((status = 200, description = "The page", body = String, content_type = "text/html")),
)]
pub(super) async fn docs() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::without_links;

    #[test]
    fn links_of_rustdoc_become_code() {
        for (text, plain) in [
            (
                "Goes with [`A::B`](crate::A::B) only.",
                "Goes with `A::B` only.",
            ),
            ("([`A`]), [`B`] (b)", "(`A`), `B` (b)"),
            ("`[` and [`", "`[` and [`"),
        ] {
            assert_eq!(without_links(text), plain);
        }
    }
}
