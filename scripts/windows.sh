#!/usr/bin/env bash
# Builds wgllama.exe on Debian and runs it under Wine on the software adapter: its commands, and
# the golden tests of the two real models. Stops at the first step that fails.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh

TRIPLE=x86_64-pc-windows-gnu
# Debian has no ready standard library for Windows. Its newest Rust comes with the sources, of
# which cargo builds one.
PACKAGES=(rustc-web cargo-web rust-web-src gcc-mingw-w64-x86-64-win32 wine wine64 xvfb xauth)

ensure_windows_tools() {
    local package missing=()
    have_apt || die "this needs Debian's packages ${PACKAGES[*]}"
    for package in "${PACKAGES[@]}"; do
        [[ -n $(installed_version "$package") ]] || missing+=("$package")
    done
    if ((${#missing[@]} > 0)); then
        # rustc-web and the distribution's own rustc or rustup exclude each other: what the
        # machine's owner chose stays.
        apt_install --no-remove "${missing[@]}" || die "these packages could not be installed: ${missing[*]}"
    fi
}

setup() {
    ensure_windows_tools
    ensure_software_adapter
    ensure_model || die "the model could not be downloaded"
}

# Apart from what native builds make: that is another compiler's.
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/windows"
target=$(cd "$target" && pwd)
native=$target/release/wgllama
target=$target/windows
programs=$target/$TRIPLE/release

# One cargo command for all, so that the program and the tests share one build of everything else.
cargo_windows() {
    env CARGO_TARGET_DIR="$target" CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc \
        CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER='xvfb-run --auto-servernum wine' \
        RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
        /usr/bin/cargo test -Zbuild-std=std --target "$TRIPLE" --release --test golden "$@"
}

# Wine gives Vulkan to programs only where there is a display.
wine_run() { xvfb-run --auto-servernum wine "$@"; }

windows_path() {
    local path
    path=$(realpath "$1")
    printf 'Z:%s\n' "${path//\//\\}"
}

# Wine 8 lacks a library that Rust's programs need: beside them they find ours.
shim() {
    x86_64-w64-mingw32-gcc -Wall -Wextra -O2 -s -shared -o "$1/bcryptprimitives.dll" \
        scripts/windows/bcryptprimitives.c -ladvapi32
}

build() {
    # Builds the program, too: cargo does for every test of the command line.
    cargo_windows --no-run && shim "$programs" && shim "$programs/deps"
}

devices() { wine_run "$programs/wgllama.exe" devices; }

# The same text as from the native program, if that was built.
generate() {
    local arguments=(--device cpu --temperature 0 --seed 1 -n 64 'Explain in two sentences why the sky is blue.')
    wine_run "$programs/wgllama.exe" run "$(windows_path "$MODEL_FILE")" "${arguments[@]}" | tee "$target/text" || return 1
    if [[ -x $native ]]; then
        "$native" run "$MODEL_FILE" "${arguments[@]}" 2>/dev/null | diff - "$target/text" || return 1
        echo "the native program writes the same"
    fi
}

golden() {
    local variables=(WGLLAMA_TEST_DEVICE=cpu REQUIRE_GPU=1 REQUIRE_SMOLLM2=1)
    variables+=("WGLLAMA_SMOLLM2=$(windows_path "$MODEL_FILE")")
    if [[ -d ../shared ]]; then
        variables+=("WGLLAMA_SHARED=$(windows_path ../shared)" REQUIRE_SHARED=1)
    fi
    export "${variables[@]}"
    cargo_windows -- stories260k smollm2
}

export WINEPREFIX=$target/wine WINEDEBUG=-all
# No .NET, no HTML and no entries in the desktop's menus: Wine would ask to install the first two.
export WINEDLLOVERRIDES='mscoree,mshtml,winemenubuilder.exe='
export MESA_SHADER_CACHE_DIR=$target/mesa-cache
mkdir -p "$MESA_SHADER_CACHE_DIR"

step setup setup
step 'cargo build' build
step 'wgllama.exe devices' devices
step 'wgllama.exe run' generate
step 'golden tests' golden

printf '== all passed in %d s\n' "$SECONDS"
