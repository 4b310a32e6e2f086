//! A keyed hash of token chains: where in the index to look, never whether two pages are the same.
//!
//! A hit is confirmed by comparing tokens, so a collision costs time and nothing else. To keep it from costing much, the
//! keys are random for each cache: who chooses the tokens does not know where they land. The inner sum is NH, whose
//! collisions are as rare as 2^-64 for any two different pages, whatever the tokens are; pages are chained by folded
//! multiplication.
//!
//! Source: J. Black et al., "UMAC: Fast and Secure Message Authentication", CRYPTO 1999 (NH).

use std::hash::{BuildHasher, Hasher, RandomState};

/// Tokens that one NH sum takes: 16 products of two words of two tokens each.
const GROUP: usize = 64;
const WORDS: usize = GROUP / 2;

/// The random keys of one cache.
#[derive(Debug)]
pub(crate) struct TokenHasher {
    words: [u64; WORDS],
    fold: [u64; 4],
    /// The bits of a hash that are kept: all of them, except in tests that force collisions.
    mask: u64,
}

impl TokenHasher {
    pub(crate) fn new() -> Self {
        Self::with_bits(u64::BITS)
    }

    /// Keeps only `bits` bits of each hash.
    pub(crate) fn with_bits(bits: u32) -> Self {
        // Every draw is the standard library's keyed hash of a counter under keys random for this process and cache.
        let source = RandomState::new();
        let mut counter = 0_u64;
        let mut draw = || {
            counter += 1;
            let mut state = source.build_hasher();
            state.write_u64(counter);
            state.finish()
        };
        Self {
            words: std::array::from_fn(|_| draw()),
            fold: std::array::from_fn(|_| draw()),
            mask: u64::MAX
                .checked_shr(u64::BITS - bits.min(u64::BITS))
                .unwrap_or(0),
        }
    }

    /// The hash of the empty chain of one salt, which `number` stands for.
    pub(crate) fn root(&self, number: u64) -> u64 {
        fold(number ^ self.fold[0], self.fold[1])
    }

    /// The hash of a chain, from that of all pages before its last one and the tokens of that page.
    pub(crate) fn chain(&self, parent: u64, tokens: &[u32]) -> u64 {
        let mut state = parent;
        for group in tokens.chunks(GROUP) {
            let sum = self.sum(group);
            let (low, high) = (sum as u64, (sum >> 64) as u64);
            state = fold(state.wrapping_add(low) ^ self.fold[0], high ^ self.fold[1]);
        }
        fold(state ^ self.fold[2], self.fold[3]) & self.mask
    }

    /// NH of at most [`GROUP`] tokens; missing ones count as 0, as all pages of a cache have the same size.
    fn sum(&self, tokens: &[u32]) -> u128 {
        let (whole, rest) = tokens.as_chunks::<4>();
        let mut sum = 0_u128;
        let (keys, _) = self.words.as_chunks::<2>();
        for (four, key) in whole.iter().zip(keys) {
            sum = sum.wrapping_add(product(*four, *key));
        }
        if let Some(key) = keys.get(whole.len())
            && !rest.is_empty()
        {
            let mut four = [0; 4];
            four[..rest.len()].copy_from_slice(rest);
            sum = sum.wrapping_add(product(four, *key));
        }
        sum
    }
}

fn product([a, b, c, d]: [u32; 4], key: [u64; 2]) -> u128 {
    let left = u64::from(a) | u64::from(b) << 32;
    let right = u64::from(c) | u64::from(d) << 32;
    u128::from(left.wrapping_add(key[0])) * u128::from(right.wrapping_add(key[1]))
}

/// Both halves of a product, one over the other.
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::TokenHasher;
    use std::collections::HashSet;

    #[test]
    fn pages_that_differ_in_one_bit_anywhere_have_different_hashes() {
        let hasher = TokenHasher::new();
        for size in [1, 3, 4, 63, 64, 65, 130] {
            let tokens: Vec<u32> = (0..size).map(|token| token * 7).collect();
            let root = hasher.root(1);
            let mut seen = HashSet::from([hasher.chain(root, &tokens)]);
            for place in 0..tokens.len() {
                for bit in 0..32 {
                    let mut other = tokens.clone();
                    other[place] ^= 1 << bit;
                    assert!(
                        seen.insert(hasher.chain(root, &other)),
                        "{size} {place} {bit}"
                    );
                }
            }
            assert!(seen.insert(hasher.chain(hasher.root(2), &tokens)));
        }
    }

    #[test]
    fn two_caches_hash_differently() {
        let (one, two) = (TokenHasher::new(), TokenHasher::new());
        let tokens = [1, 2, 3, 4];
        assert_ne!(
            one.chain(one.root(1), &tokens),
            two.chain(two.root(1), &tokens)
        );
    }

    #[test]
    fn low_and_high_bits_spread_evenly() {
        let hasher = TokenHasher::new();
        let root = hasher.root(1);
        let (mut low, mut high) = ([0_u32; 64], [0_u32; 64]);
        for token in 0..64_000_u32 {
            let hash = hasher.chain(root, &[token; 4]);
            low[(hash % 64) as usize] += 1;
            high[(hash >> 58) as usize] += 1;
        }
        // 1000 expected in each, with a standard deviation of 31: 8 deviations are never reached by chance.
        assert!(
            low.iter()
                .chain(&high)
                .all(|&count| count.abs_diff(1000) < 250)
        );
    }

    #[test]
    fn no_bits_are_one_hash() {
        let hasher = TokenHasher::with_bits(0);
        assert_eq!(hasher.chain(9, &[1]), 0);
        assert!(TokenHasher::with_bits(2).chain(9, &[1]) < 4);
    }
}
