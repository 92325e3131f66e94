#!/bin/sh
# Usage: real_backend.sh NAME FOLDER ["OPTION..."]
#        real_backend.sh needs "NAME..." PROGRAM [ARGUMENT...]
#
# Becomes (exec) a real vhost-user back-end, which listens on FOLDER/socket and keeps all of its
# files in FOLDER (but for the pid file of virtiofsd, in /var/run/virtiofsd). It ends by a signal;
# virtiofsd also with its first client, testpmd with the end of its standard input.
#
#     blk       QEMU's storage daemon     queues=1 file=disk.raw (1 MiB if it is not there)
#                                         writable=on
#     net       DPDK's testpmd: frames    queues=1 iommu=0 postcopy=0
#               come back, their MAC      client=0 (1: it connects to FOLDER/socket)
#               addresses swapped
#     fs        QEMU's virtiofsd          share=share (a folder, made if it is not there)
#     gpu       QEMU's vhost-user-gpu
#     dpdk_blk  DPDK's example vhost_blk
#     crypto    DPDK's example vhost_crypto
#
# The second form runs a program that starts such back-ends. Exit status 77, with the reason: one of
# them cannot be had here.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)

program_of() {
    case $1 in
    blk) echo qemu-storage-daemon ;;
    net) echo dpdk-testpmd ;;
    fs) echo /usr/lib/qemu/virtiofsd ;;
    gpu) echo "$top/build/backends/vhost-user-gpu" ;;
    dpdk_blk) echo "$top/build/backends/vhost_blk" ;;
    crypto) echo "$top/build/backends/vhost_crypto" ;;
    *)
        echo "real_backend.sh: $1?" >&2
        exit 2
        ;;
    esac
}

cannot() {
    echo "cannot run the back-end $1: $2" >&2
    exit 77
}

if [ "$1" = needs ]; then
    for name in $2; do
        program=$(program_of "$name")
        path=$(command -v "$program") ||
            cannot "$name" "${program##*/} is missing (tests/support/setup.sh backends)"
        ! ldd "$path" | grep 'not found' ||
            cannot "$name" "a library is missing (tests/support/setup.sh backends)"
        [ "$name" != fs ] || [ "$(id -u)" -eq 0 ] || cannot fs "virtiofsd wants to be root"
    done
    shift 2
    exec "$@"
fi

name=$1
cd "$2"
program=$(program_of "$name")

queues=1 file=disk.raw writable=on iommu=0 postcopy=0 client=0 share=share
for option in ${3-}; do
    case $name:$option in
    blk:queues=* | blk:file=* | blk:writable=* | fs:share=*) export "${option?}" ;;
    net:queues=* | net:iommu=* | net:postcopy=* | net:client=*) export "${option?}" ;;
    *)
        echo "real_backend.sh: $name has no $option" >&2
        exit 2
        ;;
    esac
done

# DPDK does not take the place of a dead socket.
[ "$client" = 1 ] || rm -f socket vhost.socket

# No huge pages and no devices; two threads on any of the processors; its files here.
dpdk() {
    cpus=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)
    RUNTIME_DIRECTORY=$PWD exec "$program" --no-huge -m 256 --no-pci --no-telemetry \
        --lcores "0@($cpus),1@($cpus)" "$@"
}

case $name in
blk)
    [ -e "$file" ] || truncate -s 1M "$file"
    exec "$program" --blockdev "driver=file,node-name=file,filename=$file" \
        --export "type=vhost-user-blk,id=disk,node-name=file,addr.type=unix,addr.path=$PWD/socket,\
num-queues=$queues,writable=$writable"
    ;;
net)
    # --no-flush-rx: frames that wait in the rings when it comes are not thrown away.
    dpdk --vdev "net_vhost0,iface=$PWD/socket,queues=$queues,client=$client,\
iommu-support=$iommu,postcopy-support=$postcopy" -- --forward-mode=macswap --port-topology=loop \
        --total-num-mbufs=8192 --auto-start "--rxq=$queues" "--txq=$queues" --no-mlockall \
        --no-flush-rx
    ;;
fs)
    mkdir -p "$share"
    exec "$program" "--socket-path=$PWD/socket" -o "source=$(realpath "$share")" -o sandbox=chroot \
        -o cache=none
    ;;
gpu)
    exec "$program" "--socket-path=$PWD/socket"
    ;;
dpdk_blk)
    ln -s vhost.socket socket
    dpdk
    ;;
crypto)
    dpdk --vdev crypto_openssl -- --socket-file "1,$PWD/socket" --config '(1,0,0)'
    ;;
esac
