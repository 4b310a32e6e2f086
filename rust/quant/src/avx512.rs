//! The inner loops in registers of sixteen lanes: AVX-512 with its byte and word instructions, VBMI among them.
//!
//! The arithmetic is that of `avx2.rs`. Here one instruction brings any bytes of two registers into order, so e4m3 codes
//! are weighed into the second byte of their lane, where nothing is left to take off or to shift; and a table in one
//! register holds all sixteen e2m1 numbers.
#![allow(
    clippy::wildcard_imports,
    reason = "instructions have names that tell where they come from"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "loads and stores take any address, save those past the caches, which check it"
)]

use std::arch::x86_64::*;

use crate::avx2::{self, Avx2};
use crate::float::{Element, Format, e8m0_to_f32};
use crate::kernels::{Divisor, GROUP, INFINITY, Kernels, STEP, padded};
use crate::scalar;

const HALF: usize = STEP / 2;
const WIDE: usize = 2 * STEP;
const MAGNITUDE: i32 = 0x7fff_ffff;
/// Ties to even, whatever the processor's mode is.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

/// Proof that the processor has AVX-512 F, BW, VL and VBMI, and what AVX2's tier needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512 {
    streams: bool,
}

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi");
        (present && Avx2::detect().is_some()).then_some(Self { streams: false })
    }
}

impl Kernels for Avx512 {
    type Divisor = Divisor;

    #[inline(always)]
    fn streaming(self, streams: bool) -> Self {
        Self { streams }
    }

    #[inline(always)]
    fn finish(self) {
        if self.streams {
            // SAFETY: every processor with AVX-512 has the instruction.
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
        // SAFETY: a processor with AVX-512, which `self` proves, has AVX2, FMA and F16C.
        unsafe { avx2::divisors(scales) }
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

/// Whether results may go past the caches, which takes registers at multiples of their size.
fn aligned<T>(out: &[T]) -> bool {
    out.as_ptr().addr().is_multiple_of(64)
}

/// Writes half a register, past the caches if `streams`.
///
/// # Safety
/// The 32 bytes can be written, and are aligned to 32 if `streams`; then `finish` comes before anyone reads them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn put_half(place: *mut __m256i, value: __m256i, streams: bool) {
    if streams {
        // SAFETY: the caller promises room, alignment and the fence.
        unsafe { _mm256_stream_si256(place, value) };
    } else {
        // SAFETY: the caller promises room; this store needs no alignment.
        unsafe { _mm256_storeu_si256(place, value) };
    }
}

/// Writes a register, past the caches if `streams`.
///
/// # Safety
/// The 64 bytes can be written, and are aligned to 64 if `streams`; then `finish` comes before anyone reads them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn put(place: *mut __m512i, value: __m512i, streams: bool) {
    if streams {
        // SAFETY: the caller promises room, alignment and the fence.
        unsafe { _mm512_stream_si512(place, value) };
    } else {
        // SAFETY: the caller promises room; this store needs no alignment.
        unsafe { _mm512_storeu_si512(place, value) };
    }
}

/// The two halves of a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn halves(whole: __m512i) -> [__m256i; 2] {
    [
        _mm512_castsi512_si256(whole),
        _mm512_extracti64x4_epi64::<1>(whole),
    ]
}

