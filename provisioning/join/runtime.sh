#!/bin/sh
# The part of a join file that gets the runtime image: by a registry, from a folder such as a stick's, or from the
# federation's server. provisioning/join.py puts it behind join.sh, which shares its variables.
# shellcheck disable=SC2034,SC2154

# has_runtime: succeed if the engine has the runtime image, and set `image_here` to its ID. The two image stores of
# Docker give one image two IDs, so its content decides.
has_runtime() {
    for name in "$RUNTIME" "$RUNTIME_FROM" "$RUNTIME_NAME" "$PROJECT-runtime:dev"; do
        [ -n "$name" ] || continue
        content=$(docker image inspect --format "$RUNTIME_FORMAT" "$name" 2>/dev/null) || continue
        if [ "$content" = "$RUNTIME_CONTENT" ]; then
            image_here=$(docker image inspect --format '{{.Id}}' "$name")
            return
        fi
    done
    return 1
}

# bytes FILE: print the size of a file, or 0 if there is none.
bytes() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }

get_runtime() {
    if [ -n "$images" ]; then
        from_folder
        return
    fi
    if [ -n "$RUNTIME_FROM" ]; then
        step "getting the runtime image from $RUNTIME_FROM, which may take some minutes"
        { docker pull --quiet "$RUNTIME_FROM" 2>&1 || true; } | clean >&2
        if has_runtime; then return; fi
        [ -n "$RUNTIME_OFFERED" ] || fail "the runtime image cannot be pulled: see above."
    fi
    if [ -n "$RUNTIME_OFFERED" ]; then
        from_server
        return
    fi
    fetch=
    [ -z "$RUNTIME_CAN_FETCH" ] || fetch=" Or for a file that brings it from the server: ./flowerbed site add $SITE --from-server"
    fail "this machine lacks the federation's runtime image ($RUNTIME). Ask its administrator for a folder with it \
(./flowerbed site add $SITE --with-images FOLDER), and run this again with --images FOLDER.$fetch"
}

# load FILE [NAME]: load the runtime image from an archive that nobody else can change, which a person knows as NAME.
# Another archive is not loaded: it could replace other images.
load() {
    from=${2:-$1}
    [ -n "$RUNTIME_SUM" ] || fail \
        "this join file names no archive of the runtime image. Ask for one: ./flowerbed site add $SITE --with-images FOLDER"
    sum=$(hash_of <"$1")
    [ -n "$sum" ] || fail "expected sha256sum, shasum or openssl on this machine, to check $from. Install one."
    [ "$sum" = "$RUNTIME_SUM" ] || fail \
        "$from was altered, or is another file: expected the SHA-256 $RUNTIME_SUM, found $sum. It was not loaded. Get it again."
    step "unpacking the runtime image, which may take some minutes"
    docker load --quiet --input "$1" >&2 || fail "the runtime image cannot be loaded: see above."
    has_runtime || fail "expected the image $RUNTIME in $from, found another one."
}

