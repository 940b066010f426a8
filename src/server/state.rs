//! What the endpoints share.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::engine::Engine;
use crate::text::{ChatTemplate, Tokenizer};

/// Bounds on what one request may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Most sequences a request: prompts times `n`.
    pub sequences: usize,
    /// Most stop strings a request.
    pub stop_strings: usize,
    /// Longest stop string, in bytes of UTF-8.
    pub stop_string_bytes: usize,
    /// Longest name of a gap, in bytes of UTF-8.
    pub gap_name_bytes: usize,
    /// Largest request body, in bytes.
    pub body_bytes: usize,
    /// How long a stream may be silent before a comment keeps it alive.
    #[serde(skip)]
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sequences: 16,
            stop_strings: 16,
            stop_string_bytes: 256,
            gap_name_bytes: 256,
            body_bytes: 1 << 20,
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// What the endpoints share: one served model.
pub struct AppState {
    /// Denoises canvases.
    pub engine: Arc<Engine>,
    /// The model's tokenizer.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// The model's chat template, if it has one.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// The name by which clients ask for the model.
    pub model_name: String,
    /// Bounds on what one request may ask for.
    pub limits: Limits,
    /// When the server started, in seconds since the Unix epoch.
    pub created: u64,
}

impl AppState {
    /// The state of a server that starts now, of a model without a chat template.
    pub fn new(
        engine: Arc<Engine>,
        tokenizer: Arc<dyn Tokenizer>,
        model_name: impl Into<String>,
        limits: Limits,
    ) -> Self {
        Self {
            engine,
            tokenizer,
            chat_template: None,
            model_name: model_name.into(),
            limits,
            created: unix_time(),
        }
    }

    /// The same state with the model's chat template.
    pub fn with_chat_template(self, template: Option<ChatTemplate>) -> Self {
        Self {
            chat_template: template.map(Arc::new),
            ..self
        }
    }
}

/// Seconds since the Unix epoch; 0 if the clock is before it.
pub(super) fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
