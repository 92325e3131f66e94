#!/bin/sh
# Usage: demo.sh                        in the folder of kvm_vmm, vsock_echo, vmlinux, initrd, disk
#
# What users do with a hypervisor, on examples/kvm_vmm.c, and that nothing is lost: step by step,
# and as the last line "guest: ok (...)". Needs root, /dev/kvm, and busybox.
set -eu
work=$(mktemp -d /tmp/kvm_vmm.XXXXXX)
guest=10.0.0.1
cid=42
begin=$(date +%s)

# ---- what it says --------------------------------------------------------------------------------

step() {
    echo "$(($(date +%s) - begin)) s: $1"
}

fail() {
    echo "the console:"
    tail -n 30 "$work"/*.log
    echo "guest: FAILED ($1)"
    exit 1
}

end() {
    kill -9 "$(cat "$work/disk.pid")" $(jobs -p) 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

# Tries something until it succeeds, for so many seconds.
within() {  # SECONDS COMMAND...
    limit=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt $limit ] || fail "$* in time"
        sleep 0.1
    done
}

# ---- the machine ---------------------------------------------------------------------------------

start_disk() {  # NAME: it listens on $work/NAME
    qemu-storage-daemon --blockdev "driver=file,locking=off,node-name=disk,filename=$work/image" \
        --export "type=vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,\
addr.path=$work/$1" --pidfile "$work/disk.pid" &
    within 5 test -s "$work/disk.pid"
}

vmm() {  # NAME OPTION...
    name=$1
    shift
    mkfifo "$work/$name.in"
    kvm_vmm kernel=vmlinux initrd=initrd ram=192 tap=tap0 vsock=$cid "$@" \
        arguments="console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable pci=off" \
        <"$work/$name.in" >"$work/$name.log" 2>&1 &
    echo $! >"$work/$name.pid"
}

# Runs a line of shell in the guest.
ask() {
    echo "$1" | busybox nc -w 5 $guest 1000
}

check() {  # of all that it has
    ping -c 3 -i 0.1 $guest >/dev/null || fail "ping"
    [ "$(ask 'mount -t ext4 -o ro /dev/vda /mnt && cd /mnt && sha256sum -c sums; cd /; umount /mnt')" = \
        "file: OK" ] || fail "the hash of a file"
    within 5 vsock_echo $cid "is anybody there?"
}

worked_more() {
    now=$(ask 'cat /tmp/worked')
    [ "${now:-0}" -gt "$worked" ]
}

works() {  # the disk goes on
    worked=$(ask 'cat /tmp/worked' || echo 0)
    within 10 worked_more
}

# ---- its life ------------------------------------------------------------------------------------

cp disk "$work/image"
start_disk disk
vmm first disk="$work/disk"
exec 3>"$work/first.in"
within 5 ip link set tap0 up
ip addr add 10.0.0.2/24 dev tap0
within 20 grep -q 'guest: up' "$work/first.log"
check
step "booted: ping, a file system's hash, vsock"

ask 'reboot -f &'
within 20 sh -c "[ \$(grep -c 'guest: up' $work/first.log) = 2 ]"
check
step "rebooted"

ask 'setsid /init rebind >/dev/null 2>&1 &'
sleep 1
within 10 ping -c 1 -W 1 $guest
check
step "drivers unbound and bound"

ask 'setsid /init work >/dev/null 2>&1 & setsid ping -i 0.05 10.0.0.2 >/tmp/ping 2>&1 &'
works
before=$(ask "sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo")
echo plug >&3
within 5 sh -c "[ \$(echo \"sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo\" | busybox nc -w 5 $guest 1000) -gt $((before + 100000)) ]"
works
step "memory plugged in under load"

kill -9 "$(cat "$work/disk.pid")"
rm "$work/disk.pid"
sleep 0.3
start_disk disk
works
step "the disk's back-end killed, and back"

start_disk disk2
vmm second disk="$work/disk2" incoming="$work/migration"
exec 4>"$work/second.in"
within 5 test -S "$work/migration"
echo "migrate $work/migration" >&3
within 20 grep -q 'vmm: migrated' "$work/first.log"
works
step "migrated: $(sed -n 's/vmm: migrated: //p' "$work/first.log")"

ask 'touch /tmp/stop; pkill -INT ping; killall -INT ping'
within 5 sh -c "echo 'cat /tmp/work.end' | busybox nc -w 5 $guest 1000 | grep -q good"
lost=$(ask "sed -n 's/.* \([0-9]*\)% packet loss.*/\1/p' /tmp/ping")
[ "$lost" = 0 ] || fail "$lost% of pings were lost"
worked=$(ask 'cat /tmp/worked')
check
ask 'poweroff -f &'
wait "$(cat "$work/second.pid")" || fail "the exit status"
step "switched off"
echo "guest: ok ($worked blocks written and read)"
