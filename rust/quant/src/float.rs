//! Exact conversions between float32 and the narrow formats, one element at a time: the specification.
//!
//! Every conversion to a narrow format rounds once, to nearest even. All are branch-free selects, so that loops over
//! them compile to vector code; none depends on how the processor treats subnormal inputs.

/// The formats of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub enum Format {
    F32,
    Bf16,
    F16,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for super::Bf16 {}
    impl Sealed for super::F16 {}
}

/// An element type that float32 values are read from and written to: `f32`, [`Bf16`] or [`F16`].
///
/// Sealed, because instruction tiers read the memory of a type by its [`Format`].
pub trait Element: Copy + Default + Send + Sync + sealed::Sealed {
    /// Which of the three types this is.
    #[doc(hidden)]
    const FORMAT: Format;
    /// The exact value.
    fn load(self) -> f32;
    /// The nearest value, ties to even.
    fn store(value: f32) -> Self;
}

/// The bits of a bfloat16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// The bits of an IEEE half-precision number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

/// Views of slices of bits as slices of numbers.
macro_rules! views {
    ($type:ident) => {
        impl $type {
            /// The numbers that these bits are.
            pub fn from_bits(bits: &[u16]) -> &[Self] {
                // SAFETY: the type is transparent over `u16` and every bit pattern is valid.
                unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) }
            }

            /// The bits of these numbers.
            pub fn to_bits(numbers: &[Self]) -> &[u16] {
                // SAFETY: the type is transparent over `u16`.
                unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
            }

            /// The numbers that these bits are, to write to.
            pub fn from_bits_mut(bits: &mut [u16]) -> &mut [Self] {
                // SAFETY: as above; the exclusive borrow is passed on.
                unsafe { std::slice::from_raw_parts_mut(bits.as_mut_ptr().cast(), bits.len()) }
            }
        }
    };
}

views!(Bf16);
views!(F16);

impl Element for f32 {
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    fn load(self) -> f32 {
        self
    }

    #[inline(always)]
    fn store(value: f32) -> Self {
        value
    }
}

impl Element for Bf16 {
    const FORMAT: Format = Format::Bf16;

    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn store(value: f32) -> Self {
        let bits = value.to_bits();
        // Wraps for NaN only, where the result is not used.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        Self(if value.is_nan() { nan } else { rounded } as u16)
    }
}

impl Element for F16 {
    const FORMAT: Format = Format::F16;

