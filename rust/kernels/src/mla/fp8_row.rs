//! A row of a cache in FP8: the latent's codes, a float32 scale for each 128 of them, and the rotated key in bfloat16.
//!
//! Source: the rows of FlashMLA's FP8 cache, 656 bytes for a latent of 512 and a key of 64.

use abyssal_quant::{Bf16, Element, Rows, ScaleFormat, Scales, Tier, dequantize_fp8, quantize_fp8};

/// Codes with one scale.
const BLOCK: usize = 128;
/// Scales that are aligned together.
const SCALES: usize = 16;
const SCALE_BYTES: usize = size_of::<f32>();
const KEY_BYTES: usize = size_of::<Bf16>();

/// Where the parts of a row begin; the latent's codes do so at 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fp8Row {
    latent: usize,
    rope: usize,
}

impl Fp8Row {
    pub(super) fn new(latent: usize, rope: usize) -> Self {
        Self { latent, rope }
    }

    /// Where the rotated key begins.
    fn key(self) -> usize {
        self.latent + self.latent.div_ceil(BLOCK) * SCALE_BYTES
    }

    /// Bytes of a row.
    pub(super) fn bytes(self) -> usize {
        self.key() + self.rope * KEY_BYTES
    }

    /// Writes a row, given as its numbers.
    pub(super) fn pack(self, numbers: &[f32], row: &mut [u8]) {
        let (latents, key) = numbers.split_at(self.latent);
        let (packed, rotated) = row.split_at_mut(self.key());
        let (codes, scales) = packed.split_at_mut(self.latent);
        let parts = latents
            .chunks(BLOCK * SCALES)
            .zip(codes.chunks_mut(BLOCK * SCALES))
            .zip(scales.chunks_mut(SCALES * SCALE_BYTES));
        for ((latents, codes), to) in parts {
            let mut aligned = [0.0; SCALES];
            let scales = &mut aligned[..to.len() / SCALE_BYTES];
            let done = Rows::contiguous(latents, latents.len()).and_then(|latents| {
                let format = ScaleFormat::F32;
                quantize_fp8(Tier::best(), latents, (1, BLOCK), format, codes, scales)
            });
            debug_assert!(done.is_ok(), "the parts of a row fit each other");
            for (to, scale) in to.chunks_exact_mut(SCALE_BYTES).zip(scales) {
                to.copy_from_slice(&scale.to_le_bytes());
            }
        }
        for (to, &value) in rotated.chunks_exact_mut(KEY_BYTES).zip(key) {
            to.copy_from_slice(&Bf16::store(value).0.to_le_bytes());
        }
    }

    /// Reads the latent: each code times its scale, rounded to the type asked for.
    pub(super) fn latent<T: Element>(self, row: &[u8], out: &mut [T]) {
        let (codes, scales) = row[..self.key()].split_at(self.latent);
        let parts = codes
            .chunks(BLOCK * SCALES)
            .zip(scales.chunks(SCALES * SCALE_BYTES))
            .zip(out.chunks_mut(BLOCK * SCALES));
        for ((codes, from), out) in parts {
            let mut aligned = [0.0; SCALES];
            let count = from.len() / SCALE_BYTES;
            for (scale, from) in aligned.iter_mut().zip(from.as_chunks().0) {
                *scale = f32::from_le_bytes(*from);
            }
            let done = Rows::contiguous(codes, codes.len()).and_then(|codes| {
                let scales = Scales::F32(&aligned[..count]);
                dequantize_fp8(Tier::best(), codes, scales, (1, BLOCK), out)
            });
            debug_assert!(done.is_ok(), "the parts of a row fit each other");
        }
    }

    /// Reads the rotated key.
    pub(super) fn rotated(self, row: &[u8]) -> impl Iterator<Item = Bf16> {
        let key = row[self.key()..self.bytes()].as_chunks().0;
        key.iter().map(|&bytes| Bf16(u16::from_le_bytes(bytes)))
    }
}
