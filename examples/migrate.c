/* migrate.c - a guest moves to another process, with its devices at work
   SPDX-License-Identifier: MIT OR Unlicense

   shows     Live migration, the whole of it, on real back-ends. Two processes are two hypervisors,
             each with guest memory and back-ends of its own. The guest is drivers that live in
             guest memory, and go on reading, writing and talking while it is copied, in rounds:
             what the guest wrote meanwhile is known by page faults, what devices wrote by
             vhost_log_sync, and by nothing else. Memory is plugged in on the way. Then the source
             stops and sends the rest, and the other side goes on where it was. A checker compares
             all of memory, every block of the disks, every frame.
   build     make build/examples/migrate
   run       make demo-migrate
             migrate [tap] [loop] [disk] [own] [kernel] [precopy|postcopy] [quick] [seed=N]
             tap: vhost-net; needs /dev/vhost-net and root. loop: dpdk-testpmd. disk:
             qemu-storage-daemon. own: a small disk of ours, tests/support/user_backend.c, which
             stops with requests in flight, and has a state of its own. If none is named: all that
             are here; kernel: a tap must be one of them. postcopy: memory follows the guest, and
             is fetched when it is touched.
   expected  Four numbered steps, with a picture of the rounds, and as the last line
             migrate: ok (disk, own: 4900 pages of memory, 4.9 ms of downtime, 12345 requests, ...
             Exit status 0 only if all of it held; else 1, and migrate: FAILED (what).
   read      migrate/source.c and migrate/destination.c

   On the kernels of make demo-vm it needs    vm-modules: vhost_net tun
   and                                        vm-programs: qemu-storage-daemon dpdk-testpmd */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"
#include "vhost_user.h"

#include "migrate/move.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct demo {
    report report;
    machine_world world;
    move_options options;
    bool chosen[MACHINE_KINDS];
    bool kernel; /* the tap must be there */
} demo;

#define FAIL(...) report_fail(&d->report, __VA_ARGS__)

/* ---- the world: what both processes are plugged into ----------------------------------------- */

static const char *const names[MACHINE_KINDS] = {"tap", "loop", "disk", "own"};

static bool has_program(const char *name)
{
    char command[80];
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", name);
    return system(command) == 0;
}

static bool is_here(machine_kind kind)
{
    switch (kind) {
    case MACHINE_TAP:
        return access("/dev/vhost-net", R_OK | W_OK) == 0;
    case MACHINE_LOOP:
        return has_program("dpdk-testpmd");
    case MACHINE_DISK:
        return has_program("qemu-storage-daemon");
    case MACHINE_OWN_DISK:
    case MACHINE_KINDS:
        break;
    }
    return true;
}

static bool make_disk(demo *d, machine_kind kind)
{
    char *path = d->world.disk[kind];
    snprintf(path, sizeof d->world.disk[kind], "%s/%s", d->world.folder, names[kind]);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    bool good = fd >= 0 && ftruncate(fd, DISK_LOAD_BLOCKS * DISK_LOAD_BLOCK) == 0;
    if (fd >= 0)
        close(fd);
    return good || FAIL("no disk %s: %s", path, strerror(errno));
}

static bool make_world(demo *d)
{
    static const uint8_t ip[4] = {10, 0, 0, 2};
    strcpy(d->world.folder, "/tmp/vhost-migrate-XXXXXX");
    if (mkdtemp(d->world.folder) == NULL)
        return FAIL("no folder: %s", strerror(errno));
    for (int i = MACHINE_DISK; i < MACHINE_KINDS; i++)
        if (d->world.has[i] && !make_disk(d, (machine_kind)i))
            return false;
    d->world.cable.host = (station){{2, 0, 0, 0, 0, 2}, {10, 0, 0, 2}};
    if (d->world.has[MACHINE_TAP] && tap_open(&d->world.cable, ip, NET_HEADER) < 0)
        return FAIL("no tap: %s: %s", d->world.cable.failed, strerror(errno));
    return true;
}

static void end_world(demo *d)
{
    for (int i = MACHINE_DISK; i < MACHINE_KINDS; i++)
        if (d->world.disk[i][0] != '\0')
            (void)unlink(d->world.disk[i]);
    (void)rmdir(d->world.folder);
    if (d->world.has[MACHINE_TAP])
        tap_close(&d->world.cable);
}

/* ---- two processes --------------------------------------------------------------------------- */

