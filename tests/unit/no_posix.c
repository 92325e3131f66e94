/* A private copy of the library without POSIX: what it then cannot do, it says. */
#define VHOST_NO_POSIX
#define VHOST_STATIC
#define VHOST_IMPLEMENTATION
#include "vhost.h"

#include "greatest.h"

static vhost_log_kind kind;

static int open_backend(void *backend, vhost_device *device, vhost_facts *facts)
{
    (void)backend;
    (void)device;
    facts->log_kind = kind;
    vhost_features_set(&facts->offered, VHOST_FEATURE_LOG_ALL);
    return 0;
}

static void sever(void *backend)
{
    (void)backend;
}

static int take_features(void *backend, const vhost_features *features)
{
    (void)backend;
    (void)features;
    return 0;
}

static int take_table(void *backend, const vhost_table_change *change)
{
    (void)backend;
    (void)change;
    return 0;
}

static int take_log(void *backend, const vhost_log_memory *memory)
{
    (void)backend;
    (void)memory;
    return 0;
}

static int take_fd(void *backend, uint32_t queue, int fd)
{
    (void)backend;
    (void)queue;
    (void)fd;
    return 0;
}

static int take_number(void *backend, uint32_t queue, uint32_t number)
{
    (void)backend;
    (void)queue;
    (void)number;
    return 0;
}

static int take_addresses(void *backend, uint32_t queue, const vhost_ring_addresses *addresses)
{
    (void)backend;
    (void)queue;
    (void)addresses;
    return 0;
}

static int give_base(void *backend, uint32_t queue, vhost_ring_base *base)
{
    (void)backend;
    (void)queue;
    base->answered = true;
    return 0;
}

static vhost_backend_ops make_ops(void)
{
    vhost_backend_ops ops;
    memset(&ops, 0, sizeof ops);
    ops.open = open_backend;
    ops.sever = sever;
    ops.set_features = take_features;
    ops.set_table = take_table;
    ops.set_log = take_log;
    ops.set_ring_call = take_fd;
    ops.set_ring_size = take_number;
    ops.set_ring_base = take_number;
    ops.set_ring_addresses = take_addresses;
    ops.set_ring_kick = take_fd;
    ops.get_ring_base = give_base;
    return ops;
}

static int create_event(vhost_event *event, void *user)
{
    (void)user;
    event->wait_fd = event->signal_fd = 7000;
    return 0;
}

static void destroy_event(vhost_event *event, void *user)
{
    (void)event;
    (void)user;
}

static int test_event(const vhost_event *event, void *user)
{
    (void)event;
    (void)user;
    return 0;
}

static const vhost_event_ops events = {create_event, destroy_event, test_event};

static int refuse_memory(vhost_log_memory *memory, bool shared, void *user)
{
    (void)memory;
    (void)user;
    return shared ? -EDQUOT : -ENOMEM;
}

static const vhost_log_ops logs = {refuse_memory, NULL};

TEST without_posix_notifiers_are_the_vmms(void)
{
    vhost_vm vm;
    ASSERT_EQ(-EINVAL, vhost_vm_init(&vm, NULL));
    ASSERT_EQ(VHOST_WHY_ARGUMENT, vm.last_error.why);
    PASS();
}

/* A device with logs of this kind, where log_start returns `code`, and stands in the way `why`. */
static enum greatest_test_res log_start_gives(vhost_log_kind log_kind, const vhost_log_ops *ops,
                                              int code, vhost_why why)
{
    vhost_backend_ops backend = make_ops();
    vhost_vm_options options;
    vhost_vm vm;
    vhost_device device;
    vhost_queue queue;
    vhost_why reason;
    memset(&options, 0, sizeof options);
    options.events = &events;
    options.log = ops;
    kind = log_kind;
    ASSERT_EQ(0, vhost_vm_init(&vm, &options));
    vhost_queue_init(&queue);
    memset(&device, 0, sizeof device);
    ASSERT_EQ(0, vhost_device_init(&device, &vm, &backend, NULL, &queue, 1, NULL));
    bool blocks = vhost_log_blocker(&vm, NULL, &reason) != NULL;
    ASSERT_EQ(why != VHOST_WHY_NONE, blocks);
    ASSERT_EQ(why, reason);
    ASSERT_EQ(code, vhost_log_start(&vm));
    vhost_device_cleanup(&device);
    ASSERT_EQ(0, vhost_vm_cleanup(&vm));
    PASS();
}

TEST without_posix_a_device_with_a_shared_log_stands_in_the_way(void)
{
    CHECK_CALL(log_start_gives(VHOST_DIRTY_PRIVATE, NULL, 0, VHOST_WHY_NONE));
    CHECK_CALL(log_start_gives(VHOST_DIRTY_SHARED, NULL, -ENOTSUP, VHOST_WHY_LOG_MEMORY));
    CHECK_CALL(log_start_gives(VHOST_DIRTY_SHARED, &logs, -EDQUOT, VHOST_WHY_NONE));
    PASS();
}

SUITE(no_posix_suite)
{
    RUN_TEST(without_posix_notifiers_are_the_vmms);
    RUN_TEST(without_posix_a_device_with_a_shared_log_stands_in_the_way);
}
