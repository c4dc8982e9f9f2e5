// SPDX-License-Identifier: GPL-2.0-only
//! Where everything is in an image, and which checksum covers it: so that a mutation can be followed by the
//! repair of all checksums above it, and the volume gets to see the mutated bytes instead of refusing them.

use crate::machine::{Disk, BLOCK};
use std::collections::{BTreeMap, BTreeSet};
use vexfs_core::engine::log::{parse_group, seed, Expect, Place};
use vexfs_core::format::{kind, Extent, IndexRoot, Key, LogHead, NodeHead, Ptr, Super, EXTENT_UNWRITTEN, SUPER_SLOTS};
use vexfs_embedded::crc32c;

/// Offset of the checksum in a [`Ptr`].
const PTR_CRC: usize = 24;
/// Offset of the root pointer in a superblock.
const SUPER_ROOT: usize = 176;

/// A tree node.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// First copy.
    pub addr: u64,
    /// Second copy.
    pub twin: u64,
    /// 0 for a leaf.
    pub level: u32,
    /// The node that points to it and the offset of the pointer there; `None`: the superblock.
    parent: Option<(u64, usize)>,
}

/// A log group.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// First block of the first copy.
    pub addr: u64,
    /// First block of the second copy.
    pub twin: u64,
    /// Length.
    pub blocks: u32,
}

/// A stored index: where its checksum is, and its blocks.
#[derive(Clone, Debug)]
struct Index {
    leaf: u64,
    crc_at: usize,
    len: usize,
    blocks: Vec<u64>,
}

/// The map of an image.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// Nodes by the address of their first copy.
    pub nodes: BTreeMap<u64, Node>,
    /// Log groups in order.
    pub groups: Vec<Group>,
    /// Data blocks: the leaf and the offset in it where the checksum is.
    pub data: BTreeMap<u64, (u64, usize)>,
    /// Slots of the newest superblock.
    pub supers: Vec<u64>,
    indexes: Vec<Index>,
    root: u64,
    log_seed: u32,
}

