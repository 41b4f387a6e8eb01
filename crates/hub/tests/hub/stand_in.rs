//! A hub in the test's own process, that misbehaves on demand.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::Digest;

/// The commit of every repository here.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One kind of misbehaviour.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Closes the connection after so many bytes of the body.
    Drop(usize),
    /// Sends the first byte of the body wrong.
    WrongByte,
    /// Answers with a status, and the hub's code for the reason.
    Status(u16, &'static str),
    /// Sends the whole file to a request for its rest.
    WholeFile,
    /// Announces another size.
    Size(u64),
    /// Has a word for an ETag that is no checksum.
    Etag(&'static str),
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, (Vec<u8>, bool)>,
    faults: Vec<(&'static str, String, Fault, usize)>,
    log: Vec<Request>,
}

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub start: usize,
    pub token: Option<String>,
}

/// The hub; it knows `tiny/model` at `main`.
pub struct StandIn {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || answer(stream, &state, port));
            }
        });
        Self { endpoint: format!("http://127.0.0.1:{port}"), state }
    }

    /// Adds a file; `lfs` ones have a sha256 and are sent from another host.
    pub fn add(&self, name: &str, bytes: &[u8], lfs: bool) {
        self.lock().files.insert(name.to_owned(), (bytes.to_vec(), lfs));
    }

    /// Misbehaves in the next `times` requests with this method whose path contains `path`.
    pub fn fault(&self, method: &'static str, path: &str, fault: Fault, times: usize) {
        self.lock().faults.push((method, path.to_owned(), fault, times));
    }

    /// The requests so far, and forgets them.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.lock().log)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn git_sha1(bytes: &[u8]) -> String {
    let sum = sha1::Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, port: u16) {
    let Some(request) = read_request(&stream) else { return };
    let fault = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        let fits =
            |f: &&mut (&str, String, Fault, usize)| f.0 == request.method && request.path.contains(&f.1) && f.3 > 0;
        state.faults.iter_mut().find(fits).map(|found| {
            found.3 -= 1;
            found.2.clone()
        })
    };
    let whole = matches!(fault, Some(Fault::WholeFile));
    let (status, headers, mut body) = match fault {
        Some(Fault::Status(status, code)) => (status, format!("X-Error-Code: {code}\r\n"), Vec::new()),
        _ => response(&request, state, port, whole),
    };
    let length = body.len();
    let mut head = format!("HTTP/1.1 {status} .\r\nConnection: close\r\n{headers}");
    if !headers.contains("Content-Length") {
        head += &format!("Content-Length: {length}\r\n");
    }
    if let Some(Fault::Size(size)) = fault {
        head = head.replace("X-Linked-Size: ", &format!("X-Linked-Size: {size}\r\nX-True-Size: "));
    }
    if let Some(Fault::Etag(word)) = fault {
        let lines = head.lines().filter(|line| !line.contains("ETag: ")).map(|line| format!("{line}\r\n"));
        head = lines.chain([format!("ETag: W/\"{word}\"\r\n")]).collect();
    }
    match fault {
        Some(Fault::WrongByte) if !body.is_empty() => body[0] ^= 1,
        Some(Fault::Drop(after)) => body.truncate(after),
        _ => {}
    }
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n"));
    if request.method == "GET" {
        let _ = stream.write_all(&body);
    }
    let _ = stream.shutdown(Shutdown::Write);
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut parts = first.split(' ');
    let (method, path) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let (mut start, mut token) = (0, None);
    for line in lines {
        let line = line.ok()?;
        match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value)) {
            Some((name, value)) if name == "range" => {
                start = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok()?
            }
            Some((name, value)) if name == "authorization" => token = Some(value.to_owned()),
            Some(_) => {}
            None => break,
        }
    }
    Some(Request { method, path, start, token })
}

/// Status, headers and body as huggingface.co sends them.
fn response(request: &Request, state: &Mutex<State>, port: u16, whole: bool) -> (u16, String, Vec<u8>) {
    let state = state.lock().unwrap();
    let path = request.path.as_str();
    if path == "/api/models/tiny/model/revision/main" || path == format!("/api/models/tiny/model/revision/{COMMIT}") {
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"id": "tiny/model", "sha": COMMIT, "siblings": siblings});
        return (200, String::new(), body.to_string().into_bytes());
    }
    if path.starts_with("/api/models/tiny/model/") {
        return (404, "X-Error-Code: RevisionNotFound\r\n".to_owned(), Vec::new());
    }
    if let Some(sum) = path.strip_prefix("/cdn/") {
        let bytes = state.files.values().map(|(bytes, _)| bytes).find(|bytes| sha256(bytes) == sum);
        return bytes.map_or((404, String::new(), Vec::new()), |bytes| part(bytes, request.start, whole, ""));
    }
    let Some(name) = path.strip_prefix(&format!("/tiny/model/resolve/{COMMIT}/")) else {
        return (401, "X-Error-Code: RepoNotFound\r\n".to_owned(), Vec::new());
    };
    match state.files.get(name) {
        None => (404, "X-Error-Code: EntryNotFound\r\n".to_owned(), Vec::new()),
        Some((bytes, true)) => {
            let (sum, size) = (sha256(bytes), bytes.len());
            let headers = format!(
                "X-Repo-Commit: {COMMIT}\r\nX-Linked-ETag: \"{sum}\"\r\nX-Linked-Size: {size}\r\nETag: \"other\"\r\n\
                 Location: http://localhost:{port}/cdn/{sum}\r\n"
            );
            (302, headers, b"redirecting".to_vec())
        }
        Some((bytes, false)) => {
            let headers = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\n", git_sha1(bytes));
            part(bytes, request.start, whole, &headers)
        }
    }
}

fn part(bytes: &[u8], start: usize, whole: bool, headers: &str) -> (u16, String, Vec<u8>) {
    match start {
        0 => (200, headers.to_owned(), bytes.to_vec()),
        _ if whole => (200, headers.to_owned(), bytes.to_vec()),
        start if start >= bytes.len() => (416, headers.to_owned(), Vec::new()),
        start => {
            let range = format!("{headers}Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            (206, range, bytes[start..].to_vec())
        }
    }
}
