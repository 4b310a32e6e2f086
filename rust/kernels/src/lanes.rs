//! A register of float32 lanes, and how it reads packed weights: what an instruction tier has to offer.
//!
//! Weights are read in groups of four registers. Which element of a group lands in which lane is the tier's choice (the
//! cheapest unpacking), and the activation is permuted once to match. Scalar lanes of the same width give the same bits
//! as a tier: a fused multiply-add rounds once everywhere.

/// Registers of a group.
pub(crate) const REGISTERS: usize = 4;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Fp8,
    Mxfp4,
    Bf16,
    F32,
}

/// A register of lanes.
///
/// # Safety
/// Every method needs the instructions of the tier that the type belongs to, and pointers to as many elements as it says.
pub(crate) trait Lanes: Copy {
    /// Lanes of a register.
    const WIDTH: usize;
    /// Elements of a group.
    const GROUP: usize = Self::WIDTH * REGISTERS;
    /// Whether the processor has sixteen registers, not thirty-two.
    const FEW: bool = false;

    unsafe fn zero() -> Self;
    /// Reads `WIDTH` numbers.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes `WIDTH` numbers.
    unsafe fn store(self, to: *mut f32);
    /// `self * other + sum`, rounded once.
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self;
    /// The sum of the lanes: halves are added until one is left.
    unsafe fn sum(self) -> f32;

    /// Reads `GROUP` codes as their values times 2^-120; NaN codes as 480 times that.
    unsafe fn fp8(codes: *const u8) -> [Self; REGISTERS];
    /// The bytewise maximum of `seen` and the sizes of `GROUP` codes; bits in a register.
    unsafe fn fp8_largest(seen: Self, codes: *const u8) -> Self;
    /// Whether a byte of `seen` is the code of NaN.
    unsafe fn has_nan_code(seen: Self) -> bool;
    /// Reads `GROUP` codes of four bits, times the scales of the one or two blocks of 32 that the group lies in, which are
    /// given as codes.
    unsafe fn mxfp4(codes: *const u8, scales: [u8; 2]) -> [Self; REGISTERS];
    /// Reads `GROUP` bfloat16 numbers, from any address.
    unsafe fn bf16(values: *const u16) -> [Self; REGISTERS];

    /// Which element of a group stands at `place` of its registers.
    fn element(packing: Packing, place: usize) -> usize;
}

/// Asks the processor for the line that holds this address, as near as the second-level cache: what is asked for early
/// would push out of the nearest one what is used now. Any address will do.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults nowhere; the instruction is part of every x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
