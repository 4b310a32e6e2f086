//! Normalization against its definition in float64.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use abyssal_kernels::{Error, rms_norm};
use abyssal_quant::{Bf16, Element};

fn numbers(count: usize, size: f32) -> Vec<f32> {
    (0..count)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 9 & 0xffff) as f32 / 65536.0 - 0.5)
        .map(|value| value * size)
        .collect()
}

#[test]
fn rows_are_right_alone_and_together_on_any_number_of_threads() {
    for width in [1, 15, 16, 17, 576, 2048] {
        for size in [1e-30, 1e-3, 1.0, 1e4] {
            let (x, weight) = (numbers(33 * width, size), numbers(width, 2.0));
            let mut out = vec![0.0_f32; x.len()];
            rms_norm(&x, &weight, 1e-6, &mut out, 3).unwrap();
            for (row, out) in x.chunks(width).zip(out.chunks(width)) {
                let mut alone = vec![0.0_f32; width];
                rms_norm(row, &weight, 1e-6, &mut alone, 1).unwrap();
                assert_eq!(alone, out);
                let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                let root = (squares / width as f64 + 1e-6).sqrt();
                for ((&x, &weight), &out) in row.iter().zip(&weight).zip(out) {
                    let exact = f64::from(x) / root * f64::from(weight);
                    // A sixteenth of the squares in a lane, four additions of lanes, and six more operations.
                    let bound = (width as f64 / 16.0 + 10.0) * f64::from(f32::EPSILON);
                    assert!((f64::from(out) - exact).abs() <= bound * exact.abs() + 1e-45);
                }
            }
        }
    }
}

#[test]
fn narrow_numbers_are_rounded_before_the_weight() {
    let x: Vec<Bf16> = numbers(64, 3.0).into_iter().map(Bf16::store).collect();
    let weight: Vec<Bf16> = numbers(64, 2.0).into_iter().map(Bf16::store).collect();
    let wide: Vec<f32> = x.iter().map(|x| x.load()).collect();
    let mut normalized = vec![0.0_f32; 64];
    rms_norm(&wide, &[1.0_f32; 64], 1e-6, &mut normalized, 1).unwrap();
    let mut out = vec![Bf16::store(0.0); 64];
    rms_norm(&x, &weight, 1e-6, &mut out, 1).unwrap();
    for ((normalized, weight), out) in normalized.into_iter().zip(&weight).zip(out) {
        let expected = Bf16::store(Bf16::store(normalized).load() * weight.load());
        assert_eq!(out.load().to_bits(), expected.load().to_bits());
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let mut out = [7.0_f32; 4];
    let no_weight: [f32; 0] = [];
    let refused = rms_norm(&[1.0_f32; 4], &no_weight, 1e-6, &mut out, 1);
    assert!(matches!(refused, Err(Error::NoColumns)));
    assert!(rms_norm(&[1.0_f32; 5], &[1.0_f32; 2], 1e-6, &mut out, 1).is_err());
    assert!(rms_norm(&[1.0_f32; 2], &[1.0_f32; 2], 1e-6, &mut out, 1).is_err());
    assert_eq!(out, [7.0; 4]);
}
