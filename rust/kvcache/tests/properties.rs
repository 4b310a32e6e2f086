//! Single properties of the page cache, each with the smallest case that shows it.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used, clippy::panic)]

use abyssal_kvcache::{Error, Handle, KeptRows, Limits, Options, PageCache};

#[test]
fn of_three_holders_of_a_half_filled_page_two_copy_it() {
    let mut cache = PageCache::new(8, 4).unwrap();
    let (first, _) = cache.open(&[], b"").unwrap();
    cache.step(&[first], &[6], &mut [0; 8], 8).unwrap();
    cache.commit(&[first], &[6], &[false]).unwrap();
    let (second, third) = (cache.fork(first).unwrap(), cache.fork(first).unwrap());
    let copies = cache
        .step(&[first, second, third], &[1, 1, 1], &mut [0; 24], 8)
        .unwrap();
    assert_eq!(copies.len(), 2);
    assert!(copies.iter().all(|copy| copy.from.0 == 1));
    assert_eq!(cache.stats().used_pages, 4);
    cache.audit().unwrap();
}

#[test]
fn a_fork_at_a_page_border_copies_nothing() {
    let mut cache = PageCache::new(8, 4).unwrap();
    let (first, _) = cache.open(&[], b"").unwrap();
    cache.step(&[first], &[8], &mut [0; 8], 8).unwrap();
    cache.commit(&[first], &[8], &[false]).unwrap();
    let second = cache.fork(first).unwrap();
    assert!(
        cache
            .step(&[first, second], &[1, 1], &mut [0; 16], 8)
            .unwrap()
            .is_empty()
    );
    assert_eq!(cache.stats().used_pages, 4);
}

#[test]
fn a_refused_step_changes_nothing() {
    let mut cache = PageCache::new(4, 4).unwrap();
    let (first, _) = cache.open(&[], b"").unwrap();
    let (other, _) = cache.open(&[], b"").unwrap();
    cache.step(&[first], &[6], &mut [0; 4], 4).unwrap();
    cache.commit(&[first], &[6], &[false]).unwrap();
    let fork = cache.fork(first).unwrap();
    let before = cache.stats();
    let mut tables = [-1; 12];
    let both = [first, fork, other];
    let refused = [
        (
            cache.step(&both, &[1, 1, 5], &mut tables, 4),
            Error::OutOfPages { asked: 3, free: 2 },
        ),
        (
            cache.step(&both, &[u64::MAX, 1, 1], &mut tables, 4),
            Error::OutOfPages {
                asked: u64::MAX / 4 + 1,
                free: 2,
            },
        ),
        (
            cache.step(&both, &[1, 1], &mut tables, 4),
            Error::Lengths {
                what: "counts",
                expected: 3,
                actual: 2,
            },
        ),
        (
            cache.step(&both, &[1, 1, 1], &mut tables[..8], 4),
            Error::Lengths {
                what: "block_tables_out",
                expected: 3,
                actual: 2,
            },
        ),
        (
            cache.step(&both, &[1, 1, 1], &mut tables, 1),
            Error::TableWidth { pages: 2, width: 1 },
        ),
        (
            cache.step(&[first, other, first], &[1, 1, 1], &mut tables, 4),
            Error::RepeatedHandle { handle: first.0 },
        ),
        (
            cache.step(&[Handle(0)], &[1], &mut tables, 4),
            Error::StaleHandle { handle: 0 },
        ),
    ];
    for (result, error) in refused {
        assert_eq!(result, Err(error));
    }
    assert_eq!(cache.stats(), before);
    assert_eq!(tables, [-1; 12]);
    cache.audit().unwrap();
}

#[test]
fn sizes_out_of_range_are_refused() {
    assert_eq!(
        PageCache::new(0, 64).unwrap_err(),
        Error::NumPages { asked: 0 }
    );
    assert_eq!(
        PageCache::new(4, 0).unwrap_err(),
        Error::PageSize { asked: 0 }
    );
    let asked = i32::MAX as usize + 1;
    assert_eq!(
        PageCache::new(asked, 64).unwrap_err(),
        Error::NumPages { asked }
    );
}

/// Opens a sequence, computes all its tokens and publishes them; returns its handle and what was cached.
fn compute(cache: &mut PageCache, ids: &[u32], salt: &[u8]) -> (Handle, u64) {
    let (handle, cached) = cache.open(ids, salt).unwrap();
    let length = ids.len() as u64;
    let mut table = [-1; 16];
    cache
        .step(&[handle], &[length - cached], &mut table, 16)
        .unwrap();
    cache.commit(&[handle], &[length], &[true]).unwrap();
    cache.audit().unwrap();
    (handle, cached)
}

