/* clock.h - seconds that never jump
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef CLOCK_H_INCLUDED
#define CLOCK_H_INCLUDED

/* Seconds since some moment in the past. */
double clock_now(void);

#endif
