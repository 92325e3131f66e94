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

enum { /* of tables, bytes */
    HEAD = 36,
    RSDP = 36,
    XSDT = HEAD + 2 * 8,
    FADT = 276,
    MADT = HEAD + 8 + 8 + 12,
    DSDT = HEAD + sizeof common_aml + MACHINE_DEVICES * sizeof virtio_aml /* at most */
};

#define BOOT_FLAGS UINT64_C(0x24)     /* no VGA, no CMOS clock */
#define FLAGS      UINT64_C(0x100400) /* hardware-reduced, and it can be reset */
#define PORT       UINT64_C(0x010801) /* a register in a port, 8 bits wide */

/* ---- writing --------------------------------------------------------------------------------- */

static void put(uint8_t *table, uint32_t at, uint64_t value, uint32_t size)
{
    memcpy(table + at, &value, size);
}

static uint8_t checksum(const uint8_t *bytes, uint32_t size)
{
    uint8_t sum = 0;
    for (uint32_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

/* Puts a table into memory at *next. Returns where it stands. */
static uint64_t append(const kvm_machine *machine, uint64_t *next, const uint8_t *table,
                       uint32_t size)
{
    uint64_t gpa = *next;
    memcpy(machine->ram[0].host + gpa, table, size);
    *next += (size + 15) / 16 * 16;
    return gpa;
}

static void write_head(uint8_t *table, const char *signature, uint8_t revision, uint32_t size)
{
    memcpy(table, signature, 4);
    put(table, 4, size, 4);
    put(table, 8, revision, 1);
    memcpy(table + 10, "VHOST KVM_VMM ", 14); /* who made it */
    table[9] = checksum(table, size);
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* Returns its size. */
static uint32_t write_dsdt(uint8_t *table, const kvm_machine *machine)
{
    uint32_t size = HEAD + sizeof common_aml;
    memcpy(table + HEAD, common_aml, sizeof common_aml);
    for (uint32_t i = 0; i < MACHINE_DEVICES && machine->devices[i] != NULL; i++) {
        uint8_t *at = table + size;
        memcpy(at, virtio_aml, sizeof virtio_aml);
        at[VIRTIO_NAME] = (uint8_t)('0' + i);
        at[VIRTIO_UID] = (uint8_t)i;
        at[VIRTIO_PAGE] = (uint8_t)(i << 4);
        at[VIRTIO_INTERRUPT] = (uint8_t)(MACHINE_VIRTIO_GSI + i);
        size += sizeof virtio_aml;
    }
    write_head(table, "DSDT", 2, size);
    return size;
}

static void write_fadt(uint8_t *table, uint64_t dsdt)
{
    put(table, 109, BOOT_FLAGS, 2);
    put(table, 112, FLAGS, 4);
    put(table, 116, PORT, 4); /* to reset: the value 1, here */
    put(table, 120, MACHINE_RESET_PORT, 8);
    put(table, 128, 1, 1);
    put(table, 140, dsdt, 8);
    put(table, 244, PORT, 4); /* to switch off */
    put(table, 248, MACHINE_SLEEP_PORT, 8);
    put(table, 256, PORT, 4);
    put(table, 260, MACHINE_SLEEP_PORT, 8);
    write_head(table, "FACP", 6, FADT);
}

static void write_madt(uint8_t *table)
{
    static const uint8_t processor[8] = {0, 8, 0, 0, 1};
    static const uint8_t io_apic[12] = {1, 12, 0, 0, 0x00, 0x00, 0xc0, 0xfe};
    put(table, HEAD, 0xfee00000, 4);
    memcpy(table + HEAD + 8, processor, sizeof processor);
    memcpy(table + HEAD + 16, io_apic, sizeof io_apic);
    write_head(table, "APIC", 5, MADT);
}

uint64_t boot_acpi(const kvm_machine *machine)
{
    uint64_t next = TABLES;
    uint8_t dsdt[DSDT] = {0}, fadt[FADT] = {0}, madt[MADT] = {0}, xsdt[XSDT] = {0};
    uint8_t rsdp[RSDP] = {0};
    if (machine->ram[0].size < TABLES_END)
        return 0;
    write_fadt(fadt, append(machine, &next, dsdt, write_dsdt(dsdt, machine)));
    write_madt(madt);
    put(xsdt, HEAD, append(machine, &next, fadt, sizeof fadt), 8);
    put(xsdt, HEAD + 8, append(machine, &next, madt, sizeof madt), 8);
    write_head(xsdt, "XSDT", 1, sizeof xsdt);
    memcpy(rsdp, "RSD PTR ", 8);
    put(rsdp, 15, 2, 1);
    put(rsdp, 20, sizeof rsdp, 4);
    put(rsdp, 24, append(machine, &next, xsdt, sizeof xsdt), 8);
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, sizeof rsdp);
    return append(machine, &next, rsdp, sizeof rsdp);
}
