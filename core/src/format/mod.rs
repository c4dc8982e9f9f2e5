// SPDX-License-Identifier: GPL-2.0-only
//! The on-disk format, byte for byte. Every structure is declared once (`layout!`), and the tables in
//! DESIGN.md, the checker's field tests and the fuzzers come from the same declarations ([`TABLES`]).
//! Parsing checks lengths only; meaning is checked by who uses a value.

mod blocks;
mod items;
mod key;
pub(crate) mod layout;

pub use blocks::*;
pub use items::*;
pub use key::{kind, Key, TREE};
pub use layout::{Field, Table, Wire};

/// Every structure of the format.
pub const TABLES: &[Table] = &[
    Super::TABLE,
    Ptr::TABLE,
    NodeHead::TABLE,
    Key::TABLE,
    LogHead::TABLE,
    LogRecord::TABLE,
    Inode::TABLE,
    Dirent::TABLE,
    Link::TABLE,
    Xattr::TABLE,
    Embedding::TABLE,
    Extent::TABLE,
    Schema::TABLE,
    Record::TABLE,
    Slot::TABLE,
    IndexRoot::TABLE,
    SpaceHead::TABLE,
    Orphan::TABLE,
    Trim::TABLE,
    Populate::TABLE,
    Listed::TABLE,
    crate::index::GraphHead::TABLE,
    crate::index::GraphNode::TABLE,
    crate::index::IvfHead::TABLE,
    crate::index::IvfEntry::TABLE,
    crate::index::PqHead::TABLE,
    crate::index::PqEntry::TABLE,
    crate::index::LshHead::TABLE,
    crate::index::LshEntry::TABLE,
];
