// SPDX-License-Identifier: GPL-2.0-only
//! Every field of every structure of the format, written wrong with all checksums repaired: the checker has to
//! complain, or the field is in a list with the reason why it cannot.

mod volume;

use vexfs_client::FileRef;
use vexfs_core::checksum;
use vexfs_core::format::*;
use volume::*;

/// Wrong values for a field that holds `old`: one off, the lowest and the highest bit flipped, nothing, all ones.
fn wrong_values(old: &[u8]) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    let flip = |i: usize, m: u8| {
        let mut v = old.to_vec();
        v[i] ^= m;
        v
    };
    let candidates =
        [flip(0, 1), flip(old.len() - 1, 0x80), flip(old.len() / 2, 0x10), vec![0; old.len()], vec![0xff; old.len()]];
    for v in candidates {
        if v != old && !out.contains(&v) {
            out.push(v);
        }
    }
    out
}

/// Fields of which not every wrong value can be told from a right one, with the reason. At least one of the wrong
/// values is still found, except where the reason starts with "any".
const LENIENT: &[(&str, &str)] = &[
    ("Super.label", "any text is a label; a copy that differs from the other is found"),
    ("Super.uuid", "the same in both copies is found by the nodes, which carry it too"),
    ("Super.hash_key", "found where there are names"),
    ("Super.blocks", "a smaller size that still holds all blocks in use would be legitimate"),
    ("Super.created", "any time; a copy that differs is found"),
    ("Super.written", "any time; a copy that differs is found"),
    ("Super.mounts", "any count not below the older superblock's; a copy that differs is found"),
    ("Super.compat", "any: features that a program may ignore; a copy that differs is found"),
    ("Super.generation", "another one names another pair of places, or is older than the nodes"),
    ("Super.log_seq", "any number: the log is empty, and the next group takes it; a copy that differs is found"),
    ("Super.log_epoch", "any number: the log is empty; a copy that differs is found"),
    ("Super.durable_seq", "any number below log_seq; a copy that differs is found"),
    ("Super.next_ino", "any number above the newest inode: numbers may be left out"),
    ("Super.state", "bit 1 says that fsck found errors, and may be set"),
    ("Inode.mode", "other permission bits are legitimate; another type is found"),
    ("Inode.uid", "any user"),
    ("Inode.gid", "any group"),
    ("Inode.size", "a regular file may have any size; of everything else it is counted"),
    ("Inode.atime", "any time"),
    ("Inode.mtime", "any time"),
    ("Inode.ctime", "any time"),
    ("Inode.btime", "any time"),
    ("Inode.atime_ns", "any below 10^9"),
    ("Inode.mtime_ns", "any below 10^9"),
    ("Inode.ctime_ns", "any below 10^9"),
    ("Inode.btime_ns", "any below 10^9"),
    ("Inode.rdev", "any number for a device node"),
    ("Inode.generation", "any generation up to the checkpoint's"),
    ("Inode.change", "any count above 0"),
    ("Extent.birth", "any generation up to the checkpoint's"),
    ("Schema.m", "any within the limits"),
    ("Schema.ef_construction", "any within the limits"),
    ("Schema.seed", "any number"),
    ("Schema.next_id", "any number above the ids in use"),
    ("Schema.change", "any number not below the sequence numbers in use"),
    ("IndexRoot.version", "any: an index of another version is rebuilt"),
    ("IndexRoot.change", "any number up to the collection's"),
    ("Slot.id", "of a slot that is not live: what it was"),
    ("Slot.seq", "of a slot that is not live: what it was"),
    ("Slot.inv_norm", "of a slot that is not live: what it was"),
    ("Slot.crc", "of a slot that is not live: what it was"),
    ("Trim.from", "any block up to the last extent"),
    ("LogHead.crc", "wrong in both copies it is the end of the log"),
    ("LogHead.magic", "wrong in both copies it is the end of the log"),
    ("LogHead.uuid", "wrong in both copies it is the end of the log"),
    ("LogHead.addr", "wrong in both copies it is the end of the log"),
    ("LogHead.twin", "wrong in both copies it is the end of the log"),
    ("LogHead.seq", "wrong in both copies it is the end of the log"),
    ("LogHead.epoch", "wrong in both copies it is the end of the log"),
    ("LogHead.blocks", "wrong in both copies it is the end of the log"),
    ("LogHead.payload", "wrong in both copies and too large, it is the end of the log"),
    ("LogHead.durable_seq", "wrong in both copies, any number between the neighbours'"),
    ("LogHead.generation", "wrong in both copies, one more is legitimate while a checkpoint is written"),
    ("Record.seq", "of a record without a slot: any number not above the collection's"),
    ("IndexRoot.kind", "the kind before a reindex: it stays until the next index is stored"),
    ("Key.offset", "an extent may begin anywhere in its file where nothing else is"),
    ("LogRecord.time", "any time"),
    ("GraphHead.magic", DERIVED),
    ("GraphHead.version", DERIVED),
    ("GraphHead.dim", DERIVED),
    ("GraphHead.metric", DERIVED),
    ("GraphHead.m", DERIVED),
    ("GraphHead.ef_construction", DERIVED),
    ("GraphHead.top", DERIVED),
    ("GraphHead.seed", DERIVED),
    ("GraphHead.nodes", DERIVED),
    ("GraphHead.entry", DERIVED),
    ("GraphHead.reserved", DERIVED),
    ("GraphNode.slot", DERIVED),
    ("GraphNode.level", DERIVED),
    ("GraphNode.seq", DERIVED),
    ("IvfHead.magic", DERIVED),
    ("IvfHead.version", DERIVED),
    ("IvfHead.dim", DERIVED),
    ("IvfHead.metric", DERIVED),
    ("IvfHead.wanted", DERIVED),
    ("IvfHead.lists", DERIVED),
    ("IvfHead.reserved", DERIVED),
    ("IvfHead.seed", DERIVED),
    ("IvfHead.members", DERIVED),
    ("IvfHead.trained", DERIVED),
    ("IvfHead.added", DERIVED),
    ("IvfEntry.slot", DERIVED),
    ("IvfEntry.list", DERIVED),
    ("IvfEntry.seq", DERIVED),
    ("PqHead.magic", DERIVED),
    ("PqHead.version", DERIVED),
    ("PqHead.dim", DERIVED),
    ("PqHead.metric", DERIVED),
    ("PqHead.subvectors", DERIVED),
    ("PqHead.cells", DERIVED),
    ("PqHead.reserved", DERIVED),
    ("PqHead.seed", DERIVED),
    ("PqHead.members", DERIVED),
    ("PqHead.trained", DERIVED),
    ("PqHead.added", DERIVED),
    ("PqEntry.slot", DERIVED),
    ("PqEntry.reserved", DERIVED),
    ("PqEntry.seq", DERIVED),
    ("LshHead.magic", DERIVED),
    ("LshHead.version", DERIVED),
    ("LshHead.dim", DERIVED),
    ("LshHead.metric", DERIVED),
    ("LshHead.tables", DERIVED),
    ("LshHead.bits", DERIVED),
    ("LshHead.unit", DERIVED),
    ("LshHead.seed", DERIVED),
    ("LshHead.members", DERIVED),
    ("LshHead.trained", DERIVED),
    ("LshHead.added", DERIVED),
    ("LshEntry.slot", DERIVED),
    ("LshEntry.reserved", DERIVED),
    ("LshEntry.seq", DERIVED),
];

