// SPDX-License-Identifier: GPL-2.0-only
//! The checker over volumes that the engine made: clean ones have no finding, also after a kill; what can be
//! repaired is, nothing is given up without leave, and no bytes make it hang or panic.

mod volume;

use vexfs_core::format::*;
use vexfs_core::Error;
use volume::*;

#[test]
fn a_new_volume_is_clean() {
    for copies in [1, 2] {
        for size in [4096, 5000, 20_000] {
            let mut d = Disk::new(size, copies);
            let f = assert_clean(&mut d, "new");
            assert_eq!((f.inodes, f.directories, f.blocks, f.clean), (1, 1, size, true));
        }
    }
}

#[test]
fn a_volume_in_use_is_clean_closed_or_crashed() {
    for copies in [1, 2] {
        let mut r = Run::open(Disk::new(8192, copies));
        assert_clean(&mut r.d, "opened");
        furnish(&mut r);
        let f = assert_clean(&mut r.d.clone(), "with a log");
        assert!(f.log_groups > 10 && !f.clean);
        assert!(f.collections == 2 && f.records > 290 && f.inodes > 80, "the log was not replayed: {f:?}");
        r.op(Op::Checkpoint).unwrap();
        let f = assert_clean(&mut r.d.clone(), "after a checkpoint");
        assert!(f.collections == 2 && f.records > 290 && f.data_blocks > 100, "{f:?}");
        r.op(Op::SetAttr { ino: ROOT, set: SetAttr { mode: Some(0o700), ..SetAttr::default() } }).unwrap();
        assert_clean(&mut r.d.clone(), "crashed");
        let mut r = Run::open(r.d);
        assert_clean(&mut r.d.clone(), "recovered");
        r.op(Op::Checkpoint).unwrap();
        let mut d = r.close();
        let f = assert_clean(&mut d, "closed");
        assert!(f.clean && f.log_groups == 0);
    }
}

/// What a kill of the daemon leaves at any moment is clean: it needs a replay of the log, not a repair.
#[test]
fn a_killed_volume_is_clean_at_every_write() {
    let mut r = Run::open(Disk::new(8192, 2));
    let d0 = r.d.clone();
    // The same operations with a snapshot after each write.
    r.d = d0;
    let mut images = 0;
    let mut step = |r: &mut Run, op: Op| {
        let id = r.v.submit(NOW, op).unwrap();
        loop {
            let Some(mut io) = r.v.poll_io() else {
                if r.v.work() {
                    continue;
                }
                break;
            };
            match io.kind {
                IoKind::Read => r.d.read(io.block, &mut io.buf),
                IoKind::Write | IoKind::WriteDurable => {
                    r.d.write(io.block, &io.buf);
                    let (f, list) = check(&mut r.d.clone(), Mode::Look, true);
                    let bad: Vec<String> = list.iter().filter(|f| f.is_error()).map(|f| f.to_string()).collect();
                    assert!(bad.is_empty() && f.is_ok(), "{bad:#?}");
                    images += 1;
                }
                _ => {}
            }
            r.v.complete(NOW, io.id, Ok(()), io.buf);
        }
        while let Some((i, x)) = r.v.poll_reply() {
            assert!(i != id || x.is_ok(), "{x:?}");
        }
    };
    for i in 0..12u64 {
        let make = Op::Make { dir: ROOT, name: format!("f{i}").into(), mode: 0o100644, uid: 0, gid: 0, rdev: 0 };
        step(&mut r, make);
        let ino = i + 2;
        step(&mut r, Op::Write { ino, offset: 0, data: bytes(i, 9000), kill_suid: false, times: None });
        if i % 4 == 3 {
            step(&mut r, Op::Checkpoint);
            step(&mut r, Op::Unlink { dir: ROOT, name: format!("f{}", i - 1).into() });
            step(
                &mut r,
                Op::Rename { dir: ROOT, name: format!("f{i}").into(), new_dir: ROOT, new_name: "g".into(), flags: 0 },
            );
        }
    }
    step(&mut r, Op::Close);
    assert!(images > 80, "{images}");
}

