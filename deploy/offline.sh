# What an unpacked bundle (`bundle`) has for `up`, instead of an index and apt's sources: $root/manifest says what is in it
# and for which machine, and is followed by a sha256 of each file.

bundled() { [ -e "$root/manifest" ]; }
bundle_says() { sed -n "/^$/q; s/^$1 //p" "$root/manifest"; }
bundle_sums() { sed '1,/^$/d' "$root/manifest"; }

# Before anything is changed: the bundle is for this machine, and whole.
check_bundle() {
    if [[ $root = *[[:space:]]* ]]; then fail "'$root' has a space in it: pip and apt take it for two paths" "move the folder"; fi
    fits system "$(this_system)"
    fits architecture "$(dpkg --print-architecture)"
    fits_python
    say "checking the bundle"
    local wrong; wrong=$(cd "$root" && bundle_sums | LC_ALL=C sha256sum --check --quiet --strict 2>&1; unknown_files)
    [ -z "$wrong" ] || { head -5 <<<"$wrong" >&2; fail "the bundle is damaged" "bring its archive here again, and compare its sha256"; }
    use_bundle
}
fits() {
    [ "$(bundle_says "$1")" = "$2" ] ||
        fail "this bundle is for the $1 $(bundle_says "$1"), and this machine's is $2" "make one on such a machine: ./deploy/bundle"
}
this_system() ( . /etc/os-release && echo "$ID ${VERSION_ID:-${VERSION_CODENAME:-}}" )
fits_python() {
    local wanted found; wanted=$(bundle_says python)
    export FAAS_PYTHON=${FAAS_PYTHON:-python$wanted}
    if command -v "$FAAS_PYTHON" >/dev/null; then
        found=$("$FAAS_PYTHON" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found="none that runs"
        [ "$found" = "$wanted" ] ||
            fail "this bundle is for Python $wanted, and $FAAS_PYTHON is $found" "name such a one: FAAS_PYTHON=/usr/bin/python$wanted"
    elif ! compgen -G "$root/packages/${FAAS_PYTHON}_*.deb" >/dev/null; then
        fail "this bundle is for Python $wanted, which is neither here nor in it" "install it, or make a bundle with FAAS_PYTHON=/usr/bin/python3"
    fi
}
unknown_files() { # what pip and apt would find beside what the manifest names
    LC_ALL=C comm -13 <(bundle_sums | cut -c67- | LC_ALL=C sort) \
        <(cd "$root" && find bases deploy packages wheels -type f | LC_ALL=C sort) | sed 's/$/: not of the bundle/'
}

# From here on apt and pip know nothing else. Trusted: each file has been checked.
use_bundle() {
    offline=$(mktemp -d)
    trap 'rm -rf "$offline"' EXIT
    mkdir -p "$offline/lists/partial"
    echo "deb [trusted=yes] file:$root/packages ./" >"$offline/sources.list"
    apt_from=(-oDir::Etc::sourcelist="$offline/sources.list" -oDir::Etc::sourceparts=- -oDir::State::lists="$offline/lists"
        -oDir::Cache::pkgcache= -oDir::Cache::srcpkgcache= -oAcquire::Languages=none -oAPT::Sandbox::User=root)
    pip_env=(PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS="$root/wheels")
    pip_wheel=$(echo "$root"/wheels/pip-*.whl)
    need "$FAAS_PYTHON=$FAAS_PYTHON"
}

# Changes when anything that gets installed changes, the wheels of others too.
bundle_stamp() { bundle_sums | grep -E '^[0-9a-f]{64}  (wheels|deploy/systemd)/' | sha256sum | cut -c1-32; }

# Once for each release. A base that this machine would not make just so is made anew when it is first asked for.
take_bases() {
    [ ! -e "$current/bases" ] || return 0
    local file name
    for file in "$root"/bases/*.tar.gz; do
        name=$(basename "$file" .tar.gz)
        say "bringing the runtime base of $name"
        FAAS_URL=$(told api) FAAS_TOKEN=$(token) \
            "$current/bin/faas" image import "$file" --repository "runtime/$name" >/dev/null
    done
    touch "$current/bases"
}
