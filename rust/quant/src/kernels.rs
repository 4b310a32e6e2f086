//! What an instruction tier does: the inner loops. The loops over rows and blocks around them are shared.

use crate::float::Element;
use crate::scalar;

/// Elements that a tier's loops take at a time.
pub(crate) const STEP: usize = 32;
/// How many bytes ahead memory is asked for: on one core of a Zen 3, 1 KB took 1.3 times as long, 4 KB 1.2 times.
pub(crate) const AHEAD: usize = 1 << 13;
/// Results of this many bytes go past the caches: they would push everything else out, and not be there when needed.
pub(crate) const STREAMED: usize = 1 << 23;
/// Blocks side by side that are quantized together, at most.
pub(crate) const GROUP: usize = 8;
/// The bits of infinity; a NaN's are above.
pub(crate) const INFINITY: u32 = 0x7f80_0000;

/// The bits of 2^64. Quotients of elements from here on are divided: what makes up for a division would underflow.
pub(crate) const LARGE: u32 = (127 + 64) << 23;

/// At most so many elements, filled up with zeros.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default, const SIZE: usize>(x: &[T]) -> [T; SIZE] {
    let mut whole = [T::default(); SIZE];
    whole[..x.len()].copy_from_slice(x);
    whole
}

/// A scale made ready to divide by: its rounded inverse, and what that lacks.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Divisor {
    pub(crate) inverse: f32,
    pub(crate) rest: f32,
}

/// The inner loops. `scalar.rs` defines their results; every tier gives the same bits.
pub(crate) trait Kernels: Copy {
    /// The same tier, its results going past the caches or not.
    ///
    /// That spares reading the memory that is about to be overwritten, and is for results larger than the caches.
    fn streaming(self, streams: bool) -> Self;

    /// Ends writing past the caches; the last call on results.
    fn finish(self);

    /// The bits, as float32, of the largest size of the elements in all parts, at least those of `start`. A NaN counts
    /// as larger than infinity.
    fn largest<'a, T: Element + 'a>(self, parts: impl Iterator<Item = &'a [T]>, start: u32) -> u32;

    /// What a tier divides by.
    type Divisor: Copy + Default;

    /// Makes scales of at least 2^-24 ready to divide by. A division takes as long as many elements, so it is done before
    /// the elements wait for it.
    fn divisors(self, scales: &[f32; GROUP]) -> [Self::Divisor; GROUP];

    /// Writes `e4m3(x / scale)` for elements of at most about `448 * scale` in size, less than [`LARGE`].
    fn encode_fp8<T: Element>(self, x: &[T], scale: Self::Divisor, codes: &mut [u8]);

    /// Writes `code * scale`.
    fn decode_fp8<T: Element>(self, codes: &[u8], scale: f32, out: &mut [T]);

    /// Writes codes and scales of whole MXFP4 blocks without NaN.
    fn encode_mxfp4<T: Element>(self, x: &[T], codes: &mut [u8], scales: &mut [u8]);

    /// Writes the values of whole MXFP4 blocks.
    fn decode_mxfp4<T: Element>(self, codes: &[u8], scales: &[u8], out: &mut [T]);

    /// Asks for memory that will be read soon, some bytes behind each line of `values`; none for a distance of zero.
    fn prefetch<T>(self, values: &[T], distance: usize);
}

/// The specification as a tier.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

impl Kernels for Scalar {
    type Divisor = f32;

    #[inline(always)]
    fn streaming(self, _streams: bool) -> Self {
        self
    }

    #[inline(always)]
    fn finish(self) {}

    #[inline(always)]
    fn largest<'a, T: Element + 'a>(self, parts: impl Iterator<Item = &'a [T]>, start: u32) -> u32 {
        parts.fold(start, |start, x| scalar::largest(x, start))
    }

    #[inline(always)]
    fn divisors(self, scales: &[f32; GROUP]) -> [f32; GROUP] {
        *scales
    }

    #[inline(always)]
    fn encode_fp8<T: Element>(self, x: &[T], scale: f32, codes: &mut [u8]) {
        scalar::encode_fp8(x, scale, codes);
    }

    #[inline(always)]
    fn decode_fp8<T: Element>(self, codes: &[u8], scale: f32, out: &mut [T]) {
        scalar::decode_fp8(codes, scale, out);
    }

    #[inline(always)]
    fn encode_mxfp4<T: Element>(self, x: &[T], codes: &mut [u8], scales: &mut [u8]) {
        scalar::encode_mxfp4(x, codes, scales);
    }

    #[inline(always)]
    fn decode_mxfp4<T: Element>(self, codes: &[u8], scales: &[u8], out: &mut [T]) {
        scalar::decode_mxfp4(codes, scales, out);
    }

    #[inline(always)]
    fn prefetch<T>(self, _values: &[T], _distance: usize) {}
}
