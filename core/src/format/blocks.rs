// SPDX-License-Identifier: GPL-2.0-only
//! Whole blocks: superblock, tree node, log group.

use super::layout::layout;

/// Block size in bytes.
pub const BLOCK: usize = 4096;
/// Superblock slots (block addresses): generation `g` is written to `SUPER_SLOTS[g % 2]`, both places.
pub const SUPER_SLOTS: [[u64; 2]; 2] = [[16, 1024], [17, 1025]];
/// First block that the allocator may hand out; the blocks before hold a boot area and superblocks.
pub const FIRST_BLOCK: u64 = 32;
/// Smallest volume in blocks (16 MiB).
pub const VOLUME_MIN: u64 = 4096;
/// Largest volume in blocks (2^48 blocks are 2^60 bytes).
pub const VOLUME_MAX: u64 = 1 << 48;
/// Magic number of a superblock: "VXF1SUPR" in bytes.
pub const SUPER_MAGIC: u64 = u64::from_le_bytes(*b"VXF1SUPR");
/// Magic number of a tree node.
pub const NODE_MAGIC: u32 = u32::from_le_bytes(*b"VXnd");
/// Magic number of a log group.
pub const LOG_MAGIC: u32 = u32::from_le_bytes(*b"VXlg");
/// Version of the format.
pub const VERSION: u32 = 1;

layout! {
    /// Pointer to a tree node. Both copies hold the same bytes.
    pub struct Ptr [32] {
        0 addr: u64 = "block address of the first copy",
        8 twin: u64 = "block address of the second copy, 0 with single metadata",
        16 birth: u64 = "checkpoint generation that wrote it",
        24 crc: u32 = "CRC-32C of the node's 4096 bytes",
        28 reserved: u32 = "zero",
    }
}

layout! {
    /// Head of a superblock; the rest of the block is zero. Bytes 0 to 3 are the CRC-32C of bytes 4 to 4095.
    pub struct Super [512] {
        0 crc: u32 = "CRC-32C of the rest of the block",
        4 version: u32 = "format version, 1",
        8 magic: u64 = "`VXF1SUPR`",
        16 uuid: [u8; 16] = "identity of the volume",
        32 label: [u8; 64] = "label, UTF-8, zero-padded",
        96 compat: u64 = "features that a program may ignore",
        104 ro_compat: u64 = "features that a program has to know to write",
        112 incompat: u64 = "features that a program has to know to read",
        120 block_size: u32 = "bytes in a block, 4096",
        124 checksum: u32 = "checksum algorithm: 1 = CRC-32C",
        128 blocks: u64 = "size of the volume in blocks; may grow up to the device's size",
        136 copies: u32 = "copies of metadata: 1 or 2",
        140 slot: u32 = "place in its pair of slots: 0 or 1; tells the two written copies apart",
        144 generation: u64 = "number of this checkpoint",
        152 addr: u64 = "block address of this slot",
        160 hash_key: [u8; 16] = "key of the hash for names, drawn at mkfs",
        176 root: [u8; 32] = "pointer to the root node (a Ptr)",
        208 root_level: u32 = "level of the root node; 0 = leaf",
        212 log_segment: u32 = "blocks of the log segment that `log_addr` lies in; it ends `log_room` blocks after `log_addr`",
        216 log_addr: u64 = "block where the next log group of this checkpoint starts, first copy",
        224 log_twin: u64 = "the same, second copy; 0 with single metadata",
        232 log_seq: u64 = "sequence number of that group",
        240 log_epoch: u64 = "log epoch: grows with each recovery, never twice the same",
        248 log_room: u32 = "blocks left in that log segment",
        252 state: u32 = "bit 0: cleanly unmounted (the log is empty); bit 1: fsck found errors; others 0",
        256 next_ino: u64 = "next inode number; numbers are never used twice",
        264 free_blocks: u64 = "free blocks at this checkpoint",
        272 inodes: u64 = "inodes in use",
        280 created: i64 = "time of mkfs, seconds since 1970",
        288 written: i64 = "time of this checkpoint",
        296 mounts: u64 = "how often it was opened for writing",
        304 durable_seq: u64 = "log sequence number up to which all was durable at this checkpoint",
        312 spare_addr: u64 = "the spare log segment, first copy; 0 if there is none",
        320 spare_twin: u64 = "the same, second copy",
        328 spare_blocks: u32 = "blocks of the spare log segment",
        332 root_reserved: u32 = "zero",
        336 reserved: [u8; 176] = "zero",
    }
}

