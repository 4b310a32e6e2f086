//! The likeliest token of a row of logits.

/// Numbers looked at together.
const LANES: usize = 16;

/// Where the largest number stands, the first of equal ones; `None` if a number is not finite, or there is none.
pub fn greedy(logits: &[f32]) -> Option<usize> {
    // The exponent of what is not finite has all bits set; otherwise the maximum of the numbers is what counts.
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut exponents = [0_u32; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    let mut look = |chunk: &[f32]| {
        for ((largest, exponent), &value) in largest.iter_mut().zip(&mut exponents).zip(chunk) {
            *largest = if value > *largest { value } else { *largest };
            *exponent = (*exponent).max(value.to_bits() & EXPONENT);
        }
    };
    for chunk in whole {
        look(chunk);
    }
    look(rest);
    if exponents.contains(&EXPONENT) {
        return None;
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&value| value == largest)
}

const EXPONENT: u32 = 0x7f80_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn defined(logits: &[f32]) -> Option<usize> {
        if logits.iter().any(|value| !value.is_finite()) {
            return None;
        }
        (0..logits.len()).reduce(|best, at| if logits[at] > logits[best] { at } else { best })
    }

    #[test]
    fn zeros_of_both_signs_are_equal() {
        assert_eq!(greedy(&[-1.0, -0.0, 0.0]), Some(1));
        assert_eq!(greedy(&[]), None);
    }

    proptest! {
        #[test]
        fn is_the_first_largest_number(
            mut logits in prop::collection::vec(-4_i8..5, 1..70),
            odd in prop::option::of((any::<prop::sample::Index>(), any::<f32>())),
        ) {
            logits.dedup();
            let mut logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            if let Some((at, value)) = odd {
                let at = at.index(logits.len());
                logits[at] = value;
            }
            prop_assert_eq!(greedy(&logits), defined(&logits));
        }

        #[test]
        fn a_number_that_is_not_finite_is_found_wherever_it_stands(
            count in 1_usize..70,
            at in any::<prop::sample::Index>(),
            bad in prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        ) {
            let mut logits = vec![1.0; count];
            logits[at.index(count)] = bad;
            prop_assert_eq!(greedy(&logits), None);
        }
    }
}
