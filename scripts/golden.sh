#!/usr/bin/env bash
# The golden tests on software adapters other than the one that all tests run on. Stops at the first that fails.
#
# Run, it takes all golden tests, SmolLM2's included, and prints how long each adapter took: `make golden`.
# Sourced, it only defines `golden_elsewhere`.

set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# golden_on [VARIABLE=VALUE...] [ARGUMENT OF THE TESTS...]
golden_on() {
    local variables=()
    while [[ ${1:-} == *=* ]]; do
        variables+=("$1")
        shift
    done
    env "${variables[@]}" cargo test --test golden -- "$@"
}

# golden_elsewhere [ARGUMENT OF THE TESTS...]
golden_elsewhere() {
    local file
    step "golden tests at WebGPU's least limits" golden_on WGLLAMA_TEST_BASELINE=1 "$@"
    if ! have_apt; then
        say "NOTICE: no apt; the golden tests on OpenGL, SwiftShader and an older Mesa are skipped"
        return
    fi
    ensure_opengl
    step 'golden tests on OpenGL' golden_on WGLLAMA_TEST_DEVICE=gl "$@"
    file=$(swiftshader)
    step 'golden tests on SwiftShader' golden_on "VK_DRIVER_FILES=$file" "VK_ICD_FILENAMES=$file" "$@"
    if [[ $(os_release ID) == debian ]]; then
        file=$(stock_mesa)
        # Mesa 22 compiles stories260K's kernels anew at each launch, until all memory is taken.
        step "golden tests on the distribution's Mesa" golden_on "VK_DRIVER_FILES=$file" "VK_ICD_FILENAMES=$file" \
            --skip stories --skip chunks_of_the_prompt_do_not_change_the_text "$@"
    fi
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    cd "$(dirname "$0")/.."
    ensure_software_adapter
    ensure_model || die "the model could not be downloaded"
    export WGLLAMA_SMOLLM2=$MODEL_FILE WGLLAMA_TEST_DEVICE=cpu REQUIRE_GPU=1 REQUIRE_SHARED=1 REQUIRE_SMOLLM2=1
    golden_elsewhere
fi
