/* The one file that holds the library. Compiled as C and as C++. */
#define VHOST_IMPLEMENTATION
#include "vhost_kernel.h"
#include "vhost_user.h"
