//! One resident thread pool per process: short parallel regions at the cost of about a microsecond.
//!
//! ```text
//! caller                                   worker
//! publish the region (a new epoch)         see the epoch change, join unless the region is closed
//! take tasks from the counter              take tasks from the counter
//! close the region                         leave
//! wait until all that joined have left     spin for a while, then park
//! ```
//!
//! A worker that wakes late finds the region closed and never sees its data, so a short region does not wait for
//! anybody. A second caller, while a region is running, does its own tasks alone: tasks never depend on each other, and
//! no result depends on who computed it. Workers start with the first region that needs them; nothing is started by
//! loading the library. After `fork` the child has none of its parent's threads: it starts a pool of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, Thread};

/// Turns of waiting before a worker parks: some tens of microseconds, the pause between the regions of a layer.
const SPINS: u32 = 4000;
/// More threads than this are no use to anybody, and a mistyped number should not start them.
pub const MOST_THREADS: usize = 1024;

/// The state of the region: `epoch << 32 | closed << 31 | joined`.
const CLOSED: u64 = 1 << 31;
const JOINED: u64 = CLOSED - 1;

/// A region's work: called with each task's number, by any thread.
pub type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// What a region's threads share. Written by the caller between regions only.
struct Shared {
    state: AtomicU64,
    left: AtomicU32,
    next: AtomicUsize,
    tasks: AtomicUsize,
    /// A `&Work` on the caller's stack, there while a worker that joined has not left.
    work: AtomicPtr<()>,
    /// Workers with a number below this take part.
    workers: AtomicUsize,
    panicked: AtomicBool,
}

/// One worker as its callers see it.
struct Worker {
    thread: Thread,
    parked: Arc<AtomicBool>,
}

struct Pool {
    process: u32,
    shared: Arc<Shared>,
    /// Held during a region.
    workers: Mutex<Vec<Worker>>,
}

/// Threads that the next region may use; 0 until set: as many as the process may run on.
static THREADS: AtomicUsize = AtomicUsize::new(0);
/// The pool, or null; a child of `fork` finds its parent's and replaces it. Pools are never freed.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// The number of threads that regions use, the caller included.
pub fn num_threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    match THREADS.load(Ordering::Relaxed) {
        // Counts the affinity mask and the control group's quota.
        0 => *DEFAULT.get_or_init(|| {
            thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS))
        }),
        count => count,
    }
}

/// Sets the number of threads that regions use, the caller included: 1 to 1024; more are taken as 1024.
pub fn set_num_threads(count: usize) {
    THREADS.store(count.clamp(1, MOST_THREADS), Ordering::Relaxed);
}

/// Calls `work` once with each number below `tasks`, on at most `threads` threads, this one among them.
///
/// Returns when all are done. Which thread takes which task is not determined.
///
/// # Panics
/// When a task did.
pub fn for_each(threads: usize, tasks: usize, work: &Work<'_>) {
    let threads = threads.min(tasks);
    if threads > 1 && Pool::current().try_run(threads, tasks, work) {
        return;
    }
    (0..tasks).for_each(work);
}

