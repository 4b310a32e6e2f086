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
        fn dequantize_mxfp4<T: Element>(codes: &[u8], scales: &[u8], out: &mut [T]) = mxfp4::decode
    }

    /// Writes the products of all tokens with rows of a weight, as `linear::multiply` says.
    pub(crate) fn multiply<W: Weight>(
        self,
        weight: &W,
        x: &[Block],
        tokens: usize,
        first: usize,
        out: &mut [f32],
    ) {
        match self.0 {
            Kind::Scalar => linear::multiply(weight, x, tokens, first, out, linear::dot_four),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a tier of this kind is made only where the processor has AVX2.
            Kind::Avx2 => unsafe { avx2::multiply(weight, x, tokens, first, out) },
        }
    }
}

/// Left to itself the compiler vectorizes `linear::dot_four` across tokens, with gathers; here its order of operations
/// is written out in registers of eight lanes.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps,
        _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_ps,
        _mm256_mul_ps, _mm256_setzero_ps,
    };

    use crate::linear::{self, Block, GROUP, LANES, Weight};

    #[target_feature(enable = "avx2")]
    pub(super) fn multiply<W: Weight>(
        weight: &W,
        x: &[Block],
        tokens: usize,
        first: usize,
        out: &mut [f32],
    ) {
        linear::multiply(weight, x, tokens, first, out, |x, weights| {
            dot_four(x, weights)
        });
    }

    /// The lower and the upper half of the lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn halves(lanes: &[f32; LANES]) -> [__m256; 2] {
        // SAFETY: the array holds sixteen numbers, eight for each load; loads need no alignment.
        unsafe {
            [
                _mm256_loadu_ps(lanes.as_ptr()),
                _mm256_loadu_ps(lanes.as_ptr().add(8)),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn dot_four(x: &Block, weights: &[Block; GROUP]) -> [f32; GROUP] {
        let mut sums = [[_mm256_setzero_ps(); 2]; GROUP];
        for (step, x) in x.as_chunks::<LANES>().0.iter().enumerate() {
            let x = halves(x);
            for (sum, weight) in sums.iter_mut().zip(weights) {
                let weight = halves(&weight.as_chunks().0[step]);
                sum[0] = _mm256_add_ps(sum[0], _mm256_mul_ps(x[0], weight[0]));
                sum[1] = _mm256_add_ps(sum[1], _mm256_mul_ps(x[1], weight[1]));
            }
        }
        sums.map(|[low, high]| {
            let eight = _mm256_add_ps(low, high);
            let upper = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), upper);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
}
