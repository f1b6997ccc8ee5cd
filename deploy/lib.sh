# Shell pieces shared by deploy/up, tests/run and .ci/run. Sourced, never run.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
began=$(date +%s)
export PATH="$PATH:/usr/sbin:/sbin" # su without - leaves them out

say() { printf '%4ds  %s\n' $(($(date +%s) - began)) "$*" >&2; }
fail() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf '  try: %s\n' "$2" >&2; exit 1; }

# What a server needs of the system.
server_needs=(runc=runc nft=nftables ip=iproute2 mkfs.ext4=e2fsprogs /etc/ssl/certs/ca-certificates.crt=ca-certificates
    /usr/share/zoneinfo/UTC=tzdata strip=binutils curl=curl node=nodejs)
# Options and variables that say where packages come from, and the pip of a new environment. None: as this machine has it.
apt_from=() pip_env=() pip_wheel=

# need COMMAND=PACKAGE … : installs through apt the packages whose command (or file, with a /) is missing.
# A package that would start a service on install is kept from it: this machine decides what it runs.
need() {
    local missing=() pair
    for pair in "$@"; do
        case "${pair%%=*}" in
            /*) [ -e "${pair%%=*}" ] || missing+=("${pair#*=}") ;;
            *) command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "missing: ${missing[*]}, and there is no apt here" "install them with this system's package manager"
    [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}" "sudo apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    local log; log=$(mktemp)
    if ! apt_install "${missing[@]}" >"$log" 2>&1; then
        tail -5 "$log" >&2
        fail "apt could not install ${missing[*]}" "apt-get update && apt-get install ${missing[*]}"
    fi
    apt_updated=1
    rm -f "$log"
}
apt_install() ( # in a shell of its own, so that its trap undoes the guard however it ends
    guard=/usr/sbin/policy-rc.d
    if [ ! -e $guard ]; then
        trap 'rm -f $guard' EXIT
        printf '#!/bin/sh\nexit 101\n' >$guard
        chmod +x $guard
    fi
    wait=-oDPkg::Lock::Timeout=300 # a new machine may just be updating itself
    [ -n "${apt_updated:-}" ] || apt-get update -qq $wait "${apt_from[@]}" || exit
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wait "${apt_from[@]}" "$@"
)

# Prints the first interpreter that is new enough.
find_python() {
    local candidate
    for candidate in "${FAAS_PYTHON:-python3}" python3.13 python3.12 python3.11 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed" "apt-get install python3.11 python3.11-venv"
}

# make_venv FOLDER: a virtual environment there, unless it stands.
make_venv() {
    [ -x "$1/bin/pip" ] && return
    local python; python=$(find_python) || exit 1
    if [ -z "$pip_wheel" ] && ! "$python" -I -c 'import ensurepip' 2>/dev/null; then
        need "/nonexistent=$("$python" -I -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
    fi
    say "making a virtual environment in $1 with $("$python" --version)"
    "$python" -I -m venv --clear ${pip_wheel:+--without-pip} "$1" || fail "python -m venv $1 failed"
    [ -z "$pip_wheel" ] || env "${pip_env[@]}" "$1/bin/python" -I "$pip_wheel/pip" install -q "$pip_wheel" ||
        fail "pip cannot be installed from $pip_wheel"
}

# The checkout's own environment, for tests and linters.
dev_environment() {
    venv=$root/.venv
    make_venv "$venv"
    local stamp; stamp=$(sha256sum "$root/pyproject.toml" | cut -c1-32)
    [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    say "installing the project and what its tests need into .venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -e "$root[dev]" || fail "pip could not install the project"
    echo "$stamp" >"$venv/stamp"
}

# One line that changes when anything that gets installed changes.
source_stamp() {
    (cd "$root" && find pyproject.toml faas registry gateway worker deploy/systemd -type f ! -name '*.pyc' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-32)
}
