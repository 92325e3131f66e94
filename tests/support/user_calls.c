#define _POSIX_C_SOURCE 200809L

#include "user_calls.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int user_change_map(peer_bench *b, unsigned sections)
{
    vhost_section list[3];
    list[0] = b->f->low;
    list[1] = b->f->high;
    list[2] = fixture_section(b->f, FIXTURE_REMOTE, 1, 0);
    return fixture_map(b->f, list, sections);
}

/* ---- arranging ---- */

static int arrange_nothing(peer_bench *b)
{
    (void)b;
    return 0;
}

static int arrange_stopped(peer_bench *b)
{
    return peer_stopped(b, 1);
}

static int arrange_running(peer_bench *b)
{
    return peer_running(b, 1);
}

static int arrange_more_memory(peer_bench *b)
{
    int result = peer_stopped(b, 1);
    if (result == 0) {
        result = user_change_map(b, 3);
    }
    return result < 0 ? result : vhost_device_start(&b->device);
}

static int arrange_record(peer_bench *b)
{
    b->peer.record_size = 256;
    return peer_stopped(b, 1);
}

static int arrange_mtu(peer_bench *b)
{
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(3), 0);
    int result = peer_stopped(b, 1);
    return result < 0 ? result : vhost_user_set_mtu(&b->user, 9000);
}

static int arrange_running_net(peer_bench *b)
{
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(3), 0);
    return peer_running(b, 1);
}

static int arrange_foreign(peer_bench *b)
{
    b->accepted = fixture_features(0, 0);
    int result = peer_stopped(b, 1);
    b->queue[0].big_endian = FIXTURE_FOREIGN;
    return result;
}

static int arrange_inband(peer_bench *b)
{
    int result = peer_stopped(b, 1);
    b->queue[0].kick_fd = -1;
    return result;
}

static int translate(vhost_device *device, uint64_t iova, bool write, vhost_translation *entry,
                     void *user)
{
    (void)device;
    (void)write;
    (void)user;
    if (iova < USER_IOVA) {
        return -EFAULT;
    }
    entry->iova = iova - iova % VHOST_PAGE;
    entry->gpa = entry->iova - USER_IOVA;
    entry->size = VHOST_PAGE;
    entry->permit = VHOST_PERMIT_READ | VHOST_PERMIT_WRITE;
    return 0;
}

static const vhost_memory_ops viommu = {NULL, NULL, translate, NULL};

static int arrange_viommu(peer_bench *b)
{
    b->accepted = fixture_features(PEER_BIT(32) | PEER_BIT(33), 0);
    b->device_options.memory = &viommu;
    int result = peer_stopped(b, 1);
    b->queue[0].desc += USER_IOVA;
    b->queue[0].avail += USER_IOVA;
    b->queue[0].used += USER_IOVA;
    return result;
}

static int arrange_running_viommu(peer_bench *b)
{
    int result = arrange_viommu(b);
    return result < 0 ? result : vhost_device_start(&b->device);
}

static int arrange_skip(peer_bench *b)
{
    int result = peer_running(b, 1);
    return result < 0 ? result : vhost_user_set_skip_drain(&b->user, true);
}

static int arrange_logging(peer_bench *b)
{
    int result = peer_running(b, 1);
    return result < 0 ? result : vhost_log_start(&b->f->vm);
}

static int arrange_log_fd(peer_bench *b)
{
    int result = peer_running(b, 1);
    return result < 0 ? result : vhost_user_set_log_fd(&b->user, 8800);
}

