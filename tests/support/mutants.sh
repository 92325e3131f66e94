#!/bin/sh
# Usage: mutants.sh [N...]
# Breaks the headers in one place at a time, as tests/mutants.txt says, and runs the unit tests:
# they must fail. With numbers: those entries only, with the tests' output.
# What the tests do not notice is listed as survived, and means that a test is missing.
set -eu
cd "$(dirname "$0")/../.."
list=tests/mutants.txt
work=build/mutants
greatest=$(tests/support/greatest.sh) || exit 77
CC=${CC:-cc}

# Enough of the random tests to notice, and not the million that look for the rare case.
export VHOST_MODEL_RUNS=2000

includes="-I. -Itests/support -Iexamples/common -isystem $greatest"

build_tests() {
    rm -rf $work
    mkdir -p $work/objects
    for source in tests/unit/*.c tests/support/*.c examples/common/*.c; do
        [ "$source" = tests/support/implementation.c ] || echo "$source"
    done | xargs -P "$(nproc)" -I '{}' sh -c '
        '"$CC"' -std=c99 -O1 '"$includes"' -c {} -o '$work/objects/'$(echo {} | tr / -).o'
}

# run FOLDER OPTION...: the tests in it, up to the first that fails.
run() {
    here=$1
    shift
    timeout -s KILL 60 "$here/tests" -f "$@" >"$here/log" 2>&1
}

# Leaves the verdict on one entry in its folder. Entry 0 breaks nothing.
try() {
    n=$1
    here=$work/$n
    mkdir -p "$here"
    cp vhost*.h "$here"
    found=
    if [ "$n" -ne 0 ]; then
        for header in vhost*.h; do
            if awk -v entry="$n" -f tests/support/mutate.awk $list $header >"$here/mutated"; then
                found="$found$header"
                mv "$here/mutated" "$here/$header"
            fi
        done
        case $found in
        vhost.h | vhost_kernel.h | vhost_user.h) ;;
        *)
            echo "stale: its lines are not there, or not only once" >"$here/verdict"
            return
            ;;
        esac
    fi
    if ! { "$CC" -std=c99 -O0 -w -I"$here" $includes -c tests/support/implementation.c \
        -o "$here/implementation.o" &&
        "$CC" $work/objects/*.o "$here/implementation.o" -pthread -o "$here/tests"; } \
        2>"$here/log"; then
        echo "stale: it does not compile" >"$here/verdict"
        return
    fi
    # What breaks a back-end is mostly found by its own tests: they go first.
    own=$(echo "$found" | sed -n 's/vhost_\([a-z]*\)\.h/\1_/p')
    if { [ -z "$own" ] || run "$here" -s "$own"; } && run "$here"; then
        echo survived >"$here/verdict"
    else
        echo caught >"$here/verdict"
        rm -f "$here/tests"
    fi
}

title() {
    awk -v entry="$1" '/^= / && ++n == entry { print substr($0, 3) }' $list
}

if [ "${1:-}" = --try ]; then
    try "$2"
    exit 0
fi

build_tests
try 0
if [ "$(cat $work/0/verdict)" != survived ]; then
    tail -n 20 $work/0/log
    echo "The unit tests fail without any mutant."
    exit 1
fi

count=$(grep -c '^= ' $list)
numbers=${*:-$(seq 1 "$count")}
echo "$numbers" | tr ' ' '\n' | xargs -P "$(nproc)" -n 1 "$0" --try

passed=0 failed=0
for n in $numbers; do
    verdict=$(cat "$work/$n/verdict" 2>/dev/null || echo "no verdict")
    if [ "$verdict" = caught ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
    if [ $# -gt 0 ] || [ "$verdict" != caught ]; then
        echo "mutant $n, $(title "$n"): $verdict"
    fi
    if [ $# -gt 0 ]; then
        grep '^FAIL' "$work/$n/log" | head -n 5 || true
    fi
done
echo "mutants: $passed caught of $((passed + failed))"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
