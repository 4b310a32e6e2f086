//! Memory of the kernels: numbers that begin with a line of the cache, and slices that tasks write together.

use std::cell::Cell;
use std::marker::PhantomData;

use abyssal_quant::Element;

/// Numbers of a line of the cache.
const LINE: usize = 16;

/// A line of the cache. A register that is loaded across two costs twice.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Numbers of which the first begins a line of the cache.
#[derive(Debug, Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// So many numbers, whatever they are.
    pub(crate) fn some(&mut self, size: usize) -> &mut [f32] {
        let lines = size.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LINE]));
        }
        // SAFETY: a line is sixteen numbers and nothing else, and there are enough lines.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), size) }
    }

    /// The first numbers of those that there are.
    pub(crate) fn first(&self, size: usize) -> &[f32] {
        assert!(size <= self.0.len() * LINE);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size) }
    }
}

thread_local! {
    static BUFFERS: Cell<Vec<Aligned>> = Cell::default();
}

/// Memory that a thread keeps from one use to the next: fresh memory would cost more than the products.
///
/// An object rather than a function that calls one: code in a closure would not be compiled for a tier's instructions.
#[derive(Debug)]
pub(crate) struct Buffer(Aligned);

impl Buffer {
    /// Memory that nobody on this thread uses now.
    pub(crate) fn take() -> Self {
        let mut buffers = BUFFERS.take();
        let buffer = buffers.pop().unwrap_or_default();
        BUFFERS.set(buffers);
        Self(buffer)
    }

    /// So many numbers, whatever they are.
    pub(crate) fn some(&mut self, size: usize) -> &mut [f32] {
        self.0.some(size)
    }

    /// So many numbers of a type, whatever they are.
    pub(crate) fn numbers<T: Element>(&mut self, size: usize) -> &mut [T] {
        let bytes = self.some((size * size_of::<T>()).div_ceil(size_of::<f32>()));
        // SAFETY: the trait's types are bits of two or four bytes, of which all are numbers; a line's beginning is aligned
        // for them, and there are enough.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), size) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut buffers = BUFFERS.take();
        buffers.push(std::mem::take(&mut self.0));
        BUFFERS.set(buffers);
    }
}

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
