/* migrate.c - rounds of dirty pages, and then the rest
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "migrate.h"

#include "clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    ROUNDS = 10,      /* at most, while the guest runs */
    FEW = 256,        /* pages: so few are sent while it does not */
    RECORD_MAX = 1024 /* pages */
};

typedef enum record_kind {
    RECORD_PAGES,  /* place: gpa */
    RECORD_DIMM,   /* it is plugged in */
    RECORD_TAP,    /* an fd comes with it */
    RECORD_DEVICE, /* place: its number; its registers */
    RECORD_STATE,  /* of the processor, and all is there */
    RECORD_RUNS    /* the answer */
} record_kind;

typedef struct record {
    uint64_t kind, place, size; /* of what follows, bytes */
} record;

typedef struct source {
    kvm_machine *machine;
    glue_vm *glue;
    int stream;
    uint64_t *bits[MACHINE_PIECES]; /* one for each page to be sent */
    bool good;                      /* the stream is */
    uint64_t pages;                 /* that were sent */
} source;

/* ---- the stream ------------------------------------------------------------------------------ */

static bool send_all(int stream, const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    while (size > 0) {
        ssize_t sent = send(stream, at, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        at += sent;
        size -= (size_t)sent;
    }
    return true;
}

static bool receive_all(int stream, void *bytes, size_t size)
{
    return size == 0 || recv(stream, bytes, size, MSG_WAITALL) == (ssize_t)size;
}

static bool send_record(int stream, record_kind kind, uint64_t place, const void *bytes,
                        uint64_t size)
{
    record head = {kind, place, size};
    return send_all(stream, &head, sizeof head) && send_all(stream, bytes, size);
}

typedef union fd_room {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(sizeof(int))];
} fd_room;

