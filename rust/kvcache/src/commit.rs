//! Committing: what is computed, and what of it may be shared.

use crate::cache::{PageCache, check_length};
use crate::pages::Pages;
use crate::prefix::Published;
use crate::sequence::{Sequence, Sharing};
use crate::slots::Handle;
use crate::{Error, Result};

impl PageCache {
    /// Says that the first `computed[i]` tokens of sequence `handles[i]` are computed, and with `publish[i]` that they
    /// may be shared with later requests: pages full of such tokens, as far as `open` told which these are, can be
    /// matched from now on.
    ///
    /// # Errors
    /// [`Error::Computed`], [`Error::Lengths`], [`Error::StaleHandle`] or [`Error::RepeatedHandle`]; then nothing has
    /// changed.
    pub fn commit(&mut self, handles: &[Handle], computed: &[u64], publish: &[bool]) -> Result<()> {
        self.commit_rows(handles, computed, publish, None)
    }

    /// As [`PageCache::commit`], and tells the ids of the tokens that neither `open` nor an earlier commit told:
    /// for each sequence those up to `computed[i]`, one sequence's after the other's.
    ///
    /// # Errors
    /// As [`PageCache::commit`], and [`Error::TokenIds`] when the number of ids differs.
    pub fn commit_tokens(
        &mut self,
        handles: &[Handle],
        computed: &[u64],
        publish: &[bool],
        token_ids: &[u32],
    ) -> Result<()> {
        self.commit_rows(handles, computed, publish, Some(token_ids))
    }

    /// How many tokens such a commit would say to be computed; those of handles that name nothing are left out.
    pub fn uncommitted(&self, handles: &[Handle], computed: &[u64]) -> u64 {
        let new = handles
            .iter()
            .zip(computed)
            .filter_map(|(&handle, &given)| {
                Some(given.saturating_sub(self.slots.get(handle).ok()?.computed))
            });
        new.fold(0, u64::saturating_add)
    }

    fn commit_rows(
        &mut self,
        handles: &[Handle],
        computed: &[u64],
        publish: &[bool],
        token_ids: Option<&[u32]>,
    ) -> Result<()> {
        check_length("computed", handles.len(), computed.len())?;
        check_length("publish", handles.len(), publish.len())?;
        self.slots.check_distinct(handles)?;
        let mut expected = 0_u64;
        for (&handle, &given) in handles.iter().zip(computed) {
            let sequence = self.slots.get(handle)?;
            let (computed, reserved) = (sequence.computed, sequence.reserved);
            if !(computed..=reserved).contains(&given) {
                return Err(Error::Computed {
                    given,
                    computed,
                    reserved,
                });
            }
            expected = expected.saturating_add(sequence.ids_missing(given));
        }
        if let Some(ids) = token_ids
            && ids.len() as u64 != expected
        {
            return Err(Error::TokenIds {
                given: ids.len(),
                expected,
            });
        }
        let mut ids = token_ids.unwrap_or_default();
        for ((&handle, &given), &publish) in handles.iter().zip(computed).zip(publish) {
            let sequence = self.slots.get_mut(handle)?;
            if token_ids.is_some() {
                let (own, others) = ids.split_at(sequence.ids_missing(given) as usize);
                sequence.learn(own);
                ids = others;
            }
            sequence.computed = given;
            if publish {
                sequence.published = given;
            }
            link(sequence, &mut self.pages, self.page_size);
        }
        Ok(())
    }
}

/// Publishes the sequence's pages that became full of published, known tokens.
fn link(sequence: &mut Sequence, pages: &mut Pages, page_size: u64) {
    let ready = sequence.published.min(sequence.end_known());
    while sequence.may_publish() && (sequence.cursor.pages as u64 + 1) * page_size <= ready {
        let place = sequence.cursor.pages;
        let start = (place as u64 * page_size - sequence.first_known) as usize;
        let tokens = &sequence.known[start..][..page_size as usize];
        match pages
            .prefix
            .publish(&mut sequence.cursor, sequence.pages[place], tokens)
        {
            Published::Own => {}
            Published::Elsewhere => sequence.sharing = Sharing::Elsewhere,
            Published::Nowhere => sequence.end_sharing(Sharing::Ended),
        }
    }
    sequence.forget_published(page_size);
}
