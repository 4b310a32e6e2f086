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
//! A page full of committed and published tokens can be matched by later sequences with the same salt that begin with
//! the same tokens, also after its sequence was closed, until its memory is needed:
//!
//! ```
//! # use abyssal_kvcache::PageCache;
//! # let mut cache = PageCache::new(8, 2)?;
//! let (first, _) = cache.open(&[5, 6, 7], b"tenant")?;
//! cache.step(&[first], &[3], &mut [-1; 8], 8)?;
//! cache.commit(&[first], &[3], &[true])?;
//! cache.close(first)?;
//! let (_, cached) = cache.open(&[5, 6, 9], b"tenant")?;
//! let (_, others) = cache.open(&[5, 6, 9], b"other tenant")?;
//! assert_eq!((cached, others), (2, 0));
//! # Ok::<(), abyssal_kvcache::Error>(())
//! ```
//!
//! Everything lies in flat arrays: a reference count per page, a stack of free pages, a list of reusable ones in the
//! order of their release, a node per published page with its tokens, a table from hashes to nodes, and a slot per
//! sequence whose handle carries a generation, so that a handle kept too long is an error and never someone else's
//! page. A sequence remembers how far its pages are published, so a step's work follows from its new tokens alone.

#![forbid(unsafe_code)]

mod audit;
mod audit_tree;
mod cache;
mod commit;
mod error;
mod events;
mod hash;
mod identity;
mod index;
mod kept;
mod lru;
mod msgpack;
mod pages;
mod pool;
mod prefix;
mod salts;
mod saved;
mod sequence;
mod slots;
mod stats;

pub use cache::{Limits, Options, PageCache};
pub use error::{Error, Result};
pub use events::EventForm;
pub use identity::{Identity, page_identities, page_identity, salt_identity};
pub use kept::KeptRows;
pub use pool::{PageCopy, PageId};
pub use saved::{Prefix, SavedPrefix};
pub use slots::Handle;
pub use stats::Stats;
