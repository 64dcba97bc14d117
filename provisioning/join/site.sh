#!/bin/sh
# Looks after a site of a Flowerbed federation, in the folder of this file. It needs Docker with Compose.
# The join file wrote it, and a newer join file replaces it. Your own settings are in site.yml.
set -eu

usage() {
    cat <<'END'
Usage: ./site VERB
  start             start the site with the settings in site.yml, and wait until it is registered
  stop              stop it. Its settings, key and jobs stay
  status            show whether it is running and registered, reads its data, and has the settings in site.yml
  logs [-f]         show its log
  doctor            check this machine, the way to the server, the certificate and the data
  request           print the request for a certificate again, if the site makes its own key
  join ANSWER       take the answer to the request, and start. ANSWER is a file, or - for the terminal
  approve CHECKSUM  let packages in that wait for you (environments: approve in site.yml). status shows the checksum
  take FOLDER       install the packages in a folder, such as a stick's
  update FILE       take what is new from a newer join file
  console           for a person: open FLARE's console
  leave [--yes]     stop the site, and remove everything that joining created. Its data stays
END
}

# clean: pass text on without what a terminal obeys: control characters, and marks that turn the direction of writing.
# The server, a registry or an app may have written it.
clean() {
    LC_ALL=C sed "$(printf 's/[\001-\010\013-\037\177]//g; s/\302[\200-\237]//g')
        $(printf 's/\342\200[\213-\217\250-\256]//g; s/\342\201[\240-\257]//g')"
}

# Some shells' echo makes control characters of codes such as \033.
say() { printf '%s\n' "$*" | clean >&2; }

fail() {
    say "site: $1"
    exit "${2:-1}"
}

# value KEY: print the value of KEY in .env. The last line counts, as in Compose.
value() { sed -n "s/^$1=//p" .env | tail -n 1; }

