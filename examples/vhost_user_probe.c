/* vhost_user_probe.c - asks a vhost-user back-end what it has
   SPDX-License-Identifier: MIT OR Unlicense

   shows     Connecting to any back-end, and all that it says of itself before a queue is started:
             features by name, queues, memory slots, the config space.
   build     make build/examples/vhost_user_probe, or by hand:
             cc -O2 -I. examples/vhost_user_probe.c examples/common/?*.c
   run       vhost_user_probe [--type net|blk|scsi|fs|gpu|vsock|crypto] SOCKET
             The protocol does not say what kind of device a back-end is: without the type, the bits
             that belong to it are shown by number. Without a socket, it starts a
             qemu-storage-daemon and asks that; exit status 77 where there is none.
   expected  A report as below, and exit status 0; or one line that says what is wrong, and 1.

             virtio features      0x175007e46
                 1  SIZE_MAX                  2  SEG_MAX                   6  BLK_SIZE
             ...
             vhost_user_probe: ok (features: 15, protocol features: 9) */
#define _GNU_SOURCE
#define VHOST_IMPLEMENTATION
#include "vhost_user.h"

#include "common/clock.h"
#include "common/report.h"
#include "common/storage_daemon.h"
#include "common/virtio_names.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    PATIENCE = 5000,  /* milliseconds for an answer; some back-ends take a second to wake up */
    CONFIG_MAX = 256, /* bytes of config space that we ask for */
    CONFIG_STEP = 4,  /* bytes */
    LINE = 16,        /* bytes of it in a line */
    COLUMNS = 3,      /* names in a line */
    WIDTH = 25        /* of a name */
};

typedef struct probe {
    const char *path;
    const virtio_type *type; /* NULL: not known */
    vhost_vm vm;
    vhost_user backend;
    vhost_device device;
    vhost_queue queue; /* a device has at least one; it is not started */
    double took;       /* to connect and negotiate, seconds */
    unsigned features; /* shown */
    unsigned protocol_features;
    uint8_t config[CONFIG_MAX];
    uint32_t config_size;
    char config_error[sizeof((vhost_error *)0)->text];
    report report;
} probe;

/* ---- asking ---------------------------------------------------------------------------------- */

/* Back-ends refuse what is longer than their config space, and none says how long it is: so the
   longest that is answered. A refusal can cost the connection: this comes last. */
static void ask_config(probe *p)
{
    uint8_t bytes[CONFIG_MAX];
    uint32_t size = CONFIG_STEP;
    while (size <= CONFIG_MAX && vhost_device_get_config(&p->device, 0, bytes, size) == 0) {
        memcpy(p->config, bytes, size);
        p->config_size = size;
        size += CONFIG_STEP;
    }
    if (p->config_size == 0)
        snprintf(p->config_error, sizeof p->config_error, "%s", p->backend.last_error.text);
}

static int ask(probe *p)
{
    vhost_user_options options = {.timeout_ms = PATIENCE};
    double begin = clock_now();
    vhost_queue_init(&p->queue);
    int code = vhost_user_connect(&p->backend, p->path, &options);
    if (code == 0)
        code = vhost_device_init(&p->device, &p->vm, vhost_user_ops(), &p->backend, &p->queue, 1,
                                 NULL);
    p->took = clock_now() - begin;
    return code;
}

/* ---- showing --------------------------------------------------------------------------------- */

typedef const char *namer(const probe *p, unsigned bit);

static const char *feature_name(const probe *p, unsigned bit)
{
    return virtio_feature_name(p->type, bit);
}

static const char *protocol_name(const probe *p, unsigned bit)
{
    (void)p;
    return vhost_user_protocol_name(bit);
}

/* Bits by number and name, in columns, with a star at those that are used. Returns how many. */
static unsigned show_bits(const probe *p, namer *name_of, uint64_t bits, uint64_t used)
{
    unsigned shown = 0;
    int gap = 0; /* to the next column */
    for (unsigned bit = 0; bit < 64; bit++) {
        if ((bits >> bit & 1) == 0)
            continue;
        const char *name = name_of(p, bit);
        bool begins = shown++ % COLUMNS == 0;
        if (begins)
            printf("\n");
        printf("%*s%2u%c %s", begins ? 3 : gap, "", bit, (used >> bit & 1) != 0 ? '*' : ' ',
               name != NULL ? name : "?");
        gap = WIDTH - (int)strlen(name != NULL ? name : "?");
    }
    printf("\n");
    return shown;
}

static void show_bytes(const uint8_t *bytes, uint32_t size)
{
    while (size > 0 && bytes[size - 1] == 0) /* the zeros at the end say nothing */
        size--;
    for (uint32_t row = 0; row < size; row += LINE) {
        printf("   %02x: ", (unsigned)row);
        for (uint32_t at = row; at < row + LINE && at < size; at++)
            printf(" %02x", bytes[at]);
        printf("\n");
    }
}

static void show_field(const virtio_field *field, const uint8_t *config)
{
    printf("   %-32s ", field->name);
    if (field->count == 1)
        printf("%llu", (unsigned long long)virtio_field_value(field, config));
    for (unsigned i = 0; i < field->count && field->count > 1; i++)
        printf("%s%02x", i != 0 ? ":" : "", config[field->offset + i]);
    printf("\n");
}

