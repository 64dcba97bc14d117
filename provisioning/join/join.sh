#!/bin/sh
# The part of every join file that acts. provisioning/join.py puts the names before it and the files behind it.
set -eu

usage() {
    cat <<END
Usage: sh $SITE.join [OPTIONS]
  --dir DIR           the site's folder. Default: ./$SITE
  --fingerprint F     go on only if the federation's CA has this fingerprint
  --images FOLDER     take the runtime image and the packages of apps from a folder, such as a stick's
  --yes               do not ask whether the fingerprint is right
  --passphrase-file F  a file with the passphrase of this file's key, if it is locked. Default: ask
  --prepare           write the site's folder, and do not start the site
  --update            renew the site in DIR that an earlier join file made. ./site update FILE does this
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
    say "join $SITE: $1"
    exit "${2:-1}"
}

# step TEXT: tell what happens now, and after how many seconds.
step() { printf '%4s s  %s\n' "$(($(date +%s) - began))" "$1" >&2; }

# value KEY [FILE]: print the value of KEY in the .env of the site's folder.
value() { sed -n "s/^$1=//p" "${2:-$dir/.env}" 2>/dev/null | tail -n 1; }

# at_least FOUND MAJOR MINOR: succeed if a version such as v2.24.1 is new enough.
at_least() {
    found=${1#v}
    major=${found%%.*} rest=${found#*.}
    minor=${rest%%[!0-9]*}
    case $major$minor in '' | *[!0-9]*) return 1 ;; esac
    [ "$major" -gt "$2" ] || { [ "$major" -eq "$2" ] && [ "$minor" -ge "$3" ]; }
}

# hash_of: print the SHA-256 of stdin, or nothing if this machine has no program for that.
hash_of() {
    for program in sha256sum "shasum -a 256" "openssl dgst -sha256 -r"; do
        if command -v "${program%% *}" >/dev/null 2>&1; then
            $program | cut -c 1-64
            return
        fi
    done
    cat >/dev/null
}

# signed: print the part of this file that the signature is for.
signed() { sed '/^#-- end of what is signed --$/,$d' "$file"; }

check_date() {
    [ "$(date -u +%Y%m%d)" -le "$(echo "$LAST_DAY" | tr -d -)" ] || fail \
        "the last day of this join file was $LAST_DAY, and today is $(date -u +%Y-%m-%d). Ask the federation's administrator \
for a new one: ./flowerbed site add $SITE. If that date is wrong, set this machine's clock."
}

check_sum() {
    sum=$(signed | hash_of)
    wanted=$(sed -n 's/^#: sha256 //p' "$file")
    [ -z "$sum" ] || [ "$sum" = "$wanted" ] || fail \
        "this file was altered or is not complete: expected the SHA-256 ${wanted:-(none is in it)}, found $sum. Get it again."
}

check_docker() {
    command -v docker >/dev/null 2>&1 || fail "expected Docker on this machine, found none: https://docs.docker.com/engine/install"
    if ! engine=$(docker version --format '{{.Server.Version}}' 2>&1); then
        fail "Docker's engine does not answer: $(echo "$engine" | tail -n 1). Start it, or join the group that may use it."
    fi
    at_least "$engine" 20 10 || fail "expected Docker 20.10 or newer, found $engine."
    version=$(docker compose version --short 2>/dev/null) || fail \
        "expected Docker's Compose plugin, found none: https://docs.docker.com/compose/install/linux"
    at_least "$version" 2 20 || fail "expected Docker Compose 2.20 or newer, found $version."
    step "Docker $engine, Compose $version"
}

check_runtime() {
    has_runtime || get_runtime
    step "the runtime image is here"
}

# check_signature: let the runtime check that the CA of this federation has signed this file.
check_signature() {
    said=$(docker run --rm --interactive --network none --read-only --cap-drop ALL --security-opt no-new-privileges \
        "$image_here" join-check <"$file") || fail "$said"
    found=${said##* }
    if [ -n "$fingerprint" ]; then
        [ "$(plain "$fingerprint")" = "$(plain "$found")" ] || fail \
            "expected a federation with the CA $fingerprint, found the CA $found. Somebody else made this file. Do not use it."
    elif [ -f "$dir/.env" ] && [ -n "$update" ]; then
        trusts "$found" || fail "the site in $dir does not trust the CA of this file, $found. If you trust that CA: \
--fingerprint $found"
    elif [ -z "$yes" ]; then
        say "The federation's CA has the fingerprint"
        say "  $found"
        [ -t 0 ] || fail "expected --fingerprint F, with the fingerprint that the administrator tells you, or --yes." 2
        printf 'Did the administrator of the federation tell you the same fingerprint? [y/N] ' >&2
        read -r answer
        case $answer in [Yy]*) ;; *) fail "nothing was changed." ;; esac
    fi
    step "the federation's CA has signed this file"
}

