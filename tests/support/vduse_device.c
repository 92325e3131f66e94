#define _GNU_SOURCE
#include "vduse_device.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vduse.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PATIENCE = 10000, /* ms */
    SECTOR = 512,
    PAGE = 4096,
    MAPS = 64,
    PIECES = 64 /* of one request */
};

#define BIT(n) (UINT64_C(1) << (n))

typedef enum verb {
    COUNT,
    REFUSE,
    HOLD,
    RELEASE,
    CONFIGURE
} verb;

typedef struct command {
    verb verb;
    unsigned a, b, c, d;
    uint8_t bytes[VDUSE_DEVICE_CONFIG];
} command;

typedef struct trap {
    vduse_device_way way;
    unsigned before, left; /* messages to answer first; to refuse then */
} trap;

typedef struct map {
    uint64_t start, last;
    uint8_t *at; /* NULL: none */
    bool writable;
} map;

typedef struct ring {
    struct vduse_vq_info info;
    int kick;
    bool runs, call_due;
    uint16_t next; /* to be taken */
} ring;

typedef struct request {
    unsigned queue;
    uint16_t head;
} request;

typedef struct chain {
    struct vring_desc at[PIECES];
    unsigned count;
} chain;

typedef struct server {
    int socket, device;
    unsigned queues;
    uint8_t *disk;
    uint64_t disk_size;
    uint8_t status;
    bool holds;
    unsigned held_count, next_map;
    request held[VDUSE_DEVICE_HELD];
    trap traps[VDUSE_DEVICE_STEPS];
    int counts[VDUSE_DEVICE_COUNTERS];
    map maps[MAPS];
    ring rings[VDUSE_DEVICE_QUEUES];
} server;

/* ---- guest memory ---- */

static void drop(map *m)
{
    if (m->at) {
        munmap(m->at, (size_t)(m->last - m->start + 1));
    }
    m->at = NULL;
}

static void drop_range(server *self, uint64_t start, uint64_t last)
{
    for (unsigned i = 0; i < MAPS; i++) {
        if (self->maps[i].start <= last && self->maps[i].last >= start) {
            drop(&self->maps[i]);
        }
    }
}

static map *make_map(server *self, uint64_t address)
{
    struct vduse_iotlb_entry entry = {.start = address, .last = address};
    int fd = ioctl(self->device, VDUSE_IOTLB_GET_FD, &entry);
    if (fd < 0) {
        return NULL;
    }
    map *m = &self->maps[self->next_map++ % MAPS];
    drop(m);
    m->start = entry.start;
    m->last = entry.last;
    m->writable = (entry.perm & VDUSE_ACCESS_WO) != 0;
    void *at =
        mmap(NULL, (size_t)(m->last - m->start + 1),
             m->writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, (off_t)entry.offset);
    close(fd);
    m->at = at == MAP_FAILED ? NULL : (uint8_t *)at;
    self->counts[VDUSE_DEVICE_MAPS] += m->at != NULL;
    return m;
}

/* What is at this address, and how many bytes there are from there on; NULL: it may not go there.
   Good until the next call. */
static void *reach(server *self, uint64_t address, bool to_guest, uint64_t *room)
{
    map *m = NULL;
    for (unsigned i = 0; i < MAPS && !m; i++) {
        map *one = &self->maps[i];
        m = one->at && one->start <= address && address <= one->last ? one : NULL;
    }
    m = m ? m : make_map(self, address);
    if (!m || !m->at || (to_guest && !m->writable)) {
        return NULL;
    }
    *room = m->last - address + 1;
    return m->at + (address - m->start);
}

static bool move(server *self, uint64_t address, void *bytes, uint64_t size, bool to_guest)
{
    uint8_t *ours = (uint8_t *)bytes;
    while (size > 0) {
        uint64_t room;
        void *guest = reach(self, address, to_guest, &room);
        if (!guest) {
            return false;
        }
        room = room < size ? room : size;
        memcpy(to_guest ? guest : ours, to_guest ? ours : guest, (size_t)room);
        address += room;
        ours += room;
        size -= room;
    }
    return true;
}

