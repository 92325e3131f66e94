/* A fuzz target is a file with fuzz_once: one run, in which bytes that a fuzzer made up decide all
   that there is to be decided. It fails as a test does, and on everything that a test is failed
   for: leaks, complaints of a back-end, an object that is not in the state that it claims.

   Where the bytes end, everything is decided by zeroes: these are for what is ordinary. */
#ifndef FUZZ_H
#define FUZZ_H

#include "dice.h"
#include "greatest.h"

enum greatest_test_res fuzz_once(dice *chance);

/* Numbers that are likely to matter: small, around powers of two, anything. */
uint64_t fuzz_number(dice *chance);

/* What is done in this run; printed if FUZZ_NOTES is in the environment. */
void fuzz_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
