//! The prefix tree: which published page continues which.
//!
//! A node is a published page: a page's worth of tokens after a parent, which is another node or a salt. Nodes are
//! numbered by serials that are never reused, and a child names its parent by serial: when a page is given up and used
//! again, no child of the old node can be taken for a child of the new one. A page matches when its parent's serial is
//! that of the page matched before it and its tokens are equal; the hash only says where to look.
//!
//! The hash of a node covers the whole chain up to it, so the hashes of a prompt can be computed ahead of the lookups,
//! which then do not wait for one another.

use crate::events::{EventParent, Events};
use crate::hash::TokenHasher;
use crate::index::Index;
use crate::pool::PageId;
use crate::salts::{SaltId, Salts};

/// What a page comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    Salt(SaltId),
    Page(PageId),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    /// 0 when the page is not published.
    pub(crate) serial: u64,
    pub(crate) parent_serial: u64,
    pub(crate) hash: u64,
    pub(crate) parent: Parent,
}

const UNPUBLISHED: Node = Node {
    serial: 0,
    parent_serial: 0,
    hash: 0,
    parent: Parent::Page(PageId(u32::MAX)),
};

/// A place in the tree: the end of a chain of nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor {
    /// The node or salt at the end.
    pub(crate) last: Parent,
    /// Its serial, which tells whether that node is still there.
    pub(crate) serial: u64,
    hash: u64,
    /// Nodes in the chain.
    pub(crate) pages: usize,
}

/// What became of a page that was to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is a node now, or was the right one already.
    Own,
    /// The same tokens after the same parent are published on another page.
    Elsewhere,
    /// The chain it would continue has lost its last node.
    Nowhere,
}

#[derive(Debug)]
pub(crate) struct Prefix {
    page_size: usize,
    hasher: TokenHasher,
    pub(crate) index: Index,
    /// Of every page up to the highest published one.
    pub(crate) nodes: Vec<Node>,
    /// `page_size` tokens for each of `nodes`.
    tokens: Vec<u32>,
    pub(crate) salts: Salts,
    last_serial: u64,
    /// None when nobody wants to know.
    pub(crate) events: Option<Events>,
}

/// Hashes computed ahead of their lookups.
const AHEAD: usize = 16;

