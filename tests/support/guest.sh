#!/usr/bin/env bash
# Usage: guest.sh SERIES INIT "MODULE..." [PROGRAM...]
#
# Prints the folder of a guest for examples/kvm_vmm: vmlinux, a stock Debian kernel of that series
# (6.12) as an ELF file, and initrd, whose first process is INIT, with these modules of the kernel
# in /modules and these programs beside busybox. Exit status 77, with the reason: cannot.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin

series=$1 init=$2 modules=$3
shift 3
folder=$top/build/guest/$series

cannot() {
    echo "no guest with Linux $series: $1" >&2
    exit 77
}

for tool in busybox modprobe cpio xz zstd; do
    [ "$(type -t $tool)" ] || cannot "$tool is missing (tests/support/setup.sh vm)"
done
kernel=$top/$("$top/tests/support/kernel.sh" "$series")
mkdir -p "$folder"

number() {  # FORMAT OFFSET: of the setup header (the kernel's Documentation/arch/x86/boot.rst)
    od -An "-t$1" -j "$2" -N "${1#u}" "$kernel/vmlinuz" | tr -d ' '
}

# The ELF file stands compressed in vmlinuz, behind setup_sects + 1 sectors, and its size behind it.
unpack_kernel() {
    local begin=$((($(number u1 $((0x1f1))) + 1) * 512 + $(number u4 $((0x248)))))
    local size=$(($(number u4 $((0x24c))) - 4))
    head -c $((begin + size)) "$kernel/vmlinuz" | tail -c $size | zstd -dcq
}

if [ ! -e "$folder/vmlinux" ]; then
    unpack_kernel >"$folder/vmlinux.new" || cannot "its vmlinuz is not packed by zstd"
    mv "$folder/vmlinux.new" "$folder/vmlinux"
fi

work=$(mktemp -d "$top/build/guest/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
. "$top/tests/support/initrd.sh"
add_base "$init"
for program; do
    add_program "$program"
done
# shellcheck disable=SC2086 # a list of words
missing=$(add_modules "$kernel" $modules) || cannot "it has no module $missing"
pack "$work/initrd"
mv "$work/initrd" "$folder/initrd"
echo "$folder"
