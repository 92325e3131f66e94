#!/bin/sh
# Usage: vdpa_sim.sh SERIES        SERIES: 6.12
#
# Prints the folder of Linux's simulated vDPA devices, vdpa_sim_net and vdpa_sim_blk, for the kernel
# that kernel.sh fetched. Debian leaves them out: they are built once from the sources of that very
# kernel, and put among its modules (no root needed). Exit status 77, with the reason: cannot.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

series=$1
kernel=$(tests/support/kernel.sh "$series")
release=$(cat "$kernel/release")
modules=$kernel/lib/modules/$release

cannot() {
    echo "no vDPA simulator for Linux $series: $1" >&2
    exit 77
}

# depmod comes last: what it lists is there whole.
if grep -q '/vdpa_sim_net\.ko:' "$modules/modules.dep"; then
    echo "$modules/extra"
    exit
fi
grep -q '/vdpa\.ko.*:' "$modules/modules.dep" || cannot "that kernel has no vDPA"
[ -z "${NO_SETUP-}" ] || cannot "not built yet, and NO_SETUP is set"

fresh=$(mktemp -d build/kernels/fresh.XXXXXX)
trap 'rm -rf "$fresh"' EXIT

# The kernel's banner tells its exact version: the meta packages may have moved on since.
version=$(grep -ao 'SMP [A-Z_]* Debian [0-9][^ ]*' "$kernel/vmlinuz" | head -n 1)
version=${version##* }
common=${release%-cloud-amd64}
download() {
    (cd "$fresh" && apt-get download -qq "$1=$version") >"$fresh/log" 2>&1 ||
        cannot "$(tail -n 1 "$fresh/log") (rm -r $kernel makes room for a newer kernel)"
}
for package in "linux-headers-$release" "linux-headers-$common-common" "linux-kbuild-$common"; do
    download "$package"
    dpkg -x "$fresh/$package"_*.deb "$fresh/root"
    rm "$fresh/$package"_*.deb
done

# All of Linux is one compressed file: read up to the last of these five, and complaints about that
# are nothing; a file that is missing is told by make.
source=linux-source-$series
download "$source"
mkdir "$fresh/extra"
dpkg --fsys-tarfile "$fresh/$source"_*.deb 2>"$fresh/log" |
    tar -xO "./usr/src/$source.tar.xz" 2>>"$fresh/log" | xz -dc -T0 2>>"$fresh/log" |
    tar -xf - -C "$fresh/extra" --transform 's|.*/||' --occurrence=1 \
        "$source"/drivers/vdpa/vdpa_sim/vdpa_sim.c "$source"/drivers/vdpa/vdpa_sim/vdpa_sim.h \
        "$source"/drivers/vdpa/vdpa_sim/vdpa_sim_net.c \
        "$source"/drivers/vdpa/vdpa_sim/vdpa_sim_blk.c "$source"/drivers/vhost/vringh.c \
        2>>"$fresh/log" || cannot "its sources: $(tail -n 1 "$fresh/log")"
echo 'obj-m := vringh.o vdpa_sim.o vdpa_sim_net.o vdpa_sim_blk.o' >"$fresh/extra/Kbuild"

# The headers believe to be installed, beside the compiler of the kernel: any gcc will do. No type
# information for BPF: it takes a program (pahole) that nothing here needs.
headers=$PWD/$fresh/root/usr/src/linux-headers-$release
sed -i "s|^include /usr/src|include $PWD/$fresh/root/usr/src|" "$headers/Makefile"
env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS make -j"$(nproc)" -C "$headers" "M=$PWD/$fresh/extra" \
    CC=gcc CONFIG_DEBUG_INFO_BTF_MODULES= modules >"$fresh/log" 2>&1 ||
    cannot "make: $(grep -m 1 -i -e error -e 'not found' "$fresh/log" || tail -n 1 "$fresh/log")"

strip --strip-debug "$fresh/extra"/*.ko
find "$fresh/extra" ! -name '*.ko' -type f -delete
rm -rf "$modules/extra"
mv "$fresh/extra" "$modules/extra"
depmod -b "$kernel" "$release"
echo "$modules/extra"
