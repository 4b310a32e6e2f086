//! The inner loops in registers of four lanes: NEON, which every ARM64 processor has.
//!
//! The arithmetic is that of `avx2.rs`; conversions from and to half precision are those of `float.rs`, four at a time,
//! because their instructions are not in stable Rust yet.
#![allow(
    clippy::wildcard_imports,
    reason = "instructions have names that tell where they come from"
)]

use std::arch::aarch64::*;

use crate::float::{Element, Format, e8m0_to_f32};
use crate::kernels::{Divisor, GROUP, INFINITY, Kernels, STEP, padded};
use crate::scalar;

const HALF: usize = STEP / 2;
/// Elements of a register.
const LANES: usize = 4;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// 32 numbers.
type Step<V> = [V; STEP / LANES];

/// Proof that the processor has NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

impl Kernels for Neon {
    type Divisor = Divisor;

    #[inline(always)]
    fn streaming(self, _streams: bool) -> Self {
        self
    }

    #[inline(always)]
    fn finish(self) {}

    #[inline(always)]
    fn largest<'a, T: Element + 'a>(self, parts: impl Iterator<Item = &'a [T]>, start: u32) -> u32 {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { parts.fold(start, |start, x| largest(x, start)) }
    }

    #[inline(always)]
    fn divisors(self, scales: &[f32; GROUP]) -> [Divisor; GROUP] {
        // SAFETY: the processor has the instructions, which `self` proves.
        scales.map(|scale| unsafe { divisor(scale) })
    }

    #[inline(always)]
    fn encode_fp8<T: Element>(self, x: &[T], scale: Divisor, codes: &mut [u8]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { encode_fp8(x, scale, codes) }
    }

    #[inline(always)]
    fn decode_fp8<T: Element>(self, codes: &[u8], scale: f32, out: &mut [T]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { decode_fp8(codes, scale, out) }
    }

    #[inline(always)]
    fn encode_mxfp4<T: Element>(self, x: &[T], codes: &mut [u8], scales: &mut [u8]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { encode_mxfp4(x, codes, scales) }
    }

    #[inline(always)]
    fn decode_mxfp4<T: Element>(self, codes: &[u8], scales: &[u8], out: &mut [T]) {
        // SAFETY: the processor has the instructions, which `self` proves.
        unsafe { decode_mxfp4(codes, scales, out) }
    }

    /// The processors with NEON fetch these regular streams by themselves, and stable Rust has no instruction for it.
    #[inline(always)]
    fn prefetch<T>(self, _values: &[T], _distance: usize) {}
}

#[inline]
#[target_feature(enable = "neon")]
fn f16_to_f32(bits: uint32x4_t) -> uint32x4_t {
    let magnitude = vandq_u32(bits, vdupq_n_u32(0x7fff));
    let step = vdupq_n_u32(112 << 23);
    let shifted = vaddq_u32(vshlq_n_u32::<13>(magnitude), step);
    let special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00));
    let normal = vaddq_u32(shifted, vandq_u32(special, step));
    let one = vdupq_n_u32(113 << 23);
    let mantissa = vandq_u32(vshlq_n_u32::<13>(magnitude), vdupq_n_u32(0x7f_ffff));
    let subnormal = vsubq_f32(
        vreinterpretq_f32_u32(vorrq_u32(mantissa, one)),
        vreinterpretq_f32_u32(one),
    );
    let small = vcltq_u32(magnitude, vdupq_n_u32(0x400));
    let value = vbslq_u32(small, vreinterpretq_u32_f32(subnormal), normal);
    vorrq_u32(
        value,
        vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000))),
    )
}

/// Numbers, none of them NaN, as half-precision bits.
#[inline]
#[target_feature(enable = "neon")]
fn f32_to_f16(value: float32x4_t) -> uint32x4_t {
    let bits = vreinterpretq_u32_f32(value);
    let magnitude = vandq_u32(bits, vdupq_n_u32(MAGNITUDE));
    let odd = vandq_u32(vshrq_n_u32::<13>(magnitude), vdupq_n_u32(1));
    let rounded = vaddq_u32(vaddq_u32(magnitude, vdupq_n_u32(0xfff)), odd);
    // Wraps for small numbers, where the result is not used.
    let rounded = vsubq_u32(vshrq_n_u32::<13>(rounded), vdupq_n_u32(112 << 10));
    let normal = vminq_u32(rounded, vdupq_n_u32(0x7c00));
    let half = vdupq_n_f32(0.5);
    let sum = vaddq_f32(vreinterpretq_f32_u32(magnitude), half);
    let subnormal = vsubq_u32(vreinterpretq_u32_f32(sum), vreinterpretq_u32_f32(half));
    let small = vcltq_u32(magnitude, vdupq_n_u32(113 << 23));
    let code = vbslq_u32(small, subnormal, normal);
    vorrq_u32(
        code,
        vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(0x8000)),
    )
}

