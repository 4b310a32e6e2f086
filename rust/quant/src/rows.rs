//! Rows of a matrix, or of several, that need not lie one directly after the other.

use crate::error::{Error, Result};

/// A view of `matrices` matrices of `rows` rows. The columns of a row lie side by side; rows and matrices are some
/// number of elements apart, which may be less than a row is long (a repeated row has a step of 0).
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    values: &'a [T],
    matrices: usize,
    #[allow(clippy::struct_field_names, reason = "what they are called everywhere")]
    rows: usize,
    columns: usize,
    matrix_step: usize,
    row_step: usize,
}

impl<'a, T: Copy> Rows<'a, T> {
    /// One matrix, its rows directly after one another.
    ///
    /// # Errors
    /// A length that is no multiple of `columns`.
    pub fn contiguous(values: &'a [T], columns: usize) -> Result<Self> {
        let rows = values.len().checked_div(columns).unwrap_or(0);
        crate::error::expect_length("x", rows * columns, values.len())?;
        Self::strided(values, [1, rows, columns], [0, columns])
    }

    /// Matrices, rows and columns, with the steps from one matrix and from one row to the next.
    ///
    /// # Errors
    /// Fewer values than the last row needs.
    pub fn strided(values: &'a [T], shape: [usize; 3], steps: [usize; 2]) -> Result<Self> {
        let [matrices, rows, columns] = shape;
        let [matrix_step, row_step] = steps;
        if matrices > 0 && rows > 0 && columns > 0 {
            let needed = (matrices - 1)
                .checked_mul(matrix_step)
                .zip((rows - 1).checked_mul(row_step))
                .and_then(|(matrices, rows)| matrices.checked_add(rows)?.checked_add(columns))
                .unwrap_or(usize::MAX);
            if values.len() < needed {
                return Err(Error::Length {
                    name: "x",
                    expected: needed,
                    actual: values.len(),
                });
            }
        }
        Ok(Self {
            values,
            matrices,
            rows,
            columns,
            matrix_step,
            row_step,
        })
    }

    /// Matrices, rows and columns.
    pub(crate) fn shape(&self) -> [usize; 3] {
        [self.matrices, self.rows, self.columns]
    }

    /// Elements from one row to the next.
    pub(crate) fn row_step(&self) -> usize {
        self.row_step
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.matrices * self.rows * self.columns
    }

    /// Some columns of one row.
    #[inline(always)]
    pub(crate) fn part(
        &self,
        matrix: usize,
        row: usize,
        columns: std::ops::Range<usize>,
    ) -> &'a [T] {
        let start = matrix * self.matrix_step + row * self.row_step;
        &self.values[start + columns.start..start + columns.end]
    }

    /// Every row.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [T]> {
        let x = *self;
        (0..x.matrices)
            .flat_map(move |matrix| (0..x.rows).map(move |row| x.part(matrix, row, 0..x.columns)))
    }

    /// All rows, as one matrix where they lie evenly.
    pub(crate) fn merged(self) -> Self {
        let evenly = self.matrices == 1 || self.matrix_step == self.rows * self.row_step;
        if !evenly {
            return self;
        }
        Self {
            matrices: 1,
            rows: self.matrices * self.rows,
            ..self
        }
    }
}
