#!/bin/sh
# Prints the folder that holds greatest.h 1.5.0, the test framework.
#
# In this order: GREATEST=/path/to/greatest.h, the compiler's include path, build/greatest from
# an earlier run, a clone of its public repository, and the source of Debian's package dunst, which
# carries the same file. Exit status 77, with the reason: there is none, and none could be fetched.
set -eu
cd "$(dirname "$0")/../.."
folder=$PWD/build/greatest
sum=1292593d95c35eeccc89ffa1c91d6fe53b49f81cbf2c2b7758842b7f3186fcc2

cannot() {
    echo "greatest.h 1.5.0 is missing: $1; get it yourself and set GREATEST=/path/to/greatest.h" >&2
    exit 77
}

# Takes greatest.h from standard input; a truncated or different file is not kept.
keep() {
    mkdir -p "$folder"
    cat >"$folder/fetched"
    echo "$sum  $folder/fetched" | sha256sum --check --status &&
        mv "$folder/fetched" "$folder/greatest.h"
}

from_repository() {
    command -v git >/dev/null || return 1
    GIT_TERMINAL_PROMPT=0 timeout 5 git clone --quiet --depth 1 --branch v1.5.0 \
        https://github.com/silentbicycle/greatest "$work/clone" || return 1
    keep <"$work/clone/greatest.h"
}

# Everything apt needs is set up aside, so that the machine's own lists stay as they are.
from_debian() {
    command -v apt-get >/dev/null || return 1
    # shellcheck disable=SC2016 # apt-get's own variable
    archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        'Origin: Debian' 'Label: Debian' | head -n 1)
    [ -n "$archive" ] || return 1
    mkdir -p "$work/lists/partial" "$work/source"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive trixie main" \
        >"$work/sources.list"
    set -- -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=
    apt-get "$@" update || return 1
    (cd "$work/source" && apt-get "$@" source --tar-only --download-only dunst) || return 1
    tar -xOf "$work/source"/dunst_*.orig.tar.* --wildcards '*/test/greatest.h' | keep
}

if [ -n "${GREATEST-}" ]; then
    [ -f "$GREATEST" ] || cannot "GREATEST=$GREATEST is no file"
    dirname "$GREATEST"
    exit
fi
included=$(echo '#include <greatest.h>' | ${CC:-cc} -E - 2>/dev/null |
    sed -n 's|^# 1 "\(.*\)/greatest.h".*|\1|p')
if [ -n "$included" ]; then
    echo "$included"
    exit
fi
if [ ! -f "$folder/greatest.h" ]; then
    [ -z "${NO_SETUP-}" ] || cannot "not fetched yet, and NO_SETUP is set"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    from_repository >"$work/log" 2>&1 || from_debian >>"$work/log" 2>&1 ||
        cannot "$(tail -n 1 "$work/log")"
fi
echo "$folder"
