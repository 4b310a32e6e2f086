//! Parallel regions whose tasks run with a tier's instructions, the memory they use, and the places they write.

use std::cell::Cell;

use super::arithmetic::Arithmetic;
use crate::pool;
use crate::tier::{Kind, Tier};

/// Multiplications that are worth a thread.
const WORK_PER_THREAD: usize = 1 << 16;

/// A region's tasks.
pub(super) trait Work: Sync {
    /// Does task `number`.
    ///
    /// # Safety
    /// The tier's instructions are there.
    unsafe fn task<L: Arithmetic>(&self, number: usize);
}

/// A region's tasks on a tier with dot products of bfloat16 pairs.
#[cfg(target_arch = "x86_64")]
pub(super) trait PairWork: Sync {
    /// Does task `number`.
    ///
    /// # Safety
    /// AVX-512 F, BW, DQ, VL, VBMI and BF16 are there.
    unsafe fn task(&self, number: usize);
}

/// Does all tasks, on as many threads as `multiplications` are worth.
///
/// # Safety
/// The tier has dot products of bfloat16 pairs.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn for_each_pairs<W: PairWork>(
    num_threads: usize,
    multiplications: usize,
    tasks: usize,
    work: &W,
) {
    let threads = num_threads.min(multiplications / WORK_PER_THREAD).max(1);
    // SAFETY: as the caller promises.
    pool::for_each(threads, tasks, &|number| unsafe { on_pairs(work, number) });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
unsafe fn on_pairs<W: PairWork>(work: &W, number: usize) {
    // SAFETY: the instructions are there, as this function's own features say.
    unsafe { work.task(number) }
}

/// Does all tasks, on as many threads as `multiplications` are worth.
pub(super) fn for_each<W: Work>(
    tier: Tier,
    num_threads: usize,
    multiplications: usize,
    tasks: usize,
    work: &W,
) {
    let threads = num_threads.min(multiplications / WORK_PER_THREAD).max(1);
    pool::for_each(threads, tasks, &|number| match tier.0 {
        // SAFETY: scalar lanes need no instructions beyond the target's.
        Kind::Scalar => unsafe { work.task::<crate::scalar::Scalar<8>>(number) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a tier of this kind is made only where the processor has its instructions.
        Kind::Avx2 => unsafe { on_avx2(work, number) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx512 | Kind::Avx512Bf16 => unsafe { on_avx512(work, number) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Kind::Neon => unsafe { on_neon(work, number) },
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn on_avx2<W: Work>(work: &W, number: usize) {
    // SAFETY: the instructions are there, as this function's own features say.
    unsafe { work.task::<crate::avx2::Avx2>(number) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq")]
unsafe fn on_avx512<W: Work>(work: &W, number: usize) {
    // SAFETY: the instructions are there, as this function's own features say.
    unsafe { work.task::<crate::avx512::Avx512>(number) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn on_neon<W: Work>(work: &W, number: usize) {
    // SAFETY: the instructions are there, as this function's own features say.
    unsafe { work.task::<crate::neon::Neon>(number) }
}

/// Memory that tasks of a region write, each its own part.
pub(super) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: whoever reads or writes through it promises that no other thread writes the same elements.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(start: *mut T) -> Self {
        Self(start)
    }

    /// The address of an element.
    #[inline(always)]
    pub(super) fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

thread_local! {
    static KEPT: [Cell<Vec<f32>>; 2] = const { [Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

/// Numbers of a line of the cache.
const LINE: usize = 16;

/// Which of a thread's two memories: a region's caller holds one while its own tasks use the other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holder {
    Caller,
    Task,
}

/// Memory of this thread, kept from call to call: fresh memory would cost a page fault every 4 KB.
pub(super) struct Scratch {
    holder: Holder,
    memory: Vec<f32>,
    taken: usize,
}

impl Scratch {
    /// At least `size` numbers, whatever was left in them; the first lies at the beginning of a line of the cache.
    pub(super) fn new(holder: Holder, size: usize) -> Self {
        let mut memory = KEPT.with(|kept| kept[holder as usize].take());
        if memory.len() < size + LINE {
            memory = vec![0.0; size + LINE];
        }
        let start = memory.as_ptr().addr() / size_of::<f32>();
        Self {
            holder,
            memory,
            taken: start.next_multiple_of(LINE) - start,
        }
    }

    /// The next `size` numbers.
    ///
    /// # Panics
    /// When there are no more as many.
    pub(super) fn part(&mut self, size: usize) -> *mut f32 {
        let part = self.memory[self.taken..][..size].as_mut_ptr();
        self.taken += size;
        part
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        KEPT.with(|kept| kept[self.holder as usize].set(memory));
    }
}
