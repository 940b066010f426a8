//! A client that measures: one kept-alive connection, one request at a time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// The server that is measured.
#[derive(Debug, Clone)]
pub struct Target {
    /// Host and port.
    authority: String,
    /// What comes before `/v1` in every path.
    prefix: String,
    authorization: Option<HeaderValue>,
}

impl Target {
    /// One in this process.
    pub fn local(address: SocketAddr) -> Self {
        Self {
            authority: address.to_string(),
            prefix: String::new(),
            authorization: None,
        }
    }

    /// Host and port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What comes before every path.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The one at `url`, which asks for `key` if it is given.
    pub fn parse(url: &str, key: Option<&str>) -> anyhow::Result<Self> {
        let allowed = || format!("--url {url}: allowed: http://HOST[:PORT][/PREFIX]");
        let uri: Uri = url.parse().with_context(allowed)?;
        ensure!(uri.scheme_str() == Some("http"), allowed());
        ensure!(uri.query().is_none(), allowed());
        let host = uri.host().with_context(allowed)?;
        let prefix = uri.path().trim_end_matches('/');
        let bearer = |key| HeaderValue::from_str(&format!("Bearer {key}"));
        Ok(Self {
            authority: format!("{host}:{}", uri.port_u16().unwrap_or(80)),
            prefix: prefix.strip_suffix("/v1").unwrap_or(prefix).to_owned(),
            authorization: key
                .map(bearer)
                .transpose()
                .context("--api-key: it cannot stand in a header")?,
        })
    }
}

/// A connection to the server.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    target: Target,
}

impl Client {
    /// Connects.
    pub async fn connect(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(&target.authority)
            .await
            .with_context(|| format!("cannot connect to {}", target.authority))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            target: target.clone(),
        })
    }

    /// Sends a body of JSON to `path`; the answer's head, behind which its body comes.
    pub async fn post(&mut self, path: &str, body: Bytes) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = hyper::Method::POST;
        let path = format!("{}{path}", self.target.prefix);
        // The prefix was part of a URI, and the paths are literals.
        *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::from_str(&self.target.authority) {
            headers.insert(header::HOST, host);
        }
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        if let Some(authorization) = &self.target.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Sends `body` to `path`; the answer, and the time from sending to its last byte.
    pub async fn ask(&mut self, path: &str, body: &Value) -> anyhow::Result<(Value, Duration)> {
        let body = Bytes::from(body.to_string());
        let begun = Instant::now();
        let response = self.post(path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let elapsed = begun.elapsed();
        ensure!(
            status.is_success(),
            "the server answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok((serde_json::from_slice(&body)?, elapsed))
    }
}