# trusts FINGERPRINT: find out whether the site trusts this CA now. `./flowerbed renew --new-ca` may have replaced the
# one of its first join file, so that one counts only if no other is known.
trusts() {
    if [ ! -f "$dir/renewed/rootCA.pem" ]; then
        [ "$(value SITE_CA)" = "$1" ]
        return
    fi
    docker run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges \
        --mount "type=bind,source=$dir/renewed,target=/renewed,readonly" --entrypoint python3 \
        "$image_here" -P -m bridge.common.join_file trusts "$1"
}

# plain TEXT: print a fingerprint without colons and spaces, in small letters.
plain() { printf '%s' "$1" | tr -d ': ' | tr '[:upper:]' '[:lower:]'; }

# mine PATH: succeed if this is no link, and belongs to the user of this command.
mine() { [ ! -L "$1" ] && [ -n "$(find "$1" -prune -user "$(id -u)")" ]; }

# private FOLDER: make an empty folder that nobody else can open, in the place of one that an earlier run left. Keys go
# there, so nothing that somebody else has put there is used.
private() {
    mkdir -p "${1%/*}/"
    if [ -L "$1" ] || [ -e "$1" ]; then
        mine "$1" || fail "expected nothing at $1, found a link, or a file of another user. Remove it, or name \
another folder: --dir DIR"
        rm -rf "$1"
    fi
    (umask 077 && mkdir "$1") || fail "the folder $1 cannot be made: see above. Name another folder: --dir DIR"
}

# put FILE: write a file of the site's folder from stdin.
put() {
    mkdir -p "$(dirname "$1")"
    cat >"$1"
}

# look: find out what DIR holds. Sets `had` to its site's join id, if there is one.
look() {
    had=
    # Its .env can name a Compose file, and its owner could take the key.
    if [ -z "$update" ] && { [ -L "$dir" ] || [ -e "$dir" ]; }; then
        [ "$(find "$dir" "$dir/." -prune -user "$(id -u)" | wc -l)" -eq 2 ] || fail "expected nothing or a folder of \
yours at $dir, found a link or what another user has put there. Name another folder: --dir DIR"
    fi
    if [ -f "$dir/.env" ] && [ -f "$dir/site" ]; then
        other=$(value SITE_NAME)
        [ "$other" = "$SITE" ] || fail "$dir is the folder of the site $other: expected that of $SITE. Name another: --dir DIR"
        had=$(value SITE_JOIN)
        last=$(value SITE_MADE)
        [ "${last:-0}" -le "$MADE" ] || fail "this join file is older than the one that the site has used, and the server \
would refuse it. Nothing was changed. Use the newest."
        if [ -n "$(value SITE_JOINED)" ] && [ -z "$update" ]; then
            [ "$had" = "$JOIN" ] || fail "$SITE has joined with another file. To take what is new in this one: \
$dir/site update $file"
            say "$SITE has joined already, in $dir. Nothing was changed. Its state: $dir/site status"
            exit 0
        fi
    elif [ -n "$update" ]; then
        fail "expected the site's folder, found no site in $dir. To join: sh $file"
    elif [ -d "$dir" ] && [ -n "$(ls -A "$dir")" ] && ! has_left; then
        fail "$dir has other files in it. Name a folder that is empty or new: --dir DIR"
    fi
    used=$(docker ps --all --filter "label=com.docker.compose.project=$PROJECT-$SITE" \
        --format '{{.Label "com.docker.compose.project.working_dir"}}' | sort -u | grep -v -x -F "$dir" || true)
    [ -z "$used" ] || fail "$SITE runs on this machine already, from the folder $used."
}