static uint16_t *reach_index(server *self, uint64_t ring_part, bool to_guest)
{
    uint64_t room, address = ring_part + sizeof(uint16_t);
    return address % 2 == 0 ? (uint16_t *)reach(self, address, to_guest, &room) : NULL;
}

/* ---- the disk ---- */

static bool gather(server *self, const ring *r, uint16_t head, chain *c)
{
    uint16_t index = head;
    for (c->count = 0; c->count < PIECES && index < r->info.num;) {
        struct vring_desc *piece = &c->at[c->count];
        if (!move(self, r->info.desc_addr + index * sizeof *piece, piece, sizeof *piece, false)) {
            return false;
        }
        c->count++;
        if (!(piece->flags & VRING_DESC_F_NEXT)) {
            return c->count >= 2;
        }
        index = piece->next;
    }
    return false;
}

/* Between header and status, from or to `bytes`. Adds to *written. */
static bool transfer(server *self, const chain *c, uint8_t *bytes, uint64_t size, bool to_guest,
                     uint32_t *written)
{
    for (unsigned i = 1; i + 1 < c->count; i++) {
        const struct vring_desc *piece = &c->at[i];
        if (to_guest != ((piece->flags & VRING_DESC_F_WRITE) != 0) || piece->len > size ||
            !move(self, piece->addr, bytes, piece->len, to_guest)) {
            return false;
        }
        bytes += piece->len;
        size -= piece->len;
        *written += to_guest ? piece->len : 0;
    }
    return true;
}

static uint8_t execute(server *self, const chain *c, uint32_t *written)
{
    struct virtio_blk_outhdr header;
    uint8_t id[VIRTIO_BLK_ID_BYTES] = "vduse_device";
    bool done = true;
    if (c->at[0].len < sizeof header || !move(self, c->at[0].addr, &header, sizeof header, false)) {
        return VIRTIO_BLK_S_IOERR;
    }
    uint64_t place =
        header.sector <= self->disk_size / SECTOR ? header.sector * SECTOR : self->disk_size;
    uint64_t size = self->disk_size - place;
    switch (header.type) {
    case VIRTIO_BLK_T_IN:
        done = transfer(self, c, self->disk + place, size, true, written);
        break;
    case VIRTIO_BLK_T_OUT:
        done = transfer(self, c, self->disk + place, size, false, written);
        break;
    case VIRTIO_BLK_T_GET_ID:
        done = transfer(self, c, id, sizeof id, true, written);
        break;
    case VIRTIO_BLK_T_FLUSH:
        break;
    default:
        return VIRTIO_BLK_S_UNSUPP;
    }
    return done ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
}

/* Returns how many bytes were written. */
static uint32_t perform(server *self, const ring *r, uint16_t head)
{
    chain c;
    uint32_t written = 0;
    if (gather(self, r, head, &c)) {
        const struct vring_desc *last = &c.at[c.count - 1];
        uint8_t status = execute(self, &c, &written);
        if ((last->flags & VRING_DESC_F_WRITE) && last->len > 0 &&
            move(self, last->addr + last->len - 1, &status, 1, true)) {
            return written + 1;
        }
    }
    self->counts[VDUSE_DEVICE_FAULTS]++;
    return 0;
}

/* ---- rings ---- */

static void fail_ring(server *self, ring *r)
{
    r->runs = false;
    self->counts[VDUSE_DEVICE_FAULTS]++;
}

static void complete(server *self, request one)
{
    ring *r = &self->rings[one.queue];
    struct vring_used_elem used = {one.head, perform(self, r, one.head)};
    uint16_t flags, *index = reach_index(self, r->info.device_addr, true), at = index ? *index : 0;
    uint64_t entry = r->info.device_addr + 4 + at % r->info.num * sizeof used;
    if (!index || !move(self, entry, &used, sizeof used, true) ||
        !(index = reach_index(self, r->info.device_addr, true))) {
        fail_ring(self, r);
        return;
    }
    __atomic_store_n(index, (uint16_t)(at + 1), __ATOMIC_SEQ_CST);
    self->counts[VDUSE_DEVICE_COMPLETED]++;
    if (move(self, r->info.driver_addr, &flags, sizeof flags, false) &&
        !(flags & VRING_AVAIL_F_NO_INTERRUPT)) {
        r->call_due = true;
    }
}

