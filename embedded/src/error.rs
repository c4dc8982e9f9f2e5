// SPDX-License-Identifier: GPL-2.0-only
//! Why a volume could not be opened, in words that name the cause and the way out.

use std::fmt;
use vexfs_core::Error;

/// Kinds of [`OpenError`], for programs; people read the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// No such file.
    NotFound,
    /// The file's permissions forbid it.
    Denied,
    /// Another process, a mount or a loop device uses it.
    InUse,
    /// It is neither a regular file nor a block device.
    NotADevice,
    /// It has no byte, or too few for any volume.
    Empty,
    /// There is no VexFS on it.
    NotVexfs,
    /// It is shorter than the volume that was made on it.
    Truncated,
    /// The volume uses features that this version does not know.
    UnknownFeature,
    /// The volume is damaged so far that it cannot be opened.
    Damaged,
    /// The operating system reported an error.
    Io,
}

/// Why a volume could not be opened.
#[derive(Debug)]
pub struct OpenError {
    kind: OpenErrorKind,
    message: String,
}

impl OpenError {
    pub(crate) fn new(kind: OpenErrorKind, message: impl Into<String>) -> OpenError {
        OpenError { kind, message: message.into() }
    }

    /// What kind of error it is.
    pub fn kind(&self) -> OpenErrorKind {
        self.kind
    }

    /// Why the volume called `name` could not be opened, from what the core says.
    pub fn from_core(name: &str, e: Error) -> OpenError {
        use OpenErrorKind as K;
        let (kind, text) = match e {
            Error::NotVexfs => (K::NotVexfs, format!("no VexFS on it; make one: mkfs.vexfs {name}")),
            Error::Truncated => (
                K::Truncated,
                "it is shorter than the volume that was made on it; copy it again, or restore its full length \
                 with truncate(1) and run fsck.vexfs"
                    .to_string(),
            ),
            Error::UnknownFeature => {
                (K::UnknownFeature, "it uses features that this version does not know; use a newer one".to_string())
            }
            Error::Corrupt => (K::Damaged, format!("the volume is damaged; run: fsck.vexfs {name}")),
            e => (K::Io, e.message().to_string()),
        };
        OpenError::new(kind, format!("{name}: {text}"))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpenError {}
