//! Weights as pairs of bfloat16 numbers, for processors that multiply such pairs: AVX-512 with VBMI and BF16.
//!
//! Every packing is read in groups of 128 columns, four registers of 32 numbers. FP8 weights are rounded to bfloat16, code
//! times scale (exact for scales that are powers of two): a block has 128 sizes, so that costs a table for each block
//! and no instruction more. FP4 codes are exact, and the scales of a group's blocks, one float32 factor for each lane,
//! come with it.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use crate::activation::{PAIR_GROUP, normalize};
use crate::lanes::Packing;
use crate::matrix::{Bf16Rows, Fp8Rows, MXFP4_BLOCK, Mxfp4Rows, Stored};

/// Columns of a group: a block of FP8 codes.
pub(crate) const GROUP: usize = PAIR_GROUP;
/// Registers of a group, and numbers of one.
pub(crate) const REGISTERS: usize = 4;
pub(crate) const WIDTH: usize = 32;
/// Lanes of a sum.
pub(crate) const LANES: usize = 16;

/// What the lower seven bits of an FP8 code stand for.
static FP8: [f32; 128] = {
    let mut values = [f32::NAN; 128];
    let mut code = 0;
    while code < 127 {
        let (exponent, mantissa) = (code >> 3, code & 7);
        // Eighths of 2^(exponent - 7); without an exponent, of 2^-6.
        let (eighths, exponent) = if exponent == 0 {
            (mantissa, 1)
        } else {
            (mantissa + 8, exponent)
        };
        values[code] = eighths as f32 * f32::from_bits(((exponent + 117) as u32) << 23);
        code += 1;
    }
    values
};

/// The bfloat16 that each FP8 code of a block stands for, its scale included: of the lower seven bits of a code the lower
/// and the upper byte, 128 each.
pub(crate) const TABLE: usize = 2 * FP8.len();

/// The bfloat16 that the lower four of five bits stand for, whatever the fifth.
static FP4: [u16; 32] = {
    const SIZES: [u16; 8] = [0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0];
    let mut values = [0; 32];
    let mut code = 0;
    while code < 32 {
        values[code] = SIZES[code & 7] | ((code as u16 & 8) << 12);
        code += 1;
    }
    values
};

/// Four registers of 32 numbers, and what the sum of their products is multiplied by where the packing says so.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) numbers: [__m512i; REGISTERS],
    pub(crate) factors: __m512,
}

impl Group {
    /// Zeros.
    ///
    /// # Safety
    /// The tier's instructions are there.
    #[inline(always)]
    pub(crate) unsafe fn zero() -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            Self {
                numbers: [_mm512_setzero_si512(); REGISTERS],
                factors: _mm512_setzero_ps(),
            }
        }
    }
}

/// How the rows of a packing are read.
///
/// # Safety
/// Methods need the tier's instructions; rows and groups must lie in the matrix.
pub(crate) trait PairRows: Stored {
    /// Bytes of a group.
    const GROUP_BYTES: usize;
    /// Whether sums have to be multiplied by factors.
    const SCALED: bool = false;

    /// Reads the group that lies at `at`: group number `group` of row `row`.
    unsafe fn read(&self, at: *const u8, row: usize, group: usize) -> Group;
}

/// FP8 codes, and the tables of a row of blocks.
#[derive(Clone, Copy)]
pub(crate) struct ScaledFp8Rows<'a> {
    codes: Fp8Rows<'a>,
    /// [`TABLE`] bytes for each block.
    tables: *const u8,
}

// SAFETY: the tables are only read.
unsafe impl Sync for ScaledFp8Rows<'_> {}

