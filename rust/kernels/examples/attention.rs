//! How fast latent attention is, beside the machine's peak of the instruction that it uses, both measured in turn.
//!
//! `cargo run --release -p abyssal-kernels --example attention -- [turns] [tier]`

#![allow(clippy::expect_used, reason = "sizes are written here")]

use std::time::Instant;

use abyssal_kernels::mla::{Attention, Latents, Rotary, Sizes, mla_attention};
use abyssal_kernels::{Matrix, Tier, Weights};
use abyssal_quant::{Bf16, Element, Scales};

/// Multiply-adds of one call of a peak function.
const PEAK_STEPS: usize = 2_000_000;

#[cfg(target_arch = "x86_64")]
mod peak {
    #[allow(
        clippy::wildcard_imports,
        reason = "a list of instructions would say nothing"
    )]
    use std::arch::x86_64::*;

    /// Twelve chains of eight lanes.
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn avx2(steps: usize) -> f32 {
        let mut sums = [_mm256_set1_ps(0.5); 12];
        let (a, b) = (_mm256_set1_ps(0.999), _mm256_set1_ps(1e-3));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        sums.map(|sum| _mm256_cvtss_f32(sum)).iter().sum()
    }

    /// Twelve chains of sixteen lanes.
    #[target_feature(enable = "avx512f")]
    pub(crate) fn avx512(steps: usize) -> f32 {
        let mut sums = [_mm512_set1_ps(0.5); 12];
        let (a, b) = (_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        sums.map(|sum| _mm512_cvtss_f32(sum)).iter().sum()
    }

    /// Twelve chains of sixteen lanes, of pairs.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) fn avx512_bf16(steps: usize) -> f32 {
        let mut sums = [_mm512_set1_ps(0.5); 12];
        let pairs = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        sums.map(|sum| _mm512_cvtss_f32(sum)).iter().sum()
    }
}

/// GFLOP/s of the tier's multiply-adds on registers alone.
fn peak(tier: Tier, threads: usize) -> f64 {
    let start = Instant::now();
    let mut lanes = 0;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            #[cfg(target_arch = "x86_64")]
            match tier.name() {
                "avx512-bf16" => {
                    lanes = 32;
                    // SAFETY: the machine has the tier.
                    let run = || unsafe { peak::avx512_bf16(PEAK_STEPS) };
                    scope.spawn(move || std::hint::black_box(run()));
                }
                "avx512" => {
                    lanes = 16;
                    // SAFETY: the machine has the tier.
                    let run = || unsafe { peak::avx512(PEAK_STEPS) };
                    scope.spawn(move || std::hint::black_box(run()));
                }
                "avx2" => {
                    lanes = 8;
                    // SAFETY: the machine has the tier.
                    let run = || unsafe { peak::avx2(PEAK_STEPS) };
                    scope.spawn(move || std::hint::black_box(run()));
                }
                _ => {}
            }
            let _ = (scope, tier);
        }
    });
    (threads * PEAK_STEPS * 12 * lanes * 2) as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// A layer's numbers.
struct Layer {
    sizes: Sizes,
    codes: Vec<u8>,
    scales: Vec<f32>,
    rows: Vec<Bf16>,
    query: Vec<Bf16>,
    turns: Vec<f32>,
}

const PAGE: usize = 64;

