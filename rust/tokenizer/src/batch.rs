//! Many texts, or a long one, on several threads.
//!
//! A long text is cut where the parts have the ids of the whole (cut.rs).
//!
//! The threads are made for the call and end with it, so a process that forks leaves none of them behind.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::cut::next_cut;
use crate::error::{Error, Result};
use crate::ordered::Ordered;
use crate::tokenizer::Tokenizer;

/// Bytes of a part of a long text.
const PART_BYTES: usize = 1 << 18;
/// How far behind its place a cut is looked for.
const SEARCH: usize = 1 << 16;
/// How often the caller is asked whether to stop.
const POLL: std::time::Duration = std::time::Duration::from_millis(50);

/// A part of one of the texts.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) text: usize,
    pub(crate) bytes: Range<usize>,
    /// Bytes of the whole text.
    pub(crate) of: usize,
}

/// What is encoded: text, or bytes that have to be.
trait Text: Sync {
    fn bytes(&self) -> &[u8];
    fn part(&self, bytes: Range<usize>) -> Result<&str>;
}

impl Text for &str {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn part(&self, bytes: Range<usize>) -> Result<&str> {
        Ok(&self[bytes])
    }
}

/// Checked in parts, by the threads that encode them.
struct Unchecked<'a>(&'a [u8]);

impl Text for Unchecked<'_> {
    fn bytes(&self) -> &[u8] {
        self.0
    }

    fn part(&self, bytes: Range<usize>) -> Result<&str> {
        let start = bytes.start;
        str::from_utf8(&self.0[bytes]).map_err(|error| Error::NotUtf8 {
            at: start + error.valid_up_to(),
        })
    }
}

impl Tokenizer {
    fn parts(&self, texts: &[impl Text]) -> Vec<Part> {
        let mut parts = Vec::with_capacity(texts.len());
        for (text, bytes) in texts.iter().map(Text::bytes).enumerate() {
            let of = bytes.len();
            let mut start = 0;
            while self.may_be_cut && of - start > 2 * PART_BYTES {
                let Some(end) = next_cut(bytes, start + PART_BYTES, SEARCH) else {
                    break;
                };
                let bytes = start..end;
                parts.push(Part { text, bytes, of });
                start = end;
            }
            let bytes = start..of;
            parts.push(Part { text, bytes, of });
        }
        parts
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
        self.encode_all(texts, parse_special, threads, stop)
    }

    /// The ids of a text that comes as bytes, as [`encode_many`](Self::encode_many) gives them.
    ///
    /// # Errors
    /// [`Error::NotUtf8`] as well.
    pub fn encode_utf8(
        &self,
        text: &[u8],
        parse_special: bool,
        threads: usize,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<u32>> {
        let lists = self.encode_all(&[Unchecked(text)], parse_special, threads, stop);
        let mut lists = lists.map_err(|(_, error)| error)?;
        Ok(lists.pop().unwrap_or_default())
    }

    fn encode_all(
        &self,
        texts: &[impl Text],
        parse_special: bool,
        threads: usize,
        stop: &mut dyn FnMut() -> bool,
    ) -> std::result::Result<Vec<Vec<u32>>, (usize, Error)> {
        let parts = self.parts(texts);
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if threads == 0 { processors() } else { threads }.min(parts.len());
        let next = AtomicUsize::new(0);
        let stopped = AtomicBool::new(false);
        let ordered = Mutex::new(Ordered::new(&parts, texts.len()));
        // A panic comes out where its thread is joined.
        let ordered_now = || ordered.lock().unwrap_or_else(PoisonError::into_inner);
        // The next part; false when there is none.
        let encode_next = |stop: &mut dyn FnMut() -> bool| {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(place) else {
                return false;
            };
            let mut ids = ordered_now().scratch();
            let text = texts[part.text].part(part.bytes.clone());
            let result = text.and_then(|text| self.encode(text, parse_special, stop, &mut ids));
            if result.is_err() {
                // Parts before this one are in work or done, so the first error is still found.
                next.store(parts.len(), Ordering::Relaxed);
            }
            ordered_now().put(place, result.map(|()| ids));
            true
        };
        if threads <= 1 {
            while encode_next(stop) {}
        } else {
            let work = || while encode_next(&mut || stopped.load(Ordering::Relaxed)) {};
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
                        next.store(parts.len(), Ordering::Relaxed);
                    }
                }
                for worker in workers {
                    if let Ok(Err(panic)) | Err(panic) = worker.join() {
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
        let ordered = ordered.into_inner();
        ordered.unwrap_or_else(PoisonError::into_inner).finish()
    }
}
