#!/bin/sh
# Usage: setup.sh WHAT...          WHAT: greatest, c++, clang, valgrind, analysis, platforms, vm,
#                                  vdpa, backends
#
# Makes sure that what the tests need is there: packages by apt-get, as root on Debian; greatest.h,
# the kernels of the virtual machine and some vhost-user back-ends into build/. Says first what it
# is about to do, and nothing when all is there. NO_SETUP=1 forbids it to change anything. What is
# missing in the end is named, with the remedy and the price, and the exit status is 77.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
mkdir -p build

price() {
    case $1 in
    greatest) echo "all suites" ;;
    c++) echo "the implementation as C++ by g++" ;;
    clang) echo "sanitizers, fuzzing, coverage, C++ by clang++, format check" ;;
    valgrind) echo "the unit tests under valgrind" ;;
    analysis) echo "static analysis, older and newer compilers, the core by tcc and mingw" ;;
    platforms) echo "the unit tests on s390x, armhf and aarch64, and with musl" ;;
    vm) echo "everything that runs on a real kernel" ;;
    vdpa) echo "vhost-vdpa on a real kernel" ;;
    backends) echo "everything that runs with real vhost-user back-ends" ;;
    esac
}

command_of() {  # COMMAND PACKAGE
    command -v "$1" >/dev/null || packages="$packages $2"
}

get() {
    case $1 in
    greatest.h) tests/support/greatest.sh ;;
    Linux-*) tests/support/kernel.sh "${1#Linux-}" ;;
    vDPA-simulator-*) tests/support/vdpa_sim.sh "${1#vDPA-simulator-}" ;;
    vhost*) tests/support/backend_program.sh "$1" ;;
    esac >/dev/null
}

fetched() {
    NO_SETUP=1 get "$1" 2>/dev/null || files="$files $1"
}

sanitizers_link() {
    echo 'int main(void) { return 0; }' |
        clang -fsanitize=address,undefined -x c -o build/setup.probe - 2>/dev/null
}

# Finds what is missing: $packages, $files, and what is skipped without them: $prices.
look() {
    packages='' files='' prices=''
    for what; do
        before=$packages$files
        case $what in
        greatest) fetched greatest.h ;;
        c++) command_of g++ g++ ;;
        clang)
            command_of clang clang
            command_of clang-format clang-format
            command_of llvm-cov llvm
            # Debian's clang only recommends the package with its sanitizers.
            sanitizers_link || packages="$packages libclang-rt-dev"
            ;;
        valgrind) command_of valgrind valgrind ;;
        analysis)
            command_of clang-tidy clang-tidy
            command_of cppcheck cppcheck
            command_of gcc-11 gcc-11
            command_of clang-13 clang-13
            command_of clang-19 clang-19
            command_of tcc tcc
            command_of x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64-win32
            ;;
        platforms)
            command_of s390x-linux-gnu-gcc "gcc-s390x-linux-gnu libc6-dev-s390x-cross"
            command_of arm-linux-gnueabihf-gcc "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"
            command_of aarch64-linux-gnu-gcc "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
            command_of qemu-s390x-static qemu-user-static
            command_of musl-gcc musl-tools
            ;;
        vm)
            command_of qemu-system-x86_64 qemu-system-x86
            command_of busybox busybox-static
            command_of depmod kmod
            command_of cpio cpio
            command_of xz xz-utils
            command_of zstd zstd
            command_of mke2fs e2fsprogs
            fetched Linux-6.12
            fetched Linux-6.1
            ;;
        vdpa)
            command_of vdpa iproute2
            command_of qemu-storage-daemon qemu-system-common
            # To build kernel modules with.
            command_of gcc gcc
            command_of make make
            command_of xz xz-utils
            ldconfig -p | grep -q libelf.so.1 || packages="$packages libelf1"
            fetched vDPA-simulator-6.12
            ;;
        backends)
            command_of qemu-storage-daemon qemu-system-common
            command_of pkg-config pkg-config
            command_of dpdk-testpmd dpdk-dev
            ldconfig -p | grep -q libvirglrenderer.so.1 || packages="$packages libvirglrenderer1"
            fetched vhost-user-gpu
            fetched vhost_blk
            fetched vhost_crypto
            ;;
        *)
            echo "setup.sh: $what?" >&2
            exit 2
            ;;
        esac
        [ "$before" = "$packages$files" ] || prices="$prices; $(price "$what")"
    done
    [ -z "$packages$files" ]
}

look "$@" && exit

if [ -z "${NO_SETUP-}" ]; then
    root=
    if [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ]; then
        root=yes
    fi
    [ -z "$root" ] || [ -z "$packages" ] || echo "setup: apt-get installs$packages"
    [ -z "$files" ] || echo "setup: fetches into build/:$files"

    if [ -n "$root" ]; then
        # Fails when any of the machine's sources fails, also one that does not matter here.
        apt-get update >build/setup.log 2>&1 || true
        # shellcheck disable=SC2086 # a list of words
        [ -z "$packages" ] || DEBIAN_FRONTEND=noninteractive apt-get install -y \
            --no-install-recommends $packages >>build/setup.log 2>&1 || tail -n 3 build/setup.log
    fi
    look "$@" || for file in $files; do
        get "$file" || true
    done
    look "$@" && exit
fi

[ -z "$packages" ] || echo "setup: missing, to be had with: apt-get install$packages"
[ -z "$files" ] || echo "setup: missing in build/:$files, to be had with: tests/support/setup.sh $*"
echo "setup: skipped for want of them:${prices#;}"
exit 77
