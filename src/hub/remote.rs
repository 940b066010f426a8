//! What the hub is asked over HTTP.

use std::thread::sleep;
use std::time::Duration;

use hf_hub::Cache;
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::{Hub, HubError, RepositoryId, model};

const NAME: &str = env!("CARGO_PKG_NAME");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long to wait before the second attempt and each later one, where another may succeed.
const WAITS: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// The longest wait that a hub may ask for before the next attempt.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Redirects within the hub that are followed to what it says of a file.
const REDIRECTS: u32 = 10;

/// A repository on the hub.
pub(super) struct Remote<'a> {
    hub: &'a Hub,
    api: Api,
    /// For the files.
    agent: Agent,
    id: &'a RepositoryId,
    /// What it was asked for by.
    revision: &'a str,
}

/// What the hub says of a file.
pub(super) struct Description {
    /// What its contents are known by.
    pub etag: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Description {
    /// The SHA-256 of the contents, if it is what they are known by: so it is with large files, while small ones
    /// have git's hash.
    pub fn sha256(&self) -> Option<&str> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        Some(self.etag.as_str()).filter(|etag| etag.len() == 64 && etag.bytes().all(is_digit))
    }
}

impl<'a> Remote<'a> {
    pub fn new(hub: &'a Hub, id: &'a RepositoryId, revision: &'a str) -> Result<Self, HubError> {
        // hf-hub takes a token from beside its cache, and says so, even where it is given another: within the
        // repository's folder there is none.
        let nowhere = Cache::new(hub.folder(&model(id, revision)).join("blobs"));
        let api = ApiBuilder::from_cache(nowhere)
            .with_endpoint(hub.endpoint.trim_end_matches('/').to_owned())
            .with_token(hub.token.clone())
            .with_user_agent(NAME, VERSION)
            .build();
        let agent = Agent::config_builder()
            .user_agent(format!("{NAME}/{VERSION}"))
            .redirect_auth_headers(RedirectAuthHeaders::SameHost);
        Ok(Self {
            hub,
            api: api.map_err(|error| strange(hub, error))?,
            agent: agent.build().into(),
            id,
            revision,
        })
    }

    /// The commit that the revision is now, and the files that it has.
    pub fn info(&self) -> Result<RepoInfo, HubError> {
        let request = self.api.repo(model(self.id, self.revision)).info_request();
        let mut answer = self.send(request, super::CONFIG, REDIRECTS)?;
        let json = answer.body_mut().read_to_vec();
        let json = json.map_err(|error| self.failed(error))?;
        serde_json::from_slice(&json).map_err(|error| self.strange(error))
    }

    /// Where a file of a commit is.
    pub fn url(&self, commit: &str, file: &str) -> String {
        self.api.repo(model(self.id, commit)).url(file)
    }

