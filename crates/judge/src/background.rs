//! A judge on a thread of its own: it scores while its caller samples on.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::{Error, ImageBatch, Judge, Predicted, Result, Statistics};

/// Pictures to score and their prompts, on their way to a judge.
#[derive(Debug)]
pub struct Job {
    /// What to look at.
    pub pictures: Pictures,
    /// One prompt per picture.
    pub prompts: Vec<String>,
}

/// What a judge is given to look at.
#[derive(Debug)]
pub enum Pictures {
    /// Finished pictures.
    Finished(ImageBatch),
    /// Pictures predicted at a timestep (0 to 999).
    Predicted(Predicted, i64),
}

/// Scores that are known, or being made.
#[derive(Debug)]
pub struct Pending(State);

#[derive(Debug)]
enum State {
    Known(Result<Vec<f64>>),
    Awaited { judge: String, answer: Receiver<Result<Vec<f64>>> },
}

impl Pending {
    /// Scores that are known.
    pub fn known(scores: Result<Vec<f64>>) -> Self {
        Self(State::Known(scores))
    }

    /// Waits for the scores, in the order of the pictures. Errors: the judge's; [`Error::Background`] if its thread died.
    pub fn wait(self) -> Result<Vec<f64>> {
        match self.0 {
            State::Known(scores) => scores,
            State::Awaited { judge, answer } => answer.recv().map_err(|_| Error::Background { judge })?,
        }
    }
}

enum Request {
    Score(Job, Sender<Result<Vec<f64>>>),
    /// Of all scores, or of those since they were last taken.
    Statistics {
        taken: bool,
        answer: Sender<Vec<Statistics>>,
    },
    Forget,
}

/// A judge that works on a thread of its own, job by job in the order they come: [`Judge::submit`] returns at once.
///
/// Worth its while where the judge computes elsewhere than its caller: on another device, or in another process. It is one
/// judge, also where an ensemble works within: pictures that are to be compared must come in one job.
pub struct BackgroundJudge {
    name: String,
    unit: String,
    /// Present until it is dropped.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl BackgroundJudge {
    /// Starts the thread. Errors: [`Error::Background`] if there can be none.
    pub fn new(judge: Box<dyn Judge>) -> Result<Self> {
        let (name, unit) = (judge.name().to_owned(), judge.unit().to_owned());
        let (requests, inbox) = channel();
        let work = move || {
            for request in inbox {
                // A caller that waits no more is no reason to stop.
                match request {
                    Request::Score(job, answer) => drop(answer.send(judge.submit(job).wait())),
                    Request::Statistics { taken: true, answer } => drop(answer.send(judge.take_statistics())),
                    Request::Statistics { taken: false, answer } => drop(answer.send(judge.statistics())),
                    Request::Forget => judge.forget_statistics(),
                }
            }
        };
        let thread = std::thread::Builder::new().name("judge".into()).spawn(work);
        let thread = thread.map_err(|_| Error::Background { judge: name.clone() })?;
        Ok(Self { name, unit, requests: Some(requests), thread: Some(thread) })
    }

    /// Hands a request over; where the thread is gone its answer channel closes, which the caller sees.
    fn send(&self, request: Request) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(request);
        }
    }

    fn asked_statistics(&self, taken: bool) -> Vec<Statistics> {
        let (sender, answer) = channel();
        self.send(Request::Statistics { taken, answer: sender });
        answer.recv().unwrap_or_default()
    }
}

impl Judge for BackgroundJudge {
    fn name(&self) -> &str {
        &self.name
    }

    fn unit(&self) -> &str {
        &self.unit
    }

    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>> {
        self.submit(Job::new(Pictures::Finished(images.clone()), prompts)).wait()
    }

    fn judge_step(&self, images: &Predicted, timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        self.submit(Job::new(Pictures::Predicted(images.share(), timestep), prompts)).wait()
    }

    fn submit(&self, job: Job) -> Pending {
        let (sender, answer) = channel();
        self.send(Request::Score(job, sender));
        Pending(State::Awaited { judge: self.name.clone(), answer })
    }

    fn statistics(&self) -> Vec<Statistics> {
        self.asked_statistics(false)
    }

    fn take_statistics(&self) -> Vec<Statistics> {
        self.asked_statistics(true)
    }

    fn forget_statistics(&self) {
        self.send(Request::Forget);
    }
}

impl Job {
    /// Of pictures with their prompts.
    pub fn new(pictures: Pictures, prompts: &[&str]) -> Self {
        Self { pictures, prompts: prompts.iter().map(|prompt| (*prompt).to_owned()).collect() }
    }
}

impl Drop for BackgroundJudge {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for BackgroundJudge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::SyncSender;
    use tch::{Device, Kind, Tensor};

    /// Scores by the prompt's length once it is told to.
    struct Gated(Receiver<()>);

    impl Judge for Gated {
        fn name(&self) -> &str {
            "gated"
        }
        fn unit(&self) -> &str {
            "letters"
        }
        fn judge(&self, _: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>> {
            let _ = self.0.recv();
            Ok(prompts.iter().map(|prompt| if *prompt == "bad" { f64::NAN } else { prompt.len() as f64 }).collect())
        }
    }

    fn gated() -> (BackgroundJudge, SyncSender<()>) {
        let (open, gate) = std::sync::mpsc::sync_channel(8);
        (BackgroundJudge::new(Box::new(Gated(gate))).unwrap(), open)
    }

    fn images(count: i64) -> ImageBatch {
        ImageBatch::from_tensor(&Tensor::zeros([count, 2, 2, 3], (Kind::Uint8, Device::Cpu))).unwrap()
    }

    #[test]
    fn jobs_are_taken_at_once_and_answered_in_order() {
        let (judge, open) = gated();
        let job = |prompts: &[&str]| Job::new(Pictures::Finished(images(prompts.len() as i64)), prompts);
        // The judge is still shut: neither call may wait.
        let (first, second) = (judge.submit(job(&["a", "bb"])), judge.submit(job(&["ccc"])));
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert_eq!((first.wait().unwrap(), second.wait().unwrap()), (vec![1.0, 2.0], vec![3.0]));
        open.send(()).unwrap();
        let floats = Tensor::zeros([1, 3, 2, 2], (Kind::Float, Device::Cpu));
        assert_eq!(judge.score_step(&floats, 500, &["dddd"]).unwrap(), [4.0]);
        assert_eq!((judge.name(), judge.unit()), ("gated", "letters"));
    }

    #[test]
    fn errors_come_back() {
        let (judge, open) = gated();
        open.send(()).unwrap();
        let text = judge.score_batch(&images(1), &["bad"]).unwrap_err().to_string();
        assert!(text.contains("gated") && text.contains("bad"), "{text}");
    }
}
