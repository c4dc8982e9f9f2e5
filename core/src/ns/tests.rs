// SPDX-License-Identifier: GPL-2.0-only
//! Names and attributes: the corners that random histories do not reach.

use super::testing::World;
use super::{perm, EMBEDDING_XATTR};
use crate::error::Error;
use crate::format::*;
use crate::op::*;
use std::vec;
use std::vec::Vec;

const REG: u32 = 0o100_644;
const DIR: u32 = 0o040_755;

fn world() -> World {
    World::new(4096, 1, 0)
}

fn set_xattr(w: &mut World, ino: u64, name: &[u8], value: &[u8]) -> Result<(), Error> {
    let op = Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), flags: 0 };
    w.run(&op).map(|_| ())
}

fn get_xattr(w: &mut World, ino: u64, name: &[u8]) -> Result<Vec<u8>, Error> {
    w.bytes(&Op::GetXattr { ino, name: name.to_vec() })
}

#[test]
fn names_and_the_control_file() {
    let mut w = world();
    for bad in [&b"a/b"[..], b"a\0b"] {
        assert_eq!(w.make(ROOT, bad, REG), Err(Error::Invalid));
    }
    assert_eq!(w.make(ROOT, b"", REG), Err(Error::NotFound));
    assert_eq!(w.make(ROOT, &[b'x'; 256], REG), Err(Error::NameTooLong));
    assert_eq!(w.make(ROOT, b".vexfs", REG), Err(Error::Exists));
    assert_eq!(w.lookup(ROOT, b".vexfs"), Err(Error::NotFound));
    assert_eq!(w.unlink(ROOT, b".vexfs"), Err(Error::NotFound));
    let f = w.make(ROOT, &[b'x'; 255], REG).unwrap();
    assert_eq!(w.rename(ROOT, &[b'x'; 255], ROOT, b".vexfs", 0), Err(Error::Exists));
    // Any encoding, and every byte but two.
    let odd: Vec<u8> = (1..=255u8).filter(|c| *c != b'/').collect();
    w.rename(ROOT, &[b'x'; 255], ROOT, &odd, 0).unwrap();
    assert_eq!(w.lookup(ROOT, &odd), Ok(f));
    assert_eq!(w.make(f, b"x", REG), Err(Error::NotDirectory));
    assert_eq!(w.make(ROOT, b"l", 0o120_777), Err(Error::Invalid));
    assert_eq!(w.make(ROOT, b"l", 0o170_777), Err(Error::Invalid));
    w.check();
}

#[test]
fn special_files() {
    let mut w = world();
    for (name, kind, rdev) in [(b"p", 0o010_000, 0), (b"c", 0o020_000, 77), (b"b", 0o060_000, 77), (b"s", 0o140_000, 0)]
    {
        let ino = w.make(ROOT, name, kind | 0o600).unwrap();
        let a = w.attr(ino).unwrap();
        assert_eq!((a.mode, a.rdev, a.nlink), (kind | 0o600, rdev, 1));
        assert_eq!(w.write(ino, 0, b"x"), Err(Error::Invalid));
        assert_eq!(w.truncate(ino, 0), Err(Error::Invalid));
    }
    let plain = w.make(ROOT, b"f", 0o640).unwrap();
    assert_eq!(w.attr(plain).unwrap().mode, 0o100_640);
    let types: Vec<u8> = match w.run(&Op::ReadDir { dir: ROOT, cookie: 0, max: 4096, attrs: false }).unwrap() {
        Reply::Entries(v) => v.iter().map(|e| e.dtype).collect(),
        other => panic!("{other:?}"),
    };
    for t in [1, 2, 6, 8, 12] {
        assert!(types.contains(&t));
    }
    w.check();
}

#[test]
fn limits_of_links_and_targets() {
    let mut w = world();
    let f = w.make(ROOT, b"f", REG).unwrap();
    let key = Key::first(f, kind::INODE);
    let mut i = Inode::parse(&w.items.map[&key]).unwrap();
    i.nlink = super::LINKS_MAX - 1;
    let mut v = vec![0; Inode::SIZE];
    i.emit(&mut v).unwrap();
    w.items.map.insert(key, v);
    let link = |w: &mut World, n: &[u8]| w.run(&Op::Link { ino: f, dir: ROOT, name: n.to_vec() }).map(|_| ());
    assert_eq!(link(&mut w, b"one more"), Ok(()));
    assert_eq!(link(&mut w, b"too many"), Err(Error::TooManyLinks));
    for (len, want) in [(0, Err(Error::NotFound)), (1, Ok(())), (4095, Ok(())), (4096, Err(Error::NameTooLong))] {
        let name = std::format!("s{len}").into_bytes();
        let op = Op::Symlink { dir: ROOT, name, target: vec![b't'; len], uid: 1, gid: 2 };
        assert_eq!(w.run(&op).map(|_| ()), want, "{len}");
    }
    let s = w.lookup(ROOT, b"s4095").unwrap();
    assert_eq!(w.bytes(&Op::ReadLink { ino: s }).unwrap().len(), 4095);
    assert_eq!(w.bytes(&Op::ReadLink { ino: f }), Err(Error::Invalid));
}

