/* Real migrations: the downtime that examples/migrate measures, with its parts. */
#define _GNU_SOURCE
#include "bench.h"

#include <stdio.h>
#include <string.h>

enum {
    RUNS = 5
};

typedef struct downtime {
    double whole;
    char parts[512];
} downtime;

static void add_part(downtime *self, const char *name, double ms)
{
    size_t used = strlen(self->parts);
    snprintf(self->parts + used, sizeof self->parts - used, "%s%s %.2f", used > 0 ? ", " : "", name,
             ms);
}

/* "   the last sync                   0.176 ms" */
static void read_line(downtime *self, char *line)
{
    char *name = line + strspn(line, " "), *end = strstr(name, "  ");
    double ms;
    if (end == NULL || sscanf(end, "%lf ms", &ms) != 1) {
        return;
    }
    *end = 0;
    if (strcmp(name, "downtime") == 0) {
        self->whole = ms;
    } else {
        add_part(self, name, ms);
    }
}

/* Returns false if the migration failed. */
static bool migrate(const char *command, downtime *best)
{
    char line[256];
    downtime now = {0, ""};
    bool in_part = false;
    FILE *output = popen(command, "r");
    while (output != NULL && fgets(line, sizeof line, output) != NULL) {
        if (line[0] >= '1' && line[0] <= '9') {
            in_part = strstr(line, "switch-over") != NULL;
        } else if (in_part) {
            read_line(&now, line);
        }
    }
    if (output == NULL || pclose(output) != 0 || now.whole == 0) {
        return false;
    }
    if (best->whole == 0 || now.whole < best->whole) {
        *best = now;
    }
    return true;
}

static void print_migration(const char *title, const char *command)
{
    bench_row row = {.unit = BENCH_TIME};
    downtime best = {0, ""};
    for (int run = 0; run < RUNS; run++) {
        if (!migrate(command, &best)) {
            bench_skip(title, "the migration cannot run here, or failed");
            return;
        }
    }
    snprintf(row.name, sizeof row.name, "%s", title);
    row.ours = best.whole * 1e6;
    bench_print(&row);
    bench_note("ms: %s", best.parts);
}

void bench_migration(int count, char **commands)
{
    bench_title("5. Downtime of real migrations (examples/migrate), the best of 5", NULL, NULL);
    for (int i = 0; i < count; i++) {
        char *command = strchr(commands[i], '=');
        if (command == NULL) {
            bench_skip(commands[i], "no command");
            continue;
        }
        *command = 0;
        print_migration(commands[i], command + 1);
    }
}