# has_left: succeed if DIR holds what ./site leave leaves, and nothing else.
has_left() {
    [ -z "$(find "$dir/." ! -name . -prune ! -name data ! -name site.yml)" ] || return 1
    [ ! -e "$dir/site.yml" ] || mine "$dir/site.yml"
}

# settle: put the new files beside what ./site leave has left in DIR. Data stays where it is: it may be large or a mount.
settle() {
    chmod 0700 "$dir"
    has_left || fail "$dir has other files in it now. Name a folder that is empty or new: --dir DIR"
    for part in "$fresh"/* "$fresh/.env"; do
        [ -e "$dir/${part##*/}" ] || mv "$part" "$dir"
    done
    rm -rf "$fresh"
    step "keeping the data and the settings that are in $dir"
}

# unlock: unlock the key in the new folder, with the passphrase that came another way than this file.
unlock() {
    [ -n "$LOCKED" ] || return 0
    [ -z "$had" ] || [ "$(value SITE_KIT)" != "$KIT" ] || return 0
    if [ -n "$passphrase" ]; then
        words=$(head -n 1 "$passphrase") || fail "the passphrase cannot be read from $passphrase." 2
    else
        [ -t 0 ] || fail "the key in this file is locked: expected a terminal to ask for its passphrase, or --passphrase-file F." 2
        printf "Passphrase of this file's key: " >&2
        trap 'stty echo; exit 130' INT
        stty -echo
        read -r words
        stty echo
        trap - INT
        echo >&2
    fi
    printf '%s\n' "$words" | docker run --rm --interactive --user 0:0 --network none --read-only --cap-drop ALL \
        --cap-add DAC_OVERRIDE --security-opt no-new-privileges --mount "type=bind,source=$fresh/kit,target=/kit" \
        "$image_here" unlock || fail "the key stays locked: see above. Nothing was changed."
    step "the key is unlocked"
}

# lay: write the site's folder. Whatever ends this early leaves the old one.
lay() {
    fresh=$dir.joining
    private "$fresh"
    mkdir "$fresh/environments" "$fresh/spool"
    if [ "$ROLE" = console ]; then mkdir "$fresh/jobs"; fi
    files "$fresh"
    chmod 0755 "$fresh/site"
    unlock
    {
        [ ! -f "$dir/.env" ] || grep -v -E "^(COMPOSE_PROJECT_NAME|SITE_(NAME|ROLE|ORG|SERVER|RUNTIME|JOIN|JOINED|MADE|KIT|CA|OWN_KEY))=" "$dir/.env" || true
        echo "COMPOSE_PROJECT_NAME=$PROJECT-$SITE"
        echo "SITE_NAME=$SITE"
        echo "SITE_ROLE=$ROLE"
        echo "SITE_ORG=$ORG"
        echo "SITE_OWN_KEY=$OWN_KEY"
        echo "SITE_SERVER=$SERVER"
        echo "SITE_RUNTIME=$image_here"
        echo "SITE_JOIN=$JOIN"
        echo "SITE_MADE=$MADE"
        echo "SITE_KIT=$KIT"
        echo "SITE_CA=$found"
        [ -n "$had" ] || echo "SITE_INSTANCE=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
    } >"$fresh/.env"
    if [ -z "$had" ]; then
        if [ "$ROLE" = site ]; then mkdir -p "$fresh/data"; fi
        if [ -d "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
            settle
        else
            [ ! -d "$dir" ] || rmdir "$dir"
            mv "$fresh" "$dir"
        fi
        mine "$dir" || fail "the folder $dir was replaced by another user's meanwhile. Nothing in it was run."
    else
        joined=$(value SITE_JOINED)
        [ -z "$joined" ] || echo "SITE_JOINED=$joined" >>"$fresh/.env"
        merge
    fi
    (cd "$dir" && ./site own) || fail "the files in $dir cannot be given to the containers' user: see above."
    step "the site's folder is $dir"
}

# merge: put what is new into the folder of a site. What is the site's own stays.
merge() {
    # An early relay's or console's folder has none.
    if [ -f "$dir/site.yml" ]; then rm -f "$fresh/site.yml"; else mv "$fresh/site.yml" "$dir"; fi
    rm -rf "$fresh/environments" "$fresh/spool" "$fresh/jobs"
    set -- compose compose.yaml site .env
    [ "$(value SITE_KIT)" = "$KIT" ] || set -- kit "$@"
    docker run --rm --user 0:0 --network none --read-only --cap-drop ALL --cap-add CHOWN --cap-add DAC_OVERRIDE \
        --cap-add FOWNER --security-opt no-new-privileges --mount "type=bind,source=$fresh,target=/fresh" \
        --mount "type=bind,source=$dir,target=/folder" --entrypoint sh "$image_here" -ec '
            # Containers that run have this folder: a new one in its place would be hidden from them.
            python3 -P -m bridge.keeper.merge /fresh/renewed /folder/renewed
            rm -f /folder/renewed/server.json
            new=/folder/.new old=/folder/.old
            for part; do
                target=/folder/$part
                # An update that was cut off may have left the only copy of the key aside.
                [ -e "$target" ] || [ ! -d "$old" ] || mv "$old" "$target"
                rm -rf "$old" "$new"
                cp -pRP "/fresh/$part" "$new"
                # A key that the site has made is nowhere else. Its certificate came later than this file.
                key=startup/client.key
                [ "$part" != kit ] || [ -f "$new/$key" ] || [ ! -f "$target/$key" ] || cp -p "$target/$key" "$new/$key"
                [ ! -d "$target" ] || mv "$target" "$old"
                mv "$new" "$target"
            done
            rm -rf "$old"' sh "$@" || {
        rm -rf "$fresh"
        fail "$dir could not be updated: see above."
    }
    rm -rf "$fresh"
}

