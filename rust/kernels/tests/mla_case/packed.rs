//! A cache in FP8: its bytes made element by element, and the numbers that they stand for.

use abyssal_quant::{Bf16, Element, e4m3_to_f32, f32_to_e4m3};

/// Bytes of a row.
pub(crate) fn row_bytes(latent: usize, rope: usize) -> usize {
    latent + 4 * latent.div_ceil(128) + 2 * rope
}

/// Packs a row and replaces its numbers by those that the bytes stand for.
pub(crate) fn pack(row: &mut [f32], latent: usize) -> Vec<u8> {
    let (latents, key) = row.split_at_mut(latent);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for block in latents.chunks_mut(128) {
        let largest = block.iter().fold(1e-4_f32, |most, x| most.max(x.abs()));
        let scale = largest / 448.0;
        scales.extend(scale.to_le_bytes());
        for value in block {
            let code = f32_to_e4m3((*value / scale).clamp(-448.0, 448.0));
            *value = e4m3_to_f32(code) * scale;
            codes.push(code);
        }
    }
    codes.extend(scales);
    for value in key {
        let half = Bf16::store(*value);
        *value = half.load();
        codes.extend(half.0.to_le_bytes());
    }
    codes
}