impl<'a> ScaledFp8Rows<'a> {
    /// Rows of blocks with these scales; their tables are written to `tables`.
    ///
    /// # Safety
    /// The tier's instructions are there.
    #[inline(always)]
    pub(crate) unsafe fn new(codes: Fp8Rows<'a>, scales: &[f32], tables: &'a mut [f32]) -> Self {
        assert!(scales.len() * TABLE / 4 <= tables.len() && codes.columns <= scales.len() * GROUP);
        let tables: *mut u8 = tables.as_mut_ptr().cast();
        for (block, &scale) in scales.iter().enumerate() {
            for start in (0..FP8.len()).step_by(LANES) {
                // SAFETY: the caller has the tier's instructions; sixteen values, and room for their bytes; the types are
                // the same bits.
                unsafe {
                    let values = _mm512_loadu_ps(FP8.as_ptr().add(start));
                    let numbers = _mm512_cvtneps_pbh(_mm512_mul_ps(values, _mm512_set1_ps(scale)));
                    let numbers = std::mem::transmute::<__m256bh, __m256i>(numbers);
                    let to = tables.add(block * TABLE + start);
                    _mm_storeu_si128(to.cast(), _mm256_cvtepi16_epi8(numbers));
                    let upper = _mm256_cvtepi16_epi8(_mm256_srli_epi16::<8>(numbers));
                    _mm_storeu_si128(to.add(TABLE / 2).cast(), upper);
                }
            }
        }
        Self { codes, tables }
    }
}

impl Stored for ScaledFp8Rows<'_> {
    #[inline(always)]
    fn start(&self, row: usize) -> *const u8 {
        self.codes.start(row)
    }

    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.codes.row_bytes()
    }
}

impl PairRows for ScaledFp8Rows<'_> {
    const GROUP_BYTES: usize = GROUP;

    #[inline(always)]
    unsafe fn read(&self, at: *const u8, _row: usize, group: usize) -> Group {
        debug_assert!(group * GROUP < self.codes.columns);
        // SAFETY: the caller gives 128 codes, of a block that has a table, and has the tier's instructions.
        unsafe {
            let table = self.tables.add(group * TABLE);
            let tables = [
                _mm512_load_si512(table.cast()),
                _mm512_load_si512(table.add(64).cast()),
                _mm512_load_si512(table.add(128).cast()),
                _mm512_load_si512(table.add(192).cast()),
            ];
            let [a, b] = fp8(_mm512_loadu_si512(at.cast()), tables);
            let [c, d] = fp8(_mm512_loadu_si512(at.add(64).cast()), tables);
            Group {
                numbers: [a, b, c, d],
                factors: _mm512_setzero_ps(),
            }
        }
    }
}

/// The numbers that 64 codes stand for: of each sixteen the first eight in one register, the others in the second.
#[inline(always)]
unsafe fn fp8(codes: __m512i, tables: [__m512i; 4]) -> [__m512i; 2] {
    // SAFETY: the caller has the tier's instructions.
    unsafe {
        // The look-up takes the lowest seven bits of an index.
        let lower = _mm512_permutex2var_epi8(tables[0], codes, tables[1]);
        let upper = _mm512_permutex2var_epi8(tables[2], codes, tables[3]);
        // upper | (codes & sign)
        let sign = _mm512_set1_epi8(-128);
        let upper = _mm512_ternarylogic_epi32::<0xf8>(upper, codes, sign);
        [
            _mm512_unpacklo_epi8(lower, upper),
            _mm512_unpackhi_epi8(lower, upper),
        ]
    }
}

/// Of the four bytes at the beginning of a 128-bit lane, the first goes to the third byte of each number of the first lane,
/// the second to those of the second, and so on; all other bytes are zero.
static PLACES: [u32; LANES] = {
    let mut places = [0x8000_8080; LANES];
    let mut lane = 0;
    while lane < LANES {
        places[lane] |= (lane as u32 / 4) << 16;
        lane += 1;
    }
    places
};

/// Whether one of four bytes is 255.
#[inline(always)]
fn holds_255(bytes: u32) -> bool {
    (bytes & 0x7f7f_7f7f).wrapping_add(0x0101_0101) & bytes & 0x8080_8080 != 0
}

