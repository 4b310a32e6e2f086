//! What four-bit codes and the codes of their scales stand for.

/// The values of the sixteen codes.
pub(crate) const E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// The values of the scale codes.
pub(crate) static E8M0: [f32; 256] = {
    let mut values = [f32::NAN; 256];
    // Subnormal in float32.
    values[0] = f32::from_bits(0x0040_0000);
    let mut code = 1;
    while code < 255 {
        values[code] = f32::from_bits((code as u32) << 23);
        code += 1;
    }
    values
};

/// Two look-ups of sixteen bytes: the upper and the lower byte of each code's value as a bfloat16.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Bytes {
    pub(crate) upper: [u8; 16],
    pub(crate) lower: [u8; 16],
}

/// The lowest bit of a float32 that any of [`SCALED`] has.
pub(crate) const LOWEST: u32 = 21;

/// The values of the codes times the scale of each code: all of them are bfloat16 numbers, or infinite.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "for tiers that look bytes up")
)]
pub(crate) static SCALED: [Bytes; 256] = {
    let mut tables = [Bytes {
        upper: [0x7f; 16],
        lower: [0xc0; 16],
    }; 256];
    let mut scale = 0;
    while scale < 255 {
        let mut code = 0;
        while code < 16 {
            let bits = (E2M1[code] * E8M0[scale]).to_bits();
            assert!(bits.trailing_zeros() >= LOWEST);
            tables[scale].upper[code] = (bits >> 24) as u8;
            tables[scale].lower[code] = (bits >> 16) as u8;
            code += 1;
        }
        scale += 1;
    }
    tables
};