static bool is_packed(const server *self)
{
    uint64_t features = 0;
    (void)ioctl(self->device, VDUSE_DEV_GET_FEATURES, &features);
    return (features & BIT(VIRTIO_F_RING_PACKED)) != 0;
}

static bool load(server *self, ring *r)
{
    r->runs = ioctl(self->device, VDUSE_VQ_GET_INFO, &r->info) == 0 && r->info.ready &&
              r->info.num > 0 && !is_packed(self);
    r->next = r->info.split.avail_index;
    return r->runs;
}

static void take(server *self, unsigned queue)
{
    ring *r = &self->rings[queue];
    if (!(self->status & VIRTIO_CONFIG_S_DRIVER_OK) || (!r->runs && !load(self, r))) {
        return;
    }
    for (;;) {
        request one = {queue, 0};
        uint16_t *index = reach_index(self, r->info.driver_addr, false);
        if (index && __atomic_load_n(index, __ATOMIC_SEQ_CST) == r->next) {
            return;
        }
        uint64_t entry = r->info.driver_addr + 4 + r->next % r->info.num * sizeof one.head;
        if (!index || !move(self, entry, &one.head, sizeof one.head, false)) {
            fail_ring(self, r);
            return;
        }
        r->next++;
        self->counts[VDUSE_DEVICE_TAKEN]++;
        if (self->holds && self->held_count < VDUSE_DEVICE_HELD) {
            self->held[self->held_count++] = one;
        } else {
            complete(self, one);
        }
    }
}

static bool release(server *self, unsigned nth)
{
    if (nth >= self->held_count) {
        return false;
    }
    request one = self->held[nth];
    self->held_count--;
    memmove(&self->held[nth], &self->held[nth + 1],
            (self->held_count - nth) * sizeof self->held[0]);
    complete(self, one);
    return true;
}

/* Returns whether one has to be sent again: the kernel takes none until it has noted DRIVER_OK,
   which it does some time after the answer. */
static bool send_calls(server *self)
{
    bool due = false;
    for (uint32_t i = 0; i < self->queues; i++) {
        ring *r = &self->rings[i];
        if (r->call_due && ioctl(self->device, VDUSE_VQ_INJECT_IRQ, &i) == 0) {
            self->counts[VDUSE_DEVICE_CALLS]++;
            r->call_due = false;
        }
        due = due || r->call_due;
    }
    return due;
}

/* ---- messages of the kernel ---- */

static vduse_device_counter step_of(const server *self, const struct vduse_dev_request *message)
{
    unsigned news = message->s.status & ~(unsigned)self->status;
    if (message->type == VDUSE_GET_VQ_STATE) {
        return VDUSE_DEVICE_VQ_STATE;
    }
    if (message->type == VDUSE_UPDATE_IOTLB) {
        return VDUSE_DEVICE_IOTLB;
    }
    if (message->s.status == 0) {
        return VDUSE_DEVICE_RESET;
    }
    return news & VIRTIO_CONFIG_S_DRIVER_OK     ? VDUSE_DEVICE_DRIVER_OK
           : news & VIRTIO_CONFIG_S_FEATURES_OK ? VDUSE_DEVICE_FEATURES_OK
                                                : VDUSE_DEVICE_STATUS;
}

static bool refuses(trap *t)
{
    if (t->left == 0) {
        return false;
    }
    if (t->before > 0) {
        t->before--;
        return false;
    }
    t->left--;
    return true;
}

