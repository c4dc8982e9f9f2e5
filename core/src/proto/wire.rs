// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
//! The request/reply protocol of a volume, byte for byte: the one Rust definition, compiled into the
//! core and into the client crate alike (`client/include/vexfs.h` says the same in C). It owns the
//! fixed structures, the numbers and the limits, and depends on nothing but `core`.
//!
//! A *frame* is one request or one reply. All integers are little-endian, every structure is
//! packed by its field order without hidden padding, and every section starts at a multiple of 8 bytes from
//! the start of the frame ([`pad`]); padding bytes are zero. Vectors are f32 bits, distances f64 bits.
//!
//! A request is a [`RequestHead`], the structure of its operation, and its sections in the order in which
//! the structure's documentation names them. A reply is a [`ReplyHead`]; if its status is 0 the
//! structure and sections of the operation's reply follow, else a message in UTF-8 that says what is wrong.
//!
//! Frames travel by write(2) and read(2) on the control file `.vexfs`, which resolves by name in every
//! directory; the requests of a session are about that directory. A request may be written in pieces,
//! a reply may be read in pieces; a session has one request under way at a time.

#![allow(clippy::module_name_repetitions)]

/// Version of the protocol.
pub const VERSION: u16 = 1;
/// Name of the control file in every directory.
pub const CONTROL_FILE: &str = ".vexfs";
/// Largest frame in bytes, either way.
pub const FRAME_MAX: usize = 64 << 20;
/// Most bytes of a request that one ioctl carries (see [`ioctl_request`]).
pub const IOCTL_MAX: usize = 16_383;

/// Number of the ioctl that does what writing `len` bytes of a request does: `_IOC(_IOC_WRITE, 0xe7, 1, len)`. For
/// a file system that is mounted read-only, where no file can be opened for writing: open the control file for
/// reading, send requests by this and read the replies.
pub const fn ioctl_request(len: usize) -> u32 {
    (1 << 30) | ((len as u32 & 0x3fff) << 16) | (0xe7 << 8) | 1
}
/// Largest dimension.
pub const DIM_MAX: u32 = 65_536;
/// Largest dimension of an embedding that the attribute [`EMBEDDING_XATTR`] can carry.
pub const XATTR_DIM_MAX: u32 = 16_384;
/// The embedding as an extended attribute: little-endian f32.
pub const EMBEDDING_XATTR: &str = "user.vexfs.embedding";
/// Largest `k` of a search; a range search that wants everything asks for this many.
pub const K_MAX: u32 = 1 << 20;
/// Most queries in one search; more take several requests.
pub const QUERIES_MAX: u32 = 4096;
/// Longest filter text in bytes.
pub const FILTER_MAX: u32 = 65_536;
/// Longest model name in bytes.
pub const MODEL_MAX: u32 = 255;
/// Longest name of a directory entry or an attribute in bytes.
pub const NAME_MAX: u32 = 255;
/// Most bytes of encoded attributes of one record.
pub const ATTRS_MAX: u32 = 65_536;
/// Record ids from here on are files: `FILE_ID_BASE + inode number`. Below are bulk records.
pub const FILE_ID_BASE: u64 = 1 << 63;
/// In [`RecordsReply::next`]: there is no further page.
pub const LIST_END: u64 = u64::MAX;
/// In [`ReplyHead::position`]: the error is about no particular place.
pub const NO_POSITION: u32 = u32::MAX;

