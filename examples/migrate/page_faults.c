/* page_faults.c - memory that arrives when it is touched: postcopy, on the destination (Linux)
   SPDX-License-Identifier: MIT OR Unlicense

   Guest memory is one file, whoever maps it. So a page is placed once, through our own userfaultfd;
   but each userfaultfd has its own sleepers, to be woken at the addresses by which they know it. */
#define _GNU_SOURCE
#include "page_faults.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    LOOK_AGAIN = 'l', /* what the pipe says */
    END = 'e'
};

enum page { /* as far as we know */
    UNKNOWN = 0,
    ABSENT, /* discarded */
    THERE   /* placed */
};

/* ---- who waits where: with the lock held ---- */

static void wake(const page_faults *self, uint64_t gpa)
{
    for (int i = 0; i < self->region_count; i++) {
        const page_faults_region *region = &self->regions[i];
        struct uffdio_range range = {region->base + (gpa - region->gpa), GUEST_RAM_PAGE};
        if (gpa >= region->gpa && gpa - region->gpa < region->size)
            (void)ioctl(region->fd, UFFDIO_WAKE, &range); /* fails if its process is gone */
    }
}

static bool find_page(const page_faults *self, int fd, uint64_t address, uint64_t *gpa)
{
    for (int i = 0; i < self->region_count; i++) {
        const page_faults_region *region = &self->regions[i];
        *gpa = region->gpa + (address - region->base) / GUEST_RAM_PAGE * GUEST_RAM_PAGE;
        if (region->fd == fd && address >= region->base && address - region->base < region->size)
            return true;
    }
    return false;
}

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

/* Of one userfaultfd, whatever is in the way of this region. */
static void forget_regions(page_faults *self, const page_faults_region *of)
{
    int kept = 0;
    for (int i = 0; i < self->region_count; i++) {
        const page_faults_region *region = &self->regions[i];
        if (region->fd != of->fd || !(overlap(region->gpa, region->size, of->gpa, of->size) ||
                                      overlap(region->base, region->size, of->base, of->size)))
            self->regions[kept++] = *region;
    }
    self->region_count = kept;
}

static int add_region(page_faults *self, page_faults_region region)
{
    if (region.size == 0 || region.gpa > self->ram->size ||
        region.size > self->ram->size - region.gpa || region.base > UINT64_MAX - region.size)
        return -EINVAL;
    if (self->region_count == PAGE_FAULTS_REGIONS)
        return -ENOSPC;
    self->regions[self->region_count++] = region;
    return 0;
}

static void remove_fd(page_faults *self, int fd)
{
    int kept = 0;
    for (int i = 0; i < self->fd_count; i++)
        if (self->fds[i] != fd)
            self->fds[kept++] = self->fds[i];
    if (kept < self->fd_count)
        close(fd);
    self->fd_count = kept;
    kept = 0;
    for (int i = 0; i < self->region_count; i++)
        if (self->regions[i].fd != fd)
            self->regions[kept++] = self->regions[i];
    self->region_count = kept;
}

static bool has_fd(const page_faults *self, int fd)
{
    for (int i = 0; i < self->fd_count; i++)
        if (self->fds[i] == fd)
            return true;
    return false;
}

/* ---- the thread ---- */

/* Takes the next fault, if there is one. What is no userfaultfd (anybody can send anything) is let
   go of; a fault outside of the known regions is the business of who has it. */
static bool take_fault(page_faults *self, int fd, uint64_t *gpa)
{
    struct uffd_msg message;
    if (!has_fd(self, fd))
        return false;
    ssize_t size = read(fd, &message, sizeof message);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (size != (ssize_t)sizeof message || message.event != UFFD_EVENT_PAGEFAULT) {
        remove_fd(self, fd);
        return false;
    }
    self->faults++;
    self->theirs += fd != self->fds[0];
    return find_page(self, fd, message.arg.pagefault.address, gpa);
}

/* A page may be placed while somebody is on his way to bed: he is woken here, for nobody else would
   do it. */
static bool serve_fault(page_faults *self, int fd)
{
    uint64_t gpa = 0;
    pthread_mutex_lock(&self->lock);
    bool found = take_fault(self, fd, &gpa);
    bool there = found && self->pages[gpa / GUEST_RAM_PAGE] == THERE;
    if (there)
        wake(self, gpa);
    pthread_mutex_unlock(&self->lock);
    if (found && !there)
        self->want(gpa, self->user);
    return found;
}

/* The pipe comes first. */
static nfds_t list_fds(page_faults *self, struct pollfd *polled)
{
    nfds_t count = 0;
    polled[count++] = (struct pollfd){.fd = self->wake[0], .events = POLLIN};
    pthread_mutex_lock(&self->lock);
    for (int i = 0; i < self->fd_count; i++)
        polled[count++] = (struct pollfd){.fd = self->fds[i], .events = POLLIN};
    pthread_mutex_unlock(&self->lock);
    return count;
}

static void *serve(void *argument)
{
    page_faults *self = argument;
    struct pollfd polled[PAGE_FAULTS_PEERS + 2];
    for (char word = LOOK_AGAIN; word != END;) {
        nfds_t count = list_fds(self, polled);
        if (poll(polled, count, -1) < 0)
            continue;
        for (nfds_t i = 1; i < count; i++)
            while (polled[i].revents != 0 && serve_fault(self, polled[i].fd)) {
            }
        if (polled[0].revents != 0)
            (void)!read(self->wake[0], &word, 1);
    }
    return NULL;
}

static void tell_thread(const page_faults *self, char word)
{
    (void)!write(self->wake[1], &word, 1);
}

