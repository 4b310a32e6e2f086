//! Salts: each is known by a number while a sequence or a published page uses it.

use std::collections::HashMap;

/// The place of a salt in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SaltId(u32);

#[derive(Debug)]
pub(crate) struct Salt {
    bytes: Box<[u8]>,
    /// The serial number that first pages of this salt have as their parent's.
    pub(crate) root: u64,
    /// Open sequences with this salt, and its published first pages.
    pub(crate) users: u64,
}

/// The salts in use. Two different byte strings never have the same root.
#[derive(Debug, Default)]
pub(crate) struct Salts {
    by_bytes: HashMap<Box<[u8]>, SaltId>,
    entries: Vec<Option<Salt>>,
    free: Vec<SaltId>,
}

impl Salts {
    /// One user more of these bytes; `root` becomes their root when they are new.
    pub(crate) fn hold(&mut self, bytes: &[u8], root: u64) -> SaltId {
        if let Some(&id) = self.by_bytes.get(bytes) {
            self.share(id);
            return id;
        }
        let salt = Salt {
            bytes: bytes.into(),
            root,
            users: 1,
        };
        let id = if let Some(id) = self.free.pop() {
            self.entries[id.0 as usize] = Some(salt);
            id
        } else {
            self.entries.push(Some(salt));
            SaltId(self.entries.len() as u32 - 1)
        };
        self.by_bytes.insert(bytes.into(), id);
        id
    }

    pub(crate) fn share(&mut self, id: SaltId) {
        if let Some(salt) = &mut self.entries[id.0 as usize] {
            salt.users += 1;
        }
    }

    pub(crate) fn release(&mut self, id: SaltId) {
        let entry = &mut self.entries[id.0 as usize];
        if let Some(salt) = entry {
            salt.users -= 1;
            if salt.users == 0 {
                self.by_bytes.remove(&salt.bytes);
                *entry = None;
                self.free.push(id);
            }
        }
    }

    pub(crate) fn get(&self, id: SaltId) -> Option<&Salt> {
        self.entries.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SaltId, &Salt)> {
        let numbered = self.entries.iter().enumerate();
        numbered.filter_map(|(at, salt)| Some((SaltId(at as u32), salt.as_ref()?)))
    }
}

impl Salt {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Salts;

    #[test]
    fn a_salt_without_users_is_forgotten() {
        let mut salts = Salts::default();
        let one = salts.hold(b"one", 1);
        let two = salts.hold(b"", 2);
        assert_eq!(salts.hold(b"one", 3), one);
        assert_ne!(one, two);
        salts.release(one);
        assert_eq!(salts.get(one).map(|salt| salt.root), Some(1));
        salts.release(one);
        assert!(salts.get(one).is_none());
        assert_eq!(salts.hold(b"one", 4), one);
        assert_eq!(
            salts.get(one).map(|salt| (salt.root, salt.bytes())),
            Some((4, &b"one"[..]))
        );
        assert_eq!(salts.iter().count(), 2);
    }
}
