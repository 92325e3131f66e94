/* A real crypto device in another process: DPDK's vhost_crypto, compared with the example of the
   AES standard (FIPS 197, appendix C.1).

   backends: crypto */
#define _GNU_SOURCE
#include "clock.h"
#include "request_queue.h"

#include <errno.h>
#include <linux/virtio_crypto.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB UINT64_C(0x100000)

enum {
    QUEUE_AT = 0x10000,
    TABLE_AT = 0x20000, /* of indirect descriptors */
    REQUEST_AT = 0x30000,
    ANSWER_AT = 0x40000,
    BLOCK = 16, /* bytes */
    PIECES = 5,
    NO_ANSWER = 255 /* for a status */
};

static const uint8_t text[BLOCK] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                    0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
static const uint8_t secret[BLOCK] = {0x69, 0xc4, 0xe0, 0xd8, 0x6a, 0x7b, 0x04, 0x30,
                                      0xd8, 0xcd, 0xb7, 0x80, 0x70, 0xb4, 0xc5, 0x5a};

/* What is asked for, and what is answered, as this back-end lays it out. */
typedef struct crypto_session {
    int64_t id; /* answered; negative: it will not */
    uint32_t operation;
    uint32_t cipher, cipher_key_size;
    uint32_t hash, digest_size, auth_key_size, aad_size;
    uint8_t kind, direction, hash_mode, chaining;
    uint64_t not_used[2];
    uint8_t cipher_key[64], auth_key[512];
} crypto_session;

static real_backend card; /* for all tests */
static request_queue queue;

/* ---- a device ---- */

static enum greatest_test_res start(user_machine *m)
{
    request_queue_close(&queue);
    ASSERT_OK(request_queue_open(&queue, m, 0, QUEUE_AT));
    ASSERT_OK(vhost_device_start(&m->device));
    PASS();
}

static enum greatest_test_res stopped(user_machine *m)
{
    m->user_options.want |= UINT64_C(1) << VHOST_USER_BIT_CRYPTO;
    vhost_features_set(&m->wanted, VHOST_FEATURE_INDIRECT_DESC);
    strcpy(m->peer.socket, card.socket);
    ASSERT_OK(user_machine_plug(m, 0, 0, MIB));
    ASSERT_OK(user_machine_attach(m, 1));
    PASS();
}

static enum greatest_test_res running(user_machine *m)
{
    CHECK_CALL(stopped(m));
    return start(m);
}

static user_machine_test *current_test;

static enum greatest_test_res run_with_queue(user_machine *m)
{
    enum greatest_test_res result = current_test(m);
    user_machine_detach(m); /* before its fds are closed */
    request_queue_close(&queue);
    return result;
}

static enum greatest_test_res run_crypto(user_machine_test *test)
{
    current_test = test;
    return user_machine_run(run_with_queue);
}