from_folder() {
    archive=$images
    [ ! -d "$images" ] || archive=$images/runtime/${RUNTIME#sha256:}.tar.gz
    [ -f "$archive" ] || fail "expected the runtime image in $archive, found no such file. Name the folder that \
./flowerbed site add $SITE --with-images FOLDER has filled."
    step "loading the runtime image from $archive"
    # The copy counts. A stick, or who may write to a shared folder, could give other bytes after the check.
    private "$dir.fetching"
    trap 'rm -rf "$dir.fetching"' EXIT
    trap 'exit 130' INT TERM
    (umask 077 && cat "$archive" >"$dir.fetching/runtime") || fail "$archive cannot be copied: see above."
    load "$dir.fetching/runtime" "$archive"
    rm -rf "$dir.fetching"
    trap - EXIT INT TERM
}

# closed FOLDER: succeed if this is a folder of this user's that nobody else can open.
closed() { [ -d "$1" ] && [ ! -L "$1" ] && [ -n "$(find "$1" -prune -user "$(id -u)" -perm 700)" ]; }

# from_server: fetch the runtime image over the server's one port. What has come stays for the next try.
from_server() {
    fetching=$dir.fetching
    closed "$fetching" || private "$fetching"
    part=$fetching/runtime.part keys=$fetching/keys
    private "$keys"
    (umask 077 && files "$keys")
    trap 'rm -rf "$keys"' EXIT
    trap 'exit 130' INT TERM
    step "fetching the runtime image from $SERVER, $((RUNTIME_BYTES / 1000000)) MB"
    tries=0 told=0 waited=0
    while have=$(bytes "$part") && [ "$have" -lt "$RUNTIME_BYTES" ]; do
        rm -f "$keys/head" "$keys/said"
        piece "$have" >>"$part" || true
        now=$(bytes "$part")
        if [ "$now" -gt "$have" ]; then
            tries=0 waited=0
            if [ "$((now * 20 / RUNTIME_BYTES))" -gt "$told" ]; then
                told=$((now * 20 / RUNTIME_BYTES))
                step "$((now * 100 / RUNTIME_BYTES)) %"
            fi
            continue
        fi
        pause=$(asked_to_wait)
        if [ -n "$pause" ] && [ "$waited" -lt "$WAIT_AT_MOST" ]; then
            [ "$waited" -gt 0 ] || step "the server sends files to others, so this waits"
            waited=$((waited + pause))
            sleep "$pause"
            continue
        fi
        tries=$((tries + 1))
        [ "$tries" -lt 6 ] || fail "the runtime image cannot be fetched from $SERVER: $(tail -n 1 "$keys/said" 2>/dev/null). \
Run this again to go on where it stopped, or ask for a folder with the image (--with-images)."
        sleep "$tries"
    done
    # A wrong one must not stay, or the next try would end here too.
    [ "$(hash_of <"$part")" = "$RUNTIME_SUM" ] || mv "$part" "$part.wrong"
    [ -f "$part" ] || fail "the server has sent another image than this join file names. It was not loaded, and is in \
$part.wrong. Ask the federation's administrator for a new join file."
    load "$part"
    rm -rf "$fetching"
    trap - EXIT INT TERM
}

# Seconds to wait, at most, for a server that sends files to others.
WAIT_AT_MOST=1800

# asked_to_wait: print the seconds after which the server wants to be asked again, if its last answer says so.
asked_to_wait() {
    [ -f "$keys/head" ] || return 0
    LC_ALL=C tr -d '\r' <"$keys/head" | LC_ALL=C sed -n 's/^Retry-After: *\([1-9][0-9]\{0,1\}\)$/\1/p' | tail -n 1
}

# piece OFFSET: write some bytes of the image to stdout, from OFFSET on.
piece() {
    path=/runtime/${RUNTIME#sha256:}.tar.gz
    ca=$keys/renewed/rootCA.pem certificate=$keys/renewed/client.crt key=$keys/kit/startup/client.key
    if command -v curl >/dev/null 2>&1; then
        curl --silent --show-error --fail --http1.1 --connect-timeout 20 --max-time 900 --range "$1-" \
            --cacert "$ca" --cert "$certificate" --key "$key" --dump-header "$keys/head" "https://$SERVER$path" 2>"$keys/said"
        return
    fi
    command -v openssl >/dev/null 2>&1 || fail "expected curl or openssl on this machine, found neither. Install one."
    host=${SERVER%:*}
    host=${host#[}
    host=${host%]}
    # Without a letter it is an address. Certificates have both kinds.
    case $host in *:*) verify=-verify_ip ;; *[!0-9.]*) verify=-verify_hostname ;; *) verify=-verify_ip ;; esac
    printf 'GET %s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%s-\r\n\r\n' "$path" "$host" "$1" |
        openssl s_client -quiet -verify_quiet -verify_return_error -CAfile "$ca" -cert "$certificate" -key "$key" \
            -connect "$SERVER" -servername "$host" "$verify" "$host" -alpn http/1.1 \
            >"$keys/reply" 2>"$keys/said" || true
    head -c 1000 "$keys/reply" | LC_ALL=C tr -d '\r' >"$keys/head"
    if ! grep -a -q '^HTTP/1.1 206 ' "$keys/head"; then
        head -n 1 "$keys/head" >>"$keys/said"
        return 1
    fi
    LC_ALL=C sed '/^$/q' "$keys/head" >"$keys/fields"
    length=$(sed -n 's/^Content-Length: *//p' "$keys/fields")
    # Each line of the head has one byte more, which tr took. Of a reply that was cut, nothing is taken.
    whole=$(($(bytes "$keys/fields") + $(wc -l <"$keys/fields") + length))
    [ "$(bytes "$keys/reply")" -eq "$whole" ] || return 1
    tail -c "$length" "$keys/reply"
}
