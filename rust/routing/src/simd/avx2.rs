//! AVX2: sixteen numbers are two registers.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtsi64_si128, _mm_cvtsi128_si32, _mm_cvtss_f32,
    _mm_max_epi32, _mm_max_ps, _mm_min_epi32, _mm_movehl_ps, _mm_packus_epi16, _mm_shuffle_epi32,
    _mm_shuffle_ps, _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_blendv_epi8, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cmpgt_epi32, _mm256_cvtepu8_epi32, _mm256_div_ps,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_max_epi32, _mm256_max_ps, _mm256_min_epi32, _mm256_movemask_ps, _mm256_mul_ps,
    _mm256_or_si256, _mm256_packus_epi32, _mm256_permute2f128_ps, _mm256_permute2x128_si256,
    _mm256_permute4x64_epi64, _mm256_permutevar8x32_epi32, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_sqrt_ps, _mm256_srai_epi32,
    _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32, _mm256_sub_ps, _mm256_unpackhi_epi64,
    _mm256_unpackhi_ps, _mm256_unpacklo_epi64, _mm256_unpacklo_ps, _mm256_xor_si256,
};

use super::lanes::{CANDIDATES, Candidates, Lanes, WIDTH};

/// The proof that the processor has AVX2, BMI1 and POPCNT; only `simd.rs` makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(super) ());

/// For each mask of eight lanes, the numbers of the set lanes, ascending.
static SET_LANES: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][next] = lane as u8;
                next += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// Methods that are one instruction on each register.
///
/// No closures here: one would be compiled without the tier's instructions, and the calls into it kept.
macro_rules! each {
    ($($name:ident($($argument:ident: $from:ident),+) => $to:ident = $instruction:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($argument: Self::$from),+) -> Self::$to {
            // SAFETY: `self` exists only where the processor has AVX2.
            unsafe { [$instruction($($argument[0]),+), $instruction($($argument[1]),+)] }
        }
    )+};
}

impl Lanes for Avx2 {
    type Float = [__m256; 2];
    type Int = [__m256i; 2];
    type Mask = [__m256i; 2];

    each! {
        add(a: Float, b: Float) => Float = _mm256_add_ps;
        sub(a: Float, b: Float) => Float = _mm256_sub_ps;
        mul(a: Float, b: Float) => Float = _mm256_mul_ps;
        div(a: Float, b: Float) => Float = _mm256_div_ps;
        max(a: Float, b: Float) => Float = _mm256_max_ps;
        sqrt(a: Float) => Float = _mm256_sqrt_ps;
        bits(a: Float) => Int = _mm256_castps_si256;
        with_bits(a: Int) => Float = _mm256_castsi256_ps;
        int_add(a: Int, b: Int) => Int = _mm256_add_epi32;
        int_sub(a: Int, b: Int) => Int = _mm256_sub_epi32;
        and(a: Int, b: Int) => Int = _mm256_and_si256;
        or(a: Int, b: Int) => Int = _mm256_or_si256;
        xor(a: Int, b: Int) => Int = _mm256_xor_si256;
        int_max(a: Int, b: Int) => Int = _mm256_max_epi32;
        int_min(a: Int, b: Int) => Int = _mm256_min_epi32;
        greater(a: Int, b: Int) => Mask = _mm256_cmpgt_epi32;
        count(sum: Int, mask: Mask) => Int = _mm256_sub_epi32;
    }

    #[inline(always)]
    fn shift_left_23(self, a: Self::Int) -> Self::Int {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe { [_mm256_slli_epi32::<23>(a[0]), _mm256_slli_epi32::<23>(a[1])] }
    }

    #[inline(always)]
    fn halve(self, a: Self::Int) -> Self::Int {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe { [_mm256_srai_epi32::<1>(a[0]), _mm256_srai_epi32::<1>(a[1])] }
    }

