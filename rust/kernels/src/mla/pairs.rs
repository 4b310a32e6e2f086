//! The products of the bfloat16 form, in registers: pairs of bfloat16 numbers, multiplied and added in float32.
//!
//! A pair is 32 bits, its earlier number in the lower half. An element is one chain of dot products of pairs in an order
//! that follows from its own row: along the width for a dot product (the chains of the sixteen lanes joined as halves),
//! along the pairs of rows for a sum. Where it stands in a tile changes nothing.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use crate::pairs::dot;

/// Lanes of a register.
pub(super) const LANES: usize = 16;
/// Numbers of a register of pairs.
pub(super) const NUMBERS: usize = 2 * LANES;
/// Rows of a tile on either side: sixteen chains keep the units busy, and more would not stay in registers.
const TILE: usize = 4;
/// Lanes of a strip. Strips lie one after the other: rows a power of two apart would share few places of the nearest
/// cache.
pub(super) const STRIP: usize = TILE * LANES;

/// Rows of pairs, cut into strips: lane `l` of row `p` at `(l / STRIP * room + p) * STRIP + l % STRIP`.
#[derive(Clone, Copy)]
pub(super) struct Strips {
    pub(super) start: *mut u32,
    /// Rows there is room for.
    pub(super) room: usize,
}

impl Strips {
    /// Numbers of 32 bits that `rows` rows of `lanes` lanes take.
    pub(super) fn size(rows: usize, lanes: usize) -> usize {
        rows * lanes.next_multiple_of(STRIP)
    }

    /// The rows from `row` on.
    #[inline(always)]
    pub(super) fn from(self, row: usize) -> Self {
        Self {
            start: self.start.wrapping_add(row * STRIP),
            ..self
        }
    }

    /// The address of a lane of a row.
    #[inline(always)]
    pub(super) fn at(self, row: usize, lane: usize) -> *mut u32 {
        let strip = lane / STRIP * self.room + row;
        self.start.wrapping_add(strip * STRIP + lane % STRIP)
    }
}

/// What the chains of a sum start from, and what becomes of them.
#[derive(Clone, Copy)]
pub(super) enum Sums {
    /// From zero; what is in the place of the result is not read.
    Fresh,
    /// From what is there.
    Onto,
    /// From what is there, times a factor for each row.
    Rescaled(*const f32),
    /// From zero, then times a factor for each lane.
    Times(*const f32),
    /// From zero, then times a factor for each lane, onto what is there.
    TimesOnto(*const f32),
}

/// Where rows of sums go.
#[derive(Clone, Copy)]
pub(super) struct To {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
}

