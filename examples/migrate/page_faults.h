/* page_faults.h - memory that arrives when it is touched: postcopy, on the destination (Linux)
   SPDX-License-Identifier: MIT OR Unlicense

   A page that is not there stops whoever touches it: this process, the kernel on its behalf, or a
   back-end. A userfaultfd tells of it: one of this process, and one that each vhost-user back-end
   has handed out. A thread reads them, asks for the page by `want`, and, when the page has come and
   was placed, wakes all who wait for it.
   What serves faults (`want`, and who receives pages and places them) must not touch guest memory,
   nor wait for anybody who does. */
#ifndef PAGE_FAULTS_H_INCLUDED
#define PAGE_FAULTS_H_INCLUDED

#include "guest_ram.h"

#include <pthread.h>

enum {
    PAGE_FAULTS_PEERS = 8,
    PAGE_FAULTS_REGIONS = 64
};

typedef struct page_faults_region { /* of memory, as one userfaultfd knows it */
    int fd;
    uint64_t base; /* in the address space of who faults */
    uint64_t gpa, size;
} page_faults_region;

typedef struct page_faults {
    /* In the thread: has somebody send this page. The same page may be wanted more than once. */
    void (*want)(uint64_t gpa, void *user);
    void *user;

    uint64_t faults; /* read from the userfaultfds, so far */
    uint64_t theirs; /* and those of them that a back-end had */

    /* Private. */
    guest_ram *ram;
    uint8_t *pages;                 /* for each: what is known of it */
    int fds[PAGE_FAULTS_PEERS + 1]; /* ours first; closed at the end */
    int fd_count;
    page_faults_region regions[PAGE_FAULTS_REGIONS];
    int region_count;
    int wake[2]; /* a pipe: has the thread look at the fds again, or end */
    pthread_t thread;
    pthread_mutex_t lock;
    bool runs;
} page_faults;

/* From now on, pages of `ram` that are not there are waited for: those never written, and those
   discarded. `want` and `user` are set; all else is zero. Returns 0; -ENOSYS, -EPERM: not here; or
   another negative errno. */
int page_faults_open(page_faults *self, guest_ram *ram);

/* Takes the userfaultfd of a back-end (vhost_user_postcopy_advise); yours, if it fails. */
int page_faults_add_peer(page_faults *self, int userfaultfd);

/* Closes it: the back-end is through with postcopy, or dead. Its pages are not wanted any more. */
void page_faults_remove_peer(page_faults *self, int userfaultfd);

/* Where that back-end has a piece of memory (on_postcopy_region). What it had there, or of that
   memory, before is forgotten. */
int page_faults_add_region(page_faults *self, int userfaultfd, uint64_t gpa, uint64_t size,
                           uint64_t base);

/* Makes pages absent again. Before any device or guest runs. */
int page_faults_discard(const page_faults *self, uint64_t gpa, uint64_t size);

/* A page has come: puts it in its place, unless it was never discarded, or was placed before, and
   wakes all who wait. May be called from any thread, but not with a page of guest memory. -EEXIST:
   somebody who does not wait for pages has touched it, and what is there now is wrong. */
int page_faults_place(page_faults *self, uint64_t gpa, const void *page);

/* Ends the thread, and closes all of it, the peers' fds, too. All pages were placed: any other is
   zeros from then on, without a word. Harmless for an object of zeros. */
void page_faults_close(page_faults *self);

#endif
