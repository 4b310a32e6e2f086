//! Saved prefixes: what is read back, and what is refused.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used)]

use abyssal_kvcache::{Error, Prefix, SavedPrefix};

fn example(token_ids: &[u32]) -> Prefix<'_> {
    Prefix {
        fingerprint: "model 1",
        dtype: "bf16 [27, 576]",
        page_size: 3,
        token_ids,
        pages: b"the first page..the second page.",
    }
}

fn bytes(prefix: &Prefix<'_>) -> Vec<u8> {
    let mut file = Vec::new();
    prefix.write(&mut file).unwrap();
    file
}

const IDS: [u32; 6] = [1, 2, 3, u32::MAX, 5, 6];

#[test]
fn a_saved_prefix_reads_back_as_it_was() {
    let prefix = example(&IDS);
    let file = bytes(&prefix);
    let saved = SavedPrefix::read(&file).unwrap();
    assert_eq!(saved.token_ids, IDS);
    assert_eq!((saved.page_size, saved.bytes_per_page), (3, 16));
    assert_eq!(&file[saved.pages.clone()], prefix.pages);
    assert_eq!(saved.pages.start % 4096, 0);
    saved.expect("model 1", "bf16 [27, 576]").unwrap();
    for (what, fingerprint, dtype) in [
        ("fingerprint", "model 2", "bf16 [27, 576]"),
        ("dtype", "model 1", "bf16 [27, 512]"),
    ] {
        let error = saved.expect(fingerprint, dtype).unwrap_err();
        assert!(matches!(error, Error::SavedOther { what: named, .. } if named == what));
    }
}

#[test]
fn a_file_with_any_single_byte_changed_is_refused() {
    let good = bytes(&example(&IDS));
    let mut file = good.clone();
    for place in 0..file.len() {
        // Every other value in the header and in the checksum, every other bit elsewhere.
        let all = place < 128 || place + 64 > good.len();
        let changes: Vec<u8> = if all {
            (1..=255).collect()
        } else {
            (0..8).map(|bit| 1 << bit).collect()
        };
        for change in changes {
            file[place] = good[place] ^ change;
            let error = SavedPrefix::read(&file).unwrap_err();
            assert!(error.is_about_saved_file(), "{place}: {error}");
        }
        file[place] = good[place];
    }
    assert!(SavedPrefix::read(&file).is_ok());
}

#[test]
fn a_file_cut_or_extended_anywhere_is_refused() {
    let good = bytes(&example(&IDS));
    for length in 0..good.len() {
        let error = SavedPrefix::read(&good[..length]).unwrap_err();
        if length < 8 {
            assert_eq!(error, Error::NotSaved);
        } else {
            assert!(matches!(error, Error::SavedLength { actual, .. } if actual == length as u64));
        }
    }
    for more in [1, 31, 4096] {
        let mut file = good.clone();
        file.resize(good.len() + more, 0);
        let (expected, actual) = (good.len() as u64, file.len() as u64);
        assert_eq!(
            SavedPrefix::read(&file),
            Err(Error::SavedLength { expected, actual })
        );
    }
}

#[test]
fn header_numbers_that_overflow_are_refused() {
    let good = bytes(&example(&IDS));
    for (place, width) in [
        (12, 4),
        (16, 8),
        (24, 8),
        (32, 4),
        (36, 4),
        (40, 8),
        (48, 8),
    ] {
        for number in [0_u64, 1, u64::MAX, u64::MAX / 2, 1 << 62, 1 << 40] {
            let mut file = good.clone();
            file[place..place + width].copy_from_slice(&number.to_le_bytes()[..width]);
            assert!(SavedPrefix::read(&file).unwrap_err().is_about_saved_file());
        }
    }
}

#[test]
fn no_pages_and_pages_without_bytes_can_be_saved() {
    for token_ids in [&[][..], &IDS] {
        let prefix = Prefix {
            pages: b"",
            fingerprint: "",
            ..example(token_ids)
        };
        let saved = SavedPrefix::read(&bytes(&prefix)).unwrap();
        assert_eq!(
            (saved.token_ids, saved.bytes_per_page),
            (token_ids.to_vec(), 0)
        );
        assert!(saved.pages.is_empty());
    }
}

#[test]
fn what_is_no_whole_number_of_pages_is_not_saved() {
    let page_size = 3;
    let cases = [
        (
            example(&IDS[..5]),
            Error::PartialPage {
                tokens: 5,
                page_size,
            },
        ),
        (
            Prefix {
                page_size: 4,
                ..example(&IDS)
            },
            Error::PartialPage {
                tokens: 6,
                page_size: 4,
            },
        ),
        (
            Prefix {
                page_size: 0,
                ..example(&IDS)
            },
            Error::PageSize { asked: 0 },
        ),
        (
            Prefix {
                pages: b"odd",
                ..example(&IDS)
            },
            Error::PageBytes { bytes: 3, pages: 2 },
        ),
        (
            example(&[]),
            Error::PageBytes {
                bytes: 32,
                pages: 0,
            },
        ),
    ];
    let path = std::env::temp_dir().join("abyssal-not-saved.page");
    for (prefix, error) in cases {
        assert_eq!(prefix.write(&mut Vec::new()), Err(error.clone()));
        assert_eq!(prefix.save(&path), Err(error));
    }
    assert!(!path.exists());
}

#[test]
fn saving_replaces_a_file_whole_and_leaves_nothing_else_behind() {
    let folder = std::env::temp_dir().join(format!("abyssal-saved-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("prefix");
    std::fs::write(&path, "something else").unwrap();
    example(&IDS).save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes(&example(&IDS)));
    let blocked = folder.join("folder");
    std::fs::create_dir_all(blocked.join("inner")).unwrap();
    assert!(matches!(
        example(&IDS).save(&blocked),
        Err(Error::Io { what: "rename", .. })
    ));
    let missing = folder.join("missing").join("prefix");
    assert!(matches!(
        example(&IDS).save(&missing),
        Err(Error::Io { what: "create", .. })
    ));
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["folder", "prefix"]);
    std::fs::remove_dir_all(&folder).unwrap();
}