fn cached(cache: &mut PageCache, ids: &[u32], salt: &[u8]) -> u64 {
    let (handle, cached) = cache.open(ids, salt).unwrap();
    cache.close(handle).unwrap();
    cache.audit().unwrap();
    cached
}

#[test]
fn a_page_is_matched_once_all_its_tokens_are_committed_and_published() {
    let mut cache = PageCache::new(8, 4).unwrap();
    let ids = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let (handle, _) = cache.open(&ids, b"").unwrap();
    assert_eq!(cached(&mut cache, &ids, b""), 0);
    cache.step(&[handle], &[9], &mut [0; 8], 8).unwrap();
    assert_eq!(cached(&mut cache, &ids, b""), 0);
    cache.commit(&[handle], &[7], &[false]).unwrap();
    assert_eq!(cached(&mut cache, &ids, b""), 0);
    cache.commit(&[handle], &[7], &[true]).unwrap();
    assert_eq!(cached(&mut cache, &ids, b""), 4);
    cache.commit(&[handle], &[9], &[true]).unwrap();
    assert_eq!(cached(&mut cache, &ids, b""), 8);
    assert_eq!(cached(&mut cache, &ids[..8], b""), 8);
    assert_eq!(cached(&mut cache, &ids[..7], b""), 4);
    assert_eq!(cached(&mut cache, &ids[1..], b""), 0);
}

#[test]
fn generated_tokens_are_published_when_their_ids_are_told() {
    let mut cache = PageCache::new(8, 2).unwrap();
    let (handle, _) = cache.open(&[1], b"").unwrap();
    for (step, token) in [7, 8, 9].into_iter().enumerate() {
        cache.step(&[handle], &[1], &mut [0; 8], 8).unwrap();
        let ids: &[u32] = if step == 0 { &[] } else { &[token] };
        let computed = [step as u64 + 1];
        cache
            .commit_tokens(&[handle], &computed, &[true], ids)
            .unwrap();
    }
    assert_eq!(cached(&mut cache, &[1, 8, 9], b""), 2);
    // Without ids nothing more is published until they are all told.
    cache.step(&[handle], &[2], &mut [0; 8], 8).unwrap();
    cache.commit(&[handle], &[4], &[true]).unwrap();
    assert_eq!(cached(&mut cache, &[1, 8, 9, 5], b""), 2);
    cache
        .commit_tokens(&[handle], &[5], &[true], &[5, 6])
        .unwrap();
    assert_eq!(cached(&mut cache, &[1, 8, 9, 5], b""), 4);
}

#[test]
fn salts_share_nothing_whatever_bytes_they_are() {
    let salts: [&[u8]; 6] = [
        b"",
        b"\0",
        b"\0\0",
        b"a",
        "\u{fffd}\u{1f600}".as_bytes(),
        &[0xff; 5000],
    ];
    for bits in [0, 64] {
        let mut cache = PageCache::with_hash_bits(40, 2, bits).unwrap();
        let held: Vec<Handle> = salts
            .iter()
            .map(|salt| {
                let (handle, cached) = compute(&mut cache, &[1, 2, 3, 4], salt);
                assert_eq!(cached, 0);
                handle
            })
            .collect();
        assert_eq!(cache.stats().published_pages, 12);
        assert_eq!(cache.stats().shared_pages, 0);
        for (salt, handle) in salts.iter().zip(held) {
            assert_eq!(cached(&mut cache, &[1, 2, 3, 4], salt), 4);
            cache.close(handle).unwrap();
        }
    }
}

#[test]
fn the_page_released_first_is_given_up_first_and_a_child_before_its_parent() {
    let chains: [&[u32]; 4] = [&[3, 4], &[3], &[1, 2], &[1]];
    // How many pages of each chain are left after so many were given up.
    for (taken, left) in [[2, 1, 2, 1], [1, 1, 2, 1], [0, 0, 2, 1], [0, 0, 1, 1]]
        .iter()
        .enumerate()
    {
        let mut cache = PageCache::new(4, 1).unwrap();
        let (first, _) = compute(&mut cache, &[1, 2], b"");
        let (second, _) = compute(&mut cache, &[3, 4], b"");
        cache.close(second).unwrap();
        cache.close(first).unwrap();
        let (filler, _) = cache.open(&[], b"").unwrap();
        cache
            .step(&[filler], &[taken as u64], &mut [0; 4], 4)
            .unwrap();
        assert_eq!(cache.stats().evictions, taken as u64);
        assert_eq!(chains.map(|ids| cached(&mut cache, ids, b"")), *left);
    }
}

