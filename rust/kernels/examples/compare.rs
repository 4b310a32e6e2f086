use abyssal_kernels::{Matrix, Weights, linear};
use abyssal_quant::{Layer, Scales, fp8_linear, mxfp4_linear};
use std::time::Instant;
fn med(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}
fn main() {
    let (n, k) = (1408usize, 2048usize);
    let bytes: Vec<u8> = (0..n * k * 40)
        .map(|i| {
            let c = (i.wrapping_mul(2654435761) >> 13) as u8;
            if c & 0x7f == 0x7f { 1 } else { c }
        })
        .collect();
    let scales = vec![0.01f32; n.div_ceil(128) * k.div_ceil(128)];
    let s4 = vec![120u8; n * k / 32];
    for fp4 in [false, true] {
        for tokens in [1usize, 2, 4, 8, 48, 256] {
            let x: Vec<f32> = (0..k * tokens)
                .map(|i| (i % 17) as f32 / 17.0 - 0.5)
                .collect();
            let mut out = vec![0f32; n * tokens];
            let (mut a, mut b) = (vec![], vec![]);
            for i in 0..30 {
                let size = if fp4 { n * k / 2 } else { n * k };
                let codes = &bytes[(i % 40) * size..][..size];
                let t = Instant::now();
                let l = Layer {
                    rows: n,
                    columns: k,
                    num_threads: 1,
                };
                if fp4 {
                    mxfp4_linear(abyssal_quant::Tier::best(), l, &x, codes, &s4, &mut out).unwrap()
                } else {
                    fp8_linear(
                        abyssal_quant::Tier::best(),
                        l,
                        &x,
                        codes,
                        Scales::F32(&scales),
                        &mut out,
                    )
                    .unwrap()
                };
                a.push(t.elapsed().as_secs_f64());
                let codes = &bytes[((i + 17) % 40) * size..][..size];
                let t = Instant::now();
                let w = if fp4 {
                    Weights::Mxfp4 { codes, scales: &s4 }
                } else {
                    Weights::Fp8 {
                        codes,
                        scales: Scales::F32(&scales),
                    }
                };
                let m = Matrix::new(n, k, w).unwrap();
                linear(abyssal_kernels::Tier::best(), &m, &x, &mut out, 1).unwrap();
                b.push(t.elapsed().as_secs_f64());
            }
            let r: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
            let bytes = if fp4 { n * k / 2 } else { n * k } as f64;
            println!(
                "fp4={fp4} tokens {tokens}: old {:.2} ms new {:.2} ms ratio {:.2}  new {:.1} GB/s {:.0} GFLOP/s",
                med(a.clone()) * 1e3,
                med(b.clone()) * 1e3,
                med(r),
                bytes / med(b.clone()) / 1e9,
                (2 * n * k * tokens) as f64 / med(b) / 1e9
            );
        }
    }
}
