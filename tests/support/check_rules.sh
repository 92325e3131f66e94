#!/bin/sh
# Checks tests/rules.txt: every line is a rule and a test, or a rule that is moot and why; and every
# test named there, or in the tables of README.md, exists in tests/unit or tests/real.
set -eu
cd "$(dirname "$0")/../.."
status=0

say() {
    echo "tests/rules.txt: $*" >&2
    status=1
}

tests=$(find tests/unit tests/real -name '*.c' 2>/dev/null |
    xargs sed -n 's/^TEST \([a-z0-9_]*\)(.*/\1/p')

while read -r rule test rest; do
    case $rule in
    '' | '#'*) continue ;;
    [A-Z]*[0-9]) ;;
    *) say "$rule is no rule" ;;
    esac
    if [ "$test" = moot: ]; then
        [ -n "$rest" ] || say "$rule is moot, but why?"
    elif [ -n "$rest" ]; then
        say "$rule names more than one test"
    elif ! echo "$tests" | grep -qx "$test"; then
        say "$rule: there is no test $test"
    fi
done <tests/rules.txt

for test in $(sed -n '/^## Security/,/^## Tests/s/^|.*|.*| \(`.*`\) |$/\1/p' README.md |
    grep -o '`[a-z0-9_]*`' | tr -d '`'); do
    echo "$tests" | grep -qx "$test" || say "README.md: there is no test $test"
done
exit $status
