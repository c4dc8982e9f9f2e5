// SPDX-License-Identifier: GPL-2.0-only
//! Opening volumes after crashes, on devices that cannot always be read.

mod volume;
use std::collections::BTreeSet;
use vexfs_core::checksum;
use vexfs_core::format::{kind, Key, LogHead, Super, SUPER_SLOTS};
use volume::*;

/// Opens the volume. Reads of the block `bad` fail; the power goes after `writes` writes.
fn open(d: &mut Disk, read_only: bool, bad: Option<u64>, mut writes: usize) -> State {
    let mut v = Volume::open(env(), d.size, engine::Options { read_only, ..Default::default() }, NOW).unwrap();
    while let Some(mut io) = v.poll_io() {
        let mut result = Ok(());
        match io.kind {
            IoKind::Read if bad == Some(io.block) => result = Err(IoError),
            IoKind::Read => d.read(io.block, &mut io.buf),
            IoKind::Write | IoKind::WriteDurable if writes == 0 => return v.state(),
            IoKind::Write | IoKind::WriteDurable => {
                d.write(io.block, &io.buf);
                writes -= 1;
            }
            _ => {}
        }
        v.complete(NOW, io.id, result, io.buf);
    }
    v.state()
}

/// However many groups the log has, and however they lie in what is read at once, its end is found.
#[test]
fn a_log_of_any_length_is_read_to_its_end() {
    for copies in [1, 2] {
        let mut r = Run::open(Disk::new(16384, copies));
        let f = r.make(ROOT, "file", 0o100644);
        for i in 0..90u64 {
            let value = bytes(i, (i as usize * 7919) % 60_000);
            let name = format!("user.{}", i % 4);
            r.op(Op::SetXattr { ino: f, name: name.into(), value, flags: 0 }).unwrap();
            let mut d = r.d.clone();
            assert_eq!(open(&mut d, true, None, 0), State::Ready, "{copies} copies, {i} groups");
        }
        // A block behind the end of the log that cannot be read is no reason to refuse the volume.
        let next = (0..r.d.size).rev().find(|b| r.d.blocks.get(b).is_some_and(|b| b[4..8] == *b"VXlg")).unwrap() + 20;
        let mut d = r.d.clone();
        assert_eq!(open(&mut d, true, Some(next), 0), State::Ready, "{copies} copies");
    }
}

/// A crash leaves a checkpoint's superblock in one of its two slots only, and that slot can be read at one opening and not at
/// another, with a crash in between: whichever checkpoint the first opening starts from is there for the second.
#[test]
fn a_superblock_that_is_unreadable_for_a_while_changes_nothing() {
    for lone in 0..2 {
        let mut r = Run::open(Disk::new(8192, 2));
        furnish(&mut r);
        r.op(Op::Checkpoint).unwrap();
        for i in 0..20 {
            let f = r.make(ROOT, &format!("later {i}"), 0o100644);
            r.write(f, 0, bytes(i, 9000));
        }
        let before = r.d.clone();
        r.op(Op::Unlink { dir: ROOT, name: "later 3".into() }).unwrap();
        r.op(Op::Checkpoint).unwrap();
        // The checkpoint as it was when one of its superblocks was written.
        let newest =
            SUPER_SLOTS.into_iter().max_by_key(|p| Super::parse(&r.d.block(p[0])).unwrap().generation).unwrap();
        let mut d = r.d.clone();
        d.write(newest[1 - lone], &before.block(newest[1 - lone]));
        let bad = newest[lone];
        for (first, second) in [(None, Some(bad)), (Some(bad), None), (Some(bad), Some(bad)), (None, None)] {
            for writes in 0.. {
                let mut d = d.clone();
                let done = open(&mut d, false, first, writes) == State::Ready;
                let mut again = d.clone();
                assert_eq!(
                    open(&mut again, false, second, usize::MAX),
                    State::Ready,
                    "slot {lone}, unreadable {first:?} then {second:?}, crash after {writes} writes"
                );
                let text = format!("slot {lone}, {first:?}, {second:?}, {writes}");
                assert_clean(&mut again, &text);
                let mut r = Run::open(again);
                let gone = r.op(Op::Lookup { dir: ROOT, name: b"later 3".to_vec() });
                assert!(matches!(gone, Err(Error::NotFound)), "{text}: {gone:?}");
                if done {
                    break;
                }
            }
        }
    }
}