impl Mxfp4Rows<'_> {
    /// The codes of a group's scales, the first one lowest; zeros behind the end of the row.
    #[inline(always)]
    fn scales_of(&self, row: usize, group: usize) -> u32 {
        const BLOCKS: usize = GROUP / MXFP4_BLOCK;
        let across = self.columns / MXFP4_BLOCK;
        let row = &self.scales[row * across..][..across];
        let scales = &row[group * BLOCKS..];
        if let Some(whole) = scales.first_chunk() {
            return u32::from_le_bytes(*whole);
        }
        match *scales {
            [a, b, c] => u32::from_le_bytes([a, b, c, 0]),
            [a, b] => u32::from_le_bytes([a, b, 0, 0]),
            [a] => u32::from(a),
            _ => 0,
        }
    }
}

impl PairRows for Mxfp4Rows<'_> {
    const GROUP_BYTES: usize = GROUP / 2;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn read(&self, at: *const u8, row: usize, group: usize) -> Group {
        let scales = self.scales_of(row, group);
        // SAFETY: the caller gives 64 bytes and has the tier's instructions.
        unsafe {
            let codes = _mm512_loadu_si512(at.cast());
            let table = _mm512_loadu_si512(FP4.as_ptr().cast());
            // The look-up takes the lowest five bits of an index, the fifth of which changes nothing.
            let value = |codes| _mm512_permutexvar_epi16(codes, table);
            // Sixteen bytes, a block, are four lanes of each register: a scale's code goes to the third byte of its own, and
            // from there to the exponent of a float32.
            let places = _mm512_loadu_si512(PLACES.as_ptr().cast());
            let four = _mm512_set1_epi32(scales.cast_signed());
            let normal = _mm512_slli_epi32::<7>(_mm512_shuffle_epi8(four, places));
            // But for the scale that is subnormal there and the one that is no number.
            let mut factors = _mm512_max_epu32(normal, _mm512_set1_epi32(0x0040_0000));
            if holds_255(scales) {
                let none = _mm512_cmpeq_epi32_mask(normal, _mm512_set1_epi32(0x7f80_0000));
                factors = _mm512_mask_mov_epi32(factors, none, _mm512_set1_epi32(0x7fc0_0000));
            }
            Group {
                numbers: [
                    value(codes),
                    value(_mm512_srli_epi16::<4>(codes)),
                    value(_mm512_srli_epi16::<8>(codes)),
                    value(_mm512_srli_epi16::<12>(codes)),
                ],
                factors: _mm512_castsi512_ps(factors),
            }
        }
    }
}

impl PairRows for Bf16Rows<'_> {
    const GROUP_BYTES: usize = GROUP * 2;

    #[inline(always)]
    unsafe fn read(&self, at: *const u8, _row: usize, _group: usize) -> Group {
        // SAFETY: the caller gives 128 numbers and has the tier's instructions.
        unsafe {
            Group {
                numbers: [
                    _mm512_loadu_si512(at.cast()),
                    _mm512_loadu_si512(at.add(64).cast()),
                    _mm512_loadu_si512(at.add(128).cast()),
                    _mm512_loadu_si512(at.add(192).cast()),
                ],
                factors: _mm512_setzero_ps(),
            }
        }
    }
}