/// 32 elements as float32.
#[inline]
#[target_feature(enable = "neon")]
fn load<T: Element>(x: &[T; STEP]) -> Step<uint32x4_t> {
    let data = x.as_ptr();
    std::array::from_fn(|at| {
        // SAFETY: at most 28, within the array.
        let data = unsafe { data.add(at * LANES) };
        match T::FORMAT {
            // SAFETY: four elements of four bytes; loads need the alignment of an element alone.
            Format::F32 => unsafe { vld1q_u32(data.cast()) },
            // SAFETY: four elements of two bytes; loads need the alignment of an element alone.
            Format::Bf16 => vshll_n_u16::<16>(unsafe { vld1_u16(data.cast()) }),
            // SAFETY: as for bfloat16.
            Format::F16 => f16_to_f32(vmovl_u16(unsafe { vld1_u16(data.cast()) })),
        }
    })
}

#[inline]
#[target_feature(enable = "neon")]
fn largest<T: Element>(x: &[T], start: u32) -> u32 {
    let (steps, tail) = x.as_chunks::<STEP>();
    let (mut wide, mut narrow) = ([vdupq_n_u32(0); 2], [vdupq_n_u16(0); 2]);
    let mut take = |step: &[T; STEP]| {
        if T::FORMAT == Format::F32 {
            for (at, bits) in load(step).into_iter().enumerate() {
                let size = vandq_u32(bits, vdupq_n_u32(MAGNITUDE));
                wide[at % 2] = vmaxq_u32(wide[at % 2], size);
            }
            return;
        }
        for at in 0..4 {
            // SAFETY: 32 elements of two bytes are four registers; loads need the alignment of an element alone.
            let bits = unsafe { vld1q_u16(step.as_ptr().add(at * 8).cast()) };
            let size = vandq_u16(bits, vdupq_n_u16(0x7fff));
            narrow[at % 2] = vmaxq_u16(narrow[at % 2], size);
        }
    };
    for step in steps {
        take(step);
    }
    if !tail.is_empty() {
        take(&padded(tail));
    }
    let bits = match T::FORMAT {
        Format::F32 => vmaxvq_u32(vmaxq_u32(wide[0], wide[1])),
        Format::Bf16 => u32::from(vmaxvq_u16(vmaxq_u16(narrow[0], narrow[1]))) << 16,
        Format::F16 => crate::F16(vmaxvq_u16(vmaxq_u16(narrow[0], narrow[1])))
            .load()
            .to_bits(),
    };
    bits.max(start)
}

/// A narrow format: its mantissa's bits, the bits of its least normal number, and what moves the last kept bit to the
/// last place.
struct Narrow {
    smallest: u32,
    shift: f32,
}

const E4M3: Narrow = Narrow {
    smallest: 121 << 23,
    shift: f32::from_bits(147 << 23),
};
const E2M1: Narrow = Narrow {
    smallest: 127 << 23,
    shift: f32::from_bits(149 << 23),
};

/// The steps counted in a quotient's last places, and the power of two they are counted in.
#[inline]
#[target_feature(enable = "neon")]
fn count(quotient: float32x4_t, narrow: &Narrow) -> (uint32x4_t, uint32x4_t) {
    let power = vandq_u32(vreinterpretq_u32_f32(quotient), vdupq_n_u32(INFINITY));
    let power = vmaxq_u32(power, vdupq_n_u32(narrow.smallest));
    let sum = vfmaq_f32(
        quotient,
        vreinterpretq_f32_u32(power),
        vdupq_n_f32(narrow.shift),
    );
    (
        vreinterpretq_u32_f32(sum),
        vsubq_u32(power, vdupq_n_u32(narrow.smallest)),
    )
}

#[inline]
#[target_feature(enable = "neon")]
fn size(x: uint32x4_t) -> float32x4_t {
    vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(MAGNITUDE)))
}

