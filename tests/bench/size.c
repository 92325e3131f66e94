/* Section 4: what the headers cost a program, by the compiler that builds the bench. */
#define _GNU_SOURCE
#include "bench.h"
#include "vhost_kernel.h"
#include "vhost_user.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/vhost-bench-XXXXXX";

static const char *compiler(void)
{
    const char *named = getenv("CC");
    return named != NULL ? named : "cc";
}

/* The number that a shell command prints; negative: it prints none. The command may use $CC, and
   $D, a folder of its own. */
static double number_of(const char *command)
{
    char line[4096];
    double number = -1;
    snprintf(line, sizeof line, "CC='%s' D=%s; %s", compiler(), folder, command);
    FILE *output = popen(line, "r");
    if (output != NULL) {
        if (fscanf(output, "%lf", &number) != 1) {
            number = -1;
        }
        pclose(output);
    }
    return number;
}

static void print_number(const char *name, bench_unit unit, double ours, double most)
{
    bench_row row = {.unit = unit, .most = most};
    if (ours < 0) {
        bench_skip(name, "the compiler, nm or size did not do it");
        return;
    }
    snprintf(row.name, sizeof row.name, "%s", name);
    row.ours = ours;
    bench_print(&row);
}

/* ---- code ---- */

#define IMPLEMENT(defines, include)                                                                \
    "printf '" defines "#include \"" include "\"\\n' >$D/one.c && $CC -O2 -I. -c $D/one.c -o "     \
    "$D/one.o && "
#define TEXT        "size -A $D/one.o | awk '$1 ~ /^\\.text/ { sum += $2 } END { print sum }'"
#define ALONE(part) "#define VHOST_" part "_IMPLEMENTATION\\n"
#define ALL         "#define VHOST_IMPLEMENTATION\\n#include \"vhost_kernel.h\"\\n"

static void print_code(void)
{
    double core = number_of(IMPLEMENT("#define VHOST_IMPLEMENTATION\\n", "vhost.h") TEXT);
    double kernel = number_of(IMPLEMENT(ALONE("KERNEL"), "vhost_kernel.h") TEXT);
    double user = number_of(IMPLEMENT(ALONE("USER"), "vhost_user.h") TEXT);
    print_number(".text of vhost.h, -O2", BENCH_BYTES, core, 0);
    print_number(".text of vhost_kernel.h", BENCH_BYTES, kernel, 0);
    print_number(".text of vhost_user.h", BENCH_BYTES, user, 0);
    print_number(".text of all three", BENCH_BYTES, core + kernel + user, 40 * 1024);
    print_number("public functions of all three", BENCH_COUNT,
                 number_of(IMPLEMENT(ALL, "vhost_user.h") "nm -g --defined-only $D/one.o | wc -l"),
                 0);
    print_number("symbols that do not begin with vhost_", BENCH_COUNT,
                 number_of("nm -g --defined-only $D/one.o | grep -vc ' vhost_'"), 0);
}

/* ---- time to compile ---- */

typedef struct source {
    const char *text, *option;
    const char *path;
} source;

static void compile(void *user)
{
    const source *self = user;
    char command[256];
    snprintf(command, sizeof command, "%s %s -I. -c %s/%s -o %s/time.o", compiler(), self->option,
             folder, self->path, folder);
    if (system(command) != 0) {
        fprintf(stderr, "bench: %s failed\n", command);
    }
}

static void write_source(const source *self)
{
    char path[64];
    snprintf(path, sizeof path, "%s/%s", folder, self->path);
    FILE *file = fopen(path, "w");
    if (file != NULL) {
        fputs(self->text, file);
        fclose(file);
    }
}

static void print_times(void)
{
    static source sources[] = {
        {"#include <stddef.h>\n#include <stdint.h>\n#include <stdbool.h>\n", "-O2", "none.c"},
        {"#include \"vhost_kernel.h\"\n#include \"vhost_user.h\"\n", "-O2", "declared.c"},
        {"#define VHOST_IMPLEMENTATION\n#include \"vhost_kernel.h\"\n#include \"vhost_user.h\"\n",
         "-O2", "implemented.c"}};
    bench_way ways[] = {{NULL, compile, &sources[0], 0},
                        {NULL, compile, &sources[1], 0},
                        {NULL, compile, &sources[2], 0}};
    for (unsigned i = 0; i < 3; i++) {
        write_source(&sources[i]);
    }
    bench_race(ways, 3);
    print_number("compile time of the declarations", BENCH_TIME, ways[1].best - ways[0].best, 10e6);
    print_number("compile time of all, -O2", BENCH_TIME, ways[2].best, 0);
}

/* ---- memory ---- */

static void print_memory(void)
{
    print_number("a device with 2 queues", BENCH_BYTES,
                 sizeof(vhost_device) + 2 * sizeof(vhost_queue), 1024);
    print_number("a VM, before it has memory", BENCH_BYTES, sizeof(vhost_vm), 0);
    print_number("a vhost_kernel", BENCH_BYTES, sizeof(vhost_kernel), 0);
    print_number("a vhost_user", BENCH_BYTES, sizeof(vhost_user), 0);
}

void bench_size(void)
{
    bench_title("4. Size and build time", NULL, NULL);
    if (mkdtemp(folder) == NULL) {
        bench_skip("size of code", "no folder in /tmp");
        return;
    }
    print_code();
    print_times();
    print_memory();
    (void)number_of("rm -r $D");
}
