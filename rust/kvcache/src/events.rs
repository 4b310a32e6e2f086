//! Events for routers of other systems: which pages can be matched here, in vLLM's wire form.
//!
//! Off unless asked for. A batch is msgpack: the array `[timestamp, events, data_parallel_rank]`, and of events maps that begin with their `type`: `BlockStored`, `BlockRemoved`, `AllBlocksCleared`.
//! What they call block is a page here; its hash is the page's SHA-256 identity, or, as vLLM does unless told otherwise,
//! the last 8 bytes of it as a big-endian number.
//!
//! Source: vLLM 0.33, `vllm/distributed/kv_events.py` (fields and their order) and `maybe_convert_block_hash` in
//! `vllm/v1/core/kv_cache_utils.py`. A map's fields with a default are left out, as by vLLM's encoder.

use crate::identity::{Identity, page_identity, salt_identity};
use crate::msgpack::Writer;
use crate::pool::PageId;

/// Pages whose events may wait to be taken. Beyond that they are dropped, and the batch begins with a clear: a router
/// then knows too little, never something wrong.
const MOST_PENDING: usize = 1 << 16;

#[derive(Debug)]
enum Event {
    Stored {
        pages: Vec<Identity>,
        /// None for the first page under a salt.
        parent: Option<Identity>,
        token_ids: Vec<u32>,
    },
    Removed(Vec<Identity>),
    Cleared,
}

/// How a batch is written.
#[derive(Debug, Clone, Copy)]
pub struct EventForm<'a> {
    /// Seconds since 1970.
    pub timestamp: f64,
    /// Which of several engines with the same weights this is.
    pub data_parallel_rank: Option<u32>,
    /// Where the pages are; vLLM's name for the memory that attention reads is `GPU`.
    pub medium: &'a str,
    /// Whole identities instead of their last 8 bytes.
    pub full_hashes: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    /// By page; of published pages only.
    identities: Vec<Identity>,
    pending: Vec<Event>,
    pending_pages: usize,
}

/// What a page that is published comes after.
pub(crate) enum EventParent<'a> {
    Salt(&'a [u8]),
    Page(PageId),
}

impl Events {
    pub(crate) fn stored(&mut self, page: PageId, parent: &EventParent<'_>, tokens: &[u32]) {
        let parent_identity = match parent {
            EventParent::Salt(salt) => salt_identity(salt),
            EventParent::Page(parent) => self.identities[parent.0 as usize],
        };
        let identity = page_identity(&parent_identity, tokens);
        if self.identities.len() <= page.0 as usize {
            self.identities.resize(page.0 as usize + 1, [0; 32]);
        }
        self.identities[page.0 as usize] = identity;
        if let Some(Event::Stored {
            pages, token_ids, ..
        }) = self.pending.last_mut()
            && pages.last() == Some(&parent_identity)
        {
            pages.push(identity);
            token_ids.extend_from_slice(tokens);
        } else {
            self.pending.push(Event::Stored {
                pages: vec![identity],
                parent: matches!(parent, EventParent::Page(_)).then_some(parent_identity),
                token_ids: tokens.to_vec(),
            });
        }
        self.count();
    }

    pub(crate) fn removed(&mut self, page: PageId) {
        let identity = self.identities[page.0 as usize];
        if let Some(Event::Removed(pages)) = self.pending.last_mut() {
            pages.push(identity);
        } else {
            self.pending.push(Event::Removed(vec![identity]));
        }
        self.count();
    }

    pub(crate) fn cleared(&mut self) {
        // What was stored and removed before does not matter any more.
        self.pending = vec![Event::Cleared];
        self.pending_pages = 0;
    }

    fn count(&mut self) {
        self.pending_pages += 1;
        if self.pending_pages > MOST_PENDING {
            self.cleared();
        }
    }

    /// The batch of all events since the last one; none when nothing happened.
    pub(crate) fn take(&mut self, form: &EventForm<'_>, page_size: u64) -> Option<Vec<u8>> {
        if self.pending.is_empty() {
            return None;
        }
        let pending = core::mem::take(&mut self.pending);
        self.pending_pages = 0;
        let mut out = Writer::default();
        out.array(3);
        out.float(form.timestamp);
        out.array(pending.len());
        for event in &pending {
            write(&mut out, event, form, page_size);
        }
        match form.data_parallel_rank {
            Some(rank) => out.number(rank.into()),
            None => out.nil(),
        }
        Some(out.bytes)
    }
}

fn write(out: &mut Writer, event: &Event, form: &EventForm<'_>, page_size: u64) {
    match event {
        Event::Stored {
            pages,
            parent,
            token_ids,
        } => {
            out.map(8);
            out.entry("type").text("BlockStored");
            out.entry("block_hashes");
            hashes(out, pages, form);
            out.entry("parent_block_hash");
            match parent {
                Some(parent) => hash(out, parent, form),
                None => out.nil(),
            }
            out.entry("token_ids").array(token_ids.len());
            for &token in token_ids {
                out.number(token.into());
            }
            out.entry("block_size").number(page_size);
            out.entry("lora_id").nil();
            out.entry("medium").text(form.medium);
            out.entry("lora_name").nil();
        }
        Event::Removed(pages) => {
            out.map(3);
            out.entry("type").text("BlockRemoved");
            out.entry("block_hashes");
            hashes(out, pages, form);
            out.entry("medium").text(form.medium);
        }
        Event::Cleared => {
            out.map(1);
            out.entry("type").text("AllBlocksCleared");
        }
    }
}

fn hashes(out: &mut Writer, pages: &[Identity], form: &EventForm<'_>) {
    out.array(pages.len());
    for page in pages {
        hash(out, page, form);
    }
}

fn hash(out: &mut Writer, page: &Identity, form: &EventForm<'_>) {
    if form.full_hashes {
        out.binary(page);
    } else {
        let (_, last) = page.as_rchunks::<8>();
        out.number(last.last().map_or(0, |bytes| u64::from_be_bytes(*bytes)));
    }
}