/* Where a ring is that did not run, the kernel knows. */
static bool get_state(server *self, struct vduse_vq_state *state)
{
    ring *r = &self->rings[state->index % VDUSE_DEVICE_QUEUES];
    struct vduse_vq_info info = r->info;
    if (ioctl(self->device, VDUSE_VQ_GET_INFO, &info) != 0) {
        return false;
    }
    if (is_packed(self)) {
        state->packed = info.packed;
    } else {
        state->split.avail_index = r->runs ? r->next : info.split.avail_index;
    }
    self->counts[VDUSE_DEVICE_LAST_STATE] = state->split.avail_index;
    return true;
}

static void set_status(server *self, uint8_t status)
{
    self->status = status;
    for (unsigned i = 0; i < self->queues && status == 0; i++) {
        self->rings[i].runs = self->rings[i].call_due = false;
    }
    self->held_count = status == 0 ? 0 : self->held_count;
}

static bool obey_message(server *self, const struct vduse_dev_request *message,
                         struct vduse_dev_response *response)
{
    switch ((enum vduse_req_type)message->type) {
    case VDUSE_GET_VQ_STATE:
        response->vq_state.index = message->vq_state.index;
        return get_state(self, &response->vq_state);
    case VDUSE_UPDATE_IOTLB:
        drop_range(self, message->iova.start, message->iova.last);
        return true;
    case VDUSE_SET_STATUS:
        set_status(self, message->s.status);
        return true;
    }
    return false;
}

/* A reset takes the fds of kicks away, so they are set up each time. */
static void run(server *self)
{
    for (unsigned i = 0; i < self->queues; i++) {
        struct vduse_vq_eventfd kick = {i, self->rings[i].kick};
        (void)ioctl(self->device, VDUSE_VQ_SETUP_KICKFD, &kick);
        take(self, i);
    }
}

static void answer_message(server *self)
{
    struct vduse_dev_request message;
    struct vduse_dev_response response;
    if (read(self->device, &message, sizeof message) != (ssize_t)sizeof message) {
        return;
    }
    vduse_device_counter step = step_of(self, &message);
    trap *t = &self->traps[step];
    self->counts[step]++;
    memset(&response, 0, sizeof response);
    response.request_id = message.request_id;
    bool refused = refuses(t);
    if (refused && t->way == VDUSE_DEVICE_SILENT) {
        return;
    }
    if (refused || !obey_message(self, &message, &response)) {
        response.result = VDUSE_REQ_RESULT_FAILED;
    }
    (void)!write(self->device, &response, sizeof response);
    if (step == VDUSE_DEVICE_DRIVER_OK && !refused) {
        run(self);
    }
}

/* ---- commands of the test ---- */

static int configure(server *self, const command *c)
{
    union {
        struct vduse_config_data head;
        uint8_t bytes[sizeof(struct vduse_config_data) + VDUSE_DEVICE_CONFIG];
    } data;
    data.head.offset = c->a;
    data.head.length = c->b;
    memcpy(data.bytes + sizeof data.head, c->bytes, c->b);
    return ioctl(self->device, VDUSE_DEV_SET_CONFIG, &data) != 0 ||
                   ioctl(self->device, VDUSE_DEV_INJECT_CONFIG_IRQ) != 0
               ? -errno
               : 0;
}

static int obey(server *self, const command *c)
{
    switch (c->verb) {
    case COUNT:
        self->counts[VDUSE_DEVICE_HELD_NOW] = (int)self->held_count;
        return self->counts[c->a];
    case REFUSE:
        self->traps[c->a] = (trap){(vduse_device_way)c->b, c->c > 0 ? c->c - 1 : 0, c->d};
        return 0;
    case HOLD:
        self->holds = c->a;
        while (!self->holds && release(self, 0)) {
        }
        return 0;
    case RELEASE:
        return release(self, c->a) ? 0 : -ENOENT;
    case CONFIGURE:
        return configure(self, c);
    }
    return -EINVAL;
}

/* Returns false when the test has gone. */
static bool answer_test(server *self)
{
    command c;
    if (recv(self->socket, &c, sizeof c, 0) != (ssize_t)sizeof c) {
        return false;
    }
    int answer = obey(self, &c);
    return send(self->socket, &answer, sizeof answer, MSG_NOSIGNAL) == (ssize_t)sizeof answer;
}

