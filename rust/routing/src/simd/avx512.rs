//! AVX-512: sixteen numbers are one register.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _mm_add_ps, _mm_add_ss, _mm_cvtsi128_si32, _mm_cvtss_f32,
    _mm_max_epi32, _mm_min_epi32, _mm_movehl_ps, _mm_shuffle_epi32, _mm_shuffle_ps,
    _mm_storeu_si128, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps256_ps128,
    _mm256_castsi256_si128, _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_max_epi32,
    _mm256_min_epi32, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_pd,
    _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_castsi512_si256,
    _mm512_cmpgt_epi32_mask, _mm512_cvtepi32_epi8, _mm512_div_ps, _mm512_extractf64x4_pd,
    _mm512_extracti64x4_epi64, _mm512_loadu_epi32, _mm512_loadu_ps, _mm512_mask_add_epi32,
    _mm512_mask_blend_epi32, _mm512_maskz_compress_epi32, _mm512_max_epi32, _mm512_max_ps,
    _mm512_min_epi32, _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_max_ps,
    _mm512_reduce_min_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32,
    _mm512_slli_epi32, _mm512_sqrt_ps, _mm512_srai_epi32, _mm512_storeu_epi32, _mm512_storeu_ps,
    _mm512_sub_epi32, _mm512_sub_ps, _mm512_xor_si512,
};

use super::avx2::Avx2;
use super::lanes::{Candidates, Lanes, WIDTH};

/// The proof that the processor has AVX-512 F, BW, DQ and VL, BMI1 and POPCNT; only `simd.rs` makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(super) ());

/// Methods that are one instruction.
macro_rules! each {
    ($($name:ident($($argument:ident: $from:ident),+) => $to:ident = $instruction:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($argument: Self::$from),+) -> Self::$to {
            // SAFETY: `self` exists only where the processor has AVX-512.
            unsafe { $instruction }
        }
    )+};
}

impl Lanes for Avx512 {
    type Float = __m512;
    type Int = __m512i;
    type Mask = __mmask16;