impl Pool {
    fn current() -> &'static Self {
        let process = std::process::id();
        let found = POOL.load(Ordering::Acquire);
        // SAFETY: a pointer that is not null comes from `Box::leak` below.
        if let Some(pool) = unsafe { found.as_ref() }
            && pool.process == process
        {
            return pool;
        }
        let shared = Shared {
            state: AtomicU64::new(CLOSED),
            left: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            workers: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        };
        let made = Box::leak(Box::new(Self {
            process,
            shared: Arc::new(shared),
            workers: Mutex::new(Vec::new()),
        }));
        match POOL.compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            // Another thread was first; the one made here has no thread yet and is forgotten.
            // SAFETY: as above, and what another thread stored is not null.
            Err(other) => unsafe { &*other },
        }
    }

    /// Runs a region; false, and nothing done, when another one is running or no thread can be started.
    fn try_run(&self, threads: usize, tasks: usize, work: &Work<'_>) -> bool {
        let Ok(mut workers) = self.workers.try_lock() else {
            return false;
        };
        while workers.len() < threads - 1 {
            let Some(worker) = self.start(workers.len()) else {
                break;
            };
            workers.push(worker);
        }
        let helpers = workers.len().min(threads - 1);
        if helpers == 0 {
            return false;
        }
        let shared = &*self.shared;
        // Used by no worker after this function returns: those that joined are waited for, and after closing nobody
        // joins.
        let on_stack: &Work<'_> = work;
        let address = (&raw const on_stack).cast_mut().cast::<()>();
        shared.work.store(address, Ordering::Relaxed);
        shared.tasks.store(tasks, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        shared.left.store(0, Ordering::Relaxed);
        shared.workers.store(helpers, Ordering::Relaxed);
        let epoch = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        // Sequentially consistent with the workers' `parked`: either we see it set, or the worker sees the new epoch.
        shared.state.store(epoch << 32, Ordering::SeqCst);
        for worker in &workers[..helpers] {
            if worker.parked.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(work)));
        let joined = shared.state.fetch_or(CLOSED, Ordering::AcqRel) & JOINED;
        let mut turns = 0_u32;
        while u64::from(shared.left.load(Ordering::Acquire)) < joined {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        drop(workers);
        match outcome {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => assert!(!panicked, "a task of a parallel region panicked"),
        }
        true
    }

    fn start(&self, number: usize) -> Option<Worker> {
        let parked = Arc::new(AtomicBool::new(false));
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&parked));
        let thread = thread::Builder::new()
            .name(format!("abyssal-{number}"))
            .spawn(move || shared.serve(number, &own))
            .ok()?;
        Some(Worker {
            thread: thread.thread().clone(),
            parked,
        })
    }
}

impl Shared {
    fn take_tasks(&self, work: &Work<'_>) {
        let tasks = self.tasks.load(Ordering::Relaxed);
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    }

    /// A worker's life.
    fn serve(&self, number: usize, parked: &AtomicBool) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_epoch(seen, parked);
            if number >= self.workers.load(Ordering::Relaxed) || !self.join(seen) {
                continue;
            }
            let address = self.work.load(Ordering::Relaxed).cast::<&Work<'_>>();
            // SAFETY: the caller keeps the reference and what it refers to until every worker that joined has left, and
            // this one has joined and not left.
            let work: &Work<'_> = unsafe { *address };
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(work))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
                // The region ends early; its caller panics.
                self.next.store(usize::MAX / 2, Ordering::Relaxed);
            }
            self.left.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits for an epoch other than `seen`: spins, then parks.
    fn wait_for_epoch(&self, seen: u64, parked: &AtomicBool) -> u64 {
        let mut turns = 0;
        loop {
            let epoch = self.state.load(Ordering::Acquire) >> 32;
            if epoch != seen {
                return epoch;
            }
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
                continue;
            }
            parked.store(true, Ordering::SeqCst);
            while self.state.load(Ordering::SeqCst) >> 32 == seen && parked.load(Ordering::SeqCst) {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            turns = 0;
        }
    }

    /// Takes part in the region of this epoch; false once it is closed or gone.
    fn join(&self, epoch: u64) -> bool {
        let enter = |state: u64| (state >> 32 == epoch && state & CLOSED == 0).then_some(state + 1);
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, enter)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for_each(threads, tasks, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts
                        .iter()
                        .all(|count| count.load(Ordering::Relaxed) == 1)
                );
            }
        }
    }

    #[test]
    fn regions_follow_each_other_without_mixing_tasks() {
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            for_each(2, 3, &|task| {
                sum.fetch_add(round * 3 + task, Ordering::Relaxed);
            });
        }
        let last = 20_000 * 3;
        assert_eq!(sum.into_inner(), last * (last - 1) / 2);
    }

    #[test]
    fn several_callers_at_once_each_get_their_own_results() {
        thread::scope(|scope| {
            for caller in 0..4_usize {
                scope.spawn(move || {
                    for _ in 0..500 {
                        let sum = AtomicUsize::new(0);
                        for_each(3, 10, &|task| {
                            sum.fetch_add(caller * 100 + task, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), caller * 1000 + 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_task_may_open_a_region_of_its_own() {
        let sum = AtomicUsize::new(0);
        for_each(2, 4, &|_| {
            for_each(2, 5, &|task| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 40);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_stays_usable() {
        for _ in 0..20 {
            let outcome = catch_unwind(|| {
                for_each(2, 64, &|task| assert_ne!(task, 40));
            });
            assert!(outcome.is_err());
            let count = AtomicUsize::new(0);
            for_each(2, 64, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 64);
        }
    }
}
