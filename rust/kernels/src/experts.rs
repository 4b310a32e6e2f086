//! A feed-forward part: experts chosen token by token, and one that all tokens have, in two parallel regions.
//!
//! ```text
//! group the choices by expert
//! region 1, tasks of (expert, rows):  inner = silu(min(gate(x), limit)) * clamp(up(x), -limit, limit)
//! region 2, tasks of rows:            sum = 0;  for each expert, ascending:  sum += weight * down(inner)
//!                                     zero experts: sum += weight * x;  the shared expert: sum += down(inner)
//! ```
//!
//! Everything between the input and the output, which is rounded once, is float32. A task of the second region has some
//! columns of all tokens and goes through the experts in their order: so a token's sum has one order, whatever else the
//! step holds and however many threads there are.

use std::ops::Range;

use abyssal_quant::Element;
use abyssal_routing::{exp_nonpositive, permute};

#[cfg(target_arch = "x86_64")]
use crate::activation::lay_pairs_in_place;
use crate::activation::{Form, Order, PAIR_GROUP, Panel, PanelView, normalize};
use crate::error::{Error, Result, expect_length};
use crate::lanes::Packing;
use crate::matrix::{Matrix, Place};
use crate::memory::{Buffer, Places};
use crate::pool;
use crate::product::{Product, TASK_ROWS, following, threads_for};
#[cfg(target_arch = "x86_64")]
use crate::tier::Kind;
use crate::tier::Tier;

/// Inner activations that exist at the same time, at most: 64 MB.
const MOST_INNER: usize = 1 << 24;

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone, Copy)]
pub struct Expert<'a> {
    gate: Matrix<'a>,
    up: Matrix<'a>,
    down: Matrix<'a>,
}

impl<'a> Expert<'a> {
    /// An expert of three matrices.
    ///
    /// # Errors
    /// [`Error::Expert`] if they do not fit together.
    pub fn new(gate: Matrix<'a>, up: Matrix<'a>, down: Matrix<'a>) -> Result<Self> {
        let shape = |matrix: &Matrix<'_>| (matrix.rows, matrix.columns);
        let (inner, hidden) = shape(&gate);
        if shape(&up) == (inner, hidden) && shape(&down) == (hidden, inner) {
            Ok(Self { gate, up, down })
        } else {
            Err(Error::Expert {
                gate: shape(&gate),
                up: shape(&up),
                down: shape(&down),
            })
        }
    }

    /// Width of its input and output.
    pub fn hidden_size(&self) -> usize {
        self.gate.columns
    }

    fn inner_size(&self) -> usize {
        self.gate.rows
    }
}

/// The experts of a layer.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// Width of a token.
    pub hidden_size: usize,
    /// Experts with weights.
    pub num_experts: usize,
    /// Those, and behind them experts that return their input.
    pub num_routes: usize,
    /// The expert of a number below `num_experts`.
    pub expert: &'a (dyn Fn(usize) -> Result<Expert<'a>> + Sync),
    /// The expert that every token has.
    pub shared: Option<Expert<'a>>,
    /// What bounds gate (above) and up (on both sides).
    pub limit: Option<f32>,
}

/// The experts of each token and their weights, both `[tokens, top_k]`.
#[derive(Debug, Clone, Copy)]
pub struct Choices<'a> {
    /// Numbers below `num_routes`.
    pub indices: &'a [i32],
    /// What each expert's output is multiplied by.
    pub weights: &'a [f32],
    /// Experts of a token; 0 if there is only the shared one.
    pub top_k: usize,
}