static void show_config(const probe *p)
{
    if (p->config_size == 0) {
        printf("config space         none: %s\n", p->config_error);
        return;
    }
    printf("config space         %s%u bytes\n", p->config_size == CONFIG_MAX ? "at least " : "",
           (unsigned)p->config_size);
    show_bytes(p->config, p->config_size);
    for (unsigned i = 0; p->type != NULL && i < p->type->field_count; i++) {
        const virtio_field *field = &p->type->fields[i];
        if (field->offset + field->size * field->count <= p->config_size)
            show_field(field, p->config);
    }
}

/* What a protocol feature is good for, with or without it. */
static void show_ability(const probe *p, const char *what, unsigned bit, const char *otherwise)
{
    bool has = (p->backend.protocol_offered >> bit & 1) != 0;
    printf("%-20s %s", what, has ? "yes" : "no");
    if (!has)
        printf(": %s", otherwise);
    printf("\n");
}

static void show(probe *p)
{
    const vhost_user *backend = &p->backend;
    printf("%s\n\n", p->path);
    printf("negotiated in        %.2f ms\n", p->took * 1e3);
    printf("virtio features      0x%llx%s", (unsigned long long)backend->features,
           p->type == NULL ? " (--type names the first 24)" : "");
    p->features = show_bits(p, feature_name, backend->features, 0);
    printf("protocol features    0x%llx, * in use", (unsigned long long)backend->protocol_offered);
    p->protocol_features =
        show_bits(p, protocol_name, backend->protocol_offered, backend->protocol);

    if (backend->queue_number != 0)
        printf("queues               %llu\n", (unsigned long long)backend->queue_number);
    else
        printf("queues               it does not say\n");
    printf("memory slots         %llu\n", (unsigned long long)backend->slots);
    show_ability(p, "says what failed", VHOST_USER_BIT_REPLY_ACK,
                 "it can only close the connection");
    show_ability(p, "dirty log", VHOST_USER_BIT_LOG_SHMFD, "no live migration");
    show_ability(p, "requests in flight", VHOST_USER_BIT_INFLIGHT,
                 "if it dies, they may be lost, or be done twice");
    show_ability(p, "saves its own state", VHOST_USER_BIT_STATE, "if it has one, it stays behind");
    show_config(p);
}

/* ---- what is wrong --------------------------------------------------------------------------- */

static const struct advice {
    vhost_why why;
    const char *text;
} advices[] = {
    {VHOST_WHY_USER_CONNECT, "is the back-end started, and is this its socket?"},
    {VHOST_WHY_USER_EOF, "does it have a front-end already, or is it no vhost-user back-end?"},
    {VHOST_WHY_USER_TIMEOUT, "does it have a front-end already, or is it no vhost-user back-end?"},
    {VHOST_WHY_USER_HEADER, "something answers, but it does not speak vhost-user"},
    {VHOST_WHY_USER_SIZE, "something answers, but it does not speak vhost-user well"},
    {VHOST_WHY_USER_FDS, "something answers, but it does not speak vhost-user well"},
    {VHOST_WHY_USER_VALUE, "something answers, but it does not speak vhost-user well"},
    {VHOST_WHY_USER_UNASKED, "something answers, but it does not speak vhost-user well"},
};

static void complain(probe *p, int code)
{
    const vhost_error *error = &p->backend.last_error;
    printf("%s: %s\n", error->text[0] != '\0' ? error->text : p->path, strerror(-code));
    for (size_t i = 0; i < sizeof advices / sizeof advices[0]; i++)
        if (advices[i].why == error->why)
            printf("(%s)\n", advices[i].text);
    report_fail(&p->report, "%s", vhost_why_text(error->why));
}

/* ---- the whole of it ------------------------------------------------------------------------- */

static int run(probe *p)
{
    int code = vhost_vm_init(&p->vm, NULL);
    if (code == 0)
        code = ask(p);
    if (code == 0) {
        ask_config(p);
        show(p);
    } else {
        complain(p, code);
    }
    vhost_device_cleanup(&p->device);
    vhost_user_close(&p->backend);
    (void)vhost_vm_cleanup(&p->vm);
    return report_end(&p->report, "features: %u, protocol features: %u", p->features,
                      p->protocol_features);
}

/* On a back-end of our own. */
static int demonstrate(probe *p)
{
    storage_daemon daemon;
    int code = storage_daemon_open(&daemon, 64 * 1024 * 1024, 4);
    if (code == -ENOENT)
        return report_skip(&p->report, storage_daemon_remedy);
    if (code < 0) {
        report_fail(&p->report, "qemu-storage-daemon did not start: %s", strerror(-code));
        return report_end(&p->report, "never");
    }
    p->path = daemon.socket;
    p->type = virtio_type_find("blk");
    code = run(p);
    storage_daemon_close(&daemon);
    return code;
}

int main(int argc, char **argv)
{
    static probe the_probe; /* fixed address: vhost.h never moves its objects, nor may we */
    probe *p = &the_probe;
    p->report.program = "vhost_user_probe";
    if (argc == 1)
        return demonstrate(p);
    bool typed = strcmp(argv[1], "--type") == 0;
    if (typed && argc == 4)
        p->type = virtio_type_find(argv[2]);
    if (typed ? p->type == NULL : argc != 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: vhost_user_probe [--type %s] SOCKET\n", virtio_type_names);
        return 2;
    }
    p->path = argv[argc - 1];
    return run(p);
}
