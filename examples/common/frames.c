/* frames.c - the Ethernet frames of the demo: made, answered and compared byte by byte
   SPDX-License-Identifier: MIT OR Unlicense */
#include "frames.h"

#include <assert.h>
#include <string.h>

/* Where things are in a frame. */
enum {
    ETHERNET_TO = 0,
    ETHERNET_FROM = 6,
    ETHERNET_TYPE = 12,

    ARP = 14,
    ARP_OPERATION = ARP + 6, /* 1 asks, 2 answers */
    ARP_FROM_MAC = ARP + 8,
    ARP_FROM_IP = ARP + 14,
    ARP_TO_MAC = ARP + 18,
    ARP_TO_IP = ARP + 24,
    ARP_END = ARP + 28,

    IPV4 = 14,
    IPV4_LENGTH = IPV4 + 2,
    IPV4_IDENTIFICATION = IPV4 + 4,
    IPV4_TTL = IPV4 + 8,
    IPV4_PROTOCOL = IPV4 + 9,
    IPV4_CHECKSUM = IPV4 + 10,
    IPV4_FROM = IPV4 + 12,
    IPV4_TO = IPV4 + 16,

    ICMP = IPV4 + 20,
    ICMP_TYPE = ICMP, /* 8 asks, 0 answers */
    ICMP_CHECKSUM = ICMP + 2,
    ICMP_IDENTIFIER = ICMP + 4,
    ICMP_SEQUENCE = ICMP + 6,

    NUMBERED = 14,
    NUMBERED_PATTERN = NUMBERED + 4
};

enum {
    TYPE_IPV4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_EXPERIMENT = 0x88b5
};

static void put16(frame *made, size_t at, unsigned value)
{
    made->bytes[at] = (uint8_t)(value >> 8);
    made->bytes[at + 1] = (uint8_t)value;
}

static unsigned get16(const frame *got, size_t at)
{
    return (unsigned)got->bytes[at] << 8 | got->bytes[at + 1];
}

static void put_ethernet(frame *made, const uint8_t *from, const uint8_t *to, unsigned type)
{
    memcpy(&made->bytes[ETHERNET_TO], to, 6);
    memcpy(&made->bytes[ETHERNET_FROM], from, 6);
    put16(made, ETHERNET_TYPE, type);
}

static bool is_type(const frame *got, unsigned type, size_t size)
{
    return got->size >= size && get16(got, ETHERNET_TYPE) == type;
}

/* The checksum of the Internet: the complement of the one's complement sum of 16-bit numbers. */
static void put_checksum(frame *made, size_t at, size_t begin, size_t end)
{
    uint32_t sum = 0;
    put16(made, at, 0);
    for (size_t i = begin; i < end; i++)
        sum += (i - begin) % 2 == 0 ? (uint32_t)made->bytes[i] << 8 : made->bytes[i];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    put16(made, at, ~sum & 0xffff);
}

static void put_pattern(frame *made, size_t begin, uint32_t seed)
{
    for (size_t i = begin; i < made->size; i++)
        made->bytes[i] = (uint8_t)(i + seed * 37);
}

static void put_arp(frame *made, unsigned operation, const station *from, const uint8_t *to_mac,
                    const uint8_t *to_ip)
{
    static const uint8_t ethernet_and_ipv4[6] = {0, 1, 8, 0, 6, 4};
    memcpy(&made->bytes[ARP], ethernet_and_ipv4, 6);
    put16(made, ARP_OPERATION, operation);
    memcpy(&made->bytes[ARP_FROM_MAC], from->mac, 6);
    memcpy(&made->bytes[ARP_FROM_IP], from->ip, 4);
    memcpy(&made->bytes[ARP_TO_MAC], to_mac, 6);
    memcpy(&made->bytes[ARP_TO_IP], to_ip, 4);
    made->size = ARP_END;
}

void frame_arp_request(frame *made, const station *from, const uint8_t ip[4])
{
    static const uint8_t everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    static const uint8_t unknown[6] = {0};
    put_ethernet(made, from->mac, everybody, TYPE_ARP);
    put_arp(made, 1, from, unknown, ip);
}