#[test]
fn bad_copies_are_repaired() {
    let good = furnished(2);
    let base = Image::new(good.clone());
    for (i, (p, _, _)) in base.nodes.iter().enumerate() {
        let mut d = good.clone();
        d.write(if i % 2 == 0 { p.addr } else { p.twin }, &bytes(i as u64, 4096));
        assert_eq!(errors(&mut d.clone()).len(), 1);
        let (r, f) = check(&mut d, Mode::Safe, false);
        assert!(f.iter().all(|f| f.repaired), "{f:?}");
        assert_eq!(r.unwrap().repaired, 1);
        assert_clean(&mut d, "repaired");
        assert_eq!(d.block(p.addr), d.block(p.twin));
    }
    // A superblock.
    for s in SUPER_SLOTS.iter().flatten() {
        let mut d = good.clone();
        d.write(*s, &[7; 4096]);
        assert_eq!(errors(&mut d.clone()).len(), 1);
        check(&mut d, Mode::Safe, false).0.unwrap();
        let left = errors(&mut d);
        assert!(left.is_empty(), "{left:#?}");
    }
}

/// Both copies of a node are gone: what is left is saved, if the user says so.
#[test]
fn lost_nodes_are_given_up_only_when_told() {
    let good = furnished(2);
    let base = Image::new(good.clone());
    let mut r = Run::open(good.clone());
    let mut before = Vec::new();
    for ino in 1..500 {
        if let Ok(Reply::Bytes(b)) = r.op(Op::Read { ino, offset: 0, len: 1 << 24 }) {
            before.push((ino, b));
        }
    }
    let (mut lost, mut incomplete) = (0, 0);
    for (i, (p, level, _)) in base.nodes.iter().enumerate() {
        let mut d = good.clone();
        d.write(p.addr, &bytes(1, 4096));
        d.write(p.twin, &bytes(2, 4096));
        let mut safe = d.clone();
        let (_, f) = check(&mut safe, Mode::Safe, false);
        assert!(f.iter().any(|f| f.is_error() && !f.repaired), "node {i}");
        assert!(!errors(&mut safe).is_empty());
        let (r, f) = check(&mut d, Mode::All, false);
        let left = errors(&mut d);
        if i == 0 {
            assert!(!left.is_empty(), "the root cannot be made up");
            continue;
        }
        let f: Vec<String> = f.iter().map(|f| f.to_string()).collect();
        assert!(left.is_empty(), "node {i} of level {level}: {f:#?} left {left:#?}");
        assert_eq!(r.map(|r| r.errors - r.repaired), Ok(0), "{f:#?}");
        let mut r = Run::open(d);
        for (ino, was) in &before {
            match r.op(Op::Read { ino: *ino, offset: 0, len: 1 << 24 }) {
                Ok(Reply::Bytes(b)) => assert!(b == *was, "node {i}: inode {ino} reads other bytes than before"),
                _ => {
                    lost += 1;
                    // Copies made by data and holes meet the error too.
                    let seek = r.op(Op::Seek { ino: *ino, offset: 0, hole: true });
                    assert!(!matches!(seek, Ok(Reply::Offset(0))), "node {i}: inode {ino} seems to begin with a hole");
                    if r.op(Op::GetAttr { ino: *ino }).is_ok() {
                        incomplete += 1;
                        let reserve = Op::Fallocate { ino: *ino, mode: 0, offset: 0, len: 1 << 24 };
                        let _ = r.op(reserve);
                        let now = r.op(Op::Read { ino: *ino, offset: 0, len: 1 << 24 });
                        assert!(now.is_err(), "node {i}: inode {ino}: lost contents read as zeros after fallocate");
                        // A part of a block would need the rest of it; all of it is as good as new.
                        let partly =
                            r.op(Op::Write { ino: *ino, offset: 0, data: was.clone(), kill_suid: false, times: None });
                        assert!(partly.is_ok(), "{partly:?}");
                        let now = r.op(Op::Read { ino: *ino, offset: 0, len: 1 << 24 });
                        assert!(matches!(now, Ok(Reply::Bytes(b)) if b == *was), "node {i}: inode {ino} written again");
                    }
                }
            }
        }
        let f = r.make(ROOT, "after", 0o100644);
        r.write(f, 0, bytes(1, 50_000));
        r.op(Op::Checkpoint).unwrap();
        assert_clean(&mut r.close(), "used after the repair");
    }
    assert!(lost > 10 && incomplete > 0, "{lost} files lost, {incomplete} of them in part");
}