/// Operations: [`RequestHead::op`].
pub mod op {
    /// Makes the directory a collection. [`Schema`](super::Schema), then the model name. Reply: [`CollectionInfo`](super::CollectionInfo), model name.
    pub const CREATE: u16 = 1;
    /// Describes the collection. No structure. Reply: [`CollectionInfo`](super::CollectionInfo), model name.
    pub const INFO: u16 = 2;
    /// The directory stops being a collection: bulk records go; the directory, its files and their embeddings stay. No structure. Reply: nothing.
    pub const DROP: u16 = 3;
    /// Changes index kind and parameters. [`Schema`](super::Schema) without a model name (dim, metric and element 0;
    /// index 0 and parameters 0 keep what is). Reply: [`CollectionInfo`](super::CollectionInfo), model name.
    pub const REINDEX: u16 = 4;
    /// Inserts or replaces records. [`Insert`](super::Insert). Reply: [`InsertReply`](super::InsertReply).
    pub const INSERT: u16 = 5;
    /// Records by id. [`Get`](super::Get). Reply: [`RecordsReply`](super::RecordsReply), one record for each id in the order asked.
    pub const GET: u16 = 6;
    /// Deletes records by id (a file's record: removes its embedding). [`Ids`](super::Ids). Reply: [`DeleteReply`](super::DeleteReply).
    pub const DELETE: u16 = 7;
    /// Deletes the bulk records that match a filter. [`Text`](super::Text), filter. Reply: [`DeleteReply`](super::DeleteReply).
    pub const DELETE_WHERE: u16 = 8;
    /// Changes attributes of bulk records. [`UpdateAttrs`](super::UpdateAttrs). Reply: [`DeleteReply`](super::DeleteReply)
    /// (`done`: records changed, `missing`: ids that do not exist).
    pub const UPDATE_ATTRS: u16 = 9;
    /// Nearest records, one list for each query. [`Search`](super::Search). Reply: [`SearchReply`](super::SearchReply).
    pub const SEARCH: u16 = 10;
    /// A page of records in order of id. [`List`](super::List). Reply: [`RecordsReply`](super::RecordsReply).
    pub const LIST: u16 = 11;
    /// Sets, replaces or removes the embedding of a file. [`Embed`](super::Embed). Reply: nothing.
    pub const EMBED: u16 = 12;
    /// The embedding of a file. [`Embed`](super::Embed) with dim 0. Reply: [`EmbeddingReply`](super::EmbeddingReply).
    pub const GET_EMBEDDING: u16 = 13;
    /// Makes durable everything that was acknowledged before. No structure. Reply: nothing.
    pub const SYNC: u16 = 14;
    /// Collections under the directory, a page at a time. [`Collections`](super::Collections). Reply: [`CollectionsReply`](super::CollectionsReply).
    pub const COLLECTIONS: u16 = 15;
    /// Figures of the volume. No structure. Reply: [`StatsReply`](super::StatsReply).
    pub const STATS: u16 = 16;

    /// Whether an operation only reads: drivers send such a frame as `Op::Query`, others as `Op::Request`.
    pub const fn is_read(op: u16) -> bool {
        matches!(op, INFO | GET | SEARCH | LIST | GET_EMBEDDING | COLLECTIONS | STATS)
    }

    /// Name of an operation, for messages and statistics.
    pub const fn name(op: u16) -> &'static str {
        match op {
            CREATE => "create",
            INFO => "info",
            DROP => "drop",
            REINDEX => "reindex",
            INSERT => "insert",
            GET => "get",
            DELETE => "delete",
            DELETE_WHERE => "delete-where",
            UPDATE_ATTRS => "update-attrs",
            SEARCH => "search",
            LIST => "list",
            EMBED => "embed",
            GET_EMBEDDING => "get-embedding",
            SYNC => "sync",
            COLLECTIONS => "collections",
            STATS => "stats",
            _ => "unknown",
        }
    }
}

/// Bits of [`RequestHead::flags`].
pub mod request_flags {
    /// A change: reply only when it is durable, not merely acknowledged.
    pub const DURABLE: u32 = 1;
    /// All bits with a meaning.
    pub const ALL: u32 = 1;
}

/// Metrics: [`Schema::metric`].
pub mod metric {
    /// Squared Euclidean distance.
    pub const L2: u32 = 1;
    /// 1 − cosine similarity.
    pub const COSINE: u32 = 2;
    /// − inner product.
    pub const IP: u32 = 3;
}

