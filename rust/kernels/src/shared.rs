//! A slice that the tasks of a parallel region write, each its own places.

use std::marker::PhantomData;

/// A mutable slice, borrowed for the length of a region.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out disjoint parts only, as the callers of `slice` promise.
unsafe impl<T: Send> Send for Places<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Places<'_, T> {}

impl<'a, T> Places<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrowed: PhantomData,
        }
    }

    /// The places from `first` on.
    ///
    /// # Safety
    /// Nobody else has any of them while the slice is used.
    #[allow(
        clippy::mut_from_ref,
        reason = "parts are disjoint, as the caller promises"
    )]
    pub(crate) unsafe fn slice(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first <= self.len && count <= self.len - first);
        // SAFETY: inside the slice that this was made from, and nobody else has them, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}