#[test]
fn free_pages_are_dealt_before_reusable_ones() {
    let mut cache = PageCache::new(4, 1).unwrap();
    let (first, _) = compute(&mut cache, &[1], b"");
    cache.close(first).unwrap();
    let (other, _) = cache.open(&[], b"").unwrap();
    cache.step(&[other], &[3], &mut [0; 4], 4).unwrap();
    assert_eq!(cache.stats().evictions, 0);
    assert_eq!(cached(&mut cache, &[1], b""), 1);
    cache.step(&[other], &[1], &mut [0; 4], 4).unwrap();
    assert_eq!(cache.stats().evictions, 1);
    assert_eq!(cached(&mut cache, &[1], b""), 0);
}

#[test]
fn a_prompt_computed_twice_at_once_is_published_once() {
    let mut cache = PageCache::new(8, 2).unwrap();
    let (first, _) = cache.open(&[1, 2, 3, 4], b"").unwrap();
    let (second, _) = cache.open(&[1, 2, 3, 4, 5, 6], b"").unwrap();
    cache
        .step(&[first, second], &[4, 6], &mut [0; 16], 8)
        .unwrap();
    cache
        .commit(&[first, second], &[4, 6], &[true, true])
        .unwrap();
    cache.audit().unwrap();
    assert_eq!(cache.stats().published_pages, 3);
    assert_eq!(cached(&mut cache, &[1, 2, 3, 4, 5, 6], b""), 6);
    cache.close(first).unwrap();
    cache.close(second).unwrap();
    cache.audit().unwrap();
    assert_eq!(cached(&mut cache, &[1, 2, 3, 4, 5, 6], b""), 6);
}

#[test]
fn limits_cut_a_match_to_what_the_caller_can_use() {
    let mut cache = PageCache::new(16, 2).unwrap();
    let ids: Vec<u32> = (0..14).collect();
    compute(&mut cache, &ids, b"");
    for (max_cached, multiple_of, expected) in [
        (u64::MAX, 1, 14),
        (13, 1, 12),
        (0, 1, 0),
        (u64::MAX, 4, 12),
        (u64::MAX, 3, 12),
        (11, 5, 10),
        (9, 7, 0),
        (u64::MAX, u64::MAX, 0),
    ] {
        let limits = Limits {
            max_cached,
            multiple_of,
        };
        let (handle, cached) = cache.open_within(&ids, b"", limits).unwrap();
        assert_eq!(cached, expected);
        cache.audit().unwrap();
        cache.close(handle).unwrap();
    }
    let none = Limits {
        multiple_of: 0,
        ..Limits::default()
    };
    assert_eq!(cache.open_within(&ids, b"", none), Err(Error::MultipleOf));
}

#[test]
fn clearing_forgets_content_and_what_open_sequences_would_publish() {
    let mut cache = PageCache::new(8, 2).unwrap();
    let (first, _) = compute(&mut cache, &[1, 2, 3, 4], b"");
    let (second, _) = cache.open(&[1, 2, 9, 9], b"").unwrap();
    cache.close(first).unwrap();
    cache.clear();
    cache.audit().unwrap();
    assert_eq!(cached(&mut cache, &[1, 2], b""), 0);
    cache.step(&[second], &[2], &mut [0; 8], 8).unwrap();
    cache.commit(&[second], &[4], &[true]).unwrap();
    assert_eq!(cache.stats().published_pages, 0);
    cache.close(second).unwrap();
    compute(&mut cache, &[1, 2], b"");
    assert_eq!(cached(&mut cache, &[1, 2], b""), 2);
}

#[test]
fn without_reuse_nothing_is_published() {
    let options = Options {
        reuse: false,
        ..Options::default()
    };
    let mut cache = PageCache::with_options(4, 2, options).unwrap();
    let (handle, cached) = compute(&mut cache, &[1, 2], b"");
    assert_eq!((cached, cache.stats().published_pages), (0, 0));
    let error = cache.commit_tokens(&[handle], &[2], &[true], &[7]);
    assert_eq!(
        error,
        Err(Error::TokenIds {
            given: 1,
            expected: 0
        })
    );
    assert_eq!(compute(&mut cache, &[1, 2], b"").1, 0);
}

