//! A layer of latent attention with random numbers, and its results in float64.

pub(crate) mod bits;
pub(crate) mod packed;

use abyssal_kernels::mla::{Attention, Error, Latents, Rotary, Sizes, mla_attention};
use abyssal_kernels::{Matrix, Tier, Weights};
use abyssal_quant::{Bf16, Element, Scales, e4m3_to_f32, e8m0_to_f32};

use bits::Bits;

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// How the up projection is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    F32,
    Bf16,
    Fp8,
    Fp8PowerScales,
    Mxfp4,
}

pub(crate) const KINDS: [Kind; 5] = [
    Kind::F32,
    Kind::Bf16,
    Kind::Fp8,
    Kind::Fp8PowerScales,
    Kind::Mxfp4,
];

/// A stored matrix and its values.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) kind: Kind,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) codes: Vec<u8>,
    scale_codes: Vec<u8>,
    pub(crate) scales: Vec<f32>,
    halves: Vec<Bf16>,
    pub(crate) values: Vec<f32>,
}

impl Stored {
    fn random(kind: Kind, rows: usize, columns: usize, bits: &mut Bits) -> Self {
        let across = columns.div_ceil(128);
        let blocks = rows.div_ceil(128) * across;
        let cells = rows * columns;
        let size = 2.0 / (columns as f32).sqrt();
        let mut stored = Self {
            kind,
            rows,
            columns,
            codes: (0..cells).map(|_| (bits.next() & 0xff) as u8).collect(),
            scale_codes: Vec::new(),
            scales: Vec::new(),
            halves: Vec::new(),
            values: bits.numbers(cells).iter().map(|x| x * size).collect(),
        };
        match kind {
            Kind::F32 => {}
            Kind::Bf16 => {
                stored.halves = stored.values.iter().map(|&x| Bf16::store(x)).collect();
                stored.values = stored.halves.iter().map(|half| half.load()).collect();
            }
            Kind::Fp8 | Kind::Fp8PowerScales => {
                // Every code but the two of NaN.
                for code in &mut stored.codes {
                    *code -= u8::from(*code & 0x7f == 0x7f);
                }
                stored.scales = (0..blocks)
                    .map(|_| (0.5 + bits.number().abs()) * size / 256.0)
                    .collect();
                if kind == Kind::Fp8PowerScales {
                    stored.scale_codes =
                        (0..blocks).map(|_| 113 + (bits.next() % 4) as u8).collect();
                    stored.scales = stored
                        .scale_codes
                        .iter()
                        .map(|&code| e8m0_to_f32(code))
                        .collect();
                }
                stored.values = (0..cells)
                    .map(|at| {
                        let block = at / columns / 128 * across + at % columns / 128;
                        e4m3_to_f32(stored.codes[at]) * stored.scales[block]
                    })
                    .collect();
            }
            Kind::Mxfp4 => {
                stored.scale_codes = (0..cells / 32)
                    .map(|_| 120 + (bits.next() % 3) as u8)
                    .collect();
                stored.codes.truncate(cells / 2);
                stored.values = (0..cells)
                    .map(|at| {
                        let code = stored.codes[at / 2] >> (at % 2 * 4) & 15;
                        let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                        sign * E2M1[usize::from(code & 7)]
                            * e8m0_to_f32(stored.scale_codes[at / 32])
                    })
                    .collect();
            }
        }
        stored
    }

    fn weights(&self) -> Weights<'_> {
        let codes = &self.codes;
        match self.kind {
            Kind::F32 => Weights::F32(&self.values),
            Kind::Bf16 => Weights::Bf16(&self.halves),
            Kind::Fp8 => Weights::Fp8 {
                codes,
                scales: Scales::F32(&self.scales),
            },
            Kind::Fp8PowerScales => Weights::Fp8 {
                codes,
                scales: Scales::E8m0(&self.scale_codes),
            },
            Kind::Mxfp4 => Weights::Mxfp4 {
                codes,
                scales: &self.scale_codes,
            },
        }
    }
}

