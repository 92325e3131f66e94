#!/usr/bin/env bash
# Usage: run.sh                      all checks of what including the headers does to a program
#        run.sh CHECK TOOL [HEADER]  one of them, as in: run.sh implementation clang vhost.h
set -euo pipefail
cd "$(dirname "$0")/../.."
shopt -s nullglob

headers=(vhost*.h)
work=build/hygiene
mkdir -p $work

# ---- tools ---------------------------------------------------------------------------------------

# compile COMPILER OPTION... <SOURCE
compile() {
    local compiler=$1
    shift
    case $compiler in
    *++) "$compiler" -x c++ @tests/support/warnings -I. "$@" - ;;
    *) "$compiler" -x c @tests/support/warnings_c -I. "$@" - ;;
    esac
}

standards() {
    case $1 in
    *++) echo c++11 c++14 c++17 c++20 ;;
    *) echo c99 c11 c17 gnu17 c2x ;;
    esac
}

include() {
    printf '#include "%s"\n' "$@"
}

implement() {
    echo '#define VHOST_IMPLEMENTATION'
    include "$@"
}

# Lines that come from our own headers, with their macro definitions and without comments.
own_text() {  # COMPILER OPTION...
    local compiler=$1
    shift
    compile "$compiler" -E -dD "$@" |
        awk '/^# [0-9]+ "/ { own = $3 ~ /vhost[a-z_]*\.h"/; next } own' |
        grep .
}

# Shows the lines it is given, and fails, when there are any.
none() {
    if grep .; then
        return 1
    fi
}

# ---- checks --------------------------------------------------------------------------------------

declarations() {  # COMPILER HEADER
    for std in $(standards "$1"); do
        include "$2" | compile "$1" "-std=$std" -fsyntax-only
    done
}

# Some warnings need the optimizer, some variables are only used by assert().
implementation() {  # COMPILER HEADER
    for std in $(standards "$1"); do
        implement "$2" | compile "$1" "-std=$std" -O0 -c -o /dev/null
        implement "$2" | compile "$1" "-std=$std" -O2 -DNDEBUG -c -o /dev/null
    done
    std=$(standards "$1" | cut -d ' ' -f 1)
    implement "$2" | compile "$1" "-std=$std" -O0 -DNDEBUG -c -o /dev/null
    implement "$2" | compile "$1" "-std=$std" -O2 -c -o /dev/null
}

# Another version of a compiler: all headers together.
version() {  # COMPILER
    for std in $(standards "$1"); do
        implement "${headers[@]}" | compile "$1" "-std=$std" -O2 -c -o /dev/null
    done
}

# In any order, twice, with the implementation asked for late or on the command line, and beside
# two private copies in other files.
inclusion() {  # COMPILER
    local dir=$work/inclusion-$1 reversed
    mapfile -t reversed < <(printf '%s\n' "${headers[@]}" | tac)
    mkdir -p "$dir"
    include "${headers[@]}" "${reversed[@]}" "${headers[@]}" >"$dir/declarations"
    {
        include "${reversed[@]}"
        implement "${headers[@]}" "${reversed[@]}"
    } >"$dir/late"
    {
        echo '#define VHOST_STATIC'
        implement "${headers[@]}"
    } >"$dir/static"
    {
        cat "$dir/static"
        echo 'int main(void) { return 0; }'
    } >"$dir/main"

    for name in declarations late static main; do
        compile "$1" -c -o "$dir/$name.o" <"$dir/$name"
    done
    compile "$1" -DVHOST_IMPLEMENTATION -c -o "$dir/command.o" <"$dir/declarations"
    for normal in late command; do
        "$1" "$dir"/{declarations,main,static,$normal}.o -o "$dir/program"
        "$dir/program"
    done
    # A private copy leaves nothing for the linker.
    nm --defined-only --extern-only --format=posix "$dir/static.o" | none
}

# A header implemented by itself brings all it needs.
alone() {  # COMPILER HEADER
    {
        implement "$2"
        echo 'int main(void) { return 0; }'
    } | compile "$1" -o "$work/alone-$2-$1"
    "$work/alone-$2-$1"
}

