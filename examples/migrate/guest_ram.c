/* guest_ram.c - the memory of a guest, and which pages the guest itself has written
   SPDX-License-Identifier: MIT OR Unlicense

   Of the view, every page that is not dirty is read-only while tracking is on. */
#define _GNU_SOURCE
#include "guest_ram.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static guest_ram *tracked;      /* a signal handler is given no object */
static struct sigaction before; /* what was done about SIGSEGV */

/* ---- memory ---- */

/* A back-end that maps the memory must be able to rely on its size. */
static int make_memory(uint64_t size)
{
    int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        int code = -errno;
        close(fd);
        return code;
    }
    return fd;
}

/* at NULL: anywhere. Old kernels take the address as a mere hint. */
static int map(const guest_ram *self, void *at, uint8_t **mapping)
{
    void *found = mmap(at, self->size, PROT_READ | PROT_WRITE,
                       MAP_SHARED | (at != NULL ? MAP_FIXED_NOREPLACE : 0), self->fd, 0);
    if (found == MAP_FAILED)
        return -errno;
    *mapping = found;
    return at == NULL || at == found ? 0 : -EEXIST;
}

static int map_both(guest_ram *self)
{
    self->dirty = calloc(self->size / GUEST_RAM_PAGE, sizeof *self->dirty);
    if (self->dirty == NULL)
        return -ENOMEM;
    int code = map(self, NULL, &self->host);
    return code < 0 ? code : map(self, (void *)(uintptr_t)GUEST_RAM_VIEW, &self->view);
}

int guest_ram_open(guest_ram *self, uint64_t size)
{
    *self = (guest_ram){.size = size, .fd = -1};
    if (size == 0 || size % GUEST_RAM_PAGE != 0)
        return -EINVAL;
    self->fd = make_memory(size);
    int code = self->fd < 0 ? self->fd : map_both(self);
    if (code < 0)
        guest_ram_close(self);
    return code;
}

void guest_ram_close(guest_ram *self)
{
    if (self->size == 0)
        return;
    (void)guest_ram_track(self, false);
    if (self->host != NULL)
        (void)munmap(self->host, self->size);
    if (self->view != NULL)
        (void)munmap(self->view, self->size);
    if (self->fd >= 0)
        close(self->fd);
    free(self->dirty);
    *self = (guest_ram){.fd = -1};
}

/* ---- tracking ---- */

static int protect(const guest_ram *self, uint64_t page, uint64_t count, int access)
{
    uint8_t *at = self->view + page * GUEST_RAM_PAGE;
    return mprotect(at, count * GUEST_RAM_PAGE, access) == 0 ? 0 : -errno;
}

/* A process can have only so many pieces of memory that are protected differently. Where there are
   no more, all of it counts as written. */
static void mark_all(guest_ram *self)
{
    uint64_t count = self->size / GUEST_RAM_PAGE;
    memset(self->dirty, true, count);
    (void)protect(self, 0, count, PROT_READ | PROT_WRITE);
}

static void mark(guest_ram *self, uint64_t page)
{
    self->dirty[page] = true;
    if (protect(self, page, 1, PROT_READ | PROT_WRITE) < 0)
        mark_all(self);
}

/* Any other fault happens again, and is then dealt with as if we had not been here: so it is with
   one of a page that is writable already. */
static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    int code = errno;
    uint64_t page = ((uint64_t)(uintptr_t)info->si_addr - GUEST_RAM_VIEW) / GUEST_RAM_PAGE;
    if (info->si_code == SEGV_ACCERR && page < tracked->size / GUEST_RAM_PAGE &&
        !tracked->dirty[page])
        mark(tracked, page);
    else
        (void)sigaction(signal, &before, NULL);
    errno = code;
}

static int track(guest_ram *self)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    uint64_t count = self->size / GUEST_RAM_PAGE;
    sigemptyset(&action.sa_mask);
    memset(self->dirty, false, count);
    tracked = self;
    if (sigaction(SIGSEGV, &action, &before) != 0)
        return -errno;
    self->tracks = true;
    return protect(self, 0, count, PROT_READ);
}

static int untrack(guest_ram *self)
{
    int code = protect(self, 0, self->size / GUEST_RAM_PAGE, PROT_READ | PROT_WRITE);
    if (sigaction(SIGSEGV, &before, NULL) != 0)
        return -errno;
    self->tracks = false;
    tracked = NULL;
    return code;
}

int guest_ram_track(guest_ram *self, bool on)
{
    if (on == self->tracks)
        return 0;
    return on ? track(self) : untrack(self);
}

/* ---- what was written ---- */

/* The dirty pages from `page` on, without a clean one between them. */
static uint64_t run_of_dirty(const guest_ram *self, uint64_t page, uint64_t end)
{
    uint64_t count = 0;
    while (page + count < end && self->dirty[page + count])
        count++;
    return count;
}

/* Whoever then reads the pages has all that was written before. */
static void clean(guest_ram *self, uint64_t page, uint64_t count)
{
    memset(self->dirty + page, false, count);
    if (self->tracks && protect(self, page, count, PROT_READ) < 0)
        mark_all(self);
}

static void set_bits(uint64_t *bits, uint64_t page, uint64_t count)
{
    for (uint64_t i = page; i < page + count; i++)
        bits[i / 64] |= UINT64_C(1) << (i % 64);
}

uint64_t guest_ram_sync(guest_ram *self, uint64_t gpa, uint64_t size, uint64_t *bits)
{
    uint64_t end = (gpa + size) / GUEST_RAM_PAGE, total = 0;
    for (uint64_t page = gpa / GUEST_RAM_PAGE; page < end; page++) {
        uint64_t count = run_of_dirty(self, page, end);
        if (count == 0)
            continue;
        clean(self, page, count);
        set_bits(bits, page, count);
        total += count;
        page += count;
    }
    return total;
}