/// Writes the sum of each token's experts; `x` and `out` are `[tokens, hidden_size]`.
///
/// # Errors
/// Lengths that do not fit, an index out of range, an expert of another width; nothing is written then.
pub fn experts<T: Element>(
    tier: Tier,
    layer: Layer<'_>,
    choices: Choices<'_>,
    x: &[T],
    out: &mut [T],
    num_threads: usize,
) -> Result<()> {
    let hidden = layer.hidden_size;
    let tokens = x.len().checked_div(hidden).ok_or(Error::NoColumns)?;
    expect_length("x", tokens * hidden, x.len())?;
    expect_length("out", x.len(), out.len())?;
    let top_k = choices.top_k;
    expect_length("indices", tokens * top_k, choices.indices.len())?;
    expect_length("weights", tokens * top_k, choices.weights.len())?;
    let expert_width = if layer.num_experts > 0 && tokens * top_k > 0 {
        (layer.expert)(0)?.inner_size()
    } else {
        0
    };
    let token_inner = top_k * expert_width + layer.shared.map_or(0, |expert| expert.inner_size());
    let together = (MOST_INNER / token_inner.max(1)).max(1);
    // All steps are looked at before the first one writes.
    let mut steps = Vec::new();
    for first in (0..tokens).step_by(together) {
        let here = first..tokens.min(first + together);
        let choices = Choices {
            indices: &choices.indices[here.start * top_k..here.end * top_k],
            weights: &choices.weights[here.start * top_k..here.end * top_k],
            top_k,
        };
        steps.push((
            here.clone(),
            Groups::new::<T>(tier, layer, choices, here.len())?,
        ));
    }
    for (here, groups) in steps {
        let cells = here.start * hidden..here.end * hidden;
        groups.run(tier, layer, &x[cells.clone()], &mut out[cells], num_threads);
    }
    Ok(())
}

/// Tokens that go through the same expert.
struct Group<'a> {
    expert: Expert<'a>,
    /// Where its choices stand among all.
    choices: Range<usize>,
    /// Where their inner activations begin, and the width of one.
    inner: usize,
    width: usize,
    /// The order of the inner activations, and how they are multiplied.
    order: Order,
    form: Form,
}

/// The choices of a step, grouped by expert.
struct Groups<'a> {
    /// Ascending; the shared expert last.
    all: Vec<Group<'a>>,
    /// Token and weight of every choice, in the order of the groups.
    tokens: Vec<u32>,
    weights: Vec<f32>,
    /// Choices of zero experts; they come before the shared expert's.
    zeros: Range<usize>,
    /// Size of all inner activations.
    inner: usize,
}

impl<'a> Groups<'a> {
    fn new<T: Element>(
        tier: Tier,
        layer: Layer<'a>,
        choices: Choices<'_>,
        tokens: usize,
    ) -> Result<Self> {
        let routed = choices.indices.len();
        let (mut order, mut offsets) = (vec![0; routed], vec![0; layer.num_routes + 1]);
        if choices.top_k > 0 {
            permute(choices.indices, layer.num_routes, &mut order, &mut offsets)?;
        }
        let mut found = Self {
            all: Vec::new(),
            tokens: order
                .iter()
                .map(|&choice| choice as u32 / choices.top_k as u32)
                .collect(),
            weights: order
                .iter()
                .map(|&choice| choices.weights[choice as usize])
                .collect(),
            zeros: offsets[layer.num_experts] as usize..routed,
            inner: 0,
        };
        for number in 0..layer.num_experts {
            let choices = offsets[number] as usize..offsets[number + 1] as usize;
            if !choices.is_empty() {
                found.push::<T>(tier, layer, (layer.expert)(number)?, choices)?;
            }
        }
        if let Some(expert) = layer.shared {
            found.tokens.extend(0..tokens as u32);
            found.weights.resize(routed + tokens, 1.0);
            if tokens > 0 {
                found.push::<T>(tier, layer, expert, routed..routed + tokens)?;
            }
        }
        Ok(found)
    }

    fn push<T: Element>(
        &mut self,
        tier: Tier,
        layer: Layer<'_>,
        expert: Expert<'a>,
        choices: Range<usize>,
    ) -> Result<()> {
        expect_length("a row of gate", layer.hidden_size, expert.hidden_size())?;
        let packing = expert.down.packing();
        let form = Form::of::<T>(tier, packing);
        let (order, width) = match form {
            Form::Lanes => {
                let order = Order::of(tier, packing);
                (order, order.width(expert.inner_size()))
            }
            // Pairs are made of whole rows.
            Form::Pairs => (
                Order::NATURAL,
                expert.inner_size().next_multiple_of(PAIR_GROUP),
            ),
        };
        let inner = self.inner;
        self.inner += choices.len() * width;
        self.all.push(Group {
            expert,
            choices,
            inner,
            width,
            order,
            form,
        });
        Ok(())
    }

