//! Threads that share a cache behind a mutex, and threads that call the pure functions. `make test-threads` runs this
//! with ThreadSanitizer.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread;

use abyssal_kvcache::{Error, PageCache, Prefix, SavedPrefix, page_identities};

const THREADS: u64 = 4;
const PAGE: usize = 4;

fn main() {
    threads_that_share_a_cache_find_what_they_or_others_computed();
    pure_functions_give_the_same_on_every_thread();
    println!("2 tests with {THREADS} threads passed");
}

/// Waits for the lock in code that is compiled here: the standard library's waiting is precompiled, and what it does is
/// hidden from ThreadSanitizer.
fn turn(cache: &Mutex<PageCache>) -> MutexGuard<'_, PageCache> {
    loop {
        match cache.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::WouldBlock) => thread::yield_now(),
            Err(TryLockError::Poisoned(error)) => panic!("{error}"),
        }
    }
}

/// Each page's memory: a row of its owner's numbers, written and read outside the lock, as an engine's workers do.
fn threads_that_share_a_cache_find_what_they_or_others_computed() {
    let cache = Mutex::new(PageCache::new(64, PAGE).unwrap());
    let memory: Vec<AtomicU64> = (0..64 * PAGE).map(|_| AtomicU64::new(u64::MAX)).collect();
    let (hits, full) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for worker in 0..THREADS {
            let (cache, memory, hits, full) = (&cache, &memory, &hits, &full);
            workers.push(scope.spawn(move || {
                for round in 0..400 {
                    // Few different prompts, so that threads meet in the tree.
                    let (kind, length) =
                        ((round * 7 + worker) % 5, 6 + (round % 3) as usize * PAGE);
                    let ids: Vec<u32> = (0..length)
                        .map(|place| (kind * 100) as u32 + place as u32)
                        .collect();
                    let (handle, cached) = turn(cache).open(&ids, b"").unwrap();
                    let mut table = [-1; 64];
                    let step =
                        turn(cache).step(&[handle], &[length as u64 - cached], &mut table, 64);
                    let place = |at: usize| table[at / PAGE] as usize * PAGE + at % PAGE;
                    match step {
                        Ok(_) => {
                            for at in 0..cached as usize {
                                let found = memory[place(at)].load(Ordering::Relaxed);
                                assert_eq!(found, u64::from(ids[at]));
                            }
                            for at in cached as usize..length {
                                memory[place(at)].store(ids[at].into(), Ordering::Relaxed);
                            }
                            let mut cache = turn(cache);
                            cache.commit(&[handle], &[length as u64], &[true]).unwrap();
                            let fork = cache.fork(handle).unwrap();
                            cache.close(fork).unwrap();
                        }
                        Err(Error::OutOfPages { .. }) => {
                            full.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error}"),
                    }
                    hits.fetch_add(cached, Ordering::Relaxed);
                    turn(cache).close(handle).unwrap();
                    if round % 50 == 0 {
                        turn(cache).audit().unwrap();
                    }
                }
            }));
        }
        // Joined one by one: the end of a scope is another thing that is hidden from the sanitizer.
        for worker in workers {
            worker.join().unwrap();
        }
    });
    let cache = cache.into_inner().unwrap();
    cache.audit().unwrap();
    assert_eq!(cache.free_pages(), 64);
    assert!(hits.into_inner() > 0 && full.into_inner() < THREADS * 400);
}

fn pure_functions_give_the_same_on_every_thread() {
    let ids: Vec<u32> = (0..1000).collect();
    let folder = std::env::temp_dir().join(format!("abyssal-threads-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let expected = page_identities(&ids, PAGE, b"salt").unwrap();
    let prefix = Prefix {
        fingerprint: "model",
        dtype: "u8",
        page_size: PAGE,
        token_ids: &ids,
        pages: &[7; 2000],
    };
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for worker in 0..THREADS {
            let (ids, folder, expected) = (&ids, &folder, &expected);
            workers.push(scope.spawn(move || {
                for _ in 0..10 {
                    assert_eq!(&page_identities(ids, PAGE, b"salt").unwrap(), expected);
                    // All threads replace the same file, and each reads one of them whole.
                    let path = folder.join(if worker % 2 == 0 { "same" } else { "prefix" });
                    prefix.save(&path).unwrap();
                    let saved = SavedPrefix::read(&std::fs::read(&path).unwrap()).unwrap();
                    assert_eq!(&saved.token_ids, ids);
                }
            }));
        }
        // Joined one by one: the end of a scope is another thing that is hidden from the sanitizer.
        for worker in workers {
            worker.join().unwrap();
        }
    });
    std::fs::remove_dir_all(&folder).unwrap();
}
