//! Router logits in the formats that models compute them in.

/// Rows of logits, one after the other. Arithmetic is float32; the narrow formats convert exactly.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// float32.
    F32(&'a [f32]),
    /// The bits of bfloat16.
    Bf16(&'a [u16]),
    /// The bits of float16.
    F16(&'a [u16]),
}

impl<'a> From<&'a [f32]> for Logits<'a> {
    fn from(logits: &'a [f32]) -> Self {
        Self::F32(logits)
    }
}

impl<'a> From<&'a Vec<f32>> for Logits<'a> {
    fn from(logits: &'a Vec<f32>) -> Self {
        Self::F32(logits)
    }
}

impl<'a> Logits<'a> {
    /// The number of logits.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            Self::F32(logits) => logits.len(),
            Self::Bf16(logits) | Self::F16(logits) => logits.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_narrow(self) -> bool {
        !matches!(self, Self::F32(_))
    }

    /// The row of a token in float32: itself, or widened.
    #[inline(always)]
    pub(crate) fn row<'b>(self, token: usize, columns: usize, widened: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        let cells = token * columns..(token + 1) * columns;
        match self {
            Self::F32(logits) => &logits[cells],
            Self::Bf16(logits) => widen(&logits[cells], &mut widened[..columns], from_bf16),
            Self::F16(logits) => widen(&logits[cells], &mut widened[..columns], from_f16),
        }
    }
}

#[inline(always)]
fn widen<'b>(from: &[u16], to: &'b mut [f32], convert: impl Fn(u16) -> f32) -> &'b [f32] {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = convert(from);
    }
    to
}

#[inline(always)]
fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // The exponents' biases differ by 112; the product is exact, of subnormal numbers too.
    let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let infinite = magnitude | 0xff << 23;
    let value = if magnitude < 0x7c00 << 13 {
        finite.to_bits()
    } else {
        infinite
    };
    f32::from_bits(value | u32::from(bits >> 15) << 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of every float16, from its definition.
    fn defined(bits: u16) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        sign * match exponent {
            0 => mantissa * 2.0_f64.powi(-24),
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1024.0 + mantissa) * 2.0_f64.powi(exponent - 25),
        }
    }

    #[test]
    fn every_half_precision_number_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (value, exact) = (f64::from(from_f16(bits)), defined(bits));
            assert!(
                value == exact || value.is_nan() && exact.is_nan(),
                "{bits:#x}"
            );
            assert_eq!(from_f16(bits).is_sign_negative(), bits >> 15 == 1);
            assert_eq!(from_bf16(bits).to_bits(), u32::from(bits) << 16);
        }
    }
}