    /// What the hub says of a file; where it is kept elsewhere, that is said on the way there.
    pub fn describe(&self, url: &str, file: &str) -> Result<Description, HubError> {
        let mut url = url.to_owned();
        let mut redirects = 0;
        let answer = loop {
            let answer = self.get(&url, file, Some("bytes=0-0"), 0)?;
            match within(&url, text(answer.headers(), "location")) {
                Some(next) if answer.status().is_redirection() && redirects < REDIRECTS => {
                    (url, redirects) = (next, redirects + 1);
                }
                _ => break answer,
            }
        };
        let headers = answer.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        // It becomes the name of a file.
        let is_plain = |etag: &&str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !etag.is_empty() && etag.bytes().all(allowed)
        };
        let etag = etag.filter(is_plain);
        let etag = etag.ok_or_else(|| self.strange(format!("{file} comes without an etag")))?;
        let size = match (
            text(headers, "x-linked-size"),
            answer.status().is_redirection(),
        ) {
            (Some(size), _) => size.parse().ok(),
            (None, false) => whole(headers),
            (None, true) => whole(
                self.get(&url, file, Some("bytes=0-0"), REDIRECTS)?
                    .headers(),
            ),
        };
        Ok(Description {
            etag: etag.to_owned(),
            size: size.ok_or_else(|| self.strange(format!("{file} comes without its size")))?,
        })
    }

    /// Asks for `url`, which is of `file`, and follows so many redirects.
    pub fn get(
        &self,
        url: &str,
        file: &str,
        range: Option<&str>,
        redirects: u32,
    ) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.hub.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        self.send(request, file, redirects)
    }

    /// Sends a request that is for `file`, follows so many redirects, and waits no longer than the hub's patience for
    /// anything.
    fn send(
        &self,
        request: RequestBuilder<WithoutBody>,
        file: &str,
        redirects: u32,
    ) -> Result<Response<Body>, HubError> {
        let patience = Some(self.hub.patience);
        let request = request
            .config()
            .http_status_as_error(false)
            .max_redirects(redirects)
            // Lengths, ranges and etags are those of a file as it is; and an answer that breaks off while it is
            // decompressed would look like one that makes no sense.
            .accept_encoding("identity")
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_per_read(patience)
            .timeout_per_write(patience)
            .build();
        let answer = request.call().map_err(|error| self.failed(error))?;
        let (endpoint, repository) = (self.hub.endpoint.clone(), self.id.to_string());
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(answer);
        }
        Err(match status.as_u16() {
            404 => HubError::NotFound {
                endpoint,
                repository,
                revision: self.revision.to_owned(),
            },
            status @ (401 | 403) => HubError::Denied {
                endpoint,
                repository,
                status,
                has_token: self.hub.token.is_some(),
            },
            status => HubError::Status {
                endpoint,
                repository,
                file: file.to_owned(),
                status,
                retry_after: text(answer.headers(), "retry-after")
                    .and_then(|seconds| seconds.parse().ok())
                    .map(Duration::from_secs),
            },
        })
    }

    /// What is said of a request without an answer: whether another attempt may have one.
    fn failed(&self, error: ureq::Error) -> HubError {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Timeout};
        match error {
            Io(_) | Timeout(_) | HostNotFound | ConnectionFailed => HubError::Unreachable {
                endpoint: self.hub.endpoint.clone(),
                reason: error.to_string(),
            },
            error => self.strange(error),
        }
    }

    /// What is said of an answer that makes no sense.
    pub fn strange(&self, reason: impl ToString) -> HubError {
        strange(self.hub, reason)
    }
}

fn strange(hub: &Hub, reason: impl ToString) -> HubError {
    HubError::Answer {
        endpoint: hub.endpoint.clone(),
        reason: reason.to_string(),
    }
}

/// Tries again where another attempt may succeed; a hub that asks for a longer wait than usual gets it up to
/// `longest_wait`.
pub(super) fn persist<T>(
    longest_wait: Duration,
    mut attempt: impl FnMut() -> Result<T, HubError>,
) -> Result<T, HubError> {
    for wait in WAITS {
        let error = match attempt() {
            Err(error) if error.may_pass() => error,
            done => return done,
        };
        let asked_for = match error {
            HubError::Status { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let wait = asked_for.min(longest_wait).max(wait);
        tracing::warn!(reason = %error, seconds = wait.as_secs_f32(), "trying again after a wait");
        sleep(wait);
    }
    attempt()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The length of the file of which a part came.
fn whole(headers: &HeaderMap) -> Option<u64> {
    let (_, size) = text(headers, "content-range")?.rsplit_once('/')?;
    size.parse().ok()
}

/// The URL of a redirect that names no host, and so stays on that of `url`.
fn within(url: &str, location: Option<&str>) -> Option<String> {
    let location: Uri = location?.parse().ok()?;
    if location.host().is_some() {
        return None;
    }
    let mut parts = url.parse::<Uri>().ok()?.into_parts();
    parts.path_and_query = location.into_parts().path_and_query;
    Some(Uri::from_parts(parts).ok()?.to_string())
}