# path FILE: print where a file is that the caller names from another folder.
path() { case $1 in /*) echo "$1" ;; *) echo "$from/$1" ;; esac; }

compose() { docker compose "$@"; }

# once OPTIONS IMAGE WORDS: run a container for a moment, without a network and without rights.
once() {
    docker run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges "$@"
}

# as_root COMMAND: run a shell command in this folder, as the user who may change the owner of its files.
as_root() {
    once --user 0:0 --cap-add CHOWN --cap-add DAC_OVERRIDE --cap-add FOWNER \
        --mount "type=bind,source=$here,target=/folder" --workdir /folder --entrypoint sh "$image" -ec "$1"
}

# own: give the containers' user what it reads and writes, and nobody else the key.
own() {
    as_root 'chown -hR 10001:10001 kit renewed environments spool
        find kit -type d -exec chmod 0500 {} + ; find kit -type f -exec chmod 0400 {} +
        find kit -name "*.sh" -exec chmod 0500 {} +
        chmod 0755 renewed environments; chmod 0700 spool'
}

# request: make the site's key, and print the request for its certificate. Nothing in it is secret.
request() {
    [ -n "$own_key" ] || fail "the federation made the key of $site, so there is nothing to request."
    asked=$(once --user 0:0 --cap-add DAC_OVERRIDE --mount "type=bind,source=$here/kit,target=/kit" \
        "$image" request "$site" "$(value SITE_ORG)" "$(value SITE_JOIN)") || fail "the request could not be made: see above."
    own
    say "$site has made its key, which stays on this machine. Send these lines to the federation's administrator:"
    say
    echo "$asked"
    say
    say "Tell the fingerprint of the key in another way. The administrator answers with some lines. Then:"
    say "  $here/site join ANSWER      (a file with those lines, or - to paste them)"
}

# join ANSWER: take the answer to the request, and start.
join() {
    [ $# = 1 ] || fail "join needs the answer to the request: a file, or - for lines from the terminal." 2
    [ -n "$own_key" ] || fail "the federation made the key of $site, so no answer is needed. To start: ./site start"
    file=$(path "$1")
    [ "$1" = - ] || [ -r "$file" ] || fail "expected a file with the answer, found none that can be read: $file" 2
    if [ "$1" = - ]; then
        [ ! -t 0 ] || say "Paste the answer, then press Enter and Ctrl-D:"
        answer=$(cat)
    else
        answer=$(cat "$file")
    fi
    said=$(printf '%s\n' "$answer" | once --interactive --mount "type=bind,source=$here/kit,target=/kit,readonly" \
        --mount "type=bind,source=$here/renewed,target=/renewed" "$image" answer "$site" 2>&1) ||
        fail "the answer was refused: $said
Nothing was changed."
    say "$said"
    [ -n "$(value SITE_APPROVED)" ] || echo "SITE_APPROVED=$(date -u +%Y-%m-%d)" >>.env
    doctor >&2 || fail "$site has not joined: a check failed. Fix what is named above. Then: $here/site start"
    start
}

# render: make a draft of Compose's file of the site's own settings.
render() {
    set -- settings
    [ "$role" = site ] || set -- settings "$role" "$site" "${server%:*}"
    [ -f site.yml ] || fail "expected the settings in $here/site.yml, found none. An empty file is enough."
    if ! once --interactive --mount "type=bind,source=$here/kit,target=/kit,readonly" "$image" "$@" \
        <site.yml >.override.new; then
        rm -f .override.new
        fail "site.yml is wrong: see above. Correct it, and run ./site start again."
    fi
}

# is_waiting: succeed if the site made its own key, and has no answer to its request yet.
is_waiting() { [ -n "$own_key" ] && [ -z "$(value SITE_APPROVED)" ]; }
waits="is waiting for the answer to its request. ./site request prints the request again, ./site join takes the answer."

# settings: make Compose's file of the site's own settings.
settings() {
    render
    mv .override.new compose.override.yaml
}

# edited: say whether ./site start would make the containers of other settings than they have.
edited() {
    if ! said=$( (render && compose --file compose.yaml --file .override.new config --hash '*') 2>&1); then
        say "  site.yml is not in effect: $(echo "$said" | head -n 1) Correct it, then run ./site start."
    elif docker ps --filter "label=com.docker.compose.project=$(value COMPOSE_PROJECT_NAME)" \
        --filter "label=com.docker.compose.oneoff=False" --format \
        '{{.Label "com.docker.compose.service"}} {{.Label "com.docker.compose.config-hash"}}' | grep -qvxF "$said"; then
        say "  An edit of site.yml is not in effect yet: $site runs with older settings. To apply it, run ./site start."
    fi
    rm -f .override.new
}

# own_container: print the ID of the container of this folder's service. A console that somebody has open is another one.
own_container() {
    docker ps --all --quiet --filter "label=com.docker.compose.project=$(value COMPOSE_PROJECT_NAME)" \
        --filter "label=com.docker.compose.service=$site" --filter "label=com.docker.compose.oneoff=False"
}

# look: see which address the container dials now. After a move it is not the kit's any more.
look() {
    [ "$role" = site ] || return 0
    found=$(docker exec "$1" sed -n 2p /tmp/health/dialled 2>/dev/null | clean || true)
    ready="registered with ${found:-$server}"
}

# explain: say why the site is not registered, as far as its log and its health check know.
explain() {
    compose logs --no-color --no-log-prefix --tail 400 "$site" 2>/dev/null |
        sed -n -e 's/.*registration rejected: /  the server refuses the site: /p' \
            -e 's/.*failed with exception ProxyError: ProxyError: /  /p' \
            -e 's/.*failed with exception OpenedTLS: OpenedTLS: /  /p' | tail -n 1 | clean >&2 || true
    container=$(own_container 2>/dev/null || true)
    [ -z "$container" ] || docker inspect --format \
        '{{with .State.Health}}{{range .Log}}{{printf "%s\n" .Output}}{{end}}{{end}}' "$container" 2>/dev/null |
        grep -v '^ *$' | tail -n 1 | sed 's/^/  health check: /' | clean >&2 || true
}

start() {
    [ $# = 0 ] || fail "start takes no arguments." 2
    ! is_waiting || fail "$site $waits"
    settings
    if ! compose --progress plain up --detach --wait --wait-timeout 120 --remove-orphans >.up.log 2>&1; then
        grep -v '^ *\(Container\|Network\|Volume\) ' .up.log | tail -n 5 | sed 's/^ */  /' | clean >&2 || true
        explain
        case $(docker inspect --format '{{.State.Health.Status}}' "$(own_container)" 2>/dev/null || true) in
            healthy) fail "the settings in site.yml are not in effect: see above. $site goes on as it was, and is $ready." ;;
        esac
        fail "$site is not $ready. ./site doctor looks for the reason, ./site logs shows the log."
    fi
    rm -f .up.log
    [ -n "$(value SITE_JOINED)" ] || echo "SITE_JOINED=$(date -u +%Y-%m-%d)" >>.env
    look "$(own_container)"
    say "$site is $ready."
}