    #[inline(always)]
    fn sign(self, a: Self::Int) -> Self::Int {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe { [_mm256_srai_epi32::<31>(a[0]), _mm256_srai_epi32::<31>(a[1])] }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Float {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> Self::Float {
        // SAFETY: the processor has AVX2, and the array holds sixteen numbers.
        unsafe {
            [
                _mm256_loadu_ps(from.as_ptr()),
                _mm256_loadu_ps(from.as_ptr().add(8)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, value: Self::Float, to: &mut [f32; WIDTH]) {
        // SAFETY: the processor has AVX2, and the array holds sixteen numbers.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
        }
    }

    #[inline(always)]
    fn largest(self, a: Self::Float) -> f32 {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ps(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn tree_sum(self, a: Self::Float) -> f32 {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn int_splat(self, value: i32) -> Self::Int {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn int_load(self, from: &[i32; WIDTH]) -> Self::Int {
        // SAFETY: the processor has AVX2, and the array holds sixteen numbers.
        unsafe {
            [
                _mm256_loadu_si256(from.as_ptr().cast()),
                _mm256_loadu_si256(from.as_ptr().add(8).cast()),
            ]
        }
    }

    #[inline(always)]
    fn int_store(self, value: Self::Int, to: &mut [i32; WIDTH]) {
        // SAFETY: the processor has AVX2, and the array holds sixteen numbers.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), value[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), value[1]);
        }
    }

    #[inline(always)]
    fn choose(self, mask: Self::Mask, yes: Self::Int, no: Self::Int) -> Self::Int {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe {
            [
                _mm256_blendv_epi8(no[0], yes[0], mask[0]),
                _mm256_blendv_epi8(no[1], yes[1], mask[1]),
            ]
        }
    }

    #[inline(always)]
    fn mask_bits(self, mask: Self::Mask) -> u32 {
        half_bits(self, mask[0]) | half_bits(self, mask[1]) << 8
    }

    #[inline(always)]
    fn smallest(self, a: Self::Int) -> i32 {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe {
            let eight = _mm256_min_epi32(a[0], a[1]);
            let upper = _mm256_extracti128_si256::<1>(eight);
            let four = _mm_min_epi32(_mm256_castsi256_si128(eight), upper);
            let two = _mm_min_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
            _mm_cvtsi128_si32(_mm_min_epi32(two, _mm_shuffle_epi32::<0b01>(two)))
        }
    }

    #[inline(always)]
    fn top_two(self, first: Self::Int, second: Self::Int) -> (i32, i32) {
        // SAFETY: `self` exists only where the processor has AVX2.
        unsafe {
            let (first, second) = merge(self, first[0], second[0], first[1], second[1]);
            let mut best = _mm256_castsi256_si128(first);
            let mut next = _mm256_castsi256_si128(second);
            let mut other_best = _mm256_extracti128_si256::<1>(first);
            let mut other_next = _mm256_extracti128_si256::<1>(second);
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
    fn top_two_of_eight(
        self,
        first: &[[i32; WIDTH]; 8],
        second: &[[i32; WIDTH]; 8],
        best: &mut [i32; 8],
        next: &mut [i32; 8],
    ) {
        // Groups are merged while they are moved towards a lane of their own: eight lanes of one, then four lanes of
        // two, two of four, one of eight.
        let two_low = two(
            self,
            four(self, first, second, 0),
            four(self, first, second, 1),
        );
        let two_high = two(
            self,
            four(self, first, second, 2),
            four(self, first, second, 3),
        );
        // Lanes: groups 0, 0, 1, 1, 4, 4, 5, 5 and 2, 2, 3, 3, 6, 6, 7, 7.
        let ((a, b), (c, d)) = (two_low, two_high);
        let even = (even(self, a, c), even(self, b, d));
        let odd = (odd(self, a, c), odd(self, b, d));
        let (first, second) = merge(self, even.0, even.1, odd.0, odd.1);
        // SAFETY: the processor has AVX2, and the arrays hold eight numbers.
        unsafe {
            _mm256_storeu_si256(best.as_mut_ptr().cast(), first);
            _mm256_storeu_si256(next.as_mut_ptr().cast(), second);
        }
    }

    #[inline(always)]
    fn collect(self, orders: Self::Int, below: Self::Int, start: i32, candidates: &mut Candidates) {
        let above = self.greater(orders, below);
        for half in 0..2 {
            let set = half_bits(self, above[half]);
            let (to_orders, to_indices) = candidates.room::<8>();
            let lanes = i64::from_le_bytes(SET_LANES[set as usize % 256]);
            // SAFETY: the processor has AVX2, and both arrays hold eight numbers.
            unsafe {
                let lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(lanes));
                let moved = _mm256_permutevar8x32_epi32(orders[half], lanes);
                _mm256_storeu_si256(to_orders.as_mut_ptr().cast(), moved);
                let first = _mm256_set1_epi32(start + half as i32 * 8);
                let indices = _mm256_add_epi32(lanes, first);
                _mm256_storeu_si256(to_indices.as_mut_ptr().cast(), indices);
            }
            candidates.found += set.count_ones() as usize;
        }
    }

    #[inline(always)]
    fn collect_all(
        self,
        orders: &[[i32; WIDTH]],
        below: Self::Int,
        start: usize,
        candidates: &mut Candidates,
    ) {
        let mut found = candidates.found;
        // SAFETY: the processor has AVX2, and the slices that are written hold eight numbers.
        unsafe {
            let mut first = _mm256_set1_epi32(start as i32);
            let step = _mm256_set1_epi32(8);
            for orders in orders.as_flattened().as_chunks::<8>().0 {
                if found > CANDIDATES {
                    break;
                }
                let orders = _mm256_loadu_si256(orders.as_ptr().cast());
                let set = half_bits(self, _mm256_cmpgt_epi32(orders, below[0]));
                let lanes = i64::from_le_bytes(SET_LANES[set as usize % 256]);
                let lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(lanes));
                let to = candidates.orders[found..found + 8].as_mut_ptr();
                _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(orders, lanes));
                let to = candidates.indices[found..found + 8].as_mut_ptr();
                _mm256_storeu_si256(to.cast(), _mm256_add_epi32(lanes, first));
                first = _mm256_add_epi32(first, step);
                found += set.count_ones() as usize;
            }
        }
        candidates.found = found;
    }

    #[inline(always)]
    fn transpose(self, from: &[&[f32; WIDTH]; WIDTH], to: &mut [[f32; WIDTH]; WIDTH]) {
        for rows in [0, 8] {
            for columns in [0, 8] {
                transpose_eight(self, from, rows, columns, to);
            }
        }
    }

    #[inline(always)]
    fn insert_all<const N: usize>(
        self,
        scores: &[[f32; WIDTH]],
        bias: Option<&[f32]>,
        best: &mut [[i32; WIDTH]; N],
        places: &mut [[i32; WIDTH]; N],
    ) {
        // Half the tokens at a time: their lists fit into the registers.
        for half in [0, 8] {
            insert_eight(self, half, scores, bias, best, places);
        }
    }

    #[inline(always)]
    fn store_bytes(self, value: Self::Int, to: &mut [u8; WIDTH]) {
        // SAFETY: the processor has AVX2, and the array holds sixteen bytes.
        unsafe {
            let pairs = _mm256_packus_epi32(value[0], value[1]);
            let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            let (low, high) = (
                _mm256_castsi256_si128(pairs),
                _mm256_extracti128_si256::<1>(pairs),
            );
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packus_epi16(low, high));
        }
    }
}

#[inline(always)]
fn half_bits(_: Avx2, mask: __m256i) -> u32 {
    // SAFETY: the first argument exists only where the processor has AVX2.
    unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(mask)) as u32 }
}

/// The two largest of `a >= b` and `c >= d`, in each lane.
#[inline(always)]
fn merge(_: Avx2, a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> (__m256i, __m256i) {
    // SAFETY: the first argument exists only where the processor has AVX2.
    unsafe {
        let second = _mm256_max_epi32(_mm256_min_epi32(a, c), _mm256_max_epi32(b, d));
        (_mm256_max_epi32(a, c), second)
    }
}

type Pair = (__m256i, __m256i);

/// The two best of eight lanes of a group.
#[inline(always)]
fn eight(l: Avx2, first: &[i32; WIDTH], second: &[i32; WIDTH]) -> Pair {
    let (first, second) = (l.int_load(first), l.int_load(second));
    merge(l, first[0], second[0], first[1], second[1])
}

/// The two best of four lanes of a group and of the fourth after it.
#[inline(always)]
fn four(l: Avx2, first: &[[i32; WIDTH]; 8], second: &[[i32; WIDTH]; 8], group: usize) -> Pair {
    let (a, b) = eight(l, &first[group], &second[group]);
    let (c, d) = eight(l, &first[group + 4], &second[group + 4]);
    // SAFETY: `l` exists only where the processor has AVX2.
    unsafe {
        merge(
            l,
            _mm256_permute2x128_si256::<0x20>(a, c),
            _mm256_permute2x128_si256::<0x20>(b, d),
            _mm256_permute2x128_si256::<0x31>(a, c),
            _mm256_permute2x128_si256::<0x31>(b, d),
        )
    }
}

/// The two best of two lanes of four groups.
#[inline(always)]
fn two(l: Avx2, (a, b): Pair, (c, d): Pair) -> Pair {
    // SAFETY: `l` exists only where the processor has AVX2.
    unsafe {
        merge(
            l,
            _mm256_unpacklo_epi64(a, c),
            _mm256_unpacklo_epi64(b, d),
            _mm256_unpackhi_epi64(a, c),
            _mm256_unpackhi_epi64(b, d),
        )
    }
}

/// Lanes 0 and 2 of each half of both.
#[inline(always)]
fn even(_: Avx2, a: __m256i, c: __m256i) -> __m256i {
    // SAFETY: the first argument exists only where the processor has AVX2.
    unsafe {
        let (a, c) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(c));
        _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, c))
    }
}

/// Lanes 1 and 3 of each half of both.
#[inline(always)]
fn odd(_: Avx2, a: __m256i, c: __m256i) -> __m256i {
    // SAFETY: the first argument exists only where the processor has AVX2.
    unsafe {
        let (a, c) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(c));
        _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, c))
    }
}