static bool send_fd(int stream, int fd)
{
    char byte = 0;
    fd_room room = {.head = {CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec piece = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    memcpy(CMSG_DATA(&room.head), &fd, sizeof fd);
    return sendmsg(stream, &message, MSG_NOSIGNAL) == 1;
}

static int receive_fd(int stream)
{
    char byte;
    int fd = -1;
    fd_room room;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    if (recvmsg(stream, &message, MSG_CMSG_CLOEXEC) == 1 &&
        message.msg_controllen >= CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(&room.head), sizeof fd);
    return fd;
}

/* ---- the source ------------------------------------------------------------------------------ */

static uint64_t page_count(const machine_ram *ram)
{
    return ram->size / MACHINE_PAGE;
}

static bool is_zero(const uint8_t *page)
{
    return page[0] == 0 && memcmp(page, page + 1, MACHINE_PAGE - 1) == 0;
}

/* All pages but those that the destination has already, since they are zeros. */
static bool mark_all(source *self)
{
    for (uint32_t i = 0; i < self->machine->ram_count; i++) {
        const machine_ram *ram = &self->machine->ram[i];
        self->bits[i] = calloc(page_count(ram) / 64, sizeof *self->bits[i]);
        if (self->bits[i] == NULL)
            return false;
        for (uint64_t page = 0; page < page_count(ram); page++)
            if (!is_zero(ram->host + page * MACHINE_PAGE))
                self->bits[i][page / 64] |= UINT64_C(1) << page % 64;
    }
    return true;
}

/* Adds what was written since the last time: by the processor, OR by a device. */
static bool mark_dirty(source *self, uint64_t *count)
{
    *count = 0;
    for (uint32_t i = 0; i < self->machine->ram_count; i++) {
        const machine_ram *ram = &self->machine->ram[i];
        if (!machine_dirty(self->machine, ram, self->bits[i]) ||
            !glue_dirty(self->glue, ram, self->bits[i]))
            return false;
        for (uint64_t word = 0; word < page_count(ram) / 64; word++)
            *count += (uint64_t)__builtin_popcountll(self->bits[i][word]);
    }
    return true;
}

static bool take(uint64_t *bits, uint64_t page)
{
    uint64_t bit = UINT64_C(1) << page % 64;
    bool was = (bits[page / 64] & bit) != 0;
    bits[page / 64] &= ~bit;
    return was;
}

/* What is written while it is sent is found dirty afterwards. */
static void send_piece(source *self, uint32_t piece)
{
    const machine_ram *ram = &self->machine->ram[piece];
    uint64_t page = 0;
    while (page < page_count(ram)) {
        uint64_t first = page;
        while (page < page_count(ram) && page - first < RECORD_MAX && take(self->bits[piece], page))
            page++;
        if (page > first)
            self->good =
                self->good &&
                send_record(self->stream, RECORD_PAGES, ram->gpa + first * MACHINE_PAGE,
                            ram->host + first * MACHINE_PAGE, (page - first) * MACHINE_PAGE);
        self->pages += page - first;
        page += page == first;
    }
}

static bool send_pages(source *self)
{
    for (uint32_t i = 0; i < self->machine->ram_count; i++)
        send_piece(self, i);
    return self->good;
}

static bool send_rounds(source *self)
{
    uint64_t dirty = FEW + 1;
    for (int round = 0; round < ROUNDS && dirty > FEW; round++) {
        if (!send_pages(self))
            return false;
        (void)pthread_mutex_lock(&self->machine->lock);
        glue_process(self->glue);
        bool good = mark_dirty(self, &dirty);
        (void)pthread_mutex_unlock(&self->machine->lock);
        if (!good)
            return false;
        fprintf(stderr, "vmm: round %d: %llu pages are dirty\n", round + 1,
                (unsigned long long)dirty);
    }
    return true;
}

/* True: all did. */
static bool each_device(kvm_machine *machine, bool (*what)(glue_device *))
{
    bool good = true;
    for (int i = 0; i < MACHINE_DEVICES; i++)
        if (machine->devices[i] != NULL)
            good = what(machine->devices[i]->glue) && good;
    return good;
}

static bool send_devices(source *self)
{
    uint32_t size;
    int tap = self->machine->tap;
    machine_state *state = machine_save(self->machine, &size);
    bool good = state != NULL && (tap < 0 || (send_record(self->stream, RECORD_TAP, 0, NULL, 0) &&
                                              send_fd(self->stream, tap)));
    for (uint32_t i = 0; good && i < MACHINE_DEVICES; i++)
        if (self->machine->devices[i] != NULL)
            good = send_record(self->stream, RECORD_DEVICE, i,
                               &self->machine->devices[i]->registers, sizeof(virtio_registers));
    good = good && send_record(self->stream, RECORD_STATE, 0, state, size);
    free(state);
    return good;
}

/* Nothing runs now: what is still dirty goes, then all that is not memory. */
static bool send_rest(source *self)
{
    uint64_t dirty;
    record answer;
    return each_device(self->machine, glue_pause) && mark_dirty(self, &dirty) && send_pages(self) &&
           send_devices(self) && receive_all(self->stream, &answer, sizeof answer) &&
           answer.kind == RECORD_RUNS;
}

static bool begin(source *self)
{
    (void)pthread_mutex_lock(&self->machine->lock);
    bool good =
        glue_log(self->glue, true) && machine_log(self->machine, true) &&
        (self->machine->ram_count < 2 || send_record(self->stream, RECORD_DIMM, 0, NULL, 0)) &&
        mark_all(self);
    (void)pthread_mutex_unlock(&self->machine->lock);
    return good;
}

static bool finish(source *self)
{
    double begin = clock_now();
    machine_pause(self->machine);
    (void)pthread_mutex_lock(&self->machine->lock);
    bool good = send_rest(self);
    (void)pthread_mutex_unlock(&self->machine->lock);
    if (good)
        fprintf(stderr, "vmm: migrated: %llu pages, %.0f ms of downtime\n",
                (unsigned long long)self->pages, (clock_now() - begin) * 1e3);
    return good;
}

static void go_on(source *self)
{
    (void)pthread_mutex_lock(&self->machine->lock);
    (void)machine_log(self->machine, false);
    (void)glue_log(self->glue, false);
    (void)each_device(self->machine, glue_resume);
    (void)pthread_mutex_unlock(&self->machine->lock);
    machine_continue(self->machine);
    fprintf(stderr, "vmm: not migrated\n");
}

/* ---- the destination ------------------------------------------------------------------------- */

static bool take_record(kvm_machine *machine, glue_vm *glue, int stream, const record *head)
{
    uint8_t *host;
    switch ((record_kind)head->kind) {
    case RECORD_PAGES:
        host = machine_host(machine, head->place, head->size);
        return host != NULL && receive_all(stream, host, head->size);
    case RECORD_DIMM:
        return machine_add_dimm(machine) && glue_map(glue);
    case RECORD_TAP:
        machine->tap = receive_fd(stream);
        return machine->tap >= 0;
    case RECORD_DEVICE:
        return head->place < MACHINE_DEVICES && machine->devices[head->place] != NULL &&
               head->size == sizeof(virtio_registers) &&
               receive_all(stream, &machine->devices[head->place]->registers, head->size);
    case RECORD_STATE:
    case RECORD_RUNS:
        break;
    }
    return false;
}

/* The processor starts when the source knows: never does it run in both. */
static bool take_state(kvm_machine *machine, int stream, uint64_t size)
{
    machine_state *state = malloc(size);
    bool good = state != NULL && receive_all(stream, state, size) &&
                machine_load(machine, state, size) && each_device(machine, glue_resume) &&
                send_record(stream, RECORD_RUNS, 0, NULL, 0) && machine_start(machine);
    free(state);
    return good;
}

static bool take_guest(kvm_machine *machine, glue_vm *glue, int stream)
{
    record head;
    while (receive_all(stream, &head, sizeof head)) {
        if (head.kind == RECORD_STATE)
            return take_state(machine, stream, head.size);
        if (!take_record(machine, glue, stream, &head))
            return false;
    }
    return false;
}

/* ---- both ------------------------------------------------------------------------------------ */

static int open_socket(const char *path, struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    (void)snprintf(address->sun_path, sizeof address->sun_path, "%s", path);
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

bool migrate_send(kvm_machine *machine, glue_vm *glue, const char *path)
{
    struct sockaddr_un address;
    source self = {.machine = machine, .glue = glue, .good = true};
    self.stream = open_socket(path, &address);
    if (connect(self.stream, (struct sockaddr *)&address, sizeof address) != 0) {
        close(self.stream);
        return machine_failed("%s", path);
    }
    bool good = begin(&self) && send_rounds(&self) && finish(&self);
    if (!good)
        go_on(&self);
    close(self.stream);
    for (int i = 0; i < MACHINE_PIECES; i++)
        free(self.bits[i]);
    return good;
}

bool migrate_receive(kvm_machine *machine, glue_vm *glue, const char *path)
{
    struct sockaddr_un address;
    int listener = open_socket(path, &address), stream = -1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
        listen(listener, 1) == 0)
        stream = accept(listener, NULL, NULL);
    close(listener);
    (void)unlink(path);
    (void)pthread_mutex_lock(&machine->lock);
    bool good = stream >= 0 && take_guest(machine, glue, stream);
    (void)pthread_mutex_unlock(&machine->lock);
    if (stream >= 0)
        close(stream);
    return good || machine_failed("no guest came to %s", path);
}
