//! Instruction tiers. A tier compiles the same scalar code for wider registers, so its bits are the same.

use crate::float::Element;
use crate::fp8::{self, Blocks, ScaleFormat, Scales};
use crate::linear::{self, Block, Weight};
use crate::mxfp4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

/// An instruction tier that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier(Kind);

/// A method of `Tier` that runs `$body` compiled for the tier.
macro_rules! tiered {
    ($(#[$doc:meta])* fn $name:ident<$($generic:ident: $bound:path),*>($($argument:ident: $type:ty),* $(,)?) = $body:path) => {
        $(#[$doc])*
        pub(crate) fn $name<$($generic: $bound),*>(self, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2<$($generic: $bound),*>($($argument: $type),*) {
                $body($($argument),*);
            }
            match self.0 {
                Kind::Scalar => $body($($argument),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a tier of this kind is made only where the processor has AVX2.
                Kind::Avx2 => unsafe { avx2($($argument),*) },
            }
        }
    };
}

impl Tier {
    /// Every tier of this machine, the slowest first.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return vec![Self(Kind::Scalar), Self(Kind::Avx2)];
        }
        vec![Self(Kind::Scalar)]
    }

    /// The fastest tier of this machine.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Self(Kind::Avx2);
        }
        Self(Kind::Scalar)
    }

    tiered! {
        fn quantize_fp8<T: Element>(x: &[T], blocks: Blocks, format: ScaleFormat, codes: &mut [u8], scales: &mut [f32])
            = fp8::quantize
    }
    tiered! {
        fn dequantize_fp8<T: Element>(codes: &[u8], scales: Scales<'_>, blocks: Blocks, out: &mut [T]) = fp8::dequantize
    }
    tiered! {
        fn quantize_mxfp4<T: Element>(x: &[T], codes: &mut [u8], scales: &mut [u8]) = mxfp4::quantize
    }
    tiered! {
        fn multiply<W: Weight>(weight: &W, x: &[Block], tokens: usize, first: usize, out: &mut [f32]) = linear::multiply
    }
}
