//! A collector of traces that understands the wire format by itself.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

/// What it does with a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Takes it.
    Takes,
    /// Never answers.
    Hangs,
    /// Refuses it.
    Refuses,
}

/// A request that it was sent.
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// A collector on a free port, in a thread of its own, until the process ends.
pub struct Collector {
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let router = Router::new()
            .fallback(receive)
            .with_state((manner, received.clone()));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { url, received }
    }

    /// Where it takes traces.
    pub fn traces_url(&self) -> String {
        format!("{}/v1/traces", self.url)
    }

    /// What it was sent so far.
    pub fn received(&self) -> std::sync::MutexGuard<'_, Vec<Received>> {
        self.received.lock().unwrap()
    }

    /// The spans that it was sent so far.
    pub fn spans(&self) -> Vec<Span> {
        let received = self.received();
        received.iter().flat_map(|r| spans(&r.body)).collect()
    }
}

async fn receive(
    State((manner, received)): State<(Manner, Arc<Mutex<Vec<Received>>>)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    assert_eq!(method, Method::POST);
    received.lock().unwrap().push(Received {
        path: uri.path().to_owned(),
        headers,
        body: body.to_vec(),
    });
    match manner {
        Manner::Takes => StatusCode::OK,
        Manner::Hangs => std::future::pending().await,
        Manner::Refuses => StatusCode::FORBIDDEN,
    }
}

/// A span as it was sent.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    pub kind: u64,
    pub begin: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, Value>,
    /// 2 is an error.
    pub status: u64,
    /// Of the resource.
    pub resource: BTreeMap<String, Value>,
}

/// The kind of a span that answers a request.
pub const SERVER: u64 = 2;

/// A field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => panic!("not a number"),
        }
    }

    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => panic!("not bytes"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint is too long");
}

/// The fields of a message, in order, by number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let mut take = |length: usize| {
            let (taken, rest) = bytes.split_at(length);
            bytes = rest;
            taken
        };
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Number(u64::from_le_bytes(take(8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                let (taken, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(taken)
            }
            5 => Field::Number(u32::from_le_bytes(take(4).try_into().unwrap()).into()),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

/// The fields of a number.
fn all<'a>(bytes: &'a [u8], number: u64) -> impl Iterator<Item = Field<'a>> {
    fields(bytes)
        .into_iter()
        .filter(move |(n, _)| *n == number)
        .map(|(_, field)| field)
}

fn value(bytes: &[u8]) -> Value {
    let (number, field) = fields(bytes).pop().unwrap();
    match number {
        1 => json!(field.text()),
        2 => json!(field.number() == 1),
        3 => json!(field.number() as i64),
        4 => json!(f64::from_bits(field.number())),
        other => panic!("value {other}"),
    }
}

/// The attributes in a message, in fields of a number.
fn attributes(bytes: &[u8], number: u64) -> BTreeMap<String, Value> {
    let attributes = all(bytes, number).map(|attribute| {
        let attribute = attribute.bytes();
        let key = all(attribute, 1).next().unwrap().text();
        (key, value(all(attribute, 2).next().unwrap().bytes()))
    });
    attributes.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn span(bytes: &[u8], resource: &BTreeMap<String, Value>) -> Span {
    let field = |number| all(bytes, number).next();
    let id = |number| field(number).map_or(String::new(), |field| hex(field.bytes()));
    let number = |n| field(n).map_or(0, |field| field.number());
    Span {
        trace: id(1),
        id: id(2),
        parent: id(4),
        name: field(5).unwrap().text(),
        kind: number(6),
        begin: number(7),
        end: number(8),
        attributes: attributes(bytes, 9),
        status: field(15).map_or(0, |status| {
            all(status.bytes(), 3)
                .next()
                .map_or(0, |code| code.number())
        }),
        resource: resource.clone(),
    }
}

/// The spans of an `ExportTraceServiceRequest`.
fn spans(bytes: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in all(bytes, 1) {
        let of_resource = of_resource.bytes();
        let resource = all(of_resource, 1).next().unwrap();
        let resource = attributes(resource.bytes(), 1);
        for of_scope in all(of_resource, 2) {
            let of_scope = of_scope.bytes();
            spans.extend(all(of_scope, 2).map(|bytes| span(bytes.bytes(), &resource)));
        }
    }
    spans
}
