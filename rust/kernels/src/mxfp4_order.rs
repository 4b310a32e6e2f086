//! Where each element of a group of four-bit codes lands: the order that is cheapest to unpack at each width.

/// The element at a lane of a register, for registers of so many lanes.
pub(crate) fn element(width: usize, register: usize, lane: usize) -> usize {
    match width {
        // Sixteen bytes make two registers: their lower halves, then their upper ones.
        16 => register / 2 * 32 + lane * 2 + register % 2,
        // Sixteen bytes make four registers. The lower codes go to the lower four lanes, the upper ones to the others;
        // a register takes the even or the odd bytes of one half.
        8 => {
            let byte = register / 2 * 8 + lane % 4 * 2 + register % 2;
            byte * 2 + lane / 4
        }
        // Eight bytes make four registers: the even and the odd bytes' lower codes, then the upper ones.
        _ => {
            let byte = lane * 2 + register % 2;
            byte * 2 + register / 2
        }
    }
}