/* ---- the process ---- */

static void serve(server *self)
{
    struct pollfd fds[2 + VDUSE_DEVICE_QUEUES];
    do {
        int wait = send_calls(self) ? 1 : -1;
        fds[0] = (struct pollfd){self->socket, POLLIN, 0};
        fds[1] = (struct pollfd){self->counts[VDUSE_DEVICE_BROKEN] ? -1 : self->device, POLLIN, 0};
        for (unsigned i = 0; i < self->queues; i++) {
            fds[2 + i] = (struct pollfd){self->rings[i].kick, POLLIN, 0};
        }
        if (poll(fds, 2 + self->queues, wait) < 0) {
            continue;
        }
        self->counts[VDUSE_DEVICE_BROKEN] |= (fds[1].revents & (POLLERR | POLLHUP)) != 0;
        if (fds[1].revents & POLLIN) {
            answer_message(self);
        }
        for (unsigned i = 0; i < self->queues; i++) {
            uint64_t kicks;
            if (fds[2 + i].revents && read(fds[2 + i].fd, &kicks, sizeof kicks) > 0) {
                take(self, i);
            }
        }
    } while (!fds[0].revents || answer_test(self));
}

/* An fd of the test that stays open in another process is not closed for the kernel. */
static void close_all_but(int a, int b)
{
    for (int fd = 3; fd < 4096; fd++) {
        if (fd != a && fd != b) {
            close(fd);
        }
    }
}

