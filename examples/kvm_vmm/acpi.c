/* acpi.c - the tables in which a guest reads what machine it is (ACPI 6.4, hardware-reduced)
   SPDX-License-Identifier: MIT OR Unlicense

   The DSDT is what `iasl` makes of this, and then of a Device for each virtio device:

      DefinitionBlock ("", "DSDT", 2, "VHOST", "KVMVMM", 1)
      {
          Name (\_S5, Package () { 5, 0, 0, 0 })
          Scope (\_SB)
          {
              Device (COM1)
              {
                  Name (_HID, EisaId ("PNP0501"))
                  Name (_CRS, ResourceTemplate ()
                  {
                      IO (Decode16, 0x3f8, 0x3f8, 0, 8)
                      Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 }
                  })
              }
              Device (GED0)
              {
                  Name (_HID, "ACPI0013")
                  Name (_CRS, ResourceTemplate ()
                  {
                      Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 9 }
                  })
                  Method (_EVT, 1) { Notify (MEM0, 1) }
              }
              OperationRegion (PORT, SystemIO, 0x600, 1)
              Field (PORT, ByteAcc, NoLock, Preserve) { PLUG, 8 }
              Device (MEM0)
              {
                  Name (_HID, EisaId ("PNP0C80"))
                  Name (_CRS, ResourceTemplate ()
                  {
                      QWordMemory (ResourceConsumer, PosDecode, MinFixed, MaxFixed, Cacheable,
                                   ReadWrite, 0, 0x100000000, 0x107ffffff, 0, 0x8000000)
                  })
                  Method (_STA) { Return (PLUG) }
              }
          }
      }

      Scope (\_SB)
      {
          Device (VIO0)
          {
              Name (_HID, "LNRO0005")
              Name (_UID, 0)
              Name (_CCA, 1)
              Name (_CRS, ResourceTemplate ()
              {
                  Memory32Fixed (ReadWrite, 0xd0000000, 0x1000)
                  Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 16 }
              })
          }
      } */
#include "boot.h"

#include <stddef.h>
#include <string.h>

#define TABLES     UINT64_C(0xe0000) /* gpa */
#define TABLES_END UINT64_C(0xe2000)

static const uint8_t common_aml[] = {
    0x08, 0x5f, 0x53, 0x35, 0x5f, 0x12, 0x07, 0x04, 0x0a, 0x05, 0x00, 0x00, 0x00, 0x10, 0x49, 0x0d,
    0x5f, 0x53, 0x42, 0x5f, 0x5b, 0x82, 0x2b, 0x43, 0x4f, 0x4d, 0x31, 0x08, 0x5f, 0x48, 0x49, 0x44,
    0x0c, 0x41, 0xd0, 0x05, 0x01, 0x08, 0x5f, 0x43, 0x52, 0x53, 0x11, 0x16, 0x0a, 0x13, 0x47, 0x01,
    0xf8, 0x03, 0xf8, 0x03, 0x00, 0x08, 0x89, 0x06, 0x00, 0x03, 0x01, 0x04, 0x00, 0x00, 0x00, 0x79,
    0x00, 0x5b, 0x82, 0x35, 0x47, 0x45, 0x44, 0x30, 0x08, 0x5f, 0x48, 0x49, 0x44, 0x0d, 0x41, 0x43,
    0x50, 0x49, 0x30, 0x30, 0x31, 0x33, 0x00, 0x08, 0x5f, 0x43, 0x52, 0x53, 0x11, 0x0e, 0x0a, 0x0b,
    0x89, 0x06, 0x00, 0x03, 0x01, 0x09, 0x00, 0x00, 0x00, 0x79, 0x00, 0x14, 0x0c, 0x5f, 0x45, 0x56,
    0x54, 0x01, 0x86, 0x4d, 0x45, 0x4d, 0x30, 0x01, 0x5b, 0x80, 0x50, 0x4f, 0x52, 0x54, 0x01, 0x0b,
    0x00, 0x06, 0x01, 0x5b, 0x81, 0x0b, 0x50, 0x4f, 0x52, 0x54, 0x01, 0x50, 0x4c, 0x55, 0x47, 0x08,
    0x5b, 0x82, 0x45, 0x05, 0x4d, 0x45, 0x4d, 0x30, 0x08, 0x5f, 0x48, 0x49, 0x44, 0x0c, 0x41, 0xd0,
    0x0c, 0x80, 0x08, 0x5f, 0x43, 0x52, 0x53, 0x11, 0x33, 0x0a, 0x30, 0x8a, 0x2b, 0x00, 0x00, 0x0d,
    0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00,
    0x00, 0xff, 0xff, 0xff, 0x07, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x79, 0x00, 0x14, 0x0b, 0x5f, 0x53, 0x54,
    0x41, 0x00, 0xa4, 0x50, 0x4c, 0x55, 0x47,
};

