//! NEON: sixteen numbers are four registers.

use std::arch::aarch64::{
    float32x4_t, int32x4_t, uint32x4_t, vaddq_f32, vaddq_s32, vandq_s32, vbslq_s32, vcgtq_s32,
    vcombine_u16, vdivq_f32, vdupq_n_f32, vdupq_n_s32, veorq_s32, vget_lane_u64, vld1q_f32,
    vld1q_s32, vmaxnmvq_f32, vmaxq_f32, vmaxq_s32, vminq_s32, vminvq_s32, vmovn_u16, vmovn_u32,
    vmulq_f32, vorrq_s32, vreinterpret_u64_u8, vreinterpretq_f32_s32, vreinterpretq_s32_f32,
    vreinterpretq_s32_u32, vshlq_n_s32, vshrq_n_s32, vsqrtq_f32, vst1q_f32, vst1q_s32, vsubq_f32,
    vsubq_s32,
};

use super::lanes::{Candidates, Lanes, WIDTH};

/// The proof that the processor has NEON; only `simd.rs` makes one.
#[derive(Clone, Copy)]
pub(crate) struct Neon(pub(super) ());

/// Methods that are one instruction on each register.
macro_rules! each {
    ($($name:ident($($argument:ident: $from:ident),+) => $to:ident = $instruction:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($argument: Self::$from),+) -> Self::$to {
            // SAFETY: `self` exists only where the processor has NEON.
            unsafe { [
                $instruction($($argument[0]),+),
                $instruction($($argument[1]),+),
                $instruction($($argument[2]),+),
                $instruction($($argument[3]),+),
            ] }
        }
    )+};
}

impl Lanes for Neon {
    type Float = [float32x4_t; 4];
    type Int = [int32x4_t; 4];
    type Mask = [uint32x4_t; 4];