#[test]
fn files_without_names() {
    let mut w = world();
    let d = w.make(ROOT, b"d", DIR).unwrap();
    w.run(&Op::SetAttr { ino: d, set: SetAttr { mode: Some(0o2755), gid: Some(77), ..SetAttr::default() } }).unwrap();
    let tmpfile = |w: &mut World, dir, mode| -> Result<Attr, Error> {
        match w.run(&Op::Tmpfile { dir, mode, uid: 5, gid: 6 })? {
            Reply::Attr(a) => Ok(a),
            other => panic!("{other:?}"),
        }
    };
    let a = tmpfile(&mut w, d, 0o640).unwrap();
    assert_eq!((a.mode, a.nlink, a.uid, a.gid, a.size), (0o100_640, 0, 5, 77, 0));
    assert_eq!(tmpfile(&mut w, d, DIR | 0o700).unwrap_err(), Error::Invalid);
    assert_eq!(tmpfile(&mut w, a.ino, 0).unwrap_err(), Error::NotDirectory);
    assert_eq!(w.list(d).unwrap(), []);
    w.write(a.ino, 0, &[7; 9000]).unwrap();
    w.check();
    // It gets a name, and then lives and dies like any other file.
    let link = |ino, name: &[u8]| Op::Link { ino, dir: d, name: name.to_vec() };
    w.run(&link(a.ino, b"named")).unwrap();
    assert_eq!(w.attr(a.ino).unwrap().nlink, 1);
    w.run(&link(a.ino, b"twice")).unwrap();
    w.run(&Op::Release { ino: a.ino }).unwrap();
    w.check();
    assert_eq!(w.pread(a.ino, 8999, 10).unwrap(), [7]);
    w.unlink(d, b"named").unwrap();
    w.unlink(d, b"twice").unwrap();
    assert_eq!(w.attr(a.ino), Err(Error::NotFound));
    // Without one it goes when it is closed, whatever its size.
    for size in [0, 10_000, 3_000_000] {
        let b = tmpfile(&mut w, d, 0o600).unwrap().ino;
        w.write(b, 0, &vec![1; size]).unwrap();
        w.run(&Op::Release { ino: b }).unwrap();
        w.run_trims();
        assert_eq!(w.attr(b), Err(Error::NotFound), "{size}");
        assert_eq!(w.run(&link(b, b"late")).map(|_| ()), Err(Error::NotFound));
    }
    assert_eq!(w.used(), 0);
    // Nothing can be made in a directory that is gone.
    w.run(&Op::Open { ino: d }).unwrap();
    w.run(&Op::Rmdir { dir: ROOT, name: b"d".to_vec() }).unwrap();
    assert_eq!(tmpfile(&mut w, d, 0).unwrap_err(), Error::NotFound);
    w.check();
}

#[test]
fn whiteouts() {
    let mut w = world();
    let (d, e) = (w.make(ROOT, b"d", DIR).unwrap(), w.make(ROOT, b"e", DIR).unwrap());
    let owner = SetAttr { uid: Some(8), gid: Some(9), ..SetAttr::default() };
    w.run(&Op::SetAttr { ino: d, set: owner }).unwrap();
    let f = w.make(d, b"f", REG).unwrap();
    let rename = |w: &mut World, name: &[u8], new_dir, flags| -> Result<u64, Error> {
        let op = Op::Rename { dir: d, name: name.to_vec(), new_dir, new_name: b"to".to_vec(), flags };
        match w.run(&op)? {
            Reply::Attr(a) => Ok(a.ino),
            other => panic!("{other:?}"),
        }
    };
    for new_dir in [d, e] {
        let white = rename(&mut w, b"f", new_dir, RENAME_WHITEOUT).unwrap();
        let a = w.attr(white).unwrap();
        assert_eq!((a.mode, a.rdev, a.nlink, a.uid, a.gid), (0o020_000, 0, 1, 8, 9));
        assert_eq!((w.lookup(d, b"f"), w.lookup(new_dir, b"to")), (Ok(white), Ok(f)));
        w.check();
        w.unlink(d, b"f").unwrap();
        w.rename(new_dir, b"to", d, b"f", 0).unwrap();
    }
    // Over a file that goes, and a directory that moves.
    w.make(e, b"to", REG).unwrap();
    assert_eq!(rename(&mut w, b"f", e, RENAME_WHITEOUT | RENAME_NOREPLACE), Err(Error::Exists));
    assert_eq!(rename(&mut w, b"f", e, RENAME_WHITEOUT | RENAME_EXCHANGE), Err(Error::Invalid));
    rename(&mut w, b"f", e, RENAME_WHITEOUT).unwrap();
    w.unlink(e, b"to").unwrap();
    let sub = w.make(d, b"sub", DIR).unwrap();
    rename(&mut w, b"sub", e, RENAME_WHITEOUT).unwrap();
    assert_eq!((w.lookup(e, b"to"), w.attr(d).unwrap().nlink, w.attr(e).unwrap().nlink), (Ok(sub), 2, 3));
    assert_eq!(w.list(d).unwrap().len(), 2);
    w.check();
}