/// The low bytes of 32 lanes.
#[inline]
#[target_feature(enable = "neon")]
fn low_bytes(lanes: Step<uint32x4_t>) -> [uint8x16_t; 2] {
    let words = |at: usize| vcombine_u16(vmovn_u32(lanes[at]), vmovn_u32(lanes[at + 1]));
    let bytes = |at: usize| vcombine_u8(vmovn_u16(words(at)), vmovn_u16(words(at + 2)));
    [bytes(0), bytes(4)]
}

#[inline]
#[target_feature(enable = "neon")]
fn divisor(scale: f32) -> Divisor {
    let (scale, one) = (vdupq_n_f32(scale), vdupq_n_f32(1.0));
    let inverse = vdivq_f32(one, scale);
    // What the rounded inverse lacks.
    let error = vfmsq_f32(one, scale, inverse);
    let rest = vmulq_f32(error, inverse);
    let rest = vfmaq_f32(rest, error, rest);
    Divisor {
        inverse: vgetq_lane_f32::<0>(inverse),
        rest: vgetq_lane_f32::<0>(rest),
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn encode_fp8<T: Element>(x: &[T], divisor: Divisor, codes: &mut [u8]) {
    let inverse = vdupq_n_f32(divisor.inverse);
    let rest = vdupq_n_f32(divisor.rest);
    let encode = |x: &[T; STEP], out: &mut [u8; STEP]| {
        let codes = low_bytes(load(x).map(|x| {
            let size = size(x);
            let quotient = vfmaq_f32(vmulq_f32(size, rest), size, inverse);
            let (steps, power) = count(quotient, &E4M3);
            let code = vaddq_u32(steps, vshrq_n_u32::<20>(power));
            vbslq_u32(vdupq_n_u32(0x7f), code, vshrq_n_u32::<24>(x))
        }));
        for (at, codes) in codes.into_iter().enumerate() {
            // SAFETY: the array has 32 bytes, two registers.
            unsafe { vst1q_u8(out.as_mut_ptr().add(at * HALF), codes) };
        }
    };
    let (steps, tail) = x.as_chunks::<STEP>();
    let (outs, out_tail) = codes.as_chunks_mut::<STEP>();
    for (step, out) in steps.iter().zip(outs) {
        encode(step, out);
    }
    if !tail.is_empty() {
        let mut whole = [0; STEP];
        encode(&padded(tail), &mut whole);
        out_tail.copy_from_slice(&whole[..tail.len()]);
    }
}

/// Writes 32 numbers; none is NaN.
#[inline]
#[target_feature(enable = "neon")]
fn store<T: Element>(values: Step<float32x4_t>, out: &mut [T; STEP]) {
    let data = out.as_mut_ptr();
    for (at, value) in values.into_iter().enumerate() {
        // SAFETY: at most 28, within the array.
        let data = unsafe { data.add(at * LANES) };
        let words = match T::FORMAT {
            Format::F32 => {
                // SAFETY: four elements of four bytes; stores need the alignment of an element alone.
                unsafe { vst1q_f32(data.cast(), value) };
                continue;
            }
            Format::Bf16 => {
                let bits = vreinterpretq_u32_f32(value);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                vshrn_n_u32::<16>(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd))
            }
            Format::F16 => vmovn_u32(f32_to_f16(value)),
        };
        // SAFETY: four elements of two bytes; stores need the alignment of an element alone.
        unsafe { vst1_u16(data.cast(), words) };
    }
}

/// Sixteen bytes as 32-bit lanes.
#[inline]
#[target_feature(enable = "neon")]
fn widen(bytes: uint8x16_t) -> [uint32x4_t; 4] {
    let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
    [
        vmovl_u16(vget_low_u16(low)),
        vmovl_high_u16(low),
        vmovl_u16(vget_low_u16(high)),
        vmovl_high_u16(high),
    ]
}

#[inline]
#[target_feature(enable = "neon")]
fn decode_fp8<T: Element>(codes: &[u8], scale: f32, out: &mut [T]) {
    // Products may be NaN.
    if !scale.is_finite() {
        return scalar::decode_fp8_slowly(codes, scale, out);
    }
    let factor = vdupq_n_f32(scale);
    let mut largest = vdupq_n_u8(0);
    let mut decode = |codes: &[u8; STEP], out: &mut [T; STEP]| {
        // SAFETY: the array has 32 bytes, two registers.
        let [first, second] = [0, HALF].map(|at| unsafe { vld1q_u8(codes.as_ptr().add(at)) });
        for codes in [first, second] {
            largest = vmaxq_u8(largest, vandq_u8(codes, vdupq_n_u8(0x7f)));
        }
        let value = |code: uint32x4_t| {
            let magnitude = vshlq_n_u32::<20>(vandq_u32(code, vdupq_n_u32(0x7f)));
            let normal = vaddq_u32(magnitude, vdupq_n_u32(120 << 23));
            let least = vdupq_n_u32(121 << 23);
            let subnormal = vsubq_f32(
                vreinterpretq_f32_u32(vorrq_u32(magnitude, least)),
                vreinterpretq_f32_u32(least),
            );
            let small = vcltq_u32(magnitude, vdupq_n_u32(8 << 20));
            let size = vbslq_u32(small, vreinterpretq_u32_f32(subnormal), normal);
            let sign = vshlq_n_u32::<24>(vandq_u32(code, vdupq_n_u32(0x80)));
            vmulq_f32(vreinterpretq_f32_u32(vorrq_u32(size, sign)), factor)
        };
        let [a, b, c, d] = widen(first);
        let [e, f, g, h] = widen(second);
        store([a, b, c, d, e, f, g, h].map(value), out);
    };
    let (steps, tail) = codes.as_chunks::<STEP>();
    let (outs, out_tail) = out.as_chunks_mut::<STEP>();
    for (step, out) in steps.iter().zip(outs) {
        decode(step, out);
    }
    if !tail.is_empty() {
        let mut whole = [T::default(); STEP];
        decode(&padded(tail), &mut whole);
        out_tail.copy_from_slice(&whole[..tail.len()]);
    }
    if vmaxvq_u8(largest) == 0x7f {
        scalar::decode_fp8_slowly(codes, scale, out);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn encode_mxfp4<T: Element>(x: &[T], codes: &mut [u8], scales: &mut [u8]) {
    let blocks = x
        .as_chunks::<STEP>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<HALF>().0);
    for ((x, codes), scale) in blocks.zip(scales) {
        let amax = largest(x, 0);
        if amax >= INFINITY {
            scalar::encode_mxfp4_slowly(x, codes, scale);
            continue;
        }
        *scale = scalar::scale_code(amax);
        let inverse = vdupq_n_f32(e8m0_to_f32(254 - *scale));
        let [first, second] = low_bytes(load(x).map(|x| {
            let (steps, power) = count(vmulq_f32(size(x), inverse), &E2M1);
            let code = vaddq_u32(steps, vshrq_n_u32::<22>(power));
            vbslq_u32(vdupq_n_u32(7), code, vshrq_n_u32::<28>(x))
        }));
        // Two neighbors to a byte, the earlier one in the lower half. Above its four bits a code holds nothing: `x`
        // gave the fourth, and the ones above it are zero after the shift.
        let (even, odd) = (vuzp1q_u8(first, second), vuzp2q_u8(first, second));
        // SAFETY: the array has 16 bytes, one register.
        unsafe { vst1q_u8(codes.as_mut_ptr(), vsliq_n_u8::<4>(even, odd)) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn decode_mxfp4<T: Element>(codes: &[u8], scales: &[u8], out: &mut [T]) {
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
        let factor = vdupq_n_f32(e8m0_to_f32(scale));
        // SAFETY: the array has 16 bytes, one register.
        let codes = unsafe { vld1q_u8(codes.as_ptr()) };
        let (even, odd) = (vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8::<4>(codes));
        let value = |code: uint32x4_t| {
            let magnitude = vandq_u32(code, vdupq_n_u32(7));
            let normal = vaddq_u32(vshlq_n_u32::<22>(magnitude), vdupq_n_u32(126 << 23));
            let one = vceqq_u32(magnitude, vdupq_n_u32(1));
            let small = vandq_u32(one, vdupq_n_u32(126 << 23));
            let size = vbslq_u32(vcltq_u32(magnitude, vdupq_n_u32(2)), small, normal);
            let sign = vshlq_n_u32::<28>(vandq_u32(code, vdupq_n_u32(8)));
            vmulq_f32(vreinterpretq_f32_u32(vorrq_u32(size, sign)), factor)
        };
        let [a, b, c, d] = widen(vzip1q_u8(even, odd));
        let [e, f, g, h] = widen(vzip2q_u8(even, odd));
        store([a, b, c, d, e, f, g, h].map(value), out);
    }
}
