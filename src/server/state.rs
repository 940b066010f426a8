//! What the endpoints share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::HeaderValue;

use super::admission::Admission;
use super::auth::ApiKeys;
use super::background::Background;
use super::languages::Languages;
use super::metrics::Metrics;
use super::receive::BodyMemory;
#[cfg(feature = "otel")]
use super::telemetry::Traces;
use crate::engine::Engine;
use crate::text::{ChatTemplate, Tokenizer};

/// Bounds on what one request may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences a request: prompts times `n`. No more than may wait in the engine's queue, as all of a request are
    /// queued at once.
    pub sequences: usize,
    /// Most stop strings a request.
    pub stop_strings: usize,
    /// Longest stop string, in bytes of UTF-8.
    pub stop_string_bytes: usize,
    /// Most entries of `logit_bias`.
    pub logit_bias_entries: usize,
    /// Most Monte-Carlo samples of a request to score, all texts together.
    pub score_samples: usize,
    /// Most choices of a gap.
    pub choices: usize,
    /// Most forwards that the choices of a request may take.
    pub choice_forwards: usize,
    /// Longest name of a gap, in bytes of UTF-8.
    pub gap_name_bytes: usize,
    /// Longest regular expression of a gap, in bytes of UTF-8.
    pub regex_bytes: usize,
    /// Most different regular expressions and grammars a request.
    pub forms: usize,
    /// Largest request body, in bytes.
    pub body_bytes: usize,
    /// Memory for bodies that have not come in whole or are not parsed yet, all together, in bytes; what does not
    /// fit is answered with status 429.
    pub bodies_bytes: usize,
    /// Most requests that are answered at a time, streams and those about text alone included; more get status 429.
    pub requests: usize,
    /// Most of them with one API key.
    pub requests_per_key: usize,
    /// How long answering a request may take; `None` is without end.
    pub request_timeout: Option<Duration>,
    /// How long the body of a request may take to come.
    pub body_timeout: Duration,
    /// How long a denoise step may take before the server counts as not ready.
    pub step_timeout: Duration,
    /// How long a stream may be silent before a comment keeps it alive.
    pub keep_alive: Duration,
    /// The least time between two frames of a canvas; steps meanwhile come as one, and the last does not wait.
    pub frame_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sequences: 16,
            stop_strings: 16,
            stop_string_bytes: 256,
            logit_bias_entries: 1024,
            score_samples: 4096,
            choices: 256,
            choice_forwards: 256,
            gap_name_bytes: 256,
            regex_bytes: 4096,
            forms: 16,
            body_bytes: 1 << 20,
            bodies_bytes: 256 << 20,
            requests: 1024,
            requests_per_key: 1024,
            request_timeout: None,
            body_timeout: Duration::from_secs(60),
            step_timeout: Duration::from_secs(120),
            keep_alive: Duration::from_secs(15),
            frame_interval: Duration::from_millis(10),
        }
    }
}

/// A limit on what a request asks for, and the option of the server that it is of, if it is the server's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// The most.
    pub most: usize,
    option: Option<&'static str>,
}

impl Limit {
    /// Of a canvas, in slots, as a sentence says it.
    pub fn of_slots(self) -> String {
        let most = self.most;
        match self.option {
            None => format!("the model's limit is {most} slots"),
            Some(option) => format!("the limit is {most} slots, the {option} of this server"),
        }
    }

    /// Of sequences, as a sentence says it.
    pub fn of_sequences(self) -> String {
        let most = self.most;
        match self.option {
            None => format!("{most} sequences a request"),
            Some(option) => format!("{most} sequences a request, the {option} of this server"),
        }
    }
}

/// Who may use the server, and from which web pages.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Keys, one of which every request must carry; without any the server is open. `/health` and `/ready`
    /// always are.
    pub keys: ApiKeys,
    /// Whether `/metrics` is open too.
    pub open_metrics: bool,
    /// Origins whose web pages may use the server (CORS), `*` for all; without any, none may.
    pub origins: Vec<HeaderValue>,
}

/// Texts above so many bytes are encoded one at a time.
const LONG_TEXT: usize = 64 << 10;

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
    /// Who may use the server.
    pub(super) access: Access,
    pub(super) admission: Admission,
    pub(super) background: Background,
    pub(super) body_memory: BodyMemory,
    pub(super) metrics: Arc<Metrics>,
    pub(super) languages: Languages,
    /// Held while a long text is encoded.
    long_text: Mutex<()>,
    #[cfg(feature = "otel")]
    pub(super) traces: Option<Traces>,
}

impl AppState {
    /// The state of a server that starts now, of a model without a chat template.
    pub fn new(
        engine: Arc<Engine>,
        tokenizer: Arc<dyn Tokenizer>,
        model_name: impl Into<String>,
        limits: Limits,
    ) -> Self {
        let model_name = model_name.into();
        let limits = Limits {
            sequences: limits.sequences.min(engine.max_queue()),
            ..limits
        };
        let access = Access::default();
        Self {
            admission: Admission::new(&limits, &access.keys),
            background: Background::default(),
            body_memory: BodyMemory::new(limits.bodies_bytes),
            metrics: Metrics::new(&engine, &model_name),
            languages: Languages::default(),
            long_text: Mutex::default(),
            engine,
            tokenizer,
            chat_template: None,
            model_name,
            limits,
            created: unix_time(),
            access,
            #[cfg(feature = "otel")]
            traces: None,
        }
    }

    /// The same, with the model's chat template.
    pub fn with_chat_template(self, template: Option<ChatTemplate>) -> Self {
        Self {
            chat_template: template.map(Arc::new),
            ..self
        }
    }

    /// The same, for those whom `access` lets in.
    pub fn with_access(self, access: Access) -> Self {
        Self {
            admission: Admission::new(&self.limits, &access.keys),
            access,
            ..self
        }
    }

    /// The same, with a span for every request.
    #[cfg(feature = "otel")]
    pub fn with_traces(self, traces: Option<Traces>) -> Self {
        Self { traces, ..self }
    }

    /// What `encode` makes of `text` with the tokenizer. Long texts wait for each other, since a tokenizer takes a
    /// hundred times the memory of the text meanwhile.
    pub(super) fn encode<T>(&self, text: &str, encode: impl FnOnce(&dyn Tokenizer) -> T) -> T {
        let turn = || {
            self.long_text
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let _turn = (text.len() > LONG_TEXT).then(turn);
        encode(&*self.tokenizer)
    }

    /// The limit on a canvas of `slots`, which is that of the model or of the engine's rows.
    pub(super) fn slot_limit(&self, slots: usize) -> Limit {
        let of_rows = self.engine.row_limit() == Some(slots);
        Limit {
            most: slots,
            option: of_rows.then_some("--max-rows"),
        }
    }

    /// The limit on the sequences of a request.
    pub(super) fn sequence_limit(&self) -> Limit {
        let most = self.limits.sequences;
        let of_queue = most < Limits::default().sequences && most == self.engine.max_queue();
        Limit {
            most,
            option: of_queue.then_some("--max-queue"),
        }
    }
}

/// Seconds since the Unix epoch; 0 if the clock is before it.
pub(super) fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