static const uint8_t virtio_aml[] = {
    0x10, 0x4a, 0x04, 0x5f, 0x53, 0x42, 0x5f, 0x5b, 0x82, 0x42, 0x04, 0x56, 0x49, 0x4f, 0x37,
    0x08, 0x5f, 0x48, 0x49, 0x44, 0x0d, 0x4c, 0x4e, 0x52, 0x4f, 0x30, 0x30, 0x30, 0x35, 0x00,
    0x08, 0x5f, 0x55, 0x49, 0x44, 0x0a, 0x77, 0x08, 0x5f, 0x43, 0x43, 0x41, 0x01, 0x08, 0x5f,
    0x43, 0x52, 0x53, 0x11, 0x1a, 0x0a, 0x17, 0x86, 0x09, 0x00, 0x01, 0x00, 0x70, 0x00, 0xd0,
    0x00, 0x10, 0x00, 0x00, 0x89, 0x06, 0x00, 0x03, 0x01, 0x77, 0x00, 0x00, 0x00, 0x79, 0x00,
};

enum { /* in virtio_aml */
    VIRTIO_NAME = 14,
    VIRTIO_UID = 36,
    VIRTIO_PAGE = 57, /* 4 bits of the address */
    VIRTIO_INTERRUPT = 69
};

#define PACKED __attribute__((packed))

typedef struct PACKED acpi_head {
    char signature[4];
    uint32_t size;
    uint8_t revision, checksum;
    char maker[6], table[8];
    uint32_t maker_revision;
    char tool[4];
    uint32_t tool_revision;
} acpi_head;

typedef struct PACKED acpi_rsdp {
    char signature[8];
    uint8_t checksum;
    char maker[6];
    uint8_t revision;
    uint32_t rsdt, size;
    uint64_t xsdt;
    uint8_t full_checksum, reserved[3];
} acpi_rsdp;

typedef struct PACKED acpi_xsdt {
    acpi_head head;
    uint64_t tables[2];
} acpi_xsdt;

typedef struct PACKED acpi_register {
    uint8_t space, bits, offset, access; /* space 1: a port */
    uint64_t address;
} acpi_register;

typedef struct PACKED acpi_fadt {
    acpi_head head;
    uint8_t other[73];
    uint16_t boot_flags;
    uint8_t reserved;
    uint32_t flags;
    acpi_register reset;
    uint8_t reset_value;
    uint8_t more[11];
    uint64_t dsdt;
    uint8_t blocks[96];
    acpi_register sleep_control, sleep_status;
    uint64_t hypervisor;
} acpi_fadt;

typedef struct PACKED acpi_madt {
    acpi_head head;
    uint32_t local_apic, flags;
    uint8_t processor[8];
    uint8_t io_apic[12];
} acpi_madt;

enum {
    NO_VGA = 1 << 2, /* FADT: boot_flags */
    NO_CMOS = 1 << 5,
    HAS_RESET = 1 << 10, /* FADT: flags */
    HARDWARE_REDUCED = 1 << 20
};

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct writer {
    const kvm_machine *machine;
    uint64_t next; /* gpa */
} writer;

