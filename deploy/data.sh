# What root takes from the data folder, in which the server's account writes. Sourced by deploy/up; $data is the folder.
# That account may have been taken over: none of its words becomes an option, a path or a program of root's.

# left NAME: what the server left there. Never what a link leads to, and no waiting for what is no file.
left() { dd if="$data/$1" iflag=nofollow,nonblock bs=64K count=1 status=none 2>/dev/null; }

# told KEY, of server.json: a number, an address without a path, or the hash of a key; of anything else nothing.
told() {
    local value
    value=$(left server.json | sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p") || true
    if [[ $value =~ ^([0-9]{1,10}|https?://[][0-9A-Za-z.:-]+|sha256//[0-9A-Za-z+/=]{44})$ ]]; then printf '%s\n' "$value"; fi
}

token() { left admin-token; }

# Takes the data folder from the server's account, which is stopped: what lies there can be trusted not to change, and the
# next start hands it over again.
take_data() {
    chown root:root "$data" && chmod 0700 "$data"
    local odd; odd=$(find "$data" -maxdepth 1 \( -name '*.db' -o -name '*.db-*' \) \( ! -type f -o -links +1 \))
    [ -z "$odd" ] || fail "$odd is no plain file" "look at what it is, and remove it"
    if [ -L "$data/backups" ] || { [ -e "$data/backups" ] && [ ! -O "$data/backups" ]; }; then
        fail "$data/backups is not root's own folder" "look at what it is, and remove it"
    fi
}

# copy_databases FROM TO: file by file, as they are. SQLite as root would obey them: a journal names files to remove.
# Blobs and layers are never changed in place.
copy_databases() {
    local file
    rm -f "$2"/*.db-*
    for file in "$1"/*.db "$1"/*.db-wal "$1"/*.db-journal; do
        [ -f "$file" ] || continue
        rm -f "$2/${file##*/}"
        cp -pP "$file" "$2/" || return
    done
    sync -f "$2"
}
