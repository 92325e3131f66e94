/* The runner: one line per suite. */
#include "fixture.h"

SUITE_EXTERN(memory_suite);
SUITE_EXTERN(features_suite);
SUITE_EXTERN(device_suite);
SUITE_EXTERN(queue_suite);
SUITE_EXTERN(commit_suite);
SUITE_EXTERN(log_suite);
SUITE_EXTERN(log_faults_suite);
SUITE_EXTERN(log_own_suite);
SUITE_EXTERN(log_pass_suite);
SUITE_EXTERN(threads_suite);
SUITE_EXTERN(model_suite);
SUITE_EXTERN(faults_suite);
SUITE_EXTERN(errors_suite);
SUITE_EXTERN(posix_suite);
SUITE_EXTERN(kernel_suite);
SUITE_EXTERN(iotlb_suite);
SUITE_EXTERN(kernel_iotlb_suite);
SUITE_EXTERN(life_suite);
SUITE_EXTERN(recover_suite);
SUITE_EXTERN(by_fd_suite);
SUITE_EXTERN(slots_suite);
SUITE_EXTERN(no_posix_suite);

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(memory_suite);
    RUN_SUITE(features_suite);
    RUN_SUITE(device_suite);
    RUN_SUITE(queue_suite);
    RUN_SUITE(commit_suite);
    RUN_SUITE(log_suite);
    RUN_SUITE(log_faults_suite);
    RUN_SUITE(log_own_suite);
    RUN_SUITE(log_pass_suite);
    RUN_SUITE(threads_suite);
    RUN_SUITE(model_suite);
    RUN_SUITE(faults_suite);
    RUN_SUITE(errors_suite);
    RUN_SUITE(posix_suite);
    RUN_SUITE(kernel_suite);
    RUN_SUITE(iotlb_suite);
    RUN_SUITE(kernel_iotlb_suite);
    RUN_SUITE(life_suite);
    RUN_SUITE(recover_suite);
    RUN_SUITE(by_fd_suite);
    RUN_SUITE(slots_suite);
    RUN_SUITE(no_posix_suite);
    GREATEST_MAIN_END();
}
