/* The bench: how fast the library is, in one table.

      bench [quick] [SECTION...] [migration TITLE=COMMAND...]

   SECTION is log, memory, user or size; without one, all of them. A COMMAND is a run of
   examples/migrate, whose downtime is a row. */
#include "bench.h"

#include <stdio.h>
#include <string.h>

static const struct section {
    const char *name;
    void (*run)(void);
} sections[] = {
    {"log", bench_log}, {"memory", bench_memory}, {"user", bench_user}, {"size", bench_size}};

enum {
    SECTIONS = sizeof sections / sizeof sections[0]
};

static bool is_wanted(const char *name, int count, char **words)
{
    bool any = false;
    for (int i = 1; i < count && strcmp(words[i], "migration") != 0; i++) {
        if (strcmp(words[i], name) == 0) {
            return true;
        }
        any = any || strcmp(words[i], "quick") != 0;
    }
    return !any;
}

static bool is_known(const char *word)
{
    bool known = strcmp(word, "quick") == 0;
    for (unsigned i = 0; i < SECTIONS; i++) {
        known = known || strcmp(word, sections[i].name) == 0;
    }
    return known;
}

int main(int count, char **words)
{
    int migration = 1;
    while (migration < count && strcmp(words[migration], "migration") != 0) {
        if (!is_known(words[migration])) {
            fprintf(stderr, "bench: what is %s?\n", words[migration]);
            return 2;
        }
        bench_quick = bench_quick || strcmp(words[migration], "quick") == 0;
        migration++;
    }
    for (unsigned i = 0; i < SECTIONS; i++) {
        if (is_wanted(sections[i].name, count, words)) {
            sections[i].run();
        }
    }
    if (migration < count) {
        bench_migration(count - migration - 1, words + migration + 1);
    }
    bench_sum();
    return 0;
}
