#!/bin/sh
# Usage: coverage.sh PROGRAM...    programs with one instrumented implementation, and how to run
#                                  each: "build/coverage/unit", "build/coverage/NAME replay CORPUS"
#
# Says how much of the headers they reach together. A line that none of them reaches has to be in
# tests/support/unreached.txt, below its reason; one that is there has to be unreached.
set -eu
cd "$(dirname "$0")/../.."
work=build/coverage
rm -f $work/*.profraw
export VHOST_MODEL_RUNS=2000
number=0
for program; do
    number=$((number + 1))
    # shellcheck disable=SC2086 # a program and its arguments
    LLVM_PROFILE_FILE=$work/$number.profraw $program >$work/log 2>&1 || {
        tail -n 20 $work/log
        exit 1
    }
done
llvm-profdata merge -o $work/all.profdata $work/*.profraw
first=${1%% *}
llvm-cov report "$first" -instr-profile=$work/all.profdata |
    awk '/^vhost/ || /^TOTAL/ {
        printf "%-16s %s of lines, %s of branches\n", $1, $10, $13
    }'
llvm-cov show "$first" -instr-profile=$work/all.profdata |
    awk -F '|' '
        /^[^ ].*:$/ { file = $0; sub(":$", "", file); sub(".*/", "", file) }
        $2 ~ /^ *0$/ {
            text = $0
            sub("^[^|]*[|][^|]*[|] *", "", text)
            sub(" *[\\\\]?$", "", text)
            if (text !~ /^[{}]?$/) print file ": " text
        }' | sort >$work/unreached
grep -v '^#' tests/support/unreached.txt | grep . | sort >$work/known
diff $work/known $work/unreached >$work/difference && exit
sed -n 's/^> /not reached, and not in the list: /p; s/^< /in the list, and reached: /p' \
    $work/difference
exit 1
