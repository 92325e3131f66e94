/* tap.c - a tap device, and a socket on the host's side of it (Linux)
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "tap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Says what failed. */
static int failed(tap *made, const char *what)
{
    made->failed = what;
    return -errno;
}

/* Root may have a network namespace at once; others where the kernel gives them a user namespace.
   Where neither is allowed, the tap stands in the machine's own network. */
static void enter_own_network(void)
{
    if (unshare(CLONE_NEWNET) != 0)
        (void)unshare(CLONE_NEWUSER | CLONE_NEWNET);
}

static int make_tap(tap *made, int header_size)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    made->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (made->fd < 0)
        return failed(made, "/dev/net/tun");
    strcpy(request.ifr_name, "vhostdemo%d");
    if (ioctl(made->fd, TUNSETIFF, &request) != 0)
        return failed(made, "making a tap");
    memcpy(made->name, request.ifr_name, sizeof made->name);
    made->name[sizeof made->name - 1] = '\0';
    if (ioctl(made->fd, TUNSETVNETHDRSZ, &header_size) != 0)
        return failed(made, "the tap's header size");
    if (ioctl(made->fd, TUNSETOFFLOAD, 0UL) != 0)
        return failed(made, "the tap's offloads");
    return 0;
}

static int set_address(tap *made, int control, unsigned long what, const uint8_t ip[4])
{
    struct ifreq request = {0};
    struct sockaddr_in address = {.sin_family = AF_INET};
    memcpy(&address.sin_addr, ip, 4);
    memcpy(request.ifr_name, made->name, sizeof request.ifr_name);
    memcpy(&request.ifr_addr, &address, sizeof address);
    return ioctl(control, what, &request);
}

/* What `ip address add` and `ip link set up` do; learns the hardware address. */
static int switch_on(tap *made, int control)
{
    static const uint8_t mask[4] = {255, 255, 255, 0};
    struct ifreq request = {0};
    memcpy(request.ifr_name, made->name, sizeof request.ifr_name);
    if (set_address(made, control, SIOCSIFADDR, made->host.ip) != 0 ||
        set_address(made, control, SIOCSIFNETMASK, mask) != 0)
        return failed(made, "the tap's address");
    if (ioctl(control, SIOCGIFHWADDR, &request) != 0)
        return failed(made, "the tap's hardware address");
    memcpy(made->host.mac, request.ifr_hwaddr.sa_data, 6);
    memset(&request.ifr_ifru, 0, sizeof request.ifr_ifru);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &request) != 0)
        return failed(made, "switching the tap on");
    return 0;
}

static int listen_on(tap *made)
{
    int room = 1 << 20; /* bytes: a second's surprise must not cost a frame */
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    made->socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (made->socket < 0)
        return failed(made, "a packet socket");
    if (setsockopt(made->socket, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) != 0)
        (void)setsockopt(made->socket, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    address.sll_ifindex = (int)if_nametoindex(made->name);
    if (bind(made->socket, (const struct sockaddr *)&address, sizeof address) != 0)
        return failed(made, "binding the packet socket");
    return 0;
}

int tap_open(tap *made, const uint8_t ip[4], int header_size)
{
    *made = (tap){.fd = -1, .socket = -1};
    memcpy(made->host.ip, ip, 4);
    enter_own_network();
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int result = control < 0 ? failed(made, "a socket") : make_tap(made, header_size);
    if (result == 0)
        result = switch_on(made, control);
    if (result == 0)
        result = listen_on(made);
    if (control >= 0)
        close(control);
    if (result != 0)
        tap_close(made);
    return result;
}

void tap_close(tap *made)
{
    if (made->socket >= 0)
        close(made->socket);
    if (made->fd >= 0)
        close(made->fd);
    made->fd = -1;
    made->socket = -1;
}
