/* report.h - what a demonstration says: its steps, its first failure, its last line
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef REPORT_H_INCLUDED
#define REPORT_H_INCLUDED

#include <stdbool.h>

enum {
    REPORT_SKIPPED = 77 /* exit status of a program that cannot run here */
};

typedef struct report {
    const char *program;
    int step;
    char message[240]; /* the library's last complaint, put here by the program; or empty */
    char failure[480]; /* the first one; empty: none */
} report;

/* Prints the title of the next step. */
__attribute__((format(printf, 2, 3))) void report_step(report *self, const char *format, ...);

/* Keeps the first failure. Returns false. */
__attribute__((format(printf, 2, 3))) bool report_fail(report *self, const char *format, ...);

/* Whether a call was successful, which returns a negative errno if it was not. */
#define REPORT_TRY(self, call) report_code(self, call, #call)
bool report_code(report *self, int code, const char *call);

/* Prints the last line: the failure, else what this says. Returns the exit status. */
__attribute__((format(printf, 2, 3))) int report_end(const report *self, const char *format, ...);

/* Prints the last line, of a program that cannot run here. Returns the exit status. */
int report_skip(const report *self, const char *reason);

#endif
