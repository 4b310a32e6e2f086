//! Moonlight's and Kimi's `tiktoken.model`: a line for each token, its bytes in base 64 and its rank, which is its id.
//!
//! There a pair of tokens merges when its bytes are a token's, the lowest rank first, and a piece that is spelled like a
//! token is that token. The list of merges that says the same is made here: merging a token's bytes with the ranks below
//! its own leaves two parts, and no other pair ever becomes it, for what merges inside it is the same wherever it stands.

use std::collections::HashMap;

use crate::added::{AddedToken, MAX_LENGTH};
use crate::bytelevel::name_of;
use crate::cased::Cased;
use crate::error::{Error, Result, shorten};
use crate::load::{MAX_ID, Parts};
use crate::merges::{MAX_MERGES, Merges, NONE};
use crate::pieces::{Index, Strings};
use crate::pretokenize::PreTokenizer;

/// Longest token: merging one costs the square of its length, and those of the published files have 128 bytes.
const MAX_TOKEN: usize = 1024;

/// Most work of merging all tokens: the sum of their squared lengths. The published files need a hundredth of it.
const MAX_WORK: usize = 1 << 29;

/// A control token beside the file's own: id, content, whether it is special.
pub type Control = (u32, String, bool);

/// Reads the lines and numbers the control tokens as told.
pub(crate) fn parts(model: &[u8], controls: &[Control]) -> Result<Parts> {
    let tokens = read(model)?;
    let count = tokens.len();
    let mut names = Strings::with_ids(count, model.len());
    let mut index = Index::with_capacity(count + controls.len());
    let mut ranks: HashMap<&[u8], u32> = HashMap::with_capacity(count);
    for (id, token) in (0..).zip(&tokens) {
        if let Some(earlier) = ranks.insert(token, id) {
            return Err(Error::DuplicateToken {
                token: shorten(&String::from_utf8_lossy(token)),
                ids: (earlier, id),
            });
        }
        names.set(id, name_of(token).as_bytes());
        index.insert(id, &names);
    }
    let work = tokens.iter().map(|token| token.len() * token.len()).sum();
    if work > MAX_WORK {
        return Err(Error::TooMany {
            field: "the sum of the tokens' squared lengths",
            count: work,
            limit: MAX_WORK,
        });
    }
    let mut merges = Merges::with_capacity(count, count);
    for (id, token) in (0..).zip(&tokens) {
        if let Some((left, right)) = last_pair(token, id, &ranks) {
            merges.push(left, right, id);
        }
    }
    merges.finish();
    Ok(Parts {
        names,
        index,
        merges,
        added: read_controls(controls, count)?,
        pre_tokenizer: PreTokenizer::Cased(Cased::new()),
        ignore_merges: true,
        composes: false,
    })
}

/// The tokens' bytes, by rank.
fn read(model: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    let lines = model.split(|&byte| byte == b'\n');
    for (number, line) in (1..).zip(lines) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let damaged = |expected| Error::Line { number, expected };
        let place = line.iter().position(|&byte| byte == b' ');
        let (token, rank) = line.split_at(place.ok_or(damaged("a token, a space and a rank"))?);
        let rank: Option<u64> = str::from_utf8(&rank[1..])
            .ok()
            .and_then(|rank| rank.parse().ok());
        if rank != Some(tokens.len() as u64) {
            return Err(damaged("the next rank, counted from 0"));
        }
        if tokens.len() >= MAX_MERGES.min(MAX_ID as usize) {
            return Err(Error::TooMany {
                field: "the file",
                count: tokens.len() + 1,
                limit: MAX_MERGES.min(MAX_ID as usize),
            });
        }
        let token = from_base64(token).ok_or(damaged("a token in base 64"))?;
        if !(1..=MAX_TOKEN).contains(&token.len()) {
            return Err(damaged("a token of 1 to 1024 bytes"));
        }
        tokens.push(token);
    }
    if tokens.is_empty() {
        return Err(Error::Field {
            field: "the file".into(),
            expected: "at least one token",
        });
    }
    Ok(tokens)
}

