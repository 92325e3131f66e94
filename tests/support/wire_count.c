#define _GNU_SOURCE
#include "wire_count.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

void wire_shim_phase(const char *name) __attribute__((weak));

static const char shim[] = "build/shim/wire_shim.so";

/* Itself again. */
static void become_counted(const char *log, unsigned queues, const char *socket)
{
    char number[16];
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    snprintf(number, sizeof number, "%u", queues);
    dup2(null, STDOUT_FILENO);
    setenv("WIRE_SHIM_FILE", log, 1);
    setenv("WIRE_QUEUES", number, 1);
    setenv("WIRE_SOCKET", socket != NULL ? socket : "", 1);
    setenv("LD_PRELOAD", shim, 1);
    execl("/proc/self/exe", "counted", (char *)NULL);
    _exit(1);
}

/* A line that the shim wrote. */
static bool read_count(const char *line, wire_count *count)
{
    const char *at = strstr(line, count->phase);
    at = at != NULL ? strchr(at, ':') : NULL;
    return at != NULL &&
           sscanf(at, ": %u messages in %*u calls, %u waits", &count->messages, &count->waits) == 2;
}

static bool read_counts(const char *log, wire_count *counts, unsigned phases)
{
    char line[1024];
    unsigned found = 0;
    FILE *lines = fopen(log, "r");
    while (lines != NULL && found < phases && fgets(line, sizeof line, lines) != NULL &&
           read_count(line, &counts[found])) {
        found++;
    }
    if (lines != NULL) {
        fclose(lines);
    }
    return found == phases;
}

const char *wire_count_life(unsigned queues, const char *socket, wire_count *counts,
                            unsigned phases)
{
    char log[] = "/tmp/vhost-wire-XXXXXX";
    int status = 1, fd = access(shim, R_OK) == 0 ? mkstemp(log) : -1;
    if (fd < 0) {
        return "no file for the counts, or no shim: make build/shim/wire_shim.so";
    }
    pid_t child = fork();
    if (child == 0) {
        become_counted(log, queues, socket);
    }
    bool ended = waitpid(child, &status, 0) == child && status == 0;
    bool counted = read_counts(log, counts, phases);
    close(fd);
    unlink(log);
    if (!ended) {
        return "the life that was to be counted failed";
    }
    return counted ? NULL : "phases were not counted";
}

unsigned wire_queues(void)
{
    const char *number = getenv("WIRE_QUEUES");
    return number != NULL ? (unsigned)atoi(number) : 0;
}

const char *wire_socket(void)
{
    const char *socket = getenv("WIRE_SOCKET");
    return socket != NULL ? socket : "";
}

bool wire_end_phase(const char *name)
{
    if (wire_shim_phase == NULL) {
        return false;
    }
    wire_shim_phase(name);
    return true;
}
