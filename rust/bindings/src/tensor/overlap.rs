//! Where tensors lie in memory, and which of them share some.

use super::{Dtype, Tensor};
use crate::error::BindError;

impl Tensor<'_> {
    /// The half-open range of addresses that the elements may lie in.
    pub(super) fn extent(&self) -> (usize, usize) {
        let start = self.data.addr();
        let item = match self.dtype {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F8E4M3 | Dtype::F8E8M0 | Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
            // Of unknown width; never read or written, as no function takes such a tensor's elements.
            Dtype::Other => return (start, start),
        };
        if self.len() == 0 {
            return (start, start);
        }
        let (mut low, mut high) = (0_isize, 0_isize);
        for (&size, &stride) in self.shape().iter().zip(self.strides()) {
            let reach = stride * (size.cast_signed() - 1);
            low += reach.min(0);
            high += reach.max(0);
        }
        let item_signed = item as isize;
        (
            start.wrapping_add_signed(low * item_signed),
            start
                .wrapping_add_signed(high * item_signed)
                .wrapping_add(item),
        )
    }
}

/// Refuses outputs that share memory with one another or with an input.
///
/// # Errors
/// A `ValueError` that names the two tensors.
pub(crate) fn reject_overlap(
    outputs: &[(&str, &Tensor<'_>)],
    inputs: &[(&str, &Tensor<'_>)],
) -> Result<(), BindError> {
    for (index, (output_name, output)) in outputs.iter().enumerate() {
        let (start, end) = output.extent();
        for (other_name, other) in outputs[index + 1..].iter().chain(inputs) {
            let (other_start, other_end) = other.extent();
            if start < other_end && other_start < end {
                return Err(BindError::value_error(format!(
                    "{output_name} shares memory with {other_name}; outputs need memory of their own"
                )));
            }
        }
    }
    Ok(())
}
