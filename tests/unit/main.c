/* The runner: one line per suite. */
#include "fixture.h"

SUITE_EXTERN(memory_suite);
SUITE_EXTERN(features_suite);
SUITE_EXTERN(device_suite);
SUITE_EXTERN(queue_suite);
SUITE_EXTERN(commit_suite);
SUITE_EXTERN(faults_suite);
SUITE_EXTERN(errors_suite);
SUITE_EXTERN(posix_suite);
SUITE_EXTERN(kernel_suite);
SUITE_EXTERN(life_suite);

GREATEST_MAIN_DEFS();

int main(int argc, char **argv)
{
    GREATEST_MAIN_BEGIN();
    RUN_SUITE(memory_suite);
    RUN_SUITE(features_suite);
    RUN_SUITE(device_suite);
    RUN_SUITE(queue_suite);
    RUN_SUITE(commit_suite);
    RUN_SUITE(faults_suite);
    RUN_SUITE(errors_suite);
    RUN_SUITE(posix_suite);
    RUN_SUITE(kernel_suite);
    RUN_SUITE(life_suite);
    GREATEST_MAIN_END();
}