#[test]
fn orphans_live_while_open() {
    let mut w = world();
    let f = w.make(ROOT, b"f", REG).unwrap();
    let generation = w.attr(f).unwrap().generation;
    w.write(f, 0, &[5; 10_000]).unwrap();
    w.run(&Op::Open { ino: f }).unwrap();
    w.run(&Op::Open { ino: f }).unwrap();
    w.unlink(ROOT, b"f").unwrap();
    assert_eq!(w.attr(f).unwrap().nlink, 0);
    w.write(f, 10_000, b"more").unwrap();
    assert_eq!(w.pread(f, 9_998, 100).unwrap(), b"\x05\x05more");
    assert!(w.run(&Op::ByHandle { ino: f, generation }).is_ok());
    w.check();
    w.run(&Op::Release { ino: f }).unwrap();
    assert!(w.attr(f).is_ok());
    w.run(&Op::Release { ino: f }).unwrap();
    assert_eq!(w.attr(f), Err(Error::NotFound));
    assert!(matches!(w.run(&Op::ByHandle { ino: f, generation }), Err(Error::Stale)));
    assert_eq!(w.used(), 0);
    w.check();
    // A directory that was removed while open takes no entries and goes with its last user.
    let d = w.make(ROOT, b"d", DIR).unwrap();
    w.run(&Op::Open { ino: d }).unwrap();
    w.run(&Op::Rmdir { dir: ROOT, name: b"d".to_vec() }).unwrap();
    assert_eq!(w.make(d, b"x", REG), Err(Error::NotFound));
    let g = w.make(ROOT, b"g", REG).unwrap();
    assert_eq!(w.rename(ROOT, b"g", d, b"g", 0), Err(Error::NotFound));
    assert_eq!(w.lookup(ROOT, b"g"), Ok(g));
    assert_eq!(w.list(d).unwrap(), []);
    w.run(&Op::Release { ino: d }).unwrap();
    assert_eq!(w.attr(d), Err(Error::NotFound));
    w.check();
}

#[test]
fn handles_name_one_inode() {
    let mut w = world();
    let f = w.make(ROOT, b"f", REG).unwrap();
    assert!(w.run(&Op::ByHandle { ino: f, generation: 1 }).is_ok());
    assert!(matches!(w.run(&Op::ByHandle { ino: f, generation: 2 }), Err(Error::Stale)));
    assert!(matches!(w.run(&Op::ByHandle { ino: 999, generation: 1 }), Err(Error::Stale)));
}

#[test]
fn a_file_with_many_extents_is_removed_in_steps() {
    let mut w = World::new(16_384, 3, 0);
    let f = w.make(ROOT, b"f", REG).unwrap();
    for n in 0..600 {
        w.write(f, n * 8192, b"x").unwrap();
    }
    let value = vec![2; 60_000];
    set_xattr(&mut w, f, b"user.big", &value).unwrap();
    w.auto_trim = false;
    w.unlink(ROOT, b"f").unwrap();
    assert_eq!(w.trims, [f]);
    w.check();
    assert!(w.used() > 500);
    let steps = w.steps;
    w.run_trims();
    assert_eq!(w.steps - steps, 3);
    assert_eq!(w.used(), 0);
    w.check();
}

#[test]
fn readdir_positions_stay_valid() {
    let mut w = world();
    let names: Vec<Vec<u8>> = (0..300).map(|i| std::format!("file {i}").into_bytes()).collect();
    for n in &names {
        w.make(ROOT, n, REG).unwrap();
    }
    let page = |w: &mut World, cookie| match w.run(&Op::ReadDir { dir: ROOT, cookie, max: 1000, attrs: false }).unwrap()
    {
        Reply::Entries(v) => v,
        other => panic!("{other:?}"),
    };
    let first = page(&mut w, 0);
    assert!(first.len() > 10 && first.len() < 50);
    let at = first.last().unwrap().cookie;
    // Everything that was given already goes, and new names come: nothing else is missed or given twice.
    for e in &first {
        w.unlink(ROOT, &e.name).unwrap();
    }
    for i in 0..50 {
        w.make(ROOT, std::format!("new {i}").as_bytes(), REG).unwrap();
    }
    let mut seen: Vec<Vec<u8>> = first.into_iter().map(|e| e.name).collect();
    let mut cookie = at;
    loop {
        let v = page(&mut w, cookie);
        let Some(l) = v.last() else { break };
        cookie = l.cookie;
        seen.extend(v.into_iter().map(|e| e.name).filter(|n| !n.starts_with(b"new")));
    }
    let mut want = names;
    want.sort();
    seen.sort();
    assert_eq!(seen, want);
    assert!(page(&mut w, u64::MAX).is_empty());
    w.check();
}

/// Puts a foreign name into the bucket of `name`, at `number`.
fn collide(w: &mut World, name: &[u8], number: u64, ino: u64) {
    let hash = crate::checksum::siphash(&w.items.info.hash_key, name) & 0x7fff_ffff_ffff_ff00;
    let other = std::format!("other {number}").into_bytes();
    let mut v = vec![0; Dirent::SIZE];
    Dirent { ino, dtype: 8, reserved: 0, name_len: other.len() as u16 }.emit(&mut v).unwrap();
    v.extend(other);
    w.items.map.insert(Key::new(ROOT, kind::DIRENT, hash + number), v);
}