static void become(const vduse_device_options *options, pid_t parent, int socket, int device)
{
    server *self = (server *)calloc(1, sizeof *self);
    uint8_t *disk = (uint8_t *)calloc(1, options->disk_size + 1);
    if (!self || !disk || prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) {
        _exit(1);
    }
    close_all_but(socket, device);
    self->socket = socket;
    self->device = device;
    self->queues = options->queues;
    self->disk = disk;
    self->disk_size = options->disk_size;
    for (unsigned i = 0; i < self->queues; i++) {
        self->rings[i].info.index = i;
        self->rings[i].kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    serve(self);
    _exit(0);
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Returns the exit status; -ETIMEDOUT: it does not end. */
static int await_end(pid_t pid, int patience_ms)
{
    int status;
    pid_t ended;
    int64_t deadline = now_ms() + patience_ms;
    while ((ended = waitpid(pid, &status, WNOHANG)) == 0 && now_ms() < deadline) {
        pause_ms(1);
    }
    if (ended == pid) {
        return WIFEXITED(status) ? WEXITSTATUS(status) : -EINTR;
    }
    return ended == 0 ? -ETIMEDOUT : -errno;
}

static int kill_process(pid_t pid)
{
    kill(pid, SIGKILL);
    return await_end(pid, 1000) == -ETIMEDOUT ? -ETIMEDOUT : 0;
}

/* vdpa dev add name NAME mgmtdev vduse, or: vdpa dev del NAME */
static int run_vdpa(const char *name, bool add)
{
    pid_t pid = fork();
    if (pid == 0) {
        close_all_but(-1, -1);
        if (add) {
            execlp("vdpa", "vdpa", "dev", "add", "name", name, "mgmtdev", "vduse", (char *)NULL);
        } else {
            execlp("vdpa", "vdpa", "dev", "del", name, (char *)NULL);
        }
        _exit(127);
    }
    if (pid < 0) {
        return -errno;
    }
    int status = await_end(pid, PATIENCE);
    if (status == -ETIMEDOUT) {
        (void)kill_process(pid);
    }
    return status > 0 ? (status == 127 ? -ENOENT : -EIO) : status;
}

/* ---- the device, as the kernel has it ---- */

static int command_kernel(unsigned long number, const void *argument)
{
    uint64_t version = VDUSE_API_VERSION;
    int fd = open("/dev/vduse/control", O_RDWR | O_CLOEXEC), result = 0;
    if (fd < 0) {
        return -errno;
    }
    if (ioctl(fd, VDUSE_SET_API_VERSION, &version) != 0 || ioctl(fd, number, argument) != 0) {
        result = -errno;
    }
    close(fd);
    return result;
}

static int create(const vduse_device_options *options)
{
    struct virtio_blk_config blk = {.capacity = options->disk_size / SECTOR,
                                    .num_queues = (uint16_t)options->queues};
    union {
        struct vduse_dev_config head;
        uint8_t bytes[sizeof(struct vduse_dev_config) + VDUSE_DEVICE_CONFIG];
    } config;
    memset(&config, 0, sizeof config);
    strcpy(config.head.name, options->name);
    config.head.device_id = VIRTIO_ID_BLOCK;
    config.head.features = options->features;
    config.head.vq_num = options->queues;
    config.head.vq_align = PAGE;
    config.head.config_size = options->config ? options->config_size : (unsigned)sizeof blk;
    memcpy(config.bytes + sizeof config.head, options->config ? options->config : &blk,
           config.head.config_size);
    return command_kernel(VDUSE_CREATE_DEV, &config);
}

static int destroy(const char *name)
{
    char whole[VDUSE_NAME_MAX] = "";
    strcpy(whole, name);
    return command_kernel(VDUSE_DESTROY_DEV, whole);
}

static int set_patience(const vduse_device_options *options)
{
    char path[128];
    (void)snprintf(path, sizeof path, "/sys/class/vduse/%s/msg_timeout", options->name);
    FILE *file = fopen(path, "w");
    if (!file) {
        return -errno;
    }
    int result = fprintf(file, "%u\n", options->patience_s) < 0 ? -EIO : 0;
    return fclose(file) == 0 ? result : -errno;
}

/* Returns its fd. */
static int set_up(const vduse_device_options *options)
{
    char path[128];
    (void)snprintf(path, sizeof path, "/dev/vduse/%s", options->name);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return -errno;
    }
    int result = set_patience(options);
    for (unsigned i = 0; i < options->queues && result == 0; i++) {
        struct vduse_vq_config queue = {.index = i, .max_size = options->max_size};
        result = ioctl(fd, VDUSE_VQ_SETUP, &queue) == 0 ? 0 : -errno;
    }
    if (result < 0) {
        close(fd);
    }
    return result < 0 ? result : fd;
}

static int spawn(vduse_device *self, const vduse_device_options *options, int device)
{
    int ends[2];
    pid_t parent = getpid();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        return -errno;
    }
    self->pid = fork();
    if (self->pid == 0) {
        become(options, parent, ends[1], device);
    }
    int result = self->pid < 0 ? -errno : 0;
    self->pid = self->pid < 0 ? 0 : self->pid;
    close(ends[1]);
    self->socket = ends[0];
    return result;
}

static int find_path(vduse_device *self)
{
    char path[128];
    struct dirent *entry;
    (void)snprintf(path, sizeof path, "/sys/bus/vdpa/devices/%s", self->name);
    DIR *folder = opendir(path);
    if (!folder) {
        return -errno;
    }
    while ((entry = readdir(folder)) != NULL && self->path[0] == '\0') {
        if (strncmp(entry->d_name, "vhost-vdpa-", 11) == 0) {
            (void)snprintf(self->path, sizeof self->path, "/dev/%.32s", entry->d_name);
        }
    }
    closedir(folder);
    return self->path[0] != '\0' ? 0 : -ENODEV;
}

/* ---- for tests ---- */

vduse_device_options vduse_device_defaults(void)
{
    return (vduse_device_options){.name = "vduse_test",
                                  .features = BIT(VIRTIO_F_VERSION_1) |
                                              BIT(VIRTIO_F_ACCESS_PLATFORM) |
                                              BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_MQ),
                                  .queues = 2,
                                  .max_size = 256,
                                  .disk_size = 1 << 20,
                                  .patience_s = 30};
}

static int attach(vduse_device *self, const vduse_device_options *options)
{
    int device = set_up(options);
    if (device < 0) {
        return device;
    }
    int result = spawn(self, options, device);
    close(device);
    result = result == 0 ? run_vdpa(self->name, true) : result;
    return result == 0 ? find_path(self) : result;
}

