#!/bin/sh
# Usage: demo.sh                        in the folder of kvm_vmm, vsock_echo, vmlinux, initrd, disk
#
# What users do with a hypervisor, on examples/kvm_vmm.c, and that nothing is lost: step by step,
# and as the last line "guest: ok (...)". Needs root, /dev/kvm, and busybox.
set -eu
work=$(mktemp -d /tmp/kvm_vmm.XXXXXX)
guest=10.0.0.1
cid=42
arguments="console=ttyS0 quiet panic=-1 reboot=a pci=off nokaslr mitigations=off tsc=reliable \
ipv6.disable=1"
net=
begin=$(date +%s)
patience=30 # seconds: under emulation, beside other work
real_backend=$(dirname "$0")/../../tests/support/real_backend.sh

# ---- what it says --------------------------------------------------------------------------------

step() {
    echo "$(($(date +%s) - begin)) s: $1"
}

fail() {
    echo "the console:"
    tail -n 30 "$work"/*.log || true
    echo "guest: FAILED ($1)"
    exit 1
}

end() {
    # shellcheck disable=SC2046 # a list of words
    kill -9 $(cat "$work"/*.pid) 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

# Tries something until it succeeds.
within() {  # COMMAND...
    limit=$(($(date +%s) + patience))
    until "$@" >"$work/tried" 2>&1; do
        [ "$(date +%s)" -lt $limit ] || fail "$* in time: $(cat "$work/tried")"
        sleep 0.1
    done
}

# ---- the machine ---------------------------------------------------------------------------------

start_disk() {  # NAME: it listens on $work/NAME
    qemu-storage-daemon --blockdev "driver=file,locking=off,node-name=disk,filename=$work/image" \
        --export "type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,\
addr.path=$work/$1" --pidfile "$work/$1.pid" &
    within test -s "$work/$1.pid"
}

# A network in another process, if it is here. It polls all the time: at the lowest priority.
start_net() {  # NAME: it listens on $work/NAME/socket
    [ "$(command -v dpdk-testpmd)" ] || return 0
    mkdir "$work/$1"
    sh "$real_backend" net "$work/$1" >"$work/$1/log" 2>&1 <"$work/forever" &
    echo $! >"$work/$1.pid"
    within test -S "$work/$1/socket"
    # shellcheck disable=SC2046 # its threads
    renice -n 19 -p $(ls "/proc/$(cat "$work/$1.pid")/task") >/dev/null
    net="net=$work/$1/socket"
}

vmm() {  # NAME OPTION...
    name=$1
    shift
    mkfifo "$work/$name.in"
    # shellcheck disable=SC2086 # $net is an option, or none
    kvm_vmm kernel=vmlinux initrd=initrd ram=192 tap=tap0 vsock=$cid $net "$@" \
        arguments="$arguments" \
        <"$work/$name.in" >"$work/$name.log" 2>&1 &
    echo $! >"$work/$name.pid"
}

# Runs a line of shell in the guest.
ask() {
    echo "$1" | timeout 10 busybox nc $guest 1000 || true
}

tell() {  # and does not wait for it
    ask "setsid sh -c 'sleep 0.1; $1' </dev/null >/dev/null 2>&1 &"
}

check_net() {  # each frame comes back
    [ "$net" ] || return 0
    echoes=$(ask '/init echoes')
    [ "$echoes" = 3 ] || fail "of 3 frames to the other network, $echoes came back"
}

check() {  # of all that it has
    ping -c 3 -i 0.1 $guest >/dev/null || fail "ping"
    [ "$(ask '/init files')" = "file: OK" ] || fail "the hash of a file"
    check_net
    within vsock_echo $cid "is anybody there?"
}

worked() {  # blocks, so far
    ask 'cat /tmp/worked 2>/dev/null || echo 0'
}

worked_more() {
    [ "$(worked)" -gt "${before:-0}" ]
}

works() {  # the disk goes on
    before=$(worked)
    within worked_more
}

memory() {  # kB
    ask "sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo"
}

grown() {
    [ "$(memory)" -gt $((small + 100000)) ]
}

booted() {  # TIMES
    [ "$(grep -c 'guest: up' "$work/first.log")" = "$1" ]
}

stopped() {
    [ "$(ask 'cat /tmp/work.end')" = good ]
}

# ---- its life ------------------------------------------------------------------------------------

mkfifo "$work/forever"
exec 5<>"$work/forever"
cp disk "$work/image"
start_disk disk
start_net net
vmm first disk="$work/disk"
exec 3>"$work/first.in"
within ip link set tap0 up
ip addr add 10.0.0.2/24 dev tap0
within booted 1
check
step "booted: ping, a file system's hash, vsock"

tell 'reboot -f'
within booted 2
check
step "rebooted"

tell '/init rebind'
sleep 1
within ping -c 1 -W 1 $guest
check
step "drivers unbound and bound"

tell '/init work'
works
small=$(memory)
[ "$small" ] || fail "asking for the size of memory"
echo plug >&3
within grown
works
step "memory plugged in under load"

kill -9 "$(cat "$work/disk.pid")"
rm "$work/disk.pid"
within grep -q 'the back-end is gone' "$work/first.log"
start_disk disk
works
step "the disk's back-end killed, and back"

start_disk disk2
(net='' && vmm dies disk="$work/disk2" incoming="$work/nowhere")
exec 6>"$work/dies.in"
within test -S "$work/nowhere"
echo "migrate $work/nowhere" >&3
within test ! -S "$work/nowhere"
kill -9 "$(cat "$work/dies.pid")"
within grep -q 'vmm: not migrated' "$work/first.log"
works
within vsock_echo $cid "is anybody still there?"
step "a migration to a process that died: it goes on here"

start_net net2
vmm second disk="$work/disk2" incoming="$work/migration"
exec 4>"$work/second.in"
within test -S "$work/migration"
echo "migrate $work/migration" >&3
within grep -q 'vmm: migrated' "$work/first.log"
works
step "migrated: $(sed -n 's/vmm: migrated: //p' "$work/first.log")"

ask 'touch /tmp/stop; killall -INT ping'
within stopped
lost=$(ask '/init lost')
[ "$lost" = "none of" ] || fail "$lost pings were lost"
blocks=$(worked)
check
tell 'poweroff -f'
wait "$(cat "$work/second.pid")" || fail "the exit status"
step "switched off"
echo "guest: ok ($blocks blocks written and read)"
