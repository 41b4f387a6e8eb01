//! Requests to the hub: who is asked, what is sent along, and what its refusals mean.

use std::time::Duration;

use serde_json::Value;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, ETAG, LOCATION, RANGE, USER_AGENT};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::{Agent, Body};

use crate::{Error, HubConfig, RepoId, Result};

const REDIRECTS: usize = 8;

/// What the hub says about a file before it is downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The blob's name: the sha256 of LFS files, git's sha1 of others; a plain file name.
    pub etag: String,
    /// Bytes, where the hub says.
    pub size: Option<u64>,
}

/// A repository at a commit.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The commit's hash.
    pub commit: String,
    /// Every file's path.
    pub files: Vec<String>,
}

/// A blocking client of one hub.
#[derive(Debug)]
pub struct Client {
    config: HubConfig,
    agent: Agent,
}

impl Client {
    pub fn new(config: HubConfig) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            // A download that is cut off here goes on from where it was.
            .timeout_recv_body(Some(Duration::from_secs(300)))
            .build()
            .new_agent();
        Self { config, agent }
    }

    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// The files of a revision, and its commit.
    pub fn listing(&self, id: &RepoId, revision: &str) -> Result<Listing> {
        let url = format!("{}/api/models/{id}/revision/{}", self.config.endpoint, encoded(revision));
        let mut response = self.asked(Method::GET, &url, None)?;
        if response.status() != 200 {
            return Err(self.refusal(&response, &url, id, Asked::Revision(revision)));
        }
        let text = response.body_mut().read_to_string().map_err(|error| unreachable(&url, &error))?;
        let nonsense =
            |reason: &str| Error::Server { url: url.clone(), reason: format!("{reason} in its list"), passing: false };
        let value: Value = serde_json::from_str(&text).map_err(|_| nonsense("no JSON"))?;
        let commit = value["sha"].as_str().filter(|sha| crate::cache::is_commit(sha));
        let files = value["siblings"].as_array().map(|list| list.iter().filter_map(|s| s["rfilename"].as_str()));
        match (commit, files) {
            (Some(commit), Some(files)) => {
                Ok(Listing { commit: commit.to_owned(), files: files.map(str::to_owned).collect() })
            }
            _ => Err(nonsense("no commit or no files")),
        }
    }

    /// A file's checksum and size.
    pub fn metadata(&self, id: &RepoId, commit: &str, file: &str) -> Result<Metadata> {
        let url = self.file_url(id, commit, file);
        let response = self.asked(Method::HEAD, &url, None)?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(&response, &url, id, Asked::File(file)));
        }
        let headers = response.headers();
        let etag = header(headers, "x-linked-etag").or_else(|| header(headers, ETAG.as_str()));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let plain =
            |etag: &String| !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        let Some(etag) = etag.filter(plain) else {
            return Err(Error::Server { url, reason: "no usable ETag".to_owned(), passing: false });
        };
        // The length of a redirection is that of its own text.
        let own = || header(headers, "content-length").filter(|_| status.is_success());
        let size = header(headers, "x-linked-size").or_else(own).and_then(|size| size.parse().ok());
        Ok(Metadata { etag, size })
    }

    /// A file's bytes from `start` on. The status is 200 (all of it), 206 (from `start`) or 416 (nothing from there).
    pub fn bytes(&self, id: &RepoId, commit: &str, file: &str, start: u64) -> Result<Response<Body>> {
        let mut url = self.file_url(id, commit, file);
        for _ in 0..REDIRECTS {
            let response = self.asked(Method::GET, &url, (start > 0).then_some(start))?;
            match (response.status().as_u16(), location(&response, &url)) {
                (200 | 206 | 416, _) => return Ok(response),
                (300..=399, Some(next)) => url = next,
                _ => return Err(self.refusal(&response, &url, id, Asked::File(file))),
            }
        }
        Err(Error::Server { url, reason: "too many redirections".to_owned(), passing: false })
    }

    /// One request. Redirections within the hub are followed (a repository that was renamed); others are given back.
    fn asked(&self, method: Method, url: &str, start: Option<u64>) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let response = self.once(&method, &url, start)?;
            match location(&response, &url) {
                Some(next) if self.is_hub(&next) && response.status().is_redirection() => url = next,
                _ => return Ok(response),
            }
        }
        Err(Error::Server { url, reason: "too many redirections".to_owned(), passing: false })
    }

    fn once(&self, method: &Method, url: &str, start: Option<u64>) -> Result<Response<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(USER_AGENT, concat!("seedpo/", env!("CARGO_PKG_VERSION")))
            // The length and the checksum are those of the bytes as they are.
            .header(ACCEPT_ENCODING, "identity");
        if let Some(start) = start {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        if let Some(token) = self.config.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.secret));
        }
        let wrong = |error: ureq::http::Error| Error::Unreachable { url: url.to_owned(), reason: error.to_string() };
        let request = request.body(()).map_err(wrong)?;
        self.agent.run(request).map_err(|error| unreachable(url, &error))
    }

    fn file_url(&self, id: &RepoId, commit: &str, file: &str) -> String {
        let path: Vec<String> = file.split('/').map(encoded).collect();
        format!("{}/{id}/resolve/{}/{}", self.config.endpoint, encoded(commit), path.join("/"))
    }

    fn is_hub(&self, url: &str) -> bool {
        let place = |url: &str| {
            url.parse::<Uri>().ok().map(|uri| (uri.scheme_str().map(str::to_owned), uri.authority().cloned()))
        };
        place(url) == place(&self.config.endpoint)
    }

    fn token_hint(&self) -> String {
        match &self.config.token {
            Some(token) => format!("make sure that the token from {} is valid and may read it", token.source),
            None => "set HF_TOKEN to a token of your account (or run `hf auth login`)".to_owned(),
        }
    }

    /// What an answer that is no success means.
    fn refusal(&self, response: &Response<Body>, url: &str, id: &RepoId, asked: Asked) -> Error {
        let (status, headers) = (response.status().as_u16(), response.headers());
        let code = header(headers, "x-error-code").unwrap_or_default();
        let (id, endpoint, hint) = (id.to_string(), self.config.endpoint.clone(), self.token_hint());
        match (status, code, asked) {
            (_, "GatedRepo", _) => Error::Gated { id, endpoint, hint },
            (_, "RepoNotFound", _) | (401, "", Asked::Revision(_)) | (404, "", Asked::Revision(_)) => {
                let hint = format!("check its spelling; if it is private, {hint}");
                Error::NoRepository { id, endpoint, hint }
            }
            (_, "RevisionNotFound", Asked::Revision(revision)) => {
                Error::NoRevision { id, revision: revision.to_owned() }
            }
            (404, _, Asked::File(file)) => Error::NoFile { id, file: file.to_owned(), hint: String::new() },
            (401 | 403, ..) => {
                let message = header(headers, "x-error-message").map(|text| format!(": {text}")).unwrap_or_default();
                Error::Forbidden { id, status, message, hint }
            }
            _ => {
                let passing = matches!(status, 408 | 429 | 500..=599);
                Error::Server { url: url.to_owned(), reason: format!("status {status}"), passing }
            }
        }
    }
}

/// What a request was for; its refusal depends on it.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Revision(&'a str),
    File(&'a str),
}

pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn unreachable(url: &str, error: &ureq::Error) -> Error {
    Error::Unreachable { url: url.to_owned(), reason: error.to_string() }
}

/// Where a response redirects to, made whole.
fn location(response: &Response<Body>, url: &str) -> Option<String> {
    let to = header(response.headers(), LOCATION.as_str())?;
    if !to.starts_with('/') {
        return Some(to.to_owned());
    }
    let from: Uri = url.parse().ok()?;
    Some(format!("{}://{}{to}", from.scheme_str()?, from.authority()?))
}

/// One part of a URL's path, percent-encoded.
fn encoded(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encoded("refs/pr/1 ü"), "refs%2Fpr%2F1%20%C3%BC");
    }
}