main() {
    began=$(date +%s) image_here='' file=$0 dir=$SITE fingerprint='' images='' yes='' update='' start=1 passphrase=''
    while [ $# -gt 0 ]; do
        case $1 in
            --dir | --fingerprint | --images | --passphrase-file)
                [ $# -gt 1 ] || fail "$1 needs a value." 2
                case $1 in
                    --dir) dir=$2 ;;
                    --fingerprint) fingerprint=$2 ;;
                    --images) images=$2 ;;
                    *) passphrase=$2 ;;
                esac
                shift
                ;;
            --yes) yes=1 ;;
            --prepare) start='' ;;
            --update) update=1 ;;
            -h | --help)
                usage
                exit
                ;;
            *)
                usage >&2
                fail "there is no option '$1'." 2
                ;;
        esac
        shift
    done
    # A slash at the end would put the folder's neighbours into it.
    dir=${dir%"${dir##*[!/]}"}
    [ -n "$dir" ] || fail "expected the site's folder after --dir, found none." 2
    case $dir in /*) ;; *) dir=$(pwd)/$dir ;; esac
    case $dir in *[,:]*) fail "expected a folder without a comma or a colon in its path, found $dir." 2 ;; esac
    [ -z "${dir%%*/..*}" ] || dir=${dir%/.}
    check_date
    check_sum
    check_docker
    look
    check_runtime
    check_signature
    lay
    if [ "$ROLE" = site ] && [ -d "$images/environments" ]; then
        step "installing packages of apps from $images"
        "$dir/site" take "$images" >&2 || say "Some packages were not installed: see above. To try again: $dir/site take $images"
    fi
    if [ -n "$OWN_KEY" ] && [ -z "$(value SITE_APPROVED)" ]; then
        "$dir/site" request
        exit
    fi
    if [ -z "$start" ]; then
        say "$SITE is prepared in $dir. Write its settings into site.yml, then: $dir/site start"
        exit
    fi
    step "checking this machine and the way to $SERVER"
    "$dir/site" doctor >&2 || fail "$SITE has not joined: a check failed. Its folder stays. Fix what is named above, \
and run this again."
    step "starting, and waiting until $SITE is ready"
    if ! "$dir/site" start; then
        "$dir/site" stop 2>/dev/null || true
        fail "$SITE has not joined, and is stopped. Its folder stays. Fix what is named above, and run this again."
    fi
    step "done"
    [ "$ROLE" != site ] ||
        say "Settings of the site, such as its data and GPUs: $dir/site.yml. After an edit: $dir/site start"
    say "All verbs: $dir/site"
    [ -n "$OWN_KEY$LOCKED" ] || say "Delete the join file now: it holds the private key of $SITE. The site does not need it again."
}