int vduse_device_start(vduse_device *self, const vduse_device_options *options)
{
    memset(self, 0, sizeof *self);
    self->socket = -1;
    if (strlen(options->name) >= sizeof self->name || options->queues > VDUSE_DEVICE_QUEUES ||
        options->config_size > VDUSE_DEVICE_CONFIG) {
        return -EINVAL;
    }
    int result = create(options);
    if (result < 0) {
        return result;
    }
    strcpy(self->name, options->name);
    result = attach(self, options);
    if (result < 0) {
        (void)vduse_device_stop(self);
    }
    return result;
}

int vduse_device_kill(vduse_device *self)
{
    int result = self->pid > 0 ? kill_process(self->pid) : 0;
    self->pid = 0;
    return result;
}

static bool is_attached(const vduse_device *self)
{
    char path[128];
    (void)snprintf(path, sizeof path, "/sys/bus/vdpa/devices/%s", self->name);
    return access(path, F_OK) == 0;
}

int vduse_device_stop(vduse_device *self)
{
    int result = 0, next;
    if (self->name[0] == '\0') {
        return 0;
    }
    for (unsigned i = 0; i < VDUSE_DEVICE_STEPS && self->pid > 0; i++) {
        (void)vduse_device_refuse(self, (vduse_device_counter)i, VDUSE_DEVICE_FAIL, 1, 0);
    }
    if (is_attached(self)) {
        result = run_vdpa(self->name, false);
    }
    next = vduse_device_kill(self);
    result = result < 0 ? result : next;
    if (self->socket >= 0) {
        close(self->socket);
    }
    self->socket = -1;
    next = destroy(self->name);
    if (next == 0) {
        memset(self, 0, sizeof *self);
    }
    return result < 0 ? result : next;
}

/* Once it did not answer, an answer could belong to another question. */
static int ask(vduse_device *self, const command *c)
{
    int answer;
    struct pollfd fd = {self->socket, POLLIN, 0};
    if (self->name[0] == '\0' || self->socket < 0) {
        return -ENOTCONN;
    }
    if (send(self->socket, c, sizeof *c, MSG_NOSIGNAL) == (ssize_t)sizeof *c &&
        poll(&fd, 1, PATIENCE) == 1 &&
        recv(self->socket, &answer, sizeof answer, 0) == (ssize_t)sizeof answer) {
        return answer;
    }
    close(self->socket);
    self->socket = -1;
    return -ENOTCONN;
}

int vduse_device_count(vduse_device *self, vduse_device_counter counter)
{
    command c = {.verb = COUNT, .a = counter};
    return counter < VDUSE_DEVICE_COUNTERS ? ask(self, &c) : -EINVAL;
}

bool vduse_device_await(vduse_device *self, vduse_device_counter counter, int at_least)
{
    int count = vduse_device_count(self, counter);
    int64_t deadline = now_ms() + PATIENCE;
    while (count >= 0 && count < at_least && now_ms() < deadline) {
        pause_ms(1);
        count = vduse_device_count(self, counter);
    }
    return count >= at_least;
}

int vduse_device_refuse(vduse_device *self, vduse_device_counter step, vduse_device_way way,
                        unsigned nth, unsigned times)
{
    command c = {.verb = REFUSE, .a = step, .b = way, .c = nth, .d = times};
    return step < VDUSE_DEVICE_STEPS ? ask(self, &c) : -EINVAL;
}

int vduse_device_hold(vduse_device *self, bool holds)
{
    return ask(self, &(command){.verb = HOLD, .a = holds});
}

int vduse_device_release(vduse_device *self, unsigned nth)
{
    return ask(self, &(command){.verb = RELEASE, .a = nth});
}

int vduse_device_set_config(vduse_device *self, unsigned offset, const void *bytes, unsigned size)
{
    command c = {.verb = CONFIGURE, .a = offset, .b = size};
    if (size > sizeof c.bytes) {
        return -EINVAL;
    }
    memcpy(c.bytes, bytes, size);
    return ask(self, &c);
}