/// The register at an address.
#[inline(always)]
unsafe fn load(from: *const u32) -> __m512i {
    // SAFETY: the caller gives sixteen pairs, and its tier has the instructions.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

/// Adds to `lanes` lanes of each row of the result the first `pairs` rows of `right`, each times a pair of the result's
/// row: pair `p` of row `i` is at `left[i] + p * step`. Whole registers are written.
///
/// # Safety
/// AVX-512 F and BF16 are there, the inputs are readable, and the result and the factors have room for whole registers.
#[inline(always)]
pub(super) unsafe fn sums(
    left: &[*const u32],
    step: usize,
    right: Strips,
    pairs: usize,
    lanes: usize,
    kind: Sums,
    to: To,
) {
    let mut lane = 0;
    // SAFETY: as the caller promises; tiles stay within the rows.
    unsafe {
        while lane < lanes {
            match (lanes - lane).div_ceil(LANES) {
                1 => {
                    sums_of_strip::<1>(left, step, right, pairs, lane, kind, to);
                    lane += LANES;
                }
                2 | 3 => {
                    sums_of_strip::<2>(left, step, right, pairs, lane, kind, to);
                    lane += 2 * LANES;
                }
                _ => {
                    sums_of_strip::<TILE>(left, step, right, pairs, lane, kind, to);
                    lane += STRIP;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sums_of_strip<const N: usize>(
    left: &[*const u32],
    step: usize,
    right: Strips,
    pairs: usize,
    lane: usize,
    kind: Sums,
    to: To,
) {
    let from = right.at(0, lane).cast_const();
    let (fours, rest) = left.as_chunks::<TILE>();
    // SAFETY: as the caller promises.
    unsafe {
        for (number, &rows) in fours.iter().enumerate() {
            sums_tile::<TILE, N>(rows, step, from, pairs, (number * TILE, lane), kind, to);
        }
        for (number, &row) in rest.iter().enumerate() {
            let row_of = fours.len() * TILE + number;
            sums_tile::<1, N>([row], step, from, pairs, (row_of, lane), kind, to);
        }
    }
}

#[inline(always)]
unsafe fn sums_tile<const M: usize, const N: usize>(
    left: [*const u32; M],
    step: usize,
    right: *const u32,
    pairs: usize,
    (row, lane): (usize, usize),
    kind: Sums,
    to: To,
) {
    let place = |i: usize, j: usize| {
        let start = to.start.wrapping_add((row + i) * to.stride + lane);
        start.wrapping_add(j * LANES)
    };
    // SAFETY: as the caller promises; the tile lies in the rows.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); N]; M];
        match kind {
            Sums::Fresh | Sums::Times(_) | Sums::TimesOnto(_) => {}
            Sums::Onto => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(place(i, j));
                    }
                }
            }
            Sums::Rescaled(factors) => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let factor = _mm512_set1_ps(*factors.add(row + i));
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_mul_ps(_mm512_loadu_ps(place(i, j)), factor);
                    }
                }
            }
        }
        for pair in 0..pairs {
            let mut values = [_mm512_setzero_si512(); N];
            for (j, value) in values.iter_mut().enumerate() {
                *value = load(right.add(pair * STRIP + j * LANES));
            }
            for (sums, row) in sums.iter_mut().zip(left) {
                let factor = row.add(pair * step).cast::<i32>().read_unaligned();
                let factor = _mm512_set1_epi32(factor);
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = dot(*sum, factor, value);
                }
            }
        }
        match kind {
            Sums::Fresh | Sums::Onto | Sums::Rescaled(_) => {}
            Sums::Times(factors) => {
                for sums in &mut sums {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let factor = _mm512_loadu_ps(factors.add(lane + j * LANES));
                        *sum = _mm512_mul_ps(*sum, factor);
                    }
                }
            }
            Sums::TimesOnto(factors) => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let factor = _mm512_loadu_ps(factors.add(lane + j * LANES));
                        *sum = _mm512_fmadd_ps(*sum, factor, _mm512_loadu_ps(place(i, j)));
                    }
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(place(i, j), sum);
            }
        }
    }
}

/// The dot products of rows of `registers` registers of pairs: element `(i, j)`, of `left[i]` and `right[j]`, at
/// `start + j * stride + i`. Four at a time: as many are written as the next multiple of four of either count.
///
/// # Safety
/// AVX-512 F, DQ and BF16 are there, the rows are readable, and the result has room.
#[inline(always)]
pub(super) unsafe fn dots(left: &[*const u32], right: &[*const u32], registers: usize, to: To) {
    for (across, right) in right.chunks(TILE).enumerate() {
        for (down, left) in left.chunks(TILE).enumerate() {
            let start = to
                .start
                .wrapping_add(across * TILE * to.stride + down * TILE);
            // SAFETY: as the caller promises.
            unsafe { dot_tile(four(left), four(right), registers, To { start, ..to }) };
        }
    }
}

/// Four rows: the last one again, where there are fewer.
#[inline(always)]
fn four(rows: &[*const u32]) -> [*const u32; TILE] {
    let last = rows.len() - 1;
    [
        rows[0],
        rows[1.min(last)],
        rows[2.min(last)],
        rows[3.min(last)],
    ]
}

