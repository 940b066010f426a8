//! A server on a free port, and requests to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use futures::channel::mpsc;
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{Checkpoint, Denoiser};
use unmask::server::{Access, AppState, Ending, Limits, ListenConfig, router, serve};
use unmask::text::{ByteTokenizer, ChatFiles, ChatTemplate, HfTokenizer, Tokenizer};

use crate::support::golden;

/// The name under which models are served.
pub const MODEL: &str = "mini";

/// A running server.
pub struct Server {
    pub url: String,
    pub client: Client,
    pub engine: Arc<Engine>,
    pub ended: JoinHandle<Ending>,
    shutdown: mpsc::UnboundedSender<()>,
}

/// How a server is set up.
pub struct Setup {
    pub engine: EngineConfig,
    pub limits: Limits,
    pub access: Access,
    pub listen: ListenConfig,
    /// The source of a chat template.
    pub chat_template: Option<&'static str>,
    #[cfg(feature = "otel")]
    pub traces: Option<unmask::server::Traces>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            limits: Limits::default(),
            access: Access::default(),
            listen: ListenConfig {
                drain: Duration::from_secs(600),
                last_answers: Duration::from_secs(60),
                ..ListenConfig::default()
            },
            chat_template: None,
            #[cfg(feature = "otel")]
            traces: None,
        }
    }
}

impl Setup {
    /// Of a server that gives up what runs as soon as it ends, and waits for whoever takes that answer.
    pub fn without_drain() -> Self {
        let mut setup = Self::default();
        setup.listen.drain = Duration::ZERO;
        setup
    }
}

impl Server {
    /// Serves a model with the byte tokenizer.
    pub async fn of(model: impl Denoiser + 'static) -> Self {
        Self::with(model, Setup::default()).await
    }

    /// As [`Server::of`], with limits.
    pub async fn with(model: impl Denoiser + 'static, setup: Setup) -> Self {
        let files = ChatFiles {
            chat_template: setup.chat_template.map(|source| source.as_bytes().to_vec()),
            ..ChatFiles::default()
        };
        let tokenizer = Arc::new(ByteTokenizer::default());
        Self::start(Box::new(model), tokenizer, files, setup).await
    }

    /// Serves a model with a tokenizer of the test's own.
    pub async fn speaking(
        model: impl Denoiser + 'static,
        tokenizer: impl Tokenizer + 'static,
    ) -> Self {
        let files = ChatFiles::default();
        Self::start(
            Box::new(model),
            Arc::new(tokenizer),
            files,
            Setup::default(),
        )
        .await
    }

    /// Serves the golden LLaDA checkpoint with its tokenizer and its chat template.
    pub async fn golden() -> Self {
        let checkpoint = Checkpoint::open(&golden("llada")).unwrap();
        let model = checkpoint.load(DType::F32, &Device::Cpu).unwrap();
        let tokenizer = HfTokenizer::from_bytes(&checkpoint.tokenizer_json().unwrap()).unwrap();
        let files = ChatFiles::read(|name| checkpoint.file(name)).unwrap();
        Self::start(model, Arc::new(tokenizer), files, Setup::default()).await
    }

    async fn start(
        model: Box<dyn Denoiser>,
        tokenizer: Arc<dyn Tokenizer>,
        files: ChatFiles,
        setup: Setup,
    ) -> Self {
        let engine = Arc::new(Engine::start(model, setup.engine).unwrap());
        let state = AppState::new(engine.clone(), tokenizer, MODEL, setup.limits)
            .with_chat_template(ChatTemplate::from_files(&files).unwrap())
            .with_access(setup.access);
        #[cfg(feature = "otel")]
        let state = state.with_traces(setup.traces);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (shutdown, asked) = mpsc::unbounded();
        let ended = tokio::spawn(serve(listener, router(state), asked, setup.listen));
        Self {
            url,
            client: Client::new(),
            engine,
            ended,
            shutdown,
        }
    }

    /// Asks the server to drain; asked again, to end at once.
    pub fn shut_down(&self) {
        self.shutdown.unbounded_send(()).unwrap();
    }

    /// Gets a page; its status and text.
    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        let url = format!("{}{path}", self.url);
        let response = self.client.get(url).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Response {
        let url = format!("{}{path}", self.url);
        self.client.post(url).json(body).send().await.unwrap()
    }

    /// Posts JSON; the answer's JSON.
    pub async fn ask(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response = self.post(path, body).await;
        let status = response.status();
        (status, response.json().await.unwrap())
    }

    /// Posts JSON that must be answered with success.
    pub async fn answer(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(path, body).await;
        assert_eq!(status, StatusCode::OK, "{body}: {answer}");
        answer
    }

    /// Posts JSON with `stream` set; the frames before `[DONE]`.
    pub async fn frames(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.post(path, &body).await;
        assert_eq!(response.status(), StatusCode::OK, "{body}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        frames(&response.text().await.unwrap())
    }
}

/// The JSON frames of a whole stream, which must end in `[DONE]`.
pub fn frames(text: &str) -> Vec<Value> {
    let mut data: Vec<&str> = text
        .split("\n\n")
        .filter(|event| !event.is_empty() && !event.starts_with(':'))
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter()
        .map(|frame| serde_json::from_str(frame).unwrap())
        .collect()
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(120), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