void frame_echo_request(frame *made, const station *from, const station *to, uint16_t sequence,
                        size_t payload)
{
    static const uint8_t version_and_header_size = 0x45;
    assert(payload <= FRAME_MAX - FRAME_ECHO_HEADER);
    memset(made->bytes, 0, FRAME_ECHO_HEADER);
    made->size = FRAME_ECHO_HEADER + payload;
    put_ethernet(made, from->mac, to->mac, TYPE_IPV4);

    made->bytes[IPV4] = version_and_header_size;
    put16(made, IPV4_LENGTH, (unsigned)(made->size - IPV4));
    put16(made, IPV4_IDENTIFICATION, sequence);
    made->bytes[IPV4_TTL] = 64;
    made->bytes[IPV4_PROTOCOL] = 1;
    memcpy(&made->bytes[IPV4_FROM], from->ip, 4);
    memcpy(&made->bytes[IPV4_TO], to->ip, 4);
    put_checksum(made, IPV4_CHECKSUM, IPV4, ICMP);

    made->bytes[ICMP_TYPE] = 8;
    put16(made, ICMP_IDENTIFIER, 0x7668);
    put16(made, ICMP_SEQUENCE, sequence);
    put_pattern(made, FRAME_ECHO_HEADER, sequence);
    put_checksum(made, ICMP_CHECKSUM, ICMP, made->size);
}

static bool is_arp_request(const frame *got, const station *to)
{
    return is_type(got, TYPE_ARP, ARP_END) && get16(got, ARP_OPERATION) == 1 &&
           memcmp(&got->bytes[ARP_TO_IP], to->ip, 4) == 0;
}

static bool is_echo_request(const frame *got, const station *to)
{
    return is_type(got, TYPE_IPV4, FRAME_ECHO_HEADER) && got->bytes[IPV4] == 0x45 &&
           got->bytes[IPV4_PROTOCOL] == 1 && got->bytes[ICMP_TYPE] == 8 &&
           IPV4 + get16(got, IPV4_LENGTH) == got->size &&
           memcmp(&got->bytes[ETHERNET_TO], to->mac, 6) == 0 &&
           memcmp(&got->bytes[IPV4_TO], to->ip, 4) == 0;
}

bool frame_answer(frame *made, const frame *request, const station *me)
{
    const uint8_t *asker = &request->bytes[ETHERNET_FROM];
    if (is_arp_request(request, me)) {
        put_ethernet(made, me->mac, asker, TYPE_ARP);
        put_arp(made, 2, me, &request->bytes[ARP_FROM_MAC], &request->bytes[ARP_FROM_IP]);
        return true;
    }
    if (is_echo_request(request, me)) {
        *made = *request;
        put_ethernet(made, me->mac, asker, TYPE_IPV4);
        made->bytes[IPV4_TTL] = 64;
        memcpy(&made->bytes[IPV4_FROM], me->ip, 4);
        memcpy(&made->bytes[IPV4_TO], &request->bytes[IPV4_FROM], 4);
        put_checksum(made, IPV4_CHECKSUM, IPV4, ICMP);
        made->bytes[ICMP_TYPE] = 0;
        put_checksum(made, ICMP_CHECKSUM, ICMP, made->size);
        return true;
    }
    return false;
}

bool frame_equal(const frame *got, const frame *expected)
{
    if (got->size != expected->size)
        return false;
    if (!is_type(expected, TYPE_IPV4, ICMP))
        return memcmp(got->bytes, expected->bytes, got->size) == 0;
    frame same = *expected;
    put16(&same, IPV4_IDENTIFICATION, get16(got, IPV4_IDENTIFICATION));
    put_checksum(&same, IPV4_CHECKSUM, IPV4, ICMP);
    return memcmp(got->bytes, same.bytes, got->size) == 0;
}

void frame_numbered(frame *made, const station *from, const station *to, uint32_t number,
                    size_t size)
{
    assert(size >= NUMBERED_PATTERN && size <= FRAME_MAX);
    made->size = size;
    put_ethernet(made, from->mac, to->mac, TYPE_EXPERIMENT);
    put16(made, NUMBERED, number >> 16);
    put16(made, NUMBERED + 2, number & 0xffff);
    put_pattern(made, NUMBERED_PATTERN, number);
}

bool frame_number(const frame *got, uint32_t *number)
{
    if (!is_type(got, TYPE_EXPERIMENT, NUMBERED_PATTERN))
        return false;
    *number = (uint32_t)get16(got, NUMBERED) << 16 | get16(got, NUMBERED + 2);
    return true;
}

bool frame_is_from(const frame *got, const station *from)
{
    return got->size >= ETHERNET_TYPE && memcmp(&got->bytes[ETHERNET_FROM], from->mac, 6) == 0;
}
