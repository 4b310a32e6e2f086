//! Where the tokens of a step stand: one span for each sequence.

use super::error::Error;

/// Numbers of a span in memory.
pub(super) const SPAN: usize = 4;

/// The tokens that one sequence brings to a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span<'a> {
    /// First token in the flat batch.
    pub(super) start: usize,
    /// Tokens.
    pub(super) length: usize,
    /// Position of the first one.
    pub(super) position: usize,
    /// How many of the first tokens take the expanded form.
    pub(super) expanded: usize,
    /// Page ids in order of position.
    pub(super) table: &'a [i32],
}

/// Checks all spans: they cover the batch without gaps, and their pages lie in the cache.
///
/// `spans` is `[sequences, 4]` of start, length, position and expanded tokens; `tables` `[sequences, pages]`.
pub(super) fn read<'a>(
    spans: &[i32],
    tables: &'a [i32],
    tokens: usize,
    page_size: usize,
    num_pages: usize,
) -> Result<Vec<Span<'a>>, Error> {
    let sequences = spans.len() / SPAN;
    let across = tables.len().checked_div(sequences).unwrap_or(0);
    let mut found = Vec::with_capacity(sequences);
    let mut covered = 0;
    for (index, numbers) in spans.chunks_exact(SPAN).enumerate() {
        let limited = |name, value: i32, low: usize, high: usize| {
            let fits = usize::try_from(value).is_ok_and(|value| (low..=high).contains(&value));
            if fits {
                Ok(value as usize)
            } else {
                Err(Error::Span {
                    index,
                    name,
                    value,
                    low,
                    high,
                })
            }
        };
        let start = limited("start", numbers[0], covered, covered)?;
        let length = limited("length", numbers[1], 1, (tokens - covered).max(1))?;
        if length > tokens - covered {
            return Err(Error::Uncovered { tokens, covered });
        }
        let position = limited("position", numbers[2], 0, i32::MAX as usize)?;
        let expanded = limited("number of expanded tokens", numbers[3], 0, length)?;
        if position + length > across * page_size {
            return Err(Error::Pages {
                index,
                needed: (position + length).div_ceil(page_size),
                given: across,
            });
        }
        let table = &tables[index * across..][..(position + length).div_ceil(page_size)];
        for (place, &page) in table.iter().enumerate() {
            if !usize::try_from(page).is_ok_and(|page| page < num_pages) {
                return Err(Error::Page {
                    index,
                    place,
                    page,
                    num_pages,
                });
            }
        }
        covered += length;
        found.push(Span {
            start,
            length,
            position,
            expanded,
            table,
        });
    }
    if covered == tokens {
        Ok(found)
    } else {
        Err(Error::Uncovered { tokens, covered })
    }
}