impl Prefix {
    pub(crate) fn new(page_size: usize, hasher: TokenHasher) -> Self {
        Self {
            page_size,
            hasher,
            index: Index::default(),
            nodes: Vec::new(),
            tokens: Vec::new(),
            salts: Salts::default(),
            last_serial: 0,
            events: None,
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    pub(crate) fn hold_salt(&mut self, bytes: &[u8]) -> SaltId {
        let root = self.next_serial();
        self.salts.hold(bytes, root)
    }

    /// The empty chain of a salt that the caller holds.
    pub(crate) fn root(&self, salt: SaltId) -> Cursor {
        let serial = self.salts.get(salt).map_or(0, |salt| salt.root);
        Cursor {
            last: Parent::Salt(salt),
            serial,
            hash: self.hasher.root(serial),
            pages: 0,
        }
    }

    /// The chain that ends with the node of `page`, its `pages`-th.
    pub(crate) fn cursor_at(&self, page: PageId, pages: usize) -> Cursor {
        let node = self.nodes[page.0 as usize];
        Cursor {
            last: Parent::Page(page),
            serial: node.serial,
            hash: node.hash,
            pages,
        }
    }

    /// The node of a published page.
    pub(crate) fn node(&self, page: PageId) -> Option<Node> {
        let node = self.nodes.get(page.0 as usize)?;
        (node.serial != 0).then_some(*node)
    }

    pub(crate) fn is_published(&self, page: PageId) -> bool {
        self.node(page).is_some()
    }

    /// Whether the chain's last node is still there.
    pub(crate) fn is_alive(&self, cursor: &Cursor) -> bool {
        self.is_serial_alive(cursor.last, cursor.serial)
    }

    pub(crate) fn is_serial_alive(&self, parent: Parent, serial: u64) -> bool {
        match parent {
            Parent::Salt(salt) => self.salts.get(salt).is_some_and(|salt| salt.root == serial),
            Parent::Page(page) => {
                let node = self.nodes.get(page.0 as usize);
                serial != 0 && node.is_some_and(|node| node.serial == serial)
            }
        }
    }

    pub(crate) fn tokens_of(&self, page: PageId) -> &[u32] {
        &self.tokens[page.0 as usize * self.page_size..][..self.page_size]
    }

    /// The hash of the chain that ends with a node or salt that is there.
    pub(crate) fn hash_of(&self, end: Parent) -> u64 {
        match end {
            Parent::Salt(salt) => self.root(salt).hash,
            Parent::Page(page) => self.nodes[page.0 as usize].hash,
        }
    }

    pub(crate) fn chained(&self, parent: u64, tokens: &[u32]) -> u64 {
        self.hasher.chain(parent, tokens)
    }

    /// The node after `parent_serial` with these tokens.
    pub(crate) fn find(&self, hash: u64, parent_serial: u64, tokens: &[u32]) -> Option<PageId> {
        let is_it = |page: u32| {
            self.nodes[page as usize].parent_serial == parent_serial
                && self.tokens_of(PageId(page)) == tokens
        };
        self.index.find(hash, is_it).map(PageId)
    }

    /// Follows the chain from a salt as far as whole pages of `tokens` are published, at most `limit` of them.
    pub(crate) fn longest(&self, root: Cursor, tokens: &[u32], limit: usize) -> Vec<PageId> {
        let limit = limit.min(tokens.len() / self.page_size);
        let mut pages = Vec::new();
        let mut serial = root.serial;
        let mut hash = root.hash;
        let mut hashes = [0; AHEAD];
        for group in tokens[..limit * self.page_size].chunks(AHEAD * self.page_size) {
            for (ahead, tokens) in hashes.iter_mut().zip(group.chunks_exact(self.page_size)) {
                hash = self.hasher.chain(hash, tokens);
                *ahead = hash;
            }
            for (&hash, tokens) in hashes.iter().zip(group.chunks_exact(self.page_size)) {
                let Some(page) = self.find(hash, serial, tokens) else {
                    return pages;
                };
                serial = self.nodes[page.0 as usize].serial;
                pages.push(page);
            }
        }
        pages
    }

    /// Makes `page`, which holds `tokens`, the next node of the chain, or moves the cursor to the node that is already
    /// there.
    pub(crate) fn publish(
        &mut self,
        cursor: &mut Cursor,
        page: PageId,
        tokens: &[u32],
    ) -> Published {
        if !self.is_alive(cursor) {
            return Published::Nowhere;
        }
        let hash = self.hasher.chain(cursor.hash, tokens);
        let found = self.find(hash, cursor.serial, tokens);
        // A page is one node at most. It can be the node of a chain that was broken since; that one is left alone.
        let (at, outcome) = match found {
            Some(found) if found == page => (page, Published::Own),
            Some(found) => (found, Published::Elsewhere),
            None if self.is_published(page) => (page, Published::Elsewhere),
            None => {
                self.add(cursor, page, tokens, hash);
                (page, Published::Own)
            }
        };
        *cursor = self.cursor_at(at, cursor.pages + 1);
        outcome
    }

    fn add(&mut self, cursor: &Cursor, page: PageId, tokens: &[u32], hash: u64) {
        let at = page.0 as usize;
        if self.nodes.len() <= at {
            self.nodes.resize(at + 1, UNPUBLISHED);
            self.tokens.resize((at + 1) * self.page_size, 0);
        }
        self.tokens[at * self.page_size..][..self.page_size].copy_from_slice(tokens);
        let serial = self.next_serial();
        self.nodes[at] = Node {
            serial,
            parent_serial: cursor.serial,
            hash,
            parent: cursor.last,
        };
        if let Parent::Salt(salt) = cursor.last {
            self.salts.share(salt);
        }
        if let Some(events) = &mut self.events {
            let parent = match cursor.last {
                Parent::Salt(salt) => {
                    EventParent::Salt(self.salts.get(salt).map_or(&[], |salt| salt.bytes()))
                }
                Parent::Page(parent) => EventParent::Page(parent),
            };
            events.stored(page, &parent, tokens);
        }
        let nodes = &self.nodes;
        self.index
            .insert(hash, page.0, |other| nodes[other as usize].hash);
    }

    /// A page is matched no more.
    pub(crate) fn unpublish(&mut self, page: PageId) {
        let node = core::mem::replace(&mut self.nodes[page.0 as usize], UNPUBLISHED);
        // The removed entry's own hash is known; that of others is in their nodes.
        let nodes = &self.nodes;
        let removed = self
            .index
            .remove(node.hash, page.0, |other| nodes[other as usize].hash);
        debug_assert!(removed, "page {} was not in the index", page.0);
        if let Some(events) = &mut self.events {
            events.removed(page);
        }
        if let Parent::Salt(salt) = node.parent {
            self.salts.release(salt);
        }
    }

    /// No page is matched any more.
    pub(crate) fn clear(&mut self) {
        for at in 0..self.nodes.len() {
            let node = core::mem::replace(&mut self.nodes[at], UNPUBLISHED);
            if let (Parent::Salt(salt), true) = (node.parent, node.serial != 0) {
                self.salts.release(salt);
            }
        }
        self.index.clear();
        if let Some(events) = &mut self.events {
            events.cleared();
        }
    }
}