static int advise(peer_bench *b)
{
    int fd, result = vhost_user_postcopy_advise(&b->user, &fd);
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

static int arrange_advised(peer_bench *b)
{
    int result = peer_stopped(b, 1);
    return result < 0 ? result : advise(b);
}

static int arrange_listening(peer_bench *b)
{
    int result = arrange_advised(b);
    return result < 0 ? result : vhost_user_postcopy_listen(&b->user);
}

static ptrdiff_t give_hundred(void *bytes, size_t size, void *user)
{
    peer_bench *b = (peer_bench *)user;
    if (b->configs == 100) { /* nobody counts config changes here */
        return 0;
    }
    (void)size;
    b->configs = 100;
    memset(bytes, 7, 100);
    return 100;
}

static int arrange_load(peer_bench *b)
{
    int result = peer_stopped(b, 1);
    return result < 0 ? result : vhost_user_load_state(&b->user, give_hundred, b);
}

static int arrange_state(peer_bench *b)
{
    b->peer.state_size = 5000;
    return peer_stopped(b, 1);
}

static int arrange_own_state(peer_bench *b)
{
    b->peer.own_state_fd = true;
    return arrange_state(b);
}

/* ---- acting ---- */

static int act_open(peer_bench *b)
{
    return peer_stopped(b, 1);
}

static int act_start(peer_bench *b)
{
    return vhost_device_start(&b->device);
}

static int act_stop(peer_bench *b)
{
    return vhost_device_stop(&b->device);
}

static int act_reset(peer_bench *b)
{
    return vhost_device_reset(&b->device);
}

static int act_mask(peer_bench *b)
{
    return vhost_queue_mask(&b->device, 0);
}

static int act_queue_stop(peer_bench *b)
{
    return vhost_queue_stop(&b->device, 0);
}

/* A commit succeeds whatever becomes of a device. */
static int act_commit(peer_bench *b, unsigned sections)
{
    int result = user_change_map(b, sections);
    return result == 0 && b->device.state == VHOST_STATE_BROKEN ? b->device.last_error.code
                                                                : result;
}

static int act_grow(peer_bench *b)
{
    return act_commit(b, 3);
}

static int act_shrink(peer_bench *b)
{
    return act_commit(b, 2);
}

/* A device that dies is no obstacle to logging. */
static int act_log_start(peer_bench *b)
{
    int result = vhost_log_start(&b->f->vm);
    return result == 0 && b->device.state == VHOST_STATE_BROKEN ? b->device.last_error.code
                                                                : result;
}

static int act_log_stop(peer_bench *b)
{
    return vhost_log_stop(&b->f->vm);
}

static int act_unmapped(peer_bench *b)
{
    return vhost_device_unmapped(&b->device, USER_IOVA, VHOST_PAGE);
}

static int act_get_config(peer_bench *b)
{
    uint8_t bytes[8];
    return vhost_device_get_config(&b->device, 0, bytes, sizeof bytes);
}

static int act_set_config(peer_bench *b)
{
    static const uint8_t bytes[] = {1, 2, 3};
    return vhost_device_set_config(&b->device, 6, bytes, sizeof bytes);
}

static int act_restore_config(peer_bench *b)
{
    static const uint8_t bytes[] = {1, 2, 3};
    return vhost_user_restore_config(&b->user, 6, bytes, sizeof bytes);
}

static int act_rarp(peer_bench *b)
{
    static const uint8_t mac[] = {0x52, 0x54, 0, 1, 2, 3};
    return vhost_user_send_rarp(&b->user, mac);
}

static int act_mtu(peer_bench *b)
{
    return vhost_user_set_mtu(&b->user, 1500);
}

static int act_kick(peer_bench *b)
{
    return vhost_user_kick(&b->user, 0);
}

static int act_log_fd(peer_bench *b)
{
    return vhost_user_set_log_fd(&b->user, 8800);
}

static int act_gpu(peer_bench *b)
{
    return vhost_user_set_gpu_socket(&b->user, 8801);
}

static int act_crypto(peer_bench *b)
{
    uint8_t session[40] = {1, 2, 3};
    return vhost_user_create_crypto(&b->user, session, sizeof session);
}

static int act_close_crypto(peer_bench *b)
{
    return vhost_user_close_crypto(&b->user, 77);
}

static int act_object(peer_bench *b)
{
    static const uint8_t uuid[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    int fd, result = vhost_user_get_object(&b->user, uuid, &fd);
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

static int act_listen(peer_bench *b)
{
    return vhost_user_postcopy_listen(&b->user);
}

static int act_end(peer_bench *b)
{
    return vhost_user_postcopy_end(&b->user);
}

static int take_nothing(const void *bytes, size_t size, void *user)
{
    (void)bytes;
    (void)size;
    (void)user;
    return 0;
}

static int act_save(peer_bench *b)
{
    return vhost_user_save_state(&b->user, take_nothing, NULL, PEER_STATE);
}

static int act_move(peer_bench *b)
{
    int theirs = -1, ours = peer_file(0);
    b->peer.keeps_state = true;
    int result = vhost_user_move_state(&b->user, true, ours, &theirs);
    close(ours);
    if (theirs >= 0) {
        close(theirs);
    }
    return result;
}

static int act_check(peer_bench *b)
{
    b->peer.saves = true;
    return vhost_user_check_state(&b->user);
}

/* ---- the lists ---- */

enum {
    OPEN,
    OPEN_WINDOWS,
    START,
    START_TABLE,
    START_RECORD,
    START_NET,
    START_FOREIGN,
    START_INBAND,
    START_VIOMMU,
    START_LOAD,
    START_POSTCOPY,
    START_POSTCOPY_TABLE,
    STOP,
    STOP_SKIP,
    RESET,
    RESET_STATUS,
    MASK,
    QUEUE_STOP,
    GROW,
    GROW_TABLE,
    SHRINK,
    LOG_ON,
    LOG_ON_FD,
    LOG_OFF,
    UNMAPPED,
    GET_CONFIG,
    SET_CONFIG,
    RESTORE_CONFIG,
    RARP,
    MTU,
    KICK,
    LOG_FD,
    GPU,
    CRYPTO,
    CLOSE_CRYPTO,
    OBJECT,
    ADVISE,
    LISTEN,
    END,
    SAVE,
    SAVE_OWN,
    MOVE,
    CHECK,
    CALLS
};

#define INBAND PEER_BIT(14)
#define SLOTS  PEER_BIT(15)
#define FAULTS PEER_BIT(8)
#define STATE  PEER_BIT(19)

static int no_window(vhost_user *self, const vhost_user_window *window, int fd, void *user)
{
    (void)self;
    (void)window;
    (void)fd;
    (void)user;
    return 0;
}

static int no_object(vhost_user *self, vhost_user_object what,
                     const uint8_t uuid[VHOST_USER_UUID_SIZE], int *fd, void *user)
{
    (void)self;
    (void)what;
    (void)uuid;
    (void)fd;
    (void)user;
    return 0;
}

static int arrange_windows(peer_bench *b)
{
    b->options.on_window = no_window;
    b->peer.shmem[0] = 0x10000;
    return 0;
}

static int arrange_objects(peer_bench *b)
{
    b->options.on_object = no_object;
    return peer_running(b, 1);
}

const user_call user_calls[] = {
    {"open", 0, 0, arrange_nothing, act_open, false, false},
    {"open with windows", 0, 0, arrange_windows, act_open, false, false},
    {"start", 0, 0, arrange_stopped, act_start, true, false},
    {"start with a table", 0, SLOTS, arrange_stopped, act_start, true, false},
    {"start with a record", 0, 0, arrange_record, act_start, true, false},
    {"start of a net", 0, 0, arrange_mtu, act_start, true, false},
    {"start of a foreign ring", 0, 0, arrange_foreign, act_start, true, false},
    {"start without a kick", INBAND, 0, arrange_inband, act_start, true, false},
    {"start behind a vIOMMU", 0, 0, arrange_viommu, act_start, true, false},
    {"start that loads", STATE, 0, arrange_load, act_start, true, false},
    {"start in postcopy", FAULTS, 0, arrange_listening, act_start, true, false},
    {"start in postcopy, table", FAULTS, SLOTS, arrange_listening, act_start, true, false},
    {"stop", 0, 0, arrange_running, act_stop, false, false},
    {"stop without draining", PEER_BIT(23), 0, arrange_skip, act_stop, false, false},
    {"reset", 0, 0, arrange_stopped, act_reset, false, false},
    {"reset by status", 0, PEER_BIT(13), arrange_stopped, act_reset, false, false},
    {"mask", 0, 0, arrange_running, act_mask, false, true},
    {"queue stop", 0, 0, arrange_running, act_queue_stop, false, false},
    {"commit of more", 0, 0, arrange_running, act_grow, false, false},
    {"commit of a table", 0, SLOTS, arrange_running, act_grow, false, false},
    {"commit of less", 0, 0, arrange_more_memory, act_shrink, false, false},
    {"log start", 0, 0, arrange_running, act_log_start, false, false},
    {"log start with an fd", 0, 0, arrange_log_fd, act_log_start, false, false},
    {"log stop", 0, 0, arrange_logging, act_log_stop, false, false},
    {"unmapped", 0, 0, arrange_running_viommu, act_unmapped, false, false},
    {"get config", 0, 0, arrange_running, act_get_config, false, true},
    {"set config", 0, 0, arrange_running, act_set_config, false, true},
    {"restore config", 0, 0, arrange_stopped, act_restore_config, false, true},
    {"rarp", 0, 0, arrange_running, act_rarp, false, true},
    {"mtu", 0, 0, arrange_running_net, act_mtu, false, true},
    {"kick", INBAND, 0, arrange_running, act_kick, false, true},
    {"log fd", 0, 0, arrange_running, act_log_fd, false, true},
    {"gpu", 0, 0, arrange_running, act_gpu, false, true},
    {"crypto", PEER_BIT(7), 0, arrange_running, act_crypto, false, true},
    {"close crypto", PEER_BIT(7), 0, arrange_running, act_close_crypto, false, true},
    {"object", 0, 0, arrange_objects, act_object, false, true},
    {"advise", FAULTS, 0, arrange_stopped, advise, false, true},
    {"listen", FAULTS, 0, arrange_advised, act_listen, false, true},
    {"end", FAULTS, 0, arrange_listening, act_end, false, true},
    {"save", STATE, 0, arrange_state, act_save, false, true},
    {"save to its own fd", STATE, 0, arrange_own_state, act_save, false, true},
    {"move", STATE, 0, arrange_own_state, act_move, false, true},
    {"check", STATE, 0, arrange_state, act_check, false, true},
};

const size_t user_call_count = sizeof user_calls / sizeof user_calls[0];

#define OF(CALL) &user_calls[CALL]

const user_message user_messages[] = {
    {PEER_GET_FEATURES, 1, USER_NUMBER, OF(OPEN)},
    {PEER_GET_PROTOCOL_FEATURES, 1, USER_NUMBER, OF(OPEN)},
    {PEER_GET_QUEUE_NUM, 1, USER_NUMBER, OF(OPEN)},
    {PEER_GET_MAX_MEM_SLOTS, 1, USER_NUMBER, OF(OPEN)},
    {PEER_SET_BACKEND_REQ_FD, 1, USER_ACK, OF(OPEN)},
    {PEER_GET_SHMEM_CONFIG, 1, USER_WINDOWS, OF(OPEN_WINDOWS)},
    {PEER_SET_FEATURES, 1, USER_ACK, OF(START)},
    {PEER_SET_STATUS, 1, USER_ACK, OF(START)},
    {PEER_GET_STATUS, 1, USER_NUMBER, OF(START)},
    {PEER_ADD_MEM_REG, 1, USER_ACK, OF(START)},
    {PEER_ADD_MEM_REG, 2, USER_ACK, OF(START)},
    {PEER_SET_VRING_CALL, 1, USER_ACK, OF(START)},
    {PEER_SET_VRING_ERR, 1, USER_ACK, OF(START)},
    {PEER_SET_VRING_NUM, 1, USER_ACK, OF(START)},
    {PEER_SET_VRING_BASE, 1, USER_ACK, OF(START)},
    {PEER_SET_VRING_ADDR, 1, USER_ACK, OF(START)},
    {PEER_SET_VRING_ENABLE, 1, USER_ACK, OF(START)},
    {PEER_SET_VRING_KICK, 1, USER_ACK, OF(START)},
    {PEER_SET_STATUS, 2, USER_ACK, OF(START)},
    {PEER_SET_MEM_TABLE, 1, USER_ACK, OF(START_TABLE)},
    {PEER_GET_INFLIGHT_FD, 1, USER_RECORD, OF(START_RECORD)},
    {PEER_SET_INFLIGHT_FD, 1, USER_ACK, OF(START_RECORD)},
    {PEER_NET_SET_MTU, 1, USER_ACK, OF(START_NET)},
    {PEER_SET_VRING_ENDIAN, 1, USER_ACK, OF(START_FOREIGN)},
    {PEER_VRING_KICK, 1, USER_ACK, OF(START_INBAND)},
    {PEER_IOTLB_MSG, 1, USER_VERDICT, OF(START_VIOMMU)},
    {PEER_IOTLB_MSG, 2, USER_VERDICT, OF(START_VIOMMU)},
    {PEER_SET_DEVICE_STATE_FD, 1, USER_STATE, OF(START_LOAD)},
    {PEER_CHECK_DEVICE_STATE, 1, USER_VERDICT, OF(START_LOAD)},
    {PEER_ADD_MEM_REG, 1, USER_ECHO, OF(START_POSTCOPY)},
    {PEER_SET_MEM_TABLE, 1, USER_ECHO, OF(START_POSTCOPY_TABLE)},
    {PEER_GET_VRING_BASE, 1, USER_BASE, OF(STOP)},
    {PEER_GET_VRING_BASE_SKIP_DRAIN, 1, USER_BASE, OF(STOP_SKIP)},
    {PEER_RESET_DEVICE, 1, USER_ACK, OF(RESET)},
    {PEER_SET_STATUS, 1, USER_ACK, OF(RESET_STATUS)},
    {PEER_SET_VRING_CALL, 1, USER_ACK, OF(MASK)},
    {PEER_GET_VRING_BASE, 1, USER_BASE, OF(QUEUE_STOP)},
    {PEER_ADD_MEM_REG, 1, USER_ACK, OF(GROW)},
    {PEER_SET_MEM_TABLE, 1, USER_ACK, OF(GROW_TABLE)},
    {PEER_REM_MEM_REG, 1, USER_ACK, OF(SHRINK)},
    {PEER_SET_LOG_BASE, 1, USER_LOG, OF(LOG_ON)},
    {PEER_SET_FEATURES, 1, USER_ACK, OF(LOG_ON)},
    {PEER_SET_VRING_ADDR, 1, USER_ACK, OF(LOG_ON)},
    {PEER_SET_LOG_FD, 1, USER_ACK, OF(LOG_ON_FD)},
    {PEER_SET_VRING_ADDR, 1, USER_ACK, OF(LOG_OFF)},
    {PEER_SET_FEATURES, 1, USER_ACK, OF(LOG_OFF)},
    {PEER_IOTLB_MSG, 1, USER_VERDICT, OF(UNMAPPED)},
    {PEER_GET_CONFIG, 1, USER_CONFIG, OF(GET_CONFIG)},
    {PEER_SET_CONFIG, 1, USER_ACK, OF(SET_CONFIG)},
    {PEER_SET_CONFIG, 1, USER_ACK, OF(RESTORE_CONFIG)},
    {PEER_SEND_RARP, 1, USER_ACK, OF(RARP)},
    {PEER_NET_SET_MTU, 1, USER_ACK, OF(MTU)},
    {PEER_VRING_KICK, 1, USER_ACK, OF(KICK)},
    {PEER_SET_LOG_FD, 1, USER_ACK, OF(LOG_FD)},
    {PEER_GPU_SET_SOCKET, 1, USER_ACK, OF(GPU)},
    {PEER_CREATE_CRYPTO_SESSION, 1, USER_ECHO, OF(CRYPTO)},
    {PEER_CLOSE_CRYPTO_SESSION, 1, USER_ACK, OF(CLOSE_CRYPTO)},
    {PEER_GET_SHARED_OBJECT, 1, USER_OBJECT, OF(OBJECT)},
    {PEER_POSTCOPY_ADVISE, 1, USER_ADVISE, OF(ADVISE)},
    {PEER_POSTCOPY_LISTEN, 1, USER_ACK, OF(LISTEN)},
    {PEER_POSTCOPY_END, 1, USER_VERDICT, OF(END)},
    {PEER_SET_DEVICE_STATE_FD, 1, USER_STATE, OF(SAVE)},
    {PEER_SET_DEVICE_STATE_FD, 1, USER_STATE, OF(SAVE_OWN)},
    {PEER_SET_DEVICE_STATE_FD, 1, USER_STATE, OF(MOVE)},
    {PEER_CHECK_DEVICE_STATE, 1, USER_VERDICT, OF(SAVE)},
    {PEER_CHECK_DEVICE_STATE, 1, USER_VERDICT, OF(CHECK)},
};

const size_t user_message_count = sizeof user_messages / sizeof user_messages[0];

int user_arrange(peer_bench *b, const user_call *call)
{
    b->options.want = call->want;
    b->options.avoid = call->avoid;
    int result = call->arrange(b);
    peer_forget(&b->peer);
    return result;
}