/// Inside a stored index the checker looks at the checksum only: an index is believed in nothing when it is loaded (see
/// `any_bytes_as_index`, `fields_of_a_stored_graph` and `wrong_bytes_are_refused` in core), and built again if it makes no sense.
const DERIVED: &str = "derived data under IndexRoot.crc: what makes no sense is built again when it is loaded";

struct Tally {
    /// For each field: wrong values written, and found.
    fields: BTreeMap<String, (u32, u32)>,
}

impl Tally {
    fn note(&mut self, field: &str, found: bool) {
        let e = self.fields.entry(field.to_string()).or_default();
        e.0 += 1;
        e.1 += u32::from(found);
    }

    /// Every field of these structures was tried, and what was not found has its reason.
    fn judge(&self, tables: &[Table]) {
        let mut bad = Vec::new();
        for t in tables {
            for f in t.fields {
                let name = format!("{}.{}", t.name, f.name);
                let reason = LENIENT.iter().find(|l| l.0 == name).map(|l| l.1);
                match (self.fields.get(&name), reason) {
                    (None, _) => bad.push(format!("{name}: never tried")),
                    (Some((n, found)), None) if found < n => {
                        bad.push(format!("{name}: {found} of {n} found, without a reason"))
                    }
                    (Some((n, 0)), Some(r)) if !r.starts_with("any") => bad.push(format!("{name}: none of {n} found")),
                    _ => {}
                }
            }
        }
        assert!(bad.is_empty(), "{bad:#?}");
    }
}