#[inline(always)]
unsafe fn dot_tile(left: [*const u32; TILE], right: [*const u32; TILE], registers: usize, to: To) {
    // SAFETY: as the caller promises.
    unsafe {
        // By row of the right side.
        let mut sums = [[_mm512_setzero_ps(); TILE]; TILE];
        for register in 0..registers {
            let mut values = [_mm512_setzero_si512(); TILE];
            for (value, row) in values.iter_mut().zip(left) {
                *value = load(row.add(register * LANES));
            }
            for (sums, row) in sums.iter_mut().zip(right) {
                let value = load(row.add(register * LANES));
                for (sum, factor) in sums.iter_mut().zip(values) {
                    *sum = dot(*sum, factor, value);
                }
            }
        }
        let joined = join_lanes(sums);
        let quarters = [
            _mm512_extractf32x4_ps::<0>(joined),
            _mm512_extractf32x4_ps::<1>(joined),
            _mm512_extractf32x4_ps::<2>(joined),
            _mm512_extractf32x4_ps::<3>(joined),
        ];
        for (row, quarter) in quarters.into_iter().enumerate() {
            _mm_storeu_ps(to.start.add(row * to.stride), quarter);
        }
    }
}

/// The sum of the lanes of each of sixteen registers, that of `sums[i][j]` in lane `4 * i + j`: two shuffles and an
/// addition for two registers, so 45 instructions where one by one they would be over a hundred.
#[inline(always)]
unsafe fn join_lanes(sums: [[__m512; TILE]; TILE]) -> __m512 {
    // SAFETY: the caller's tier has the instructions.
    unsafe {
        // Every quarter of a register has its sum of each of the four.
        let mut quarters = [_mm512_setzero_ps(); TILE];
        for (quarters, [a, b, c, d]) in quarters.iter_mut().zip(sums) {
            let low = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let high = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (low, high) = (_mm512_castps_pd(low), _mm512_castps_pd(high));
            *quarters = _mm512_add_ps(
                _mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)),
            );
        }
        let [a, b, c, d] = quarters;
        let low = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b0100_0100>(a, b),
            _mm512_shuffle_f32x4::<0b1110_1110>(a, b),
        );
        let high = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b0100_0100>(c, d),
            _mm512_shuffle_f32x4::<0b1110_1110>(c, d),
        );
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b1000_1000>(low, high),
            _mm512_shuffle_f32x4::<0b1101_1101>(low, high),
        )
    }
}

/// Where the numbers of the lower half of two interleaved registers come from: 32 and more are the second's.
const LOWER: [u16; NUMBERS] = {
    let mut places = [0; NUMBERS];
    let mut place = 0;
    while place < NUMBERS {
        places[place] = (place / 2 + place % 2 * NUMBERS) as u16;
        place += 1;
    }
    places
};

/// Two rows as pairs of one row: `count` numbers of `first` with those of `second`, or with zeros where that is null;
/// whole registers of numbers are read, and written from `to` on.
///
/// # Safety
/// AVX-512 F and BW are there, the rows are readable, and the result has room.
#[inline(always)]
pub(super) unsafe fn interleave(first: *const u16, second: *const u16, count: usize, to: *mut u32) {
    // SAFETY: as the caller promises.
    unsafe {
        let lower = load(LOWER.as_ptr().cast());
        let upper = _mm512_add_epi16(lower, _mm512_set1_epi16(LANES as i16));
        for at in (0..count).step_by(NUMBERS) {
            let a = load(first.add(at).cast());
            let b = if second.is_null() {
                _mm512_setzero_si512()
            } else {
                load(second.add(at).cast())
            };
            let to: *mut u32 = to.add(at);
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(a, lower, b));
            _mm512_storeu_si512(to.add(LANES).cast(), _mm512_permutex2var_epi16(a, upper, b));
        }
    }
}

/// Sixteen numbers rounded to bfloat16, each in the lower half of its lane: to nearest even, subnormal ones to zero.
#[inline(always)]
pub(super) unsafe fn round(values: __m512) -> __m512i {
    // SAFETY: the caller's tier has the instructions; both types are 32 bytes of any bits.
    unsafe {
        let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
        _mm512_cvtepu16_epi32(narrow)
    }
}