impl Layer {
    fn new(sizes: Sizes, context: usize, tokens: usize) -> Self {
        let number =
            |at: usize| (at.wrapping_mul(2_654_435_761) >> 9 & 0xffff) as f32 / 65536.0 - 0.5;
        let up = sizes.heads * (sizes.nope + sizes.v);
        Self {
            sizes,
            codes: (0..up * sizes.kv_lora)
                .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 & 0xbf)
                .collect(),
            scales: vec![0.02; up.div_ceil(128) * sizes.kv_lora.div_ceil(128)],
            rows: (0..context * (sizes.kv_lora + sizes.rope))
                .map(|at| Bf16::store(number(at)))
                .collect(),
            query: (0..tokens * sizes.heads * (sizes.nope + sizes.rope))
                .map(|at| Bf16::store(number(at)))
                .collect(),
            turns: (0..tokens * sizes.rope / 2).map(number).collect(),
        }
    }

    /// Seconds of one call for the last `tokens` of a context.
    fn time(
        &self,
        tier: Tier,
        context: usize,
        tokens: usize,
        expanded: bool,
        threads: usize,
    ) -> f64 {
        let sizes = self.sizes;
        let table: Vec<i32> = (0..context.div_ceil(PAGE) as i32).collect();
        let first = context - tokens;
        let spans = [0, tokens, first, if expanded { tokens } else { 0 }].map(|value| value as i32);
        let up = Weights::Fp8 {
            codes: &self.codes,
            scales: Scales::F32(&self.scales),
        };
        let rotary = Rotary {
            cos: &self.turns[..tokens * sizes.rope / 2],
            sin: &self.turns[..tokens * sizes.rope / 2],
        };
        let attention = Attention {
            sizes,
            scale: 0.1,
            rotary,
            latents: Latents::Bf16(&self.rows[..context * (sizes.kv_lora + sizes.rope)]),
            page_size: PAGE,
            up: Matrix::new(sizes.heads * (sizes.nope + sizes.v), sizes.kv_lora, up)
                .expect("sizes fit"),
            spans: &spans,
            tables: &table,
        };
        let query = &self.query[..tokens * sizes.heads * (sizes.nope + sizes.rope)];
        let mut out = vec![Bf16(0); tokens * sizes.heads * sizes.v];
        let start = Instant::now();
        mla_attention(tier, &attention, query, &mut out, threads).expect("sizes fit");
        let time = start.elapsed().as_secs_f64();
        std::hint::black_box(out);
        time
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let named = std::env::args().nth(2);
    let tier = Tier::available()
        .into_iter()
        .find(|tier| named.as_deref() == Some(tier.name()))
        .unwrap_or(Tier::best());
    println!(
        "tier {}; GFLOP/s of latent attention, of the peak, and medians of their ratios",
        tier.name()
    );
    let turns: usize = std::env::args()
        .nth(1)
        .map_or(15, |count| count.parse().expect("a number"));
    for (heads, nope, v) in [(16, 128, 128), (128, 128, 128), (64, 192, 256)] {
        let sizes = Sizes {
            heads,
            kv_lora: 512,
            rope: 64,
            nope,
            v,
        };
        let most = if heads == 16 { 8192 } else { 1024 };
        let layer = Layer::new(sizes, 8192, most);
        let absorbed = |context: usize, tokens: usize| {
            let pairs = tokens * context - tokens * (tokens - 1) / 2;
            2 * heads * (pairs * (2 * 512 + 64) + tokens * 512 * (nope + v))
        };
        let expanded = |context: usize, tokens: usize| {
            let pairs = tokens * context - tokens * (tokens - 1) / 2;
            2 * heads * (pairs * (nope + 64 + v) + context * 512 * (nope + v))
        };
        for (name, context, tokens, prompt) in [
            ("decode, context 512", 512, 1, false),
            ("decode, context 2048", 2048, 1, false),
            ("decode, context 8192", 8192, 1, false),
            ("prompt of 512", 512, 512, true),
            ("prompt of 2048", 2048, 2048, true),
            ("prompt of 8192", 8192, 8192, true),
            ("prompt of 1024", 1024, 1024, true),
            ("last 1024 of a prompt of 8192", 8192, 1024, true),
        ] {
            if tokens > most {
                continue;
            }
            let work = if prompt {
                expanded(context, tokens)
            } else {
                absorbed(context, tokens)
            } as f64;
            // Long calls need fewer.
            let turns = turns.min((4e11 / work) as usize + 3);
            for threads in [1, 2] {
                let mut speeds = Vec::new();
                let mut ratios = Vec::new();
                for _ in 0..turns {
                    let speed = work / layer.time(tier, context, tokens, prompt, threads) / 1e9;
                    let most = peak(tier, threads);
                    speeds.push(speed);
                    ratios.push(speed / most);
                }
                let best = ratios.iter().copied().fold(0.0, f64::max);
                println!(
                    "{heads} heads of {nope}/{v}, {name}, {threads} threads: {:.1} GFLOP/s ({:.2} ms), {:.0} % of the peak (best {:.0} %)",
                    median(speeds.clone()),
                    work / median(speeds) / 1e6,
                    100.0 * median(ratios),
                    100.0 * best,
                );
            }
        }
    }
}
