//! Anyone's scorer: a process that reads jobs and answers scores, a JSON object a line.

mod groups;

pub use groups::end_scorers;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Error, ImageBatch, Judge, Result};

/// How long an external scorer may take for one batch, where nothing else is asked for.
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(120);

/// The longest answer that is read.
const LONGEST_LINE: u64 = 16 << 20;
/// Lines of its standard error that an error shows, each up to so many characters.
const SHOWN_LINES: usize = 8;
const SHOWN_CHARS: usize = 300;
/// Bytes of its standard error taken for a line at most: a progress bar may never end one.
const LONGEST_WORDS: u64 = 4096;
/// How many times as long it may take over the first batch, in which it may load a model.
const FIRST: u32 = 5;
/// How long it may take to end once its input is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// A judge that asks an external process, started at the first picture and kept until the judge is dropped, or an answer is
/// late; whatever it has started itself (under Unix: what is left of its process group) ends with it.
///
/// One that dies, or does not answer in time, is started anew and asked once more; then the judge fails. One that answers
/// something else than scores is stopped at once: its next answer could belong to another question.
pub struct ExecJudge {
    name: String,
    command: String,
    program: String,
    arguments: Vec<String>,
    timeout: Duration,
    process: RefCell<Option<Process>>,
}

/// What went wrong with a job, and whether a new process may do better.
struct Fault {
    reason: String,
    again: bool,
}

impl ExecJudge {
    /// `command`: a program and its arguments, split as a POSIX shell does (quotes and backslashes; nothing is expanded).
    /// `timeout`: for one batch of pictures; the first one a process is given may take five times as long.
    ///
    /// Errors: [`Error::Exec`] for an empty command, or a quote that is never closed.
    pub fn new(command: &str, timeout: Duration) -> Result<Self> {
        let fail = |reason: &str| Error::Exec { command: command.to_owned(), reason: reason.to_owned() };
        let words = shlex::split(command).ok_or_else(|| fail("a quote is never closed, or it ends in a backslash"))?;
        let mut words = words.into_iter();
        let program = words.next().ok_or_else(|| fail("expected a command"))?;
        let (name, command, arguments) = (format!("exec:{command}"), command.to_owned(), words.collect());
        Ok(Self { name, command, program, arguments, timeout, process: RefCell::new(None) })
    }

    fn ask(&self, job: &str, count: usize) -> Result<Vec<f64>> {
        let mut slot = self.process.borrow_mut();
        let mut first = None;
        loop {
            if !slot.as_mut().is_some_and(Process::alive) {
                *slot = None;
            }
            let process = match slot.as_mut() {
                Some(process) => process,
                None => slot.insert(self.start()?),
            };
            let fault = match process.answer(job, self.timeout).and_then(|line| scores(&line, count)) {
                Ok(scores) => return Ok(scores),
                Err(fault) => fault,
            };
            let reason = format!("{}{}", fault.reason, process.stop());
            *slot = None;
            if !fault.again || first.is_some() {
                let twice = first.map_or(String::new(), |before| format!(" (started anew after: {before})"));
                return Err(Error::Exec { command: self.command.clone(), reason: reason + &twice });
            }
            tracing::warn!(command = self.command, reason, "external scorer is started anew");
            first = Some(fault.reason);
        }
    }

    fn start(&self) -> Result<Process> {
        let fail = |reason: String| Error::Exec { command: self.command.clone(), reason };
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = groups::spawn(&mut command);
        let mut child = started.map_err(|e| fail(format!("`{}` could not be started: {e}", self.program)))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            groups::end(&mut child);
            return Err(fail("its standard streams could not be had".into()));
        };
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (kept, (sender, lines)) = (said.clone(), channel());
        std::thread::spawn(move || listen(errors, &kept));
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            loop {
                let mut line = Vec::new();
                match output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                    Ok(1..) if sender.send(String::from_utf8_lossy(&line).trim().to_owned()).is_ok() => {}
                    _ => return,
                }
            }
        });
        Ok(Process { child, input: Some(input), lines, answered: false, said })
    }
}

/// Keeps the last lines of a scorer's standard error up to its end: of any length, and in any encoding. A reader that
/// stopped before would have the scorer killed by its next message.
fn listen(errors: impl Read, kept: &Mutex<VecDeque<String>>) {
    let (mut errors, mut line) = (BufReader::new(errors), Vec::new());
    while matches!(errors.by_ref().take(LONGEST_WORDS).read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line);
        // What a terminal would show of a line that was written over.
        let shown = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if let Ok(mut said) = kept.lock() {
            said.push_back(shown.chars().take(SHOWN_CHARS).collect());
            if said.len() > SHOWN_LINES {
                said.pop_front();
            }
        }
        line.clear();
    }
}

