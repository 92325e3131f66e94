#!/usr/bin/env bash
# Usage: vm.sh [-p "TOOL..."] [-f "FILE..."] [-m MIB] SERIES "MODULE..." PROGRAM [ARGUMENT...]
#
# Runs a program as root on a stock Debian kernel (6.12 or 6.1), with these kernel modules loaded
# and these programs of the host beside it in /bin (where /bin/sh is busybox) and files in /, in a
# virtual machine made for this one run. If back-ends are among them, it starts them as on the host,
# by tests/support/real_backend.sh. Prints what the program printed. The exit status is the
# program's; 77, with the reason, when no such machine can be had; 124 when it took too long; 125
# when the guest died before the program ended.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin

tools='' files='' memory=512
while getopts p:f:m: option; do
    case $option in
    p) tools=$OPTARG ;;
    f) files=$OPTARG ;;
    m) memory=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
series=$1 modules=$2 program=$3
shift 3

cannot() {
    echo "cannot run on Linux $series: $1" >&2
    exit 77
}

for tool in qemu-system-x86_64 busybox modprobe cpio xz; do
    [ "$(type -t $tool)" ] || cannot "$tool is missing (tests/support/setup.sh vm)"
done
kernel=$top/$("$top/tests/support/kernel.sh" "$series")
case $modules in
*vdpa_sim*) "$top/tests/support/vdpa_sim.sh" "$series" >/dev/null ;;
esac
for tool in $tools; do
    [ "$(type -P "$tool")" ] || cannot "$tool is missing (tests/support/setup.sh vm vdpa backends)"
done

work=$(mktemp -d "$top/build/vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
. "$top/tests/support/initrd.sh"

add_base "$top/tests/support/vm/init"
for tool in $tools; do
    add_program "$(type -P "$tool")"
done
for file in $files; do
    install -D "$file" "$root/$(basename "$file")"
done
add_program "$program"
install -D "$top"/tests/support/real_backend.sh "$root"/tests/support/real_backend.sh
printf '%q ' "/bin/$(basename "$program")" "$@" >"$root/command"
# shellcheck disable=SC2086 # a list of words
missing=$(add_modules "$kernel" $modules) || cannot "it has no module $missing"
pack "$work/initrd"

# Emulation unless the processor really has virtualization: a /dev/kvm without it (a software KVM)
# opens, but a stock kernel takes minutes to boot on it, or dies.
accel=(-accel tcg -cpu max)
if grep -qw -e svm -e vmx /proc/cpuinfo && [ -w /dev/kvm ]; then
    accel=(-accel kvm -cpu host)
fi

# Serial ports go to files: fed from /dev/null, a guest's terminal now and then reads a flood of
# zeros. An oops is a panic is the end (-no-reboot), so a kernel that was hurt cannot pass. (The
# kernel's check of its timer would panic when a busy machine is too slow for it.)
qemu=0
timeout 120 qemu-system-x86_64 "${accel[@]}" -m "$memory" -nodefaults -no-user-config \
    -display none -no-reboot -kernel "$kernel/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 oops=panic no_timer_check ipv6.disable=1" \
    -serial "file:$work/console" -serial "file:$work/output" -serial "file:$work/status" \
    || qemu=$?

cat "$work/output"
# A guest that dies also ends QEMU with 0: only a status that came out of the guest counts.
status=$(cat "$work/status")
if [ -z "$status" ]; then
    echo "Linux $series did not finish (QEMU exit status $qemu), its console:" >&2
    cat "$work/console" >&2
    [ $qemu -eq 124 ] || qemu=125
    exit $qemu
fi
exit "$status"