/// 32 elements as float32, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn load<T: Element>(x: &[T; STEP]) -> [__m512i; 2] {
    let data = x.as_ptr().cast::<__m512i>();
    // SAFETY: the array is 32 elements of two bytes at least, one register long; loads need no alignment.
    let first = unsafe { _mm512_loadu_si512(data) };
    match T::FORMAT {
        // SAFETY: the elements have four bytes, so the array is two registers long.
        Format::F32 => [first, unsafe { _mm512_loadu_si512(data.add(1)) }],
        Format::Bf16 => {
            halves(first).map(|half| _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
        Format::F16 => halves(first).map(|half| _mm512_castps_si512(_mm512_cvtph_ps(half))),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn largest<'a, T: Element + 'a>(parts: impl Iterator<Item = &'a [T]>, start: u32) -> u32 {
    let mut lanes = _mm512_setzero_si512();
    let mut take = |step: &[T; STEP]| {
        let data = step.as_ptr().cast::<__m512i>();
        // SAFETY: 32 elements of two bytes at least are one register; loads need no alignment.
        let bits = unsafe { _mm512_loadu_si512(data) };
        if T::FORMAT == Format::F32 {
            // SAFETY: 32 elements of four bytes are two registers.
            let right = unsafe { _mm512_loadu_si512(data.add(1)) };
            let mask = _mm512_set1_epi32(MAGNITUDE);
            lanes = _mm512_max_epu32(lanes, _mm512_and_si512(bits, mask));
            lanes = _mm512_max_epu32(lanes, _mm512_and_si512(right, mask));
        } else {
            let size = _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff));
            lanes = _mm512_max_epu16(lanes, size);
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
    if T::FORMAT == Format::F32 {
        return _mm512_reduce_max_epu32(lanes).max(start);
    }
    let [low, high] = halves(lanes);
    let lanes = _mm256_max_epu16(low, high);
    let eight = _mm_max_epu16(
        _mm256_castsi256_si128(lanes),
        _mm256_extracti128_si256::<1>(lanes),
    );
    // There is an instruction for the least of eight.
    let inverted = _mm_andnot_si128(eight, _mm_set1_epi16(-1));
    let largest = !_mm_cvtsi128_si32(_mm_minpos_epu16(inverted)) as u16;
    let bits = if T::FORMAT == Format::Bf16 {
        u32::from(largest) << 16
    } else {
        crate::F16(largest).load().to_bits()
    };
    bits.max(start)
}

/// A narrow format: the bits of its least normal number, what moves the last kept bit to the last place, and the
/// weights that bring the exponent and the counted steps to the same unit.
struct Narrow {
    smallest: __m512i,
    shift: __m512,
    weights: __m512i,
}

/// Takes the code, times a power of two and plus a constant, from quotients.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn weigh(quotient: __m512, narrow: &Narrow) -> __m512i {
    let exponent = _mm512_set1_epi32(INFINITY.cast_signed());
    let power = _mm512_and_si512(_mm512_castps_si512(quotient), exponent);
    let power = _mm512_castsi512_ps(_mm512_max_epi32(power, narrow.smallest));
    let sum = _mm512_fmadd_ps(power, narrow.shift, quotient);
    _mm512_madd_epi16(_mm512_castps_si512(sum), narrow.weights)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn size(x: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(MAGNITUDE)))
}

/// The low bytes of 32 lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn low_bytes(lanes: [__m512i; 2]) -> __m256i {
    let [low, high] = lanes.map(|lanes| _mm512_cvtepi32_epi8(lanes));
    _mm256_set_m128i(high, low)
}

/// Which bytes of two registers become the lower half of one, and again its upper half: the given byte of each lane, the
/// lanes of one register after those of the other, or of both in turn.
const fn bytes_of_lanes(byte: u8, in_turn: bool) -> [u8; WIDE] {
    let mut places = [0; WIDE];
    let mut at = 0;
    while at < WIDE {
        let element = (at % STEP) as u8;
        places[at] = byte
            + if in_turn {
                element % 2 * 64 + element / 2 * 4
            } else {
                element * 4
            };
        at += 1;
    }
    places
}

/// The upper bytes of the words of two registers.
const HIGH_BYTES: [u8; WIDE] = {
    let mut places = [0; WIDE];
    let mut at = 0;
    while at < WIDE {
        places[at] = 2 * at as u8 + 1;
        at += 1;
    }
    places
};

/// Bytes of four registers, as [`bytes_of_lanes`] says for each two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn gather(lanes: [__m512i; 4], places: &[u8; WIDE]) -> __m512i {
    // SAFETY: the array has 64 bytes; loads need no alignment.
    let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    let low = _mm512_permutex2var_epi8(lanes[0], places, lanes[1]);
    let high = _mm512_permutex2var_epi8(lanes[2], places, lanes[3]);
    _mm512_mask_blend_epi64(0xf0, low, high)
}