    each! {
        add(a: Float, b: Float) => Float = _mm512_add_ps(a, b);
        sub(a: Float, b: Float) => Float = _mm512_sub_ps(a, b);
        mul(a: Float, b: Float) => Float = _mm512_mul_ps(a, b);
        div(a: Float, b: Float) => Float = _mm512_div_ps(a, b);
        max(a: Float, b: Float) => Float = _mm512_max_ps(a, b);
        sqrt(a: Float) => Float = _mm512_sqrt_ps(a);
        bits(a: Float) => Int = _mm512_castps_si512(a);
        with_bits(a: Int) => Float = _mm512_castsi512_ps(a);
        int_add(a: Int, b: Int) => Int = _mm512_add_epi32(a, b);
        int_sub(a: Int, b: Int) => Int = _mm512_sub_epi32(a, b);
        and(a: Int, b: Int) => Int = _mm512_and_si512(a, b);
        or(a: Int, b: Int) => Int = _mm512_or_si512(a, b);
        xor(a: Int, b: Int) => Int = _mm512_xor_si512(a, b);
        shift_left_23(a: Int) => Int = _mm512_slli_epi32::<23>(a);
        halve(a: Int) => Int = _mm512_srai_epi32::<1>(a);
        sign(a: Int) => Int = _mm512_srai_epi32::<31>(a);
        int_max(a: Int, b: Int) => Int = _mm512_max_epi32(a, b);
        int_min(a: Int, b: Int) => Int = _mm512_min_epi32(a, b);
        greater(a: Int, b: Int) => Mask = _mm512_cmpgt_epi32_mask(a, b);
        choose(mask: Mask, yes: Int, no: Int) => Int = _mm512_mask_blend_epi32(mask, no, yes);
        count(sum: Int, mask: Mask) => Int =
            _mm512_mask_add_epi32(sum, mask, sum, _mm512_set1_epi32(1));
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` exists only where the processor has AVX-512.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> __m512 {
        // SAFETY: the processor has AVX-512, and the array holds sixteen numbers.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; WIDTH]) {
        // SAFETY: the processor has AVX-512, and the array holds sixteen numbers.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        // SAFETY: `self` exists only where the processor has AVX-512.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn tree_sum(self, a: __m512) -> f32 {
        // SAFETY: `self` exists only where the processor has AVX-512.
        unsafe {
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), upper);
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn int_splat(self, value: i32) -> __m512i {
        // SAFETY: `self` exists only where the processor has AVX-512.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn int_load(self, from: &[i32; WIDTH]) -> __m512i {
        // SAFETY: the processor has AVX-512, and the array holds sixteen numbers.
        unsafe { _mm512_loadu_epi32(from.as_ptr()) }
    }

    #[inline(always)]
    fn int_store(self, value: __m512i, to: &mut [i32; WIDTH]) {
        // SAFETY: the processor has AVX-512, and the array holds sixteen numbers.
        unsafe { _mm512_storeu_epi32(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn mask_bits(self, mask: __mmask16) -> u32 {
        u32::from(mask)
    }

    #[inline(always)]
    fn smallest(self, a: __m512i) -> i32 {
        // SAFETY: `self` exists only where the processor has AVX-512.
        unsafe { _mm512_reduce_min_epi32(a) }
    }

    #[inline(always)]
    fn top_two(self, first: __m512i, second: __m512i) -> (i32, i32) {
        // SAFETY: `self` exists only where the processor has AVX-512.
        unsafe {
            let (a, b) = (
                _mm512_castsi512_si256(first),
                _mm512_castsi512_si256(second),
            );
            let (c, d) = (
                _mm512_extracti64x4_epi64::<1>(first),
                _mm512_extracti64x4_epi64::<1>(second),
            );
            let next = _mm256_max_epi32(_mm256_min_epi32(a, c), _mm256_max_epi32(b, d));
            let best = _mm256_max_epi32(a, c);
            let (mut other_best, mut other_next) = (
                _mm256_extracti128_si256::<1>(best),
                _mm256_extracti128_si256::<1>(next),
            );
            let (mut best, mut next) = (_mm256_castsi256_si128(best), _mm256_castsi256_si128(next));
            for step in 0..3 {
                let lower = _mm_min_epi32(best, other_best);
                best = _mm_max_epi32(best, other_best);
                next = _mm_max_epi32(lower, _mm_max_epi32(next, other_next));
                if step == 0 {
                    other_best = _mm_shuffle_epi32::<0b1110>(best);
                    other_next = _mm_shuffle_epi32::<0b1110>(next);
                } else {
                    other_best = _mm_shuffle_epi32::<0b01>(best);
                    other_next = _mm_shuffle_epi32::<0b01>(next);
                }
            }
            (_mm_cvtsi128_si32(best), _mm_cvtsi128_si32(next))
        }
    }

    #[inline(always)]
    fn collect(self, orders: __m512i, below: __m512i, start: i32, candidates: &mut Candidates) {
        let (to_orders, to_indices) = candidates.room::<WIDTH>();
        // SAFETY: the processor has AVX-512, and both arrays hold sixteen numbers.
        let set = unsafe {
            let set = _mm512_cmpgt_epi32_mask(orders, below);
            let moved = _mm512_maskz_compress_epi32(set, orders);
            _mm512_storeu_epi32(to_orders.as_mut_ptr(), moved);
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let indices = _mm512_add_epi32(lanes, _mm512_set1_epi32(start));
            let moved = _mm512_maskz_compress_epi32(set, indices);
            _mm512_storeu_epi32(to_indices.as_mut_ptr(), moved);
            set
        };
        candidates.found += set.count_ones() as usize;
    }

    #[inline(always)]
    fn store_bytes(self, value: __m512i, to: &mut [u8; WIDTH]) {
        // SAFETY: the processor has AVX-512, and the array holds sixteen bytes.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(value)) }
    }

    #[inline(always)]
    fn transpose(self, from: &[&[f32; WIDTH]; WIDTH], to: &mut [[f32; WIDTH]; WIDTH]) {
        // A processor with AVX-512 has AVX2.
        Avx2(()).transpose(from, to);
    }
}