/// One sequence of a layer: every token's query, and its row in the cache.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) sizes: Sizes,
    pub(crate) scale: f32,
    pub(crate) up: Stored,
    /// `[tokens, heads, nope + rope]`.
    pub(crate) query: Vec<f32>,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    /// `[tokens, kv_lora + rope]`.
    pub(crate) rows: Vec<f32>,
    /// Whether the cache holds bfloat16.
    pub(crate) narrow: bool,
    /// The bytes of the rows where the cache is in FP8; else none.
    pub(crate) packed: Vec<u8>,
    /// Whether queries are given in bfloat16.
    pub(crate) narrow_query: bool,
    pub(crate) page_size: usize,
}

impl Case {
    pub(crate) fn random(sizes: Sizes, tokens: usize, kind: Kind, narrow: bool, seed: u64) -> Self {
        let mut bits = Bits(seed);
        let angles = bits.numbers(tokens * sizes.rope / 2);
        let width = sizes.kv_lora + sizes.rope;
        let mut rows = bits.numbers(tokens * width);
        if narrow {
            for value in &mut rows {
                *value = Bf16::store(*value).load();
            }
        }
        Self {
            sizes,
            scale: 3.0 / ((sizes.nope + sizes.rope) as f32).sqrt(),
            up: Stored::random(
                kind,
                sizes.heads * (sizes.nope + sizes.v),
                sizes.kv_lora,
                &mut bits,
            ),
            query: bits.numbers(tokens * sizes.heads * (sizes.nope + sizes.rope)),
            cos: angles.iter().map(|angle| (3.0 * angle).cos()).collect(),
            sin: angles.iter().map(|angle| (3.0 * angle).sin()).collect(),
            rows,
            narrow,
            packed: Vec::new(),
            narrow_query: false,
            page_size: 16,
        }
    }

    /// The same with queries in bfloat16.
    pub(crate) fn with_narrow_query(mut self) -> Self {
        self.narrow_query = true;
        for value in &mut self.query {
            *value = Bf16::store(*value).load();
        }
        self
    }

    /// The same with a cache in FP8.
    pub(crate) fn with_packed_cache(mut self) -> Self {
        let Sizes { kv_lora, rope, .. } = self.sizes;
        let rows = self.rows.chunks_mut(kv_lora + rope);
        self.packed = rows.flat_map(|row| packed::pack(row, kv_lora)).collect();
        self
    }

    pub(crate) fn tokens(&self) -> usize {
        self.rows.len() / (self.sizes.kv_lora + self.sizes.rope)
    }

    /// Attends for the tokens `[start, end)`, the first `expanded` of the sequence in that form, and only those rows
    /// in the cache that a step has written by then; all other slots hold NaN. Pages lie in a shuffled order.
    pub(crate) fn step(
        &self,
        tier: Tier,
        start: usize,
        end: usize,
        expanded: usize,
        threads: usize,
    ) -> Vec<f32> {
        let pages = self.tokens().div_ceil(self.page_size);
        let table: Vec<i32> = (0..pages)
            .map(|page| ((page * 7 + 3) % (pages * 7 + 4)) as i32)
            .collect();
        let most = table.iter().max().map_or(0, |&page| page as usize);
        let width = self.sizes.kv_lora + self.sizes.rope;
        let mut cache = vec![f32::NAN; (most + 1) * self.page_size * width];
        for token in 0..end {
            let page = table[token / self.page_size] as usize;
            let slot = page * self.page_size + token % self.page_size;
            cache[slot * width..][..width].copy_from_slice(&self.rows[token * width..][..width]);
        }
        let halves: Vec<Bf16> = cache.iter().map(|&value| Bf16::store(value)).collect();
        let size = packed::row_bytes(self.sizes.kv_lora, self.sizes.rope);
        let mut bytes = vec![255; (most + 1) * self.page_size * size];
        for (token, row) in self.packed.chunks(size).enumerate().take(end) {
            let page = table[token / self.page_size] as usize;
            let slot = page * self.page_size + token % self.page_size;
            bytes[slot * size..][..size].copy_from_slice(row);
        }
        let latents = if !self.packed.is_empty() {
            Latents::Fp8(&bytes)
        } else if self.narrow {
            Latents::Bf16(&halves)
        } else {
            Latents::F32(&cache)
        };
        let here = expanded.saturating_sub(start).min(end - start);
        let spans = [0, (end - start) as i32, start as i32, here as i32];
        self.attend(tier, latents, &spans, &table, (start, end), threads)
            .unwrap()
    }

