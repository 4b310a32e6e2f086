//! A weight matrix as its checkpoint stores it, and how a tier walks along its rows.

use std::ops::Range;

use abyssal_quant::{Bf16, Scales};

use crate::error::{Error, Result, expect_length};
use crate::lanes::{Lanes, Packing, REGISTERS};

/// Rows and columns that share a scale in FP8.
pub(crate) const FP8_BLOCK: usize = 128;
/// Columns that share a scale in MXFP4.
pub(crate) const MXFP4_BLOCK: usize = 32;

/// Rows of weights, one after the other.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// FP8 e4m3 codes, one scale for 128 x 128 of them; ragged blocks at the edges.
    Fp8 {
        /// `[rows, columns]`.
        codes: &'a [u8],
        /// `[ceil(rows / 128), ceil(columns / 128)]`.
        scales: Scales<'a>,
    },
    /// e2m1 codes, two to a byte, the earlier one in the lower half; one e8m0 scale for 32 columns.
    Mxfp4 {
        /// `[rows, columns / 2]`.
        codes: &'a [u8],
        /// `[rows, columns / 32]`.
        scales: &'a [u8],
    },
    /// `[rows, columns]`.
    Bf16(&'a [Bf16]),
    /// `[rows, columns]`.
    F32(&'a [f32]),
}

/// A matrix `[rows, columns]` whose slices have been checked.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) weights: Weights<'a>,
}

impl<'a> Matrix<'a> {
    /// A matrix over these slices.
    ///
    /// # Errors
    /// [`Error::NoColumns`], [`Error::Columns`] or [`Error::Length`].
    pub fn new(rows: usize, columns: usize, weights: Weights<'a>) -> Result<Self> {
        if columns == 0 {
            return Err(Error::NoColumns);
        }
        let elements = rows * columns;
        match weights {
            Weights::Fp8 { codes, scales } => {
                expect_length("codes", elements, codes.len())?;
                let blocks = rows.div_ceil(FP8_BLOCK) * columns.div_ceil(FP8_BLOCK);
                expect_length("scales", blocks, scales.len())?;
            }
            Weights::Mxfp4 { codes, scales } => {
                if !columns.is_multiple_of(MXFP4_BLOCK) {
                    return Err(Error::Columns { columns });
                }
                expect_length("codes", elements / 2, codes.len())?;
                expect_length("scales", elements / MXFP4_BLOCK, scales.len())?;
            }
            Weights::Bf16(values) => expect_length("weight", elements, values.len())?,
            Weights::F32(values) => expect_length("weight", elements, values.len())?,
        }
        Ok(Self {
            rows,
            columns,
            weights,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Where some rows lie, those that there are.
    pub(crate) fn place(&self, rows: Range<usize>) -> Place {
        let (start, bytes) = match self.weights {
            Weights::Fp8 { codes, .. } => (codes.as_ptr(), self.columns),
            Weights::Mxfp4 { codes, .. } => (codes.as_ptr(), self.columns / 2),
            Weights::Bf16(values) => (values.as_ptr().cast(), self.columns * 2),
            Weights::F32(values) => (values.as_ptr().cast(), self.columns * 4),
        };
        let rows = rows.start.min(self.rows)..rows.end.min(self.rows);
        Place {
            start: start.wrapping_add(rows.start * bytes),
            len: rows.len() * bytes,
        }
    }

    pub(crate) fn packing(&self) -> Packing {
        match self.weights {
            Weights::Fp8 { .. } => Packing::Fp8,
            Weights::Mxfp4 { .. } => Packing::Mxfp4,
            Weights::Bf16(_) => Packing::Bf16,
            Weights::F32(_) => Packing::F32,
        }
    }
}

/// Bytes of a matrix. Nothing is read through it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) start: *const u8,
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "asked for in one tier alone")
    )]
    pub(crate) len: usize,
}

/// Where the rows of one packing lie.
pub(crate) trait Stored: Copy + Sync {
    /// Where a row begins.
    fn start(&self, row: usize) -> *const u8;
    /// Bytes of a row.
    fn row_bytes(&self) -> usize;
}

/// The last, ragged group of a row, filled up with zeros. It may begin at any address, as rows do.
pub(crate) struct Rest([u8; 256]);

impl Rest {
    /// Copies what is left of a row from byte `offset` on, less than a group.
    pub(crate) fn read(rows: &impl Stored, row: usize, offset: usize) -> Self {
        let count = rows.row_bytes() - offset;
        let mut bytes = [0; 256];
        assert!(count <= bytes.len());
        let from = rows.start(row).wrapping_add(offset);
        // SAFETY: the row has `row_bytes` bytes, and the array holds the rest.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count) };
        Self(bytes)
    }

