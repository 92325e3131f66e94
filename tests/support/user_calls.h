/* Every call of vhost.h and vhost_user.h that talks to a back-end, and every message that it sends
   and that is answered: for tests that break each of them. */
#ifndef TEST_USER_CALLS_H
#define TEST_USER_CALLS_H

#include "peer.h"

typedef struct user_call {
    const char *name;
    uint64_t want, avoid; /* protocol features */
    int (*arrange)(peer_bench *b);
    int (*act)(peer_bench *b);
    bool starts; /* it is a start, or */
    bool serves; /* a service: the core learns of a loss later */
} user_call;

typedef enum user_kind { /* of an answer */
    USER_ACK,            /* a u64 that may say no */
    USER_VERDICT,        /* the same, whether asked for or not */
    USER_NUMBER,
    USER_BASE,
    USER_CONFIG,
    USER_LOG,
    USER_ADVISE, /* an fd, */
    USER_OBJECT, /* or maybe one */
    USER_RECORD,
    USER_STATE,
    USER_WINDOWS,
    USER_ECHO
} user_kind;

typedef struct user_message {
    uint32_t id;
    unsigned nth; /* such message of the call, from 1 */
    user_kind kind;
    const user_call *call;
} user_message;

extern const user_call user_calls[];
extern const size_t user_call_count;
extern const user_message user_messages[];
extern const size_t user_message_count;

/* All up to the call itself. */
int user_arrange(peer_bench *b, const user_call *call);

/* Behind a vIOMMU: what the driver calls this is at 0 of guest memory. */
#define USER_IOVA UINT64_C(0x10000000)

int user_change_map(peer_bench *b, unsigned sections); /* of three */

#endif