fn found(mut d: Disk) -> bool {
    !errors(&mut d).is_empty()
}

/// Writes wrong values into a structure at `at` of an item's value, or of the key, and counts what is found.
fn try_fields(img: &Disk, t: &Table, node: usize, at: usize, tally: &mut Tally) {
    let base = Image::new(img.clone());
    let b = base.d.block(base.nodes[node].0.addr);
    for f in t.fields {
        let range = at + f.offset..at + f.offset + f.size;
        for w in wrong_values(&b[range.clone()]) {
            let mut i = Image::new(img.clone());
            let mut c = b.clone();
            c[range.clone()].copy_from_slice(&w);
            i.put_node(node, c);
            tally.note(&format!("{}.{}", t.name, f.name), found(i.d));
        }
    }
}

#[test]
fn wrong_fields_of_items_are_found() {
    let img = furnished(2);
    let base = Image::new(img.clone());
    assert!(base.sb.root_level >= 1);
    let mut tally = Tally { fields: BTreeMap::new() };
    let tables = [
        (kind::INODE, Inode::TABLE),
        (kind::DIRENT, Dirent::TABLE),
        (kind::LINK, Link::TABLE),
        (kind::XATTR, Xattr::TABLE),
        (kind::EMBEDDING, Embedding::TABLE),
        (kind::EXTENT, Extent::TABLE),
        (kind::SLOT_EXTENT, Extent::TABLE),
        (kind::VECTOR_EXTENT, Extent::TABLE),
        (kind::INDEX_EXTENT, Extent::TABLE),
        (kind::COLLECTION, vexfs_core::format::Schema::TABLE),
        (kind::RECORD, Record::TABLE),
        (kind::INDEX, IndexRoot::TABLE),
        (kind::SPACE, SpaceHead::TABLE),
        (kind::ORPHAN, Orphan::TABLE),
        (kind::LISTED, Listed::TABLE),
    ];
    for (k, t) in tables {
        let all: Vec<_> =
            base.items().into_iter().filter(|i| i.2.kind == k && (k == kind::LINK || i.2.sub & 0xffff == 0)).collect();
        assert!(!all.is_empty(), "no item of kind {k}");
        // Some from the start, the middle and the end.
        let picks = if k == kind::INODE { 6 } else { 2 };
        for p in 0..picks.min(all.len()) {
            let (node, slot, _, value, _) = all[p * (all.len() - 1) / picks.max(2).saturating_sub(1).max(1)];
            try_fields(&img, &t, node, value, &mut tally);
            if p == 0 {
                try_fields(&img, &Key::TABLE, node, slot, &mut tally);
            }
        }
    }
    let mut judged: Vec<Table> = tables.iter().map(|t| t.1).collect();
    judged.dedup_by_key(|t| t.name);
    judged.push(Key::TABLE);
    tally.judge(&judged);
}

