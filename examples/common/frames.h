/* frames.h - the Ethernet frames of the demo: made, answered and compared byte by byte
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef FRAMES_H_INCLUDED
#define FRAMES_H_INCLUDED

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FRAME_MAX = 1514,      /* the largest that Ethernet has, without its checksum */
    FRAME_ECHO_HEADER = 42 /* bytes of an ICMP echo before its payload: Ethernet, IPv4, ICMP */
};

typedef struct frame {
    uint8_t bytes[FRAME_MAX];
    size_t size; /* bytes in use */
} frame;

typedef struct station { /* one who sends and receives frames */
    uint8_t mac[6];
    uint8_t ip[4];
} station;

/* ARP: `from` asks everybody who has the address `ip`. */
void frame_arp_request(frame *made, const station *from, const uint8_t ip[4]);

/* ICMP echo request (a ping) with `payload` bytes of a pattern that `sequence` varies. */
void frame_echo_request(frame *made, const station *from, const station *to, uint16_t sequence,
                        size_t payload);

/* What `me` has to answer. Returns false if the request is neither ARP nor ICMP echo, or is for
   somebody else. */
bool frame_answer(frame *made, const frame *request, const station *me);

/* Whether every byte is as expected. Only the identification of an IPv4 packet is the sender's to
   choose: it is taken as it came, and the header checksum must be right for it. */
bool frame_equal(const frame *got, const frame *expected);

/* A frame for tests: a number, and a pattern that the number varies. No network stack minds its
   type (88b5, for experiments). */
void frame_numbered(frame *made, const station *from, const station *to, uint32_t number,
                    size_t size);

/* Whether it is such a frame, and its number. The rest of it is for frame_equal. */
bool frame_number(const frame *got, uint32_t *number);

/* Whether it was sent by this station. */
bool frame_is_from(const frame *got, const station *from);

#endif
