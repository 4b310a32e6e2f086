//! `x @ W.T` on weights as they are stored.

use abyssal_quant::Element;

use crate::activation::Panel;
use crate::error::{Result, expect_length};
use crate::matrix::Matrix;
use crate::memory::{Buffer, Places};
use crate::pool;
use crate::product::{PANEL_TOKENS, Product, TASK_ROWS, following, threads_for};
use crate::tier::Tier;

/// Multiplies tokens by the transposed matrix: `out[t, n]` is the product of token `t` and row `n`, rounded once.
///
/// `x` is `[tokens, columns]`, `out` `[tokens, rows]`.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length); nothing is written then.
pub fn linear<T: Element, O: Element>(
    tier: Tier,
    matrix: &Matrix<'_>,
    x: &[T],
    out: &mut [O],
    num_threads: usize,
) -> Result<()> {
    let tokens = x.len() / matrix.columns;
    expect_length("x", tokens * matrix.columns, x.len())?;
    expect_length("out", tokens * matrix.rows, out.len())?;
    if matrix.rows == 0 {
        return Ok(());
    }
    let mut panel = Panel::default();
    let panels = x
        .chunks(PANEL_TOKENS * matrix.columns)
        .zip(out.chunks_mut(PANEL_TOKENS * matrix.rows));
    for (x, out) in panels {
        panel.fill(tier, matrix.packing(), x, matrix.columns, num_threads);
        let out = Places::new(out);
        let threads = threads_for(
            matrix.rows * matrix.columns * panel.exponents.len(),
            num_threads,
        );
        pool::for_each(threads, matrix.rows.div_ceil(TASK_ROWS), &|task| {
            let first = task * TASK_ROWS;
            let rows = first..matrix.rows.min(first + TASK_ROWS);
            let product = Product {
                matrix,
                panel: panel.view(),
                tokens: None,
                rows: rows.clone(),
                next: matrix.place(following(&rows, threads)),
            };
            let mut buffer = Buffer::take();
            let products = buffer.some(panel.exponents.len() * rows.len());
            product.run(tier, products);
            for (token, products) in products.chunks_exact(rows.len()).enumerate() {
                // SAFETY: the tokens' rows of this task, which no other task writes.
                let out = unsafe { out.slice(token * matrix.rows + first, rows.len()) };
                for (out, &product) in out.iter_mut().zip(products) {
                    *out = O::store(product);
                }
            }
        });
    }
    Ok(())
}
