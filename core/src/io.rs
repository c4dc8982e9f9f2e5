// SPDX-License-Identifier: GPL-2.0-only
//! I/O requests: what the core asks a driver to do with the device. Buffers move out with the
//! request and back with its completion.

use crate::mem::Buf;

/// Names a request that is under way; a slot and its generation, so that a late or doubled
/// completion is recognised and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoId {
    /// Slot.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// Fill the buffer from the device.
    Read,
    /// Write the buffer. It may stay in the device's volatile cache.
    Write,
    /// Write the buffer; complete when it is durable (force unit access).
    WriteDurable,
    /// Complete when every write that completed before this was submitted is durable.
    Flush,
    /// The blocks are of no interest any more; may be ignored.
    Discard,
}

/// A request. It may be carried out in any order relative to others that are under way.
#[derive(Debug)]
pub struct Io {
    /// Give it back with the completion.
    pub id: IoId,
    /// What to do.
    pub kind: IoKind,
    /// First block (4096 bytes each); 0 for a flush.
    pub block: u64,
    /// Number of blocks; 0 for a flush.
    pub count: u64,
    /// Data to write, or room for what is read (`count` blocks); empty otherwise.
    pub buf: Buf,
}

/// The device reported an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError;