    pub(crate) fn start(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

/// Where a group of a row begins: in the row if it is one of the `whole` ones, else in `rest`, a copy of what is left.
///
/// # Safety
/// The whole groups, of `bytes` bytes, lie in the row.
#[inline(always)]
pub(crate) unsafe fn group_at(
    rows: &impl Stored,
    row: usize,
    (group, whole): (usize, usize),
    bytes: usize,
    rest: &mut Option<Rest>,
) -> *const u8 {
    if group < whole {
        // SAFETY: as the caller promises.
        unsafe { rows.start(row).add(group * bytes) }
    } else {
        rest.insert(Rest::read(rows, row, whole * bytes)).start()
    }
}

/// How a tier reads the rows of one packing.
///
/// # Safety
/// Methods need the tier's instructions; rows and groups must lie in the matrix.
pub(crate) trait Rows<L: Lanes>: Stored {
    /// Bytes of a group.
    const GROUP_BYTES: usize;
    /// Whether codes have to be watched for NaN, which the unpacking does not keep.
    const WATCHED: bool = false;

    /// Unpacks the group that lies at `at`, any address: group number `group` of row `row`.
    unsafe fn unpack(&self, at: *const u8, row: usize, group: usize) -> [L; REGISTERS];
}

/// FP8 codes; their scales are part of the activation.
#[derive(Clone, Copy)]
pub(crate) struct Fp8Rows<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) columns: usize,
}

impl Stored for Fp8Rows<'_> {
    #[inline(always)]
    fn start(&self, row: usize) -> *const u8 {
        self.codes.as_ptr().wrapping_add(row * self.columns)
    }

    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.columns
    }
}

impl<L: Lanes> Rows<L> for Fp8Rows<'_> {
    const GROUP_BYTES: usize = L::GROUP;
    const WATCHED: bool = true;

    #[inline(always)]
    unsafe fn unpack(&self, at: *const u8, _row: usize, _group: usize) -> [L; REGISTERS] {
        // SAFETY: the caller gives a group.
        unsafe { L::fp8(at) }
    }
}

/// MXFP4 codes and their scales.
#[derive(Clone, Copy)]
pub(crate) struct Mxfp4Rows<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) columns: usize,
}

impl Stored for Mxfp4Rows<'_> {
    #[inline(always)]
    fn start(&self, row: usize) -> *const u8 {
        self.codes.as_ptr().wrapping_add(row * self.columns / 2)
    }

    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.columns / 2
    }
}

impl<L: Lanes> Rows<L> for Mxfp4Rows<'_> {
    const GROUP_BYTES: usize = L::GROUP / 2;

    #[inline(always)]
    unsafe fn unpack(&self, at: *const u8, row: usize, group: usize) -> [L; REGISTERS] {
        let across = self.columns / MXFP4_BLOCK;
        let block = group * L::GROUP / MXFP4_BLOCK;
        debug_assert!(block < across && (row + 1) * across <= self.scales.len());
        // SAFETY: a group of a row of the matrix, which was made with a scale for each block.
        let scale = |block| unsafe { *self.scales.as_ptr().add(row * across + block) };
        // Behind the end of a row there are zeros, whatever their scale.
        let second = if L::GROUP > MXFP4_BLOCK && block + 1 < across {
            scale(block + 1)
        } else {
            0
        };
        // SAFETY: the caller gives a group.
        unsafe { L::mxfp4(at, [scale(block), second]) }
    }
}

/// bfloat16 numbers.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Rows<'a> {
    pub(crate) values: &'a [Bf16],
    pub(crate) columns: usize,
}

impl Stored for Bf16Rows<'_> {
    #[inline(always)]
    fn start(&self, row: usize) -> *const u8 {
        self.values.as_ptr().wrapping_add(row * self.columns).cast()
    }

    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.columns * 2
    }
}

impl<L: Lanes> Rows<L> for Bf16Rows<'_> {
    const GROUP_BYTES: usize = L::GROUP * 2;

    #[inline(always)]
    unsafe fn unpack(&self, at: *const u8, _row: usize, _group: usize) -> [L; REGISTERS] {
        // SAFETY: the caller gives a group; the type is transparent over `u16` and needs no alignment there.
        unsafe { L::bf16(at.cast()) }
    }
}

/// float32 numbers.
#[derive(Clone, Copy)]
pub(crate) struct F32Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) columns: usize,
}

impl Stored for F32Rows<'_> {
    #[inline(always)]
    fn start(&self, row: usize) -> *const u8 {
        self.values.as_ptr().wrapping_add(row * self.columns).cast()
    }

    #[inline(always)]
    fn row_bytes(&self) -> usize {
        self.columns * 4
    }
}

impl<L: Lanes> Rows<L> for F32Rows<'_> {
    const GROUP_BYTES: usize = L::GROUP * 4;

    #[inline(always)]
    unsafe fn unpack(&self, at: *const u8, _row: usize, _group: usize) -> [L; REGISTERS] {
        #[allow(
            clippy::cast_ptr_alignment,
            reason = "lanes are loaded from any address"
        )]
        let at = at.cast::<f32>();
        // SAFETY: the caller gives a group, four registers long.
        unsafe {
            [
                L::load(at),
                L::load(at.add(L::WIDTH)),
                L::load(at.add(2 * L::WIDTH)),
                L::load(at.add(3 * L::WIDTH)),
            ]
        }
    }
}
