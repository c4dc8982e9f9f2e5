// SPDX-License-Identifier: GPL-2.0-only
//! Errors of the core. Each variant has one meaning; drivers map it to an errno with
//! [`Error::errno`] at their border and never in between.

use core::fmt;

/// Why an operation could not be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Error {
    /// No such name or inode (ENOENT).
    NotFound,
    /// The name or the collection exists (EEXIST).
    Exists,
    /// A directory was needed (ENOTDIR).
    NotDirectory,
    /// A directory is not allowed here (EISDIR).
    IsDirectory,
    /// The directory has entries (ENOTEMPTY).
    NotEmpty,
    /// Space is exhausted (ENOSPC).
    NoSpace,
    /// An allocation failed (ENOMEM).
    NoMemory,
    /// The device reported an error (EIO).
    Io,
    /// Bytes on the device are not what was written, and no good copy exists (EIO).
    Corrupt,
    /// A write or a flush failed before: the volume went read-only to protect what is durable (EIO).
    Aborted,
    /// The volume is read-only (EROFS).
    ReadOnly,
    /// The request has no meaning (EINVAL).
    Invalid,
    /// A name is longer than 255 bytes (ENAMETOOLONG).
    NameTooLong,
    /// Too many hard links (EMLINK).
    TooManyLinks,
    /// The operation is not permitted (EPERM).
    NotPermitted,
    /// Permission denied (EACCES).
    AccessDenied,
    /// No such attribute (ENODATA).
    NoAttribute,
    /// A value does not fit the caller's buffer or the limit of an attribute (ERANGE).
    Range,
    /// A value is larger than its limit (E2BIG).
    TooBig,
    /// The file would grow over the limit (EFBIG).
    FileTooBig,
    /// Not supported by this volume or kind of inode (EOPNOTSUPP).
    NotSupported,
    /// No data or hole past the offset (ENXIO).
    NoSuchOffset,
    /// The volume, inode or collection is in use (EBUSY).
    Busy,
    /// The handle names an inode that is gone (ESTALE).
    Stale,
    /// The vector has another dimension than the collection (EINVAL).
    WrongDimension,
    /// The vector has a NaN or an infinity, or its squared norm is not finite and normal (EINVAL).
    BadVector,
    /// A zero vector has no direction, cosine needs one (EINVAL).
    ZeroVector,
    /// The directory is not a collection (EINVAL).
    NotCollection,
    /// The device holds no VexFS (EINVAL).
    NotVexfs,
    /// The volume uses features that this version does not know (EINVAL).
    UnknownFeature,
    /// The device is smaller than the volume (EINVAL).
    Truncated,
}

impl Error {
    /// The Linux error number, positive.
    pub const fn errno(self) -> i32 {
        match self {
            Error::NotFound => 2,
            Error::Exists => 17,
            Error::NotDirectory => 20,
            Error::IsDirectory => 21,
            Error::NotEmpty => 39,
            Error::NoSpace => 28,
            Error::NoMemory => 12,
            Error::Io | Error::Corrupt | Error::Aborted => 5,
            Error::ReadOnly => 30,
            Error::Invalid
            | Error::WrongDimension
            | Error::BadVector
            | Error::ZeroVector
            | Error::NotCollection
            | Error::NotVexfs
            | Error::UnknownFeature
            | Error::Truncated => 22,
            Error::NameTooLong => 36,
            Error::TooManyLinks => 31,
            Error::NotPermitted => 1,
            Error::AccessDenied => 13,
            Error::NoAttribute => 61,
            Error::Range => 34,
            Error::TooBig => 7,
            Error::FileTooBig => 27,
            Error::NotSupported => 95,
            Error::NoSuchOffset => 6,
            Error::Busy => 16,
            Error::Stale => 116,
        }
    }

    /// One line for people: the cause.
    pub const fn message(self) -> &'static str {
        match self {
            Error::NotFound => "no such file, directory or record",
            Error::Exists => "it exists already",
            Error::NotDirectory => "not a directory",
            Error::IsDirectory => "is a directory",
            Error::NotEmpty => "the directory is not empty",
            Error::NoSpace => "no space left on the volume",
            Error::NoMemory => "out of memory",
            Error::Io => "the device reported an input/output error",
            Error::Corrupt => "the data on the device is damaged (checksum or structure); run fsck.vexfs",
            Error::Aborted => "an earlier write or flush failed; the volume is read-only until it is mounted again",
            Error::ReadOnly => "the volume is read-only",
            Error::Invalid => "invalid request",
            Error::NameTooLong => "the name is longer than 255 bytes",
            Error::TooManyLinks => "too many hard links",
            Error::NotPermitted => "operation not permitted",
            Error::AccessDenied => "permission denied",
            Error::NoAttribute => "no such attribute",
            Error::Range => "the value does not fit",
            Error::TooBig => "the value is larger than its limit",
            Error::FileTooBig => "the file would be too large",
            Error::NotSupported => "not supported here",
            Error::NoSuchOffset => "no such data or hole beyond this offset",
            Error::Busy => "in use",
            Error::Stale => "the inode is gone",
            Error::WrongDimension => "the vector has another dimension than the collection",
            Error::BadVector => "the vector has a NaN or an infinity, or its norm is out of range",
            Error::ZeroVector => "a zero vector has no direction, which cosine needs",
            Error::NotCollection => "not a collection (make it one: vexfs collection create)",
            Error::NotVexfs => "no VexFS here (make one: mkfs.vexfs)",
            Error::UnknownFeature => "the volume uses features that this version does not know; use a newer one",
            Error::Truncated => "the device is smaller than the volume that was made on it",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl core::error::Error for Error {}

/// What an operation lacks to go on. The engine fetches it and runs the operation again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A tree node: the `count` children from `index` on of the cached node `parent`
    /// (the first one is needed, the others are read ahead). `parent` 0 is the root itself.
    Node {
        /// Id of the cached parent node, 0 for "the root".
        parent: u64,
        /// Index of the child.
        index: u16,
        /// How many children to fetch, at least 1.
        count: u16,
    },
    /// `blocks` blocks of file or stream data from block address `addr` on.
    Data {
        /// First block address.
        addr: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// The runtime state of the collection `ino` (its slots, vectors and index).
    Collection(u64),
    /// Vectors of the collection that are not in memory. Which ones is noted in an [`Absent`](crate::index::Absent).
    Vectors(u64),
    /// The collection's index has to take in what was inserted lately.
    CatchUp(u64),
    /// Space that the next checkpoint or a pending deletion gives back.
    Space,
}

/// Why a step of an operation did not give a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Something has to be fetched first; not an error.
    Need(Need),
    /// It failed.
    Fail(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Fail(e)
    }
}

impl From<crate::mem::NoMemory> for Stop {
    fn from(_: crate::mem::NoMemory) -> Stop {
        Stop::Fail(Error::NoMemory)
    }
}

impl From<crate::mem::NoMemory> for Error {
    fn from(_: crate::mem::NoMemory) -> Error {
        Error::NoMemory
    }
}

/// Result of a step: a value, or why there is none yet.
pub type Step<T> = Result<T, Stop>;