#define RUN_CRYPTO(TEST_NAME)                                                                      \
    do {                                                                                           \
        if (greatest_test_pre(#TEST_NAME) == 1) {                                                  \
            greatest_test_post(run_crypto(TEST_NAME));                                             \
        }                                                                                          \
    } while (0)

/* ---- sessions ---- */

static int create(user_machine *m, uint32_t cipher, uint8_t direction, int64_t *id)
{
    crypto_session session = {.operation = VIRTIO_CRYPTO_CIPHER_CREATE_SESSION,
                              .cipher = cipher,
                              .cipher_key_size = BLOCK,
                              .kind = VIRTIO_CRYPTO_SYM_OP_CIPHER,
                              .direction = direction};
    for (uint8_t i = 0; i < BLOCK; i++) {
        session.cipher_key[i] = i;
    }
    int result = vhost_user_create_crypto(&m->link, &session, sizeof session);
    *id = session.id;
    return result;
}

/* ---- requests ---- */

/* It takes requests from indirect descriptors alone, which are not the request_queue's business. */
static void put(user_machine *m, const ring_piece *pieces)
{
    const uint64_t one = 1;
    ring_descriptor *table = (ring_descriptor *)(void *)(m->ram + TABLE_AT);
    for (uint16_t i = 0; i < PIECES; i++) {
        int flags =
            (i + 1 < PIECES ? RING_NEXT : 0) | (pieces[i].device_writes ? RING_DEVICE_WRITES : 0);
        table[i].address = pieces[i].gpa;
        table[i].length = pieces[i].length;
        table[i].flags = (uint16_t)flags;
        table[i].next = (uint16_t)(i + 1);
    }
    queue.ring.descriptors[0].address = TABLE_AT;
    queue.ring.descriptors[0].length = PIECES * sizeof table[0];
    queue.ring.descriptors[0].flags = RING_INDIRECT;
    queue.ring.available->entries[queue.ring.added % queue.ring.size] = 0;
    queue.ring.added++;
    __atomic_store_n(&queue.ring.available->index, queue.ring.added, __ATOMIC_RELEASE);
    (void)!write(queue.kick, &one, sizeof one);
}

static bool is_done(user_machine *m)
{
    double end = clock_now() + USER_PATIENCE / 1e3;
    while (split_ring_done(&queue.ring) != queue.ring.added && clock_now() < end) {
        user_machine_turn(m, 10);
    }
    return split_ring_done(&queue.ring) == queue.ring.added;
}

/* One block, through the data queue. Returns the device's status. */
static uint8_t pass(user_machine *m, uint32_t operation, int64_t session, const uint8_t *from,
                    uint8_t *to)
{
    struct {
        struct virtio_crypto_op_data_req head;
        uint8_t iv[BLOCK], from[BLOCK];
    } request;
    const ring_piece pieces[PIECES] = {{REQUEST_AT, sizeof request.head, false},
                                       {REQUEST_AT + sizeof request.head, BLOCK, false},
                                       {REQUEST_AT + sizeof request.head + BLOCK, BLOCK, false},
                                       {ANSWER_AT, BLOCK, true},
                                       {ANSWER_AT + BLOCK, 1, true}};
    memset(&request, 0, sizeof request);
    request.head.header.opcode = operation;
    request.head.header.algo = VIRTIO_CRYPTO_CIPHER_AES_CBC;
    request.head.header.session_id = (uint64_t)session;
    request.head.u.sym_req.op_type = VIRTIO_CRYPTO_SYM_OP_CIPHER;
    request.head.u.sym_req.u.cipher.para.iv_len = BLOCK;
    request.head.u.sym_req.u.cipher.para.src_data_len = BLOCK;
    request.head.u.sym_req.u.cipher.para.dst_data_len = BLOCK;
    memcpy(request.from, from, BLOCK);
    memcpy(m->ram + REQUEST_AT, &request, sizeof request);
    m->ram[ANSWER_AT + BLOCK] = NO_ANSWER;
    put(m, pieces);
    bool done = is_done(m);
    memcpy(to, m->ram + ANSWER_AT, BLOCK);
    return done ? m->ram[ANSWER_AT + BLOCK] : NO_ANSWER;
}

static enum greatest_test_res encrypts(user_machine *m, int64_t session)
{
    uint8_t got[BLOCK];
    ASSERT_UINT(VIRTIO_CRYPTO_OK, pass(m, VIRTIO_CRYPTO_CIPHER_ENCRYPT, session, text, got));
    ASSERT_EQ(0, memcmp(secret, got, BLOCK));
    PASS();
}

static enum greatest_test_res opens_and_encrypts(user_machine *m)
{
    int64_t session = -1;
    ASSERT_OK(create(m, VIRTIO_CRYPTO_CIPHER_AES_CBC, VIRTIO_CRYPTO_OP_ENCRYPT, &session));
    ASSERT(session >= 0);
    CHECK_CALL(encrypts(m, session));
    ASSERT_OK(vhost_user_close_crypto(&m->link, (uint64_t)session));
    PASS();
}

/* ---- tests ---- */

TEST sessions_encrypt_and_decrypt(user_machine *m)
{
    int64_t encrypting = -1, decrypting = -1;
    uint8_t got[BLOCK];
    CHECK_CALL(running(m));
    ASSERT_OK(create(m, VIRTIO_CRYPTO_CIPHER_AES_CBC, VIRTIO_CRYPTO_OP_ENCRYPT, &encrypting));
    ASSERT_OK(create(m, VIRTIO_CRYPTO_CIPHER_AES_CBC, VIRTIO_CRYPTO_OP_DECRYPT, &decrypting));
    ASSERT(encrypting >= 0 && decrypting >= 0 && encrypting != decrypting);
    CHECK_CALL(encrypts(m, encrypting));
    ASSERT_UINT(VIRTIO_CRYPTO_OK, pass(m, VIRTIO_CRYPTO_CIPHER_DECRYPT, decrypting, secret, got));
    ASSERT_EQ(0, memcmp(text, got, BLOCK));
    ASSERT_OK(vhost_user_close_crypto(&m->link, (uint64_t)decrypting));
    CHECK_CALL(encrypts(m, encrypting)); /* the right one was closed */
    ASSERT_OK(vhost_user_close_crypto(&m->link, (uint64_t)encrypting));
    ASSERT_UINT(0, m->errors);
    PASS();
}

/* It always answers with the position that it was given. The ring shows that this cannot be, and,
   as nothing is left in it, where it really stands. */
TEST its_wrong_position_is_not_believed(user_machine *m)
{
    vhost_position *position = &m->queue[0].position;
    CHECK_CALL(running(m));
    for (unsigned round = 0; round < 3; round++) {
        CHECK_CALL(opens_and_encrypts(m));
        ASSERT_OK(vhost_device_stop(&m->device));
        ASSERT_INT(VHOST_POSITION_CERTAIN, position->state);
        ASSERT_UINT(queue.ring.added, position->avail);
        ASSERT(position->used_certain);
        ASSERT_OK(vhost_device_start(&m->device));
    }
    ASSERT_UINT(0, m->broken);
    PASS();
}

TEST what_it_refuses_harms_nothing(user_machine *m)
{
    int64_t session = 0;
    CHECK_CALL(running(m));
    ASSERT_OK(create(m, VIRTIO_CRYPTO_CIPHER_ZUC_EEA3, VIRTIO_CRYPTO_OP_ENCRYPT, &session));
    ASSERT(session < 0); /* its answer */
    ASSERT_INT(-EIO, vhost_user_close_crypto(&m->link, 12345));
    ASSERT_INT(VHOST_WHY_USER_REFUSED, m->link.last_error.why);
    ASSERT(strstr(m->link.last_error.text, "CLOSE_CRYPTO_SESSION") != NULL);
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    CHECK_CALL(opens_and_encrypts(m));
    ASSERT_UINT(0, m->broken);
    PASS();
}

TEST sessions_have_to_be_wanted(user_machine *m)
{
    int64_t session = -1;
    m->user_options.avoid = UINT64_C(1) << VHOST_USER_BIT_CRYPTO;
    CHECK_CALL(running(m));
    ASSERT(m->link.protocol_offered >> VHOST_USER_BIT_CRYPTO & 1);
    ASSERT_UINT(0, m->link.protocol >> VHOST_USER_BIT_CRYPTO & 1);
    ASSERT_INT(-ENOTSUP,
               create(m, VIRTIO_CRYPTO_CIPHER_AES_CBC, VIRTIO_CRYPTO_OP_ENCRYPT, &session));
    ASSERT_INT(VHOST_STATE_RUNNING, m->device.state);
    PASS();
}

/* Without notice, as it does for all that it cannot do. */
static enum greatest_test_res hung_up(user_machine *m, int code, const char *message)
{
    ASSERT_INT(-ECONNRESET, code);
    ASSERT_INT(VHOST_WHY_USER_EOF, m->link.last_error.why);
    ASSERT(strstr(m->link.last_error.text, message) != NULL);
    user_machine_turn(m, 0);
    ASSERT_INT(VHOST_STATE_BROKEN, m->device.state);
    ASSERT_INT(VHOST_WHY_BACKEND_LOST, m->device.last_error.why);
    ASSERT(strstr(m->device.last_error.text, message) != NULL);
    ASSERT(real_backend_runs(&card)); /* for another client */
    PASS();
}

static enum greatest_test_res starts_over(user_machine *m)
{
    ASSERT_OK(vhost_device_reset(&m->device));
    ASSERT_INT(VHOST_STATE_STOPPED, m->device.state);
    ASSERT_OK(vhost_device_ack(&m->device, vhost_device_offer(&m->device, m->wanted)));
    CHECK_CALL(start(m));
    return opens_and_encrypts(m);
}

TEST it_hangs_up_when_asked_for_its_config(user_machine *m)
{
    uint8_t config[16];
    CHECK_CALL(running(m));
    ASSERT(m->link.protocol >> VHOST_USER_BIT_CONFIG & 1);
    for (unsigned i = 1; i <= 3; i++) {
        int code = vhost_device_get_config(&m->device, 0, config, sizeof config);
        CHECK_CALL(hung_up(m, code, "GET_CONFIG"));
        ASSERT_UINT(i, m->broken);
        CHECK_CALL(starts_over(m));
    }
    PASS();
}

/* And when it is asked for a session before it runs. */
TEST it_hangs_up_when_it_is_asked_too_early(user_machine *m)
{
    int64_t session = -1;
    CHECK_CALL(stopped(m));
    int code = create(m, VIRTIO_CRYPTO_CIPHER_AES_CBC, VIRTIO_CRYPTO_OP_ENCRYPT, &session);
    CHECK_CALL(hung_up(m, code, "CREATE_CRYPTO_SESSION"));
    return starts_over(m);
}

SUITE(crypto)
{
    RUN_CRYPTO(sessions_encrypt_and_decrypt);
    RUN_CRYPTO(its_wrong_position_is_not_believed);
    RUN_CRYPTO(what_it_refuses_harms_nothing);
    RUN_CRYPTO(sessions_have_to_be_wanted);
    RUN_CRYPTO(it_hangs_up_when_asked_for_its_config);
    RUN_CRYPTO(it_hangs_up_when_it_is_asked_too_early);
}

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    if (!real_backend_open(&card) || !real_backend_start(&card, "crypto", "")) {
        real_backend_close(&card);
        return EXIT_FAILURE;
    }
    RUN_SUITE(crypto);
    real_backend_end(&card, SIGKILL); /* no other signal ends it at once */
    real_backend_close(&card);
    GREATEST_MAIN_END();
}