    fn run<T: Element>(
        &self,
        tier: Tier,
        layer: Layer<'_>,
        x: &[T],
        out: &mut [T],
        num_threads: usize,
    ) {
        let work = self
            .all
            .iter()
            .map(|group| group.choices.len() * group.expert.inner_size() * layer.hidden_size)
            .sum();
        let threads = threads_for(work, num_threads);
        let mut buffer = Buffer::take();
        let inner = buffer.some(self.inner);
        self.fill_inner(tier, layer, x, inner, threads);
        let exponents = self.lay_out(inner, threads);
        let rows = layer.hidden_size;
        let out = Places::new(out);
        pool::for_each(threads, rows.div_ceil(TASK_ROWS), &|task| {
            let first = task * TASK_ROWS;
            let rows = first..rows.min(first + TASK_ROWS);
            self.sum_rows(tier, layer, x, inner, &exponents, rows, threads, out);
        });
    }

    /// The first region: every inner activation, in the order of its down matrix.
    fn fill_inner<T: Element>(
        &self,
        tier: Tier,
        layer: Layer<'_>,
        x: &[T],
        inner: &mut [f32],
        threads: usize,
    ) {
        let panels = Panels::new(tier, layer, x, &self.all, threads);
        let tasks: Vec<(u32, u32)> = (0_u32..)
            .zip(&self.all)
            .flat_map(|(number, group)| {
                let blocks = group.expert.inner_size().div_ceil(TASK_ROWS) as u32;
                (0..blocks).map(move |block| (number, block))
            })
            .collect();
        let places = Places::new(inner);
        let part = |task: usize| {
            let (number, block) = tasks[task.min(tasks.len() - 1)];
            let group = &self.all[number as usize];
            let rows = block as usize * TASK_ROWS;
            (group, rows..group.expert.inner_size().min(rows + TASK_ROWS))
        };
        pool::for_each(threads, tasks.len(), &|task| {
            let (group, rows) = part(task);
            let (later, later_rows) = part(task + threads);
            let next = later.expert.gate.place(later_rows);
            self.fill_rows(tier, layer.limit, &panels, group, rows, next, places);
        });
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what a task of a region shares with the others"
    )]
    fn fill_rows(
        &self,
        tier: Tier,
        limit: Option<f32>,
        panels: &Panels,
        group: &Group<'_>,
        rows: Range<usize>,
        next: Place,
        inner: Places<'_, f32>,
    ) {
        let (tokens, count) = (&self.tokens[group.choices.clone()], rows.len());
        let product = |matrix: &Matrix<'_>, next: Place, out: &mut [f32]| {
            let product = Product {
                matrix,
                panel: panels.of(matrix.packing()),
                tokens: Some(tokens),
                rows: rows.clone(),
                next,
            };
            product.run(tier, out);
        };
        let places = group.order.places();
        let last = rows.end == group.expert.inner_size();
        let mut buffer = Buffer::take();
        let products = buffer.some(2 * tokens.len() * count);
        let (gates, ups) = products.split_at_mut(tokens.len() * count);
        product(
            &group.expert.gate,
            group.expert.up.place(rows.clone()),
            gates,
        );
        product(&group.expert.up, next, ups);
        activate(tier, limit, gates, ups);
        for (token, values) in gates.chunks_exact(count).enumerate() {
            let from = rows.start / group.order.group * group.order.group;
            let to = if last { group.width } else { rows.end };
            // SAFETY: whole groups of a token's inner activations, which no other task writes: a task's rows begin
            // and end with a group, or end with the row.
            let out = unsafe { inner.slice(group.inner + token * group.width + from, to - from) };
            if last {
                out.fill(0.0);
            }
            if group.form == Form::Pairs {
                out[..count].copy_from_slice(values);
                continue;
            }
            for (element, &value) in values.iter().enumerate() {
                let within = element % group.order.group;
                out[element - within + usize::from(places[within])] = value;
            }
        }
    }

    /// Divides the inner activations of FP8 rows by the power of two of their size, and makes pairs of those that are
    /// multiplied as such; returns the exponents of all rows.
    fn lay_out(&self, inner: &mut [f32], threads: usize) -> Vec<i32> {
        let mut exponents = vec![0; self.tokens.len()];
        let (inner, places) = (Places::new(inner), Places::new(&mut exponents));
        let changed = |group: &&Group<'_>| {
            group.expert.down.packing() == Packing::Fp8 || group.form == Form::Pairs
        };
        let groups: Vec<&Group<'_>> = self.all.iter().filter(changed).collect();
        let threads = if self.inner < 1 << 16 { 1 } else { threads };
        pool::for_each(threads, groups.len(), &|number| {
            let group = groups[number];
            // SAFETY: the rows of a group, which no other task has.
            let (rows, exponents) = unsafe {
                (
                    inner.slice(group.inner, group.choices.len() * group.width),
                    places.slice(group.choices.start, group.choices.len()),
                )
            };
            for (row, exponent) in rows.chunks_exact_mut(group.width).zip(exponents) {
                *exponent = match group.form {
                    Form::Lanes => normalize(row),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: only the tier that has the instructions has this form.
                    Form::Pairs => unsafe { lay_pairs_in_place(group.expert.down.packing(), row) },
                    #[cfg(not(target_arch = "x86_64"))]
                    Form::Pairs => 0,
                };
            }
        });
        exponents
    }

    /// The second region: some columns of every token's sum.
    #[allow(
        clippy::too_many_arguments,
        reason = "what a task of a region shares with the others"
    )]
    fn sum_rows<T: Element>(
        &self,
        tier: Tier,
        layer: Layer<'_>,
        x: &[T],
        inner: &[f32],
        exponents: &[i32],
        rows: Range<usize>,
        threads: usize,
        out: Places<'_, T>,
    ) {
        let (hidden, count) = (layer.hidden_size, rows.len());
        let tokens = x.len() / hidden;
        let mut buffer = Buffer::take();
        let sums = buffer.some(tokens * count);
        sums.fill(0.0);
        let mut zeros = self.zeros.clone();
        for (number, group) in self.all.iter().enumerate() {
            if group.choices.start >= zeros.end {
                self.add_inputs(std::mem::take(&mut zeros), hidden, x, &rows, sums);
            }
            let size = group.choices.len();
            let product = Product {
                matrix: &group.expert.down,
                panel: PanelView {
                    values: &inner[group.inner..][..size * group.width],
                    width: group.width,
                    form: group.form,
                    exponents: &exponents[group.choices.clone()],
                },
                tokens: None,
                rows: rows.clone(),
                next: match self.all.get(number + 1) {
                    Some(group) => group.expert.down.place(rows.clone()),
                    None => self.all[0].expert.down.place(following(&rows, threads)),
                },
            };
            let mut buffer = Buffer::take();
            let products = buffer.some(size * count);
            product.run(tier, products);
            let choices = group.choices.clone().zip(products.chunks_exact(count));
            for (choice, products) in choices {
                let weight = self.weights[choice];
                let sums = &mut sums[self.tokens[choice] as usize * count..][..count];
                for (sum, &product) in sums.iter_mut().zip(products) {
                    *sum += weight * product;
                }
            }
        }
        self.add_inputs(zeros, hidden, x, &rows, sums);
        for (token, sums) in sums.chunks_exact(count).enumerate() {
            // SAFETY: this task's columns of a token, which no other task writes.
            let out = unsafe { out.slice(token * hidden + rows.start, count) };
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = T::store(sum);
            }
        }
    }

    /// Adds what zero experts give: their input.
    fn add_inputs<T: Element>(
        &self,
        zeros: Range<usize>,
        hidden: usize,
        x: &[T],
        rows: &Range<usize>,
        sums: &mut [f32],
    ) {
        for choice in zeros {
            let (token, weight) = (self.tokens[choice] as usize, self.weights[choice]);
            let x = &x[token * hidden..][rows.clone()];
            for (sum, x) in sums[token * rows.len()..].iter_mut().zip(x) {
                *sum += weight * x.load();
            }
        }
    }
}

