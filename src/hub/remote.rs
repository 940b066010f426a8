//! What the hub is asked over HTTP.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::{Hub, HubError, RepositoryId};

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
    agent: Agent,
    id: &'a RepositoryId,
    /// What it was asked for by.
    revision: &'a str,
}

/// What a revision is.
pub(super) struct Info {
    /// Its commit.
    pub commit: String,
    /// The files that it has.
    pub files: BTreeSet<String>,
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

/// The hub's own words for [`Info`].
#[derive(Deserialize)]
struct RepositoryInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl<'a> Remote<'a> {
    pub fn new(hub: &'a Hub, id: &'a RepositoryId, revision: &'a str) -> Self {
        let patience = Some(hub.patience);
        let config = Agent::config_builder()
            .user_agent(concat!("unmask/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_per_read(patience)
            .timeout_per_write(patience);
        Self {
            hub,
            agent: config.build().into(),
            id,
            revision,
        }
    }

    /// What the revision is now.
    pub fn info(&self) -> Result<Info, HubError> {
        let revision = self.revision.replace('/', "%2F");
        let url = format!(
            "{}/api/models/{}/revision/{revision}",
            self.endpoint(),
            self.id
        );
        let mut answer = self.get(&url, super::CONFIG, None, REDIRECTS)?;
        let json = answer.body_mut().read_to_vec();
        let json = json.map_err(|error| self.failed(error))?;
        let info: RepositoryInfo = serde_json::from_slice(&json).map_err(|e| self.strange(e))?;
        Ok(Info {
            commit: info.sha,
            files: info.siblings.into_iter().map(|s| s.rfilename).collect(),
        })
    }

    /// Where a file of a commit is.
    pub fn url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint(), self.id)
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
        let request = request.config().max_redirects(redirects).build();
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

    fn endpoint(&self) -> &str {
        self.hub.endpoint.trim_end_matches('/')
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
        HubError::Answer {
            endpoint: self.hub.endpoint.clone(),
            reason: reason.to_string(),
        }
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