# Unoptimized, so that no function is renamed or gone. A dot marks what lives inside a function.
symbols() {  # COMPILER
    local object=$work/symbols.o names=$work/symbols
    # Position-independent code would keep constant tables of pointers among the writable data.
    implement "${headers[@]}" |
        compile "$1" -std=c99 -O0 -fno-pie -fkeep-static-functions -c -o $object
    nm --defined-only --format=posix $object >$names
    awk '$2 ~ /[A-Z]/ && !($1 ~ /^vhost_/ && $2 == "T")' $names | none
    awk '$2 ~ /[a-z]/ && $1 !~ /^vhosti?_/ && $1 !~ /\./' $names | none
    # What can be written to would be shared by all devices and threads.
    awk '$2 ~ /[bBdDC]/' $names | none
    grep -q '^vhost_[a-z_]* T' $names
}

macros() {  # COMPILER
    local mode
    for mode in '' -DVHOST_IMPLEMENTATION -DVHOST_STATIC; do
        include "${headers[@]}" | own_text "$1" ${mode:+"$mode"} |
            awk '$1 == "#define" && $2 !~ /^VHOST/' | none
    done
}

taken() {  # COMPILER
    local theirs
    theirs=$(sed -e 's/#.*//' -e '/^ *$/d' -e 's/\*/[A-Za-z0-9_]*/g' tests/hygiene/taken_names.txt |
        paste -sd '|')
    implement "${headers[@]}" | own_text "$1" -std=c99 | sed 's/"[^"]*"//g' |
        grep -o '[A-Za-z_][A-Za-z0-9_]*' | sort -u |
        awk -v theirs="^($theirs)$" '$0 ~ theirs' | none
}

# Those who include us include these as well, or have a habit of such macros.
neighbours() {  # COMPILER
    local theirs='<linux/vhost.h> <linux/virtio_ring.h> <sys/queue.h> <syslog.h>'
    # shellcheck disable=SC2086 # a list of words
    theirs=$(printf '#include %s\n' $theirs)
    {
        echo "$theirs"
        implement "${headers[@]}"
    } | compile "$1" -std=c99 -c -o /dev/null
    {
        implement "${headers[@]}"
        echo "$theirs"
    } | compile "$1" -std=gnu17 -c -o /dev/null
    {
        printf '#define %s\n' 'min(a, b) hostile' 'max(a, b) hostile' 'likely(x) hostile' \
            'container_of(p, t, m) hostile' 'ARRAY_SIZE(x) hostile' 'PAGE_SIZE hostile'
        implement "${headers[@]}"
    } | compile "$1" -std=c99 -c -o /dev/null
}

uapi() {  # COMPILER
    compile "$1" -std=c99 -fsyntax-only <tests/hygiene/uapi_match.c
}

sources() {
    find vhost*.h README.md CHANGELOG.md LICENSE Makefile .ci examples tests -type f \( "$@" \)
}

# shellcheck disable=SC2016 # awk's own variables
text() {  # awk
    local report='{ print FILENAME ":" FNR ": " $0 }'
    sources -name '*' | LC_ALL=C xargs "$1" "/[^\011\040-\176]/ $report" | none
    sources -name '*.[ch]' -o -name '*.sh' | xargs "$1" "length > 100 || /\t| $/ $report" | none
}

# The core alone, for machines and compilers that have no POSIX, no libc and no built-in atomics:
# what it needs is what its user brings, and some of <string.h>.
core() {  # COMPILER
    cat >$work/core.c <<'END'
#include <stddef.h>
#include <stdarg.h>
void *own_realloc(void *memory, size_t size);
void *own_calloc(size_t count, size_t size);
void own_free(void *memory);
int own_format(char *text, size_t size, const char *format, va_list arguments);
unsigned short own_load16(const unsigned short *pointer);
unsigned long own_load(const void *word);
unsigned long own_exchange(void *word, unsigned long bits);
unsigned long own_and(void *word, unsigned long bits);
unsigned long own_or(void *word, unsigned long bits);
#define VHOST_REALLOC own_realloc
#define VHOST_CALLOC own_calloc
#define VHOST_FREE own_free
#define VHOST_VSNPRINTF own_format
#define VHOST_LOAD_ACQUIRE16 own_load16
#define VHOST_LOAD own_load
#define VHOST_EXCHANGE own_exchange
#define VHOST_FETCH_AND own_and
#define VHOST_FETCH_OR own_or
#define VHOST_NO_POSIX
#define VHOST_IMPLEMENTATION
#include "vhost.h"
END
    local options=(@tests/support/warnings_c -ffreestanding -fno-stack-protector -O2)
    [ "$1" != tcc ] || options=(-Wall -Werror)
    "$1" -std=c99 -I. "${options[@]}" -c $work/core.c -o "$work/core-$1.o"
    case $1 in
    gcc | clang)
        nm --undefined-only --format=posix "$work/core-$1.o" |
            awk '$1 !~ /^(own_[a-z0-9]+|mem(cpy|move|set|cmp)|strlen)$/' | none
        ;;
    esac
}