#[test]
fn wrong_fields_of_superblocks_nodes_and_slots_are_found() {
    let img = furnished(2);
    let base = Image::new(img.clone());
    let mut tally = Tally { fields: BTreeMap::new() };
    // The superblock: wrong in one copy, and in both.
    for copies in [&[0usize][..], &[1], &[0, 1]] {
        let b = base.d.block(SUPER_SLOTS[(base.sb.generation % 2) as usize][copies[0]]);
        for f in Super::TABLE.fields {
            if copies.len() == 2 && ["crc", "slot", "addr"].contains(&f.name) {
                continue;
            }
            let old = &b[f.offset..f.offset + f.size];
            for w in wrong_values(old) {
                let mut i = Image::new(img.clone());
                if f.name == "crc" {
                    let addr = SUPER_SLOTS[(base.sb.generation % 2) as usize][copies[0]];
                    let mut b = i.d.block(addr);
                    b[..4].copy_from_slice(&w);
                    i.d.write(addr, &b);
                } else {
                    i.put_supers(copies, f.offset, &w);
                }
                let found = found(i.d);
                assert!(found || copies.len() == 2, "one copy of Super.{} is wrong", f.name);
                tally.note(&format!("Super.{}", f.name), found);
            }
        }
    }
    // Pointers in inner nodes, heads of leaves and of inner nodes.
    let root = base.d.block(base.nodes[0].0.addr);
    for entry in [0, u16_at(&root, 50) - 1] {
        try_fields(&img, &Ptr::TABLE, 0, 64 + entry * 64 + 32, &mut tally);
        try_fields(&img, &Key::TABLE, 0, 64 + entry * 64, &mut tally);
    }
    for node in [0, 1, base.nodes.len() - 1] {
        try_fields(&img, &NodeHead::TABLE, node, 0, &mut tally);
    }
    // The root pointer in the superblock is one too.
    // Heads of slots: a block of data whose checksum is in the extent.
    for c in base.items().into_iter().filter(|i| i.2.kind == kind::SLOT_EXTENT) {
        let (node, _, _, value, _) = c;
        let b = base.d.block(base.nodes[node].0.addr);
        let e = Extent::parse(&b[value..]).unwrap();
        let data = base.d.block(e.addr);
        // Live, dead, file records, and one behind the last.
        for slot in [0usize, 3, 60, 110, 120] {
            for f in Slot::TABLE.fields {
                let range = slot * 32 + f.offset..slot * 32 + f.offset + f.size;
                for w in wrong_values(&data[range.clone()]) {
                    let mut i = Image::new(img.clone());
                    let mut d = data.clone();
                    d[range.clone()].copy_from_slice(&w);
                    let crc = checksum::crc32c(0, &d);
                    i.d.write(e.addr, &d);
                    let mut n = b.clone();
                    n[value + 32..value + 36].copy_from_slice(&crc.to_le_bytes());
                    i.put_node(node, n);
                    tally.note(&format!("Slot.{}", f.name), found(i.d));
                }
            }
        }
    }
    tally.judge(&[Super::TABLE, Ptr::TABLE, NodeHead::TABLE, Slot::TABLE]);
}

