/* A real graphics card in another process: QEMU's vhost-user-gpu, and the display it draws on,
   which is this test.

   backends: gpu */
#define _GNU_SOURCE
#include "clock.h"
#include "request_queue.h"

#include <errno.h>
#include <linux/virtio_gpu.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)

enum {
    CONTROL = 0, /* queues */
    CURSOR = 1,  /* */
    QUEUES = 2,  /* */
    QUEUE_AT = 0x10000,
    ANSWER_AT = 0x40000,
    PICTURE_AT = 0x80000,
    WIDTH = 48, /* of the picture, in pixels */
    HEIGHT = 40,
    PICTURE = 7, /* its number */

    GET_FEATURES = 1, /* messages to a display */
    SET_FEATURES = 2,
    SCANOUT = 7,
    UPDATE = 8
};

typedef struct display_message { /* as the vhost-user-gpu protocol lays it out */
    uint32_t request, flags, size;
    union {
        uint64_t features;
        struct {
            uint32_t screen, width, height;
        } scanout;
        struct {
            uint32_t screen, x, y, width, height, pixels[WIDTH * HEIGHT];
        } update;
    } payload;
} display_message;

static request_queue queues[QUEUES];
static int display; /* our end of the socket; 0: none */

/* ---- a card, and a display ---- */

static enum greatest_test_res start(user_machine *m)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        request_queue_close(&queues[i]);
        ASSERT_OK(request_queue_open(&queues[i], m, i, QUEUE_AT * (i + 1)));
    }
    ASSERT_OK(vhost_device_start(&m->device));
    PASS();
}

static enum greatest_test_res stopped(user_machine *m)
{
    ASSERT(real_backend_start(&m->peer, "gpu", ""));
    ASSERT_OK(user_machine_plug(m, 0, 0, MIB));
    ASSERT_OK(user_machine_attach(m, QUEUES));
    PASS();
}

static enum greatest_test_res has_sent(display_message *got, uint32_t request, size_t size)
{
    memset(got, 0, sizeof *got);
    ASSERT_EQ_FMT((ssize_t)12, recv(display, got, 12, MSG_WAITALL), "%zd");
    ASSERT_UINT(request, got->request);
    ASSERT_UINT(size, got->size);
    ASSERT(size == 0 || recv(display, &got->payload, size, MSG_WAITALL) == (ssize_t)size);
    PASS();
}

/* It asks what the display can, and says what it will use. */
static enum greatest_test_res plug_display(user_machine *m)
{
    const display_message answer = {.request = GET_FEATURES, .flags = 4, .size = 8};
    display_message got;
    struct timeval patience = {.tv_sec = USER_PATIENCE / 1000};
    int ends[2];
    ASSERT_INT(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
    display = ends[0];
    setsockopt(display, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    int code = vhost_user_set_gpu_socket(&m->link, ends[1]);
    close(ends[1]);
    ASSERT_OK(code);
    CHECK_CALL(has_sent(&got, GET_FEATURES, 0));
    ASSERT_EQ_FMT((ssize_t)20, send(display, &answer, 20, MSG_NOSIGNAL), "%zd");
    CHECK_CALL(has_sent(&got, SET_FEATURES, 8));
    ASSERT_EQ(0, got.payload.features);
    PASS();
}

static user_machine_test *current_test;

static enum greatest_test_res run_with_queues(user_machine *m)
{
    enum greatest_test_res result = current_test(m);
    user_machine_detach(m); /* before its fds are closed */
    for (unsigned i = 0; i < QUEUES; i++) {
        request_queue_close(&queues[i]);
    }
    if (display > 0) {
        close(display);
    }
    display = 0;
    return result;
}

static enum greatest_test_res run_gpu(user_machine_test *test)
{
    current_test = test;
    return user_machine_run(run_with_queues);
}

#define RUN_GPU(TEST_NAME)                                                                         \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_gpu(TEST_NAME));                                                \
        }                                                                                          \
    } while (0)

/* ---- commands ---- */

/* Sends a command of the driver; returns the type of the answer, 0: none came. */
static uint32_t command(user_machine *m, uint32_t type, void *bytes, size_t size)
{
    struct virtio_gpu_ctrl_hdr answer = {.type = 0};
    ((struct virtio_gpu_ctrl_hdr *)bytes)->type = type;
    int64_t length =
        request_queue_ask(&queues[CONTROL], m, bytes, (uint32_t)size, ANSWER_AT, sizeof answer);
    memcpy(&answer, m->ram + ANSWER_AT, sizeof answer);
    return length == (int64_t)sizeof answer ? answer.type : 0;
}

static uint32_t create(user_machine *m)
{
    struct virtio_gpu_resource_create_2d what = {.resource_id = PICTURE,
                                                 .format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM,
                                                 .width = WIDTH,
                                                 .height = HEIGHT};
    return command(m, VIRTIO_GPU_CMD_RESOURCE_CREATE_2D, &what, sizeof what);
}

static uint32_t attach(user_machine *m)
{
    struct {
        struct virtio_gpu_resource_attach_backing head;
        struct virtio_gpu_mem_entry piece[2];
    } what = {.head = {.resource_id = PICTURE, .nr_entries = 2}};
    uint32_t size = WIDTH * HEIGHT * 4;
    what.piece[0].addr = PICTURE_AT; /* its two halves, in a wrong order */
    what.piece[1].addr = PICTURE_AT - size;
    what.piece[0].length = what.piece[1].length = size / 2;
    return command(m, VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING, &what, sizeof what);
}

static uint32_t transfer(user_machine *m)
{
    struct virtio_gpu_transfer_to_host_2d what = {.resource_id = PICTURE};
    what.r.width = WIDTH;
    what.r.height = HEIGHT;
    return command(m, VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D, &what, sizeof what);
}