/// The bytes that base 64 with padding spells.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text
        .strip_suffix(b"==")
        .or(text.strip_suffix(b"="))
        .unwrap_or(text);
    if !text.len().is_multiple_of(4) || digits.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for &digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    (bits & ((1 << count) - 1) == 0).then_some(out)
}

/// The two parts that merging leaves of a token with the ranks below its own; `None` when it leaves another number.
fn last_pair(token: &[u8], id: u32, ranks: &HashMap<&[u8], u32>) -> Option<(u32, u32)> {
    // Where each part starts, and behind the last one the end.
    let mut starts: Vec<usize> = (0..=token.len()).collect();
    let rank = |starts: &[usize], at: usize| -> u32 {
        let end = starts.get(at + 2);
        let joined = end.and_then(|&end| ranks.get(&token[starts[at]..end]));
        joined.copied().filter(|&rank| rank < id).unwrap_or(NONE)
    };
    let mut pairs: Vec<u32> = (0..token.len()).map(|at| rank(&starts, at)).collect();
    while let Some((at, &best)) = pairs.iter().enumerate().min_by_key(|&(_, &rank)| rank)
        && best != NONE
    {
        starts.remove(at + 1);
        pairs.remove(at + 1);
        pairs[at] = rank(&starts, at);
        if at > 0 {
            pairs[at - 1] = rank(&starts, at - 1);
        }
    }
    let &[start, middle, end] = &starts[..] else {
        return None;
    };
    Some((
        *ranks.get(&token[start..middle])?,
        *ranks.get(&token[middle..end])?,
    ))
}

fn read_controls(controls: &[Control], count: usize) -> Result<Vec<AddedToken>> {
    let mut added: Vec<AddedToken> = Vec::with_capacity(controls.len());
    for (index, (id, content, special)) in controls.iter().enumerate() {
        if *id > MAX_ID {
            return Err(Error::IdTooLarge {
                id: u64::from(*id),
                limit: MAX_ID,
            });
        }
        let taken = |other: &AddedToken| other.id == *id || other.content == *content;
        if (*id as usize) < count || added.iter().any(taken) {
            return Err(Error::DuplicateId {
                id: *id,
                token: shorten(content),
            });
        }
        if content.is_empty() || content.len() > MAX_LENGTH {
            return Err(Error::AddedTokenLength {
                index,
                length: content.len(),
                limit: MAX_LENGTH,
            });
        }
        added.push(AddedToken {
            id: *id,
            content: content.clone(),
            special: *special,
            normalized: false,
            strip_left: false,
            strip_right: false,
        });
    }
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_is_read_with_its_padding_and_nothing_else() {
        assert_eq!(from_base64(b"aGk="), Some(b"hi".to_vec()));
        assert_eq!(from_base64(b"aGkh"), Some(b"hi!".to_vec()));
        assert_eq!(from_base64(b"IQ=="), Some(b"!".to_vec()));
        for bad in ["", "=", "====", "IQ", "IR==", "a$==", "IQ=a"] {
            assert_eq!(from_base64(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_token_that_merging_does_not_reach_has_no_merge() {
        let tokens: [&[u8]; 6] = [b"a", b"b", b"c", b"bc", b"abc", b"acb"];
        let ranks: HashMap<&[u8], u32> = tokens.into_iter().zip(0..).collect();
        assert_eq!(last_pair(b"abc", 4, &ranks), Some((0, 3)));
        assert_eq!(last_pair(b"acb", 5, &ranks), None);
    }

    #[test]
    fn damaged_lines_are_named() {
        for (text, line) in [
            ("IQ== 0\nIg==\n", 2),
            ("IQ== 1", 1),
            ("IQ== 0\nIg== 1\n!!!! 2", 3),
        ] {
            let error = read(text.as_bytes()).err();
            assert!(
                matches!(error, Some(Error::Line { number, .. }) if number == line),
                "{text:?}"
            );
        }
    }
}
