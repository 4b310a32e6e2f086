//! The order in which reusable pages are given up: a doubly linked list in one flat array.

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    previous: u32,
    next: u32,
}

const UNLINKED: Link = Link {
    previous: NONE,
    next: NONE,
};

/// Pages that nobody holds and that can still be matched, the one to give up first at the front.
#[derive(Debug)]
pub(crate) struct Lru {
    links: Vec<Link>,
    front: u32,
    back: u32,
    len: usize,
}

impl Default for Lru {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            front: NONE,
            back: NONE,
            len: 0,
        }
    }
}

impl Lru {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (self.front != NONE).then_some(self.front)
    }

    /// Puts a page that is not in the list at the end.
    pub(crate) fn push(&mut self, page: u32) {
        if self.links.len() <= page as usize {
            self.links.resize(page as usize + 1, UNLINKED);
        }
        self.links[page as usize] = Link {
            previous: self.back,
            next: NONE,
        };
        match self.back {
            NONE => self.front = page,
            back => self.links[back as usize].next = page,
        }
        self.back = page;
        self.len += 1;
    }

    /// Takes out a page that is in the list.
    pub(crate) fn remove(&mut self, page: u32) {
        let Link { previous, next } = self.links[page as usize];
        match previous {
            NONE => self.front = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => self.back = previous,
            next => self.links[next as usize].previous = previous,
        }
        self.links[page as usize] = UNLINKED;
        self.len -= 1;
    }

    /// The pages from front to back; ends early if a link leads nowhere, and never runs in circles.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let first = self.front();
        std::iter::successors(first, |&page| {
            let next = self.links.get(page as usize)?.next;
            (next != NONE).then_some(next)
        })
        .take(self.links.len())
    }

    /// Whether every link backwards is the reverse of one forwards.
    pub(crate) fn is_consistent(&self) -> bool {
        let mut previous = NONE;
        for page in self.iter() {
            match self.links.get(page as usize) {
                Some(link) if link.previous == previous => previous = page,
                _ => return false,
            }
        }
        previous == self.back && self.iter().count() == self.len
    }
}

#[cfg(test)]
mod tests {
    use super::Lru;

    #[test]
    fn random_pushes_and_removals_keep_the_order() {
        let (mut lru, mut order) = (Lru::default(), Vec::new());
        let mut state = 3_u64;
        for _ in 0..5000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let page = (state >> 33) as u32 % 20;
            if let Some(at) = order.iter().position(|&other| other == page) {
                order.remove(at);
                lru.remove(page);
            } else {
                order.push(page);
                lru.push(page);
            }
            assert_eq!(lru.iter().collect::<Vec<_>>(), order);
            assert_eq!(
                (lru.len(), lru.front()),
                (order.len(), order.first().copied())
            );
            assert!(lru.is_consistent());
        }
        lru.len += 1;
        assert!(!lru.is_consistent());
    }
}