/// [`Super::state`]: cleanly unmounted.
pub const STATE_CLEAN: u32 = 1;
/// [`Super::state`]: the checker found errors that it could not repair.
pub const STATE_ERRORS: u32 = 2;

layout! {
    /// Head of a tree node. In a leaf, `items` slots of 36 bytes (key, u16 offset, u16 length of the value) grow
    /// upwards from byte 64, values grow downwards from the end (an empty one has offset 4096). In an inner node, `items` entries of 64 bytes
    /// (key, Ptr) follow; the key is the lowest one that the child may hold, the first entry's key bounds the node.
    pub struct NodeHead [64] {
        0 crc: u32 = "zero; the checksum is in the pointer to the node",
        4 magic: u32 = "`VXnd`",
        8 uuid: [u8; 16] = "the volume's identity",
        24 addr: u64 = "block address of the first copy",
        32 twin: u64 = "block address of the second copy or 0",
        40 birth: u64 = "checkpoint generation that wrote it",
        48 level: u16 = "0 = leaf",
        50 items: u16 = "number of items or entries",
        52 values: u16 = "leaf: offset of the lowest value byte; inner: 0",
        54 garbage: u16 = "leaf: bytes in the value area that no item uses; inner: 0",
        56 tree: u32 = "tree id of its keys",
        60 reserved: u32 = "zero",
    }
}

layout! {
    /// Head of a log group: one append of whole blocks, the same bytes in both copies, zero-padded at the end.
    pub struct LogHead [128] {
        0 crc: u32 = "CRC-32C of the group from byte 4 on, over all its blocks, seeded with the volume's log secret",
        4 magic: u32 = "`VXlg`",
        8 uuid: [u8; 16] = "the volume's identity",
        24 addr: u64 = "block address of this group's first copy",
        32 twin: u64 = "block address of its second copy or 0",
        40 seq: u64 = "sequence number, one more than the group's before",
        48 epoch: u64 = "log epoch",
        56 blocks: u32 = "blocks of the group",
        60 records: u32 = "number of records",
        64 payload: u32 = "bytes of records after the head",
        68 room: u32 = "blocks left in the next group's segment",
        72 next_addr: u64 = "where the next group starts, first copy",
        80 next_twin: u64 = "the same, second copy or 0",
        88 durable_seq: u64 = "groups up to this one were durable when this one was written",
        96 generation: u64 = "checkpoint generation in which the transactions ran",
        104 reserved: [u8; 24] = "zero",
    }
}

layout! {
    /// Head of a log record: one transaction. Lists follow, in this order: allocations and frees (each u64 address, u32
    /// blocks), edits (u8 operation: 1 put, 2 delete; Key; u16 length; value), vectors (u64 collection, u64 slot,
    /// Slot, u32 length, elements), slots given up (u64 collection, u64 slot).
    pub struct LogRecord [32] {
        0 len: u32 = "bytes of the record with this head",
        4 allocs: u32 = "number of allocated runs of blocks",
        8 frees: u32 = "number of freed runs",
        12 edits: u32 = "number of edits",
        16 vectors: u32 = "number of vectors",
        20 drops: u32 = "number of slots given up",
        24 time: i64 = "when it ran, seconds since 1970",
    }
}

/// Most blocks of a log group (1 MiB).
pub const LOG_GROUP_MAX: u32 = 256;
