//! Lanes in plain Rust: the specification of every tier of the same width.

use abyssal_quant::{Bf16, Element, e4m3_to_f32};

use crate::lanes::{Lanes, Packing, REGISTERS};
use crate::mxfp4::{E2M1, E8M0};

/// `W` lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar<const W: usize>(pub(crate) [f32; W]);

/// 2^-120, which a code's bits are short of when they are moved to a float32 as they stand.
const SHORT: f32 = f32::from_bits(7 << 23);

impl<const W: usize> Scalar<W> {
    /// Places the elements of a group where the registers have them.
    fn placed(packing: Packing, element: impl Fn(usize) -> f32) -> [Self; REGISTERS] {
        std::array::from_fn(|register| {
            Self(std::array::from_fn(|lane| {
                element(Self::element(packing, register * W + lane))
            }))
        })
    }
}

impl<const W: usize> Lanes for Scalar<W> {
    const WIDTH: usize = W;

    unsafe fn zero() -> Self {
        Self([0.0; W])
    }

    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives `W` numbers; no alignment is needed.
        Self(unsafe { from.cast::<[f32; W]>().read_unaligned() })
    }

    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for `W` numbers.
        unsafe { to.cast::<[f32; W]>().write_unaligned(self.0) };
    }

    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            self.0[lane].mul_add(other.0[lane], sum.0[lane])
        }))
    }

    unsafe fn sum(self) -> f32 {
        let mut lanes = self.0;
        let mut width = W;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        lanes[0]
    }

    unsafe fn fp8(codes: *const u8) -> [Self; REGISTERS] {
        Self::placed(Packing::Fp8, |element| {
            // SAFETY: the caller gives a group of codes.
            let code = unsafe { *codes.add(element) };
            let value = e4m3_to_f32(code);
            if value.is_nan() {
                SHORT * 480.0_f32.copysign(value)
            } else {
                SHORT * value
            }
        })
    }

    unsafe fn fp8_largest(seen: Self, codes: *const u8) -> Self {
        Self(std::array::from_fn(|lane| {
            let mut bytes = seen.0[lane].to_bits().to_le_bytes();
            for (byte, largest) in bytes.iter_mut().enumerate() {
                // SAFETY: the caller gives a group of codes, four for each lane.
                let code = unsafe { *codes.add(lane * REGISTERS + byte) };
                *largest = (*largest).max(code & 0x7f);
            }
            f32::from_bits(u32::from_le_bytes(bytes))
        }))
    }

    unsafe fn has_nan_code(seen: Self) -> bool {
        seen.0
            .iter()
            .any(|lane| lane.to_bits().to_le_bytes().contains(&0x7f))
    }

    unsafe fn mxfp4(codes: *const u8, scales: [u8; 2]) -> [Self; REGISTERS] {
        Self::placed(Packing::Mxfp4, |element| {
            // SAFETY: the caller gives a group of codes, two to a byte.
            let byte = unsafe { *codes.add(element / 2) };
            E2M1[usize::from(byte >> (element % 2 * 4) & 15)]
                * E8M0[usize::from(scales[element / 32])]
        })
    }

    unsafe fn bf16(values: *const u16) -> [Self; REGISTERS] {
        Self::placed(Packing::Bf16, |element| {
            // SAFETY: the caller gives a group of numbers; no alignment is needed.
            Bf16(unsafe { values.add(element).read_unaligned() }).load()
        })
    }

    /// The orders of the tier with as many lanes.
    fn element(packing: Packing, place: usize) -> usize {
        let (register, lane) = (place / W, place % W);
        match packing {
            // A lane holds four neighboring codes.
            Packing::Fp8 => lane * REGISTERS + register,
            // Pairs of registers hold the even and the odd numbers.
            Packing::Bf16 => register / 2 * W * 2 + lane * 2 + register % 2,
            Packing::F32 => place,
            Packing::Mxfp4 => crate::mxfp4_order::element(W, register, lane),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read_from_any_address() {
        const GROUP: usize = Scalar::<8>::GROUP;
        let numbers: [u16; GROUP] = std::array::from_fn(|place| 0x3f80 + place as u16);
        let mut bytes = [0_u8; 2 * GROUP + 4];
        for shift in 0..4 {
            for (place, number) in numbers.iter().enumerate() {
                bytes[shift + 2 * place..][..2].copy_from_slice(&number.to_le_bytes());
            }
            // SAFETY: a group of numbers begins at `shift`.
            let registers = unsafe { Scalar::<8>::bf16(bytes[shift..].as_ptr().cast()) };
            for (register, lanes) in registers.iter().enumerate() {
                for (lane, value) in lanes.0.iter().enumerate() {
                    let element = Scalar::<8>::element(Packing::Bf16, register * 8 + lane);
                    assert_eq!(value.to_bits(), u32::from(numbers[element]) << 16);
                }
            }
        }
    }
}
