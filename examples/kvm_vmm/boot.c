/* boot.c - loads a Linux kernel as PVH has it (the start_info of Xen's public interface)
   SPDX-License-Identifier: MIT OR Unlicense */
#define _GNU_SOURCE
#include "boot.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define COMMAND_LINE UINT64_C(0x8000) /* gpas below the first MiB */
#define COMMAND_SIZE UINT64_C(0x1000)
#define HIGH_MEMORY  UINT64_C(0x100000)
#define BIOS_MEMORY  UINT64_C(0x9f000)

enum {
    NOTE_PHYS32_ENTRY = 18,
    PVH_MAGIC = 0x336ec578,
    MEMORY_RAM = 1,
    MEMORY_RESERVED = 2,
    MEMORY_RANGES = 3
};

typedef struct pvh_module {
    uint64_t gpa, size, command_line, reserved;
} pvh_module;

typedef struct pvh_memory {
    uint64_t gpa, size;
    uint32_t type, reserved;
} pvh_memory;

typedef struct pvh_start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line, rsdp, memory;
    uint32_t memory_count, reserved;
} pvh_start_info;

/* As it stands at BOOT_START_INFO. */
typedef struct start_page {
    pvh_start_info info;
    pvh_module initrd;
    pvh_memory memory[MEMORY_RANGES];
} start_page;

/* ---- files ----------------------------------------------------------------------------------- */

typedef struct file {
    uint8_t *bytes; /* NULL: it cannot be read */
    uint64_t size;
} file;

static file open_file(const char *path)
{
    file self = {NULL, 0};
    struct stat found;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &found) == 0 && found.st_size > 0) {
        void *bytes = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes != MAP_FAILED)
            self = (file){bytes, (uint64_t)found.st_size};
    }
    if (self.bytes == NULL)
        machine_failed("%s", path);
    if (fd >= 0)
        close(fd);
    return self;
}

static void close_file(file *self)
{
    if (self->bytes != NULL)
        (void)munmap(self->bytes, self->size);
}

static bool inside(const file *self, uint64_t offset, uint64_t size)
{
    return offset <= self->size && size <= self->size - offset;
}

/* ---- the kernel ------------------------------------------------------------------------------ */

static bool load_segment(const kvm_machine *machine, const file *kernel, const Elf64_Phdr *segment)
{
    uint8_t *to = machine_host(machine, segment->p_paddr, segment->p_memsz);
    if (to == NULL || segment->p_filesz > segment->p_memsz ||
        !inside(kernel, segment->p_offset, segment->p_filesz))
        return false;
    memcpy(to, kernel->bytes + segment->p_offset, segment->p_filesz);
    memset(to + segment->p_filesz, 0, segment->p_memsz - segment->p_filesz);
    return true;
}

static uint64_t padded(uint64_t size)
{
    return (size + 3) / 4 * 4;
}

/* Looks for the note that says where PVH begins. */
static void find_entry(const file *kernel, const Elf64_Phdr *segment, uint32_t *entry)
{
    uint64_t at = segment->p_offset, end = at + segment->p_filesz;
    Elf64_Nhdr note;
    while (inside(kernel, segment->p_offset, segment->p_filesz) && end - at >= sizeof note) {
        memcpy(&note, kernel->bytes + at, sizeof note);
        uint64_t value = at + sizeof note + padded(note.n_namesz);
        uint64_t next = value + padded(note.n_descsz);
        if (next > end)
            return;
        if (note.n_type == NOTE_PHYS32_ENTRY && note.n_namesz == sizeof "Xen" &&
            note.n_descsz >= sizeof *entry)
            memcpy(entry, kernel->bytes + value, sizeof *entry);
        at = next;
    }
}

static bool load_kernel(const kvm_machine *machine, const file *kernel, uint32_t *entry)
{
    Elf64_Ehdr head;
    Elf64_Phdr segment;
    *entry = 0;
    if (!inside(kernel, 0, sizeof head))
        return false;
    memcpy(&head, kernel->bytes, sizeof head);
    if (memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_phentsize != sizeof segment ||
        !inside(kernel, head.e_phoff, (uint64_t)head.e_phnum * sizeof segment))
        return false;
    for (uint32_t i = 0; i < head.e_phnum; i++) {
        memcpy(&segment, kernel->bytes + head.e_phoff + i * sizeof segment, sizeof segment);
        if (segment.p_type == PT_LOAD && !load_segment(machine, kernel, &segment))
            return false;
        if (segment.p_type == PT_NOTE)
            find_entry(kernel, &segment, entry);
    }
    return *entry != 0;
}

/* ---- the rest -------------------------------------------------------------------------------- */

/* At the end of memory, out of the kernel's way. */
static uint64_t load_initrd(const kvm_machine *machine, const file *initrd)
{
    const machine_ram *ram = &machine->ram[0];
    if (initrd->size > ram->size / 2)
        return 0;
    uint64_t gpa = (ram->size - initrd->size) / MACHINE_PAGE * MACHINE_PAGE;
    memcpy(ram->host + gpa, initrd->bytes, initrd->size);
    return gpa;
}

static bool write_start_page(const kvm_machine *machine, uint64_t initrd, uint64_t initrd_size)
{
    const uint64_t rest = BOOT_START_INFO + offsetof(start_page, initrd);
    const start_page page = {
        .info = {.magic = PVH_MAGIC,
                 .version = 1,
                 .module_count = 1,
                 .modules = rest,
                 .command_line = COMMAND_LINE,
                 .rsdp = boot_acpi(machine),
                 .memory = BOOT_START_INFO + offsetof(start_page, memory),
                 .memory_count = MEMORY_RANGES},
        .initrd = {.gpa = initrd, .size = initrd_size},
        .memory = {{0, BIOS_MEMORY, MEMORY_RAM, 0},
                   {BIOS_MEMORY, HIGH_MEMORY - BIOS_MEMORY, MEMORY_RESERVED, 0},
                   {HIGH_MEMORY, machine->ram[0].size - HIGH_MEMORY, MEMORY_RAM, 0}}};
    if (initrd == 0 || page.info.rsdp == 0 || strlen(machine->arguments) >= COMMAND_SIZE)
        return false;
    memcpy(machine->ram[0].host + BOOT_START_INFO, &page, sizeof page);
    strcpy((char *)machine->ram[0].host + COMMAND_LINE, machine->arguments);
    return true;
}

bool boot_load(const kvm_machine *machine, uint32_t *entry)
{
    file kernel = open_file(machine->kernel), initrd = open_file(machine->initrd);
    bool good = kernel.bytes != NULL && initrd.bytes != NULL;
    if (good) {
        errno = ENOEXEC;
        good = (load_kernel(machine, &kernel, entry) &&
                write_start_page(machine, load_initrd(machine, &initrd), initrd.size)) ||
               machine_failed("%s and %s do not fit", machine->kernel, machine->initrd);
    }
    close_file(&kernel);
    close_file(&initrd);
    return good;
}