/// Element types: [`Schema::element`].
pub mod element {
    /// 32-bit floats.
    pub const F32: u32 = 1;
    /// 16-bit floats (reserved).
    pub const F16: u32 = 2;
    /// 8-bit integers (reserved).
    pub const I8: u32 = 3;
}

/// Index kinds: [`Schema::index`].
pub mod index {
    /// Exact: compares with every vector.
    pub const FLAT: u32 = 1;
    /// Hierarchical navigable small world graph.
    pub const HNSW: u32 = 2;
    /// Inverted file.
    pub const IVF: u32 = 3;
    /// Product quantisation.
    pub const PQ: u32 = 4;
    /// Locality-sensitive hashing.
    pub const LSH: u32 = 5;
}

/// Bits of [`Insert::flags`].
pub mod insert_flags {
    /// Ids follow; else ids continue the collection's counter.
    pub const IDS: u32 = 1;
    /// Attributes follow.
    pub const ATTRS: u32 = 2;
    /// Refuse the request (EEXIST) if one of the ids exists.
    pub const IF_ABSENT: u32 = 4;
    /// All bits with a meaning.
    pub const ALL: u32 = 7;
}

/// Bits of [`Get::flags`], [`List::flags`] and [`Search::flags`]: what a reply is to contain.
pub mod want {
    /// Vectors (not for searches).
    pub const VECTORS: u32 = 1;
    /// Attributes (not for searches).
    pub const ATTRS: u32 = 2;
    /// Names of files within the collection.
    pub const PATHS: u32 = 4;
    /// All bits with a meaning.
    pub const ALL: u32 = 7;
}

/// Further bits of [`Search::flags`].
pub mod search_flags {
    /// Only results within [`Search::radius`](super::Search::radius).
    pub const RADIUS: u32 = 16;
    /// Compare with every vector, whatever the index kind.
    pub const EXACT: u32 = 32;
    /// All bits with a meaning.
    pub const ALL: u32 = super::want::PATHS | RADIUS | EXACT;
}

/// Bits of [`UpdateAttrs::flags`].
pub mod update_flags {
    /// The attributes given replace all; else they are merged in, and type [`NONE`](super::attr_type::NONE) removes a name.
    pub const REPLACE: u32 = 1;
    /// All bits with a meaning.
    pub const ALL: u32 = 1;
}

/// Bits of [`Embed::flags`].
pub mod embed_flags {
    /// Remove the embedding (dim 0).
    pub const REMOVE: u32 = 1;
    /// All bits with a meaning.
    pub const ALL: u32 = 1;
}

/// Bits of [`Collections::flags`].
pub mod collections_flags {
    /// Directories below the directory too; else only its children and itself.
    pub const RECURSIVE: u32 = 1;
    /// All bits with a meaning.
    pub const ALL: u32 = 1;
}

/// Bits of [`RecordHead::flags`].
pub mod record_flags {
    /// The record exists (in a reply to GET, ids that do not are listed without this bit).
    pub const PRESENT: u32 = 1;
    /// A file was overwritten after it got its embedding.
    pub const STALE: u32 = 2;
    /// A file whose embedding the collection cannot search: another dimension, or zero under cosine.
    pub const UNINDEXED: u32 = 4;
    /// The vector of the record is damaged on the device: it is neither searched nor in the reply.
    pub const DAMAGED: u32 = 8;
}

/// Bits of [`CollectionInfo::flags`].
pub mod info_flags {
    /// Files that were in the directory before are still being taken in.
    pub const POPULATING: u32 = 1;
    /// Some records are not in the index yet (searches find them all the same).
    pub const CATCHING_UP: u32 = 2;
}

/// Types of attribute values: [`AttrHead::ty`].
pub mod attr_type {
    /// No value: removes the attribute (UPDATE_ATTRS without REPLACE only).
    pub const NONE: u8 = 0;
    /// Text: UTF-8 in requests; a file's extended attributes may be any bytes.
    pub const STRING: u8 = 1;
    /// 64-bit signed integer.
    pub const I64: u8 = 2;
    /// f64 bits; neither NaN nor infinite.
    pub const F64: u8 = 3;
    /// One byte, 0 or 1.
    pub const BOOL: u8 = 4;
}

