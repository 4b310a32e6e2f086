//! The inner loops in registers of eight lanes: AVX2 with FMA and F16C.
//!
//! **Quotient.** Once a block `r = 1 / scale` and `rest = (1 - scale * r) * r`, what the rounded inverse lacks; then
//! `q = x * r + x * rest`, each step rounded once. Its code is that of the correctly rounded `x / scale`: `quotient.rs`
//! visits every scale and midpoint.
//!
//! **To e4m3.** With `c` the power of two of `q`, at least 2^-6, the sum `c * 2^20 + q` is rounded to multiples of
//! `c / 8`, ties to even, and its low bits count them; the code is that count plus eight times the exponent of `c`
//! above -6. One multiply-add of 16-bit halves takes both from the sum: `16 * code` plus a constant. To e2m1 the same
//! with other widths.
//!
//! **From e4m3.** Sign and magnitude moved into place are the value times 2^-8 as a half-precision number, whose
//! conversion takes subnormals in any mode of the processor; 2^8 goes into the scale.
//!
//! **From e2m1.** The eight sizes times the scale, converted to the output's type, make a table in registers.

#![allow(
    clippy::wildcard_imports,
    reason = "instructions have names that tell where they come from"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "loads and stores take any address, save those past the caches, which check it"
)]

use std::arch::x86_64::*;

use crate::float::{Element, Format, e8m0_to_f32};
use crate::kernels::{Divisor, GROUP, INFINITY, Kernels, STEP, padded};
use crate::scalar;

const HALF: usize = STEP / 2;
const MAGNITUDE: i32 = 0x7fff_ffff;
/// Tie to even, whatever the processor's mode is.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
/// Exchanges the middle quarters of a register: what the packing instructions leave to do.
const IN_ORDER: i32 = 0b11_01_10_00;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2 {
    /// Whether results go past the caches.
    streams: bool,
}

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then_some(Self { streams: false })
    }
}

impl Kernels for Avx2 {
    type Divisor = Divisor;

    #[inline(always)]
    fn streaming(self, streams: bool) -> Self {
        Self { streams }
    }

    #[inline(always)]
    fn finish(self) {
        if self.streams {
            // SAFETY: every processor with AVX2 has the instruction.
            unsafe { _mm_sfence() };
        }
    }

    #[inline(always)]
    fn largest<'a, T: Element + 'a>(self, parts: impl Iterator<Item = &'a [T]>, start: u32) -> u32 {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { largest(parts, start) }
    }

    #[inline(always)]
    fn divisors(self, scales: &[f32; GROUP]) -> [Divisor; GROUP] {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { divisors(scales) }
    }

    #[inline(always)]
    fn encode_fp8<T: Element>(self, x: &[T], scale: Divisor, codes: &mut [u8]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { encode_fp8(x, scale, codes, self.streams) }
    }

    #[inline(always)]
    fn decode_fp8<T: Element>(self, codes: &[u8], scale: f32, out: &mut [T]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { decode_fp8(codes, scale, out, self.streams) }
    }

    #[inline(always)]
    fn encode_mxfp4<T: Element>(self, x: &[T], codes: &mut [u8], scales: &mut [u8]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { encode_mxfp4(x, codes, scales) }
    }

    #[inline(always)]
    fn decode_mxfp4<T: Element>(self, codes: &[u8], scales: &[u8], out: &mut [T]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { decode_mxfp4(codes, scales, out, self.streams) }
    }

    #[inline(always)]
    fn prefetch<T>(self, values: &[T], distance: usize) {
        if distance == 0 {
            return;
        }
        let start = values.as_ptr().cast::<i8>().wrapping_add(distance);
        for offset in (0..size_of_val(values)).step_by(64) {
            // SAFETY: a hint, for any address at all.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(offset)) };
        }
    }
}

