//! Four lanes with NEON.
#![cfg(target_arch = "aarch64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::aarch64::*;

use crate::lanes::{Lanes, Packing, REGISTERS};
use crate::mxfp4::SCALED;
use crate::scalar::Scalar;

/// Four lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(pub(crate) float32x4_t);

impl Lanes for Neon {
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's tier has the instructions.
        Self(unsafe { vdupq_n_f32(0.0) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives four numbers.
        Self(unsafe { vld1q_f32(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for four numbers.
        unsafe { vst1q_f32(to, self.0) };
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: the caller's tier has the instructions.
        Self(unsafe { vfmaq_f32(sum.0, self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's tier has the instructions.
        unsafe {
            let two = vadd_f32(vget_low_f32(self.0), vget_high_f32(self.0));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    unsafe fn fp8(codes: *const u8) -> [Self; REGISTERS] {
        // SAFETY: the caller gives 16 codes and its tier has the instructions.
        unsafe {
            let four = vreinterpretq_s32_u8(vld1q_u8(codes));
            // Sign, exponent and mantissa of a code, moved to where a float32 has them.
            let mask = vdupq_n_s32(0x87f0_0000_u32.cast_signed());
            let place = |top| {
                Self(vreinterpretq_f32_s32(vandq_s32(
                    vshrq_n_s32::<4>(top),
                    mask,
                )))
            };
            [
                place(vshlq_n_s32::<24>(four)),
                place(vshlq_n_s32::<16>(four)),
                place(vshlq_n_s32::<8>(four)),
                place(four),
            ]
        }
    }

    #[inline(always)]
    unsafe fn fp8_largest(seen: Self, codes: *const u8) -> Self {
        // SAFETY: the caller gives 16 codes and its tier has the instructions.
        unsafe {
            let sizes = vandq_u8(vld1q_u8(codes), vdupq_n_u8(0x7f));
            Self(vreinterpretq_f32_u8(vmaxq_u8(
                vreinterpretq_u8_f32(seen.0),
                sizes,
            )))
        }
    }

    #[inline(always)]
    unsafe fn has_nan_code(seen: Self) -> bool {
        // SAFETY: the caller's tier has the instructions.
        unsafe { vmaxvq_u8(vreinterpretq_u8_f32(seen.0)) == 0x7f }
    }

    #[inline(always)]
    unsafe fn mxfp4(codes: *const u8, scales: [u8; 2]) -> [Self; REGISTERS] {
        let table = &SCALED[usize::from(scales[0])];
        // SAFETY: the caller gives eight bytes and its tier has the instructions; the tables have sixteen bytes.
        unsafe {
            let (upper, lower) = (
                vld1q_u8(table.upper.as_ptr()),
                vld1q_u8(table.lower.as_ptr()),
            );
            let bytes = vld1_u8(codes);
            let odd = vdupq_n_u32(0xffff_0000);
            let half = |codes| {
                let (upper, lower) = (vqtbl1_u8(upper, codes), vqtbl1_u8(lower, codes));
                let pairs = vcombine_u8(vzip1_u8(lower, upper), vzip2_u8(lower, upper));
                let pairs = vreinterpretq_u32_u8(pairs);
                let value = |bits| Self(vreinterpretq_f32_u32(bits));
                [
                    value(vshlq_n_u32::<16>(pairs)),
                    value(vandq_u32(pairs, odd)),
                ]
            };
            let [a, b] = half(vand_u8(bytes, vdup_n_u8(15)));
            let [c, d] = half(vshr_n_u8::<4>(bytes));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    unsafe fn bf16(values: *const u16) -> [Self; REGISTERS] {
        // SAFETY: the caller gives 16 numbers and its tier has the instructions.
        unsafe {
            let odd = vdupq_n_u32(0xffff_0000);
            let pair = |at| {
                let pairs = vreinterpretq_u32_u16(vld1q_u16(values.add(at)));
                [
                    Self(vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs))),
                    Self(vreinterpretq_f32_u32(vandq_u32(pairs, odd))),
                ]
            };
            let ([a, b], [c, d]) = (pair(0), pair(8));
            [a, b, c, d]
        }
    }

    fn element(packing: Packing, place: usize) -> usize {
        Scalar::<4>::element(packing, place)
    }
}