/// Rounds a length up to a multiple of 8; sections start there. (Saturates; no frame is that long.)
pub const fn pad(n: usize) -> usize {
    match n.checked_next_multiple_of(8) {
        Some(x) => x,
        None => usize::MAX,
    }
}

/// A field of a wire structure: an integer.
trait Field: Copy {
    fn load(b: &[u8], at: usize) -> Option<Self>;
    fn store(self, b: &mut [u8], at: usize) -> Option<()>;
}

macro_rules! field {
    ($($t:ty),*) => { $(
        impl Field for $t {
            fn load(b: &[u8], at: usize) -> Option<Self> {
                let end = at.checked_add(core::mem::size_of::<$t>())?;
                Some(<$t>::from_le_bytes(b.get(at..end)?.try_into().ok()?))
            }
            fn store(self, b: &mut [u8], at: usize) -> Option<()> {
                let end = at.checked_add(core::mem::size_of::<$t>())?;
                b.get_mut(at..end)?.copy_from_slice(&self.to_le_bytes());
                Some(())
            }
        }
    )* };
}
field!(u8, u16, u32, u64, i32);

macro_rules! wire {
    ($( $(#[$m:meta])* $name:ident [$size:literal] { $( $off:literal $field:ident : $ty:ty = $doc:literal ),* $(,)? } )*) => {
        $(
            $(#[$m])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[repr(C)]
            pub struct $name { $( #[doc = $doc] pub $field: $ty ),* }

            impl $name {
                /// Size in bytes.
                pub const SIZE: usize = $size;
                /// Reads the structure from the start of `b`; `None` if `b` is too short.
                pub fn parse(b: &[u8]) -> Option<Self> {
                    Some(Self { $( $field: <$ty as Field>::load(b, $off)? ),* })
                }
                /// The structure in bytes.
                pub fn bytes(&self) -> [u8; $size] {
                    let mut b = [0u8; $size];
                    $( let _ = Field::store(self.$field, &mut b, $off); )*
                    b
                }
            }

            // The same in memory, on the wire and in C: no padding that nobody named.
            #[allow(clippy::arithmetic_side_effects)] // evaluated by the compiler only
            const _: () = {
                let mut at = 0;
                $(
                    assert!($off == at);
                    assert!($off == core::mem::offset_of!($name, $field));
                    at += core::mem::size_of::<$ty>();
                )*
                assert!(at == $size);
                assert!(core::mem::size_of::<$name>() == $size);
            };
        )*

        /// Every structure: its name, its size and its fields (name, offset, size); for the test that
        /// compares the C header with this file.
        pub const STRUCTS: &[StructTable] = &[
            $( (stringify!($name), $size, &[ $( (stringify!($field), $off, core::mem::size_of::<$ty>()) ),* ]) ),*
        ];
    };
}

/// One entry of [`STRUCTS`].
pub type StructTable = (&'static str, usize, &'static [(&'static str, usize, usize)]);

wire! {
    /// Start of every request.
    RequestHead [32] {
        0 len: u32 = "Bytes of the whole frame, this head included; at most [`FRAME_MAX`].",
        4 version: u16 = "[`VERSION`].",
        6 op: u16 = "One of [`op`].",
        8 tag: u64 = "Any number; the reply repeats it.",
        16 flags: u32 = "Bits of [`request_flags`].",
        20 reserved: u32 = "Zero.",
        24 reserved2: u64 = "Zero.",
    }

    /// Start of every reply.
    ReplyHead [32] {
        0 len: u32 = "Bytes of the whole frame, this head included.",
        4 version: u16 = "[`VERSION`].",
        6 op: u16 = "As in the request.",
        8 tag: u64 = "As in the request.",
        16 status: i32 = "0, or a Linux error number (positive); then a message in UTF-8 is all that follows.",
        20 position: u32 = "With an error: the byte of the filter text, or the number of the vector, query or record that it is about; else [`NO_POSITION`].",
        24 done: u64 = "With an error: how many records of the request were done before; else 0.",
    }

    /// What a collection is. The model name follows.
    Schema [56] {
        0 dim: u32 = "Dimension, 1 to [`DIM_MAX`].",
        4 metric: u32 = "One of [`metric`].",
        8 element: u32 = "One of [`element`].",
        12 index: u32 = "One of [`index`](mod@index).",
        16 m: u32 = "HNSW: links per node and layer. 0 here and below: the default.",
        20 ef_construction: u32 = "HNSW: candidates while building.",
        24 lists: u32 = "IVF: number of lists.",
        28 subvectors: u32 = "PQ: number of subvectors.",
        32 bits: u32 = "PQ, LSH: bits per code.",
        36 tables: u32 = "LSH: number of tables.",
        40 seed: u64 = "Seed of every random choice of the index.",
        48 model_len: u32 = "Bytes of the model name, at most [`MODEL_MAX`].",
        52 reserved: u32 = "Zero.",
    }

    /// A collection as it is. The model name follows.
    CollectionInfo [144] {
        0 dim: u32 = "Dimension.",
        4 metric: u32 = "One of [`metric`].",
        8 element: u32 = "One of [`element`].",
        12 index: u32 = "One of [`index`](mod@index).",
        16 m: u32 = "As in [`Schema`]; the value in use.",
        20 ef_construction: u32 = "As in [`Schema`].",
        24 lists: u32 = "As in [`Schema`].",
        28 subvectors: u32 = "As in [`Schema`].",
        32 bits: u32 = "As in [`Schema`].",
        36 tables: u32 = "As in [`Schema`].",
        40 seed: u64 = "As in [`Schema`].",
        48 ino: u64 = "Inode of the directory.",
        56 next_id: u64 = "Id that the next insert without ids begins with.",
        64 records: u64 = "Bulk records.",
        72 files: u64 = "Files that are searched.",
        80 unindexed: u64 = "Files whose embedding it cannot search: another dimension, or zero under cosine.",
        88 pending: u64 = "Records that are not in the index yet.",
        96 tombstones: u64 = "Deleted entries that the index still passes through.",
        104 index_bytes: u64 = "Bytes of the stored index.",
        112 change: u64 = "Grows with every change of the collection.",
        120 flags: u32 = "Bits of [`info_flags`].",
        124 model_len: u32 = "Bytes of the model name.",
        128 damaged: u64 = "Records whose vector is damaged on the device.",
        136 memory: u64 = "Bytes of memory that the loaded collection takes.",
    }

    /// Records to insert. Sections: ids (`count` u64; with IDS), vectors (`count * dim` f32), ends of the
    /// records' attributes within the attributes (`count` u32; with ATTRS), attributes (with ATTRS).
    Insert [24] {
        0 count: u32 = "Number of records, at least 1.",
        4 dim: u32 = "Dimension of the vectors.",
        8 flags: u32 = "Bits of [`insert_flags`].",
        12 attrs_len: u32 = "Bytes of all attributes together.",
        16 reserved: u64 = "Zero.",
    }

    /// Reply to INSERT.
    InsertReply [16] {
        0 count: u64 = "Records inserted or replaced.",
        8 first_id: u64 = "Without IDS: the id of the first record, the others follow it. With IDS: the first id.",
    }

    /// Records to fetch. Section: ids (`count` u64).
    Get [16] {
        0 count: u32 = "Number of ids, at least 1.",
        4 flags: u32 = "Bits of [`want`].",
        8 reserved: u64 = "Zero.",
    }

    /// Records to delete. Section: ids (`count` u64).
    Ids [16] {
        0 count: u32 = "Number of ids, at least 1.",
        4 flags: u32 = "Zero.",
        8 reserved: u64 = "Zero.",
    }

    /// A filter. Section: its text.
    Text [16] {
        0 len: u32 = "Bytes of the text, at most [`FILTER_MAX`].",
        4 flags: u32 = "Zero.",
        8 reserved: u64 = "Zero.",
    }

    /// Reply to DELETE, DELETE_WHERE and UPDATE_ATTRS.
    DeleteReply [16] {
        0 done: u64 = "Records deleted or changed.",
        8 missing: u64 = "Ids that do not exist.",
    }

    /// Attributes to change. Sections: ids (`count` u64), ends of the records' attributes within the
    /// attributes (`count` u32), attributes.
    UpdateAttrs [16] {
        0 count: u32 = "Number of records, at least 1.",
        4 flags: u32 = "Bits of [`update_flags`].",
        8 attrs_len: u32 = "Bytes of all attributes together.",
        12 reserved: u32 = "Zero.",
    }

    /// A search. Sections: queries (`count * dim` f32), filter text.
    Search [48] {
        0 count: u32 = "Number of queries, 1 to [`QUERIES_MAX`].",
        4 dim: u32 = "Dimension of the queries.",
        8 k: u32 = "Most results of a query, 1 to [`K_MAX`].",
        12 flags: u32 = "Bits of [`want`] (PATHS) and [`search_flags`].",
        16 ef: u32 = "HNSW: candidates while searching; 0: the default. Other kinds ignore it.",
        20 nprobe: u32 = "IVF: lists to look at; 0: the default. Other kinds ignore it.",
        24 rerank: u32 = "PQ, LSH: candidates to compare exactly; 0: the default. Other kinds ignore it.",
        28 filter_len: u32 = "Bytes of the filter text; 0: no filter.",
        32 radius: u64 = "f64 bits of the largest distance, in the units of the results (with RADIUS).",
        40 reserved: u64 = "Zero.",
    }

    /// Reply to SEARCH. Then for each query: [`QueryHead`], its [`Hit`]s nearest first (ties: lower id
    /// first), its paths.
    SearchReply [32] {
        0 count: u32 = "Number of queries.",
        4 reserved: u32 = "Zero.",
        8 evaluations: u64 = "Distance evaluations of all queries.",
        16 hops: u64 = "Graph nodes (or lists) visited by all queries.",
        24 reads: u64 = "Pages of vectors that had to be read because they were not in memory.",
    }

    /// Results of one query. Sections: hits, paths (each a u16 length and the name's bytes).
    QueryHead [24] {
        0 hits: u32 = "Number of results.",
        4 paths_len: u32 = "Bytes of the paths of all results, in the order of the results.",
        8 evaluations: u64 = "Distance evaluations.",
        16 hops: u64 = "Graph nodes (or lists) visited.",
    }

    /// One result.
    Hit [24] {
        0 id: u64 = "Record id.",
        8 distance: u64 = "f64 bits of the distance: l2 squared, 1 − cosine similarity, − inner product.",
        16 paths: u32 = "Number of names of this file in the collection (with PATHS).",
        20 reserved: u32 = "Zero.",
    }

    /// A page of records. Section: filter text.
    List [32] {
        0 cursor: u64 = "First id to look at: 0, then [`RecordsReply::next`].",
        8 max_records: u32 = "Most records in the page; 0: as many as fit.",
        12 max_bytes: u32 = "Most bytes of the reply, at least one record; 0: [`FRAME_MAX`].",
        16 flags: u32 = "Bits of [`want`].",
        20 filter_len: u32 = "Bytes of the filter text; 0: no filter.",
        24 reserved: u64 = "Zero.",
    }

    /// Reply to GET and LIST: for each record a [`RecordHead`] with its sections follows.
    RecordsReply [32] {
        0 count: u32 = "Number of records.",
        4 dim: u32 = "Dimension of the collection.",
        8 next: u64 = "Cursor of the next page, or [`LIST_END`].",
        16 change: u64 = "[`CollectionInfo::change`] when the page was made; the same in all pages of an unchanged collection.",
        24 reserved: u64 = "Zero.",
    }

    /// One record. Sections: vector (`dim` f32), attributes, paths (each a u16 length and the name's bytes).
    RecordHead [32] {
        0 id: u64 = "Record id.",
        8 flags: u32 = "Bits of [`record_flags`].",
        12 dim: u32 = "Elements of the vector that follows; 0 if not asked for.",
        16 attrs_len: u32 = "Bytes of attributes.",
        20 paths: u32 = "Number of names.",
        24 paths_len: u32 = "Bytes of the names.",
        28 reserved: u32 = "Zero.",
    }

    /// Which file's embedding, and to EMBED what it is to be. Sections: name, vector (`dim` f32).
    Embed [32] {
        0 ino: u64 = "Inode of the file, which must have a name in the directory; 0: by name.",
        8 name_len: u32 = "Bytes of the name in the directory; 0: by inode.",
        12 dim: u32 = "Elements of the vector; 0 to remove or get it.",
        16 flags: u32 = "Bits of [`embed_flags`].",
        20 reserved: u32 = "Zero.",
        24 reserved2: u64 = "Zero.",
    }

    /// Reply to GET_EMBEDDING. Section: vector (`dim` f32).
    EmbeddingReply [16] {
        0 ino: u64 = "Inode of the file.",
        8 dim: u32 = "Elements of the vector.",
        12 flags: u32 = "STALE of [`record_flags`].",
    }

    /// Collections under the directory.
    Collections [32] {
        0 cursor: u64 = "0, then [`CollectionsReply::cursor`].",
        8 cursor2: u64 = "0, then [`CollectionsReply::cursor2`].",
        16 max: u32 = "Most collections in the page; 0: as many as fit.",
        20 flags: u32 = "Bits of [`collections_flags`].",
        24 reserved: u64 = "Zero.",
    }

    /// Reply to COLLECTIONS. Then for each collection: [`CollectionInfo`], a u32 length of its path and u32 zero,
    /// the model name, the path (relative to the directory; empty for the directory itself). A page may be empty
    /// and yet not be the last.
    CollectionsReply [32] {
        0 count: u32 = "Number of collections.",
        4 more: u32 = "1: ask again with the cursor; 0: that was the last page.",
        8 cursor: u64 = "Where the next page begins.",
        16 cursor2: u64 = "Where the next page begins.",
        24 reserved: u64 = "Zero.",
    }

    /// Reply to STATS.
    StatsReply [128] {
        0 uuid_lo: u64 = "First 8 bytes of the volume's UUID, as a little-endian number.",
        8 uuid_hi: u64 = "Last 8 bytes of the volume's UUID.",
        16 block_size: u32 = "Bytes in a block.",
        20 read_only: u32 = "1: no changes.",
        24 blocks: u64 = "Size of the volume in blocks.",
        32 free: u64 = "Free blocks.",
        40 available: u64 = "Free blocks that a caller may use.",
        48 inodes: u64 = "Inodes in use.",
        56 generation: u64 = "Checkpoint generation.",
        64 reserved: u64 = "Zero, here and below.",
        72 reserved2: u64 = "Zero.",
        80 reserved3: u64 = "Zero.",
        88 reserved4: u64 = "Zero.",
        96 reserved5: u64 = "Zero.",
        104 reserved6: u64 = "Zero.",
        112 reserved7: u64 = "Zero.",
        120 reserved8: u64 = "Zero.",
    }

    /// One attribute: this head, the name, the value. A record's attributes are in ascending order
    /// of their names' bytes, each name once, without padding; at most [`ATTRS_MAX`] bytes in all.
    AttrHead [4] {
        0 name_len: u8 = "Bytes of the name, 1 to 255.",
        1 ty: u8 = "One of [`attr_type`].",
        2 value_len: u16 = "Bytes of the value: 8 for numbers, 1 for booleans.",
    }
}