/* Returns the destination's end of the stream's other end; -1: it could not be. */
static int fork_destination(demo *d)
{
    int ends[2];
    pid_t parent = getpid();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return -1;
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever becomes of the source */
        if (getppid() != parent)
            _exit(1);
        exit(move_destination(&d->world, &d->options, ends[1]) ? 0 : 1);
    }
    close(ends[1]);
    if (child < 0)
        close(ends[0]);
    return child < 0 ? -1 : ends[0];
}

static move_outcome migrate(demo *d)
{
    move_outcome outcome = {.failure = ""};
    int status, stream = make_world(d) ? fork_destination(d) : -1;
    if (stream < 0)
        FAIL("no second process: %s", strerror(errno));
    else
        outcome = move_source(&d->world, &d->options, stream, &d->report);
    if (stream >= 0)
        close(stream); /* a destination that still waits for something is told so */
    (void)wait(&status);
    if (outcome.failure[0] != '\0' && strncmp(d->report.failure, "stream_", 7) != 0)
        FAIL("destination: %s", outcome.failure);
    else if (outcome.failure[0] != '\0') /* the source has lost it, and does not know why */
        snprintf(d->report.failure, sizeof d->report.failure, "destination: %.450s",
                 outcome.failure);
    end_world(d);
    return outcome;
}

/* ---- options --------------------------------------------------------------------------------- */

/* Returns false if there is no such option. */
static bool take_option(demo *d, const char *option)
{
    for (int i = 0; i < MACHINE_KINDS; i++)
        if (strcmp(option, names[i]) == 0)
            return d->chosen[i] = true;
    if (strcmp(option, "postcopy") == 0)
        d->options.postcopy = true;
    else if (strcmp(option, "precopy") == 0)
        d->options.postcopy = false;
    else if (strcmp(option, "quick") == 0)
        d->options.quick = true;
    else if (strncmp(option, "seed=", 5) == 0)
        d->world.seed = (uint32_t)strtoul(option + 5, NULL, 0);
    else
        return strcmp(option, "kernel") == 0 && (d->kernel = true);
    return true;
}

/* All that are here, if none was chosen. DPDK takes its time. */
static bool is_usual(const demo *d, machine_kind kind)
{
    return (!d->options.postcopy || device_kinds[kind].postcopy) &&
           !(d->options.quick && kind == MACHINE_LOOP);
}

/* Returns what is not here, but was asked for. */
static const char *choose(demo *d)
{
    bool chosen = false, any = false;
    for (int i = 0; i < MACHINE_KINDS; i++)
        chosen = chosen || d->chosen[i];
    for (int i = 0; i < MACHINE_KINDS; i++) {
        machine_kind kind = (machine_kind)i;
        d->world.has[i] = (chosen ? d->chosen[i] : is_usual(d, kind)) && is_here(kind);
        if (d->chosen[i] && !d->world.has[i])
            return device_kinds[i].needs;
        if (d->world.has[i] && d->options.postcopy && !device_kinds[i].postcopy)
            return "postcopy for this device";
        any = any || d->world.has[i];
    }
    if (d->kernel && !d->world.has[MACHINE_TAP])
        return device_kinds[MACHINE_TAP].needs;
    return any ? NULL : "no device that can do postcopy";
}

/* "tap, disk" */
static const char *devices(const demo *d, char text[64])
{
    char *at = text;
    for (int i = 0; i < MACHINE_KINDS; i++)
        if (d->world.has[i])
            at += sprintf(at, "%s%s", at == text ? "" : ", ", names[i]);
    return text;
}

int main(int argc, char **argv)
{
    static demo the_demo;
    demo *d = &the_demo;
    char text[64], resent[64] = "none lost";
    d->report.program = "migrate";
    d->world.seed = (uint32_t)time(NULL) % 100000;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++)
        if (!take_option(d, argv[i])) {
            printf("usage: migrate [tap] [loop] [disk] [own] [kernel] [precopy|postcopy] [quick] "
                   "[seed=N]\n");
            return 2;
        }
    const char *missing = choose(d);
    if (missing != NULL)
        return report_skip(&d->report, missing);
    printf("seed %u, devices: %s\n\n", (unsigned)d->world.seed, devices(d, text));
    move_outcome outcome = migrate(d);
    if (outcome.resent > 0)
        snprintf(resent, sizeof resent, "%" PRIu64 " frames sent again", outcome.resent);
    return report_end(&d->report,
                      "%s: %" PRIu64 " pages of memory, %.1f ms of downtime, %" PRIu64
                      " requests, %s; seed %u",
                      devices(d, text), outcome.pages, outcome.downtime, outcome.done, resent,
                      (unsigned)d->world.seed);
}
