//! Sixteen float32 numbers in registers: what the gate's products need of a tier.
//!
//! A value of an implementing type is a proof that the processor has the tier's instructions; that is why the methods
//! are safe. Each rounds once to nearest even, so all tiers give the same bits.

/// Numbers per vector.
pub(crate) const WIDTH: usize = 16;

/// Vectors of some numbers.
pub(crate) trait Part<const LANES: usize>: Copy {
    /// So many float32.
    type Float: Copy;

    fn zero(self) -> Self::Float;
    fn load(self, from: &[f32; LANES]) -> Self::Float;
    /// `sum + a * b`, rounded twice.
    fn add_product(self, sum: Self::Float, a: Self::Float, b: Self::Float) -> Self::Float;
    fn store(self, value: Self::Float, to: &mut [f32; LANES]);
}

/// Vectors of sixteen numbers.
pub(crate) trait Vector: Part<WIDTH> {
    /// Sixteen bfloat16.
    fn load_bf16(self, from: &[u16; WIDTH]) -> Self::Float;
}

/// Plain code: the specification.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl<const LANES: usize> Part<LANES> for Scalar {
    type Float = [f32; LANES];

    #[inline(always)]
    fn zero(self) -> [f32; LANES] {
        [0.0; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    #[inline(always)]
    fn add_product(self, mut sum: [f32; LANES], a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for lane in 0..LANES {
            sum[lane] += a[lane] * b[lane];
        }
        sum
    }

    #[inline(always)]
    fn store(self, value: [f32; LANES], to: &mut [f32; LANES]) {
        *to = value;
    }
}

impl Vector for Scalar {
    #[inline(always)]
    fn load_bf16(self, from: &[u16; WIDTH]) -> [f32; WIDTH] {
        from.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm_loadu_si128, _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32,
        _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_setzero_ps, _mm256_slli_epi32,
        _mm256_storeu_ps, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
        _mm512_loadu_ps, _mm512_mul_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    };

    use super::{Part, Vector, WIDTH};

    /// The proof that the processor has AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        /// The proof, from the tier that routing found.
        pub(crate) fn of(tier: abyssal_routing::Tier) -> Option<Self> {
            // A tier of this name exists only where the processor was found to have AVX2.
            (tier.name() == "avx2").then_some(Self(()))
        }
    }

    impl Part<WIDTH> for Avx2 {
        type Float = [__m256; 2];

        #[inline(always)]
        fn zero(self) -> Self::Float {
            // SAFETY: `self` exists only where the processor has AVX2.
            unsafe { [_mm256_setzero_ps(); 2] }
        }

        #[inline(always)]
        fn load(self, from: &[f32; WIDTH]) -> Self::Float {
            // SAFETY: the processor has AVX2, and the array holds sixteen numbers.
            unsafe {
                [
                    _mm256_loadu_ps(from.as_ptr()),
                    _mm256_loadu_ps(from.as_ptr().add(8)),
                ]
            }
        }

        #[inline(always)]
        fn add_product(self, sum: Self::Float, a: Self::Float, b: Self::Float) -> Self::Float {
            // SAFETY: `self` exists only where the processor has AVX2.
            unsafe {
                [
                    _mm256_add_ps(sum[0], _mm256_mul_ps(a[0], b[0])),
                    _mm256_add_ps(sum[1], _mm256_mul_ps(a[1], b[1])),
                ]
            }
        }

        #[inline(always)]
        fn store(self, value: Self::Float, to: &mut [f32; WIDTH]) {
            // SAFETY: the processor has AVX2, and the array holds sixteen numbers.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
            }
        }
    }

    impl Vector for Avx2 {
        #[inline(always)]
        fn load_bf16(self, from: &[u16; WIDTH]) -> Self::Float {
            // SAFETY: the processor has AVX2, and the array holds sixteen numbers.
            unsafe {
                let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
                let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(8).cast()));
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
                ]
            }
        }
    }

    impl Part<8> for Avx2 {
        type Float = __m256;

        #[inline(always)]
        fn zero(self) -> __m256 {
            // SAFETY: `self` exists only where the processor has AVX2.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        fn load(self, from: &[f32; 8]) -> __m256 {
            // SAFETY: the processor has AVX2, and the array holds eight numbers.
            unsafe { _mm256_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn add_product(self, sum: __m256, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` exists only where the processor has AVX2.
            unsafe { _mm256_add_ps(sum, _mm256_mul_ps(a, b)) }
        }

        #[inline(always)]
        fn store(self, value: __m256, to: &mut [f32; 8]) {
            // SAFETY: the processor has AVX2, and the array holds eight numbers.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
        }
    }

    /// The proof that the processor has AVX-512 F, BW, DQ and VL.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    impl Avx512 {
        /// The proof, from the tier that routing found.
        pub(crate) fn of(tier: abyssal_routing::Tier) -> Option<Self> {
            // A tier of this name exists only where the processor was found to have these instructions.
            (tier.name() == "avx512").then_some(Self(()))
        }
    }

    impl Part<WIDTH> for Avx512 {
        type Float = __m512;

        #[inline(always)]
        fn zero(self) -> __m512 {
            // SAFETY: `self` exists only where the processor has AVX-512.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        fn load(self, from: &[f32; WIDTH]) -> __m512 {
            // SAFETY: the processor has AVX-512, and the array holds sixteen numbers.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn add_product(self, sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` exists only where the processor has AVX-512.
            unsafe { _mm512_add_ps(sum, _mm512_mul_ps(a, b)) }
        }

        #[inline(always)]
        fn store(self, value: __m512, to: &mut [f32; WIDTH]) {
            // SAFETY: the processor has AVX-512, and the array holds sixteen numbers.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
        }
    }

    impl Vector for Avx512 {
        #[inline(always)]
        fn load_bf16(self, from: &[u16; WIDTH]) -> __m512 {
            // SAFETY: the processor has AVX-512, and the array holds sixteen numbers.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod arm {
    use std::arch::aarch64::{
        float32x4_t, vaddq_f32, vdupq_n_f32, vld1_u16, vld1q_f32, vmulq_f32, vreinterpretq_f32_u32,
        vshll_n_u16, vst1q_f32,
    };

    use super::{Part, Vector, WIDTH};

    /// The proof that the processor has NEON.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon(());

    impl Neon {
        /// The proof, from the tier that routing found.
        pub(crate) fn of(tier: abyssal_routing::Tier) -> Option<Self> {
            // A tier of this name exists only where the processor was found to have NEON.
            (tier.name() == "neon").then_some(Self(()))
        }
    }

    impl Part<WIDTH> for Neon {
        type Float = [float32x4_t; 4];

        #[inline(always)]
        fn zero(self) -> Self::Float {
            // SAFETY: `self` exists only where the processor has NEON.
            unsafe { [vdupq_n_f32(0.0); 4] }
        }

        #[inline(always)]
        fn load(self, from: &[f32; WIDTH]) -> Self::Float {
            // SAFETY: the processor has NEON, and the array holds sixteen numbers.
            std::array::from_fn(|part| unsafe { vld1q_f32(from.as_ptr().add(4 * part)) })
        }

        #[inline(always)]
        fn add_product(self, sum: Self::Float, a: Self::Float, b: Self::Float) -> Self::Float {
            // SAFETY: `self` exists only where the processor has NEON.
            std::array::from_fn(|part| unsafe { vaddq_f32(sum[part], vmulq_f32(a[part], b[part])) })
        }

        #[inline(always)]
        fn store(self, value: Self::Float, to: &mut [f32; WIDTH]) {
            for (part, value) in value.into_iter().enumerate() {
                // SAFETY: the processor has NEON, and the array holds sixteen numbers.
                unsafe { vst1q_f32(to.as_mut_ptr().add(4 * part), value) }
            }
        }
    }

    impl Part<8> for Neon {
        type Float = [float32x4_t; 2];

        #[inline(always)]
        fn zero(self) -> Self::Float {
            // SAFETY: `self` exists only where the processor has NEON.
            unsafe { [vdupq_n_f32(0.0); 2] }
        }

        #[inline(always)]
        fn load(self, from: &[f32; 8]) -> Self::Float {
            // SAFETY: the processor has NEON, and the array holds eight numbers.
            std::array::from_fn(|part| unsafe { vld1q_f32(from.as_ptr().add(4 * part)) })
        }

        #[inline(always)]
        fn add_product(self, sum: Self::Float, a: Self::Float, b: Self::Float) -> Self::Float {
            // SAFETY: `self` exists only where the processor has NEON.
            std::array::from_fn(|part| unsafe { vaddq_f32(sum[part], vmulq_f32(a[part], b[part])) })
        }

        #[inline(always)]
        fn store(self, value: Self::Float, to: &mut [f32; 8]) {
            for (part, value) in value.into_iter().enumerate() {
                // SAFETY: the processor has NEON, and the array holds eight numbers.
                unsafe { vst1q_f32(to.as_mut_ptr().add(4 * part), value) }
            }
        }
    }

    impl Vector for Neon {
        #[inline(always)]
        fn load_bf16(self, from: &[u16; WIDTH]) -> Self::Float {
            // SAFETY: the processor has NEON, and the array holds sixteen numbers.
            std::array::from_fn(|part| unsafe {
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr().add(4 * part))))
            })
        }
    }
}