#[test]
fn wrong_fields_of_pending_work_are_found() {
    // A truncate and a dropped collection that a crash interrupted, and one that takes children in: as
    // the engine leaves them on disk is seen by stopping it at every write.
    let mut r = Run::open(Disk::new(8192, 2));
    let f = r.make(ROOT, "long", 0o100644);
    for i in 0..600 {
        r.write(f, i * 8192, vec![1; 100]);
    }
    let c = r.make(ROOT, "col", 0o040755);
    for i in 0..40u64 {
        let f = r.make(c, &format!("doc {i}"), 0o100644);
        r.client(c).embed(FileRef::Ino(f), &floats(i, 20), false).unwrap();
    }
    r.op(Op::Checkpoint).unwrap();
    let img = Image::new(r.close());
    let mut tally = Tally { fields: BTreeMap::new() };
    // A TRIM item as it is half way: the file cut, its extents behind the end still there.
    let mut edit = img.d.clone();
    let items = img.items();
    let (node, _, _, value, _) = *items.iter().find(|i| i.2 == Key::new(f, kind::INODE, 0)).unwrap();
    let _ = (node, value);
    // ORPHAN items have the form of TRIM items: one is made into the other by the engine's own hand only, so
    // the items are written through a tree of ours.
    let put = |d: &mut Disk, list: &[(Key, Vec<u8>)]| put_items(d, list);
    let mut inode = Inode::parse(&value_of(&img, &Key::new(f, kind::INODE, 0))).unwrap();
    inode.size = 8192 * 10;
    let mut v = vec![0; Inode::SIZE];
    inode.emit(&mut v).unwrap();
    put(&mut edit, &[(Key::new(0, kind::TRIM, f), 20u64.to_le_bytes().to_vec()), (Key::new(f, kind::INODE, 0), v)]);
    assert_eq!(errors(&mut edit.clone()), Vec::<String>::new());
    let base = Image::new(edit.clone());
    let (node, slot, _, value, _) = *base.items().iter().find(|i| i.2.kind == kind::TRIM).unwrap();
    try_fields(&edit, &Trim::TABLE, node, value, &mut tally);
    try_fields(&edit, &Key::TABLE, node, slot, &mut tally);
    // A collection that takes its children in.
    let mut schema =
        vexfs_core::format::Schema { dim: 20, metric: 1, element: 1, index: 1, flags: 1, ..Default::default() };
    let mut v = vec![0; 128];
    schema.emit(&mut v).unwrap();
    let mut inode = Inode::parse(&value_of(&img, &Key::new(c, kind::INODE, 0))).unwrap();
    inode.flags |= 1;
    let mut w = vec![0; Inode::SIZE];
    inode.emit(&mut w).unwrap();
    let mut edit = img.d.clone();
    let list = [
        (Key::new(0, kind::POPULATE, c), vec![0; 8]),
        (Key::new(0, kind::LISTED, c), vec![0; 8]),
        (Key::new(c, kind::INODE, 0), w),
        (Key::new(c, kind::COLLECTION, 0), v),
    ];
    put(&mut edit, &list);
    assert_eq!(errors(&mut edit.clone()), Vec::<String>::new());
    let base = Image::new(edit.clone());
    for k in [kind::POPULATE, kind::LISTED] {
        let (node, slot, _, value, _) = *base.items().iter().find(|i| i.2.kind == k).unwrap();
        let t = if k == kind::POPULATE { Populate::TABLE } else { Listed::TABLE };
        try_fields(&edit, &t, node, value, &mut tally);
        try_fields(&edit, &Key::TABLE, node, slot, &mut tally);
    }
    // The same without the bit: the children that are not taken in are missed.
    schema.flags = 0;
    let mut v = vec![0; 128];
    schema.emit(&mut v).unwrap();
    let mut edit = img.d.clone();
    let list = [(list[1].0, list[1].1.clone()), (list[2].0, list[2].1.clone()), (list[3].0, v)];
    put(&mut edit, &list);
    assert!(errors(&mut edit).len() >= 40);
    tally.judge(&[Trim::TABLE, Populate::TABLE, Listed::TABLE]);
}

fn value_of(img: &Image, k: &Key) -> Vec<u8> {
    let (node, _, _, at, len) = *img.items().iter().find(|i| i.2 == *k).unwrap();
    img.d.block(img.nodes[node].0.addr)[at..at + len].to_vec()
}

