//! Pages of the latent cache: who holds which page, and where the next token goes.
//!
//! The cache deals in page ids, never in memory: the caller owns one row of memory per token of every page, and reads
//! from a block table which page holds which tokens. A sequence is opened, steps forward by reserving room for its next
//! tokens, commits what it has computed, may be forked (both halves share pages until one of them writes into the shared
//! last page, which is then copied) and is closed.
//!
//! ```
//! use abyssal_kvcache::PageCache;
//! let mut cache = PageCache::new(8, 64)?;
//! let (sequence, cached) = cache.open(&[1, 2, 3], b"")?;
//! assert_eq!(cached, 0);
//! let mut table = [-1; 8];
//! let copies = cache.step(&[sequence], &[3], &mut table, 8)?;
//! assert!(copies.is_empty() && table[0] == 0);
//! cache.commit(&[sequence], &[3], &[true])?;
//! cache.close(sequence)?;
//! cache.audit()?;
//! # Ok::<(), abyssal_kvcache::Error>(())
//! ```
//!
//! Everything lies in flat arrays: a reference count per page, a stack of free pages, and a slot per sequence whose
//! handle carries a generation, so that a handle kept too long is an error and never someone else's page.
//! No prefix is matched yet: `open` answers that 0 tokens are cached, and the tokens, the salt and the publish flags
//! that a prefix tree needs already cross the interface.

#![forbid(unsafe_code)]

mod audit;
mod cache;
mod error;
mod pool;
mod slots;

pub use cache::{PageCache, Stats};
pub use error::{Error, Result};
pub use pool::{PageCopy, PageId};
pub use slots::Handle;
