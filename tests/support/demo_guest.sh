#!/usr/bin/env bash
# Usage: demo_guest.sh
#
# Runs examples/kvm_vmm/demo.sh: here where the processor has virtualization and we are root, else
# in the virtual machine of vm.sh, whose emulated processor has it. The exit status is that of the
# demonstration; 77, with the reason: it cannot run.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top"
PATH=$PATH:/usr/sbin:/sbin
series=6.12
limit=130 # seconds: under emulation, beside other work; some 40 are usual
programs=(build/examples/kvm_vmm build/guest/vsock_echo)
guest_modules="virtio_mmio virtio_net virtio_blk vmw_vsock_virtio_transport"

for tool in qemu-storage-daemon mke2fs; do
    [ "$(type -t $tool)" ] || {
        echo "no demonstration of a guest: $tool is missing (tests/support/setup.sh vm backends)"
        exit 77
    }
done
guest=$(tests/support/guest.sh $series examples/kvm_vmm/guest_init "$guest_modules" \
    build/guest/vsock_echo)
work=$(mktemp -d "$top/build/guest/demo.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A file system, and as much behind it.
make_disk() {
    mkdir "$work/files"
    head -c 3000000 /dev/urandom >"$work/files/file"
    (cd "$work/files" && sha256sum file >sums)
    truncate -s 16M "$work/disk"
    mke2fs -q -t ext4 -d "$work/files" "$work/disk" 8M
}

can_run_here() {
    grep -qw -e svm -e vmx /proc/cpuinfo && [ "$(id -u)" -eq 0 ] || return 1
    modprobe -aq kvm_amd kvm_intel vhost_net vhost_vsock tun || true
    [ -e /dev/kvm ] && [ -e /dev/vhost-net ] && [ -e /dev/vhost-vsock ] && [ -e /dev/net/tun ]
}

run_here() {
    cp "$guest/vmlinux" "$guest/initrd" "${programs[@]}" "$work"
    (cd "$work" && PATH=$work:$PATH timeout $limit unshare -n "$top/examples/kvm_vmm/demo.sh")
}

run_in_vm() {
    local tools="${programs[*]} qemu-storage-daemon"
    [ ! "$(type -t dpdk-testpmd)" ] || tools="$tools dpdk-testpmd"
    timeout $limit tests/support/vm.sh -m 2048 -p "$tools" \
        -f "$guest/vmlinux $guest/initrd $work/disk" $series \
        "kvm_amd vhost_net vhost_vsock tun" examples/kvm_vmm/demo.sh
}

run() {
    if can_run_here; then
        run_here
    else
        run_in_vm
    fi
}

make_disk
status=0
run || status=$?
if [ $status -eq 124 ]; then
    echo "It hung; once more."
    status=0
    run || status=$?
fi
exit $status
