//! What the cache knows of one sequence.

use crate::pool::PageId;
use crate::prefix::Cursor;
use crate::salts::SaltId;

/// A sequence's pages, how far it is, and its place in the prefix tree.
///
/// Invariants: `pages.len() == reserved.div_ceil(page_size)`; `published <= computed <= reserved`; `cursor` counts the
/// whole pages that are published and whose tokens are known, so no step ever looks at an earlier one again.
///
/// | tokens | meaning |
/// |---|---|
/// | `[0, published)` | computed, and may be shared with other requests |
/// | `[published, computed)` | computed |
/// | `[computed, reserved)` | have room, not computed yet |
/// | `[first_known, first_known + known.len())` | ids are known and not yet stored with a published page |
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) pages: Vec<PageId>,
    /// How often the last page made way for a copy.
    pub(crate) replaced: u64,
    pub(crate) reserved: u64,
    pub(crate) computed: u64,
    pub(crate) published: u64,
    pub(crate) known: Vec<u32>,
    pub(crate) first_known: u64,
    pub(crate) salt: SaltId,
    pub(crate) cursor: Cursor,
    pub(crate) sharing: Sharing,
}

/// How a sequence takes part in the prefix tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// The nodes of its chain are its own pages.
    Own,
    /// Some nodes of its chain are pages that it does not hold: another sequence published the same tokens first.
    Elsewhere,
    /// As `Elsewhere`, and a node that the next page would have continued is gone: nothing is published any more.
    Ended,
    /// Nothing was ever to be published, or the cache was cleared since.
    Never,
}

impl Sequence {
    pub(crate) fn new(salt: SaltId, root: Cursor) -> Self {
        Self {
            pages: Vec::new(),
            replaced: 0,
            reserved: 0,
            computed: 0,
            published: 0,
            known: Vec::new(),
            first_known: 0,
            salt,
            cursor: root,
            sharing: Sharing::Own,
        }
    }

    /// Where the known token ids end.
    pub(crate) fn end_known(&self) -> u64 {
        self.first_known + self.known.len() as u64
    }

    /// Whether token ids are still of use.
    pub(crate) fn may_publish(&self) -> bool {
        matches!(self.sharing, Sharing::Own | Sharing::Elsewhere)
    }

    /// Ids that a commit of `computed` tokens must bring so that all computed tokens are known.
    pub(crate) fn ids_missing(&self, computed: u64) -> u64 {
        computed.saturating_sub(self.end_known())
    }

    /// Takes the ids of the tokens from `end_known` on.
    pub(crate) fn learn(&mut self, ids: &[u32]) {
        if self.may_publish() {
            self.known.extend_from_slice(ids);
        } else {
            self.first_known += ids.len() as u64;
        }
    }

    /// Nothing is published any more, so ids are of no use.
    pub(crate) fn end_sharing(&mut self, sharing: Sharing) {
        self.sharing = sharing;
        self.first_known = self.end_known();
        self.known = Vec::new();
    }

    /// Drops the ids that are stored with published pages, once they are half of all: so the rest moves seldom.
    pub(crate) fn forget_published(&mut self, page_size: u64) {
        let stored = (self.cursor.pages as u64 * page_size).saturating_sub(self.first_known);
        if self.may_publish() && 2 * stored >= self.known.len() as u64 {
            self.known.drain(..stored as usize);
            self.first_known += stored;
        }
    }
}
