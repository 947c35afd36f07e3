#!/usr/bin/env bash
# Everything that CI checks, on the software adapter, so that the outcome is the
# same on every machine. Stops at the first step that fails.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/golden.sh
source scripts/golden.sh

setup() {
    ensure_rust
    ensure_rust_components
    ensure_software_adapter
    if ensure_model; then
        export WGLLAMA_SMOLLM2=$MODEL_FILE REQUIRE_SMOLLM2=1
    elif [[ -d ../shared ]]; then
        say "the model could not be downloaded"
        return 1
    else
        say "NOTICE: the model could not be downloaded; the tests with it are skipped"
    fi
}

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)

# Tests take the software adapter even where a GPU is present, and fail rather
# than skip when an adapter, the shared goldens or the model should be there.
export WGLLAMA_TEST_DEVICE=cpu
export REQUIRE_GPU=1
if [[ -d ../shared ]]; then
    export REQUIRE_SHARED=1
fi
# Mesa's AMD compiler needs no GPU and reads the kernels where it is new enough.
require_radv() {
    if compgen -G '/usr/share/vulkan/icd.d/radeon_icd*.json' >/dev/null && have_apt &&
        (($(major "$(installed_version mesa-vulkan-drivers)") >= MESA_MAJOR_WANTED)); then
        export REQUIRE_RADV=1
    fi
}

# Mesa compiles each pipeline once and keeps it here for the other test binaries
# and for the next run.
export MESA_SHADER_CACHE_DIR=$target/mesa-cache
mkdir -p "$MESA_SHADER_CACHE_DIR"

step setup setup
require_radv
step 'cargo fmt' cargo fmt --check
step 'cargo clippy' cargo clippy --all-targets -- -D warnings
# Library, binary, examples (built), integration tests and doc tests.
step 'cargo test' cargo test
# Those of small models: SmolLM2's take minutes to half an hour on each of these adapters (`make golden`).
golden_elsewhere --skip smollm2
step "more tests at WebGPU's least limits" env WGLLAMA_TEST_BASELINE=1 \
    cargo test --test tiny --test fusions --test steps --test sampling --test faults
step 'cargo doc' env RUSTDOCFLAGS='-D warnings' cargo doc --no-deps
# The dev profile shares its dependencies with the tests above: the benches only
# have to compile here.
step 'cargo bench' cargo bench --no-run --profile dev

printf '== all passed in %d s\n' "$SECONDS"