#[test]
fn equal_hashes_are_told_apart() {
    let mut w = world();
    let f = w.make(ROOT, b"f", REG).unwrap();
    for n in [0, 1, 3] {
        collide(&mut w, b"name", n, f);
    }
    let a = w.make(ROOT, b"name", REG).unwrap();
    assert_eq!(w.lookup(ROOT, b"name"), Ok(a));
    let hash = crate::checksum::siphash(&w.items.info.hash_key, b"name") & 0x7fff_ffff_ffff_ff00;
    assert_eq!(Dirent::parse(&w.items.map[&Key::new(ROOT, kind::DIRENT, hash + 2)]).unwrap().ino, a);
    assert_eq!(w.make(ROOT, b"name", REG), Err(Error::Exists));
    // One entry a page: none of the neighbours is skipped.
    let mut cookie = 0;
    let mut seen = Vec::new();
    while let Ok(Reply::Entries(v)) = w.run(&Op::ReadDir { dir: ROOT, cookie, max: 1, attrs: false }) {
        let Some(e) = v.first() else { break };
        assert_eq!(v.len(), 1);
        cookie = e.cookie;
        seen.push(e.cookie);
    }
    assert_eq!(seen.iter().filter(|c| **c & !255 == hash).map(|c| c & 255).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(seen.len(), 5);
    w.unlink(ROOT, b"name").unwrap();
    assert_eq!(w.lookup(ROOT, b"name"), Err(Error::NotFound));
    for n in 0..256 {
        collide(&mut w, b"name", n, f);
    }
    assert_eq!(w.make(ROOT, b"name", REG), Err(Error::NoSpace));
}

#[test]
fn deep_directories() {
    let mut w = world();
    let mut dirs = vec![ROOT];
    for _ in 0..2000 {
        dirs.push(w.make(*dirs.last().unwrap(), b"d", DIR).unwrap());
    }
    let deepest = *dirs.last().unwrap();
    assert_eq!(w.rename(ROOT, b"d", deepest, b"x", 0), Err(Error::Invalid));
    assert_eq!(w.rename(dirs[5], b"d", deepest, b"x", 0), Err(Error::Invalid));
    w.make(deepest, b"y", REG).unwrap();
    assert_eq!(w.rename(deepest, b"y", ROOT, b"d", RENAME_EXCHANGE), Err(Error::Invalid));
    assert_eq!(w.rename(deepest, b"y", ROOT, b"d", 0), Err(Error::IsDirectory));
    let other = w.make(ROOT, b"other", DIR).unwrap();
    w.rename(ROOT, b"d", other, b"x", 0).unwrap();
    assert!(matches!(w.run(&Op::Parent { dir: dirs[1] }), Ok(Reply::Ino(p)) if p == other));
    w.check();
}

#[test]
fn directories_replace_and_exchange() {
    let mut w = world();
    let (a, b) = (w.make(ROOT, b"a", DIR).unwrap(), w.make(ROOT, b"b", DIR).unwrap());
    let x = w.make(a, b"x", DIR).unwrap();
    w.make(b, b"y", DIR).unwrap();
    let f = w.make(b, b"f", REG).unwrap();
    w.check();
    // Over an empty directory, from elsewhere and from beside it.
    w.rename(a, b"x", b, b"y", 0).unwrap();
    w.check();
    assert_eq!((w.attr(a).unwrap().nlink, w.attr(b).unwrap().nlink), (2, 3));
    w.make(b, b"z", DIR).unwrap();
    w.rename(b, b"y", b, b"z", 0).unwrap();
    w.check();
    assert_eq!(w.lookup(b, b"z"), Ok(x));
    // Over one that is not empty, and up over its own parent.
    w.make(x, b"in it", REG).unwrap();
    w.make(a, b"e", DIR).unwrap();
    assert_eq!(w.rename(a, b"e", b, b"z", 0), Err(Error::NotEmpty));
    assert_eq!(w.rename(b, b"z", ROOT, b"b", 0), Err(Error::NotEmpty));
    assert_eq!(w.rename(b, b"f", a, b"e", 0), Err(Error::IsDirectory));
    assert_eq!(w.rename(a, b"e", b, b"f", 0), Err(Error::NotDirectory));
    assert_eq!(w.rename(a, b"e", b, b"f", RENAME_NOREPLACE), Err(Error::Exists));
    assert_eq!(w.rename(a, b"e", a, b"new", RENAME_EXCHANGE), Err(Error::NotFound));
    assert_eq!(w.rename(a, b"e", b, b"f", RENAME_NOREPLACE | RENAME_EXCHANGE), Err(Error::Invalid));
    // A directory and a file change places, across and within directories.
    w.rename(a, b"e", b, b"f", RENAME_EXCHANGE).unwrap();
    w.check();
    assert_eq!(w.lookup(a, b"e"), Ok(f));
    assert_eq!((w.attr(a).unwrap().nlink, w.attr(b).unwrap().nlink), (2, 4));
    w.rename(b, b"f", b, b"z", RENAME_EXCHANGE).unwrap();
    w.check();
    assert_eq!(w.lookup(b, b"f"), Ok(x));
    w.rename(a, b"e", a, b"e", RENAME_EXCHANGE).unwrap();
    w.rename(ROOT, b"a", ROOT, b"b", RENAME_EXCHANGE).unwrap();
    assert_eq!((w.lookup(ROOT, b"a"), w.lookup(ROOT, b"b")), (Ok(b), Ok(a)));
    w.check();
}

#[test]
fn set_group_id_directories_give_their_group() {
    let mut w = world();
    let d = w.make(ROOT, b"d", DIR | 0o2000).unwrap();
    w.run(&Op::SetAttr { ino: d, set: SetAttr { gid: Some(42), ..SetAttr::default() } }).unwrap();
    let f = w.make(d, b"f", REG).unwrap();
    let e = w.make(d, b"e", DIR).unwrap();
    w.run(&Op::Symlink { dir: d, name: b"l".to_vec(), target: b"t".to_vec(), uid: 1, gid: 2 }).unwrap();
    let l = w.lookup(d, b"l").unwrap();
    assert_eq!((w.attr(f).unwrap().gid, w.attr(f).unwrap().mode), (42, REG));
    assert_eq!((w.attr(e).unwrap().gid, w.attr(e).unwrap().mode), (42, DIR | 0o2000));
    assert_eq!((w.attr(l).unwrap().gid, w.attr(l).unwrap().mode), (42, 0o120_777));
}

#[test]
fn set_attr_rules() {
    let mut w = world();
    let f = w.make(ROOT, b"f", 0o106_755).unwrap();
    let set = |w: &mut World, set: SetAttr| match w.run(&Op::SetAttr { ino: f, set }) {
        Ok(Reply::Attr(a)) => Ok(a),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e),
    };
    w.now = Time { sec: 2000, nsec: 1 };
    // chown(2) with neither owner nor group arrives like this.
    let a = set(&mut w, SetAttr::default()).unwrap();
    assert_eq!((a.ctime, a.mtime.sec, a.mode), (w.now, 1000, 0o106_755));
    let a = set(&mut w, SetAttr { uid: Some(7), kill_suid: true, ..SetAttr::default() }).unwrap();
    assert_eq!((a.mode, a.uid, a.ctime), (0o100_755, 7, w.now));
    // Set-group-id without execution for the group is not a privilege: it stays.
    let a = set(&mut w, SetAttr { mode: Some(0o6744), ..SetAttr::default() }).unwrap();
    assert_eq!(a.mode, 0o106_744);
    let a = set(&mut w, SetAttr { gid: Some(7), kill_suid: true, ..SetAttr::default() }).unwrap();
    assert_eq!(a.mode, 0o102_744);
    let far = Time { sec: i64::MIN, nsec: 999_999_999 };
    let a = set(&mut w, SetAttr { atime: Some(far), btime: Some(far), ..SetAttr::default() }).unwrap();
    assert_eq!((a.atime, a.btime, a.ctime), (far, far, w.now));
    let bad = Time { sec: 0, nsec: 1_000_000_000 };
    assert_eq!(set(&mut w, SetAttr { mtime: Some(bad), ..SetAttr::default() }), Err(Error::Invalid));
    let a = set(&mut w, SetAttr { ctime: Some(far), ..SetAttr::default() }).unwrap();
    assert_eq!(a.ctime, far);
    // To be read is no change: the ctime stays.
    let read = Time { sec: 3000, nsec: 3 };
    w.now = read;
    let a = set(&mut w, SetAttr { accessed: Some(read), ..SetAttr::default() }).unwrap();
    assert_eq!((a.atime, a.ctime), (read, far));
    // A size and other attributes at once.
    w.write(f, 0, b"hello").unwrap();
    let a = set(&mut w, SetAttr { size: Some(2), mode: Some(0o600), mtime: Some(far), ..SetAttr::default() }).unwrap();
    assert_eq!((a.size, a.mode, a.mtime, a.ctime), (2, 0o100_600, far, w.now));
    w.write(f, 0, b"x").unwrap();
    assert_eq!(w.attr(f).unwrap().mtime, w.now);
}