/// 32 elements taken apart.
struct Parts {
    /// Their sizes. bfloat16 come as the even and the odd elements of each half; the others in order.
    sizes: [__m256; 4],
    /// Bytes whose top bits are their signs, in the order of `bytes_in_order`.
    signs: __m256i,
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn split<T: Element>(x: &[T; STEP]) -> Parts {
    let data = x.as_ptr().cast::<__m256i>();
    // SAFETY: the array is 32 elements of two bytes at least, two registers long; loads need no alignment.
    let (first, second) = unsafe { (_mm256_loadu_si256(data), _mm256_loadu_si256(data.add(1))) };
    // Saturation keeps signs, a negative zero's too: as an integer it is the smallest.
    if T::FORMAT == Format::F32 {
        // SAFETY: the elements have four bytes, so the array is four registers long.
        let (third, fourth) = unsafe {
            (
                _mm256_loadu_si256(data.add(2)),
                _mm256_loadu_si256(data.add(3)),
            )
        };
        let size = |x| _mm256_and_si256(x, _mm256_set1_epi32(MAGNITUDE));
        return Parts {
            sizes: [first, second, third, fourth].map(|x| _mm256_castsi256_ps(size(x))),
            signs: _mm256_packs_epi16(
                _mm256_packs_epi32(first, second),
                _mm256_packs_epi32(third, fourth),
            ),
        };
    }
    let signs = _mm256_packs_epi16(first, second);
    let [first, second] = [first, second].map(|x| _mm256_and_si256(x, _mm256_set1_epi16(0x7fff)));
    if T::FORMAT == Format::Bf16 {
        let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
        let odd = |x| _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(!0xffff)));
        return Parts {
            sizes: [even(first), odd(first), even(second), odd(second)],
            signs,
        };
    }
    let low = |x| _mm256_cvtph_ps(_mm256_castsi256_si128(x));
    let high = |x| _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x));
    Parts {
        sizes: [low(first), high(first), low(second), high(second)],
        signs,
    }
}

/// Packs numbers below 128, from lanes in the order of `split`, into bytes in order; their top bits become the signs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes_in_order<T: Element>(words: [__m256i; 2], signs: __m256i) -> __m256i {
    let sizes = _mm256_packus_epi16(words[0], words[1]);
    let signs = _mm256_and_si256(signs, _mm256_set1_epi8(-128));
    let ordered = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    match T::FORMAT {
        Format::F32 => _mm256_permutevar8x32_epi32(_mm256_or_si256(sizes, signs), ordered),
        Format::Bf16 => {
            let even_odd = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15,
            ));
            let sizes = _mm256_shuffle_epi8(sizes, even_odd);
            _mm256_permute4x64_epi64::<IN_ORDER>(_mm256_or_si256(sizes, signs))
        }
        Format::F16 => _mm256_or_si256(
            _mm256_permutevar8x32_epi32(sizes, ordered),
            _mm256_permute4x64_epi64::<IN_ORDER>(signs),
        ),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn largest<'a, T: Element + 'a>(parts: impl Iterator<Item = &'a [T]>, start: u32) -> u32 {
    let mut lanes = [_mm256_setzero_si256(); 2];
    let mut take = |step: &[T; STEP]| {
        let data = step.as_ptr().cast::<__m256i>();
        for (lane, at) in lanes.iter_mut().zip([0, 1]) {
            if T::FORMAT == Format::F32 {
                // SAFETY: 32 elements of four bytes are four registers; loads need no alignment.
                let (left, right) = unsafe {
                    (
                        _mm256_loadu_si256(data.add(at)),
                        _mm256_loadu_si256(data.add(at + 2)),
                    )
                };
                let mask = _mm256_set1_epi32(MAGNITUDE);
                *lane = _mm256_max_epi32(*lane, _mm256_and_si256(left, mask));
                *lane = _mm256_max_epi32(*lane, _mm256_and_si256(right, mask));
            } else {
                // SAFETY: 32 elements of two bytes are two registers; loads need no alignment.
                let bits = unsafe { _mm256_loadu_si256(data.add(at)) };
                let size = _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff));
                *lane = _mm256_max_epu16(*lane, size);
            }
        }
    };
    for x in parts {
        let (steps, tail) = x.as_chunks::<STEP>();
        for step in steps {
            take(step);
        }
        if !tail.is_empty() {
            take(&padded(tail));
        }
    }
    let halves = |lanes: __m256i| {
        (
            _mm256_castsi256_si128(lanes),
            _mm256_extracti128_si256::<1>(lanes),
        )
    };
    let bits = if T::FORMAT == Format::F32 {
        let (low, high) = halves(_mm256_max_epi32(lanes[0], lanes[1]));
        let four = _mm_max_epi32(low, high);
        let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
        _mm_cvtsi128_si32(one).cast_unsigned()
    } else {
        let (low, high) = halves(_mm256_max_epu16(lanes[0], lanes[1]));
        // There is an instruction for the least of eight.
        let inverted = _mm_andnot_si128(_mm_max_epu16(low, high), _mm_set1_epi16(-1));
        let largest = !_mm_cvtsi128_si32(_mm_minpos_epu16(inverted)) as u16;
        if T::FORMAT == Format::Bf16 {
            u32::from(largest) << 16
        } else {
            crate::F16(largest).load().to_bits()
        }
    };
    bits.max(start)
}