/// The scores in an answer.
fn scores(line: &str, count: usize) -> std::result::Result<Vec<f64>, Fault> {
    let shown: String = line.chars().take(200).collect();
    let wrong = |reason: String| Fault { reason: format!("{reason}; it answered: {shown}"), again: false };
    let expected = r#"expected a line {"scores": [..]}"#;
    let answer: Value =
        serde_json::from_str(line).map_err(|e| match line.contains("NaN") || line.contains("Infinity") {
            true => wrong("a score is NaN or infinite, which is no JSON either".into()),
            false => wrong(format!("{expected}, found no JSON ({e})")),
        })?;
    if let Some(error) = answer.get("error") {
        return Err(wrong(format!("it reports an error: {error}")));
    }
    let list = answer.get("scores").and_then(Value::as_array).ok_or_else(|| wrong(expected.to_owned()))?;
    if list.len() != count {
        return Err(wrong(format!("expected {count} scores, one for each picture, found {}", list.len())));
    }
    let number = |value: &Value| value.as_f64().ok_or_else(|| wrong(format!("expected numbers, found {value}")));
    list.iter().map(number).collect()
}

struct Process {
    child: Child,
    /// Present until the process is told to end.
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    answered: bool,
    said: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn answer(&mut self, job: &str, timeout: Duration) -> std::result::Result<String, Fault> {
        if let Ok(line) = self.lines.try_recv() {
            let shown: String = line.chars().take(200).collect();
            let reason = format!("it wrote a line that no job asked for: {shown}");
            return Err(Fault { reason, again: false });
        }
        let timeout = if self.answered { timeout } else { timeout * FIRST };
        let Some(mut input) = self.input.take() else {
            return Err(Fault { reason: "it was told to end".into(), again: true });
        };
        let late = Fault { reason: format!("no answer within {} s", timeout.as_secs_f64()), again: true };
        // A process that does not read blocks the write, perhaps for as long as a child of its own lives: the thread is
        // not waited for.
        let (text, (sender, written)) = (format!("{job}\n"), channel());
        std::thread::spawn(move || {
            if input.write_all(text.as_bytes()).and_then(|()| input.flush()).is_ok() {
                let _ = sender.send(input);
            }
        });
        let line = self.lines.recv_timeout(timeout);
        self.answered |= line.is_ok();
        if line.is_ok() {
            self.input = written.recv_timeout(FAREWELL).ok();
        }
        match line {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(late),
            Err(RecvTimeoutError::Disconnected) => {
                let reason = match self.farewell() {
                    Some(status) => format!("it ended without an answer ({status})"),
                    None => "it closed its standard output without an answer".into(),
                };
                Err(Fault { reason, again: true })
            }
        }
    }

    /// Its exit status, if it ends within [`FAREWELL`].
    fn farewell(&mut self) -> Option<std::process::ExitStatus> {
        let asked = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if asked.elapsed() < FAREWELL => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Kills it; what it last said on standard error, for a message.
    fn stop(&mut self) -> String {
        groups::end(&mut self.child);
        // The reader of its last lines may need a moment.
        std::thread::sleep(Duration::from_millis(20));
        let said = self.said.lock().map(|said| said.iter().cloned().collect::<Vec<_>>()).unwrap_or_default();
        if said.is_empty() { String::new() } else { format!("; its last words:\n  {}", said.join("\n  ")) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The end of its input asks it to end by itself.
        self.input = None;
        let _ = self.farewell();
        groups::end(&mut self.child);
    }
}

impl Judge for ExecJudge {
    fn name(&self) -> &str {
        &self.name
    }

    fn unit(&self) -> &str {
        "score"
    }

    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let fail = |reason: String| Error::Exec { command: self.command.clone(), reason };
        let folder = tempfile::tempdir().map_err(|e| fail(format!("no temporary folder for its pictures: {e}")))?;
        let mut paths = Vec::with_capacity(images.len());
        for (at, pixels) in images.pixels().enumerate() {
            let path = folder.path().join(format!("{at:05}.png"));
            let (width, height) = (images.width() as u32, images.height() as u32);
            image::save_buffer(&path, pixels, width, height, image::ExtendedColorType::Rgb8)
                .map_err(|e| fail(format!("{}: {e}", path.display())))?;
            paths.push(path.display().to_string());
        }
        self.ask(&json!({ "images": paths, "prompts": prompts }).to_string(), images.len())
    }
}

impl std::fmt::Debug for ExecJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}
