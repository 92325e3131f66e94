/* net_driver.c - the driver of a virtio-net device, in user space: frames over two split rings
   SPDX-License-Identifier: MIT OR Unlicense */
#include "net_driver.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static uint64_t buffer_gpa(const net_driver *driver, int queue, uint16_t buffer)
{
    return driver->layout.buffers[queue] + (uint64_t)buffer * NET_BUFFER;
}

/* Gives an empty buffer to the device, to receive into. */
static void post(net_driver *driver, uint16_t buffer)
{
    ring_piece piece = {buffer_gpa(driver, NET_RECEIVE, buffer), NET_BUFFER, true};
    (void)split_ring_add(&driver->ring[NET_RECEIVE], &piece, 1, buffer);
}

int net_driver_open(net_driver *driver, void *memory, const net_layout *layout)
{
    *driver = (net_driver){.memory = memory, .layout = *layout};
    for (int i = 0; i < 2; i++) {
        split_ring_init(&driver->ring[i], NET_RING_SIZE, driver->memory + layout->ring[i],
                        layout->ring[i]);
        driver->kick[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        driver->call[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    }
    if (driver->kick[0] < 0 || driver->call[0] < 0 || driver->kick[1] < 0 || driver->call[1] < 0)
        return -errno;
    memset(driver->memory + layout->header, 0, NET_HEADER);
    for (uint16_t i = 0; i < NET_RING_SIZE; i++) {
        post(driver, i);
        driver->idle[driver->idle_count++] = i;
    }
    return 0;
}

void net_driver_close(net_driver *driver)
{
    for (int i = 0; i < 2 && driver->memory != NULL; i++) {
        if (driver->kick[i] >= 0)
            close(driver->kick[i]);
        if (driver->call[i] >= 0)
            close(driver->call[i]);
    }
}

bool net_driver_send(net_driver *driver, const frame *sent)
{
    if (driver->idle_count == 0)
        return false;
    uint16_t buffer = driver->idle[driver->idle_count - 1];
    uint64_t gpa = buffer_gpa(driver, NET_TRANSMIT, buffer);
    ring_piece pieces[2] = {{driver->layout.header, NET_HEADER, false},
                            {gpa, (uint32_t)sent->size, false}};
    memcpy(driver->memory + gpa, sent->bytes, sent->size);
    if (!split_ring_add(&driver->ring[NET_TRANSMIT], pieces, 2, buffer))
        return false;
    driver->idle_count--;
    return true;
}

void net_driver_kick(net_driver *driver)
{
    static const uint64_t one = 1;
    for (int i = 0; i < 2; i++) {
        if (driver->kicked[i] == driver->ring[i].added)
            continue;
        driver->kicked[i] = driver->ring[i].added;
        if (!split_ring_wants_kick(&driver->ring[i]))
            continue;
        driver->kicks++;
        if (write(driver->kick[i], &one, sizeof one) != sizeof one)
            driver->fault = "a kick could not be written";
    }
}

bool net_driver_called(net_driver *driver, int queue)
{
    uint64_t count;
    if (read(driver->call[queue], &count, sizeof count) != sizeof count)
        return false;
    driver->calls++;
    return true;
}

/* One finished chain of a queue, if there is one. */
static bool collect(net_driver *driver, int queue, uint16_t *buffer, uint32_t *length)
{
    bool any = split_ring_collect(&driver->ring[queue], buffer, length);
    if (driver->ring[queue].broken)
        driver->fault = "a buffer came back that the device did not have";
    return any;
}

/* The net header of a received frame. Its last field is the number of buffers that the frame is in:
   1, says virtio; vhost-net does not write it without MRG_RXBUF, so that it is still 0. */
static bool header_is_good(const uint8_t *header)
{
    static const uint8_t zeros[NET_HEADER] = {0};
    return memcmp(header, zeros, NET_HEADER - 2) == 0 && header[NET_HEADER - 2] <= 1 &&
           header[NET_HEADER - 1] == 0;
}

bool net_driver_receive(net_driver *driver, frame *received)
{
    uint16_t buffer;
    uint32_t length;
    if (!collect(driver, NET_RECEIVE, &buffer, &length))
        return false;
    const uint8_t *bytes = driver->memory + buffer_gpa(driver, NET_RECEIVE, buffer);
    bool good = length >= NET_HEADER && length <= NET_HEADER + FRAME_MAX && header_is_good(bytes);
    if (good) {
        received->size = length - NET_HEADER;
        memcpy(received->bytes, bytes + NET_HEADER, received->size);
    } else {
        driver->fault = "a frame was received with a wrong length or net header";
    }
    post(driver, buffer);
    return good;
}

void net_driver_reclaim(net_driver *driver)
{
    uint16_t buffer;
    uint32_t length;
    while (collect(driver, NET_TRANSMIT, &buffer, &length)) {
        if (length != 0)
            driver->fault = "the device has written to a frame that is sent";
        driver->idle[driver->idle_count++] = buffer;
    }
}
