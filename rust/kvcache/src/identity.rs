//! Names of pages that are the same in every process and on every machine.
//!
//! The identity of a page is SHA-256 of bytes that say what the page holds. Every part has a fixed length or follows
//! its own length, so different pages never have the same bytes. Numbers are little-endian.
//!
//! | bytes | of a salt (the parent of first pages) | of a page |
//! |---|---|---|
//! | 20 | `abyssal page salt v1` | `abyssal page node v1` |
//! | 32 | none | the parent's identity |
//! | 8 | length of the salt | number of tokens |
//! | rest | the salt | the token ids, 4 bytes each |

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The SHA-256 identity of a page or a salt.
pub type Identity = [u8; 32];

const SALT: &[u8; 20] = b"abyssal page salt v1";
const NODE: &[u8; 20] = b"abyssal page node v1";

/// The identity that first pages under `salt` have as their parent's.
pub fn salt_identity(salt: &[u8]) -> Identity {
    let mut hash = Sha256::new_with_prefix(SALT);
    hash.update((salt.len() as u64).to_le_bytes());
    hash.update(salt);
    hash.finalize().into()
}

/// The identity of a page with these tokens after `parent`.
pub fn page_identity(parent: &Identity, token_ids: &[u32]) -> Identity {
    let mut hash = Sha256::new_with_prefix(NODE);
    hash.update(parent);
    hash.update((token_ids.len() as u64).to_le_bytes());
    update_with_tokens(&mut hash, token_ids);
    hash.finalize().into()
}

/// The identities of the whole pages of a prompt, in order.
///
/// # Errors
/// [`Error::PageSize`] when out of range.
pub fn page_identities(token_ids: &[u32], page_size: usize, salt: &[u8]) -> Result<Vec<Identity>> {
    if page_size == 0 || u32::try_from(page_size).is_err() {
        return Err(Error::PageSize { asked: page_size });
    }
    let mut parent = salt_identity(salt);
    let pages = token_ids.chunks_exact(page_size);
    Ok(pages
        .map(|tokens| {
            parent = page_identity(&parent, tokens);
            parent
        })
        .collect())
}

/// Hashes token ids as their little-endian bytes, some at a time.
pub(crate) fn update_with_tokens(hash: &mut Sha256, token_ids: &[u32]) {
    let mut bytes = [0; 256];
    for group in token_ids.chunks(bytes.len() / 4) {
        let (places, _) = bytes.as_chunks_mut::<4>();
        for (place, token) in places.iter_mut().zip(group) {
            *place = token.to_le_bytes();
        }
        hash.update(&bytes[..4 * group.len()]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "how tests fail")]
mod tests {
    use super::{page_identities, salt_identity};
    use std::collections::HashSet;
    use std::fmt::Write;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    /// From Python's hashlib and struct, as the table above says.
    #[test]
    fn identities_are_those_written_down_once() {
        assert_eq!(
            hex(&salt_identity(b"")),
            "d21b84334871682576e6751bf5ed6600a372584a453a0eedf645e7931fa25988"
        );
        let pages = page_identities(&[1, 2, 3, 0xffff_ffff, 5], 2, b"tenant").unwrap();
        assert_eq!(pages.len(), 2);
        assert_eq!(
            hex(&pages[0]),
            "b8745e13f132840e7bd6003191dd35e9ed08fb484c9bc2af74f226fd9d3d81ca"
        );
        assert_eq!(
            hex(&pages[1]),
            "4d90a7c483f2007deb12c0b12a5bcdf3d810efdf450cdfc6a36ee76d85a9d3ab"
        );
    }

    #[test]
    fn distinct_contents_have_distinct_identities() {
        let mut seen = HashSet::new();
        for salt in [&b""[..], b"\0", b"\0\0", b"a", b"ab"] {
            assert!(seen.insert(salt_identity(salt)));
            for page_size in [1, 2, 4] {
                // The same tokens in pages of another size are other pages.
                let pages = page_identities(&[0, 0, 0, 0], page_size, salt).unwrap();
                assert!(pages.into_iter().all(|page| seen.insert(page)));
            }
        }
        assert!(page_identities(&[1], 0, b"").is_err());
    }
}
