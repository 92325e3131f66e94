# shellcheck shell=bash
# To be sourced: what an initial file system in the folder $root is made of.
: "${root:?}"

# The file at its place, with the shared libraries it was linked to.
add_file() {  # FILE PLACE
    install -D "$1" "$root$2"
    ldd "$1" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
        install -D "$library" "$root$library"
    done || true
}

# What a program loads by itself.
loaded_by() {  # NAME
    case $1 in
    dpdk-testpmd)
        ls /usr/lib/*/dpdk/pmds-*/librte_{net_vhost,mempool_ring}.so.*.* /lib/*/libgcc_s.so.1
        ;;
    esac
}

add_program() {  # FILE
    local name library
    name=$(basename "$1")
    add_file "$1" "/bin/$name"
    for library in $(loaded_by "$name"); do
        add_file "$library" "$library"
    done
}

# The modules of a kernel, with those they need, in /modules; /modules/order has them in loading
# order. Prints the name of one that there is not, and fails.
add_modules() {  # KERNEL MODULE...
    local kernel=$1 release module file name
    release=$(cat "$kernel/release")
    shift
    mkdir -p "$root/modules"
    for module; do
        modprobe -d "$kernel" -S "$release" --show-depends "$module" >"$root.closure" 2>&1 || {
            echo "$module"
            return 1
        }
        awk '$1 == "insmod" { print $2 }' "$root.closure" >>"$root.files"
    done
    [ ! -e "$root.files" ] || awk '!seen[$0]++' "$root.files" | while read -r file; do
        name=$(basename "${file%.xz}")
        case $file in
        *.xz) xz -dc "$file" >"$root/modules/$name" ;;
        *) cp "$file" "$root/modules/$name" ;;
        esac
        echo "$name"
    done >"$root.order"
    [ ! -e "$root.order" ] || mv "$root.order" "$root/modules/order"
}

# busybox as /bin/sh, and INIT as the first process.
add_base() {  # INIT
    mkdir -p "$root"/{dev,proc,sys,tmp,bin}
    install "$1" "$root/init"
    add_program "$(type -P busybox)"
    ln -s busybox "$root/bin/sh"
}

pack() {  # IMAGE
    (cd "$root" && find . | cpio -o -H newc --quiet) >"$1"
}
