// SPDX-License-Identifier: GPL-2.0-only
//! Values of tree items: fixed heads, some followed by bytes (names, checksums, attributes).

use super::layout::layout;

/// Largest value of one tree item in bytes; longer values are cut into pieces (`Key::sub`).
pub const VALUE_MAX: usize = 1000;

layout! {
    /// `INODE`: (ino, INODE, 0).
    pub struct Inode [160] {
        0 mode: u32 = "file type and permission bits as in stat(2)",
        4 uid: u32 = "owner",
        8 gid: u32 = "group",
        12 nlink: u32 = "hard links; a directory has 2 and one for each subdirectory",
        16 size: u64 = "bytes; of a directory: number of entries",
        24 blocks: u64 = "data blocks held, prealloc included",
        32 atime: i64 = "last access, seconds since 1970",
        40 mtime: i64 = "last change of contents",
        48 ctime: i64 = "last change of the inode",
        56 btime: i64 = "creation",
        64 atime_ns: u32 = "nanoseconds of atime, below 10^9",
        68 mtime_ns: u32 = "nanoseconds of mtime",
        72 ctime_ns: u32 = "nanoseconds of ctime",
        76 btime_ns: u32 = "nanoseconds of btime",
        80 rdev: u64 = "device number of a device node as the kernel's makedev gives it, else 0",
        88 generation: u64 = "for NFS handles: the checkpoint generation in which it was created",
        96 parent: u64 = "of a directory: the inode of its parent (the root's is itself), else 0",
        104 flags: u64 = "bit 0 collection, bit 1 has an embedding, bit 2 embedding is stale, bit 3 contents were lost in a repair: where nothing is mapped is an error, no zeros; others 0",
        112 change: u64 = "counts every change of the inode (i_version)",
        120 embed_dim: u32 = "dimension of its embedding, 0 if none",
        124 project: u32 = "reserved for project quota, 0",
        128 reserved: [u8; 32] = "zero",
    }
}

/// Bits of [`Inode::flags`].
#[allow(missing_docs)]
pub mod inode_flags {
    pub const COLLECTION: u64 = 1;
    pub const EMBEDDED: u64 = 2;
    pub const STALE: u64 = 4;
    pub const INCOMPLETE: u64 = 8;
    pub const ALL: u64 = 15;
}

layout! {
    /// `DIRENT`: (directory, DIRENT, cookie); the name follows. The cookie is the keyed hash of the
    /// name with its top bit and its low 8 bits cleared, plus a number from 0 to 255 that tells names with
    /// equal hashes apart and never changes; cookies below 256 are not used.
    pub struct Dirent [12] {
        0 ino: u64 = "inode of the entry",
        8 dtype: u8 = "file type as in readdir(3): DT_REG 8, DT_DIR 4, DT_LNK 10, DT_FIFO 1, DT_CHR 2, DT_BLK 6, DT_SOCK 12",
        9 reserved: u8 = "zero",
        10 name_len: u16 = "bytes of the name that follows, 1 to 255",
    }
}

layout! {
    /// `LINK`: (ino, LINK, parent inode, sub = cookie in the parent); the name follows. The way back
    /// from an inode to its names.
    pub struct Link [4] {
        0 name_len: u16 = "bytes of the name that follows",
        2 reserved: u16 = "zero",
    }
}

layout! {
    /// `XATTR`: (ino, XATTR, keyed hash of the name, sub = collision index << 16 | piece). Piece 0 starts
    /// with this head, the name and the first bytes of the value; further pieces hold the rest.
    pub struct Xattr [8] {
        0 name_len: u16 = "bytes of the name that follows, 1 to 255",
        2 reserved: u16 = "zero",
        4 value_len: u32 = "bytes of the whole value, at most 65536",
    }
}

layout! {
    /// `EMBEDDING`: (ino, EMBEDDING, 0, piece). Piece 0 starts with this head; elements follow, over all pieces.
    pub struct Embedding [16] {
        0 dim: u32 = "number of elements, 1 to 65536",
        4 element: u32 = "1 = f32 (2 = f16, 3 = i8 are reserved)",
        8 reserved: u64 = "zero",
    }
}

layout! {
    /// `EXTENT`, `SLOT_EXTENT`, `VECTOR_EXTENT`, `INDEX_EXTENT`: (ino, kind, first block in the file
    /// or stream); for written extents one CRC-32C (u32) for each block follows.
    pub struct Extent [32] {
        0 addr: u64 = "first block on the device",
        8 birth: u64 = "checkpoint generation in which it was written",
        16 blocks: u32 = "length in blocks; at most 240 if written",
        20 flags: u32 = "bit 0: unwritten (allocated, reads as zeros, no checksums follow); others 0",
        24 reserved: u64 = "zero",
    }
}

/// Most blocks of a written extent: its checksums have to fit the item.
pub const EXTENT_BLOCKS_MAX: u32 = 240;
/// Most blocks of an unwritten extent.
pub const EXTENT_UNWRITTEN_MAX: u32 = 1 << 20;
/// [`Extent::flags`]: allocated but not written.
pub const EXTENT_UNWRITTEN: u32 = 1;