/// A daemon was killed while the last superblock was on its way: it can be read, but is in the device's cache only. Recovery
/// may not use blocks that only it gives free before it is durable: nothing is written before a flush.
#[test]
fn recovery_flushes_before_it_writes() {
    let mut r = Run::open(Disk::new(8192, 2));
    furnish(&mut r);
    let mut v = Volume::open(env(), r.d.size, engine::Options::default(), NOW).unwrap();
    let mut flushed = false;
    while let Some(mut io) = v.poll_io() {
        match io.kind {
            IoKind::Read => r.d.read(io.block, &mut io.buf),
            IoKind::Flush => flushed = true,
            _ => assert!(flushed, "a write to block {} before the first flush", io.block),
        }
        v.complete(NOW, io.id, Ok(()), io.buf);
    }
    assert_eq!(v.state(), State::Ready);

    // The same for repairs.
    let mut image = Image::new(furnished(2));
    image.put_supers(&[0, 1], 264, &5u64.to_le_bytes()); // free_blocks
    let d = &mut image.d;
    let mut c = Check::new(env(), d.size, vexfs_core::check::Options { mode: Mode::Safe, metadata_only: false });
    let (mut flushed, mut wrote) = (false, false);
    c.run(&mut |io| {
        match io.kind {
            IoKind::Read => d.read(io.block, &mut io.buf),
            IoKind::Flush => flushed = true,
            _ => {
                assert!(flushed, "a write to block {} before the first flush", io.block);
                wrote = true;
                d.write(io.block, &io.buf);
            }
        }
        Ok::<(), IoError>(())
    })
    .unwrap();
    assert!(wrote, "nothing was repaired");
}

/// A superblock is lost with both its copies, and the volume is opened from the one before it. What was logged since then is
/// lost too. It must not come back when new changes have been logged where the log lay.
#[test]
fn a_log_whose_superblock_was_lost_never_continues_another_one() {
    let at = |n: i64| Time { sec: NOW.sec + n, ..NOW };
    let mut r = Run::open_at(Disk::new(8192, 2), at(1));
    r.make(ROOT, "old", 0o100644);
    r.op(Op::Close).unwrap();
    let mut r = Run::open_at(r.d, at(2));
    for i in 0..20 {
        r.make(ROOT, &format!("lost {i}"), 0o100644);
        r.op(Op::Sync).unwrap();
    }
    let mut d = r.d;
    let newest = SUPER_SLOTS.into_iter().max_by_key(|p| Super::parse(&d.block(p[0])).unwrap().generation).unwrap();
    for slot in newest {
        d.write(slot, &[0; 4096]);
    }
    let names = |r: &mut Run| match r.op(Op::ReadDir { dir: ROOT, cookie: 0, max: 100, attrs: false }).unwrap() {
        Reply::Entries(all) => all.into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect::<BTreeSet<_>>(),
        other => panic!("{other:?}"),
    };
    let mut r = Run::open_at(d.clone(), at(3));
    assert_eq!(names(&mut r), BTreeSet::from(["old".into()]));
    r.make(ROOT, "new 0", 0o100644);
    r.op(Op::Sync).unwrap();
    let mut r = Run::open_at(r.d, at(4));
    assert_eq!(names(&mut r), BTreeSet::from(["old".into(), "new 0".into()]));
    assert_clean(&mut r.d, "after the loss of a superblock");
    // The same when a repair chose the superblock.
    let (done, _) = check(&mut d, Mode::All, false);
    let done = done.unwrap();
    assert_eq!(done.errors, done.repaired);
    let mut r = Run::open_at(d, at(5));
    r.make(ROOT, "new 1", 0o100644);
    r.op(Op::Sync).unwrap();
    let mut r = Run::open_at(r.d, at(6));
    assert_eq!(names(&mut r), BTreeSet::from(["old".into(), "new 1".into()]));
}

/// A superblock that is right but for its log segments, which are too small for a record: changes fail, nothing waits for ever.
#[test]
fn a_log_without_room_is_an_error() {
    for spare in [1, 0] {
        let mut r = Run::open(Disk::new(8192, 2));
        r.make(ROOT, "old", 0o100644);
        let mut d = r.close();
        for slot in SUPER_SLOTS.into_iter().flatten() {
            let mut b = d.block(slot);
            let mut s = Super::parse(&b).unwrap();
            (s.log_addr, s.log_twin) = (s.log_addr + u64::from(s.log_room) - 1, s.log_twin + u64::from(s.log_room) - 1);
            s.log_room = 1;
            s.spare_blocks = spare;
            if spare == 0 {
                (s.spare_addr, s.spare_twin) = (0, 0);
            }
            s.emit(&mut b).unwrap();
            let crc = checksum::crc32c(0, &b[4..]);
            b[..4].copy_from_slice(&crc.to_le_bytes());
            d.write(slot, &b);
        }
        let mut r = Run::open(d);
        let new = Op::Make { dir: ROOT, name: b"new".to_vec(), mode: 0o100644, uid: 0, gid: 0, rdev: 0 };
        assert_eq!(r.op(new).err(), Some(Error::NoSpace), "spare segment of {spare} blocks");
        assert!(r.op(Op::Lookup { dir: ROOT, name: b"old".to_vec() }).is_ok());
    }
}

