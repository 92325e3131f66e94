/* A real file system in another process: QEMU's virtiofsd, compared with the folder that it shares.

   backends: fs */
#define _GNU_SOURCE
#include "clock.h"
#include "request_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)

enum {
    HIGH_PRIORITY = 0, /* queues */
    REQUESTS = 1,      /* */
    QUEUES = 2,        /* */
    QUEUE_AT = 0x10000,
    ANSWER_AT = 0x40000,
    DATA = 0x20000, /* bytes of a read */
    ROOM = DATA + (int)sizeof(struct fuse_out_header),
    FILE_SIZE = 300001
};

static const char file_name[] = "numbers";

static request_queue queues[QUEUES];
static uint8_t contents[FILE_SIZE]; /* of the file */

/* ---- the folder ---- */

static int open_file(const user_machine *m, const char *name, int flags)
{
    char path[80];
    snprintf(path, sizeof path, "%s/share", m->peer.folder);
    (void)mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/share/%s", m->peer.folder, name);
    return open(path, flags | O_CLOEXEC, 0600);
}

static bool make_file(const user_machine *m)
{
    for (size_t i = 0; i < FILE_SIZE; i++) {
        contents[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    int fd = open_file(m, file_name, O_WRONLY | O_CREAT);
    bool made = fd >= 0 && write(fd, contents, FILE_SIZE) == FILE_SIZE;
    close(fd);
    return made;
}

/* ---- requests ---- */

static uint64_t answer_at; /* where the device shall write, */
static uint32_t room;      /* and how much */

/* The answer is behind its header then, and this many bytes, or a negative errno. -1 stands for no
   answer as well: the file system has no reason to say -EPERM. */
static int64_t ask(user_machine *m, uint32_t opcode, uint64_t node, const void *argument,
                   size_t size)
{
    static uint64_t unique;
    uint8_t request[REQUEST_SIZE];
    const struct fuse_in_header header = {.len = (uint32_t)(sizeof header + size),
                                          .opcode = opcode,
                                          .unique = ++unique,
                                          .nodeid = node};
    memcpy(request, &header, sizeof header);
    memcpy(request + sizeof header, argument, size);
    int64_t length = request_queue_ask(&queues[REQUESTS], m, request, header.len, answer_at, room);
    struct fuse_out_header answer;
    memcpy(&answer, m->ram + answer_at, sizeof answer);
    if (length < (int64_t)sizeof answer || answer.len != length || answer.unique != unique) {
        return -1;
    }
    return answer.error < 0 ? answer.error : length - (int64_t)sizeof answer;
}

static const uint8_t *answer(const user_machine *m)
{
    return m->ram + answer_at + sizeof(struct fuse_out_header);
}

static enum greatest_test_res greet(user_machine *m)
{
    const struct fuse_init_in hello = {.major = FUSE_KERNEL_VERSION, .minor = 31};
    struct fuse_init_out its;
    int64_t length = ask(m, FUSE_INIT, 0, &hello, sizeof hello);
    ASSERT(length >= (int64_t)offsetof(struct fuse_init_out, max_pages));
    memcpy(&its, answer(m), offsetof(struct fuse_init_out, max_pages));
    ASSERT_UINT(FUSE_KERNEL_VERSION, its.major);
    ASSERT(its.max_write >= 4096);
    PASS();
}

static enum greatest_test_res look_up(user_machine *m, const char *name, uint64_t *node)
{
    struct fuse_entry_out entry;
    ASSERT_EQ((int64_t)sizeof entry, ask(m, FUSE_LOOKUP, FUSE_ROOT_ID, name, strlen(name) + 1));
    memcpy(&entry, answer(m), sizeof entry);
    ASSERT_EQ(FILE_SIZE, entry.attr.size);
    *node = entry.nodeid;
    PASS();
}

static enum greatest_test_res open_node(user_machine *m, uint64_t node, uint64_t *handle)
{
    const struct fuse_open_in how = {.flags = O_RDWR};
    struct fuse_open_out opened;
    ASSERT_EQ((int64_t)sizeof opened, ask(m, FUSE_OPEN, node, &how, sizeof how));
    memcpy(&opened, answer(m), sizeof opened);
    *handle = opened.fh;
    PASS();
}

static enum greatest_test_res read_all(user_machine *m, uint64_t node, uint64_t handle)
{
    for (size_t at = 0; at < FILE_SIZE + DATA; at += DATA) {
        const struct fuse_read_in what = {.fh = handle, .offset = at, .size = DATA};
        size_t left = at < FILE_SIZE ? FILE_SIZE - at : 0;
        size_t expected = left < DATA ? left : DATA;
        memset(m->ram + answer_at, 0xa5, ROOM);
        ASSERT_EQ((int64_t)expected, ask(m, FUSE_READ, node, &what, sizeof what));
        ASSERT_EQ(0, memcmp(contents + at, answer(m), expected));
        ASSERT(expected == DATA || answer(m)[expected] == 0xa5);
    }
    PASS();
}

/* The file, from its name on. */
static enum greatest_test_res reads_the_file(user_machine *m)
{
    uint64_t node = 0, handle = 0;
    CHECK_CALL(look_up(m, file_name, &node));
    CHECK_CALL(open_node(m, node, &handle));
    return read_all(m, node, handle);
}

/* ---- a device that shares it ---- */

static enum greatest_test_res start(user_machine *m)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        request_queue_close(&queues[i]);
        ASSERT_OK(request_queue_open(&queues[i], m, i, QUEUE_AT * (i + 1)));
    }
    ASSERT_OK(vhost_device_start(&m->device));
    return greet(m);
}