/// Breaks single facts and expects that a repair brings back a clean volume that can be used.
#[test]
fn what_can_be_repaired_is() {
    let good = furnished(2);
    let base = Image::new(good.clone());
    let items = base.items();
    let pick = |k: u32, n: usize| *items.iter().filter(|i| i.2.kind == k && i.2.sub & 0xffff == 0).nth(n).unwrap();
    let inode = |n| pick(kind::INODE, n);
    let find = |ino: u64| *items.iter().find(|i| i.2 == Key::new(ino, kind::INODE, 0)).unwrap();
    let root = find(ROOT);
    // Item, offset in its value, bytes, and whether something is lost by the repair.
    type Item = (usize, usize, Key, usize, usize);
    let cases: Vec<(Item, usize, Vec<u8>, bool)> = vec![
        (inode(5), 12, vec![9], false),                  // nlink
        (inode(5), 24, vec![99], false),                 // blocks
        (inode(5), 64, vec![0xff; 4], false),            // atime_ns
        (inode(5), 124, vec![1], false),                 // project
        (root, 16, vec![77], false),                     // entries of the root
        (inode(2), 96, vec![50], false),                 // parent of a directory
        (pick(kind::DIRENT, 3), 8, vec![6], false),      // type
        (pick(kind::DIRENT, 3), 9, vec![4], false),      // reserved
        (pick(kind::DIRENT, 5), 0, vec![0xee; 4], true), // entry of no inode
        (pick(kind::SPACE, 0), 100, vec![0xff; 30], false),
        (pick(kind::SPACE, 1), 0, vec![1, 2], false),
        (pick(kind::COLLECTION, 0), 56, vec![1, 1], false), // records
        (pick(kind::COLLECTION, 1), 48, vec![0; 8], false), // next_id
        (pick(kind::ORPHAN, 0), 0, vec![1], false),
        (pick(kind::INDEX, 0), 32, vec![1, 2, 3, 4], false), // checksum of the index
        (pick(kind::EXTENT, 4), 20, vec![2], true),          // flags of an extent: its data is given up
    ];
    for (n, (item, off, w, loss)) in cases.into_iter().enumerate() {
        let (node, _, key, at, _) = item;
        let mut i = Image::new(good.clone());
        let mut b = i.d.block(i.nodes[node].0.addr);
        let was = b.clone();
        b[at + off..at + off + w.len()].copy_from_slice(&w);
        assert!(was != b, "case {n}");
        i.put_node(node, b);
        let mut d = i.d;
        let before = errors(&mut d.clone());
        assert!(!before.is_empty(), "case {n}");
        if loss {
            let mut kept = d.clone();
            check(&mut kept, Mode::Safe, false).0.unwrap();
            assert!(!errors(&mut kept).is_empty(), "case {n}: something was given up without leave");
        }
        // What a repair changes may show more: a few rounds.
        for _ in 0..3 {
            check(&mut d, if loss { Mode::All } else { Mode::Safe }, false).0.unwrap();
        }
        let left = errors(&mut d);
        assert!(left.is_empty(), "case {n}, {key:?}: {before:#?} left {left:#?}");
        // And it works.
        let mut r = Run::open(d);
        let f = r.make(ROOT, "after", 0o100644);
        r.write(f, 0, bytes(1, 50_000));
        r.op(Op::Checkpoint).unwrap();
        let mut d = r.close();
        assert_clean(&mut d, "used after the repair");
    }
}

/// Any bytes: the checker ends, and says something unless nothing was changed that it reads.
#[test]
fn random_damage_is_survived() {
    let good = furnished(2);
    let base = Image::new(good.clone());
    let mut x = 12345u64;
    let mut next = |n: u64| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) % n
    };
    let mut found_some = 0;
    for round in 0..300 {
        let mut i = Image::new(good.clone());
        // Behind the checksums: random bytes in a node, repaired up to the superblock.
        let node = next(base.nodes.len() as u64) as usize;
        let mut b = i.d.block(i.nodes[node].0.addr);
        for _ in 0..1 + next(4) {
            let at = if next(2) == 0 { next(4096) } else { 64 + next(500) } as usize;
            b[at] = next(256) as u8;
        }
        i.put_node(node, b);
        let mut d = i.d;
        found_some += usize::from(!errors(&mut d.clone()).is_empty());
        if round % 3 == 0 {
            let _ = check(&mut d, Mode::All, true);
            let _ = check(&mut d, Mode::Look, true);
        }
    }
    assert!(found_some > 150, "{found_some}");
    // No volume at all.
    for seed in 0..5 {
        let mut d = Disk { blocks: HashMap::new(), size: 4096 };
        for b in SUPER_SLOTS.iter().flatten() {
            d.write(*b, &bytes(seed, 4096));
        }
        assert_eq!(check(&mut d, Mode::All, false).0, Err(Error::NotVexfs));
    }
    let mut small = good.clone();
    small.size = 4096;
    assert_eq!(check(&mut small, Mode::Look, false).0, Err(Error::Truncated));
}