/// The sizes of 64 elements as float32, and bytes whose top bits are their signs, in order. The sizes of bfloat16 come
/// as even and odd elements in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn split<T: Element>(x: &[T; WIDE]) -> ([__m512; 4], __m512i) {
    const SIGNS: [u8; WIDE] = bytes_of_lanes(3, false);
    let data = x.as_ptr().cast::<__m512i>();
    // SAFETY: the array is 64 elements of two bytes at least, two registers long; loads need no alignment.
    let words = unsafe { [_mm512_loadu_si512(data), _mm512_loadu_si512(data.add(1))] };
    if T::FORMAT == Format::Bf16 {
        let [first, second] = words.map(|words| {
            let sizes = _mm512_and_si512(words, _mm512_set1_epi16(0x7fff));
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(0x7fff_0000));
            [_mm512_slli_epi32::<16>(sizes), odd].map(|bits| _mm512_castsi512_ps(bits))
        });
        // SAFETY: the array has 64 bytes; loads need no alignment.
        let places = unsafe { _mm512_loadu_si512(HIGH_BYTES.as_ptr().cast()) };
        let signs = _mm512_permutex2var_epi8(words[0], places, words[1]);
        return ([first[0], first[1], second[0], second[1]], signs);
    }
    let quarters = if T::FORMAT == Format::F32 {
        // SAFETY: the elements have four bytes, so the array is four registers long.
        let rest = unsafe {
            [
                _mm512_loadu_si512(data.add(2)),
                _mm512_loadu_si512(data.add(3)),
            ]
        };
        [words[0], words[1], rest[0], rest[1]]
    } else {
        let [first, second] =
            words.map(|words| halves(words).map(|half| _mm512_castps_si512(_mm512_cvtph_ps(half))));
        [first[0], first[1], second[0], second[1]]
    };
    (
        quarters.map(|quarter| size(quarter)),
        gather(quarters, &SIGNS),
    )
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn encode_fp8<T: Element>(x: &[T], divisor: Divisor, codes: &mut [u8], streams: bool) {
    const CODES: [u8; WIDE] = bytes_of_lanes(1, false);
    const CODES_IN_TURN: [u8; WIDE] = bytes_of_lanes(1, true);
    let streams = streams && aligned(codes);
    // So that the exponent of the least normal number in the sum is 128, which the weights take out of the second byte.
    let unit = f32::from_bits((127 - 13) << 23);
    let inverse = _mm512_set1_ps(divisor.inverse * unit);
    let rest = _mm512_set1_ps(divisor.rest * unit);
    let narrow = Narrow {
        smallest: _mm512_set1_epi32((121 - 13) << 23),
        shift: _mm512_set1_ps(f32::from_bits(147 << 23)),
        weights: _mm512_set1_epi32(16 << 16 | 256),
    };
    let encode = |x: &[T; WIDE]| {
        let (sizes, signs) = split(x);
        let sums = sizes.map(|size| {
            let quotient = _mm512_fmadd_ps(size, inverse, _mm512_mul_ps(size, rest));
            weigh(quotient, &narrow)
        });
        let codes = gather(
            sums,
            if T::FORMAT == Format::Bf16 {
                &CODES_IN_TURN
            } else {
                &CODES
            },
        );
        // The sign where the mask has a bit: A & B | C.
        _mm512_ternarylogic_epi32::<0xea>(signs, _mm512_set1_epi8(-128), codes)
    };
    let (steps, tail) = x.as_chunks::<WIDE>();
    let (outs, out_tail) = codes.as_chunks_mut::<WIDE>();
    for (step, out) in steps.iter().zip(outs) {
        // SAFETY: the array has 64 bytes, aligned if `streams`.
        unsafe { put(out.as_mut_ptr().cast(), encode(step), streams) };
    }
    if !tail.is_empty() {
        let mut whole = [0_u8; WIDE];
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(whole.as_mut_ptr().cast(), encode(&padded(tail))) };
        out_tail.copy_from_slice(&whole[..tail.len()]);
    }
}

/// Sixteen numbers, none of them NaN, as bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn to_bf16(values: __m512) -> __m256i {
    let bits = _mm512_castps_si512(values);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let bits = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_add_epi32(bits, odd)))
}

