//! Grouping (token, choice) pairs by expert: a counting sort.

use crate::error::{Error, Result, expect_length};

/// Writes the positions of `indices`, ordered by expert, to `order`, and where each expert's positions begin to
/// `offsets`, which has one element more than there are experts. Stable: within an expert, positions ascend.
///
/// # Errors
/// A length that does not fit, or an index out of range; nothing is written then.
pub fn permute<I: Copy + Into<i64>>(
    indices: &[I],
    num_experts: usize,
    order: &mut [i32],
    offsets: &mut [i32],
) -> Result<()> {
    match num_experts {
        0 => return Err(Error::NoExperts),
        1..0x7fff_ffff => {}
        _ => return Err(Error::TooManyExperts { num_experts }),
    }
    if i32::try_from(indices.len()).is_err() {
        return Err(Error::TooManyIndices {
            count: indices.len(),
        });
    }
    expect_length("order", indices.len(), order.len())?;
    expect_length("offsets", num_experts + 1, offsets.len())?;
    for &index in indices {
        let index = index.into();
        if !usize::try_from(index).is_ok_and(|index| index < num_experts) {
            return Err(Error::Expert { index, num_experts });
        }
    }
    offsets.fill(0);
    for &index in indices {
        offsets[index.into() as usize + 1] += 1;
    }
    for expert in 0..num_experts {
        offsets[expert + 1] += offsets[expert];
    }
    // Invariant: `offsets[e]` is the next free place of expert e; at the end it is where expert e + 1 begins.
    for (position, &index) in indices.iter().enumerate() {
        let next = &mut offsets[index.into() as usize];
        order[*next as usize] = position as i32;
        *next += 1;
    }
    offsets.copy_within(..num_experts, 1);
    offsets[0] = 0;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_ascend_within_each_expert() {
        let (mut order, mut offsets) = ([0; 6], [9; 5]);
        permute(&[2_i32, 0, 2, 3, 0, 2], 4, &mut order, &mut offsets).unwrap();
        assert_eq!(order, [1, 4, 0, 2, 5, 3]);
        assert_eq!(offsets, [0, 2, 2, 5, 6]);
    }

    #[test]
    fn no_indices_give_zero_offsets() {
        let mut offsets = [9; 3];
        permute::<i64>(&[], 2, &mut [], &mut offsets).unwrap();
        assert_eq!(offsets, [0; 3]);
    }

    #[test]
    fn an_index_out_of_range_is_refused_and_nothing_is_written() {
        let (mut order, mut offsets) = ([7; 2], [7; 3]);
        for bad in [-1_i64, 2] {
            let error = permute(&[0, bad], 2, &mut order, &mut offsets).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("expert is {bad}; it must lie in 0..1")
            );
        }
        assert_eq!((order, offsets), ([7; 2], [7; 3]));
    }
}