#[test]
fn extended_attributes() {
    let mut w = world();
    let f = w.make(ROOT, b"f", REG).unwrap();
    let p = w.make(ROOT, b"p", 0o010_644).unwrap();
    let d = w.make(ROOT, b"d", DIR).unwrap();
    w.run(&Op::Symlink { dir: ROOT, name: b"l".to_vec(), target: b"t".to_vec(), uid: 1, gid: 2 }).unwrap();
    let l = w.lookup(ROOT, b"l").unwrap();
    assert_eq!(set_xattr(&mut w, f, b"user.", b"x"), Err(Error::NotSupported));
    assert_eq!(set_xattr(&mut w, f, b"other.x", b"x"), Err(Error::NotSupported));
    assert_eq!(set_xattr(&mut w, f, b"", b"x"), Err(Error::Range));
    let mut long = b"user.".to_vec();
    long.resize(255, b'n');
    assert_eq!(set_xattr(&mut w, f, &long, b"x"), Ok(()));
    long.push(b'n');
    assert_eq!(set_xattr(&mut w, f, &long, b"x"), Err(Error::Range));
    assert_eq!(set_xattr(&mut w, f, b"user.max", &vec![9; 65_536]), Ok(()));
    assert_eq!(get_xattr(&mut w, f, b"user.max").unwrap(), vec![9; 65_536]);
    assert_eq!(set_xattr(&mut w, f, b"user.max", &vec![9; 65_537]), Err(Error::TooBig));
    assert_eq!(set_xattr(&mut w, p, b"user.x", b"x"), Err(Error::NotPermitted));
    assert_eq!(set_xattr(&mut w, l, b"user.x", b"x"), Err(Error::NotPermitted));
    assert_eq!(get_xattr(&mut w, l, b"user.x"), Err(Error::NoAttribute));
    assert_eq!(set_xattr(&mut w, p, b"trusted.x", b"x"), Ok(()));
    assert_eq!(set_xattr(&mut w, l, b"security.x", b"x"), Ok(()));
    assert_eq!(set_xattr(&mut w, d, b"user.x", b""), Ok(()));
    assert_eq!(get_xattr(&mut w, d, b"user.x"), Ok(vec![]));
    assert_eq!(get_xattr(&mut w, d, b"user.y"), Err(Error::NoAttribute));
    assert_eq!(w.read(|t| super::user_xattr(t, d, b"x")), Ok(Some(vec![])));
    assert_eq!(w.read(|t| super::user_xattr(t, d, b"y")), Ok(None));
    // The list stays within what listxattr(2) can give.
    let mut n = 0;
    let last = loop {
        let name = std::format!("user.{n:0200}");
        if let Err(e) = set_xattr(&mut w, d, name.as_bytes(), b"") {
            break e;
        }
        n += 1;
    };
    assert_eq!(last, Error::NoSpace);
    assert!(n > 300);
    assert!(w.bytes(&Op::ListXattr { ino: d }).unwrap().len() <= 65_536);
    w.check();
}

