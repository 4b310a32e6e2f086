//! Many texts, or a long one, on several threads.
//!
//! A long text is cut where a piece ends whatever stands around: behind a newline, before a character that is not white.
//! No pattern that is scanned here has a newline before such a character in one piece, and none looks back. Where an
//! added token holds a newline or takes the white space before it, texts stay whole.
//!
//! The threads are made for the call and end with it, so a process that forks leaves none of them behind.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

/// The first place from `at` on where a text may be cut; `None` when there is none nearby.
fn cut(text: &[u8], at: usize) -> Option<usize> {
    let window = &text[at..text.len().min(at + SEARCH)];
    let may_follow = |byte: u8| byte.is_ascii_graphic() || (0xe4..=0xe9).contains(&byte);
    memchr::memchr_iter(b'\n', window)
        .map(|place| at + place + 1)
        .find(|&place| text.get(place).is_some_and(|&byte| may_follow(byte)))
}

impl Tokenizer {
    fn jobs(&self, texts: &[&str]) -> Vec<Job> {
        let mut jobs = Vec::with_capacity(texts.len());
        for (text, bytes) in texts.iter().map(|text| text.as_bytes()).enumerate() {
            let mut start = 0;
            while self.may_be_cut && bytes.len() - start > 2 * PART {
                let Some(end) = cut(bytes, start + PART) else {
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
        let mut all: Vec<Vec<u32>> = vec![Vec::new(); texts.len()];
        for (job, done) in jobs.iter().zip(done) {
            let ids = done.unwrap_or(Err(Error::Interrupted));
            let ids = ids.map_err(|error| (job.text, error))?;
            let whole = &mut all[job.text];
            if whole.is_empty() {
                *whole = ids;
            } else {
                whole.extend_from_slice(&ids);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_stands_behind_a_newline_and_before_what_is_not_white() {
        assert_eq!(cut(b"ab\n \nc", 0), Some(5));
        assert_eq!(cut(b"ab\n\n", 0), None);
        assert_eq!(cut("a\n\u{3000}b\n\u{4e2d}".as_bytes(), 0), Some(7));
    }
}