static uint8_t checksum(const void *bytes, uint64_t size)
{
    uint8_t sum = 0;
    for (uint64_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)bytes)[i]);
    return (uint8_t)-sum;
}

/* Returns where it stands. */
static uint64_t append(writer *to, const void *table, uint64_t size)
{
    uint64_t gpa = to->next;
    memcpy(to->machine->ram[0].host + gpa, table, size);
    to->next += (size + 15) / 16 * 16;
    return gpa;
}

/* Of a table whose head is not filled in. */
static uint64_t append_table(writer *to, const char *signature, uint8_t revision, void *table,
                             uint32_t size)
{
    acpi_head head = {.size = size, .revision = revision, .maker = "VHOST", .table = "KVMVMM"};
    memcpy(head.signature, signature, sizeof head.signature);
    memcpy(table, &head, sizeof head);
    head.checksum = checksum(table, size);
    memcpy(table, &head, sizeof head);
    return append(to, table, size);
}

/* ---- tables ---------------------------------------------------------------------------------- */

static uint64_t append_dsdt(writer *to)
{
    uint8_t table[sizeof(acpi_head) + sizeof common_aml + MACHINE_DEVICES * sizeof virtio_aml];
    uint8_t *at = table + sizeof(acpi_head);
    memcpy(at, common_aml, sizeof common_aml);
    at += sizeof common_aml;
    for (uint32_t i = 0; i < MACHINE_DEVICES; i++, at += sizeof virtio_aml) {
        memcpy(at, virtio_aml, sizeof virtio_aml);
        at[VIRTIO_NAME] = (uint8_t)('0' + i);
        at[VIRTIO_UID] = (uint8_t)i;
        at[VIRTIO_PAGE] = (uint8_t)(i << 4);
        at[VIRTIO_INTERRUPT] = (uint8_t)(MACHINE_VIRTIO_GSI + i);
    }
    return append_table(to, "DSDT", 2, table, sizeof table);
}

static acpi_register port(uint64_t address)
{
    return (acpi_register){.space = 1, .bits = 8, .access = 1, .address = address};
}

static uint64_t append_fadt(writer *to, uint64_t dsdt)
{
    acpi_fadt table = {.boot_flags = NO_VGA | NO_CMOS,
                       .flags = HAS_RESET | HARDWARE_REDUCED,
                       .reset = port(MACHINE_RESET_PORT),
                       .reset_value = 1,
                       .dsdt = dsdt,
                       .sleep_control = port(MACHINE_SLEEP_PORT),
                       .sleep_status = port(MACHINE_SLEEP_PORT)};
    return append_table(to, "FACP", 6, &table, sizeof table);
}

static uint64_t append_madt(writer *to)
{
    acpi_madt table = {.local_apic = 0xfee00000,
                       .processor = {0, 8, 0, 0, 1}, /* id 0, enabled */
                       .io_apic = {1, 12, 0, 0, 0x00, 0x00, 0xc0, 0xfe, 0, 0, 0, 0}}; /* GSI 0 on */
    return append_table(to, "APIC", 5, &table, sizeof table);
}

uint64_t boot_acpi(const kvm_machine *machine)
{
    writer to = {machine, TABLES};
    acpi_rsdp rsdp = {.signature = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '},
                      .maker = "VHOST",
                      .revision = 2,
                      .size = sizeof rsdp};
    acpi_xsdt xsdt = {.tables = {0}};
    if (machine->ram[0].size < TABLES_END)
        return 0;
    xsdt.tables[0] = append_fadt(&to, append_dsdt(&to));
    xsdt.tables[1] = append_madt(&to);
    rsdp.xsdt = append_table(&to, "XSDT", 1, &xsdt, sizeof xsdt);
    rsdp.checksum = checksum(&rsdp, 20);
    rsdp.full_checksum = checksum(&rsdp, sizeof rsdp);
    return append(&to, &rsdp, sizeof rsdp);
}