status() {
    container=$(own_container)
    if is_waiting; then
        say "$site $waits"
        return 1
    fi
    if [ -z "$container" ]; then
        say "$site is stopped. Start it: ./site start"
        return 1
    fi
    state=$(docker inspect --format '{{.State.Status}} {{with .State.Health}}{{.Status}}{{end}}' "$container")
    since=$(docker inspect --format '{{.State.StartedAt}}' "$container")
    case $since in *T*.*Z) since=${since%%.*}Z ;; esac
    look "$container"
    case $state in
        "running healthy" | "running ")
            echo "$site has been running since $since and is $ready."
            notes
            [ "$role" != site ] || pending || true
            ;;
        running*)
            echo "$site has been running since $since and is not $ready."
            notes
            explain
            say "  To find the reason, run ./site doctor."
            return 1
            ;;
        *)
            echo "$site is ${state% *}."
            return 1
            ;;
    esac
}

# notes: say what is wrong with the data and settings of a running container.
notes() {
    [ "$role" != site ] || docker exec "$container" python3 -P -m bridge.preflight.data 2>/dev/null | clean >&2 || true
    edited
}

# logs: show the log. A file or another program gets it as it is.
logs() {
    if [ -t 1 ]; then
        compose logs --no-log-prefix "$@" "$site" | clean
    else
        compose logs --no-log-prefix "$@" "$site"
    fi
}

# doctor [--json]: check this machine, the kit and the way to the server, in a container like the site's.
doctor() {
    for word; do
        [ "$word" = --json ] || fail "doctor takes no '$word', only --json." 2
    done
    if ! engine=$(docker version --format '{{.Server.Version}}' 2>&1); then
        fail "Docker's engine does not answer: $(echo "$engine" | tail -n 1). Start it, or join the group that may use it."
    fi
    found=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) || fail \
        "the runtime image $image is not on this machine. A join file gets it: sh FILE --dir $here --update"
    set -- preflight "--engine=$engine" "--compose=$(docker compose version --short 2>/dev/null || true)" \
        "--image=$found" "--expected=$image" "$@"
    # Compose makes a network and a volume for the container. Those that were not there are removed again.
    docker volume inspect "$(value COMPOSE_PROJECT_NAME)_$site" >/dev/null 2>&1 && new='' || new=1
    code=0
    examine "$@" || code=$?
    [ -z "$new" ] || compose down --volumes >/dev/null 2>&1 || true
    return "$code"
}

# examine WORDS: run the checks with the site's own settings.
examine() {
    code=0
    # A site has no way out, and its gate has no kit. For the checks there is a service with both.
    checked=$site
    [ "$role" != site ] || checked=doctor
    # Lines appear as they come. What else is said, is kept.
    if wrong=$( (settings) 2>&1); then
        { wrong=$(compose run --rm --no-deps -T "$checked" "$@" 2>&1 >&3 </dev/null) || code=$?; } 3>&1
        [ "$code" != 0 ] || return 0
        case $wrong in
            *"doctor: failed: "*)
                say "doctor: failed: ${wrong##*doctor: failed: }"
                return 1
                ;;
        esac
    fi
    # A container with the site's settings does not start. One without them checks all else.
    docker run --rm --read-only --cap-drop ALL --security-opt no-new-privileges \
        --mount "type=bind,source=$here/kit,target=/kit,readonly" \
        --mount "type=bind,source=$here/renewed,target=/renewed,readonly" "$image" "$@" "--broken=${wrong:-it said nothing}"
}

# pending: show the packages from the server that are not installed.
pending() {
    once --mount "type=bind,source=$here/environments,target=/environments,readonly" "$image" keeper news
}

# run_once OPTIONS SERVICE WORDS: run a service of this folder once. Compose's lines about containers are left out.
run_once() {
    code=0
    compose run --rm --no-deps -T "$@" 2>.keeper.log || code=$?
    grep -v '^ *Container ' .keeper.log | clean >&2 || true
    rm -f .keeper.log
    return "$code"
}

# plain TEXT: print a fingerprint without colons and spaces, in small letters.
plain() { printf '%s' "$1" | tr -d ': ' | tr '[:upper:]' '[:lower:]'; }