/// An item whose position was changed to the end of its range, checksums repaired, where the order of the keys allows it:
/// whatever goes through such items ends, with data or with an error.
#[test]
fn items_at_the_end_of_their_range_hold_nothing_up() {
    let base = furnished(2);
    let items = Image::new(base.clone()).items();
    let mut tried = BTreeSet::new();
    for (i, (node, at, key, ..)) in items.iter().enumerate() {
        for offset in [u64::MAX, u64::MAX - 1] {
            let moved = Key { offset, ..*key };
            let next = items.get(i + 1).filter(|n| n.0 == *node).map(|n| n.2);
            if next.is_some_and(|n| n <= moved) || moved <= *key {
                continue;
            }
            let mut image = Image::new(base.clone());
            let mut b = image.d.block(image.nodes[*node].0.addr);
            moved.emit(&mut b[*at..]).unwrap();
            image.put_node(*node, b);
            if open(&mut image.d.clone(), false, None, usize::MAX) != State::Ready {
                continue;
            }
            tried.insert(key.kind);
            let mut r = Run::open(image.d);
            for name in ["flat", "graph"] {
                let Ok(Reply::Attr(a)) = r.op(Op::Lookup { dir: ROOT, name: name.into() }) else { continue };
                let _ = r.client(a.ino).info();
            }
            let _ = r.op(Op::ReadDir { dir: ROOT, cookie: 0, max: 100_000, attrs: true });
            let _ = r.op(Op::GetXattr { ino: key.object, name: b"user.a".to_vec() });
            let _ = r.op(Op::ListXattr { ino: key.object });
            let _ = r.op(Op::Read { ino: key.object, offset: 0, len: 100_000 });
            let _ = r.op(Op::Write { ino: key.object, offset: 0, data: vec![1; 9000], kill_suid: false, times: None });
            let _ = r.op(Op::Close);
            let _ = check(&mut r.d, Mode::Look, false);
        }
    }
    for kind in [kind::EXTENT, kind::DIRENT, kind::RECORD, kind::SLOT_EXTENT, kind::VECTOR_EXTENT, kind::INDEX_EXTENT] {
        assert!(tried.contains(&kind), "no item of kind {kind} could be moved");
    }
}

/// Bitmaps that call blocks of the tree free, checksums repaired: what recovery and changes write then lies over nodes that can still
/// be reached by their second copies. Reading ends, with data or with an error.
#[test]
fn two_nodes_at_one_address_hold_nothing_up() {
    let mut r = Run::open(Disk::new(8192, 2));
    furnish(&mut r);
    r.op(Op::Checkpoint).unwrap();
    let dir = r.make(ROOT, "later", 0o040755);
    for i in 0..150 {
        r.make(dir, &format!("file {i} {}", "x".repeat(100)), 0o100644);
    }
    let image = Image::new(r.d.clone());
    let first = image.items().into_iter().find(|(.., k, _, _)| k.kind == kind::SPACE && k.offset == 0).unwrap();
    let (node, _, _, value, len) = first;
    let mut opened = 0;
    for at in (16..len).step_by(4) {
        let mut image = Image::new(r.d.clone());
        let mut b = image.d.block(image.nodes[node].0.addr);
        if b[value + at..value + at + 4] == [0; 4] {
            continue;
        }
        b[value + at..value + at + 4].fill(0);
        image.put_node(node, b);
        if open(&mut image.d.clone(), false, None, usize::MAX) != State::Ready {
            continue;
        }
        opened += 1;
        let mut r = Run::open(image.d);
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            let mut cookie = 0;
            while let Ok(Reply::Entries(list)) = r.op(Op::ReadDir { dir, cookie, max: 4096, attrs: true }) {
                let Some(last) = list.last() else { break };
                cookie = last.cookie;
                dirs.extend(list.iter().filter(|e| e.dtype == 4 && e.ino > dir).map(|e| e.ino));
            }
        }
        let _ = r.op(Op::Make { dir: ROOT, name: b"new".to_vec(), mode: 0o100644, uid: 0, gid: 0, rdev: 0 });
        let _ = r.op(Op::Close);
        let (looked, _) = check(&mut r.d, Mode::Look, false);
        assert!(looked.is_ok(), "{looked:?}");
        let (repaired, _) = check(&mut r.d, Mode::All, false);
        assert!(repaired.is_ok(), "{repaired:?}");
    }
    assert!(opened > 10, "only {opened} such volumes could be opened");
}

