//! What is fuzzed, by `cargo fuzz` and, from the same seeds, by a test: whatever is sent, the server answers, and never
//! with a fault of its own.
// Each user uses a part of it.
#![allow(dead_code)]

use std::sync::Arc;

use axum::Router;
use candle_core::{Device, Tensor};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::service::Service;
use hyper::{Method, Request};
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::runtime::Runtime;
use unmask::constraint::{ByteDfa, TokenDfa, Vocabulary};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{
    Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation, RaggedBatch, embedded,
};
use unmask::server::{AppState, Limits, router};
use unmask::text::gaps::{Piece, parse};
use unmask::text::{ByteTokenizer, ChatFiles, ChatTemplate};

/// The endpoints that take a body; a request's first letter names one, `a` the first.
pub const PATHS: [&str; 9] = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/infill",
    "/v1/fim/completions",
    "/infill",
    "/v1/score",
    "/tokenize",
    "/detokenize",
    "/apply-template",
];

/// Longest canvas.
const CONTEXT: usize = 64;
/// Bytes, a stop token, the mask token and one more.
const VOCABULARY: usize = 259;

/// A model without weights that predicts every token alike.
struct Uniform(ModelSpec);

impl Denoiser for Uniform {
    fn spec(&self) -> &ModelSpec {
        &self.0
    }

    fn is_batch_invariant(&self) -> bool {
        true
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        let zeros = vec![0f32; batch.rows()];
        Ok(Tensor::from_vec(zeros, (batch.rows(), 1), &Device::Cpu)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let rows = hidden.dim(0)?;
        let zeros = vec![0f32; rows * VOCABULARY];
        Ok(Tensor::from_vec(zeros, (rows, VOCABULARY), &Device::Cpu)?)
    }
}

/// A server without sockets.
pub struct Server {
    runtime: Runtime,
    service: TowerToHyperService<Router>,
}

impl Server {
    /// Serves a model without weights.
    pub fn start() -> Self {
        let spec = embedded::checkpoint().unwrap().spec().unwrap();
        let spec = ModelSpec {
            vocab_size: VOCABULARY,
            max_canvas: CONTEXT,
            corruption: Corruption::Absorbing { mask_token: 257 },
            parameterisation: Parameterisation::Logits,
            noise_conditioned: false,
            noise_schedule: None,
            stop_tokens: vec![256],
            resize_tokens: None,
            ..spec
        };
        let engine = Engine::start(Box::new(Uniform(spec)), EngineConfig::default()).unwrap();
        let limits = Limits {
            score_samples: 16,
            ..Limits::default()
        };
        let template = ChatFiles {
            chat_template: Some(b"{% for m in messages %}{{ m.content }}{% endfor %}".to_vec()),
            ..ChatFiles::default()
        };
        let tokenizer = Arc::new(ByteTokenizer::default());
        let state = AppState::new(Arc::new(engine), tokenizer, "uniform", limits)
            .with_chat_template(ChatTemplate::from_files(&template).unwrap());
        Self {
            runtime: Runtime::new().unwrap(),
            service: TowerToHyperService::new(router(state)),
        }
    }

    /// Sends a request, and reads its answer to the end.
    ///
    /// # Panics
    /// If the answer is a fault of the server, or not what errors look like.
    pub fn request(&self, input: &[u8]) {
        let Some((letter, body)) = input.split_first() else {
            return;
        };
        let path = PATHS[usize::from(letter.wrapping_sub(b'a')) % PATHS.len()];
        let shown = || format!("{path} {}", String::from_utf8_lossy(body));
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        let (status, answer) = self.runtime.block_on(async {
            let response = self.service.call(request).await.unwrap();
            let status = response.status();
            (
                status,
                response.into_body().collect().await.unwrap().to_bytes(),
            )
        });
        let text = String::from_utf8_lossy(&answer);
        assert!(!status.is_server_error(), "{status}: {text}: {}", shown());
        if !status.is_success() {
            let error: Value = serde_json::from_slice(&answer).unwrap();
            let is_text = |field: &str| error["error"][field].is_string();
            assert!(is_text("message") && is_text("type"), "{text}: {}", shown());
            assert!(is_text("code"), "{text}: {}", shown());
        } else if let Some(fault) = text
            .split("\n\n")
            .find(|event| event.contains("server_error"))
        {
            panic!("{fault}: {}", shown());
        }
    }
}

/// Splits a text at its gaps: what comes back is the text, but for the marks.
///
/// # Panics
/// If it is not.
pub fn template(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(pieces) = parse(text) else {
        return;
    };
    let written: String = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.replace("{{", r"\{{"),
            Piece::Gap(tokens) => format!("{{{{{tokens}}}}}"),
        })
        .collect();
    // A backslash, or one and a brace, before a gap is the one thing that cannot be written.
    let is_writable = pieces.windows(2).all(|pair| match pair {
        [Piece::Text(text), Piece::Gap(_)] => !text.ends_with('\\') && !text.ends_with(r"\{"),
        _ => true,
    });
    if is_writable {
        assert_eq!(parse(&written).unwrap(), pieces, "{text:?}");
    }
}

/// Makes a language over bytes as tokens of a regular expression (`r` before it), a JSON Schema (`s`) or a grammar
/// (`g`).
pub fn constraint(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
    let vocabulary = Vocabulary::new(256, &[], |token| &bytes[token as usize]);
    let vocabulary = Arc::new(vocabulary);
    let language = match kind {
        b'r' if text.len() <= Limits::default().regex_bytes => ByteDfa::regex(text),
        b's' => match serde_json::from_str(text) {
            Ok(schema) => ByteDfa::json_schema(&schema),
            Err(_) => return,
        },
        b'g' => {
            if let Ok(tokens) = TokenDfa::grammar(text, &vocabulary) {
                assert!(tokens.lengths(8, true).len() <= 9);
            }
            return;
        }
        _ => return,
    };
    if let Ok(language) = language
        && let Ok(tokens) = TokenDfa::new(language, vocabulary)
    {
        assert!(tokens.lengths(8, true).len() <= 9);
    }
}
