#define _GNU_SOURCE
#include "bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

bool bench_quick;

static unsigned passed, shorts, without;

double bench_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void run_pass(bench_way *way)
{
    double start;
    if (way->run == NULL) {
        return;
    }
    if (way->prepare != NULL) {
        way->prepare(way->user);
    }
    start = bench_now();
    way->run(way->user);
    double time = bench_now() - start;
    if (way->best == 0 || time < way->best) {
        way->best = time;
    }
}

void bench_race(bench_way *ways, unsigned count)
{
    const unsigned least = bench_quick ? 3 : 7, most = bench_quick ? 20 : 200;
    const double enough = bench_quick ? 0.05e9 : 0.3e9;
    double start = bench_now();
    for (unsigned i = 0; i < count; i++) {
        ways[i].best = 0;
    }
    for (unsigned pass = 0; pass < least || (pass < most && bench_now() - start < enough); pass++) {
        for (unsigned i = 0; i < count; i++) {
            run_pass(&ways[i]);
        }
    }
}

/* ---- the table ---- */

static const char *format_value(char text[16], bench_unit unit, double value)
{
    if (unit == BENCH_COUNT) {
        snprintf(text, 16, "%.0f", value);
    } else if (unit == BENCH_BYTES) {
        snprintf(text, 16, "%.0f B", value);
    } else if (value < 999.5) {
        snprintf(text, 16, "%.3g ns", value);
    } else if (value < 999.5e3) {
        snprintf(text, 16, "%.3g us", value / 1e3);
    } else {
        snprintf(text, 16, value < 999.5e6 ? "%.3g ms" : "%.0f ms", value / 1e6);
    }
    return text;
}

/* What a row need not have. */
static const char *format_other(char text[16], bench_unit unit, double value)
{
    return value == 0 ? "-" : format_value(text, unit, value);
}

static void append_bar(char *bar, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void append_bar(char *bar, size_t size, const char *format, ...)
{
    size_t used = strlen(bar);
    va_list arguments;
    if (used > 0) {
        used += (size_t)snprintf(bar + used, size - used, ", ");
    }
    va_start(arguments, format);
    vsnprintf(bar + used, size - used, format, arguments);
    va_end(arguments);
}

static void format_bar(char bar[48], const bench_row *row)
{
    char text[16];
    bar[0] = 0;
    if (row->least_ratio != 0) {
        append_bar(bar, 48, "%.3gx", row->least_ratio);
    }
    if (row->least_share != 0) {
        append_bar(bar, 48, "%.0f%% of limit", row->least_share * 100);
    }
    if (row->most != 0) {
        append_bar(bar, 48, "<= %s", format_value(text, row->unit, row->most));
    }
}

static const char *judge(const bench_row *row)
{
    bool reached = (row->least_ratio == 0 || row->reference >= row->least_ratio * row->ours) &&
                   (row->least_share == 0 || row->limit >= row->least_share * row->ours) &&
                   (row->most == 0 || row->ours <= row->most);
    if (row->least_ratio == 0 && row->least_share == 0 && row->most == 0) {
        without++;
        return "";
    }
    *(reached ? &passed : &shorts) += 1;
    return reached ? "pass" : "short";
}

void bench_title(const char *title, const char *reference, const char *limit)
{
    printf("\n%s\n", title);
    if (reference != NULL) {
        printf("  reference: %s\n", reference);
    }
    if (limit != NULL) {
        printf("  limit: %s\n", limit);
    }
    printf("%-52s %9s %9s %7s %9s %5s  %-20s\n", "", "ours", "reference", "ratio", "limit", "of it",
           "bar");
}

void bench_print(const bench_row *row)
{
    char ours[16], reference[16], limit[16], ratio[16] = "-", share[16] = "-", bar[48];
    if (row->reference != 0 && row->ours != 0) {
        snprintf(ratio, sizeof ratio, "%.3gx", row->reference / row->ours);
    }
    if (row->limit != 0 && row->ours != 0) {
        snprintf(share, sizeof share, "%.0f%%", row->limit / row->ours * 100);
    }
    format_bar(bar, row);
    printf("%-52s %9s %9s %7s %9s %5s  %-20s %s\n", row->name,
           format_value(ours, row->unit, row->ours),
           format_other(reference, row->unit, row->reference), ratio,
           format_other(limit, row->unit, row->limit), share, bar, judge(row));
    fflush(stdout);
}

void bench_skip(const char *name, const char *reason)
{
    printf("%-52s skipped: %s\n", name, reason);
}

void bench_note(const char *format, ...)
{
    va_list arguments;
    printf("  ");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

void bench_sum(void)
{
    printf("\nbench: %u rows: %u pass, %u short, %u without a bar\n", passed + shorts + without,
           passed, shorts, without);
}
