//! Instruction tiers. A tier compiles the same scalar code for wider registers, so its bits are the same.

use crate::scores::{Scoring, scores_row};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

/// An instruction tier that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier(Kind);

impl Tier {
    /// Every tier of this machine, the slowest first.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return vec![Self(Kind::Scalar), Self(Kind::Avx2)];
        }
        vec![Self(Kind::Scalar)]
    }

    /// The fastest tier of this machine.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Self(Kind::Avx2);
        }
        Self(Kind::Scalar)
    }

    /// Writes the scores of one row of logits. Lengths are equal.
    pub(crate) fn scores(self, scoring: Scoring, logits: &[f32], scores: &mut [f32]) {
        match self.0 {
            Kind::Scalar => scores_row(scoring, logits, scores),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a tier of this kind is made only where the processor has AVX2.
            Kind::Avx2 => unsafe { scores_avx2(scoring, logits, scores) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn scores_avx2(scoring: Scoring, logits: &[f32], scores: &mut [f32]) {
    scores_row(scoring, logits, scores);
}