    #[inline(always)]
    fn load(self) -> f32 {
        let bits = u32::from(self.0);
        let magnitude = bits & 0x7fff;
        // Exponent and mantissa in place, 112 short; infinity and NaN get the highest exponent.
        let shifted = (magnitude << 13) + (112 << 23);
        let normal = if magnitude >= 0x7c00 {
            shifted + (112 << 23)
        } else {
            shifted
        };
        // Subnormal: the mantissa counted in units of 2^-24.
        let subnormal = (f32::from_bits(magnitude << 13 & 0x7f_ffff | 113 << 23)
            - f32::from_bits(113 << 23))
        .to_bits();
        let value = if magnitude < 0x400 { subnormal } else { normal };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn store(value: f32) -> Self {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let rounded =
            (magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13).wrapping_sub(112 << 10);
        let normal = rounded.min(0x7c00);
        // Below 2^-14: adding 0.5 leaves steps of 2^-24.
        let subnormal = (f32::from_bits(magnitude) + 0.5)
            .to_bits()
            .wrapping_sub(0.5_f32.to_bits());
        let nan = 0x7e00 | magnitude >> 13 & 0x1ff;
        let finite = if magnitude < 113 << 23 {
            subnormal
        } else {
            normal
        };
        let code = if magnitude > 0x7f80_0000 { nan } else { finite };
        Self((code | bits >> 16 & 0x8000) as u16)
    }
}

/// The value of an FP8 e4m3 code. Codes 0x7f and 0xff are NaN; there is no infinity.
#[inline(always)]
pub fn e4m3_to_f32(code: u8) -> f32 {
    let bits = u32::from(code);
    let magnitude = bits & 0x7f;
    let normal = (magnitude << 20) + (120 << 23);
    // Subnormal: the mantissa counted in units of 2^-9, computed without a subnormal float32.
    let subnormal =
        (f32::from_bits((magnitude & 7) << 20 | 121 << 23) - f32::from_bits(121 << 23)).to_bits();
    let finite = if magnitude < 8 { subnormal } else { normal };
    let value = if magnitude == 0x7f {
        0x7fc0_0000
    } else {
        finite
    };
    f32::from_bits(value | (bits & 0x80) << 24)
}

/// The FP8 e4m3 code nearest to a number of at most 448 in size, ties to even; NaN keeps its sign.
#[inline(always)]
pub fn f32_to_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal =
        (magnitude.wrapping_add(0x7_ffff + (magnitude >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    // Below 2^-6: adding 2^14 leaves steps of 2^-9.
    let subnormal = (f32::from_bits(magnitude) + 16384.0)
        .to_bits()
        .wrapping_sub(16384.0_f32.to_bits());
    let finite = if magnitude < 121 << 23 {
        subnormal
    } else {
        normal
    };
    let code = if magnitude > 0x7f80_0000 {
        0x7f
    } else {
        finite
    };
    (code | bits >> 24 & 0x80) as u8
}

/// The value of an e8m0 scale code: `2^(code - 127)`; code 255 is NaN.
#[inline(always)]
pub fn e8m0_to_f32(code: u8) -> f32 {
    f32::from_bits(match code {
        // Subnormal in float32.
        0 => 0x0040_0000,
        255 => 0x7fc0_0000,
        _ => u32::from(code) << 23,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a float with these field widths, from the definition.
    fn decode(code: u32, exponent_bits: u32, mantissa_bits: u32) -> f64 {
        let bias = (1_i32 << (exponent_bits - 1)) - 1;
        let exponent = (code >> mantissa_bits & ((1 << exponent_bits) - 1)) as i32;
        let mantissa =
            f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1_u32 << mantissa_bits);
        let sign = if code >> (exponent_bits + mantissa_bits) & 1 == 1 {
            -1.0
        } else {
            1.0
        };
        let size = if exponent == 0 {
            mantissa * 2.0_f64.powi(1 - bias)
        } else {
            (1.0 + mantissa) * 2.0_f64.powi(exponent - bias)
        };
        sign * size
    }

    #[test]
    fn every_e4m3_code_has_its_value() {
        for code in 0..=u8::MAX {
            let value = e4m3_to_f32(code);
            if code & 0x7f == 0x7f {
                assert!(value.is_nan() && value.is_sign_negative() == (code == 0xff));
            } else {
                assert_eq!(
                    f64::from(value).to_bits(),
                    decode(u32::from(code), 4, 3).to_bits()
                );
            }
            assert_eq!(f32_to_e4m3(value), code);
        }
    }

    #[test]
    fn numbers_between_two_e4m3_codes_go_to_the_nearest_and_midpoints_to_the_even_one() {
        for code in 0..0x7e_u8 {
            let (low, high) = (e4m3_to_f32(code), e4m3_to_f32(code + 1));
            let middle = f32::midpoint(low, high);
            let even = code + (code & 1);
            assert_eq!(f32_to_e4m3(middle), even);
            assert_eq!(f32_to_e4m3(middle.next_down()), code);
            assert_eq!(f32_to_e4m3(middle.next_up()), code + 1);
            assert_eq!(f32_to_e4m3(-middle), even | 0x80);
        }
    }

    #[test]
    fn every_half_precision_number_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let value = F16(bits).load();
            if bits & 0x7c00 == 0x7c00 {
                assert_eq!(value.is_nan(), bits & 0x3ff != 0);
                assert_eq!(value.is_infinite(), bits & 0x7fff == 0x7c00);
            } else {
                assert_eq!(
                    f64::from(value).to_bits(),
                    decode(u32::from(bits), 5, 10).to_bits()
                );
            }
            let expected = if value.is_nan() { bits | 0x200 } else { bits };
            assert_eq!(F16::store(value), F16(expected));
        }
    }

    #[test]
    fn half_precision_rounds_midpoints_to_even_and_overflows_to_infinity() {
        for bits in 0..0x7bff_u16 {
            let (low, high) = (F16(bits).load(), F16(bits + 1).load());
            let middle = f32::midpoint(low, high);
            assert_eq!(F16::store(middle), F16(bits + (bits & 1)));
            assert_eq!(F16::store(middle.next_up()), F16(bits + 1));
            assert_eq!(F16::store(middle.next_down()), F16(bits));
        }
        assert_eq!(F16::store(65519.996), F16(0x7bff));
        assert_eq!(F16::store(65520.0), F16(0x7c00));
        assert_eq!(F16::store(f32::NEG_INFINITY), F16(0xfc00));
    }

    #[test]
    fn bfloat16_rounds_midpoints_to_even() {
        for bits in 0..0x7f80_u16 {
            let value = Bf16(bits).load();
            assert_eq!(Bf16::store(value), Bf16(bits));
            let middle = f32::from_bits(value.to_bits() | 0x8000);
            assert_eq!(Bf16::store(middle), Bf16(bits + (bits & 1)));
            assert_eq!(Bf16::store(-middle), Bf16((bits + (bits & 1)) | 0x8000));
        }
        assert!(Bf16::store(f32::NAN).load().is_nan());
        assert_eq!(Bf16::store(f32::INFINITY), Bf16(0x7f80));
    }
}
