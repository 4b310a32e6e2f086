use abyssal_kernels::{Matrix, Tier, Weights, linear};
use abyssal_quant::{Bf16, Scales};
use std::time::Instant;
fn main() {
    let tier = Tier::best();
    let total = 512usize << 20;
    let bytes: Vec<u8> = (0..total)
        .map(|i| {
            let c = (i.wrapping_mul(2654435761) >> 13) as u8;
            if c & 0x7f == 0x7f { 1 } else { c }
        })
        .collect();
    let read = |threads: usize| {
        let t = Instant::now();
        std::thread::scope(|s| {
            for p in bytes.chunks(total / threads) {
                s.spawn(move || {
                    let (_, w, _) = unsafe { p.align_to::<u64>() };
                    let mut a = [0u64; 16];
                    for c in w.chunks_exact(16) {
                        for i in 0..16 {
                            a[i] = a[i].wrapping_add(c[i]);
                        }
                    }
                    std::hint::black_box(a);
                });
            }
        });
        total as f64 / t.elapsed().as_secs_f64() / 1e9
    };
    for threads in [1, 2] {
        let mut best = 0.0f64;
        for _ in 0..5 {
            best = best.max(read(threads));
        }
        println!("read {threads} threads {best:.1} GB/s");
    }
    for (n, k) in [(2048usize, 1408usize), (1408, 2048), (7168, 7168)] {
        let size = n * k;
        let scales = vec![0.01f32; n.div_ceil(128) * k.div_ceil(128)];
        let x: Vec<Bf16> = (0..k * 512)
            .map(|i| abyssal_quant::Element::store((i % 17) as f32 / 17.0 - 0.5))
            .collect();
        let mut out = vec![0f32; n * 512];
        for threads in [1, 2] {
            let mut best = 0.0f64;
            for _ in 0..5 {
                let t = Instant::now();
                let count = (total / size).min(512);
                for i in 0..count {
                    let m = Matrix::new(
                        n,
                        k,
                        Weights::Fp8 {
                            codes: &bytes[i * size..][..size],
                            scales: Scales::F32(&scales),
                        },
                    )
                    .unwrap();
                    linear(tier, &m, &x[..k], &mut out[..n], threads).unwrap();
                }
                best = best.max((count * size) as f64 / t.elapsed().as_secs_f64() / 1e9);
            }
            let mut cached = 0.0f64;
            let rows = 128usize.min(n);
            for _ in 0..5 {
                let t = Instant::now();
                let m = Matrix::new(
                    rows,
                    k,
                    Weights::Fp8 {
                        codes: &bytes[..rows * k],
                        scales: Scales::F32(&scales[..k.div_ceil(128)]),
                    },
                )
                .unwrap();
                for _ in 0..200 {
                    linear(tier, &m, &x[..k], &mut out[..rows], 1).unwrap();
                }
                cached = cached.max((200 * rows * k) as f64 / t.elapsed().as_secs_f64() / 1e9);
            }
            let f4s = vec![120u8; n * k / 32];
            let mut best4 = 0.0f64;
            for _ in 0..3 {
                let t = Instant::now();
                let count = (total / (size / 2)).min(512);
                for i in 0..count {
                    let m = Matrix::new(
                        n,
                        k,
                        Weights::Mxfp4 {
                            codes: &bytes[i * size / 2..][..size / 2],
                            scales: &f4s,
                        },
                    )
                    .unwrap();
                    linear(tier, &m, &x[..k], &mut out[..n], threads).unwrap();
                }
                best4 = best4.max((count * size / 2) as f64 / t.elapsed().as_secs_f64() / 1e9);
            }
            println!(
                "gemv {n}x{k} {threads} threads {best:.1} GB/s; in cache {cached:.1}; mxfp4 {best4:.1}"
            );
        }
        for tokens in [4usize, 8, 48, 256, 512] {
            for threads in [1, 2] {
                let mut best = 0.0f64;
                for i in 0..4 {
                    let m = Matrix::new(
                        n,
                        k,
                        Weights::Fp8 {
                            codes: &bytes[i * size..][..size],
                            scales: Scales::F32(&scales),
                        },
                    )
                    .unwrap();
                    let t = Instant::now();
                    linear(tier, &m, &x[..k * tokens], &mut out[..n * tokens], threads).unwrap();
                    best = best.max((2 * tokens * size) as f64 / t.elapsed().as_secs_f64() / 1e9);
                }
                print!("  gemm {tokens} tokens {threads} th {best:.0} GFLOP/s");
            }
            println!();
        }
    }
}
