#!/usr/bin/env bash
# Run the tests that use several threads with ThreadSanitizer, which reports data races.
#
# Usage: scripts/test_threads.sh -p CRATE ... (crates with a tests/threads.rs without the harness)
#
# The sanitizer is part of the compiler but not yet of its stable options, hence RUSTC_BOOTSTRAP. The standard library
# is the precompiled one, not instrumented (building it too needs -Zbuild-std and its sources). So a race inside it would
# be missed, and what its precompiled parts synchronize is not seen: the tests wait for locks in code of their own, have
# a main of their own instead of the harness, and tsan-suppressions.txt names the one place that is left.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
x86_64-unknown-linux-gnu | aarch64-unknown-linux-gnu) ;;
*)
    echo "test-threads: left out, no ThreadSanitizer for $target"
    exit 0
    ;;
esac
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
export TSAN_OPTIONS="halt_on_error=1 suppressions=$PWD/scripts/tsan-suppressions.txt ${TSAN_OPTIONS:-}"
cargo test --locked --quiet --target "$target" --target-dir target/tsan "$@" --test threads
