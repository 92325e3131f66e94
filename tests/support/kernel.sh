#!/bin/sh
# Usage: kernel.sh SERIES          SERIES: 6.12 or 6.1
#
# Prints the folder of a stock Debian kernel of that series: vmlinuz, release, and lib/modules.
# It is fetched once into build/kernels (no root needed). Exit status 77, with the reason: cannot.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

series=$1
folder=build/kernels/$series

cannot() {
    echo "no Linux $series: $1" >&2
    exit 77
}

if [ -f "$folder/vmlinuz" ]; then
    echo "$folder"
    exit
fi
[ -z "${NO_SETUP-}" ] || cannot "not fetched yet, and NO_SETUP is set"
for tool in apt-get dpkg depmod; do
    command -v $tool >/dev/null || cannot "$tool is missing, it comes as a Debian package"
done

# The meta packages follow Debian's updates, so no version that vanishes tomorrow is named here.
case $series in
6.1) meta=linux-image-cloud-amd64 ;;
*) meta=linux-image-$series-cloud-amd64 ;;
esac
package=$(apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
case $package in
"linux-image-$series."*) ;;
*) cannot "$meta does not lead to a kernel $series here" ;;
esac

# Unpacked beside its final place and moved there whole: a half-done folder is never taken for good.
mkdir -p build/kernels
fresh=$(mktemp -d build/kernels/fresh.XXXXXX)
trap 'rm -rf "$fresh"' EXIT
(cd "$fresh" && apt-get download -qq "$package") >"$fresh/log" 2>&1 ||
    cannot "apt-get download $package: $(tail -n 1 "$fresh/log")"
dpkg -x "$fresh"/*.deb "$fresh/root"

release=${package#linux-image-}
mkdir "$fresh/kernel"
mv "$fresh/root/boot/vmlinuz-$release" "$fresh/kernel/vmlinuz"
mv "$fresh/root/lib" "$fresh/kernel/lib"
echo "$release" >"$fresh/kernel/release"
depmod -b "$fresh/kernel" "$release"
rm -rf "$folder"
mv "$fresh/kernel" "$folder"
echo "$folder"
