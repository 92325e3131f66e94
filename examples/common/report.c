/* report.c - what a demonstration says: its steps, its first failure, its last line
   SPDX-License-Identifier: MIT OR Unlicense */
#include "report.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void report_step(report *self, const char *format, ...)
{
    va_list arguments;
    printf("%s%d. ", self->step > 0 ? "\n" : "", self->step + 1);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    self->step++;
}

bool report_fail(report *self, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (self->failure[0] == '\0')
        vsnprintf(self->failure, sizeof self->failure, format, arguments);
    va_end(arguments);
    return false;
}

bool report_code(report *self, int code, const char *call)
{
    const char *why = self->message[0] != '\0' ? self->message : strerror(-code);
    return code >= 0 || report_fail(self, "%s: %s", call, why);
}

int report_end(const report *self, const char *format, ...)
{
    va_list arguments;
    if (self->failure[0] != '\0') {
        printf("\n%s: FAILED (%s)\n", self->program, self->failure);
        return 1;
    }
    printf("\n%s: ok (", self->program);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf(")\n");
    return 0;
}

int report_skip(const report *self, const char *reason)
{
    printf("%s: skipped (%s)\n", self->program, reason);
    return REPORT_SKIPPED;
}
