//! Ids of parts of texts, put end to end in the order of the parts, whichever is done first.
//!
//! What is done before its turn waits: little, where parts take about as long.

use std::collections::BTreeMap;

use crate::batch::Part;
use crate::error::{Error, Result};
use crate::simd;

/// The ids of all texts, as far as they are known.
#[derive(Debug)]
pub(crate) struct Ordered<'a> {
    parts: &'a [Part],
    /// Parts before this one have their place.
    placed: usize,
    waiting: BTreeMap<usize, Result<Vec<u32>>>,
    lists: Vec<Vec<u32>>,
    /// Memory to use again.
    free: Vec<Vec<u32>>,
    /// The first error, and the text that it is about.
    error: Option<(usize, Error)>,
}

impl<'a> Ordered<'a> {
    /// Nothing yet of `texts` texts that are made of `parts`.
    pub(crate) fn new(parts: &'a [Part], texts: usize) -> Self {
        Self {
            parts,
            placed: 0,
            waiting: BTreeMap::new(),
            lists: vec![Vec::new(); texts],
            free: Vec::new(),
            error: None,
        }
    }

    /// An empty list for the ids of one more part.
    pub(crate) fn scratch(&mut self) -> Vec<u32> {
        self.free.pop().unwrap_or_default()
    }

    /// Takes the ids of a part, or what is wrong with it.
    pub(crate) fn put(&mut self, part: usize, result: Result<Vec<u32>>) {
        self.waiting.insert(part, result);
        while let Some(result) = self.waiting.remove(&self.placed) {
            let part = &self.parts[self.placed];
            match result {
                Ok(ids) => self.append(part, ids),
                Err(error) => {
                    // Nothing passes this part any more, so there is no second error.
                    self.error = Some((part.text, error));
                    return;
                }
            }
            self.placed += 1;
        }
    }

    fn append(&mut self, part: &Part, mut ids: Vec<u32>) {
        let list = &mut self.lists[part.text];
        if part.bytes.len() == part.of {
            *list = ids;
            return;
        }
        if list.capacity() - list.len() < ids.len() {
            grow(list, ids.len(), part);
        }
        list.extend_from_slice(&ids);
        ids.clear();
        self.free.push(ids);
    }

    /// The ids of every text.
    ///
    /// # Errors
    /// The place of the first text with an error, and the error; [`Error::Interrupted`] when parts are missing.
    pub(crate) fn finish(self) -> std::result::Result<Vec<Vec<u32>>, (usize, Error)> {
        match (self.error, self.parts.get(self.placed)) {
            (Some(error), _) => Err(error),
            (None, Some(part)) => Err((part.text, Error::Interrupted)),
            (None, None) => Ok(self.lists),
        }
    }
}

/// Makes room in a text's list for `more` ids, those of `part`, and for the ids of what follows: as many for each byte
/// as so far, and half as many again, because room that stays empty takes no memory and too little is a copy of all.
fn grow(list: &mut Vec<u32>, more: usize, part: &Part) {
    let known = list.len() + more;
    let expected = known as f64 * part.of as f64 / part.bytes.end.max(1) as f64;
    let mut larger = Vec::new();
    if larger.try_reserve_exact((expected * 1.5) as usize).is_err() {
        // A system that promises no more than it has.
        list.reserve(more);
        return;
    }
    simd::advise_large_pages(larger.spare_capacity_mut());
    larger.extend_from_slice(list);
    *list = larger;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Part> {
        let part = |text, bytes: std::ops::Range<usize>, of| Part { text, bytes, of };
        vec![
            part(0, 0..5, 5),
            part(1, 0..4, 10),
            part(1, 4..8, 10),
            part(1, 8..10, 10),
        ]
    }

    #[test]
    fn parts_find_their_place_in_any_order() {
        let parts = parts();
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let mut ordered = Ordered::new(&parts, 3);
            for part in order {
                let mut ids = ordered.scratch();
                assert!(ids.is_empty());
                ids.extend([part as u32; 2]);
                ordered.put(part, Ok(ids));
            }
            let expected = vec![vec![0, 0], vec![1, 1, 2, 2, 3, 3], vec![]];
            assert_eq!(ordered.finish(), Ok(expected));
        }
    }

    #[test]
    fn a_text_that_grows_denser_than_its_beginning_gets_more_room() {
        let bytes = 1000;
        let parts: Vec<_> = (0..10)
            .map(|part| Part {
                text: 0,
                bytes: part * 100..(part + 1) * 100,
                of: bytes,
            })
            .collect();
        let mut ordered = Ordered::new(&parts, 1);
        let mut expected = Vec::new();
        for part in 0..10 {
            let ids = vec![part as u32; part * part];
            expected.extend_from_slice(&ids);
            ordered.put(part, Ok(ids));
        }
        assert_eq!(ordered.finish(), Ok(vec![expected]));
    }

    #[test]
    fn the_first_error_in_order_counts_whatever_comes_first() {
        let parts = parts();
        let wrong = |byte| Err(Error::MissingByte { byte });
        let mut ordered = Ordered::new(&parts, 2);
        ordered.put(3, wrong(3));
        ordered.put(1, wrong(1));
        ordered.put(2, Ok(vec![2]));
        ordered.put(0, Ok(vec![0]));
        assert_eq!(ordered.finish(), Err((1, Error::MissingByte { byte: 1 })));
    }

    #[test]
    fn missing_parts_are_an_interruption() {
        let parts = parts();
        let mut ordered = Ordered::new(&parts, 2);
        ordered.put(0, Ok(vec![0]));
        ordered.put(2, Ok(vec![2]));
        assert_eq!(ordered.finish(), Err((1, Error::Interrupted)));
    }
}
