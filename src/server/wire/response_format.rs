//! `response_format`.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::object::Object;

/// What a completion is to be.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    #[schema(required = true)]
    pub kind: Option<String>,
    /// The schema of `json_schema`.
    #[schema(value_type = Option<JsonSchemaFormat>)]
    pub json_schema: Option<Object<JsonSchemaFormat>>,
}

/// A JSON Schema by which a completion is to be valid.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchemaFormat {
    /// A name, which is not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub name: Option<String>,
    /// A description, which is not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub description: Option<String>,
    /// The schema.
    #[schema(required = true, value_type = Object)]
    pub schema: Option<Value>,
    /// Completions always keep to the schema, whatever this is.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub strict: Option<bool>,
}
