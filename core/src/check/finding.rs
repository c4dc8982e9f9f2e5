// SPDX-License-Identifier: GPL-2.0-only
//! What the checker finds, as values that a program can act on and sentences that a person can read.

use crate::format::{kind, Key, BLOCK};
use core::fmt;

/// Where something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The superblock in this block.
    Super(u64),
    /// The tree node in this block (this copy of it).
    Node(u64),
    /// The item with this key.
    Item(Key),
    /// The inode with this number, as a whole.
    Inode(u64),
    /// Blocks: the first one and how many.
    Blocks(u64, u64),
    /// Contents of a file.
    Data {
        /// Its inode.
        ino: u64,
        /// The first block, counted from the start of the file.
        from: u64,
        /// How many blocks.
        blocks: u64,
        /// Where the first of them is on the device.
        addr: u64,
    },
    /// The allocation group with this number.
    Group(u64),
    /// A slot of a collection: the directory's inode, the slot.
    Slot(u64, u64),
    /// The log group at this block.
    Log(u64),
    /// The volume as a whole.
    Volume,
}

/// What can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing is wrong with what is stored; a remark (a copy that a crash left behind).
    Remark,
    /// Nothing.
    No,
    /// It can be put right, and nothing is lost by that.
    Safe,
    /// It can be put right, but something is given up for it.
    Loss,
}

/// One finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// The field that is wrong, as `Structure.field`, or what kind of thing is.
    pub what: &'static str,
    /// The rule that is broken.
    pub rule: &'static str,
    /// What it is.
    pub is: u64,
    /// What it should be, where that is one number.
    pub want: Option<u64>,
    /// What can be done.
    pub repair: Repair,
    /// It was put right.
    pub repaired: bool,
}

impl Place {
    /// The inode that it belongs to.
    pub fn inode(&self) -> Option<u64> {
        match *self {
            Place::Item(Key { object, .. }) if object != 0 => Some(object),
            Place::Inode(ino) | Place::Slot(ino, _) | Place::Data { ino, .. } => Some(ino),
            _ => None,
        }
    }
}

impl Finding {
    /// Whether it is an error (not a remark).
    pub fn is_error(&self) -> bool {
        self.repair != Repair::Remark
    }
}

/// Name of an item kind.
fn kind_name(k: u32) -> &'static str {
    match k {
        kind::INODE => "inode",
        kind::SYMLINK => "symlink target",
        kind::XATTR => "extended attribute",
        kind::EMBEDDING => "embedding",
        kind::LINK => "way back to a name",
        kind::DIRENT => "directory entry",
        kind::EXTENT => "extent",
        kind::COLLECTION => "collection",
        kind::RECORD => "record",
        kind::SLOT_EXTENT => "slot extent",
        kind::VECTOR_EXTENT => "vector extent",
        kind::INDEX_EXTENT => "index extent",
        kind::INDEX => "index",
        kind::SPACE => "bitmap",
        kind::ORPHAN => "orphan",
        kind::TRIM => "trim",
        _ => "item",
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Super(b) => write!(f, "superblock in block {b}"),
            Place::Node(b) => write!(f, "tree node in block {b}"),
            Place::Item(k) if k.object == 0 => write!(f, "{} {}", kind_name(k.kind), k.offset),
            Place::Item(k) => {
                write!(f, "inode {}: {}", k.object, kind_name(k.kind))?;
                if k.offset != 0 || k.sub != 0 {
                    write!(f, " {:#x}", k.offset)?;
                }
                if k.sub != 0 {
                    write!(f, "/{:#x}", k.sub)?;
                }
                Ok(())
            }
            Place::Inode(i) => write!(f, "inode {i}"),
            Place::Blocks(b, 1) => write!(f, "block {b}"),
            Place::Blocks(b, n) => write!(f, "blocks {b} to {}", b.saturating_add(n.saturating_sub(1))),
            Place::Data { ino, from, blocks, addr } => {
                let byte = |b: u64| b.saturating_mul(BLOCK as u64);
                let end = byte(from.saturating_add(*blocks)).saturating_sub(1);
                write!(f, "inode {ino}: bytes {} to {end} (in {})", byte(*from), Place::Blocks(*addr, *blocks))
            }
            Place::Group(g) => write!(f, "allocation group {g}"),
            Place::Slot(c, s) => write!(f, "collection {c}: slot {s}"),
            Place::Log(b) => write!(f, "log group in block {b}"),
            Place::Volume => f.write_str("volume"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            // The number says no more than the place does.
            "data" => write!(f, "{} are lost: they are not what was written there", self.place)?,
            "superblock" if self.repair == Repair::Remark => write!(f, "{}: is empty", self.place)?,
            "superblock" | "node" => write!(f, "{}: is damaged", self.place)?,
            _ => write!(f, "{}: {} is {}", self.place, self.what, self.is)?,
        }
        if let Some(w) = self.want {
            write!(f, ", should be {w}")?;
        }
        match self.what {
            "data" => {}
            "superblock" | "node" if self.repair != Repair::Remark => write!(f, " (it should be {})", self.rule)?,
            _ => write!(f, " ({})", self.rule)?,
        }
        if self.repaired {
            f.write_str("; repaired")?;
        }
        Ok(())
    }
}