/// Writes 32 numbers, none of them NaN, to memory that is aligned if `streams`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn store<T: Element>(values: [__m512; 2], out: &mut [T; STEP], streams: bool) {
    let data = out.as_mut_ptr();
    for (at, value) in values.into_iter().enumerate() {
        // SAFETY: at most 16, the middle of the array.
        let data = unsafe { data.add(at * HALF) };
        match T::FORMAT {
            // SAFETY: sixteen elements of four bytes are a register.
            Format::F32 => unsafe { put(data.cast(), _mm512_castps_si512(value), streams) },
            // SAFETY: sixteen elements of two bytes are half a register.
            Format::Bf16 => unsafe { put_half(data.cast(), to_bf16(value), streams) },
            Format::F16 => {
                let half = _mm512_cvtps_ph::<NEAREST>(value);
                // SAFETY: as for bfloat16.
                unsafe { put_half(data.cast(), half, streams) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn decode_fp8<T: Element>(codes: &[u8], scale: f32, out: &mut [T], streams: bool) {
    let streams = streams && aligned(out);
    // Past these scales, 2^8 of them are no number, or products may be NaN.
    if scale.abs().to_bits() >= (127 + 119) << 23 {
        return scalar::decode_fp8_slowly(codes, scale, out);
    }
    let factor = _mm512_set1_ps(scale * 256.0);
    let mut not_numbers = 0;
    let mut decode = |codes: &[u8; STEP], out: &mut [T; STEP], streams: bool| {
        // SAFETY: the array has 32 bytes; loads need no alignment.
        let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
        let nan = _mm256_set1_epi8(0x7f);
        not_numbers |= _mm256_cmpeq_epi8_mask(_mm256_and_si256(codes, nan), nan);
        // The copies of the sign above a code end up in the two top bits; one of them goes.
        let words = _mm512_slli_epi16::<7>(_mm512_cvtepi8_epi16(codes));
        let words = _mm512_and_si512(words, _mm512_set1_epi16(0xbfff_u16.cast_signed()));
        let values = halves(words).map(|half| _mm512_mul_ps(_mm512_cvtph_ps(half), factor));
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
    if not_numbers != 0 {
        // The same memory is written again.
        _mm_sfence();
        scalar::decode_fp8_slowly(codes, scale, out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn encode_mxfp4<T: Element>(x: &[T], codes: &mut [u8], scales: &mut [u8]) {
    let narrow = Narrow {
        smallest: _mm512_set1_epi32(127 << 23),
        shift: _mm512_set1_ps(f32::from_bits(149 << 23)),
        weights: _mm512_set1_epi32(1 << 16 | 64),
    };
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
        let inverse = _mm512_set1_ps(e8m0_to_f32(254 - *scale));
        let bytes = low_bytes(load(x).map(|x| {
            // The exponent of 1 in the sum, in units of a 64th code.
            let constant = _mm512_set1_epi32((127 + 22) << 7);
            let quotient = _mm512_mul_ps(size(x), inverse);
            let code = _mm512_sub_epi32(weigh(quotient, &narrow), constant);
            let code = _mm512_srli_epi32::<6>(code);
            let sign = _mm512_and_si512(_mm512_srli_epi32::<28>(x), _mm512_set1_epi32(8));
            _mm512_or_si512(code, sign)
        }));
        // Two neighbors to a byte, the earlier one in the lower half.
        let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(16 << 8 | 1));
        // SAFETY: the array has 16 bytes; stores need no alignment.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm256_cvtepi16_epi8(pairs)) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn decode_mxfp4<T: Element>(codes: &[u8], scales: &[u8], out: &mut [T], streams: bool) {
    let streams = streams && aligned(out);
    let numbers = _mm512_setr_ps(
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
    );
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
        let table = _mm512_mul_ps(numbers, _mm512_set1_ps(e8m0_to_f32(scale)));
        // SAFETY: the array has 16 bytes; loads need no alignment.
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        let nibble = _mm_set1_epi8(15);
        let even = _mm_and_si128(codes, nibble);
        let odd = _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble);
        let [first, second] = [_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)];
        if T::FORMAT == Format::F32 {
            let values = [first, second]
                .map(|codes| _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table));
            store(values, out, streams);
            continue;
        }
        let table = if T::FORMAT == Format::F16 {
            _mm512_cvtps_ph::<NEAREST>(table)
        } else {
            to_bf16(table)
        };
        let codes = _mm512_cvtepu8_epi16(_mm256_set_m128i(second, first));
        let words = _mm512_permutexvar_epi16(codes, _mm512_castsi256_si512(table));
        // SAFETY: 32 elements of two bytes are one register.
        unsafe { put(out.as_mut_ptr().cast(), words, streams) };
    }
}