# ---- analysis ------------------------------------------------------------------------------------

analyzer() {  # gcc
    "$1" -std=c99 -O1 -fanalyzer -Werror -I. -c tests/support/implementation.c -o /dev/null
}

# Left out: parameters that could be swapped (offset and size, everywhere), parentheses around the
# arguments of lists of names, the order of members for the sake of padding (theirs is that of the
# manual), and bytes that are no string ("vhostinf").
tidy() {  # clang-tidy
    local left_out=bugprone-easily-swappable-parameters,-bugprone-macro-parentheses
    left_out=$left_out,-clang-analyzer-optin.performance.Padding
    left_out=$left_out,-bugprone-not-null-terminated-result
    "$1" --quiet --warnings-as-errors='*' --header-filter='vhost.*' \
        --checks="-*,bugprone-*,cert-*,clang-analyzer-*,performance-*,portability-*,-$left_out" \
        tests/support/implementation.c -- -std=c99 -I.
}

check() {  # cppcheck
    "$1" --quiet --std=c99 --error-exitcode=1 --enable=warning,performance,portability \
        --suppress=toomanyconfigs -I. tests/support/implementation.c
}

# ---- text ----------------------------------------------------------------------------------------

contents() {  # diff HEADER
    "$1" <(sed -n 's/^ \+>>\([a-z_]*\) \+[^ ].*/\1/p' "$2") \
        <(sed -n 's/^\(\/\* \)\?>>\([a-z_]*\).*/\2/p' "$2")
}

format() {  # clang-format
    sources -name '*.[ch]' | xargs "$1" --dry-run -Werror
}

# ---- running them --------------------------------------------------------------------------------

all() {
    for compiler in gcc clang g++ clang++; do
        for header in "${headers[@]}"; do
            echo "declarations $compiler $header"
            echo "implementation $compiler $header"
            echo "alone $compiler $header"
        done
        echo "inclusion $compiler"
        echo "macros $compiler"
    done
    for compiler in gcc-11 clang-13 clang-19; do
        echo "version $compiler"
    done
    for compiler in gcc clang tcc x86_64-w64-mingw32-gcc; do
        echo "core $compiler"
    done
    printf '%s\n' 'analyzer gcc' 'tidy clang-tidy' 'check cppcheck'
    for compiler in gcc clang; do
        echo "neighbours $compiler"
        echo "uapi $compiler"
    done
    for header in "${headers[@]}"; do
        echo "contents diff $header"
    done
    printf '%s\n' 'symbols gcc' 'taken gcc' 'text awk' 'format clang-format'
}

one() {
    local output
    if ! command -v "$2" >/dev/null; then
        echo "SKIP $*: no $2"
    elif output=$(tests/hygiene/run.sh "$@" 2>&1); then
        echo "PASS $*"
    else
        printf '%s\nFAIL %s\n' "$output" "$*"
    fi
}

if [ $# -gt 0 ]; then
    "$@"
    exit
fi

mkdir -p $work
all | xargs -P "$(nproc)" -L 1 tests/hygiene/run.sh one | tee $work/report
count() {
    grep -c "^$1 " $work/report || true
}
echo "Pass: $(count PASS), fail: $(count FAIL), skip: $(count SKIP)."
[ "$(count FAIL)" -eq 0 ]
