# How deploy/up starts a server whose listening sockets outlive it (faas.cli.keeper), so that no client is refused while one
# version ends and the next one starts. Sourced; $current is the release that runs, $prefix where releases lie.

keeper_file=$prefix/keeper.pid # where there is no systemd

# What runs the server of $current; a release that has no keeper runs as it always did.
serve_command() {
    if "$current/bin/python" -P -c 'import faas.cli.keeper' 2>/dev/null; then
        echo "$current/bin/python -P -m faas.cli.keeper $current/bin/faas serve"
    else
        echo "$current/bin/faas serve"
    fi
}

keeper_pid() {
    local pid
    if has_systemd; then
        pid=$(systemctl show -p MainPID --value faas 2>/dev/null)
    else
        pid=$(cat "$keeper_file" 2>/dev/null)
    fi
    [[ $pid =~ ^[1-9][0-9]*$ ]] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'faas\.cli\.keeper' && echo "$pid"
}

# Whether the keeper has a server.
has_server() {
    local pid; pid=$(keeper_pid) && [ -n "$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)" ]
}

# Ends the server and leaves its sockets with the keeper: clients wait for the next start.
hold() {
    local pid
    pid=$(keeper_pid) || { stop; return; }
    kill -USR2 "$pid"
    wait_for 60 server_ended || fail "the server did not stop within 60 s" "tail $log"
}
server_ended() { ! has_server; }
