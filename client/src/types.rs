// SPDX-License-Identifier: MIT OR Apache-2.0
//! What requests and replies are made of.

use crate::wire;
use crate::{Attrs, Error};
use std::fmt;
use std::str::FromStr;

macro_rules! named {
    ($(#[$m:meta])* $name:ident, $what:literal { $( $(#[$vm:meta])* $v:ident = $code:expr, $text:literal; )* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $( $(#[$vm])* $v ),* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[ $( $name::$v ),* ];

            /// Its number in the protocol.
            pub const fn code(self) -> u32 {
                match self { $( $name::$v => $code ),* }
            }

            /// The one with this number.
            pub fn from_code(code: u32) -> Option<$name> {
                Self::ALL.iter().copied().find(|x| x.code() == code)
            }

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $( $name::$v => $text ),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<$name, Error> {
                Self::ALL.iter().copied().find(|x| x.name() == s).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|x| x.name()).collect();
                    Error::Request(format!(concat!("unknown ", $what, " '{}': use one of {}"), s, known.join(", ")))
                })
            }
        }
    };
}

named! {
    /// How distance is measured; smaller is nearer.
    Metric, "metric" {
        /// Squared Euclidean distance.
        L2 = wire::metric::L2, "l2";
        /// 1 − cosine similarity.
        Cosine = wire::metric::COSINE, "cosine";
        /// − inner product.
        Ip = wire::metric::IP, "ip";
    }
}

named! {
    /// How a collection is indexed.
    IndexKind, "index kind" {
        /// Exact: compares with every vector.
        Flat = wire::index::FLAT, "flat";
        /// Hierarchical navigable small world graph.
        Hnsw = wire::index::HNSW, "hnsw";
        /// Inverted file.
        Ivf = wire::index::IVF, "ivf";
        /// Product quantisation.
        Pq = wire::index::PQ, "pq";
        /// Locality-sensitive hashing.
        Lsh = wire::index::LSH, "lsh";
    }
}

named! {
    /// How elements are stored.
    Element, "element type" {
        /// 32-bit floats.
        F32 = wire::element::F32, "f32";
        /// 16-bit floats (reserved).
        F16 = wire::element::F16, "f16";
        /// 8-bit integers (reserved).
        I8 = wire::element::I8, "i8";
    }
}

/// Parameters of an index; 0 is the default of the kind, and for a reindex what the collection has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexParams {
    /// HNSW: links per node and layer.
    pub m: u32,
    /// HNSW: candidates while building.
    pub ef_construction: u32,
    /// IVF: number of lists.
    pub lists: u32,
    /// PQ: number of subvectors.
    pub subvectors: u32,
    /// PQ, LSH: bits per code.
    pub bits: u32,
    /// LSH: number of tables.
    pub tables: u32,
    /// Seed of every random choice.
    pub seed: u64,
}

/// What a new collection is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Dimension, 1 to 65536.
    pub dim: u32,
    /// Metric.
    pub metric: Metric,
    /// Element type.
    pub element: Element,
    /// Index kind.
    pub index: IndexKind,
    /// Its parameters.
    pub params: IndexParams,
    /// Name of the model that makes the embeddings; may be empty.
    pub model: String,
}

impl Schema {
    /// A schema of f32 elements with default parameters.
    pub fn new(dim: u32, metric: Metric, index: IndexKind) -> Schema {
        Schema { dim, metric, element: Element::F32, index, params: IndexParams::default(), model: String::new() }
    }
}

/// A collection as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionInfo {
    /// What it is; parameters are those in use.
    pub schema: Schema,
    /// Inode of the directory.
    pub ino: u64,
    /// Id that the next insert without ids begins with.
    pub next_id: u64,
    /// Bulk records.
    pub records: u64,
    /// Files that are searched.
    pub files: u64,
    /// Files whose embedding it cannot search: another dimension, or zero under cosine.
    pub unindexed: u64,
    /// Records that are not in the index yet.
    pub pending: u64,
    /// Deleted entries that the index still passes through.
    pub tombstones: u64,
    /// Bytes of the stored index.
    pub index_bytes: u64,
    /// Records whose vector is damaged on the device.
    pub damaged: u64,
    /// Bytes of memory that the loaded collection takes.
    pub memory: u64,
    /// Grows with every change.
    pub change: u64,
    /// Files that were in the directory before are still being taken in.
    pub populating: bool,
    /// Some records are not in the index yet (searches find them all the same).
    pub catching_up: bool,
}

/// Records to insert.
#[derive(Clone, Copy, Debug, Default)]
pub struct Insert<'a> {
    /// Dimension of the vectors.
    pub dim: u32,
    /// The vectors, one after the other.
    pub vectors: &'a [f32],
    /// Their ids, below 2^63; `None`: they continue the collection's counter.
    pub ids: Option<&'a [u64]>,
    /// Their attributes.
    pub attrs: Option<&'a [Attrs]>,
    /// Refuse the request if one of the ids exists.
    pub if_absent: bool,
    /// Return when the records are durable; else when they are acknowledged.
    pub durable: bool,
}

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Records inserted or replaced.
    pub count: u64,
    /// Id of the first; without given ids the others follow it.
    pub first_id: u64,
}

