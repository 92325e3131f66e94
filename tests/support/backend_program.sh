#!/bin/sh
# Usage: backend_program.sh NAME          NAME: vhost-user-gpu, vhost_blk or vhost_crypto
#
# Prints the path of a vhost-user back-end that Debian has, but not ready for use: QEMU's GPU comes
# with all of QEMU's user interfaces, and DPDK's examples as sources. It is fetched once into
# build/backends (no root needed; DPDK's need libdpdk-dev). Exit status 77, with the reason: cannot.
set -eu
cd "$(dirname "$0")/../.."
name=$1
folder=build/backends

cannot() {
    echo "no $name: $1" >&2
    exit 77
}

# Everything is made beside its final place and moved there whole.
unpack() {  # PACKAGE
    (cd "$fresh" && apt-get download -qq "$1") >"$fresh/log" 2>&1 ||
        cannot "apt-get download $1: $(tail -n 1 "$fresh/log")"
    dpkg -x "$fresh/$1"_*.deb "$fresh/root"
}

case $name in
vhost-user-gpu | vhost_blk | vhost_crypto) ;;
*)
    echo "backend_program.sh: $name?" >&2
    exit 2
    ;;
esac
if [ -x "$folder/$name" ]; then
    echo "$folder/$name"
    exit
fi
[ -z "${NO_SETUP-}" ] || cannot "not fetched yet, and NO_SETUP is set"
for tool in apt-get dpkg; do
    command -v $tool >/dev/null || cannot "$tool is missing"
done
mkdir -p $folder
fresh=$(mktemp -d "$folder/fresh.XXXXXX")
trap 'rm -rf "$fresh"' EXIT

if [ "$name" = vhost-user-gpu ]; then
    unpack qemu-system-gui
    built=$fresh/root/usr/lib/qemu/vhost-user-gpu
    [ -x "$built" ] || cannot "qemu-system-gui does not have it here"
else
    pkg-config --exists libdpdk 2>/dev/null || cannot "libdpdk-dev is missing"
    unpack dpdk-doc
    built=$fresh/program
    # vhost_blk looks for the protocol feature INFLIGHT_SHMFD (bit 12) among the virtio features,
    # and never finds it: then it neither does requests in flight again, nor packed rings. When it
    # has done them again, it frees what malloc did not give, and dies.
    cat >"$fresh/fix.h" <<'END'
#include <rte_vhost.h>
#include <stdlib.h>
static inline int fixed_features(int vid, uint64_t *features)
{
    uint64_t protocol = 0;
    int result = rte_vhost_get_negotiated_features(vid, features);
    (void)rte_vhost_get_negotiated_protocol_features(vid, &protocol);
    *features |= protocol & 1ULL << 12;
    return result;
}
#define rte_vhost_get_negotiated_features fixed_features
#define free(memory) ((void)(memory))
END
    # shellcheck disable=SC2046 # lists of words
    ${CC:-cc} -O2 -w -D_GNU_SOURCE -DALLOW_EXPERIMENTAL_API $(pkg-config --cflags libdpdk) \
        -include "$fresh/fix.h" \
        "$fresh/root/usr/share/dpdk/examples/$name"/*.c -o "$built" \
        $(pkg-config --libs libdpdk) >"$fresh/log" 2>&1 ||
        cannot "its compilation fails: $(tail -n 1 "$fresh/log")"
fi
mv "$built" "$folder/$name"
echo "$folder/$name"
