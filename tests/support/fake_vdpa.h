/* Inside fake_kernel.c and fake_vdpa.c: what they use of each other. */
#ifndef TEST_FAKE_VDPA_H
#define TEST_FAKE_VDPA_H

#include "fake_kernel.h"

#define ACCESS_PLATFORM (UINT64_C(1) << VHOST_FEATURE_ACCESS_PLATFORM)
#define RING_PACKED     (UINT64_C(1) << VHOST_FEATURE_RING_PACKED)

/* What an ioctl does, on one fd, which is open, and owned where that is needed. */
typedef int fake_handler(fake_kernel *self, fake_fd *fd, unsigned char *argument);

/* ---- of fake_kernel.c ---- */

uint32_t fake_get32(const unsigned char *bytes, size_t at);
uint64_t fake_get64(const unsigned char *bytes, size_t at);
void fake_put32(unsigned char *bytes, size_t at, uint32_t number);
void fake_put64(unsigned char *bytes, size_t at, uint64_t number);
int fake_complain(fake_kernel *self, fake_op op, const char *what, int error);
fake_ring *fake_ring_of(const fake_kernel *self, fake_fd *fd, const unsigned char *argument);
int fake_no_ring(fake_kernel *self, fake_op op);
void fake_reset_ring(fake_ring *ring);

/* ---- of fake_vdpa.c ---- */

void fake_vdpa_init(fake_kernel *self);
bool fake_vdpa_open(fake_kernel *self); /* false: it is open */
void fake_vdpa_close(fake_kernel *self, fake_fd *fd);
uint64_t fake_vdpa_backend_features(const fake_kernel *self);
int fake_vdpa_set_features(fake_kernel *self, fake_fd *fd, uint64_t bits, uint64_t offered);
int fake_vdpa_message(fake_kernel *self, const fake_fd *fd, const unsigned char *message);
bool fake_vdpa_ends_batch(const unsigned char *message);
int fake_vdpa_map_doorbell(fake_kernel *self, uint64_t offset, size_t size, void **at);
int fake_vdpa_unmap_doorbell(fake_kernel *self, const void *at, size_t size);

/* Complains of an ioctl that a suspended device must not see. */
void fake_vdpa_watch(fake_kernel *self, fake_op op);

fake_handler fake_vdpa_get_device_id;
fake_handler fake_vdpa_get_status;
fake_handler fake_vdpa_set_status;
fake_handler fake_vdpa_get_config;
fake_handler fake_vdpa_set_config;
fake_handler fake_vdpa_enable;
fake_handler fake_vdpa_get_vring_num;
fake_handler fake_vdpa_config_call;
fake_handler fake_vdpa_get_range;
fake_handler fake_vdpa_get_config_size;
fake_handler fake_vdpa_get_spaces;
fake_handler fake_vdpa_get_group;
fake_handler fake_vdpa_set_space;
fake_handler fake_vdpa_suspend;
fake_handler fake_vdpa_resume;
fake_handler fake_vdpa_get_rings;
fake_handler fake_vdpa_get_groups;
fake_handler fake_vdpa_get_limit;

#endif
