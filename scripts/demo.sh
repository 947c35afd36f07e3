#!/usr/bin/env bash
# From a fresh clone to generated text: sets up what is missing, builds, runs.

set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh

if [[ $(uname -s) != Linux ]]; then
    die "this script is for Linux; the README has the commands for macOS and Windows"
fi

binary=${CARGO_TARGET_DIR:-target}/release/wgllama

ensure_rust
ensure_model || die "the model could not be downloaded"
cargo build --release
ensure_adapter "$binary"

prompt='Explain in two sentences why the sky is blue.'
printf '+ %s run --temperature 0 -n 64 "%s"\n' "$binary" "$prompt" >&2
exec "$binary" run --temperature 0 -n 64 "$prompt"
