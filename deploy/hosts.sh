# What deploy/up does for other machines: the server's name and certificate. Sourced; $data and $current are its folders.

host='' cert='' key='' # of --host, --cert and --key

# ask CURL-ARGUMENTS … : curl to our own server, which on this machine is known by its key, whatever it is called.
ask() {
    local pin; pin=$(told pin)
    if [ -n "$pin" ]; then curl -sS --insecure --pinnedpubkey "$pin" "$@"; else curl -sS "$@"; fi
}

# Gives the server its name; nothing happens where it has it, or none was asked for.
name_host() {
    [ -n "$host" ] || return 0
    say "serving other machines as $host"
    local files=(); [ -z "$cert" ] || files=(--cert "$cert" --key "$key")
    FAAS_DATA=$data "$prefix/$release/bin/faas" tls set "${files[@]}" -- "$host" >/dev/null ||
        fail "$host cannot be served" "see above"
}

# Whether settings were written after the server's start.
settings_changed() { [ "$data/config.toml" -nt "$data/server.json" ]; }

show_clients() {
    case "$(told api)" in https:*) FAAS_DATA=$data "$current/bin/faas" tls show ;; esac
}