/* No signal is handled there: a handler might touch guest memory. */
static int start_thread(page_faults *self)
{
    sigset_t all, former;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &former);
    int code = -pthread_create(&self->thread, NULL, serve, self);
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    self->runs = code == 0;
    return code;
}

/* ---- our own faults ---- */

static int open_userfaultfd(void)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
    int fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, UFFDIO_API, &api) != 0) {
        int code = -errno;
        close(fd);
        return code;
    }
    return fd;
}

/* No huge pages, which would bring pages with them that were not placed. */
static int watch(page_faults *self, void *mapping)
{
    uint64_t size = self->ram->size;
    struct uffdio_register range = {.range = {(uintptr_t)mapping, size},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    (void)madvise(mapping, size, MADV_NOHUGEPAGE);
    if (ioctl(self->fds[0], UFFDIO_REGISTER, &range) != 0)
        return -errno;
    if ((range.ioctls >> _UFFDIO_COPY & 1) == 0)
        return -ENOSYS;
    return add_region(self, (page_faults_region){self->fds[0], (uintptr_t)mapping, 0, size});
}

static int set_up(page_faults *self)
{
    self->pages = calloc(self->ram->size / GUEST_RAM_PAGE, sizeof *self->pages);
    if (self->pages == NULL)
        return -ENOMEM;
    int fd = open_userfaultfd();
    if (fd < 0)
        return fd;
    self->fds[self->fd_count++] = fd;
    int code = watch(self, self->ram->host);
    if (code == 0)
        code = watch(self, self->ram->view);
    return code < 0 ? code : start_thread(self);
}

int page_faults_open(page_faults *self, guest_ram *ram)
{
    if (pipe2(self->wake, O_CLOEXEC) != 0)
        return -errno;
    self->ram = ram;
    pthread_mutex_init(&self->lock, NULL);
    int code = set_up(self);
    if (code < 0)
        page_faults_close(self);
    return code;
}

void page_faults_close(page_faults *self)
{
    if (self->ram == NULL)
        return;
    if (self->runs) {
        tell_thread(self, END);
        pthread_join(self->thread, NULL);
    }
    for (int i = 0; i < self->fd_count; i++)
        close(self->fds[i]);
    close(self->wake[0]);
    close(self->wake[1]);
    pthread_mutex_destroy(&self->lock);
    free(self->pages);
    self->pages = NULL;
    self->fd_count = self->region_count = 0;
    self->runs = false;
    self->ram = NULL;
}

/* ---- the faults of others ---- */

/* Only one that does not block can be polled. */
int page_faults_add_peer(page_faults *self, int userfaultfd)
{
    int flags = fcntl(userfaultfd, F_GETFL);
    if (flags < 0 || fcntl(userfaultfd, F_SETFL, flags | O_NONBLOCK) != 0)
        return -errno;
    pthread_mutex_lock(&self->lock);
    int code = self->fd_count <= PAGE_FAULTS_PEERS ? 0 : -ENOSPC;
    if (code == 0)
        self->fds[self->fd_count++] = userfaultfd;
    pthread_mutex_unlock(&self->lock);
    tell_thread(self, LOOK_AGAIN);
    return code;
}

void page_faults_remove_peer(page_faults *self, int userfaultfd)
{
    pthread_mutex_lock(&self->lock);
    remove_fd(self, userfaultfd);
    pthread_mutex_unlock(&self->lock);
    tell_thread(self, LOOK_AGAIN);
}

int page_faults_add_region(page_faults *self, int userfaultfd, uint64_t gpa, uint64_t size,
                           uint64_t base)
{
    page_faults_region region = {userfaultfd, base, gpa, size};
    pthread_mutex_lock(&self->lock);
    forget_regions(self, &region);
    int code = has_fd(self, userfaultfd) ? add_region(self, region) : -EBADF;
    pthread_mutex_unlock(&self->lock);
    return code;
}

/* ---- pages ---- */

static bool is_inside(const page_faults *self, uint64_t gpa, uint64_t size)
{
    return gpa % GUEST_RAM_PAGE == 0 && size % GUEST_RAM_PAGE == 0 && gpa <= self->ram->size &&
           size <= self->ram->size - gpa;
}

int page_faults_discard(const page_faults *self, uint64_t gpa, uint64_t size)
{
    if (!is_inside(self, gpa, size))
        return -EINVAL;
    memset(self->pages + gpa / GUEST_RAM_PAGE, ABSENT, size / GUEST_RAM_PAGE);
    return fallocate(self->ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)gpa,
                     (off_t)size) == 0
               ? 0
               : -errno;
}

static int copy_page(const page_faults *self, uint64_t gpa, const void *page)
{
    struct uffdio_copy copy = {.dst = (uintptr_t)(self->ram->host + gpa),
                               .src = (uintptr_t)page,
                               .len = GUEST_RAM_PAGE,
                               .mode = UFFDIO_COPY_MODE_DONTWAKE};
    int code;
    do
        code = ioctl(self->fds[0], UFFDIO_COPY, &copy) == 0 ? 0 : -errno;
    while (code == -EAGAIN);
    return code;
}

/* It is there before it is said to be there, and that is said before anybody is woken. Who has
   touched an absent page through a mapping that nobody watches has made it one of zeros. */
int page_faults_place(page_faults *self, uint64_t gpa, const void *page)
{
    if (!is_inside(self, gpa, GUEST_RAM_PAGE))
        return -EINVAL;
    uint8_t *state = &self->pages[gpa / GUEST_RAM_PAGE];
    pthread_mutex_lock(&self->lock);
    int code = copy_page(self, gpa, page);
    if (code == -EEXIST && *state != ABSENT)
        code = 0;
    if (code == 0)
        *state = THERE;
    wake(self, gpa);
    pthread_mutex_unlock(&self->lock);
    return code;
}
