#!/bin/sh
# Usage: run.sh SECONDS TARGET...  lets each target run so long, from its corpus and from all that
#                                  was found here before; says what came of it
#        run.sh merge TARGET...    makes each corpus anew: the fewest inputs that reach all edges
#
# The programs are build/fuzzer/TARGET, the corpora tests/fuzz/TARGET.txt; what is found is kept in
# build/corpus, and what fails in build/found. An input that fails is printed as a line of a corpus.
set -eu
cd "$(dirname "$0")/../.."
how=$1
shift
mkdir -p build/corpus build/found
status=0

run() {  # TARGET
    log=build/corpus/$1.log
    failed=0
    build/fuzzer/"$1" -max_total_time="$how" -max_len=600 -timeout=10 -print_final_stats=1 \
        -artifact_prefix=build/found/"$1"- build/corpus/"$1" >"$log" 2>&1 || failed=1
    awk -v target="$1" '
        / cov: / { edges = $0; sub(".* cov: ", "", edges); sub(" .*", "", edges) }
        /number_of_executed_units/ { runs = $2 }
        /new_units_added/ { new = $2 }
        END { printf "%s: %d executions, %d edges, %d new inputs\n", target, runs, edges, new }
    ' "$log"
    [ $failed -eq 0 ] && return
    status=1
    grep -v ' NEW \| REDUCE \| pulse \|NEW_FUNC' "$log" | tail -n 40
    # shellcheck disable=SC2012 # names that libFuzzer makes
    build/fuzzer/"$1" pack "$(ls -t build/found/"$1"-* | head -n 1)"
}

merge() {  # TARGET
    rm -rf build/corpus/merged
    mkdir build/corpus/merged
    build/fuzzer/"$1" -set_cover_merge=1 -use_counters=0 build/corpus/merged build/corpus/"$1" \
        >build/corpus/"$1".log 2>&1
    grep '^#' tests/fuzz/"$1".txt >build/corpus/head || true
    {
        cat build/corpus/head
        build/fuzzer/"$1" pack build/corpus/merged/* | sort
    } >tests/fuzz/"$1".txt
    echo "$1: $(grep -vc '^#' tests/fuzz/"$1".txt) inputs"
}

for target; do
    mkdir -p build/corpus/"$target"
    build/fuzzer/"$target" unpack tests/fuzz/"$target".txt build/corpus/"$target"
    if [ "$how" = merge ]; then
        merge "$target"
    else
        run "$target"
    fi
done
exit $status
