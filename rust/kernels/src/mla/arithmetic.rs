//! What attention asks of a tier besides [`Lanes`], and the exponential made of it.
//!
//! Every operation rounds once, so all tiers give the same bits lane by lane.

use crate::lanes::Lanes;
use crate::scalar::Scalar;

/// Adding this to a number below 2^22 in size rounds it to an integer, held in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// Below this the exponential counts as zero.
const FLOOR: f32 = -127.0;
/// `(2^r - 1) / r` for `|r| <= 1/2`, highest power first; minimax in the relative error of the exponential, 2e-9.
const EXP2: [f32; 6] = [
    0.000_153_533_62,
    0.001_339_887_4,
    0.009_618_437,
    0.055_503_324,
    0.240_226_48,
    std::f32::consts::LN_2,
];

/// Lanes that add, multiply and compare.
///
/// # Safety
/// As for [`Lanes`].
pub(crate) trait Arithmetic: Lanes {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn subtract(self, other: Self) -> Self;
    unsafe fn multiply(self, other: Self) -> Self;
    /// `self` where it is the larger one, `other` elsewhere and where one of them is NaN.
    unsafe fn larger(self, other: Self) -> Self;
    /// `2^n`, of `n` + [`ROUND`] for integers `n` from -127 to 127; 0 for -127.
    unsafe fn power_of_two(rounded: Self) -> Self;
    /// Reads `WIDTH` bfloat16 numbers, in order.
    unsafe fn widen(values: *const u16) -> Self;

    /// `2^x` for `x <= 0`, NaN for NaN.
    ///
    /// Within one unit in the last place down to -126, and zero from -126.5 on (between, a multiple of 2^-149).
    #[inline(always)]
    unsafe fn exp2_nonpositive(self) -> Self {
        // SAFETY: the caller's tier has the instructions.
        unsafe {
            let x = Self::splat(FLOOR).larger(self);
            let rounded = x.add(Self::splat(ROUND));
            let rest = x.subtract(rounded.subtract(Self::splat(ROUND)));
            let mut value = Self::splat(EXP2[0]);
            for &coefficient in &EXP2[1..] {
                value = value.mul_add(rest, Self::splat(coefficient));
            }
            let value = value.mul_add(rest, Self::splat(1.0));
            value.multiply(Self::power_of_two(rounded))
        }
    }
}

impl<const W: usize> Scalar<W> {
    fn pairs(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| of(self.0[lane], other.0[lane])))
    }
}

impl<const W: usize> Arithmetic for Scalar<W> {
    unsafe fn splat(value: f32) -> Self {
        Self([value; W])
    }

    unsafe fn add(self, other: Self) -> Self {
        self.pairs(other, |a, b| a + b)
    }

    unsafe fn subtract(self, other: Self) -> Self {
        self.pairs(other, |a, b| a - b)
    }

    unsafe fn multiply(self, other: Self) -> Self {
        self.pairs(other, |a, b| a * b)
    }

    unsafe fn larger(self, other: Self) -> Self {
        self.pairs(other, |a, b| if a > b { a } else { b })
    }

    unsafe fn power_of_two(rounded: Self) -> Self {
        Self(
            rounded
                .0
                .map(|lane| f32::from_bits((lane.to_bits() << 23).wrapping_add(127 << 23))),
        )
    }

    unsafe fn widen(values: *const u16) -> Self {
        // SAFETY: the caller gives `W` numbers; no alignment is needed.
        let bits = unsafe { values.cast::<[u16; W]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(
        clippy::wildcard_imports,
        reason = "a list of instructions would say nothing"
    )]
    use std::arch::x86_64::*;

    use super::Arithmetic;
    use crate::avx2::Avx2;
    use crate::avx512::Avx512;

    impl Arithmetic for Avx2 {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn subtract(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn multiply(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn larger(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm256_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn power_of_two(rounded: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded.0));
                let bits = _mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23));
                Self(_mm256_castsi256_ps(bits))
            }
        }

        #[inline(always)]
        unsafe fn widen(values: *const u16) -> Self {
            // SAFETY: the caller gives eight numbers and its tier has the instructions.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(values.cast()));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
            }
        }
    }

    impl Arithmetic for Avx512 {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn subtract(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn multiply(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn larger(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn power_of_two(rounded: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            unsafe {
                let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(rounded.0));
                let bits = _mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23));
                Self(_mm512_castsi512_ps(bits))
            }
        }

        #[inline(always)]
        unsafe fn widen(values: *const u16) -> Self {
            // SAFETY: the caller gives sixteen numbers and its tier has the instructions.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    #[allow(
        clippy::wildcard_imports,
        reason = "a list of instructions would say nothing"
    )]
    use std::arch::aarch64::*;

    use super::Arithmetic;
    use crate::neon::Neon;

    impl Arithmetic for Neon {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { vdupq_n_f32(value) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { vaddq_f32(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn subtract(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { vsubq_f32(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn multiply(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { vmulq_f32(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn larger(self, other: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            Self(unsafe { vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn power_of_two(rounded: Self) -> Self {
            // SAFETY: the caller's tier has the instructions.
            unsafe {
                let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(rounded.0));
                let bits = vaddq_u32(exponent, vdupq_n_u32(127 << 23));
                Self(vreinterpretq_f32_u32(bits))
            }
        }

        #[inline(always)]
        unsafe fn widen(values: *const u16) -> Self {
            // SAFETY: the caller gives four numbers and its tier has the instructions.
            Self(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(values))) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every float32 in steps, an odd number so that all low bits occur; `ABYSSAL_TEST_PROFILE=full` takes them all.
    fn step() -> usize {
        match std::env::var("ABYSSAL_TEST_PROFILE").as_deref() {
            Ok("full") => 1,
            Ok("emulated") => 60_013,
            _ => 61,
        }
    }

    fn exp2(x: f32) -> f32 {
        // SAFETY: scalar lanes need no instructions beyond the target's.
        unsafe { Scalar::<1>([x]).exp2_nonpositive() }.0[0]
    }

    #[test]
    fn the_exponential_is_within_one_unit_in_the_last_place() {
        let mut worst = 0.0_f64;
        for bits in (0..=126.0_f32.to_bits()).step_by(step()) {
            let x = -f32::from_bits(bits);
            let exact = f64::from(x).exp2();
            let unit = 2.0_f64.powi(exact.log2().floor() as i32 - 23);
            worst = worst.max((f64::from(exp2(x)) - exact).abs() / unit);
        }
        println!("exp2: {worst:.4} ulp");
        assert!(worst <= 1.0, "{worst}");
    }

    #[test]
    fn the_exponential_of_the_ends_and_of_what_is_no_number() {
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-0.0), 1.0);
        assert_eq!(exp2(-1.0), 0.5);
        assert_eq!(exp2(-126.0), f32::MIN_POSITIVE);
        for x in [-126.6, -127.0, -1e4, -3e38, f32::NEG_INFINITY] {
            assert_eq!(exp2(x).to_bits(), 0, "{x}");
        }
        assert!(exp2(f32::NAN).is_nan());
        assert!(exp2(-f32::NAN).is_nan());
    }
}
