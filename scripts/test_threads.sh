#!/usr/bin/env bash
# Run the tests that use several threads with ThreadSanitizer, which reports data races.
#
# The sanitizer is part of the compiler but not yet of its stable options, hence RUSTC_BOOTSTRAP. The standard library
# is the precompiled one, without instrumentation (building it as well needs -Zbuild-std and its sources), so a race
# inside it would be missed; its locks, atomics and thread starts and ends are seen, because the sanitizer intercepts
# the system calls below them and atomics are inlined into our code. Doc tests are left out for the same reason.
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
# A report is a failure; the model test runs its smallest number of cases, as it uses one thread.
export TSAN_OPTIONS="halt_on_error=1 ${TSAN_OPTIONS:-}"
export ABYSSAL_TEST_PROFILE=emulated
cargo test --locked --quiet --target "$target" --target-dir target/tsan --lib --tests "$@"
