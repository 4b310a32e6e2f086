//! Instruction tiers: the inner loops of a tier inside the shared loops, compiled for its registers, so that both
//! become one piece of code. The scalar tier is the specification, and every tier gives its bits.

#[cfg(target_arch = "x86_64")]
use crate::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use crate::avx512::Avx512;
use crate::error::Result;
use crate::float::Element;
use crate::fp8::{self, Blocks, ScaleFormat, Scales};
use crate::kernels::Scalar;
use crate::mxfp4;
#[cfg(target_arch = "aarch64")]
use crate::neon::Neon;
use crate::quantize;
use crate::rows::Rows;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// An instruction tier that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier(Kind);

/// A method of `Tier` that runs `$body`, whose first argument are a tier's inner loops, compiled for the tier.
macro_rules! tiered {
    ($(#[$attribute:meta])* fn $name:ident<$($generic:ident: $bound:path),*>($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path) => {
        $(#[$attribute])*
        pub(crate) fn $name<$($generic: $bound),*>(self, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$($generic: $bound),*>(kernels: Avx2, $($argument: $type),*) $(-> $result)? {
                $body(kernels, $($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
            fn avx512<$($generic: $bound),*>(kernels: Avx512, $($argument: $type),*) $(-> $result)? {
                $body(kernels, $($argument),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon<$($generic: $bound),*>(kernels: Neon, $($argument: $type),*) $(-> $result)? {
                $body(kernels, $($argument),*)
            }
            match self.0 {
                Kind::Scalar => $body(Scalar, $($argument),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the processor has the instructions, which `kernels` proves.
                Kind::Avx2(kernels) => unsafe { avx2(kernels, $($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the processor has the instructions, which `kernels` proves.
                Kind::Avx512(kernels) => unsafe { avx512(kernels, $($argument),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: the processor has the instructions, which `kernels` proves.
                Kind::Neon(kernels) => unsafe { neon(kernels, $($argument),*) },
            }
        }
    };
}

impl Tier {
    /// Every tier of this machine, the slowest first.
    pub fn available() -> Vec<Self> {
        let mut tiers = vec![Self(Kind::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            tiers.extend(Avx2::detect().map(|tier| Self(Kind::Avx2(tier))));
            tiers.extend(Avx512::detect().map(|tier| Self(Kind::Avx512(tier))));
        }
        #[cfg(target_arch = "aarch64")]
        tiers.extend(Neon::detect().map(|tier| Self(Kind::Neon(tier))));
        tiers
    }

    /// The fastest tier of this machine.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(tier) = Avx512::detect() {
                return Self(Kind::Avx512(tier));
            }
            if let Some(tier) = Avx2::detect() {
                return Self(Kind::Avx2(tier));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(tier) = Neon::detect() {
            return Self(Kind::Neon(tier));
        }
        Self(Kind::Scalar)
    }

    /// The tier's name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
        }
    }

    tiered! {
        fn quantize_fp8<T: Element>(x: Rows<'_, T>, blocks: Blocks, format: ScaleFormat, codes: &mut [u8], scales: &mut [f32])
            = quantize::quantize
    }
    tiered! {
        fn dequantize_fp8<T: Element>(codes: Rows<'_, u8>, scales: Scales<'_>, blocks: Blocks, out: &mut [T]) = fp8::dequantize
    }
    tiered! {
        fn check_no_nan<T: Element>(x: Rows<'_, T>) -> Result<()> = mxfp4::check_no_nan
    }
    tiered! {
        fn quantize_mxfp4<T: Element>(x: Rows<'_, T>, codes: &mut [u8], scales: &mut [u8]) = mxfp4::quantize
    }
    #[cfg(test)]
    tiered! {
        fn count_differences<>(exponent: u32, step: usize) -> usize = crate::quotient::count_differences
    }
    tiered! {
        fn dequantize_mxfp4<T: Element>(codes: Rows<'_, u8>, scales: &[u8], out: &mut [T]) = mxfp4::dequantize
    }
}