static enum greatest_test_res running(user_machine *m)
{
    answer_at = ANSWER_AT;
    room = ROOM;
    ASSERT(make_file(m));
    ASSERT(real_backend_start(&m->peer, "fs", ""));
    ASSERT_OK(user_machine_plug(m, 0, 0, MIB));
    ASSERT_OK(user_machine_attach(m, QUEUES));
    return start(m);
}

static user_machine_test *current_test;

static enum greatest_test_res run_with_queues(user_machine *m)
{
    enum greatest_test_res result = current_test(m);
    user_machine_detach(m); /* before its fds are closed */
    for (unsigned i = 0; i < QUEUES; i++) {
        request_queue_close(&queues[i]);
    }
    return result;
}

static enum greatest_test_res run_fs(user_machine_test *test)
{
    current_test = test;
    return user_machine_run(run_with_queues);
}

#define RUN_FS(TEST_NAME)                                                                          \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_fs(TEST_NAME));                                                 \
        }                                                                                          \
    } while (0)

/* ---- files ---- */

TEST a_file_is_read(user_machine *m)
{
    CHECK_CALL(running(m));
    CHECK_CALL(reads_the_file(m));
    ASSERT_EQ(-ENOENT, ask(m, FUSE_LOOKUP, FUSE_ROOT_ID, "nothing", 8));
    ASSERT_UINT(0, m->errors);
    ASSERT_UINT(0, queues[HIGH_PRIORITY].ring.added);
    PASS();
}

TEST a_file_is_written(user_machine *m)
{
    struct {
        struct fuse_write_in head;
        uint8_t bytes[5000];
    } what = {.head = {.offset = 12345, .size = sizeof what.bytes}};
    uint64_t node = 0;
    uint8_t got[FILE_SIZE];
    CHECK_CALL(running(m));
    CHECK_CALL(look_up(m, file_name, &node));
    CHECK_CALL(open_node(m, node, &what.head.fh));
    memset(what.bytes, 0x5a, sizeof what.bytes);
    ASSERT_EQ((int64_t)sizeof(struct fuse_write_out), ask(m, FUSE_WRITE, node, &what, sizeof what));
    memcpy(contents + what.head.offset, what.bytes, sizeof what.bytes);
    int fd = open_file(m, file_name, O_RDONLY);
    ssize_t size = read(fd, got, sizeof got);
    close(fd);
    ASSERT_EQ_FMT((ssize_t)FILE_SIZE, size, "%zd");
    ASSERT_EQ(0, memcmp(contents, got, FILE_SIZE));
    return read_all(m, node, what.head.fh);
}

/* Nodes and handles are the back-end's, and stay. */
TEST it_goes_on_where_it_stopped(user_machine *m)
{
    uint64_t node = 0, handle = 0;
    CHECK_CALL(running(m));
    CHECK_CALL(look_up(m, file_name, &node));
    CHECK_CALL(open_node(m, node, &handle));
    for (unsigned round = 0; round < 20; round++) {
        CHECK_CALL(read_all(m, node, handle));
        ASSERT_OK(vhost_device_stop(&m->device));
        for (unsigned i = 0; i < QUEUES; i++) {
            ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[i].position.state);
            ASSERT_UINT(queues[i].ring.added, m->queue[i].position.avail);
            ASSERT_UINT(queues[i].ring.added, m->queue[i].position.used);
        }
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(0, m->errors);
    return read_all(m, node, handle);
}

TEST it_is_read_into_memory_that_comes_and_goes(user_machine *m)
{
    CHECK_CALL(running(m));
    unsigned its_fds = user_machine_fds(m->peer.pid);
    ASSERT_INT(VHOST_PROFILE_SLOTS, m->device.facts.profile);
    for (unsigned round = 0; round < 10; round++) {
        ASSERT_OK(user_machine_plug(m, 1, (2 + round) * MIB, MIB));
        ASSERT_UINT(2, user_machine_mappings(m->peer.pid));
        answer_at = (2 + round) * MIB;
        uint64_t node = 0, handle = 0;
        CHECK_CALL(look_up(m, file_name, &node));
        CHECK_CALL(open_node(m, node, &handle));
        CHECK_CALL(read_all(m, node, handle));
        const struct fuse_release_in done = {.fh = handle};
        ASSERT_EQ(0, ask(m, FUSE_RELEASE, node, &done, sizeof done));
        answer_at = ANSWER_AT;
        ASSERT_OK(user_machine_unplug(m, 1));
        ASSERT_UINT(1, user_machine_mappings(m->peer.pid));
        its_fds += round == 0; /* that of the file stays */
        ASSERT_UINT(its_fds, user_machine_fds(m->peer.pid));
    }
    return reads_the_file(m);
}

