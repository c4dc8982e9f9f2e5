// SPDX-License-Identifier: GPL-2.0-only
//! Keys of the tree: one ordered key space holds everything but bulk bytes.

use super::layout::layout;

layout! {
    /// A key. Ordered by (`tree`, `object`, `kind`, `offset`, `sub`).
    pub struct Key [32] {
        0 tree: u32 = "tree id; 1 is the live tree, others are for snapshots",
        4 kind: u32 = "what the item is (table of kinds)",
        8 object: u64 = "inode number; 0 for items of the volume",
        16 offset: u64 = "position within the kind: a file block, a directory cookie, a record id, a hash",
        24 sub: u64 = "piece of a value that is cut into several items; else 0",
    }
}

/// Tree id of the live tree.
pub const TREE: u32 = 1;

/// Kinds of items, in key order within an object. The numbers are part of the format.
#[allow(missing_docs)]
pub mod kind {
    pub const INODE: u32 = 1;
    pub const SYMLINK: u32 = 2;
    pub const XATTR: u32 = 3;
    pub const EMBEDDING: u32 = 4;
    pub const LINK: u32 = 5;
    pub const DIRENT: u32 = 6;
    pub const EXTENT: u32 = 7;
    pub const COLLECTION: u32 = 8;
    pub const RECORD: u32 = 9;
    pub const SLOT_EXTENT: u32 = 10;
    pub const VECTOR_EXTENT: u32 = 11;
    pub const INDEX_EXTENT: u32 = 12;
    pub const INDEX: u32 = 13;
    pub const SPACE: u32 = 32;
    pub const ORPHAN: u32 = 33;
    pub const TRIM: u32 = 34;
    pub const POPULATE: u32 = 35;
    pub const LISTED: u32 = 36;
}

impl Key {
    /// The item of `object` with this `kind` and `offset`, piece 0.
    pub const fn new(object: u64, kind: u32, offset: u64) -> Key {
        Key { tree: TREE, kind, object, offset, sub: 0 }
    }

    /// The same item, piece `sub`.
    pub const fn piece(self, sub: u64) -> Key {
        Key { sub, ..self }
    }

    /// The first possible key of `object` and `kind`.
    pub const fn first(object: u64, kind: u32) -> Key {
        Key::new(object, kind, 0)
    }

    /// The last possible key of `object` and `kind`.
    pub const fn last(object: u64, kind: u32) -> Key {
        Key { tree: TREE, kind, object, offset: u64::MAX, sub: u64::MAX }
    }

    /// The smallest key.
    pub const MIN: Key = Key { tree: 0, kind: 0, object: 0, offset: 0, sub: 0 };
    /// The largest key.
    pub const MAX: Key = Key { tree: u32::MAX, kind: u32::MAX, object: u64::MAX, offset: u64::MAX, sub: u64::MAX };

    /// The next key in order; `None` after [`Key::MAX`].
    pub fn next(self) -> Option<Key> {
        if let Some(sub) = self.sub.checked_add(1) {
            return Some(Key { sub, ..self });
        }
        if let Some(offset) = self.offset.checked_add(1) {
            return Some(Key { offset, sub: 0, ..self });
        }
        if let Some(kind) = self.kind.checked_add(1) {
            return Some(Key { kind, offset: 0, sub: 0, ..self });
        }
        if let Some(object) = self.object.checked_add(1) {
            return Some(Key { object, kind: 0, offset: 0, sub: 0, ..self });
        }
        let tree = self.tree.checked_add(1)?;
        Some(Key { tree, object: 0, kind: 0, offset: 0, sub: 0 })
    }
}

impl Ord for Key {
    fn cmp(&self, o: &Key) -> core::cmp::Ordering {
        (self.tree, self.object, self.kind, self.offset, self.sub).cmp(&(o.tree, o.object, o.kind, o.offset, o.sub))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, o: &Key) -> Option<core::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