/// An ORPHAN item that is not where the death of an inode looks for its own: opening ends, and so does closing.
#[test]
fn a_misplaced_orphan_item_holds_nothing_up() {
    let mut r = Run::open(Disk::new(8192, 2));
    let f = r.make(ROOT, "orphan", 0o100644);
    r.op(Op::Open { ino: f }).unwrap();
    r.op(Op::Unlink { dir: ROOT, name: b"orphan".to_vec() }).unwrap();
    r.op(Op::Checkpoint).unwrap();
    let mut image = Image::new(r.d);
    let (node, at, key, ..) = image.items().into_iter().find(|i| i.2.kind == kind::ORPHAN).unwrap();
    let mut b = image.d.block(image.nodes[node].0.addr);
    Key { sub: 5, ..key }.emit(&mut b[at..]).unwrap();
    image.put_node(node, b);
    Run::open(image.d).close();
}

/// The last record of a collection has the last of all ids, and a slot has to be made again from the records.
#[test]
fn a_record_with_the_last_id_is_an_error() {
    let base = furnished(2);
    let Ok(Reply::Attr(dir)) = Run::open(base.clone()).op(Op::Lookup { dir: ROOT, name: b"flat".to_vec() }) else {
        panic!()
    };
    let mut image = Image::new(base);
    let items = image.items();
    let of = |k: u32| items.iter().rev().find(|i| i.2.kind == k && i.2.object == dir.ino).unwrap();
    let (node, at, key, ..) = of(kind::RECORD);
    let mut b = image.d.block(image.nodes[*node].0.addr);
    Key { offset: u64::MAX, ..*key }.emit(&mut b[*at..]).unwrap();
    image.put_node(*node, b);
    let (node, _, _, value, _) = of(kind::SLOT_EXTENT);
    let mut b = image.d.block(image.nodes[*node].0.addr);
    b[*value + 32] ^= 1;
    image.put_node(*node, b);
    let mut r = Run::open(image.d);
    assert!(r.client(dir.ino).info().is_err());
}

/// A log record with allocations of 16 TiB each: fsck says so and does not look at each block of them.
#[test]
fn impossible_allocations_in_the_log_are_told_at_once() {
    use vexfs_core::engine::log::{self, Expect, Place};
    use vexfs_core::txn::Changes;
    let mut r = Run::open(Disk::new(8192, 2));
    r.make(ROOT, "file", 0o100644);
    r.op(Op::Sync).unwrap();
    let sb = Image::new(r.d.clone()).sb;
    let e = Expect { uuid: sb.uuid, hash_key: sb.hash_key, crc32c: checksum::crc32c, epoch: sb.log_epoch };
    let (mut place, mut seq) = (Place { addr: sb.log_addr, twin: sb.log_twin, room: sb.log_room }, sb.log_seq);
    let group = |d: &Disk, p: Place| (0..200).flat_map(|i| d.block(p.addr + i)).collect::<Vec<u8>>();
    let mut last = None;
    while let Some(h) = log::parse_group(&e, place, seq, &group(&r.d, place)) {
        last = Some(h);
        place = Place { addr: h.next_addr, twin: h.next_twin, room: h.room };
        seq += 1;
    }
    let mut record = Vec::new();
    let changes = Changes { allocs: vec![(1 << 40, u32::MAX); 30_000], ..Changes::default() };
    log::write_record(&mut record, &changes, 0).unwrap();
    let blocks = log::blocks_for(record.len());
    let next = place.skip(blocks);
    let head = LogHead {
        addr: place.addr,
        twin: place.twin,
        seq,
        blocks,
        records: 1,
        payload: record.len() as u32,
        room: next.room,
        next_addr: next.addr,
        next_twin: next.twin,
        ..last.unwrap()
    };
    let mut b = vec![0; blocks as usize * 4096];
    head.emit(&mut b).unwrap();
    b[LogHead::SIZE..LogHead::SIZE + record.len()].copy_from_slice(&record);
    let crc = checksum::crc32c(log::seed(&sb.hash_key, sb.log_epoch), &b[4..]);
    b[..4].copy_from_slice(&crc.to_le_bytes());
    for (i, block) in b.chunks(4096).enumerate() {
        r.d.write(place.addr + i as u64, block);
        r.d.write(place.twin + i as u64, block);
    }
    assert!(errors(&mut r.d).iter().any(|t| t.contains("blocks")), "not found");
}