/* ---- what it writes is logged ---- */

static enum greatest_test_res dirty_pages(user_machine *m, bool *dirty)
{
    static uint64_t bits[USER_RAM / VHOST_PAGE / 64];
    vhost_log_sink sink = {.bits = bits, .bits_count = USER_RAM / VHOST_PAGE};
    memset(bits, 0, sizeof bits);
    ASSERT_OK(vhost_log_sync(&m->vm, 0, USER_RAM, &sink));
    ASSERT_UINT(0, sink.pages_dropped);
    for (size_t i = 0; i < USER_RAM / VHOST_PAGE; i++) {
        dirty[i] = bits[i / 64] >> i % 64 & 1;
    }
    PASS();
}

TEST what_it_writes_is_logged(user_machine *m)
{
    static bool dirty[USER_RAM / VHOST_PAGE], written[USER_RAM / VHOST_PAGE];
    uint64_t node = 0, handle = 0;
    CHECK_CALL(running(m));
    CHECK_CALL(look_up(m, file_name, &node));
    CHECK_CALL(open_node(m, node, &handle));
    ASSERT_OK(vhost_log_start(&m->vm));
    CHECK_CALL(dirty_pages(m, dirty));
    ASSERT_EQ(NULL, memchr(dirty, 1, sizeof dirty));
    for (uint32_t size = 1; size <= DATA; size = size * 3 + 1) {
        const struct fuse_read_in what = {.fh = handle, .offset = size, .size = size};
        room = (uint32_t)sizeof(struct fuse_out_header) + size; /* it reads as much as fits */
        memset(written, 0, sizeof written);
        written[queues[REQUESTS].ring.used_gpa / VHOST_PAGE] = true;
        for (uint32_t at = 0; at < room; at++) {
            written[(answer_at + at) / VHOST_PAGE] = true;
        }
        ASSERT_EQ((int64_t)size, ask(m, FUSE_READ, node, &what, sizeof what));
        ASSERT_EQ(0, memcmp(contents + size, answer(m), size));
        CHECK_CALL(dirty_pages(m, dirty));
        ASSERT_EQ(0, memcmp(written, dirty, sizeof dirty));
        answer_at += 0x333 * 8;
    }
    ASSERT_OK(vhost_log_stop(&m->vm));
    room = ROOM;
    return read_all(m, node, handle);
}

/* ---- a new beginning ---- */

/* The driver asks for it; the back-end has no more to do for that than to stop. */
TEST a_reset_begins_anew(user_machine *m)
{
    CHECK_CALL(running(m));
    for (unsigned round = 0; round < 5; round++) {
        CHECK_CALL(reads_the_file(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_OK(vhost_device_reset(&m->device));
        ASSERT_OK(vhost_device_ack(&m->device, vhost_device_offer(&m->device, m->wanted)));
        CHECK_CALL(start(m));
    }
    ASSERT_UINT(0, m->errors);
    ASSERT(real_backend_runs(&m->peer));
    return reads_the_file(m);
}

static enum greatest_test_res breaks(user_machine *m, unsigned times)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (m->broken < times && clock_now() < end) {
        user_machine_turn(m, 100);
    }
    ASSERT_UINT(times, m->broken);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    PASS();
}

TEST killed_it_is_broken_and_a_reset_finds_the_next_one(user_machine *m)
{
    CHECK_CALL(running(m));
    for (unsigned round = 1; round <= 5; round++) {
        CHECK_CALL(reads_the_file(m));
        real_backend_end(&m->peer, SIGKILL);
        CHECK_CALL(breaks(m, round));
        ASSERT(vhost_device_reset(&m->device) < 0); /* nobody is there */
        ASSERT_INT(VHOST_WHY_USER_CONNECT, m->link.last_error.why);
        ASSERT(real_backend_start(&m->peer, "fs", ""));
        ASSERT_OK(vhost_device_reset(&m->device));
        ASSERT_OK(vhost_device_ack(&m->device, vhost_device_offer(&m->device, m->wanted)));
        CHECK_CALL(start(m));
    }
    return reads_the_file(m);
}

/* It serves one client, and ends with it. */
TEST it_ends_when_it_is_closed(user_machine *m)
{
    CHECK_CALL(running(m));
    ASSERT(real_backend_runs(&m->peer));
    user_machine_detach(m);
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (real_backend_runs(&m->peer) && clock_now() < end) {
        (void)usleep(1000);
    }
    ASSERT_FALSE(real_backend_runs(&m->peer));
    PASS();
}

SUITE(file_system)
{
    RUN_FS(a_file_is_read);
    RUN_FS(a_file_is_written);
    RUN_FS(it_goes_on_where_it_stopped);
    RUN_FS(it_is_read_into_memory_that_comes_and_goes);
    RUN_FS(what_it_writes_is_logged);
    RUN_FS(a_reset_begins_anew);
    RUN_FS(killed_it_is_broken_and_a_reset_finds_the_next_one);
    RUN_FS(it_ends_when_it_is_closed);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(file_system);
    GREATEST_MAIN_END();
}
