#!/bin/sh
# Usage: mutants.sh [N...]
# Breaks the headers in one place at a time, as tests/mutants.txt says, and runs the unit tests:
# they must fail. An entry whose title begins with "migrate: " breaks the headers or the example
# migrate, which must notice it itself: only its own word counts, and no crash.
# With numbers: those entries only, with what failed. What nobody notices is listed as survived, and
# means that a test is missing.
set -eu
cd "$(dirname "$0")/../.."
list=tests/mutants.txt
work=build/mutants
greatest=$(tests/support/greatest.sh) || exit 77
CC=${CC:-$(command -v clang || echo cc)} # it takes two thirds of the time of gcc

# Enough of the random tests to notice, and not the million that look for the rare case.
export VHOST_MODEL_RUNS=2000

includes="-I. -Itests/support -Iexamples/common -isystem $greatest"
example="examples/migrate.c examples/migrate/*.c"

object_of() {
    echo "$work/objects/$(echo "$1" | tr / -).o"
}

build_objects() {
    rm -rf $work
    mkdir -p $work/objects
    for source in tests/unit/*.c tests/support/*.c examples/common/*.c $example; do
        [ "$source" = tests/support/implementation.c ] || echo "$source $(object_of "$source")"
    done | xargs -P "$(nproc)" -n 2 sh -c "$CC -std=c99 -O1 $includes -c \$0 -o \$1"
}

# build PROGRAM SOURCE: of the unbroken objects, but for that of the source, which is compiled here:
# it is broken, or it is where the headers are implemented.
build() {
    case $1 in
    tests)
        flags=@tests/unit/system_calls.link
        objects="tests-*.o examples-common-*.o"
        ;;
    migrate)
        flags=''
        objects="examples-*.o tests-support-user_backend.c.o tests-support-real_backend.c.o"
        ;;
    esac
    others=$(cd $work/objects && printf "$work/objects/%s\n" $objects |
        grep -vxF "$(object_of "$2")")
    one=$here/$(basename "$2")
    [ -e "$one" ] || cp "$2" "$one"
    "$CC" -std=c99 -O0 -w -I"$here" -I"$(dirname "$2")" $includes -c "$one" -o "$one.o" &&
        "$CC" $others "$one.o" $flags -pthread -o "$here/$1"
}

# run_tests OPTION...: up to the first that fails.
run_tests() {
    timeout -s KILL 60 "$here/tests" -f "$@" >"$here/log" 2>&1
}

# What breaks a back-end is mostly found by its own tests: they go first.
judge_tests() {
    own=$(echo "$broken" | sed -n 's/vhost_\([a-z]*\)\.h/\1_/p')
    if { [ -z "$own" ] || run_tests -s "$own"; } && run_tests; then
        echo survived
    else
        echo caught
    fi
}

# What our own back-end does not bring to light may need another one, if there is one here.
judge_migrate() {
    for devices in own ''; do
        status=0
        timeout -s KILL 30 "$here/migrate" quick $devices >"$here/log" 2>"$here/errors" ||
            status=$?
        [ $status -eq 0 ] || break
    done
    case $status:$(tail -n 1 "$here/log") in
    0:*) echo survived ;;
    "1:migrate: FAILED ("*) echo caught ;;
    *) echo "survived (exit status $status)" ;;
    esac
}

# break_files FILE...: prints where the entry's lines are; leaves that file in its folder, broken.
break_files() {
    for file in "$@"; do
        if awk -v entry="$n" -f tests/support/mutate.awk $list "$file" >"$here/mutated"; then
            mv "$here/mutated" "$here/$(basename "$file")"
            echo "$file"
        elif [ $? -eq 2 ]; then
            printf '%s\n' "$file" "$file"
        fi
    done
}

# try N PROGRAM: leaves the verdict on one entry in its folder. Entry 0 breaks nothing.
try() {
    n=$1 program=$2
    here=$work/$n
    mkdir -p "$here"
    cp vhost*.h "$here"
    case $program in
    tests) source=tests/support/implementation.c files= ;;
    migrate) source=examples/migrate.c files=$example ;;
    esac
    broken=
    if [ "$n" -ne 0 ]; then
        broken=$(break_files vhost*.h $files)
        if [ "$(echo "$broken" | grep -c .)" -ne 1 ]; then
            echo "stale: its lines are not there, or not only once" >"$here/verdict"
            return
        fi
    fi
    case $broken in
    *.c) source=$broken ;;
    esac
    if ! build $program "$source" 2>"$here/log"; then
        echo "stale: it does not compile" >"$here/verdict"
        return
    fi
    judge_$program >"$here/verdict"
    [ "$(cat "$here/verdict")" != caught ] || rm -f "$here/$program"
}

title() {
    awk -v entry="$1" '/^= / && ++n == entry { print substr($0, 3) }' $list
}

if [ "${1:-}" = --try ]; then
    case $(title "$2") in
    "migrate: "*) try "$2" migrate ;;
    *) try "$2" tests ;;
    esac
    exit 0
fi

build_objects
for program in tests migrate; do
    try 0 $program
    if [ "$(cat $work/0/verdict)" != survived ]; then
        tail -n 20 $work/0/log
        echo "$program: it fails without any mutant ($(cat $work/0/verdict))"
        exit 1
    fi
done

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
        grep -s -e '^FAIL' -e '^migrate: ' "$work/$n/log" | head -n 5 || true
    fi
done
echo "mutants: $passed caught of $((passed + failed))"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