/// Puts items into a closed volume, as one new checkpoint, with bitmaps and counters that fit.
fn put_items(d: &mut Disk, list: &[(Key, Vec<u8>)]) {
    let img = Image::new(d.clone());
    let mut tree = vexfs_core::tree::Tree::open(
        img.sb.uuid,
        img.sb.copies,
        img.nodes[0].0,
        img.sb.root_level as u16,
        checksum::crc32c,
    );
    for (p, level, _) in &img.nodes {
        let b = vexfs_core::mem::Buf::padded(&d.block(p.addr)).unwrap();
        tree.admit(*p, *level, b).unwrap();
    }
    let put = |t: &mut vexfs_core::tree::Tree, k: &Key, v: &[u8]| {
        t.reserve(1).unwrap();
        t.put(k, v).unwrap();
    };
    let mut old: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (_, _, k, _, _) in img.items().iter().filter(|i| i.2.kind == kind::SPACE) {
        old.insert(k.offset, value_of(&img, k));
    }
    for (k, v) in list {
        put(&mut tree, k, v);
    }
    // Addresses from the end of the volume, where nothing is.
    let mut next = d.size;
    let mut free = img.sb.free_blocks;
    loop {
        let mut taken = Vec::new();
        tree.assign(&mut || {
            next -= 2;
            taken.extend([next, next + 1]);
            Some((next, next + 1))
        })
        .unwrap();
        let freed = tree.take_freed();
        if taken.is_empty() && freed.is_empty() {
            break;
        }
        let mut set = |b: u64, on: bool| {
            let v = old.get_mut(&(b / 4096)).expect("the group has an item");
            let (byte, bit) = (16 + (b % 4096 / 8) as usize, 1u8 << (b % 8));
            assert_eq!(v[byte] & bit == 0, on);
            v[byte] ^= bit;
            let used = u32::from_le_bytes(v[..4].try_into().unwrap());
            v[..4].copy_from_slice(&(if on { used + 1 } else { used - 1 }).to_le_bytes());
            free = if on { free - 1 } else { free + 1 };
        };
        for b in taken {
            set(b, true);
        }
        for (a, t) in freed {
            set(a, false);
            set(t, false);
        }
        for (g, v) in &old {
            put(&mut tree, &Key::new(0, kind::SPACE, *g), v);
        }
    }
    let generation = img.sb.generation + 1;
    let mut nodes = Vec::new();
    let root = tree.seal(generation, &mut nodes).unwrap();
    for a in nodes {
        let (t, b) = tree.node(a).unwrap();
        let b = b.to_vec();
        d.write(a, &b);
        d.write(t, &b);
    }
    let mut sb = Super { generation, free_blocks: free, root_level: u32::from(tree.root().1), ..img.sb };
    root.emit(&mut sb.root).unwrap();
    for (slot, addr) in (0u32..).zip(SUPER_SLOTS[(generation % 2) as usize]) {
        sb.slot = slot;
        sb.addr = addr;
        let mut b = vec![0; 4096];
        sb.emit(&mut b).unwrap();
        let crc = checksum::crc32c(0, &b[4..]);
        b[..4].copy_from_slice(&crc.to_le_bytes());
        d.write(addr, &b);
    }
}