#[test]
fn an_embedding_is_an_attribute() {
    let mut w = world();
    let f = w.make(ROOT, b"f", REG).unwrap();
    let d = w.make(ROOT, b"d", DIR).unwrap();
    let floats = |n: usize| -> Vec<u8> { (0..n).flat_map(|i| (i as f32 + 0.5).to_le_bytes()).collect() };
    assert_eq!(set_xattr(&mut w, d, EMBEDDING_XATTR, &floats(3)), Err(Error::NotSupported));
    assert_eq!(set_xattr(&mut w, f, EMBEDDING_XATTR, b"abc"), Err(Error::Invalid));
    assert_eq!(set_xattr(&mut w, f, EMBEDDING_XATTR, b""), Err(Error::Invalid));
    assert_eq!(set_xattr(&mut w, f, EMBEDDING_XATTR, &f32::NAN.to_le_bytes()), Err(Error::BadVector));
    assert_eq!(get_xattr(&mut w, f, EMBEDDING_XATTR), Err(Error::NoAttribute));
    assert_eq!(set_xattr(&mut w, f, EMBEDDING_XATTR, &floats(16_384)), Ok(()));
    assert_eq!(get_xattr(&mut w, f, EMBEDDING_XATTR), Ok(floats(16_384)));
    let remove = Op::RemoveXattr { ino: f, name: EMBEDDING_XATTR.to_vec() };
    // A shorter one leaves nothing of the longer.
    assert_eq!(set_xattr(&mut w, f, EMBEDDING_XATTR, &floats(2)), Ok(()));
    assert_eq!(w.items.map.keys().filter(|k| k.kind == kind::EMBEDDING).count(), 1);
    assert_eq!(w.read(|t| super::embedding(t, f)), Ok(Some(vec![0.5f32.to_bits(), 1.5f32.to_bits()])));
    let mut i = w.attr(f).unwrap();
    assert_eq!(i.flags, inode_flags::EMBEDDED);
    w.write(f, 0, b"new").unwrap();
    i = w.attr(f).unwrap();
    assert_eq!(i.flags, inode_flags::EMBEDDED | inode_flags::STALE);
    let op = Op::SetXattr { ino: f, name: EMBEDDING_XATTR.to_vec(), value: floats(2), flags: XATTR_CREATE };
    assert_eq!(w.run(&op).map(|_| ()), Err(Error::Exists));
    w.run(&remove).unwrap();
    assert_eq!(w.run(&remove).map(|_| ()), Err(Error::NoAttribute));
    assert_eq!(w.attr(f).unwrap().flags, 0);
    let op = Op::SetXattr { ino: f, name: EMBEDDING_XATTR.to_vec(), value: floats(2), flags: XATTR_REPLACE };
    assert_eq!(w.run(&op).map(|_| ()), Err(Error::NoAttribute));
    // Larger ones exist, but not as an attribute.
    let words: Vec<u32> = (0..65_536u32).map(|i| (i as f32).to_bits()).collect();
    w.change(|t| super::set_embedding(t, f, &words)).unwrap();
    assert_eq!(w.read(|t| super::embedding(t, f)), Ok(Some(words)));
    assert_eq!(get_xattr(&mut w, f, EMBEDDING_XATTR), Err(Error::Range));
    assert_eq!(w.bytes(&Op::ListXattr { ino: f }), Ok(vec![]));
    w.unlink(ROOT, b"f").unwrap();
    w.run_trims();
    w.check();
    assert!(!w.items.map.keys().any(|k| k.object == f));
}

fn acl(list: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut v = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in list {
        v.extend(tag.to_le_bytes());
        v.extend(perm.to_le_bytes());
        v.extend(id.to_le_bytes());
    }
    v
}

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

