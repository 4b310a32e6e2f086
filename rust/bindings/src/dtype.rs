//! Element types of tensors, by torch's names, DLPack's codes and the buffer protocol's formats.

use std::ffi::CStr;
use std::fmt;

/// The element types that the package's operations know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F64,
    F16,
    BF16,
    F8E4M3,
    F8E8M0,
    I8,
    U8,
    I32,
    U32,
    I64,
    Bool,
    /// A type that no operation takes.
    Other,
}

impl Dtype {
    /// torch's name of the type, without the `torch.`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F8E4M3 => "float8_e4m3fn",
            Self::F8E8M0 => "float8_e8m0fnu",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::I32 => "int32",
            Self::U32 => "uint32",
            Self::I64 => "int64",
            Self::Bool => "bool",
            Self::Other => "an unsupported dtype",
        }
    }

    /// Whether the numbers are whole: such tensors have no gradient.
    pub(crate) fn is_integer(self) -> bool {
        matches!(
            self,
            Self::I8 | Self::U8 | Self::I32 | Self::U32 | Self::I64 | Self::Bool
        )
    }

    pub(crate) fn from_name(name: &str) -> Self {
        const NAMED: [Dtype; 12] = [
            Dtype::F32,
            Dtype::F64,
            Dtype::F16,
            Dtype::BF16,
            Dtype::F8E4M3,
            Dtype::F8E8M0,
            Dtype::I8,
            Dtype::U8,
            Dtype::I32,
            Dtype::U32,
            Dtype::I64,
            Dtype::Bool,
        ];
        NAMED
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .unwrap_or(Self::Other)
    }

    pub(crate) fn from_dlpack(code: u8, bits: u8, lanes: u16) -> Self {
        match (code, bits, lanes) {
            (0, 8, 1) => Self::I8,
            (0, 32, 1) => Self::I32,
            (0, 64, 1) => Self::I64,
            (1, 8, 1) => Self::U8,
            (1, 32, 1) => Self::U32,
            (2, 16, 1) => Self::F16,
            (2, 32, 1) => Self::F32,
            (2, 64, 1) => Self::F64,
            (4, 16, 1) => Self::BF16,
            (6, 8, 1) => Self::Bool,
            (10, 8, 1) => Self::F8E4M3,
            (14, 8, 1) => Self::F8E8M0,
            _ => Self::Other,
        }
    }

    /// The type of a buffer-protocol item in native byte order.
    pub(crate) fn from_format(format: &CStr, item_size: usize) -> Self {
        let format = format.to_bytes();
        let native: &[u8] = if cfg!(target_endian = "little") {
            b"@=<"
        } else {
            b"@=>!"
        };
        let code = match format {
            [code] => *code,
            [order, code] if native.contains(order) => *code,
            _ => return Self::Other,
        };
        match (code, item_size) {
            (b'f', 4) => Self::F32,
            (b'd', 8) => Self::F64,
            (b'e', 2) => Self::F16,
            (b'b', 1) => Self::I8,
            (b'B', 1) => Self::U8,
            (b'i' | b'l', 4) => Self::I32,
            (b'I' | b'L', 4) => Self::U32,
            (b'l' | b'q', 8) => Self::I64,
            (b'?', 1) => Self::Bool,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub(crate) trait Sealed {}
}

/// A Rust type that a tensor's memory can be read as: every bit pattern is a value of it.
pub(crate) trait Element: Copy + Send + Sync + sealed::Sealed + 'static {
    /// The tensor types with this representation. `u16` stands for the bits of both half precisions, `u8` for
    /// the codes of every one-byte format; the caller looks at [`Tensor::dtype`].
    const DTYPES: &'static [Dtype];
}

macro_rules! element {
    ($($rust:ty => [$($dtype:ident),+];)+) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPES: &'static [Dtype] = &[$(Dtype::$dtype),+];
        }
    )+};
}

element! {
    f32 => [F32];
    f64 => [F64];
    u16 => [BF16, F16];
    u8 => [U8, F8E4M3, F8E8M0];
    i8 => [I8];
    i32 => [I32];
    u32 => [U32];
    i64 => [I64];
}
