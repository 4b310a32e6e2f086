//! Random bits, the tiers to test, and small helpers.

use abyssal_kernels::Tier;
use abyssal_kernels::mla::Sizes;

/// Whether the processor is emulated, and a hundred times slower.
pub(crate) fn emulated() -> bool {
    std::env::var("ABYSSAL_TEST_PROFILE").as_deref() == Ok("emulated")
}

/// The tiers to test: all of this machine, or under emulation the one that is emulated.
pub(crate) fn tiers() -> Vec<Tier> {
    if emulated() {
        vec![Tier::best()]
    } else {
        Tier::available()
    }
}

/// Random bits that are the same in every run.
pub(crate) struct Bits(pub(crate) u64);

impl Bits {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A number in -1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

pub(crate) fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub(crate) const fn sizes(
    heads: usize,
    kv_lora: usize,
    rope: usize,
    nope: usize,
    v: usize,
) -> Sizes {
    Sizes {
        heads,
        kv_lora,
        rope,
        nope,
        v,
    }
}