static uint32_t set_scanout(user_machine *m)
{
    struct virtio_gpu_set_scanout what = {.scanout_id = 0, .resource_id = PICTURE};
    what.r.width = WIDTH;
    what.r.height = HEIGHT;
    return command(m, VIRTIO_GPU_CMD_SET_SCANOUT, &what, sizeof what);
}

static uint32_t flush(user_machine *m)
{
    struct virtio_gpu_resource_flush what = {.resource_id = PICTURE};
    what.r.width = WIDTH;
    what.r.height = HEIGHT;
    return command(m, VIRTIO_GPU_CMD_RESOURCE_FLUSH, &what, sizeof what);
}

static void paint(user_machine *m, uint32_t seed, uint32_t *picture)
{
    size_t half = WIDTH * HEIGHT / 2;
    for (uint32_t i = 0; i < WIDTH * HEIGHT; i++) {
        picture[i] = (i * 2654435761u + seed) & 0xffffff;
    }
    memcpy(m->ram + PICTURE_AT, picture, half * 4);
    memcpy(m->ram + PICTURE_AT - WIDTH * HEIGHT * 4, picture + half, half * 4);
}

/* The display has the screen that the driver set. */
static enum greatest_test_res shows_a_screen(user_machine *m)
{
    display_message got;
    ASSERT_UINT(VIRTIO_GPU_RESP_OK_NODATA, create(m));
    ASSERT_UINT(VIRTIO_GPU_RESP_OK_NODATA, attach(m));
    ASSERT_UINT(VIRTIO_GPU_RESP_OK_NODATA, set_scanout(m));
    CHECK_CALL(has_sent(&got, SCANOUT, sizeof got.payload.scanout));
    ASSERT_UINT(WIDTH, got.payload.scanout.width);
    ASSERT_UINT(HEIGHT, got.payload.scanout.height);
    PASS();
}

/* Pixels in guest memory come out on the display. */
static enum greatest_test_res shows_a_picture(user_machine *m, uint32_t seed)
{
    uint32_t picture[WIDTH * HEIGHT];
    display_message got;
    paint(m, seed, picture);
    ASSERT_UINT(VIRTIO_GPU_RESP_OK_NODATA, transfer(m));
    ASSERT_UINT(VIRTIO_GPU_RESP_OK_NODATA, flush(m));
    CHECK_CALL(has_sent(&got, UPDATE, sizeof got.payload.update));
    ASSERT_UINT(WIDTH, got.payload.update.width);
    ASSERT_UINT(HEIGHT, got.payload.update.height);
    for (size_t i = 0; i < WIDTH * HEIGHT; i++) {
        ASSERT_UINT(picture[i], got.payload.update.pixels[i] & 0xffffff);
    }
    PASS();
}

/* ---- tests ---- */

/* To a byte more than it has, it answers with no bytes at all: that is how a back-end refuses. */
static enum greatest_test_res refuses_its_config(user_machine *m, unsigned times)
{
    uint8_t config[sizeof(struct virtio_gpu_config) + 1];
    vhost_state state = m->device.state;
    ASSERT_INT(-EIO, vhost_device_get_config(&m->device, 0, config, sizeof config));
    ASSERT_INT(VHOST_WHY_USER_REFUSED, m->link.last_error.why);
    ASSERT_INT(VHOST_OP_GET_CONFIG, m->device.last_error.op);
    ASSERT(strstr(m->device.last_error.text, "GET_CONFIG") != NULL);
    ASSERT_UINT(times, m->errors);
    ASSERT_UINT(0, m->broken);
    ASSERT_INT(state, m->device.state);
    ASSERT_OK(vhost_device_get_config(&m->device, 0, config, sizeof config - 1));
    PASS();
}

TEST a_refused_config_harms_nothing(user_machine *m)
{
    CHECK_CALL(stopped(m));
    ASSERT(m->link.protocol >> VHOST_USER_BIT_CONFIG & 1);
    CHECK_CALL(refuses_its_config(m, 1));
    CHECK_CALL(start(m));
    ASSERT_UINT(VIRTIO_GPU_RESP_OK_NODATA, create(m));
    CHECK_CALL(refuses_its_config(m, 2));
    ASSERT_UINT(VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID, create(m)); /* it is there */
    ASSERT(real_backend_runs(&m->peer));
    PASS();
}

TEST a_picture_comes_out_on_the_display(user_machine *m)
{
    CHECK_CALL(stopped(m));
    CHECK_CALL(plug_display(m));
    CHECK_CALL(start(m));
    CHECK_CALL(shows_a_screen(m));
    for (uint32_t i = 0; i < 10; i++) {
        CHECK_CALL(shows_a_picture(m, i));
    }
    ASSERT_UINT(0, m->errors);
    PASS();
}

TEST pictures_stay_over_a_stop(user_machine *m)
{
    CHECK_CALL(stopped(m));
    CHECK_CALL(plug_display(m));
    CHECK_CALL(start(m));
    CHECK_CALL(shows_a_screen(m));
    for (uint32_t i = 0; i < 10; i++) {
        CHECK_CALL(shows_a_picture(m, i));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_INT(VHOST_POSITION_CERTAIN, m->queue[CONTROL].position.state);
        ASSERT_UINT(queues[CONTROL].ring.added, m->queue[CONTROL].position.avail);
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(0, m->errors);
    return shows_a_picture(m, 11);
}

SUITE(graphics)
{
    RUN_GPU(a_refused_config_harms_nothing);
    RUN_GPU(a_picture_comes_out_on_the_display);
    RUN_GPU(pictures_stay_over_a_stop);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(graphics);
    GREATEST_MAIN_END();
}