    /// Attends with these arguments.
    pub(crate) fn attend(
        &self,
        tier: Tier,
        latents: Latents<'_>,
        spans: &[i32],
        tables: &[i32],
        (start, end): (usize, usize),
        threads: usize,
    ) -> Result<Vec<f32>, Error> {
        let sizes = self.sizes;
        let (half, key) = (sizes.rope / 2, sizes.nope + sizes.rope);
        let attention = Attention {
            sizes,
            scale: self.scale,
            rotary: Rotary {
                cos: &self.cos[start * half..end * half],
                sin: &self.sin[start * half..end * half],
            },
            latents,
            page_size: self.page_size,
            up: Matrix::new(self.up.rows, self.up.columns, self.up.weights()).unwrap(),
            spans,
            tables,
        };
        let query = &self.query[start * sizes.heads * key..end * sizes.heads * key];
        let mut out = vec![7.0_f32; (end - start) * sizes.heads * sizes.v];
        let result = if self.narrow_query {
            let halves: Vec<_> = query.iter().map(|&value| Bf16::store(value)).collect();
            mla_attention(tier, &attention, &halves, &mut out, threads)
        } else {
            mla_attention(tier, &attention, query, &mut out, threads)
        };
        if result.is_err() {
            assert!(out.iter().all(|&value| value == 7.0));
        }
        result.map(|()| out)
    }

    /// Whether the tier multiplies pairs of bfloat16 numbers here.
    fn rounds(&self, tier: Tier) -> bool {
        let narrow = self.narrow || !self.packed.is_empty();
        let narrow = narrow && self.narrow_query && self.up.kind != Kind::F32;
        narrow && tier.name() == "avx512-bf16"
    }

    /// The cached rows as they are multiplied: codes times their scales are rounded before, where the tier rounds; numbers
    /// of a bfloat16 cache stay as they are.
    fn rows_as_read(&self, tier: Tier) -> Vec<f32> {
        let read = |value: &f32| Bf16::store(*value).load();
        if self.rounds(tier) {
            self.rows.iter().map(read).collect()
        } else {
            self.rows.clone()
        }
    }

    /// The rotary part of a token's query, rotated.
    fn rotated(&self, token: usize, part: &[f64]) -> Vec<f64> {
        let rotate = |place: usize| {
            let at = token * part.len() / 2 + place / 2;
            let (cos, sin) = (f64::from(self.cos[at]), f64::from(self.sin[at]));
            let (even, odd) = (part[place / 2 * 2], part[place / 2 * 2 + 1]);
            if place.is_multiple_of(2) {
                even * cos - odd * sin
            } else {
                odd * cos + even * sin
            }
        };
        (0..part.len()).map(rotate).collect()
    }

