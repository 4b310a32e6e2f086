//! Slots of sequences, named by handles that carry a generation.

use crate::sequence::Sequence;
use crate::{Error, Result};

/// Names one open sequence of one cache. Never reused: a closed sequence's handle stays invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// The generation is 31 bits wide, so that a handle is never negative as an `i64`.
const LAST_GENERATION: u32 = i32::MAX as u32;

impl Handle {
    fn new(slot: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | slot as u64)
    }

    fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u64 {
        self.0 >> 32
    }
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) generation: u32,
    /// The call that last named this slot: finds a handle given twice in one call.
    mark: u64,
    pub(crate) sequence: Option<Sequence>,
}

#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) entries: Vec<Slot>,
    pub(crate) free: Vec<u32>,
    epoch: u64,
}

impl Slots {
    pub(crate) fn insert(&mut self, sequence: Sequence) -> Handle {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.entries[index as usize];
            slot.sequence = Some(sequence);
            return Handle::new(index as usize, slot.generation);
        }
        // Generations start at 1: handle 0 names nothing.
        self.entries.push(Slot {
            generation: 1,
            mark: 0,
            sequence: Some(sequence),
        });
        Handle::new(self.entries.len() - 1, 1)
    }

    /// The slot of an open sequence.
    pub(crate) fn index(&self, handle: Handle) -> Result<usize> {
        let index = handle.slot();
        match self.entries.get(index) {
            Some(slot)
                if slot.sequence.is_some() && u64::from(slot.generation) == handle.generation() =>
            {
                Ok(index)
            }
            _ => Err(Error::StaleHandle { handle: handle.0 }),
        }
    }

    /// Checks that the handles name distinct open sequences.
    pub(crate) fn check_distinct(&mut self, handles: &[Handle]) -> Result<()> {
        self.epoch += 1;
        for &handle in handles {
            let index = self.index(handle)?;
            if core::mem::replace(&mut self.entries[index].mark, self.epoch) == self.epoch {
                return Err(Error::RepeatedHandle { handle: handle.0 });
            }
        }
        Ok(())
    }

    /// The open sequence of a handle.
    pub(crate) fn get(&self, handle: Handle) -> Result<&Sequence> {
        let slot = &self.entries[self.index(handle)?];
        let stale = Error::StaleHandle { handle: handle.0 };
        slot.sequence.as_ref().ok_or(stale)
    }

    /// The open sequence of a handle, to change.
    pub(crate) fn get_mut(&mut self, handle: Handle) -> Result<&mut Sequence> {
        let index = self.index(handle)?;
        let stale = Error::StaleHandle { handle: handle.0 };
        self.entries[index].sequence.as_mut().ok_or(stale)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.entries
            .iter_mut()
            .filter_map(|slot| slot.sequence.as_mut())
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Result<Sequence> {
        let index = self.index(handle)?;
        let slot = &mut self.entries[index];
        let sequence = slot
            .sequence
            .take()
            .ok_or(Error::StaleHandle { handle: handle.0 })?;
        // A slot whose generations are used up is never given out again.
        if slot.generation < LAST_GENERATION {
            slot.generation += 1;
            self.free.push(index as u32);
        }
        Ok(sequence)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.entries
            .iter()
            .filter_map(|slot| slot.sequence.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::{Handle, LAST_GENERATION, Slots};
    use crate::hash::TokenHasher;
    use crate::prefix::Prefix;
    use crate::sequence::Sequence;

    fn sequence() -> Sequence {
        let mut prefix = Prefix::new(1, TokenHasher::new());
        let salt = prefix.hold_salt(b"");
        Sequence::new(salt, prefix.root(salt))
    }

    #[test]
    fn a_reused_slot_has_a_new_handle() {
        let mut slots = Slots::default();
        let first = slots.insert(sequence());
        assert!(slots.remove(first).is_ok());
        let second = slots.insert(sequence());
        assert_eq!(first.slot(), second.slot());
        assert_ne!(first, second);
        assert!(slots.index(first).is_err() && slots.index(second).is_ok());
    }

    #[test]
    fn a_slot_with_its_generations_used_up_is_retired() {
        let mut slots = Slots::default();
        slots.insert(sequence());
        slots.entries[0].generation = LAST_GENERATION;
        let last = Handle::new(0, LAST_GENERATION);
        assert!(i64::try_from(last.0).is_ok());
        assert!(slots.remove(last).is_ok());
        assert_eq!(slots.insert(sequence()).slot(), 1);
        assert!(slots.index(last).is_err());
    }
}