/// The tokens, laid out once for every packing that occurs.
struct Panels(Vec<(Packing, Panel)>);

impl Panels {
    fn new<T: Element>(
        tier: Tier,
        layer: Layer<'_>,
        x: &[T],
        groups: &[Group<'_>],
        num_threads: usize,
    ) -> Self {
        let mut panels: Vec<(Packing, Panel)> = Vec::new();
        let matrices = groups
            .iter()
            .flat_map(|group| [&group.expert.gate, &group.expert.up]);
        for packing in matrices.map(Matrix::packing) {
            if panels.iter().all(|(known, _)| *known != packing) {
                let mut panel = Panel::default();
                panel.fill(tier, packing, x, layer.hidden_size, num_threads);
                panels.push((packing, panel));
            }
        }
        Self(panels)
    }

    fn of(&self, packing: Packing) -> PanelView<'_> {
        let found = self.0.iter().find(|(known, _)| *known == packing);
        // One was made for every matrix of the groups.
        found.map_or(
            PanelView {
                values: &[],
                width: 0,
                form: Form::Lanes,
                exponents: &[],
            },
            |(_, panel)| panel.view(),
        )
    }
}

/// Turns gates into `silu(gate) * up`, both held to the limit first: the same operations on wider registers in each tier.
fn activate(tier: Tier, limit: Option<f32>, gates: &mut [f32], ups: &[f32]) {
    match tier.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a tier of this kind is made only where the processor has its instructions.
        Kind::Avx2 => unsafe { activate_avx2(limit, gates, ups) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx512 | Kind::Avx512Bf16 => unsafe { activate_avx512(limit, gates, ups) },
        _ => activate_lanes(limit, gates, ups),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn activate_avx2(limit: Option<f32>, gates: &mut [f32], ups: &[f32]) {
    activate_lanes(limit, gates, ups);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq")]
unsafe fn activate_avx512(limit: Option<f32>, gates: &mut [f32], ups: &[f32]) {
    activate_lanes(limit, gates, ups);
}

#[inline(always)]
fn activate_lanes(limit: Option<f32>, gates: &mut [f32], ups: &[f32]) {
    // Without a limit none is compared with: one that nothing is above does as well.
    let limit = limit.unwrap_or(f32::INFINITY);
    for (gate, &up) in gates.iter_mut().zip(ups) {
        // Comparisons that keep NaN.
        let size = if *gate > limit { limit } else { *gate };
        let other = if up > limit { limit } else { up };
        let other = if other < -limit { -limit } else { other };
        *gate = silu(size) * other;
    }
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
fn silu(x: f32) -> f32 {
    let small = exp_nonpositive(-x.abs());
    let numerator = if x < 0.0 { small } else { 1.0 };
    x * (numerator / (1.0 + small))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_is_right_to_three_units_in_the_last_place() {
        // Below, the exponential is subnormal, and has fewer bits.
        for step in -87_000..120_000 {
            let x = step as f32 / 1000.0;
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let unit = f64::from(f32::EPSILON) * exact.abs().max(f64::from(f32::MIN_POSITIVE));
            assert!((f64::from(silu(x)) - exact).abs() <= 3.0 * unit, "{x}");
        }
        assert!(silu(-95.0).abs() < 1e-37 && silu(-200.0) == 0.0);
        assert!(silu(f32::NAN).is_nan());
        assert_eq!(silu(f32::INFINITY), f32::INFINITY);
        assert_eq!(silu(-1e30).abs(), 0.0);
    }
}