/// Writes sixteen numbers, rounded as by [`round`].
#[inline(always)]
pub(super) unsafe fn store_rounded(values: __m512, to: *mut u16) {
    // SAFETY: the caller's tier has the instructions and gives room; both types are 32 bytes of any bits.
    unsafe {
        let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
        _mm256_storeu_si256(to.cast(), narrow);
    }
}

/// Pairs of what [`round`] gave.
#[inline(always)]
pub(super) unsafe fn paired(first: __m512i, second: __m512i) -> __m512i {
    // SAFETY: the caller's tier has the instructions.
    unsafe { _mm512_or_si512(first, _mm512_slli_epi32::<16>(second)) }
}

/// What [`round`] gave, in float32.
#[inline(always)]
pub(super) unsafe fn widened(values: __m512i) -> __m512 {
    // SAFETY: the caller's tier has the instructions.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(values)) }
}

/// Turns sixteen rows of pairs into lanes: pair `p` of row `i`, for `pairs` of them, goes to lane `lane + i` of row
/// `row + p`. Whole registers are read, and as many rows written.
///
/// # Safety
/// AVX-512 F is there, the rows are readable, and the result has room.
#[inline(always)]
pub(super) unsafe fn transpose(
    rows: [*const u32; LANES],
    pairs: usize,
    to: Strips,
    (row, lane): (usize, usize),
) {
    for at in (0..pairs).step_by(LANES) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut square = [_mm512_setzero_si512(); LANES];
            for (square, from) in square.iter_mut().zip(rows) {
                *square = load(from.add(at));
            }
            for (number, pairs) in turn(square).into_iter().enumerate() {
                _mm512_storeu_si512(to.at(row + at + number, lane).cast(), pairs);
            }
        }
    }
}

/// A square of sixteen by sixteen, its rows as columns.
#[inline(always)]
unsafe fn turn(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    // SAFETY: the caller's tier has the instructions.
    unsafe {
        // Squares of four in each quarter: rows of four, `turned[4 * i + j]` has column `j` of the rows `4 * i ..`.
        let mut turned = [_mm512_setzero_si512(); LANES];
        for at in (0..LANES).step_by(4) {
            let (ab_low, ab_high) = (
                _mm512_unpacklo_epi32(rows[at], rows[at + 1]),
                _mm512_unpackhi_epi32(rows[at], rows[at + 1]),
            );
            let (cd_low, cd_high) = (
                _mm512_unpacklo_epi32(rows[at + 2], rows[at + 3]),
                _mm512_unpackhi_epi32(rows[at + 2], rows[at + 3]),
            );
            turned[at] = _mm512_unpacklo_epi64(ab_low, cd_low);
            turned[at + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
            turned[at + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            turned[at + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        let mut columns = [_mm512_setzero_si512(); LANES];
        for at in 0..4 {
            // Quarters 0 and 2, 1 and 3 of what belongs to the first eight rows, and to the last.
            let (first, second) = (turned[at], turned[4 + at]);
            let (third, fourth) = (turned[8 + at], turned[12 + at]);
            let even_low = _mm512_shuffle_i32x4::<0b1000_1000>(first, second);
            let odd_low = _mm512_shuffle_i32x4::<0b1101_1101>(first, second);
            let even_high = _mm512_shuffle_i32x4::<0b1000_1000>(third, fourth);
            let odd_high = _mm512_shuffle_i32x4::<0b1101_1101>(third, fourth);
            columns[at] = _mm512_shuffle_i32x4::<0b1000_1000>(even_low, even_high);
            columns[4 + at] = _mm512_shuffle_i32x4::<0b1000_1000>(odd_low, odd_high);
            columns[8 + at] = _mm512_shuffle_i32x4::<0b1101_1101>(even_low, even_high);
            columns[12 + at] = _mm512_shuffle_i32x4::<0b1101_1101>(odd_low, odd_high);
        }
        columns
    }
}