fn put(disk: &mut Disk, at: u64, offset: usize, bytes: &[u8]) {
    disk.block_mut(at)[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Map {
    /// Reads the map of a sound image.
    pub fn of(disk: &Disk) -> Map {
        let mut map = Map::default();
        let mut newest: Option<Super> = None;
        for slot in SUPER_SLOTS.iter().flatten() {
            let b = disk.block(*slot);
            let s = Super::parse(b).unwrap();
            if s.crc == crc32c(0, &b[4..]) && s.generation > newest.map_or(0, |n| n.generation) {
                newest = Some(s);
            }
        }
        let sb = newest.expect("a superblock");
        map.supers = SUPER_SLOTS[(sb.generation % 2) as usize].to_vec();
        let root = Ptr::parse(&sb.root).unwrap();
        map.root = root.addr;
        map.add(root, sb.root_level, None);
        let mut todo = vec![root.addr];
        let mut streams: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let mut roots = Vec::new();
        while let Some(addr) = todo.pop() {
            let b = disk.block(addr);
            let head = NodeHead::parse(b).unwrap();
            for i in 0..usize::from(head.items) {
                if head.level > 0 {
                    let at = NodeHead::SIZE + i * (Key::SIZE + Ptr::SIZE) + Key::SIZE;
                    let child = Ptr::parse(&b[at..]).unwrap();
                    map.add(child, u32::from(head.level) - 1, Some((addr, at)));
                    todo.push(child.addr);
                    continue;
                }
                let slot = &b[NodeHead::SIZE + i * (Key::SIZE + 4)..];
                let key = Key::parse(slot).unwrap();
                let at = usize::from(u16::from_le_bytes([slot[Key::SIZE], slot[Key::SIZE + 1]]));
                match key.kind {
                    kind::EXTENT | kind::SLOT_EXTENT | kind::VECTOR_EXTENT | kind::INDEX_EXTENT => {
                        let e = Extent::parse(&b[at..]).unwrap();
                        if e.flags & EXTENT_UNWRITTEN == 0 {
                            for n in 0..u64::from(e.blocks) {
                                map.data.insert(e.addr + n, (addr, at + Extent::SIZE + 4 * n as usize));
                                if key.kind == kind::INDEX_EXTENT {
                                    streams.insert((key.object, key.offset + n), e.addr + n);
                                }
                            }
                        }
                    }
                    kind::INDEX => roots.push((key.object, addr, at, IndexRoot::parse(&b[at..]).unwrap())),
                    _ => {}
                }
            }
        }
        for (object, leaf, at, r) in roots {
            let count = r.len.div_ceil(BLOCK as u64);
            let blocks: Vec<u64> = (0..count).filter_map(|n| streams.get(&(object, r.base + n)).copied()).collect();
            if blocks.len() as u64 == count {
                map.indexes.push(Index { leaf, crc_at: at + 32, len: r.len as usize, blocks });
            }
        }
        let e = Expect { uuid: sb.uuid, hash_key: sb.hash_key, crc32c, epoch: sb.log_epoch };
        map.log_seed = seed(&sb.hash_key, sb.log_epoch);
        let mut place = Place { addr: sb.log_addr, twin: sb.log_twin, room: sb.log_room };
        let mut seq = sb.log_seq;
        loop {
            let blocks = u64::from(place.room.min(256));
            let bytes: Vec<u8> = (0..blocks).flat_map(|n| *disk.block(place.addr + n)).collect();
            let Some(h) = parse_group(&e, place, seq, &bytes) else { break };
            map.groups.push(Group { addr: h.addr, twin: h.twin, blocks: h.blocks });
            place = Place { addr: h.next_addr, twin: h.next_twin, room: h.room };
            seq += 1;
        }
        map
    }

    fn add(&mut self, p: Ptr, level: u32, parent: Option<(u64, usize)>) {
        self.nodes.insert(p.addr, Node { addr: p.addr, twin: p.twin, level, parent });
    }

    /// Makes every checksum right that covers one of the changed blocks. Second copies become copies of the first.
    pub fn repair(&self, disk: &mut Disk, mut changed: BTreeSet<u64>) {
        for (block, (leaf, at)) in &self.data {
            if changed.contains(block) {
                let crc = crc32c(0, disk.block(*block));
                put(disk, *leaf, *at, &crc.to_le_bytes());
                changed.insert(*leaf);
            }
        }
        for i in &self.indexes {
            if i.blocks.iter().any(|b| changed.contains(b)) {
                let bytes: Vec<u8> = i.blocks.iter().flat_map(|b| *disk.block(*b)).collect();
                let crc = crc32c(0, &bytes[..i.len]);
                put(disk, i.leaf, i.crc_at, &crc.to_le_bytes());
                changed.insert(i.leaf);
            }
        }
        let mut nodes: Vec<&Node> = self.nodes.values().collect();
        nodes.sort_by_key(|n| n.level);
        for n in nodes {
            if !changed.contains(&n.addr) {
                continue;
            }
            let bytes = *disk.block(n.addr);
            if n.twin != 0 {
                put(disk, n.twin, 0, &bytes);
            }
            let crc = crc32c(0, &bytes).to_le_bytes();
            match n.parent {
                Some((parent, at)) => {
                    put(disk, parent, at + PTR_CRC, &crc);
                    changed.insert(parent);
                }
                None => {
                    debug_assert_eq!(n.addr, self.root);
                    for s in &self.supers {
                        put(disk, *s, SUPER_ROOT + PTR_CRC, &crc);
                        changed.insert(*s);
                    }
                }
            }
        }
        for g in &self.groups {
            if (0..u64::from(g.blocks)).any(|n| changed.contains(&(g.addr + n))) {
                // The group may say another length now: the checksum covers what it says.
                let says = LogHead::parse(disk.block(g.addr)).map_or(0, |h| h.blocks);
                let blocks = u64::from(says.clamp(1, 256));
                let bytes: Vec<u8> = (0..blocks).flat_map(|n| *disk.block(g.addr + n)).collect();
                put(disk, g.addr, 0, &crc32c(self.log_seed, &bytes[4..]).to_le_bytes());
                if g.twin != 0 {
                    for n in 0..u64::from(g.blocks) {
                        let copy = *disk.block(g.addr + n);
                        put(disk, g.twin + n, 0, &copy);
                    }
                }
            }
        }
        for s in &self.supers {
            if changed.contains(s) {
                let crc = crc32c(0, &disk.block(*s)[4..]);
                put(disk, *s, 0, &crc.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::base;
    use crate::Machine;
    use vexfs_core::op::{Op, Reply, ROOT};

    /// The repair of an image that did not change changes nothing, and the map is not empty.
    #[test]
    fn repair_is_exact() {
        for d in [&base().clean, &base().logged] {
            let map = Map::of(d);
            let mut r = d.clone();
            map.repair(&mut r, d.used().into_iter().collect());
            for b in 0..d.blocks {
                assert_eq!(d.block(b), r.block(b), "block {b}");
            }
            assert!(map.nodes.len() > 20 && map.data.len() > 20 && map.indexes.len() == 1, "{map:?}");
        }
        assert!(Map::of(&base().clean).groups.is_empty());
        assert!(Map::of(&base().logged).groups.len() > 2);
    }

    /// A repaired mutation is believed: what was changed in a leaf is what the volume says.
    #[test]
    fn mutations_get_behind_the_checksums() {
        let d = &base().clean;
        let map = Map::of(d);
        let mut seen = false;
        for n in map.nodes.values().filter(|n| n.level == 0) {
            let b = *d.block(n.addr);
            let head = NodeHead::parse(&b).unwrap();
            for i in 0..usize::from(head.items) {
                let slot = &b[NodeHead::SIZE + i * (Key::SIZE + 4)..];
                let key = Key::parse(slot).unwrap();
                if key.kind == kind::INODE && key.object == ROOT {
                    let at = usize::from(u16::from_le_bytes([slot[Key::SIZE], slot[Key::SIZE + 1]]));
                    let mut r = d.clone();
                    put(&mut r, n.addr, at + 4, &4711u32.to_le_bytes());
                    let refused = Machine::open(r.clone(), true)
                        .map_err(|e| e.0)
                        .and_then(|mut m| m.call(Op::GetAttr { ino: ROOT }));
                    // The second copy is still good.
                    assert!(matches!(refused, Ok(Reply::Attr(a)) if a.uid == 0));
                    map.repair(&mut r, [n.addr].into());
                    let mut m = Machine::open(r, true).map_err(|e| e.0).unwrap();
                    let Ok(Reply::Attr(a)) = m.call(Op::GetAttr { ino: ROOT }) else { panic!() };
                    assert_eq!(a.uid, 4711);
                    seen = true;
                }
            }
        }
        assert!(seen);
    }
}