/// `sums + a * b`, pair by pair: the lanes' chains.
///
/// The instruction itself, with registers alone: Bochs reads the operand wrongly where it lies in memory. (It has
/// `vcvtne2ps2bf16` wrong too, which `vcvtneps2bf16` stands for here.)
///
/// # Safety
/// The tier's instructions are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn dot(mut sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: it reads and writes these registers and nothing else.
    unsafe {
        std::arch::asm!(
            "vdpbf16ps {sums}, {a}, {b}",
            sums = inout(zmm_reg) sums,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// The sums of the lanes of sixteen registers, halves added until one is left, as [`Lanes::sum`](crate::lanes::Lanes::sum)
/// does with each.
#[inline(always)]
pub(crate) unsafe fn sums(of: [__m512; LANES]) -> __m512 {
    // SAFETY: the caller has the tier's instructions.
    unsafe {
        let mut four = [_mm512_setzero_ps(); 4];
        for (i, four) in four.iter_mut().enumerate() {
            *four = quarters(halves(of[i], of[i + 4]), halves(of[i + 8], of[i + 12]));
        }
        let upper = pairs(four[0], four[1]);
        neighbors(upper, pairs(four[2], four[3]))
    }
}

/// Steps of [`sums`]: of two registers one is made, in which the halves of what is left of both are added.
macro_rules! steps {
    ($($name:ident: $shuffle:ident, $lower:literal, $upper:literal;)*) => {$(
        #[inline(always)]
        unsafe fn $name(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has the tier's instructions.
            unsafe { _mm512_add_ps($shuffle::<$lower>(a, b), $shuffle::<$upper>(a, b)) }
        }
    )*};
}

steps! {
    halves: _mm512_shuffle_f32x4, 0b01_00_01_00, 0b11_10_11_10;
    quarters: _mm512_shuffle_f32x4, 0b10_00_10_00, 0b11_01_11_01;
    pairs: _mm512_shuffle_ps, 0b01_00_01_00, 0b11_10_11_10;
    neighbors: _mm512_shuffle_ps, 0b10_00_10_00, 0b11_01_11_01;
}

/// Lays out the numbers of whole groups for a packing, divided by the power of two of the largest; returns its exponent.
///
/// Pairs with a subnormal number count as zero: that is what the division is for.
///
/// # Safety
/// As for [`place`].
#[inline(always)]
pub(crate) unsafe fn lay(packing: Packing, numbers: &mut [f32], to: *mut u16) -> i32 {
    let exponent = normalize(numbers);
    // SAFETY: as the caller promises.
    unsafe { place(packing, numbers.as_ptr(), numbers.len(), to) };
    exponent
}

/// Writes the numbers of whole groups, rounded to bfloat16, where the weights of a packing stand.
///
/// # Safety
/// The tier's instructions are there, and `to` has room for as many numbers; it may begin where `from` does.
#[inline(always)]
unsafe fn place(packing: Packing, from: *const f32, count: usize, to: *mut u16) {
    debug_assert!(count.is_multiple_of(GROUP));
    for start in (0..count).step_by(GROUP) {
        // SAFETY: whole groups; one is read before its places are written, and those lie before all that is still to be
        // read.
        unsafe {
            let mut sixteen = [_mm256_setzero_si256(); 8];
            for (part, to) in sixteen.iter_mut().enumerate() {
                let numbers = _mm512_cvtneps_pbh(_mm512_loadu_ps(from.add(start + 16 * part)));
                *to = std::mem::transmute::<__m256bh, __m256i>(numbers);
            }
            let to = to.add(start);
            match packing {
                // Eight numbers of each sixteen stand in one register, eight in the next.
                Packing::Fp8 => {
                    for (part, numbers) in sixteen.into_iter().enumerate() {
                        let to = to.add(part / 4 * 2 * WIDTH + part % 4 * 8);
                        _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(numbers));
                        let upper = _mm256_extracti128_si256::<1>(numbers);
                        _mm_storeu_si128(to.add(WIDTH).cast(), upper);
                    }
                }
                // Each four numbers go to four registers.
                Packing::Mxfp4 => {
                    for (part, numbers) in sixteen.into_iter().enumerate() {
                        let to = to.add(part * 4);
                        let word = |numbers| _mm_cvtsi128_si64(_mm256_cvtepi64_epi16(numbers));
                        for (register, words) in [
                            word(numbers),
                            word(_mm256_srli_epi64::<16>(numbers)),
                            word(_mm256_srli_epi64::<32>(numbers)),
                            word(_mm256_srli_epi64::<48>(numbers)),
                        ]
                        .into_iter()
                        .enumerate()
                        {
                            to.add(register * WIDTH)
                                .cast::<i64>()
                                .write_unaligned(words);
                        }
                    }
                }
                Packing::Bf16 | Packing::F32 => {
                    for (part, numbers) in sixteen.into_iter().enumerate() {
                        _mm256_storeu_si256(to.add(16 * part).cast(), numbers);
                    }
                }
            }
        }
    }
}
