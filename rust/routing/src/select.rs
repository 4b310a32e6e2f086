//! Choosing the best experts of one row, without ties: the specification.
//!
//! A key's order is an integer, larger for better, the smallest one for an expert that may not be chosen. A rank holds
//! the order in its upper half and the index, inverted, in the lower one: all ranks of a row differ, and the lower
//! index wins among equal keys.

/// How a group of experts is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// By its best key.
    Max,
    /// By the sum of its two best keys.
    TopTwoSum,
}

/// The order of an expert that may not be chosen: below that of every number.
pub(crate) const NEVER: i32 = i32::MIN;

/// Maps a number to its order. Adding zero makes -0 equal to +0.
#[inline(always)]
pub(crate) fn order(key: f32) -> i32 {
    flip((key + 0.0).to_bits() as i32)
}

/// The number of an order.
#[inline(always)]
fn number(order: i32) -> f32 {
    f32::from_bits(flip(order) as u32)
}

/// Negative floats grow as their bits shrink.
#[inline(always)]
fn flip(bits: i32) -> i32 {
    bits ^ (bits >> 31 & 0x7fff_ffff)
}

fn rank(order: i32, index: usize) -> i64 {
    i64::from(order) << 32 | i64::from(!(index as u32))
}

/// The index that a rank holds.
pub(crate) fn index_of(rank: i64) -> usize {
    !(rank as u32) as usize
}

/// Fills `best` with the ranks of the largest orders, descending. There are at least `best.len()` orders.
pub(crate) fn top(orders: impl Iterator<Item = i32>, best: &mut [i64]) {
    best.fill(i64::MIN);
    let last = best.len() - 1;
    for (index, order) in orders.enumerate() {
        let candidate = rank(order, index);
        if candidate <= best[last] {
            continue;
        }
        let mut slot = last;
        while slot > 0 && best[slot - 1] < candidate {
            best[slot] = best[slot - 1];
            slot -= 1;
        }
        best[slot] = candidate;
    }
}

/// The order of a group, from the orders of its experts.
pub(crate) fn group_order(score: GroupScore, orders: &[i32]) -> i32 {
    let (mut first, mut second) = (NEVER, NEVER);
    for &order in orders {
        second = second.max(order.min(first));
        first = first.max(order);
    }
    if score == GroupScore::Max || second == NEVER {
        return first;
    }
    let sum = number(first) + number(second);
    // inf - inf: a group that cannot be ranked ranks last among those with a selectable expert.
    order(if sum.is_nan() { f32::NEG_INFINITY } else { sum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_follows_the_numbers_and_joins_the_zeros() {
        let sorted = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1.0,
            -1e-45,
            0.0,
            1e-45,
            1.0,
            f32::MAX,
            f32::INFINITY,
        ];
        for pair in sorted.windows(2) {
            assert!(order(pair[0]) < order(pair[1]), "{pair:?}");
        }
        for value in sorted {
            assert_eq!(number(order(value)), value);
        }
        assert_eq!(order(-0.0), order(0.0));
        assert!(order(f32::NEG_INFINITY) > NEVER);
    }

    #[test]
    fn ties_pick_the_lower_index() {
        let mut best = [0; 3];
        top([5, 9, 9, 5].into_iter(), &mut best);
        assert_eq!(best.map(index_of), [1, 2, 0]);
    }

    #[test]
    fn an_expert_that_may_not_be_chosen_comes_last() {
        let mut best = [0; 3];
        top(
            [NEVER, order(f32::NEG_INFINITY), NEVER].into_iter(),
            &mut best,
        );
        assert_eq!(best.map(index_of), [1, 0, 2]);
    }

    #[test]
    fn a_group_is_worth_the_two_best_selectable_keys() {
        let orders = [order(1.0), NEVER, order(3.0)];
        assert_eq!(group_order(GroupScore::TopTwoSum, &orders), order(4.0));
        assert_eq!(group_order(GroupScore::Max, &orders), order(3.0));
        assert_eq!(
            group_order(GroupScore::TopTwoSum, &[NEVER, NEVER, order(3.0)]),
            order(3.0)
        );
        assert_eq!(group_order(GroupScore::TopTwoSum, &[NEVER; 3]), NEVER);
        let infinite = [order(f32::INFINITY), order(f32::NEG_INFINITY)];
        assert_eq!(
            group_order(GroupScore::TopTwoSum, &infinite),
            order(f32::NEG_INFINITY)
        );
    }
}
