//! Reads an answer's events as far as the measurement needs: most are looked at without being parsed.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use serde_json::Value;

/// What an answered request took.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Until the stream showed a committed slot; `None` of streams without frames.
    pub first_commit: Option<Duration>,
    /// Until the first piece of text.
    pub first_text: Option<Duration>,
    /// Until the last byte.
    pub latency: Duration,
    /// `usage.prompt_tokens`.
    pub prompt_tokens: u64,
    /// `usage.completion_tokens`.
    pub completion_tokens: u64,
    /// Network evaluations.
    pub nfe: f64,
    /// Slots committed a network evaluation.
    pub tokens_per_forward: f64,
    /// What the server says of the wait for the first step.
    pub queued: Duration,
}

/// Why a request was not answered.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The status, `stream` for an error within a stream, or `connection`.
    pub kind: String,
    /// What the server or the system said.
    pub message: String,
}

impl Failure {
    /// No whole answer came.
    pub fn of_connection(error: impl std::fmt::Display) -> Self {
        Self {
            kind: "connection".into(),
            message: error.to_string(),
        }
    }
}

/// The most bytes of one event that are kept.
const MAX_EVENT: usize = 16 << 20;

/// The parts of a stream that matter.
struct Events {
    begun: Instant,
    line: Vec<u8>,
    sample: Sample,
    has_end: bool,
}

/// Reads the stream of an answer that was asked for at `begun`.
///
/// # Errors
/// If the stream breaks off or tells of an error.
pub async fn read<B>(mut body: B, begun: Instant) -> Result<Sample, Failure>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut events = Events {
        begun,
        line: Vec::new(),
        sample: Sample::default(),
        has_end: false,
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(Failure::of_connection)?;
        if let Some(data) = frame.data_ref() {
            events.take(data)?;
        }
    }
    events.sample.latency = begun.elapsed();
    match events.has_end {
        true => Ok(events.sample),
        false => Err(Failure::of_connection("the stream ended without its usage")),
    }
}

impl Events {
    fn take(&mut self, mut data: &[u8]) -> Result<(), Failure> {
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let (rest, next) = data.split_at(end);
            if self.line.is_empty() {
                self.event(rest)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(rest);
                self.event(&line)?;
            }
            data = &next[1..];
        }
        if self.line.len() + data.len() > MAX_EVENT {
            let message = format!("an event has more than {MAX_EVENT} bytes");
            return Err(Failure::of_connection(message));
        }
        self.line.extend_from_slice(data);
        Ok(())
    }

    fn event(&mut self, line: &[u8]) -> Result<(), Failure> {
        let Some(data) = line.strip_prefix(b"data: ") else {
            return Ok(());
        };
        // Quotation marks within texts are escaped, so that these stand for fields.
        if has(data, br#""object":"diffusion.frame""#) {
            if self.sample.first_commit.is_none() && has(data, br#""state":"committed""#) {
                self.sample.first_commit = Some(self.begun.elapsed());
            }
            return Ok(());
        }
        let is_end = has(data, br#""usage":{"#);
        if self.sample.first_text.is_some() && !is_end && !has(data, br#""error":{"#) {
            return Ok(());
        }
        let Ok(chunk) = serde_json::from_slice::<Value>(data) else {
            return Ok(());
        };
        if let Some(error) = chunk.get("error") {
            return Err(Failure {
                kind: "stream".into(),
                message: error["message"].as_str().unwrap_or_default().to_owned(),
            });
        }
        let text = chunk["choices"][0]["text"].as_str().unwrap_or_default();
        if self.sample.first_text.is_none() && !text.is_empty() {
            self.sample.first_text = Some(self.begun.elapsed());
        }
        if is_end {
            let number = |pointer| chunk.pointer(pointer).and_then(Value::as_f64);
            let number = |pointer| number(pointer).unwrap_or_default();
            self.has_end = true;
            self.sample.prompt_tokens = number("/usage/prompt_tokens") as u64;
            self.sample.completion_tokens = number("/usage/completion_tokens") as u64;
            self.sample.nfe = number("/diffusion/nfe");
            self.sample.tokens_per_forward = number("/diffusion/tokens_per_forward");
            let queued = number("/diffusion/queued_ms").max(0.0) / 1e3;
            self.sample.queued = Duration::try_from_secs_f64(queued).unwrap_or_default();
        }
        Ok(())
    }
}

fn has(data: &[u8], part: &[u8]) -> bool {
    data.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    const STREAM: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"object\":\"diffusion.frame\",\"slots\":[{\"state\":\"committed\"}]}\n\n",
        "data: {\"choices\":[{\"text\":\"a \\\"usage\\\":{\"}],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5},",
        "\"diffusion\":{\"nfe\":4,\"tokens_per_forward\":1.25,\"queued_ms\":2.0}}\n\n",
        "data: [DONE]\n\n",
    );

    #[tokio::test]
    async fn a_stream_is_read_the_same_however_it_is_cut() {
        for size in [1, 7, 4096] {
            let pieces = STREAM.as_bytes().chunks(size).map(Bytes::copy_from_slice);
            let frames = pieces.map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece)));
            let body = StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>()));
            let sample = read(body, Instant::now()).await.unwrap();
            assert_eq!((sample.prompt_tokens, sample.completion_tokens), (3, 5));
            assert_eq!((sample.nfe, sample.tokens_per_forward), (4.0, 1.25));
            assert_eq!(sample.queued, Duration::from_millis(2));
            assert!(sample.first_commit <= sample.first_text);
            assert!(sample.first_text.unwrap() <= sample.latency);
        }
    }

    #[tokio::test]
    async fn an_error_within_a_stream_and_a_stream_without_an_end_are_failures() {
        for (stream, kind) in [
            ("data: {\"error\":{\"message\":\"no\"}}\n\n", "stream"),
            ("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", "connection"),
        ] {
            let body = Full::new(Bytes::from_static(stream.as_bytes()));
            let failure = read(body, Instant::now()).await.unwrap_err();
            assert_eq!(failure.kind, kind);
        }
    }
}