/// Whether results may go past the caches, which takes registers at multiples of their size.
fn aligned<T>(out: &[T]) -> bool {
    out.as_ptr().addr().is_multiple_of(32)
}

/// Writes a register, past the caches if `streams`.
///
/// # Safety
/// The 32 bytes can be written, and are aligned to 32 if `streams`; then `finish` comes before anyone reads them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn put(place: *mut __m256i, value: __m256i, streams: bool) {
    if streams {
        // SAFETY: the caller promises room, alignment and the fence.
        unsafe { _mm256_stream_si256(place, value) };
    } else {
        // SAFETY: the caller promises room; this store needs no alignment.
        unsafe { _mm256_storeu_si256(place, value) };
    }
}

/// What `weigh` needs to know of a narrow format.
struct Narrow {
    /// The bits of its least normal number.
    smallest: __m256i,
    /// Moves the last kept bit to the last place: `2^(23 - mantissa bits)`.
    shift: __m256,
    /// Weighs the exponent by one and the counted steps so that both are in the same unit.
    weights: __m256i,
}

/// Takes the code, times a power of two and plus a constant, from quotients.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh(quotient: __m256, narrow: &Narrow) -> __m256i {
    let exponent = _mm256_set1_epi32(INFINITY.cast_signed());
    let power = _mm256_and_si256(_mm256_castps_si256(quotient), exponent);
    let power = _mm256_castsi256_ps(_mm256_max_epi32(power, narrow.smallest));
    let sum = _mm256_fmadd_ps(power, narrow.shift, quotient);
    _mm256_madd_epi16(_mm256_castps_si256(sum), narrow.weights)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn divisors(scales: &[f32; GROUP]) -> [Divisor; GROUP] {
    // SAFETY: the array has 32 bytes; loads need no alignment.
    let scales = unsafe { _mm256_loadu_ps(scales.as_ptr()) };
    let one = _mm256_set1_ps(1.0);
    let inverses = _mm256_div_ps(one, scales);
    // What the rounded inverses lack.
    let errors = _mm256_fnmadd_ps(scales, inverses, one);
    let rests = _mm256_mul_ps(errors, inverses);
    let rests = _mm256_fmadd_ps(errors, rests, rests);
    let (first, second) = (
        _mm256_unpacklo_ps(inverses, rests),
        _mm256_unpackhi_ps(inverses, rests),
    );
    let mut divisors = [Divisor::default(); GROUP];
    let place = divisors.as_mut_ptr().cast::<f32>();
    // SAFETY: the array has two numbers of four bytes for each of eight; stores need no alignment.
    unsafe {
        _mm256_storeu_ps(place, _mm256_permute2f128_ps::<0x20>(first, second));
        _mm256_storeu_ps(place.add(8), _mm256_permute2f128_ps::<0x31>(first, second));
    }
    divisors
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn encode_fp8<T: Element>(x: &[T], divisor: Divisor, codes: &mut [u8], streams: bool) {
    let streams = streams && aligned(codes);
    let inverse = _mm256_set1_ps(divisor.inverse);
    let rest = _mm256_set1_ps(divisor.rest);
    let narrow = Narrow {
        smallest: _mm256_set1_epi32(121 << 23),
        shift: _mm256_set1_ps(f32::from_bits(147 << 23)),
        weights: _mm256_set1_epi32(1 << 16 | 16),
    };
    let encode = |x: &[T; STEP]| {
        let Parts { sizes, signs } = split(x);
        let [a, b, c, d] =
            sizes.map(|x| weigh(_mm256_fmadd_ps(x, inverse, _mm256_mul_ps(x, rest)), &narrow));
        // The exponent of the least normal number in the sum, in units of a 16th code.
        let constant = _mm256_set1_epi16((121 + 20) << 7);
        let words = [_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d)]
            .map(|words| _mm256_srli_epi16::<4>(_mm256_sub_epi16(words, constant)));
        bytes_in_order::<T>(words, signs)
    };
    let (steps, tail) = x.as_chunks::<STEP>();
    let (outs, out_tail) = codes.as_chunks_mut::<STEP>();
    for (step, out) in steps.iter().zip(outs) {
        // SAFETY: the array has 32 bytes, aligned if `streams`.
        unsafe { put(out.as_mut_ptr().cast(), encode(step), streams) };
    }
    if !tail.is_empty() {
        let mut whole = [0_u8; STEP];
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(whole.as_mut_ptr().cast(), encode(&padded(tail))) };
        out_tail.copy_from_slice(&whole[..tail.len()]);
    }
}