#[test]
fn acls_and_modes_agree() {
    let mut w = world();
    let none = u32::MAX;
    let d = w.make(ROOT, b"d", DIR).unwrap();
    let f = w.make(ROOT, b"f", REG).unwrap();
    let full = acl(&[(1, 7, none), (2, 6, 50), (4, 5, none), (0x10, 7, none), (0x20, 4, none)]);
    assert_eq!(set_xattr(&mut w, f, DEFAULT, &full), Err(Error::AccessDenied));
    assert_eq!(set_xattr(&mut w, f, ACCESS, b"nonsense"), Err(Error::NotSupported));
    // An access ACL sets the mode; one that says no more than the mode is not kept.
    set_xattr(&mut w, f, ACCESS, &full).unwrap();
    assert_eq!(w.attr(f).unwrap().mode, 0o100_774);
    w.run(&Op::SetAttr { ino: f, set: SetAttr { mode: Some(0o640), ..SetAttr::default() } }).unwrap();
    let cut = acl(&[(1, 6, none), (2, 6, 50), (4, 5, none), (0x10, 4, none), (0x20, 0, none)]);
    assert_eq!(get_xattr(&mut w, f, ACCESS), Ok(cut));
    set_xattr(&mut w, f, ACCESS, &acl(&[(1, 6, none), (4, 2, none), (0x20, 1, none)])).unwrap();
    assert_eq!(w.attr(f).unwrap().mode, 0o100_621);
    assert_eq!(get_xattr(&mut w, f, ACCESS), Err(Error::NoAttribute));
    assert!(w.run(&Op::RemoveXattr { ino: f, name: ACCESS.to_vec() }).is_ok());
    // Inheritance.
    set_xattr(&mut w, d, DEFAULT, &full).unwrap();
    let e = w.make(d, b"e", 0o040_750).unwrap();
    assert_eq!(w.attr(e).unwrap().mode, 0o040_750);
    assert_eq!(get_xattr(&mut w, e, DEFAULT), Ok(full.clone()));
    let inherited = acl(&[(1, 7, none), (2, 6, 50), (4, 5, none), (0x10, 5, none), (0x20, 0, none)]);
    assert_eq!(get_xattr(&mut w, e, ACCESS), Ok(inherited));
    let g = w.make(e, b"g", 0o100_666).unwrap();
    assert_eq!(w.attr(g).unwrap().mode, 0o100_664);
    assert_eq!(get_xattr(&mut w, g, DEFAULT), Err(Error::NoAttribute));
    // A default ACL of three entries only limits the mode.
    set_xattr(&mut w, d, DEFAULT, &acl(&[(1, 6, none), (4, 4, none), (0x20, 0, none)])).unwrap();
    let h = w.make(d, b"h", 0o100_777).unwrap();
    assert_eq!(w.attr(h).unwrap().mode, 0o100_640);
    assert_eq!(get_xattr(&mut w, h, ACCESS), Err(Error::NoAttribute));
    set_xattr(&mut w, d, DEFAULT, &acl(&[])).unwrap();
    assert_eq!(get_xattr(&mut w, d, DEFAULT), Err(Error::NoAttribute));
    w.check();
}

#[test]
fn permissions() {
    let mut w = world();
    let f = w.make(ROOT, b"f", 0o100_640).unwrap(); // uid 1, gid 2
    let x = w.make(ROOT, b"x", 0o100_010).unwrap();
    let d = w.make(ROOT, b"d", 0o040_000).unwrap();
    let who = |uid, gid, groups: &[u32]| Cred { uid, gid, groups: groups.to_vec() };
    let mut may = |ino, c: &Cred, mask| w.read(|t| perm::may(t, ino, c, mask)).unwrap();
    assert!(may(f, &who(1, 9, &[]), perm::READ | perm::WRITE));
    assert!(!may(f, &who(1, 9, &[]), perm::EXEC));
    assert!(may(f, &who(5, 2, &[]), perm::READ) && !may(f, &who(5, 2, &[]), perm::WRITE));
    assert!(may(f, &who(5, 9, &[3, 2]), perm::READ));
    assert!(!may(f, &who(5, 9, &[3]), perm::READ));
    assert!(may(f, &who(0, 0, &[]), perm::READ | perm::WRITE) && !may(f, &who(0, 0, &[]), perm::EXEC));
    assert!(may(x, &who(0, 0, &[]), perm::EXEC) && may(d, &who(0, 0, &[]), 7));
    // The owner has what the owner's bits say, even if others have more.
    assert!(!may(x, &who(1, 2, &[]), perm::EXEC) && may(x, &who(5, 2, &[]), perm::EXEC));
    let none = u32::MAX;
    let named = acl(&[(1, 6, none), (2, 4, 50), (4, 0, none), (0x10, 6, none), (0x20, 0, none)]);
    set_xattr(&mut w, f, ACCESS, &named).unwrap();
    let mut may = |ino, c: &Cred, mask| w.read(|t| perm::may(t, ino, c, mask)).unwrap();
    assert!(may(f, &who(50, 9, &[]), perm::READ) && !may(f, &who(50, 9, &[]), perm::WRITE));
    // The group bits of the mode are the mask now: they give the group nothing.
    assert!(!may(f, &who(51, 2, &[]), perm::READ));
    // With an empty mask only owner, group and others count, as in the kernel's acl_permission_check.
    let masked = acl(&[(1, 6, none), (2, 4, 50), (4, 4, none), (0x10, 0, none), (0x20, 4, none)]);
    set_xattr(&mut w, f, ACCESS, &masked).unwrap();
    let mut may = |ino, c: &Cred, mask| w.read(|t| perm::may(t, ino, c, mask)).unwrap();
    assert!(may(f, &who(50, 9, &[]), perm::READ) && !may(f, &who(50, 9, &[]), perm::WRITE));
    assert!(!may(f, &who(51, 2, &[]), perm::READ));
}