/// What became of a deletion or an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Records deleted or changed.
    pub done: u64,
    /// Ids that do not exist.
    pub missing: u64,
}

/// A search. A field that is 0 or `None` is left to the volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search<'a> {
    /// Dimension of the queries.
    pub dim: u32,
    /// The queries, one after the other; any number (large ones travel in several requests).
    pub queries: &'a [f32],
    /// Most results of a query, 1 to [`wire::K_MAX`].
    pub k: u32,
    /// HNSW: candidates while searching. Other kinds ignore it, as with the next two.
    pub ef: u32,
    /// IVF: lists to look at.
    pub nprobe: u32,
    /// PQ, LSH: candidates to compare exactly.
    pub rerank: u32,
    /// Only results within this distance.
    pub radius: Option<f64>,
    /// Only records that match this filter.
    pub filter: Option<&'a str>,
    /// Name the files.
    pub paths: bool,
    /// Compare with every vector, whatever the index kind.
    pub exact: bool,
}

/// Results of a search.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// For each query its results.
    pub queries: Vec<QueryResult>,
    /// Distance evaluations of all queries.
    pub evaluations: u64,
    /// Graph nodes (or lists) visited by all queries.
    pub hops: u64,
    /// Pages of vectors that had to be read because they were not in memory.
    pub reads: u64,
}

/// Results of one query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryResult {
    /// Nearest first; of equally near ones the lower id first.
    pub hits: Vec<Hit>,
    /// Distance evaluations.
    pub evaluations: u64,
    /// Graph nodes (or lists) visited.
    pub hops: u64,
}

/// One result.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Record id.
    pub id: u64,
    /// Distance: l2 squared, 1 − cosine similarity, − inner product.
    pub distance: f64,
    /// Names of the file in the collection, if asked for; none for a bulk record.
    pub paths: Vec<Vec<u8>>,
}

impl Hit {
    /// The inode number, if this is a file.
    pub fn ino(&self) -> Option<u64> {
        self.id.checked_sub(wire::FILE_ID_BASE)
    }
}

/// What a reply about records is to contain besides their ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Vectors.
    pub vectors: bool,
    /// Attributes.
    pub attrs: bool,
    /// Names of files.
    pub paths: bool,
}

impl Want {
    /// Everything.
    pub const ALL: Want = Want { vectors: true, attrs: true, paths: true };

    pub(crate) fn bits(self) -> u32 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.vectors, wire::want::VECTORS) | bit(self.attrs, wire::want::ATTRS) | bit(self.paths, wire::want::PATHS)
    }
}

/// One record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Record id.
    pub id: u64,
    /// It exists (always so in lists).
    pub present: bool,
    /// A file was overwritten after it got its embedding.
    pub stale: bool,
    /// A file whose embedding the collection cannot search.
    pub unindexed: bool,
    /// The vector is damaged on the device.
    pub damaged: bool,
    /// Its vector, if asked for.
    pub vector: Vec<f32>,
    /// Its attributes, if asked for.
    pub attrs: Attrs,
    /// Its names in the collection, if asked for and it is a file.
    pub paths: Vec<Vec<u8>>,
}

/// A page of records to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct List<'a> {
    /// First id to look at: 0, then [`Records::next`].
    pub cursor: u64,
    /// Most records; 0: as many as fit.
    pub max_records: u32,
    /// Most bytes of the reply; 0: as many as fit.
    pub max_bytes: u32,
    /// Only records that match this filter.
    pub filter: Option<&'a str>,
    /// What to bring.
    pub want: Want,
}

/// Records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// The records.
    pub records: Vec<Record>,
    /// Dimension of the collection.
    pub dim: u32,
    /// Cursor of the next page, if there is one.
    pub next: Option<u64>,
    /// The same in all pages if the collection did not change between them.
    pub change: u64,
}

/// A file in the directory.
#[derive(Clone, Copy, Debug)]
pub enum FileRef<'a> {
    /// By its name in the directory.
    Name(&'a [u8]),
    /// By inode number; it must have a name in the directory.
    Ino(u64),
}

/// The embedding of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Inode number of the file.
    pub ino: u64,
    /// The vector.
    pub vector: Vec<f32>,
    /// The file was overwritten after it got its embedding.
    pub stale: bool,
}

/// Figures of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeStats {
    /// Identity.
    pub uuid: [u8; 16],
    /// Bytes in a block.
    pub block_size: u32,
    /// No changes are possible.
    pub read_only: bool,
    /// Size in blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks that a caller may use.
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Checkpoint generation.
    pub generation: u64,
}