/// Eight numbers, none of them NaN, as bfloat16 in lanes of 32 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_bf16(values: __m256) -> __m256i {
    let bits = _mm256_castps_si256(values);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let bits = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff));
    _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, odd))
}

/// Writes 32 numbers, none of them NaN, to memory that is aligned if `streams`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store<T: Element>(values: [__m256; 4], out: &mut [T; STEP], streams: bool) {
    let data = out.as_mut_ptr().cast::<__m256i>();
    if T::FORMAT == Format::F32 {
        for (at, value) in values.into_iter().enumerate() {
            // SAFETY: 32 elements of four bytes are four registers.
            unsafe { put(data.add(at), _mm256_castps_si256(value), streams) };
        }
        return;
    }
    for (at, &[low, high]) in values.as_chunks::<2>().0.iter().enumerate() {
        let words = if T::FORMAT == Format::F16 {
            _mm256_set_m128i(
                _mm256_cvtps_ph::<NEAREST>(high),
                _mm256_cvtps_ph::<NEAREST>(low),
            )
        } else {
            let words = _mm256_packus_epi32(to_bf16(low), to_bf16(high));
            _mm256_permute4x64_epi64::<IN_ORDER>(words)
        };
        // SAFETY: 32 elements of two bytes are two registers.
        unsafe { put(data.add(at), words, streams) };
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn decode_fp8<T: Element>(codes: &[u8], scale: f32, out: &mut [T], streams: bool) {
    let streams = streams && aligned(out);
    // Past these scales, 2^8 of them are no number, or products may be NaN.
    if scale.abs().to_bits() >= (127 + 119) << 23 {
        return scalar::decode_fp8_slowly(codes, scale, out);
    }
    let factor = _mm256_set1_ps(scale * 256.0);
    let mut not_numbers = _mm256_setzero_si256();
    let mut decode = |codes: &[u8; STEP], out: &mut [T; STEP], streams: bool| {
        let data = codes.as_ptr().cast::<__m128i>();
        // SAFETY: the array has 32 bytes, two half registers; loads need no alignment.
        let (low, high) = unsafe { (_mm_loadu_si128(data), _mm_loadu_si128(data.add(1))) };
        let both = _mm256_set_m128i(high, low);
        let nan = _mm256_set1_epi8(0x7f);
        let found = _mm256_cmpeq_epi8(_mm256_and_si256(both, nan), nan);
        not_numbers = _mm256_or_si256(not_numbers, found);
        let [low, high] = [low, high].map(|codes| {
            // The copies of the sign above a code end up in the two top bits; one of them goes.
            let words = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(codes));
            _mm256_and_si256(words, _mm256_set1_epi16(0xbfff_u16.cast_signed()))
        });
        let values = [
            _mm256_castsi256_si128(low),
            _mm256_extracti128_si256::<1>(low),
            _mm256_castsi256_si128(high),
            _mm256_extracti128_si256::<1>(high),
        ];
        let values = values.map(|half| _mm256_mul_ps(_mm256_cvtph_ps(half), factor));
        store(values, out, streams);
    };
    let (steps, tail) = codes.as_chunks::<STEP>();
    let (outs, out_tail) = out.as_chunks_mut::<STEP>();
    for (step, out) in steps.iter().zip(outs) {
        decode(step, out, streams);
    }
    if !tail.is_empty() {
        let mut whole = [T::default(); STEP];
        decode(&padded(tail), &mut whole, false);
        out_tail.copy_from_slice(&whole[..tail.len()]);
    }
    if _mm256_movemask_epi8(not_numbers) != 0 {
        // The same memory is written again.
        _mm_sfence();
        scalar::decode_fp8_slowly(codes, scale, out);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn encode_mxfp4<T: Element>(x: &[T], codes: &mut [u8], scales: &mut [u8]) {
    let blocks = x
        .as_chunks::<STEP>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<HALF>().0);
    for ((x, codes), scale) in blocks.zip(scales) {
        let amax = largest(std::iter::once(&x[..]), 0);
        if amax >= INFINITY {
            scalar::encode_mxfp4_slowly(x, codes, scale);
            continue;
        }
        *scale = scalar::scale_code(amax);
        let inverse = _mm256_set1_ps(e8m0_to_f32(254 - *scale));
        let narrow = Narrow {
            smallest: _mm256_set1_epi32(127 << 23),
            shift: _mm256_set1_ps(f32::from_bits(149 << 23)),
            weights: _mm256_set1_epi32(1 << 16 | 64),
        };
        let Parts { sizes, signs } = split(x);
        let [a, b, c, d] = sizes.map(|x| weigh(_mm256_mul_ps(x, inverse), &narrow));
        // The exponent of 1 in the sum, in units of a 64th code.
        let constant = _mm256_set1_epi16((127 + 22) << 7);
        let words = [_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d)]
            .map(|words| _mm256_srli_epi16::<6>(_mm256_sub_epi16(words, constant)));
        let bytes = bytes_in_order::<T>(words, signs);
        let sign = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(8));
        let size = _mm256_and_si256(bytes, _mm256_set1_epi8(7));
        // Two neighbors to a byte, the earlier one in the lower half.
        let pairs =
            _mm256_maddubs_epi16(_mm256_or_si256(sign, size), _mm256_set1_epi16(16 << 8 | 1));
        let packed = _mm_packus_epi16(
            _mm256_castsi256_si128(pairs),
            _mm256_extracti128_si256::<1>(pairs),
        );
        // SAFETY: the array has 16 bytes; stores need no alignment.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), packed) };
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn decode_mxfp4<T: Element>(codes: &[u8], scales: &[u8], out: &mut [T], streams: bool) {
    let streams = streams && aligned(out);
    let sizes = _mm256_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0);
    let blocks = codes
        .as_chunks::<HALF>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<STEP>().0);
    for ((codes, out), &scale) in blocks.zip(scales) {
        if scale == 255 {
            out.fill(T::store(e8m0_to_f32(255)));
            continue;
        }
        let table = _mm256_mul_ps(sizes, _mm256_set1_ps(e8m0_to_f32(scale)));
        // SAFETY: the array has 16 bytes; loads need no alignment.
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        let nibble = _mm_set1_epi8(15);
        let even = _mm_and_si128(codes, nibble);
        let odd = _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble);
        let [first, second] = [_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)];
        if T::FORMAT == Format::F32 {
            let eights = [
                first,
                _mm_srli_si128::<8>(first),
                second,
                _mm_srli_si128::<8>(second),
            ];
            let values = eights.map(|eight| {
                let codes = _mm256_cvtepu8_epi32(eight);
                let size = _mm256_permutevar8x32_ps(table, codes);
                let sign = _mm256_slli_epi32::<28>(codes);
                let sign = _mm256_and_si256(sign, _mm256_set1_epi32(i32::MIN));
                _mm256_or_ps(size, _mm256_castsi256_ps(sign))
            });
            store(values, out, streams);
            continue;
        }
        // The table in the output's type, as its lower and its upper bytes.
        let table = if T::FORMAT == Format::F16 {
            _mm256_cvtps_ph::<NEAREST>(table)
        } else {
            let words = to_bf16(table);
            _mm_packus_epi32(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            )
        };
        let low = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
        let high = _mm_add_epi8(low, _mm_set1_epi8(1));
        let signs = _mm_set_epi64x(0x8080_8080_8080_8080_u64.cast_signed(), 0);
        let low = _mm_shuffle_epi8(table, low);
        let high = _mm_or_si128(_mm_shuffle_epi8(table, high), signs);
        let codes = _mm256_permute4x64_epi64::<IN_ORDER>(_mm256_set_m128i(second, first));
        let low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(low), codes);
        let high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(high), codes);
        let data = out.as_mut_ptr().cast::<__m256i>();
        let words = [
            _mm256_unpacklo_epi8(low, high),
            _mm256_unpackhi_epi8(low, high),
        ];
        for (at, words) in words.into_iter().enumerate() {
            // SAFETY: 32 elements of two bytes are two registers.
            unsafe { put(data.add(at), words, streams) };
        }
    }
}