/// Writes eight columns of eight rows as rows: rows are interleaved in pairs, in fours, then halves are exchanged.
#[inline(always)]
pub(super) fn transpose_eight(
    _: Avx2,
    from: &[&[f32; WIDTH]; WIDTH],
    rows: usize,
    columns: usize,
    to: &mut [[f32; WIDTH]; WIDTH],
) {
    // SAFETY: the first argument exists only where the processor has AVX2, and eight numbers from 0 or 8 on lie within
    // rows of sixteen.
    unsafe {
        let mut row = [_mm256_setzero_ps(); 8];
        for at in 0..8 {
            row[at] = _mm256_loadu_ps(from[rows + at][columns..columns + 8].as_ptr());
        }
        let mut pair = [_mm256_setzero_ps(); 8];
        for at in 0..4 {
            pair[2 * at] = _mm256_unpacklo_ps(row[2 * at], row[2 * at + 1]);
            pair[2 * at + 1] = _mm256_unpackhi_ps(row[2 * at], row[2 * at + 1]);
        }
        let mut four = [_mm256_setzero_ps(); 8];
        for half in 0..2 {
            let at = 4 * half;
            four[at] = _mm256_shuffle_ps::<0b01_00_01_00>(pair[at], pair[at + 2]);
            four[at + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pair[at], pair[at + 2]);
            four[at + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(pair[at + 1], pair[at + 3]);
            four[at + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(pair[at + 1], pair[at + 3]);
        }
        for at in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(four[at], four[at + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(four[at], four[at + 4]);
            _mm256_storeu_ps(to[columns + at][rows..rows + 8].as_mut_ptr(), low);
            _mm256_storeu_ps(to[columns + at + 4][rows..rows + 8].as_mut_ptr(), high);
        }
    }
}

/// As [`Lanes::insert_all`], for the eight lanes from `half` on.
#[inline(always)]
fn insert_eight<const N: usize>(
    _: Avx2,
    half: usize,
    scores: &[[f32; WIDTH]],
    bias: Option<&[f32]>,
    best: &mut [[i32; WIDTH]; N],
    places: &mut [[i32; WIDTH]; N],
) {
    // SAFETY: the first argument exists only where the processor has AVX2, and eight numbers from 0 or 8 on lie within
    // rows of sixteen.
    unsafe {
        let magnitude = _mm256_set1_epi32(i32::MAX);
        let mut orders = [_mm256_set1_epi32(i32::MIN); N];
        let mut experts = [_mm256_set1_epi32(0); N];
        for (expert, score) in scores.iter().enumerate() {
            let score = _mm256_loadu_ps(score[half..half + 8].as_ptr());
            let order = match bias {
                None => _mm256_castps_si256(score),
                Some(bias) => {
                    let key = _mm256_add_ps(score, _mm256_set1_ps(bias[expert]));
                    let key = _mm256_castps_si256(key);
                    let sign = _mm256_srai_epi32::<31>(key);
                    _mm256_xor_si256(key, _mm256_and_si256(sign, magnitude))
                }
            };
            let expert = _mm256_set1_epi32(expert as i32);
            let mut beaten = _mm256_cmpgt_epi32(order, orders[N - 1]);
            let mut place = N - 1;
            while place > 0 {
                let before = orders[place - 1];
                let beats_before = _mm256_cmpgt_epi32(order, before);
                let moved = _mm256_blendv_epi8(expert, experts[place - 1], beats_before);
                orders[place] = _mm256_max_epi32(orders[place], _mm256_min_epi32(before, order));
                experts[place] = _mm256_blendv_epi8(experts[place], moved, beaten);
                beaten = beats_before;
                place -= 1;
            }
            orders[0] = _mm256_max_epi32(orders[0], order);
            experts[0] = _mm256_blendv_epi8(experts[0], expert, beaten);
        }
        for place in 0..N {
            let best = best[place][half..half + 8].as_mut_ptr();
            _mm256_storeu_si256(best.cast(), orders[place]);
            let expert = places[place][half..half + 8].as_mut_ptr();
            _mm256_storeu_si256(expert.cast(), experts[place]);
        }
    }
}
