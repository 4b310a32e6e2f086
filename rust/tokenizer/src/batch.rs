//! Many texts, or a long one, on several threads.
//!
//! A long text is cut where the parts have the ids of the whole (cut.rs).
//!
//! The threads are made for the call and end with it, so a process that forks leaves none of them behind.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::cut::next_cut;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Bytes of a part of a long text.
const PART: usize = 1 << 18;
/// How far behind its place a cut is looked for.
const SEARCH: usize = 1 << 16;
/// How often the caller is asked whether to stop.
const POLL: std::time::Duration = std::time::Duration::from_millis(50);

/// A part of one of the texts.
#[derive(Debug, Clone)]
struct Job {
    text: usize,
    range: Range<usize>,
}

impl Tokenizer {
    fn jobs(&self, texts: &[&str]) -> Vec<Job> {
        let mut jobs = Vec::with_capacity(texts.len());
        for (text, bytes) in texts.iter().map(|text| text.as_bytes()).enumerate() {
            let mut start = 0;
            while self.may_be_cut && bytes.len() - start > 2 * PART {
                let Some(end) = next_cut(bytes, start + PART, SEARCH) else {
                    break;
                };
                jobs.push(Job {
                    text,
                    range: start..end,
                });
                start = end;
            }
            jobs.push(Job {
                text,
                range: start..bytes.len(),
            });
        }
        jobs
    }

    /// The ids of each text, in order, by at most `threads` threads; 0 stands for one per processor.
    ///
    /// `stop` is asked on the calling thread about twenty times a second.
    ///
    /// # Errors
    /// The place of the first text with an error, and the error; [`Error::Interrupted`] when `stop` returned true.
    pub fn encode_many(
        &self,
        texts: &[&str],
        parse_special: bool,
        threads: usize,
        stop: &mut dyn FnMut() -> bool,
    ) -> std::result::Result<Vec<Vec<u32>>, (usize, Error)> {
        let jobs = self.jobs(texts);
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if threads == 0 { processors() } else { threads }.min(jobs.len());
        let next = AtomicUsize::new(0);
        let stopped = AtomicBool::new(false);
        let encode = |job: &Job, stop: &mut dyn FnMut() -> bool| -> Result<Vec<u32>> {
            let mut ids = Vec::new();
            let text = &texts[job.text][job.range.clone()];
            self.encode(text, parse_special, stop, &mut ids)?;
            Ok(ids)
        };
        let mut done: Vec<Option<Result<Vec<u32>>>> = vec![None; jobs.len()];
        if threads <= 1 {
            for (job, done) in jobs.iter().zip(&mut done) {
                let result = encode(job, stop);
                let failed = result.is_err();
                *done = Some(result);
                if failed {
                    break;
                }
            }
        } else {
            let work = || {
                let mut own = Vec::new();
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(place) else {
                        return own;
                    };
                    let result = encode(job, &mut || stopped.load(Ordering::Relaxed));
                    if result.is_err() {
                        // Parts before this one are in work or done, so the first error is still found.
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                    own.push((place, result));
                }
            };
            let caller = std::thread::current();
            let left = AtomicUsize::new(threads);
            let (work, left) = (&work, &left);
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..threads)
                    .map(|_| {
                        let caller = caller.clone();
                        scope.spawn(move || {
                            let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                            left.fetch_sub(1, Ordering::Release);
                            caller.unpark();
                            own
                        })
                    })
                    .collect();
                while left.load(Ordering::Acquire) > 0 {
                    std::thread::park_timeout(POLL);
                    if stop() {
                        stopped.store(true, Ordering::Relaxed);
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                }
                for worker in workers {
                    match worker.join() {
                        Ok(Ok(own)) => {
                            for (place, result) in own {
                                done[place] = Some(result);
                            }
                        }
                        Ok(Err(panic)) | Err(panic) => std::panic::resume_unwind(panic),
                    }
                }
            });
        }
        let mut parts: Vec<Vec<Vec<u32>>> = vec![Vec::new(); texts.len()];
        for (job, done) in jobs.iter().zip(done) {
            let ids = done.unwrap_or(Err(Error::Interrupted));
            parts[job.text].push(ids.map_err(|error| (job.text, error))?);
        }
        let all = parts.into_iter().map(|mut parts| match &mut parts[..] {
            [only] => std::mem::take(only),
            _ => parts.concat(),
        });
        Ok(all.collect())
    }
}