    each! {
        add(a: Float, b: Float) => Float = vaddq_f32;
        sub(a: Float, b: Float) => Float = vsubq_f32;
        mul(a: Float, b: Float) => Float = vmulq_f32;
        div(a: Float, b: Float) => Float = vdivq_f32;
        max(a: Float, b: Float) => Float = vmaxq_f32;
        sqrt(a: Float) => Float = vsqrtq_f32;
        bits(a: Float) => Int = vreinterpretq_s32_f32;
        with_bits(a: Int) => Float = vreinterpretq_f32_s32;
        int_add(a: Int, b: Int) => Int = vaddq_s32;
        int_sub(a: Int, b: Int) => Int = vsubq_s32;
        and(a: Int, b: Int) => Int = vandq_s32;
        or(a: Int, b: Int) => Int = vorrq_s32;
        xor(a: Int, b: Int) => Int = veorq_s32;
        shift_left_23(a: Int) => Int = shift_left;
        halve(a: Int) => Int = half;
        sign(a: Int) => Int = signs;
        int_max(a: Int, b: Int) => Int = vmaxq_s32;
        int_min(a: Int, b: Int) => Int = vminq_s32;
        greater(a: Int, b: Int) => Mask = vcgtq_s32;
        choose(mask: Mask, yes: Int, no: Int) => Int = vbslq_s32;
        count(sum: Int, mask: Mask) => Int = add_set;
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Float {
        // SAFETY: `self` exists only where the processor has NEON.
        unsafe { [vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> Self::Float {
        // SAFETY: the processor has NEON, and the array holds sixteen numbers.
        std::array::from_fn(|part| unsafe { vld1q_f32(from.as_ptr().add(4 * part)) })
    }

    #[inline(always)]
    fn store(self, value: Self::Float, to: &mut [f32; WIDTH]) {
        for (part, value) in value.into_iter().enumerate() {
            // SAFETY: the processor has NEON, and the array holds sixteen numbers.
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * part), value) }
        }
    }

    #[inline(always)]
    fn largest(self, a: Self::Float) -> f32 {
        // SAFETY: `self` exists only where the processor has NEON.
        unsafe { vmaxnmvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]))) }
    }

    #[inline(always)]
    fn tree_sum(self, a: Self::Float) -> f32 {
        let mut four = [0.0_f32; 4];
        // SAFETY: the processor has NEON, and the array holds four numbers.
        unsafe {
            let sum = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            vst1q_f32(four.as_mut_ptr(), sum);
        }
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn int_splat(self, value: i32) -> Self::Int {
        // SAFETY: `self` exists only where the processor has NEON.
        unsafe { [vdupq_n_s32(value); 4] }
    }

    #[inline(always)]
    fn int_load(self, from: &[i32; WIDTH]) -> Self::Int {
        // SAFETY: the processor has NEON, and the array holds sixteen numbers.
        std::array::from_fn(|part| unsafe { vld1q_s32(from.as_ptr().add(4 * part)) })
    }

    #[inline(always)]
    fn int_store(self, value: Self::Int, to: &mut [i32; WIDTH]) {
        for (part, value) in value.into_iter().enumerate() {
            // SAFETY: the processor has NEON, and the array holds sixteen numbers.
            unsafe { vst1q_s32(to.as_mut_ptr().add(4 * part), value) }
        }
    }

    #[inline(always)]
    fn smallest(self, a: Self::Int) -> i32 {
        // SAFETY: `self` exists only where the processor has NEON.
        unsafe { vminvq_s32(vminq_s32(vminq_s32(a[0], a[1]), vminq_s32(a[2], a[3]))) }
    }

    #[inline(always)]
    fn mask_bits(self, mask: Self::Mask) -> u32 {
        let mut bits = 0;
        for (part, mask) in mask.into_iter().enumerate() {
            // SAFETY: `self` exists only where the processor has NEON.
            let bytes = unsafe {
                let pairs = vmovn_u32(mask);
                vget_lane_u64::<0>(vreinterpret_u64_u8(vmovn_u16(vcombine_u16(pairs, pairs))))
            };
            // One bit of each of the four bytes, moved next to each other.
            let four = (bytes as u32 & 0x0804_0201).wrapping_mul(0x0101_0101) >> 24;
            bits |= four << (4 * part);
        }
        bits
    }

    #[inline(always)]
    fn top_two(self, first: Self::Int, second: Self::Int) -> (i32, i32) {
        let (mut bests, mut nexts) = ([0; 4], [0; 4]);
        // SAFETY: the processor has NEON, and the arrays hold four numbers.
        unsafe {
            let (a, b) = merge(self, first[0], second[0], first[1], second[1]);
            let (c, d) = merge(self, first[2], second[2], first[3], second[3]);
            let (first, second) = merge(self, a, b, c, d);
            vst1q_s32(bests.as_mut_ptr(), first);
            vst1q_s32(nexts.as_mut_ptr(), second);
        }
        let two = |a: usize, c: usize| {
            let next = bests[a].min(bests[c]).max(nexts[a].max(nexts[c]));
            (bests[a].max(bests[c]), next)
        };
        let ((a, b), (c, d)) = (two(0, 1), two(2, 3));
        (a.max(c), a.min(c).max(b.max(d)))
    }

    #[inline(always)]
    fn collect(self, orders: Self::Int, below: Self::Int, start: i32, candidates: &mut Candidates) {
        let mut set = self.mask_bits(self.greater(orders, below));
        if set == 0 {
            return;
        }
        let mut lanes = [0; WIDTH];
        self.int_store(orders, &mut lanes);
        while set != 0 {
            let lane = set.trailing_zeros();
            let (order, index) = candidates.room::<1>();
            *order = [lanes[lane as usize]];
            *index = [start + lane as i32];
            candidates.found += 1;
            set &= set - 1;
        }
    }
}

#[inline(always)]
unsafe fn shift_left(a: int32x4_t) -> int32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vshlq_n_s32::<23>(a) }
}

#[inline(always)]
unsafe fn half(a: int32x4_t) -> int32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vshrq_n_s32::<1>(a) }
}

#[inline(always)]
unsafe fn signs(a: int32x4_t) -> int32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vshrq_n_s32::<31>(a) }
}

#[inline(always)]
unsafe fn add_set(sum: int32x4_t, mask: uint32x4_t) -> int32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vsubq_s32(sum, vreinterpretq_s32_u32(mask)) }
}

/// The two largest of `a >= b` and `c >= d`, in each lane.
#[inline(always)]
fn merge(
    _: Neon,
    a: int32x4_t,
    b: int32x4_t,
    c: int32x4_t,
    d: int32x4_t,
) -> (int32x4_t, int32x4_t) {
    // SAFETY: the first argument exists only where the processor has NEON.
    unsafe {
        let second = vmaxq_s32(vminq_s32(a, c), vmaxq_s32(b, d));
        (vmaxq_s32(a, c), second)
    }
}