#[test]
fn wrong_fields_of_the_log_are_found() {
    let mut r = Run::open(Disk::new(8192, 2));
    for i in 0..30 {
        let f = r.make(ROOT, &format!("file {i}"), 0o100644);
        r.write(f, 0, bytes(i, 3000));
        r.op(Op::Sync).unwrap();
    }
    let img = r.d;
    assert_clean(&mut img.clone(), "with a log");
    let sb = Image::new(img.clone()).sb;
    let seed = engine::log::seed(&sb.hash_key, sb.log_epoch);
    let mut groups = Vec::new();
    let (mut addr, mut twin) = (sb.log_addr, sb.log_twin);
    loop {
        let h = LogHead::parse(&img.block(addr)).unwrap();
        if h.magic != LOG_MAGIC || h.epoch != sb.log_epoch || h.addr != addr {
            break;
        }
        groups.push((addr, twin, h));
        (addr, twin) = (h.next_addr, h.next_twin);
    }
    assert!(groups.len() > 20, "{}", groups.len());
    let mut tally = Tally { fields: BTreeMap::new() };
    let (addr, twin, head) = groups[groups.len() / 2];
    let len = head.blocks as usize * 4096;
    let mut whole = vec![0; len];
    img.read(addr, &mut whole);
    for both in [false, true] {
        for (t, at) in [(LogHead::TABLE, 0), (LogRecord::TABLE, LogHead::SIZE)] {
            for f in t.fields {
                let range = at + f.offset..at + f.offset + f.size;
                for w in wrong_values(&whole[range.clone()]) {
                    let mut b = whole.clone();
                    b[range.clone()].copy_from_slice(&w);
                    if f.name != "crc" {
                        let crc = checksum::crc32c(seed, &b[4..]);
                        b[..4].copy_from_slice(&crc.to_le_bytes());
                    }
                    let mut d = img.clone();
                    d.write(addr, &b);
                    if both {
                        d.write(twin, &b);
                    }
                    tally.note(&format!("{}.{}", t.name, f.name), found(d));
                }
            }
        }
    }
    tally.judge(&[LogHead::TABLE, LogRecord::TABLE]);
}

/// A log that reads well but says something wrong: it is seen in what its replay makes.
#[test]
fn what_the_log_says_wrong_is_found() {
    let mut r = Run::open(Disk::new(8192, 2));
    let f = r.make(ROOT, "file", 0o100644);
    r.write(f, 0, bytes(1, 3000));
    let mut d = r.d;
    assert_clean(&mut d.clone(), "with a log");
    let sb = Image::new(d.clone()).sb;
    let seed = engine::log::seed(&sb.hash_key, sb.log_epoch);
    let (mut addr, mut twin) = (sb.log_addr, sb.log_twin);
    let mut changed = 0;
    loop {
        let h = LogHead::parse(&d.block(addr)).unwrap();
        if h.magic != LOG_MAGIC || h.epoch != sb.log_epoch {
            break;
        }
        let mut b = vec![0; h.blocks as usize * 4096];
        d.read(addr, &mut b);
        let mut key = vec![1; 33];
        Key::new(f, kind::INODE, 0).emit(&mut key[1..]).unwrap();
        if let Some(at) = b.windows(33).position(|w| w == key) {
            // Behind the key and the length: the link count of the inode.
            b[at + 33 + 2 + 12] = 7;
            changed += 1;
        }
        let crc = checksum::crc32c(seed, &b[4..]);
        b[..4].copy_from_slice(&crc.to_le_bytes());
        d.write(addr, &b);
        d.write(twin, &b);
        (addr, twin) = (h.next_addr, h.next_twin);
    }
    assert!(changed >= 2);
    let e = errors(&mut d);
    assert!(e.iter().any(|e| e.contains("Inode.nlink is 7, should be 1")), "{e:#?}");
}

#[test]
fn no_table_is_left_out() {
    let tried = [
        "Super",
        "Ptr",
        "NodeHead",
        "Key",
        "LogHead",
        "LogRecord",
        "Inode",
        "Dirent",
        "Link",
        "Xattr",
        "Embedding",
        "Extent",
        "Schema",
        "Record",
        "Slot",
        "IndexRoot",
        "SpaceHead",
        "Orphan",
        "Trim",
        "Populate",
        "Listed",
        "GraphHead",
        "GraphNode",
        "IvfHead",
        "IvfEntry",
        "PqHead",
        "PqEntry",
        "LshHead",
        "LshEntry",
    ];
    for t in TABLES {
        assert!(tried.contains(&t.name), "{}", t.name);
    }
    for (field, reason) in LENIENT {
        let (table, name) = field.split_once('.').unwrap();
        let t = TABLES.iter().find(|t| t.name == table).unwrap_or_else(|| panic!("{field}"));
        assert!(t.fields.iter().any(|f| f.name == name), "{field}: {reason}");
    }
}