# update FILE [OPTIONS]: run a newer join file, once the site's own runtime has checked who signed it.
update() {
    [ $# -gt 0 ] || fail "update needs the newer join file: ./site update FILE [--images FOLDER]" 2
    file=$(path "$1")
    shift
    if [ ! -f "$file" ] || [ ! -r "$file" ]; then
        fail "expected a join file, found none that can be read: $file" 2
    fi
    docker image inspect --format '{{.Id}}' "$image" >/dev/null 2>&1 || fail \
        "the site's runtime image $image is not on this machine, so nothing can check $file. Read it. If you trust it: \
sh $file --dir $here --update"
    # The copy runs: somebody could change the file after the check.
    trap 'rm -f "$here/.update.join"' EXIT
    trap 'exit 130' INT TERM
    rm -f .update.join
    (umask 077 && cat "$file" >.update.join)
    said=$(once --interactive "$image" join-check <.update.join) || fail "$file was not run: $said"
    found=${said##* } wanted='' before=''
    for word; do
        shift
        case $before in
            --fingerprint) wanted=$word ;;
            --images | --passphrase-file) word=$(path "$word") ;;
        esac
        set -- "$@" "$word"
        before=$word
    done
    if [ -n "$wanted" ]; then
        [ "$(plain "$wanted")" = "$(plain "$found")" ] || fail \
            "$file was not run: expected a file from the CA $wanted, found one from the CA $found."
    elif ! once --mount "type=bind,source=$here/renewed,target=/renewed,readonly" --entrypoint python3 "$image" \
        -P -m bridge.common.join_file trusts "$found"; then
        fail "$file was not run: this site does not trust its CA, $found. If you trust that CA: --fingerprint $found"
    fi
    sh .update.join --dir "$here" --update "$@"
}

approve() {
    [ $# = 1 ] || fail "approve needs a checksum, as ./site status shows it." 2
    run_once keeper keeper approve "$1"
}

take() {
    [ $# = 1 ] && [ -d "$(path "$1")/environments" ] || fail "take needs a folder with the folder environments in it." 2
    folder=$(CDPATH='' cd -P -- "$(path "$1")" && pwd)
    settings
    run_once --volume "$folder:/stick:ro" keeper keeper once /stick
}

# console: open FLARE's console. Without a terminal its container would wait in silence, as it does for verbs.
console() {
    [ "$role" = console ] || fail "$site is a $role, and only a person has a console." 2
    if [ ! -t 0 ] || [ ! -t 1 ]; then fail "console needs a terminal: expected one, found a file or a pipe." 2; fi
    compose run --rm "$site"
}

leave() {
    if [ "${1:-}" != --yes ]; then
        [ -t 0 ] || fail "leave asks first: expected a terminal, or ./site leave --yes." 2
        printf 'Remove the containers, the key and the jobs of %s from this machine? [y/N] ' "$site" >&2
        read -r answer
        case $answer in [Yy]*) ;; *) fail "nothing was removed." ;; esac
    fi
    compose down --volumes --remove-orphans --timeout 20 >&2
    as_root 'rm -rf kit renewed environments spool'
    rmdir jobs 2>/dev/null || true
    rm -rf compose compose.yaml compose.override.yaml .env .override.new .up.log .update.join
    # Another site of this machine may use it. Then the engine refuses.
    docker image rm "$image" >/dev/null 2>&1 || true
    rm -f site
    say "$site has left: its containers, key, jobs and environments are removed from this machine."
    say "What stays in $here: site.yml, and data if it is there. Remove them when you no longer need them."
    say "The federation still trusts the certificate of $site. Ask its administrator for one of these:"
    say "  if it leaves for good:          ./flowerbed site remove $site"
    say "  if it moves to another machine: ./flowerbed site add $site, which makes a new join file"
}

from=$(pwd)
here=$(CDPATH='' cd -P -- "$(dirname -- "$0")" && pwd)
cd "$here"
[ -f .env ] || fail "expected .env beside this file, found none. The site has left, or its join file has not run here."
# The folder says what the site is. A variable of the caller's shell would come before .env.
for name in $(env | sed -n 's/^\([A-Z0-9_]*\)=.*/\1/p'); do
    case $name in COMPOSE_* | FLOWERBED_* | SITE_*) unset "$name" ;; esac
done
site=$(value SITE_NAME) role=$(value SITE_ROLE) image=$(value SITE_RUNTIME) server=$(value SITE_SERVER)
own_key=$(value SITE_OWN_KEY)
case $role in
    site) ready="registered with $server" ;;
    *) ready="ready" ;;
esac
verb=${1:-help}
[ $# = 0 ] || shift
case $verb in
    start) start "$@" ;;
    stop) compose stop >&2 && say "$site is stopped. Its jobs and its key stay." ;;
    status) status ;;
    logs) logs "$@" ;;
    doctor) doctor "$@" ;;
    update) update "$@" ;;
    console) console ;;
    request) request ;;
    join) join "$@" ;;
    approve) approve "$@" ;;
    take) take "$@" ;;
    leave) leave "$@" ;;
    own) own ;;
    help | -h | --help) usage ;;
    *)
        usage >&2
        exit 2
        ;;
esac
