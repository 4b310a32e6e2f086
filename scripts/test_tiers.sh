#!/usr/bin/env bash
# Run the Rust tests of the given crates on every processor that can be had, and name those that were left out.
#
# Usage: scripts/test_tiers.sh -p CRATE ...
# Environment, each optional:
#   AVX512_RUNNER  runs an x86-64 program on (emulated) hardware with AVX-512
#   AVX2_RUNNER    the same with AVX2 and without AVX-512
#   SSE_RUNNER     the same without AVX
#   NEON_TEST      a command that takes cargo test's arguments and runs the tests on ARM64
set -euo pipefail
cd "$(dirname "$0")/.."
crates=("$@")

# Fails unless the processor that the given command's tests run on has a tier, for crates that have one: a test of each
# asserts it, and must have run.
require() {
    local tier=$1 crate
    shift
    for crate in abyssal-routing abyssal-quant; do
        "$@" --locked -p "$crate" --test tiers -- --ignored "this_machine_has_$tier" | tee /dev/stderr |
            grep "test result: ok. 1 passed" >/dev/null
    done
}

# Emulated processors are slow: fewer random cases, in the compiled tests of the leaf crates only.
emulated() {
    local name=$1 runner=$2 tier=${3:-}
    if [ -z "$runner" ]; then
        echo "test-tiers: left out $name"
        return
    fi
    echo "test-tiers: $name"
    (
        export PROPTEST_CASES=8 ABYSSAL_TEST_PROFILE=emulated CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$runner
        [ -z "$tier" ] || require "$tier" cargo test
        cargo test --locked --quiet --lib --tests "${crates[@]}"
    )
}

echo "test-tiers: this machine ($(uname -m))"
cargo test --locked --quiet --lib --tests "${crates[@]}"
emulated "AVX-512 (give AVX512_RUNNER)" "${AVX512_RUNNER:-}" avx512
emulated "AVX2 without AVX-512 (give AVX2_RUNNER)" "${AVX2_RUNNER:-}" avx2
emulated "x86-64 without AVX (give SSE_RUNNER)" "${SSE_RUNNER:-}"
if [ -n "${NEON_TEST:-}" ]; then
    echo "test-tiers: ARM64"
    export PROPTEST_CASES=8 ABYSSAL_TEST_PROFILE=emulated
    # shellcheck disable=SC2086 # the variable holds a command and its arguments
    require neon $NEON_TEST
    # shellcheck disable=SC2086
    $NEON_TEST --locked --quiet "${crates[@]}"
else
    echo "test-tiers: left out ARM64 (give NEON_TEST)"
fi
