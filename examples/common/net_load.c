/* net_load.c - a station that sends numbered requests, and compares every answer byte by byte
   SPDX-License-Identifier: MIT OR Unlicense */
#include "net_load.h"

#include "clock.h"

#include <string.h>

#define LATE        0.2  /* seconds without an answer: it is sent again */
#define LONGEST_GAP 0.01 /* seconds between two calls that count as work */

enum {
    SMALLEST = FRAME_ECHO_HEADER + 8,    /* bytes */
    SEQUENCE_AT = FRAME_ECHO_HEADER - 2, /* where a ping has its number, two bytes of it */
    SIZES = FRAME_MAX - SMALLEST + 1,    /* that there are */
    STRIDE = 37                          /* between two sizes; it reaches all of them */
};

void net_load_init(net_load *self, net_driver *driver, net_answer answer, const station *me,
                   const station *other, uint32_t window)
{
    *self = (net_load){.driver = driver,
                       .answer = answer,
                       .me = *me,
                       .other = *other,
                       .window = window,
                       .seen = clock_now(),
                       .resolved = answer == NET_ANSWER_SWAP};
}

uint32_t net_load_waiting(const net_load *self)
{
    return self->next - (uint32_t)self->answered;
}

static void fail(net_load *self, const char *fault)
{
    if (self->fault == NULL)
        self->fault = fault;
}

/* ---- requests, and what must answer them ----------------------------------------------------- */

static void make_request(const net_load *self, uint32_t number, frame *made)
{
    size_t size = SMALLEST + number * STRIDE % SIZES;
    if (self->answer == NET_ANSWER_PING)
        frame_echo_request(made, &self->me, &self->other, (uint16_t)number,
                           size - FRAME_ECHO_HEADER);
    else
        frame_numbered(made, &self->me, &self->other, number, size);
}

static void swap_stations(frame *made)
{
    uint8_t to[6];
    memcpy(to, made->bytes, 6);
    memcpy(made->bytes, made->bytes + 6, 6);
    memcpy(made->bytes + 6, to, 6);
}

static void make_answer(const net_load *self, uint32_t number, frame *made)
{
    frame request;
    make_request(self, number, &request);
    if (self->answer == NET_ANSWER_PING) {
        (void)frame_answer(made, &request, &self->other);
    } else {
        *made = request;
        swap_stations(made);
    }
}

/* The number of the request that this says it answers. Of a ping it has the lower half: it means
   the last one with that half. Returns false if there was none. */
static bool find_number(const net_load *self, const frame *got, uint32_t *number)
{
    if (self->answer == NET_ANSWER_SWAP)
        return frame_number(got, number) && *number < self->next;
    if (got->size < SMALLEST)
        return false;
    uint32_t sequence = (uint32_t)got->bytes[SEQUENCE_AT] << 8 | got->bytes[SEQUENCE_AT + 1];
    uint32_t ago = (self->next - 1 - sequence) & 0xffff;
    *number = self->next - 1 - ago;
    return ago < self->next;
}

/* ---- sending --------------------------------------------------------------------------------- */

static void tell_time(net_load *self)
{
    double now = clock_now(), gap = now - self->seen;
    self->seen = now;
    if (gap > 0)
        self->time += gap < LONGEST_GAP ? gap : LONGEST_GAP;
}

static void ask_for_other(net_load *self)
{
    frame question;
    if (self->asked && self->time - self->asked_at < LATE)
        return;
    frame_arp_request(&question, &self->me, self->other.ip);
    self->asked = net_driver_send(self->driver, &question);
    self->asked_at = self->time;
}

static bool send_request(net_load *self, uint32_t number)
{
    frame request;
    make_request(self, number, &request);
    bool sent = net_driver_send(self->driver, &request);
    if (sent)
        self->requests[number % NET_LOAD_WINDOW] = (net_request){true, self->time};
    return sent;
}

static void send_late_ones(net_load *self)
{
    for (uint32_t number = self->next - NET_LOAD_WINDOW; number != self->next; number++) {
        const net_request *request = &self->requests[number % NET_LOAD_WINDOW];
        if (request->waits && self->time - request->sent > LATE && send_request(self, number))
            self->resent++;
    }
}

/* The oldest ones keep their places until they are answered. */
static bool has_room(const net_load *self)
{
    return net_load_waiting(self) < self->window &&
           !self->requests[self->next % NET_LOAD_WINDOW].waits;
}

void net_load_feed(net_load *self, uint32_t most)
{
    tell_time(self);
    if (!self->resolved)
        ask_for_other(self);
    send_late_ones(self);
    for (uint32_t i = 0; i < most && self->resolved && has_room(self); i++) {
        if (!send_request(self, self->next))
            break;
        self->next++;
    }
    net_driver_kick(self->driver);
}

/* ---- receiving ------------------------------------------------------------------------------- */

static bool is_for_me(const net_load *self, const frame *got)
{
    return got->size >= 12 && memcmp(got->bytes, self->me.mac, 6) == 0;
}

/* Whether it says by ARP who the other one is. */
static bool is_introduction(net_load *self, const frame *got)
{
    frame question, expected;
    station other = self->other;
    if (!self->asked)
        return false;
    memcpy(other.mac, got->bytes + 6, 6);
    frame_arp_request(&question, &self->me, other.ip);
    if (!frame_answer(&expected, &question, &other) || !frame_equal(got, &expected))
        return false;
    self->other = other;
    return self->resolved = true;
}

static void take_answer(net_load *self, const frame *got)
{
    uint32_t number;
    frame expected;
    if (!find_number(self, got, &number)) {
        fail(self, "a frame came that nobody asked for");
        return;
    }
    make_answer(self, number, &expected);
    if (!frame_equal(got, &expected)) {
        fail(self, "an answer is not what it must be");
        return;
    }
    net_request *request = &self->requests[number % NET_LOAD_WINDOW];
    bool is_first = self->next - number <= NET_LOAD_WINDOW && request->waits;
    if (is_first) {
        request->waits = false;
        self->answered++;
    } else {
        self->doubled++;
    }
}

/* What is for everybody, and no question that we could answer, is no business of ours. */
static void take_frame(net_load *self, const frame *got)
{
    frame answer;
    if (frame_answer(&answer, got, &self->me))
        (void)net_driver_send(self->driver, &answer);
    else if (is_for_me(self, got) && !is_introduction(self, got))
        take_answer(self, got);
}

void net_load_take(net_load *self)
{
    frame got;
    net_driver_reclaim(self->driver);
    while (net_driver_receive(self->driver, &got))
        take_frame(self, &got);
}
