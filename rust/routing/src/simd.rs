//! Instruction tiers: which ones the processor has, and the calls into code that is compiled for them.
//!
//! The scalar tier is `route.rs`, the specification. The others run `pass.rs` with vectors of sixteen numbers, whose
//! operations are the files below this one; with `lanes.rs` they hold every `unsafe` of the crate.

use crate::pass;
use crate::route::{Job, Output, Scratch, rows};
use crate::scores::{Scoring, scores_row};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// An instruction tier that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier(Kind);

impl Tier {
    /// Every tier of this machine, the slowest first.
    pub fn available() -> Vec<Self> {
        let mut tiers = vec![Self(Kind::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx2() {
                tiers.push(Self(Kind::Avx2));
            }
            if has_avx512() {
                tiers.push(Self(Kind::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            tiers.push(Self(Kind::Neon));
        }
        tiers
    }

    /// The fastest tier of this machine.
    #[inline]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Self(Kind::Avx512);
            }
            if has_avx2() {
                return Self(Kind::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Self(Kind::Neon);
        }
        Self(Kind::Scalar)
    }

    /// The name of the tier.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
        }
    }

    /// Writes the scores of one row of logits. Lengths are equal.
    pub(crate) fn scores(self, scoring: Scoring, logits: &[f32], scores: &mut [f32]) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: tiers of these kinds are made only where the processor has AVX2.
            Kind::Avx2 | Kind::Avx512 => unsafe { scores_avx2(scoring, logits, scores) },
            _ => scores_row(scoring, logits, scores),
        }
    }

    /// Routes the rows of a job that was checked.
    pub(crate) fn rows(
        self,
        job: &Job<'_>,
        output: &mut Output<'_>,
        scratch: &mut Scratch<'_>,
    ) -> usize {
        match self.0 {
            Kind::Scalar => rows(job, output, scratch),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a tier of this kind is made only where `has_avx2` found its instructions.
            Kind::Avx2 => unsafe { rows_avx2(job, output, scratch) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a tier of this kind is made only where `has_avx512` found its instructions.
            Kind::Avx512 => unsafe { rows_avx512(job, output, scratch) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: a tier of this kind is made only where the processor was found to have NEON.
            Kind::Neon => unsafe { rows_neon(job, output, scratch) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("bmi1")
        && std::arch::is_x86_feature_detected!("popcnt")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512dq")
        && std::arch::is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn scores_avx2(scoring: Scoring, logits: &[f32], scores: &mut [f32]) {
    scores_row(scoring, logits, scores);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,popcnt")]
fn rows_avx2(job: &Job<'_>, output: &mut Output<'_>, scratch: &mut Scratch<'_>) -> usize {
    pass::rows(avx2::Avx2(()), job, output, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn rows_avx512(job: &Job<'_>, output: &mut Output<'_>, scratch: &mut Scratch<'_>) -> usize {
    pass::rows(avx512::Avx512(()), job, output, scratch)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn rows_neon(job: &Job<'_>, output: &mut Output<'_>, scratch: &mut Scratch<'_>) -> usize {
    pass::rows(neon::Neon(()), job, output, scratch)
}