#[test]
fn kept_rows_are_written_from_where_they_end() {
    let mut cache = PageCache::new(8, 2).unwrap();
    let (handle, _) = cache.open(&[], b"").unwrap();
    let (mut row, mut written) = ([-1; 8], [0]);
    cache
        .step_kept(&[handle], &[3], &mut row, 8, &mut written)
        .unwrap();
    assert_eq!((row[..3].to_vec(), written), (vec![0, 1, -1], [2]));
    row[0] = 77;
    cache
        .step_kept(&[handle], &[2], &mut row, 8, &mut written)
        .unwrap();
    assert_eq!((row[..4].to_vec(), written), (vec![77, 1, 2, -1], [3]));
    // A page that is copied replaces an entry that was written already.
    cache.commit(&[handle], &[5], &[false]).unwrap();
    let fork = cache.fork(handle).unwrap();
    let copies = cache
        .step_kept(&[handle], &[1], &mut row, 8, &mut written)
        .unwrap();
    assert_eq!((copies.len(), row[2], written), (1, 3, [3]));
    for given in [-1, 4] {
        let result = cache.step_kept(&[handle], &[1], &mut row, 8, &mut [given]);
        assert_eq!(result, Err(Error::Written { given, pages: 3 }));
    }
    cache.close(fork).unwrap();
    cache.audit().unwrap();
}

#[test]
fn a_kept_table_gets_only_what_is_new_to_its_rows() {
    let mut cache = PageCache::new(8, 2).unwrap();
    let [first, second] = [(); 2].map(|()| cache.open(&[], b"").unwrap().0);
    let (mut table, mut kept) = ([-1; 8], KeptRows::default());
    cache
        .step_table(&[first, second], &[3, 2], &mut table, 4, &mut kept)
        .unwrap();
    assert_eq!(table, [0, 1, -1, -1, 2, -1, -1, -1]);
    // The marks show what is written.
    table = [70, -1, -1, -1, 71, -1, -1, -1];
    cache
        .step_table(&[first, second], &[2, 1], &mut table, 4, &mut kept)
        .unwrap();
    assert_eq!(table, [70, -1, 3, -1, 71, 4, -1, -1]);
    // A row of another sequence is written whole; the one behind it keeps what it holds.
    cache
        .step_table(&[second], &[0], &mut table, 4, &mut kept)
        .unwrap();
    assert_eq!(table, [2, 4, 3, -1, 71, 4, -1, -1]);
    cache
        .step_table(&[first, second], &[0, 0], &mut table, 4, &mut kept)
        .unwrap();
    assert_eq!(table, [0, 1, 3, -1, 71, 4, -1, -1]);
    kept.forget();
    cache
        .step_table(&[first, second], &[0, 0], &mut table, 4, &mut kept)
        .unwrap();
    assert_eq!(table, [0, 1, 3, -1, 2, 4, -1, -1]);
    cache.audit().unwrap();
}

#[test]
fn a_kept_table_notices_a_copy_that_another_table_was_told_of() {
    let mut cache = PageCache::new(8, 2).unwrap();
    let (handle, _) = cache.open(&[], b"").unwrap();
    let (mut table, mut kept) = ([-1; 8], KeptRows::default());
    cache
        .step_table(&[handle], &[3], &mut table, 8, &mut kept)
        .unwrap();
    cache.commit(&[handle], &[3], &[false]).unwrap();
    let fork = cache.fork(handle).unwrap();
    let copies = cache.step(&[handle], &[1], &mut [0; 8], 8).unwrap();
    assert_eq!(copies.len(), 1);
    cache
        .step_table(&[handle], &[1], &mut table, 8, &mut kept)
        .unwrap();
    assert_eq!(table[..4], [0, 2, 3, -1]);
    cache.close(fork).unwrap();
    cache.audit().unwrap();
}

#[test]
fn a_kept_table_tells_two_caches_apart() {
    let (mut table, mut kept) = ([-1; 8], KeptRows::default());
    let mut one = PageCache::new(8, 1).unwrap();
    let mut other = PageCache::new(8, 1).unwrap();
    other.open(&[], b"").unwrap();
    let (filler, _) = one.open(&[], b"").unwrap();
    let handles = [
        one.open(&[], b"").unwrap().0,
        other.open(&[], b"").unwrap().0,
    ];
    assert_eq!(handles[0], handles[1]);
    one.step(&[filler], &[3], &mut [0; 8], 8).unwrap();
    one.step_table(&[handles[0]], &[2], &mut table, 8, &mut kept)
        .unwrap();
    assert_eq!(table[..3], [3, 4, -1]);
    other
        .step_table(&[handles[1]], &[2], &mut table, 8, &mut kept)
        .unwrap();
    assert_eq!(table[..3], [0, 1, -1]);
}