/// Every item of a small world, damaged in every byte: an error or a value, but no panic and no hang.
#[test]
fn damaged_items_are_errors() {
    let mut w = world();
    let f = w.make(ROOT, b"f", REG).unwrap();
    let d = w.make(ROOT, b"d", DIR).unwrap();
    w.make(d, b"x", DIR).unwrap();
    w.write(f, 100, &[7; 9000]).unwrap();
    w.fallocate(f, FALLOC_KEEP_SIZE, 20_000, 5000).unwrap();
    set_xattr(&mut w, f, b"user.a", &[1; 2000]).unwrap();
    set_xattr(&mut w, f, EMBEDDING_XATTR, &1.0f32.to_le_bytes()).unwrap();
    w.run(&Op::Symlink { dir: ROOT, name: b"l".to_vec(), target: b"t".to_vec(), uid: 1, gid: 2 }).unwrap();
    let l = w.lookup(ROOT, b"l").unwrap();
    let items: Vec<(Key, Vec<u8>)> = w.items.map.iter().map(|(k, v)| (*k, v.clone())).collect();
    let ops: Vec<Op> = vec![
        Op::Lookup { dir: ROOT, name: b"f".to_vec() },
        Op::ReadDir { dir: ROOT, cookie: 0, max: 4096, attrs: true },
        Op::Read { ino: f, offset: 0, len: 100_000 },
        Op::Seek { ino: f, offset: 0, hole: true },
        Op::Seek { ino: f, offset: 9000, hole: false },
        Op::Extents { ino: f, offset: 0, len: u64::MAX, max: 10 },
        Op::GetXattr { ino: f, name: b"user.a".to_vec() },
        Op::GetXattr { ino: f, name: EMBEDDING_XATTR.to_vec() },
        Op::ListXattr { ino: f },
        Op::ReadLink { ino: l },
        Op::Parent { dir: d },
    ];
    let name = |n: &[u8]| n.to_vec();
    let changes: Vec<Op> = vec![
        Op::Write { ino: f, offset: 50, data: vec![1; 5000], kill_suid: false, times: None },
        Op::Fallocate { ino: f, mode: 3, offset: 10, len: 30_000 },
        Op::Fallocate { ino: f, mode: 0, offset: 10, len: 30_000 },
        Op::SetAttr { ino: f, set: SetAttr { size: Some(10), ..SetAttr::default() } },
        Op::SetAttr { ino: f, set: SetAttr { mode: Some(0), ..SetAttr::default() } },
        Op::Unlink { dir: ROOT, name: name(b"f") },
        Op::Unlink { dir: ROOT, name: name(b"l") },
        Op::Rmdir { dir: d, name: name(b"x") },
        Op::Rename { dir: ROOT, name: name(b"f"), new_dir: d, new_name: name(b"x"), flags: RENAME_EXCHANGE },
        Op::Rename { dir: d, name: name(b"x"), new_dir: ROOT, new_name: name(b"y"), flags: 0 },
        Op::Rename { dir: ROOT, name: name(b"l"), new_dir: ROOT, new_name: name(b"f"), flags: 0 },
        Op::SetXattr { ino: f, name: name(b"user.a"), value: vec![1; 10], flags: 0 },
        Op::RemoveXattr { ino: f, name: EMBEDDING_XATTR.to_vec() },
        Op::Make { dir: d, name: name(b"n"), mode: DIR, uid: 0, gid: 0, rdev: 0 },
        Op::Link { ino: f, dir: d, name: name(b"n") },
    ];
    let mut errors = 0;
    let mut try_all = |w: &mut World| {
        for op in &ops {
            errors += u32::from(w.run(op).is_err());
        }
        // Changes run on what is thrown away: the fake allocator would rightly protest at a damaged extent.
        for op in &changes {
            errors += u32::from(w.attempt(op).is_err());
        }
    };
    for (k, v) in &items {
        for n in 0..v.len().min(200) {
            for flip in [1, 0x80, 0xff] {
                let mut bad = v.clone();
                bad[n] ^= flip;
                w.items.map.insert(*k, bad);
                try_all(&mut w);
            }
        }
        for len in [0, 1, v.len() / 2, v.len() - 1, v.len() + 1] {
            let mut bad = v.clone();
            bad.resize(len, 0);
            w.items.map.insert(*k, bad);
            try_all(&mut w);
        }
        w.items.map.remove(k);
        try_all(&mut w);
        w.items.map.insert(*k, v.clone());
    }
    assert!(errors > 1000);
    w.check();
}
