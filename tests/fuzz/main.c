/* What is around a fuzz target. libFuzzer calls LLVMFuzzerTestOneInput; without it, as in make
   test, a corpus is run once. A corpus is a text file: each line is an input in hexadecimal digits,
   "#" begins a comment.

      PROGRAM replay CORPUS...      runs every input
      PROGRAM unpack CORPUS FOLDER  writes each into a file of its own, for libFuzzer
      PROGRAM pack FILE...          prints files as lines of a corpus

   With FUZZ_NOTES in the environment, a run says what it does. */
#include "fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST = 4096 /* bytes of an input */
};

GREATEST_MAIN_DEFS();

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

uint64_t fuzz_number(dice *chance)
{
    uint64_t around = dice_roll(chance, 9);
    switch (dice_roll(chance, 4)) {
    case 0:
        return around;
    case 1:
        return 4096 * dice_roll(chance, 256);
    case 2:
        return (UINT64_C(1) << dice_roll(chance, 64)) + around - 4;
    default:
        return dice_roll(chance, UINT64_MAX);
    }
}

void fuzz_note(const char *format, ...)
{
    va_list arguments;
    if (getenv("FUZZ_NOTES")) {
        va_start(arguments, format);
        vfprintf(stderr, format, arguments);
        va_end(arguments);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    dice chance;
    dice_read(&chance, bytes, size);
    if (fuzz_once(&chance) != GREATEST_TEST_RES_PASS) {
        fprintf(stderr, "%s:%u: %s\n", greatest_info.fail_file, greatest_info.fail_line,
                greatest_info.msg);
        abort();
    }
    return 0;
}

static void die(const char *what, const char *path)
{
    fprintf(stderr, "%s: %s\n", path, what);
    exit(2);
}

static FILE *open_file(const char *path, const char *mode)
{
    FILE *file = fopen(path, mode);
    if (!file) {
        die("cannot be opened", path);
    }
    return file;
}

static size_t parse(const char *line, uint8_t *bytes)
{
    size_t size = 0;
    unsigned value;
    while (size < MOST && sscanf(line + 2 * size, "%2x", &value) == 1) {
        bytes[size++] = (uint8_t)value;
    }
    return size;
}

static void unpack_one(const uint8_t *bytes, size_t size, const char *folder, unsigned number)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%06u", folder, number);
    FILE *file = open_file(path, "wb");
    fwrite(bytes, 1, size, file);
    fclose(file);
}

/* Into a folder; or, if there is none, each is run. Returns how many there are. */
static unsigned for_each_line(const char *corpus, const char *folder)
{
    static char line[2 * MOST + 2];
    uint8_t bytes[MOST];
    FILE *file = open_file(corpus, "r");
    unsigned count = 0;
    while (fgets(line, sizeof line, file)) {
        size_t size = line[0] == '#' ? 0 : parse(line, bytes);
        if (size > 0 && folder) {
            unpack_one(bytes, size, folder, count);
        } else if (size > 0) {
            (void)LLVMFuzzerTestOneInput(bytes, size);
        }
        count += size > 0;
    }
    fclose(file);
    return count;
}

static void pack_one(const char *path)
{
    uint8_t bytes[MOST];
    FILE *file = open_file(path, "rb");
    size_t size = fread(bytes, 1, sizeof bytes, file);
    for (size_t i = 0; i < size; i++) {
        printf("%02x", bytes[i]);
    }
    printf("\n");
    fclose(file);
}

/* libFuzzer calls it first, with the command line. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char **given = *argv;
    const char *what = *argc > 2 ? given[1] : "";
    if (strcmp(what, "replay") == 0) {
        unsigned count = 0;
        for (int i = 2; i < *argc; i++) {
            count += for_each_line(given[i], NULL);
        }
        printf("Pass: %u, fail: 0, skip: 0.\n", count);
        exit(count == 0);
    }
    if (strcmp(what, "unpack") == 0 && *argc == 4) {
        (void)for_each_line(given[2], given[3]);
        exit(0);
    }
    if (strcmp(what, "pack") == 0) {
        for (int i = 2; i < *argc; i++) {
            pack_one(given[i]);
        }
        exit(0);
    }
    return 0;
}

#ifndef FUZZER
int main(int argc, char **argv)
{
    LLVMFuzzerInitialize(&argc, &argv);
    die("replay, unpack, or pack? (built without libFuzzer)", argv[0]);
}
#endif
