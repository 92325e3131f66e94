#define _GNU_SOURCE
#include "real_backend.h"

#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PATIENCE_TO_START = 20000, /* ms; DPDK takes half a second, on an idle machine */
    PATIENCE_TO_END = 2000
};

static const char script[] = "tests/support/real_backend.sh";

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

bool real_backend_open(real_backend *self)
{
    memset(self, 0, sizeof *self);
    self->input = -1;
    strcpy(self->folder, "/tmp/vhost-test.XXXXXX");
    if (mkdtemp(self->folder) == NULL) {
        return false;
    }
    snprintf(self->socket, sizeof self->socket, "%s/socket", self->folder);
    return true;
}

/* In the child. An fd of the test that stayed open here would keep its other end from noticing. */
static void become(const real_backend *self, pid_t parent, int input, int log, const char *name,
                   const char *options)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) {
        _exit(1);
    }
    dup2(input, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    for (int fd = 3; fd < 1024; fd++) {
        close(fd);
    }
    execl(script, script, name, self->folder, options, (char *)NULL);
    perror(script);
    _exit(1);
}

/* Asks the kernel: to try it would be a first client, and there are back-ends that serve only one.
   A line ends with flags, type, state, inode and path; these flags say that it listens. */
static bool listens(const real_backend *self)
{
    char line[256], flags[16], path[128];
    bool found = false;
    FILE *sockets = fopen("/proc/net/unix", "r");
    size_t length = strlen(self->folder);
    while (sockets != NULL && !found && fgets(line, sizeof line, sockets) != NULL) {
        found = sscanf(line, "%*s %*s %*s %15s %*s %*s %*s %127s", flags, path) == 2 &&
                strcmp(flags, "00010000") == 0 && strncmp(path, self->folder, length) == 0;
    }
    if (sockets != NULL) {
        fclose(sockets);
    }
    return found;
}

static void show_log(const char *path)
{
    char line[256];
    FILE *log = fopen(path, "r");
    while (log != NULL && fgets(line, sizeof line, log) != NULL) {
        fputs(line, stderr);
    }
    if (log != NULL) {
        fclose(log);
    }
}

/* Reaps it when it has ended. */
static bool ended(real_backend *self)
{
    if (self->pid != 0 && waitpid(self->pid, NULL, WNOHANG) == self->pid) {
        self->pid = 0;
        close(self->input);
    }
    return self->pid == 0;
}

static bool spawn(real_backend *self, const char *name, const char *options, const char *log_path)
{
    int input[2];
    pid_t parent = getpid();
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || pipe2(input, O_CLOEXEC) != 0) {
        return false;
    }
    pid_t child = fork();
    if (child == 0) {
        become(self, parent, input[0], log, name, options);
    }
    close(input[0]);
    close(log);
    if (child < 0) {
        close(input[1]);
        return false;
    }
    self->pid = child;
    self->input = input[1];
    return true;
}

bool real_backend_start(real_backend *self, const char *name, const char *options)
{
    char log[64];
    snprintf(log, sizeof log, "%s/log", self->folder);
    if (!spawn(self, name, options, log)) {
        return false;
    }
    if (strstr(options, "client=1") != NULL) {
        return true;
    }
    for (int ms = 0; ms < PATIENCE_TO_START && !ended(self); ms++) {
        if (listens(self)) {
            return true;
        }
        pause_ms(1);
    }
    show_log(log);
    return false;
}

bool real_backend_runs(const real_backend *self)
{
    siginfo_t info = {.si_pid = 0};
    return self->pid != 0 &&
           waitid(P_PID, (id_t)self->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

void real_backend_end(real_backend *self, int signal)
{
    for (int ms = 0; !ended(self); ms++) {
        if (ms == 0 || ms == PATIENCE_TO_END) {
            kill(self->pid, ms == 0 ? signal : SIGKILL);
        }
        pause_ms(1);
    }
}

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *where)
{
    (void)status;
    (void)flag;
    (void)where;
    return remove(path);
}

void real_backend_close(real_backend *self)
{
    real_backend_end(self, SIGTERM);
    nftw(self->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