    /// The result of one token and head in float64, and a bound of the error of float32.
    ///
    /// With `u` half an epsilon: a score is a chain of at most `nope + kv_lora + rope` products with a few roundings
    /// around it, each within `u` of the sum of its terms' sizes, `size` at most. A weight's relative error is the
    /// error of its score and of the largest one, and a few units; the sums of weights and values run over the keys and
    /// the latent.
    ///
    /// Where the tier multiplies pairs of bfloat16 numbers, each rounding to these is within `half` = 2^-9. The absorbed
    /// form rounds the query in the latent space, the expanded one query and keys, so a score moves by `half` (twice
    /// that) times the sum of the sizes of what is multiplied, `narrow_size`. Weights, and the values of the expanded
    /// form, are rounded once, and the weights' sum is that of the rounded ones.
    pub(crate) fn exact(&self, tier: Tier, token: usize, head: usize) -> Vec<(f64, f64)> {
        let Sizes {
            heads,
            kv_lora,
            rope,
            nope,
            v,
        } = self.sizes;
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let key = nope + rope;
        let query = wide(&self.query[(token * heads + head) * key..][..key]);
        let up = |row: usize| &self.up.values[(head * (nope + v) + row) * kv_lora..][..kv_lora];
        let mut latent_query = vec![(0.0, 0.0); kv_lora];
        for (row, &factor) in query[..nope].iter().enumerate() {
            for ((sum, size), &weight) in latent_query.iter_mut().zip(up(row)) {
                let term = factor * f64::from(weight);
                *sum += term;
                *size += term.abs();
            }
        }
        let rotated = self.rotated(token, &query[nope..]);
        let scale = f64::from(self.scale);
        let width = kv_lora + rope;
        let rounded = self.rounds(tier);
        let rows = self.rows_as_read(tier);
        let row = |position: usize| &rows[position * width..][..width];
        let dot = |row: &[f32], latent: &[f32]| -> f64 {
            let terms = row.iter().zip(latent);
            terms.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let (mut size, mut narrow_size) = (0.0_f64, 0.0_f64);
        let scores: Vec<f64> = (0..=token)
            .map(|position| {
                let (latent, rotary) = row(position).split_at(kv_lora);
                let (mut score, mut sizes) = (0.0, 0.0);
                for (&(sum, term), &value) in latent_query.iter().zip(latent) {
                    score += sum * f64::from(value);
                    sizes += term * f64::from(value).abs();
                }
                for (&factor, &value) in rotated.iter().zip(rotary) {
                    score += factor * f64::from(value);
                    // Two products of the rotation.
                    sizes += 2.0 * f64::from(value).abs();
                }
                size = size.max(sizes * scale);
                if rounded {
                    let (mut absorbed, mut expanded) = (0.0, 0.0);
                    for (&(sum, _), &value) in latent_query.iter().zip(latent) {
                        absorbed += (sum * f64::from(value)).abs();
                    }
                    for (number, factor) in query[..nope].iter().enumerate() {
                        expanded += (factor * dot(up(number), latent)).abs();
                    }
                    for (&factor, &value) in rotated.iter().zip(rotary) {
                        absorbed += (factor * f64::from(value)).abs();
                        expanded += (factor * f64::from(value)).abs();
                    }
                    narrow_size = narrow_size.max(absorbed.max(2.01 * expanded) * scale);
                }
                score * scale
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let unit = f64::from(f32::EPSILON) / 2.0;
        let of_score = (width + nope + 12) as f64 * unit * size;
        let relative = 2.0 * of_score.exp_m1() + (token + kv_lora + 30) as f64 * unit;
        let mut mean = vec![(0.0, 0.0); kv_lora];
        for (position, weight) in weights.iter().enumerate() {
            for ((sum, size), &value) in mean.iter_mut().zip(row(position)) {
                let term = weight / total * f64::from(value);
                *sum += term;
                *size += term.abs();
            }
        }
        let half = 2.0_f64.powi(-9);
        let of_weights = 2.0 * (half * narrow_size).exp_m1() + 3.1 * half;
        (0..v)
            .map(|number| {
                let (mut value, mut size) = (0.0, 0.0);
                let mut narrow = 0.0;
                if rounded {
                    for (position, weight) in weights.iter().enumerate() {
                        let value = dot(up(nope + number), &row(position)[..kv_lora]);
                        narrow += (weight / total * value).abs() * of_weights;
                    }
                }
                for (&(sum, term), &weight) in mean.iter().zip(up(nope + number)) {
                    value += sum * f64::from(weight);
                    size += term * f64::from(weight).abs();
                }
                (value, size * relative + narrow + 1e-44)
            })
            .collect()
    }

    /// Requires the results of the tokens from `start` on to be within their bounds.
    pub(crate) fn check(&self, tier: Tier, start: usize, out: &[f32]) {
        let Sizes { heads, v, .. } = self.sizes;
        for (number, values) in out.chunks(v).enumerate() {
            let (token, head) = (start + number / heads, number % heads);
            for (&value, (exact, bound)) in values.iter().zip(self.exact(tier, token, head)) {
                assert!(
                    (f64::from(value) - exact).abs() <= bound,
                    "{} {:?} token {token} head {head}: {value}, not {exact}, bound {bound}",
                    tier.name(),
                    self.up.kind
                );
            }
        }
    }
}

/// All tokens at once, the first `expanded` in that form.
pub(crate) fn whole(case: &Case, tier: Tier, expanded: usize) -> Vec<f32> {
    case.step(tier, 0, case.tokens(), expanded, 1)
}