layout! {
    /// `COLLECTION`: (directory, COLLECTION, 0); the model name follows.
    pub struct Schema [128] {
        0 dim: u32 = "dimension, 1 to 65536",
        4 metric: u32 = "1 l2, 2 cosine, 3 ip",
        8 element: u32 = "element type: 1 f32",
        12 index: u32 = "index kind: 1 flat, 2 hnsw, 3 ivf, 4 pq, 5 lsh",
        16 m: u32 = "hnsw: links per node and layer",
        20 ef_construction: u32 = "hnsw: candidates while building",
        24 lists: u32 = "ivf: number of lists, 0 = by size",
        28 subvectors: u32 = "pq: number of subvectors, 0 = by dimension",
        32 bits: u32 = "pq, lsh: bits per code, 0 = default",
        36 tables: u32 = "lsh: number of tables, 0 = default",
        40 seed: u64 = "seed of every random choice of the index",
        48 next_id: u64 = "next record id for inserts without ids",
        56 records: u64 = "bulk records that are live",
        64 files: u64 = "file records with a slot",
        72 unindexed: u64 = "file records whose embedding has another dimension (no slot)",
        80 flags: u64 = "bit 0: existing children are still being taken in; others 0",
        88 change: u64 = "change counter: the sequence number given to the newest vector",
        96 model_len: u32 = "bytes of the model name that follows, at most 255",
        100 reserved: u32 = "zero",
        104 cursor: u64 = "while bit 0 of flags is set: directory cookie from which on children remain to be taken in; else 0",
        112 reserved2: [u8; 16] = "zero",
    }
}

/// [`Schema::flags`]: existing children are still being taken in.
pub const SCHEMA_POPULATING: u64 = 1;

layout! {
    /// `RECORD`: (collection, RECORD, id, piece). Piece 0 starts with this head; attributes follow, over all pieces.
    pub struct Record [24] {
        0 slot: u64 = "slot of the vector; all ones: not indexed",
        8 seq: u64 = "sequence number of the insert, equal to the slot's",
        16 attrs_len: u32 = "bytes of attributes in all pieces, at most 65536; 0 for files (their user xattrs serve)",
        20 flags: u32 = "0",
    }
}

/// [`Record::slot`] of a record that is not indexed.
pub const NO_SLOT: u64 = u64::MAX;
/// Ids from here on are files: `FILE_ID_BASE + inode number`.
pub const FILE_ID_BASE: u64 = 1 << 63;

layout! {
    /// One slot of the slot stream (`SLOT_EXTENT`): slot `i` is at byte `32 * i`.
    pub struct Slot [32] {
        0 id: u64 = "record id",
        8 seq: u64 = "sequence number of the insert; 0: the slot is empty",
        16 inv_norm: u64 = "bits of the f64 inverse Euclidean norm (cosine), else 0",
        24 flags: u32 = "bit 0: live; others 0",
        28 crc: u32 = "CRC-32C of the vector's bytes",
    }
}

/// [`Slot::flags`]: the record exists.
pub const SLOT_LIVE: u32 = 1;

layout! {
    /// `INDEX`: (collection, INDEX, 0): the persisted index, a byte string in the index stream.
    pub struct IndexRoot [48] {
        0 kind: u32 = "index kind as in the schema",
        4 version: u32 = "version of the index's own encoding; another one is rebuilt",
        8 len: u64 = "bytes in the index stream",
        16 change: u64 = "the collection's change counter when it was written",
        24 base: u64 = "first block of the byte string in the index stream (two places are used in turn)",
        32 crc: u32 = "CRC-32C of the byte string",
        36 reserved: [u8; 12] = "zero",
    }
}

layout! {
    /// `SPACE`: (0, SPACE, group): a bitmap of the group's 4096 blocks follows the head, 1 = used.
    /// A group without an item is free, but for the blocks that are always used.
    pub struct SpaceHead [16] {
        0 used: u32 = "number of ones in the bitmap",
        4 reserved: [u8; 12] = "zero",
    }
}

/// Blocks in an allocation group.
pub const GROUP_BLOCKS: u64 = 4096;

layout! {
    /// `ORPHAN`: (0, ORPHAN, ino): the inode has no name; it goes when nobody has it open.
    pub struct Orphan [8] {
        0 reserved: u64 = "zero",
    }
}

layout! {
    /// `POPULATE`: (0, POPULATE, directory): the children of this new collection are still being taken in.
    pub struct Populate [8] {
        0 reserved: u64 = "zero",
    }
}

layout! {
    /// `TRIM`: (0, TRIM, ino): extents from `from` on no longer belong to the file and are being freed.
    pub struct Trim [8] {
        0 from: u64 = "first file block to free; all ones: what a dropped collection left behind (records, slots, vectors, index)",
    }
}

/// [`Trim::from`] of a directory: the remains of a dropped collection.
pub const TRIM_COLLECTION: u64 = u64::MAX;

layout! {
    /// `LISTED`: (0, LISTED, directory): the directory is a collection, so that all of a volume are found
    /// without a walk. There is one exactly where there is a `COLLECTION` item.
    pub struct Listed [8] {
        0 reserved: u64 = "zero",
    }
}
