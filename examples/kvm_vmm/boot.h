/* boot.h - what a guest finds when it is switched on: its kernel, and a description of the machine
   SPDX-License-Identifier: MIT OR Unlicense */
#ifndef KVM_BOOT_H_INCLUDED
#define KVM_BOOT_H_INCLUDED

#include "machine.h"

#define BOOT_START_INFO UINT64_C(0x6000) /* %ebx of the processor */

/* Puts the kernel (an ELF file that can be booted by PVH), the initial file system, and the tables
   into memory. *entry is where the processor begins, in 32-bit protected mode without paging. */
bool boot_load(const kvm_machine *machine, uint32_t *entry);

/* Puts ACPI tables into memory; returns the gpa of the first one. 0: there is no room. */
uint64_t boot_acpi(const kvm_machine *machine);

#endif
