#!/bin/sh
# Usage: tally.sh begin                       forget the last run
#        tally.sh suite NAME COMMAND...       run a lane that counts for itself
#        tally.sh program NAME COMMAND...     run a lane that is one check: its exit status
#        tally.sh skip NAME REASON            one lane that cannot run here
#        tally.sh sum                         print the sum of all, fail if anything failed
#
# A suite ends with greatest's closing line, "Pass: 12, fail: 0, skip: 0."; without it, it crashed.
# Exit status 77 says that the whole lane could not run, the last line of its output says why.
# A lane with no failure prints one line and its skips; any other prints all it has to say.
set -eu
cd "$(dirname "$0")/../.."
results=build/results
mkdir -p $results

# One file per lane, so lanes may run side by side.
report() {  # NAME PASSED FAILED SKIPPED
    echo "$2 $3 $4" >"$results/$(echo "$1" | tr -c 'A-Za-z0-9.\n' -).count"
    echo "$1: $2 passed, $3 failed, $4 skipped"
}

run() {  # KIND NAME COMMAND...
    kind=$1 name=$2
    shift 2
    log=$results/$(echo "$name" | tr -c 'A-Za-z0-9.\n' -).log
    status=0
    timeout 300 "$@" >"$log" 2>&1 || status=$?

    passed=0 failed=0 skipped=0
    counts=$(sed -n 's/^Pass: \([0-9]*\), fail: \([0-9]*\), skip: \([0-9]*\)\.$/\1 \2 \3/p' "$log" |
        tail -n 1)
    if [ $status -eq 77 ]; then
        skipped=1
    elif [ "$kind" = suite ] && [ -n "$counts" ]; then
        read -r passed failed skipped <<END
$counts
END
        # Counted well and ended badly: a sanitizer's last word, or a crash on the way out.
        if [ $status -ne 0 ] && [ "$failed" -eq 0 ]; then
            failed=1
        fi
    elif [ "$kind" = program ] && [ $status -eq 0 ]; then
        passed=1
    else
        failed=1
    fi

    # Printed in one piece, so lanes side by side do not get into each other's lines.
    {
        if [ "$failed" -ne 0 ]; then
            cat "$log"
            [ "$kind" = program ] || [ -n "$counts" ] || echo "No closing line: it ended early."
            echo "FAILED, exit status $status: $*"
        elif [ $status -eq 77 ]; then
            echo "SKIP $name: $(tail -n 1 "$log")"
        else
            grep '^SKIP' "$log" || true
        fi
        report "$name" "$passed" "$failed" "$skipped"
    } >"$log.shown"
    cat "$log.shown"
}

case $1 in
begin)
    rm -f $results/*.count
    ;;
suite | program)
    run "$@"
    ;;
skip)
    echo "SKIP $2: $3"
    report "$2" 0 0 1
    ;;
sum)
    cat $results/*.count 2>/dev/null | awk '
        { passed += $1; failed += $2; skipped += $3 }
        END {
            printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
            exit failed > 0 || passed + skipped == 0
        }'
    ;;
*)
    echo "tally.sh: $1?" >&2
    exit 2
    ;;
esac
