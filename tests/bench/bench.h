/* Races between ways to do the same, and the table that comes of them.

   A row has the fastest pass of ours, of the reference (what front-ends in use do), and of the
   physical limit, all from one race: the ways take turns, so that they share whatever else the
   machine is doing. A row with a bar passes or is short. */
#ifndef TEST_BENCH_H
#define TEST_BENCH_H

#include <stdbool.h>
#include <stdint.h>

typedef struct bench_way {
    void (*prepare)(void *user); /* before each pass, not timed; or NULL */
    void (*run)(void *user);     /* one pass; or NULL: there is no such way */
    void *user;
    double best; /* out: ns of the fastest pass; 0: there is no such way */
} bench_way;

/* In turn, until each had enough passes and enough time. */
void bench_race(bench_way *ways, unsigned count);

double bench_now(void); /* ns */

/* Less of everything, in less than a minute. */
extern bool bench_quick;

typedef enum bench_unit {
    BENCH_TIME, /* ns */
    BENCH_COUNT,
    BENCH_BYTES
} bench_unit;

typedef struct bench_row {
    char name[64];
    bench_unit unit;
    double ours;
    double reference, limit; /* 0: there is none */
    /* The bar; 0: none of this kind. */
    double least_ratio; /* of reference to ours */
    double least_share; /* of limit to ours */
    double most;        /* ours, in its unit */
} bench_row;

void bench_title(const char *title, const char *reference, const char *limit);
void bench_print(const bench_row *row);
void bench_skip(const char *name, const char *reason);
void bench_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void bench_sum(void);

/* The sections of the table. */
void bench_log(void);
void bench_memory(void);
void bench_user(void);
void bench_size(void);
void bench_migration(int count, char **commands);

#endif
