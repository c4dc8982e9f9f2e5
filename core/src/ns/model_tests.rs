// SPDX-License-Identifier: GPL-2.0-only
//! Random operations against a naive model: every reply is compared, and from time to time everything.

use super::testing::{Rng, World};
use crate::error::Error;
use crate::format::{inode_flags, BLOCK};
use crate::op::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const DIR: u32 = 0o040_000;
const REG: u32 = 0o100_000;
const LNK: u32 = 0o120_000;
const B: u64 = BLOCK as u64;

#[derive(Clone, Default, Debug)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    data: Vec<u8>,
    /// Blocks held: true if written.
    map: BTreeMap<u64, bool>,
    kids: BTreeMap<Vec<u8>, u64>,
    parent: u64,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    embedding: Option<Vec<u32>>,
    stale: bool,
    atime: Time,
    mtime: Time,
    ctime: Time,
    opens: u32,
}

impl Node {
    fn is(&self, kind: u32) -> bool {
        self.mode & 0o170_000 == kind
    }
}

struct Model {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    now: Time,
}

type Res = Result<(), Error>;

fn name_error(name: &[u8]) -> Option<Error> {
    if name.len() > 255 {
        Some(Error::NameTooLong)
    } else if name.is_empty() || name == b".vexfs" {
        Some(Error::NotFound)
    } else if name == b"." || name == b".." || name.contains(&b'/') {
        Some(Error::Invalid)
    } else {
        None
    }
}

fn new_name_error(name: &[u8]) -> Option<Error> {
    if [&b".vexfs"[..], b".", b".."].contains(&name) {
        return Some(Error::Exists);
    }
    name_error(name)
}

fn fail_if(e: Option<Error>) -> Res {
    e.map_or(Ok(()), Err)
}

impl Model {
    fn new(now: Time) -> Model {
        let root =
            Node { mode: DIR | 0o755, nlink: 2, parent: 1, atime: now, mtime: now, ctime: now, ..Node::default() };
        Model { nodes: BTreeMap::from([(1, root)]), next: 2, now }
    }
    fn dir(&self, ino: u64) -> Result<&Node, Error> {
        let n = self.nodes.get(&ino).ok_or(Error::NotFound)?;
        if n.is(DIR) {
            Ok(n)
        } else {
            Err(Error::NotDirectory)
        }
    }
    fn n(&mut self, ino: u64) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }
    fn changed(&mut self, ino: u64) {
        let now = self.now;
        self.n(ino).ctime = now;
    }
    fn modified(&mut self, ino: u64) {
        let now = self.now;
        self.n(ino).mtime = now;
        self.changed(ino);
    }
    fn written(&mut self, ino: u64) {
        self.modified(ino);
        let n = self.n(ino);
        n.stale = n.embedding.is_some();
    }
    fn free_name(&self, dir: u64, name: &[u8]) -> Res {
        let d = self.dir(dir)?;
        if d.nlink == 0 {
            return Err(Error::NotFound);
        }
        fail_if(new_name_error(name))?;
        if d.kids.contains_key(name) {
            return Err(Error::Exists);
        }
        Ok(())
    }
    fn make(&mut self, dir: u64, name: &[u8], mode: u32, target: &[u8]) -> Res {
        self.free_name(dir, name)?;
        let now = self.now;
        let ino = self.next;
        self.n(dir).kids.insert(name.to_vec(), ino);
        let mut n = Node { mode, uid: 1, gid: 2, nlink: 1, target: target.to_vec(), ..Node::default() };
        let d = self.n(dir);
        if d.mode & 0o2000 != 0 {
            n.gid = d.gid;
            if n.is(DIR) {
                n.mode |= 0o2000;
            }
        }
        if n.is(DIR) {
            d.nlink += 1;
            n.nlink = 2;
            n.parent = dir;
        }
        (n.atime, n.mtime, n.ctime) = (now, now, now);
        self.modified(dir);
        self.nodes.insert(self.next, n);
        self.next += 1;
        Ok(())
    }
    fn link(&mut self, ino: u64, dir: u64, name: &[u8]) -> Res {
        if !self.nodes.contains_key(&ino) {
            return Err(Error::NotFound);
        }
        self.free_name(dir, name)?;
        let n = self.n(ino);
        if n.is(DIR) {
            return Err(Error::NotPermitted);
        }
        // Without a name it is there only because it is open: it gets one again.
        n.nlink += 1;
        self.changed(ino);
        self.n(dir).kids.insert(name.to_vec(), ino);
        self.modified(dir);
        Ok(())
    }
    fn need(&self, dir: u64, name: &[u8]) -> Result<u64, Error> {
        let d = self.dir(dir)?;
        fail_if(name_error(name))?;
        d.kids.get(name).copied().ok_or(Error::NotFound)
    }
    fn lose(&mut self, ino: u64) {
        self.changed(ino);
        let n = self.n(ino);
        n.nlink = if n.is(DIR) { 0 } else { n.nlink - 1 };
        if n.nlink == 0 && n.opens == 0 {
            self.nodes.remove(&ino);
        }
    }
    fn unlink(&mut self, dir: u64, name: &[u8]) -> Res {
        let ino = self.need(dir, name)?;
        if self.nodes[&ino].is(DIR) {
            return Err(Error::IsDirectory);
        }
        self.n(dir).kids.remove(name);
        self.modified(dir);
        self.lose(ino);
        Ok(())
    }
    fn rmdir(&mut self, dir: u64, name: &[u8]) -> Res {
        let ino = self.need(dir, name)?;
        if !self.nodes[&ino].is(DIR) {
            return Err(Error::NotDirectory);
        }
        if !self.nodes[&ino].kids.is_empty() {
            return Err(Error::NotEmpty);
        }
        self.n(dir).kids.remove(name);
        self.n(dir).nlink -= 1;
        self.modified(dir);
        self.lose(ino);
        Ok(())
    }
    fn inside(&self, ino: u64, mut dir: u64) -> bool {
        loop {
            if dir == ino {
                return true;
            }
            if dir == 1 {
                return false;
            }
            dir = self.nodes[&dir].parent;
        }
    }
    fn rename(&mut self, a: u64, an: &[u8], b: u64, bn: &[u8], flags: u32) -> Res {
        if flags > 2 {
            return Err(Error::Invalid);
        }
        self.dir(a)?;
        if self.dir(b)?.nlink == 0 {
            return Err(Error::NotFound);
        }
        let s = self.need(a, an)?;
        fail_if(if flags == 2 { name_error(bn) } else { new_name_error(bn) })?;
        let d = self.nodes[&b].kids.get(bn).copied();
        match (flags, d) {
            (1, Some(_)) => return Err(Error::Exists),
            (2, None) => return Err(Error::NotFound),
            _ => {}
        }
        if d == Some(s) {
            return Ok(());
        }
        let is_dir = |m: &Model, i: u64| m.nodes[&i].is(DIR);
        let s_dir = is_dir(self, s);
        if s_dir && a != b && self.inside(s, b) {
            return Err(Error::Invalid);
        }
        if flags == 2 {
            let d = d.unwrap();
            let d_dir = is_dir(self, d);
            if d_dir && a != b && self.inside(d, a) {
                return Err(Error::Invalid);
            }
            self.n(a).kids.insert(an.to_vec(), d);
            self.n(b).kids.insert(bn.to_vec(), s);
            self.n(a).nlink = self.nodes[&a].nlink + u32::from(d_dir) - u32::from(s_dir);
            self.n(b).nlink = self.nodes[&b].nlink + u32::from(s_dir) - u32::from(d_dir);
            if d_dir {
                self.n(d).parent = a;
            }
            self.changed(d);
        } else {
            if let Some(d) = d {
                match (s_dir, is_dir(self, d)) {
                    (true, false) => return Err(Error::NotDirectory),
                    (false, true) => return Err(Error::IsDirectory),
                    (true, true) if !self.nodes[&d].kids.is_empty() => return Err(Error::NotEmpty),
                    _ => {}
                }
                if is_dir(self, d) {
                    self.n(b).nlink -= 1;
                }
            }
            self.n(a).kids.remove(an);
            self.n(b).kids.insert(bn.to_vec(), s);
            self.n(b).nlink += u32::from(s_dir);
            self.n(a).nlink -= u32::from(s_dir);
            if let Some(d) = d {
                self.lose(d);
            }
        }
        if s_dir {
            self.n(s).parent = b;
        }
        self.changed(s);
        self.modified(a);
        self.modified(b);
        Ok(())
    }
    fn regular(&self, ino: u64) -> Res {
        let n = self.nodes.get(&ino).ok_or(Error::NotFound)?;
        if n.is(REG) {
            Ok(())
        } else if n.is(DIR) {
            Err(Error::IsDirectory)
        } else {
            Err(Error::Invalid)
        }
    }
    fn write(&mut self, ino: u64, offset: u64, data: &[u8], kill: bool) -> Res {
        self.regular(ino)?;
        if data.is_empty() {
            return Ok(());
        }
        let n = self.n(ino);
        let end = offset as usize + data.len();
        if n.data.len() < end {
            n.data.resize(end, 0);
        }
        n.data[offset as usize..end].copy_from_slice(data);
        for b in offset / B..(end as u64).div_ceil(B) {
            n.map.insert(b, true);
        }
        if kill {
            n.mode &= if n.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
        }
        self.written(ino);
        Ok(())
    }
    fn truncate(&mut self, ino: u64, size: u64) -> Res {
        self.regular(ino)?;
        let n = self.n(ino);
        let (old, stale) = (n.data.len() as u64, n.stale);
        n.data.resize(size as usize, 0);
        if size < old {
            n.map.retain(|b, _| *b < size.div_ceil(B));
        }
        self.written(ino);
        if size == old {
            self.n(ino).stale = stale;
        }
        Ok(())
    }
    fn fallocate(&mut self, ino: u64, mode: u32, offset: u64, len: u64) -> Res {
        let (cut, fill) = match mode {
            0 | 1 => (false, true),
            3 => (true, false),
            0x10 | 0x11 => (true, true),
            _ => return Err(Error::NotSupported),
        };
        if len == 0 {
            return Err(Error::Invalid);
        }
        self.regular(ino)?;
        let end = offset + len;
        let mut touched = cut;
        let n = self.n(ino);
        if cut {
            let size = n.data.len();
            n.data[(offset as usize).min(size)..(end as usize).min(size)].fill(0);
            n.map.retain(|b, _| *b < offset.div_ceil(B) || *b >= end / B);
        }
        if fill {
            for b in offset / B..end.div_ceil(B) {
                n.map.entry(b).or_insert(false);
            }
            if mode & 1 == 0 && end > n.data.len() as u64 {
                n.data.resize(end as usize, 0);
                touched = true;
            }
        }
        let stale = n.stale;
        self.written(ino);
        if !touched {
            self.n(ino).stale = stale;
        }
        Ok(())
    }
    fn set_attr(&mut self, ino: u64, set: &SetAttr) -> Res {
        let now = self.now;
        let n = self.nodes.get_mut(&ino).ok_or(Error::NotFound)?;
        if let Some(m) = set.mode {
            n.mode = n.mode & 0o170_000 | m & 0o7777;
        }
        n.uid = set.uid.unwrap_or(n.uid);
        n.gid = set.gid.unwrap_or(n.gid);
        n.atime = set.atime.unwrap_or(n.atime);
        n.mtime = set.mtime.unwrap_or(n.mtime);
        n.ctime = now;
        Ok(())
    }
    fn set_xattr(&mut self, ino: u64, name: &[u8], value: &[u8], flags: u32) -> Res {
        let now = self.now;
        let n = self.nodes.get_mut(&ino).ok_or(Error::NotFound)?;
        if !name.starts_with(b"user.") && !name.starts_with(b"trusted.") {
            return Err(Error::NotSupported);
        }
        if name.starts_with(b"user.") && !n.is(REG) && !n.is(DIR) {
            return Err(Error::NotPermitted);
        }
        if flags == 1 && n.xattrs.contains_key(name) {
            return Err(Error::Exists);
        }
        if flags == 2 && !n.xattrs.contains_key(name) {
            return Err(Error::NoAttribute);
        }
        n.xattrs.insert(name.to_vec(), value.to_vec());
        n.ctime = now;
        Ok(())
    }
    fn remove_xattr(&mut self, ino: u64, name: &[u8]) -> Res {
        let now = self.now;
        let n = self.nodes.get_mut(&ino).ok_or(Error::NotFound)?;
        if !name.starts_with(b"user.") && !name.starts_with(b"trusted.") {
            return Err(Error::NotSupported);
        }
        if name.starts_with(b"user.") && !n.is(REG) && !n.is(DIR) {
            return Err(Error::NotPermitted);
        }
        n.xattrs.remove(name).ok_or(Error::NoAttribute)?;
        n.ctime = now;
        Ok(())
    }
    fn embed(&mut self, ino: u64, words: &[u32]) -> Res {
        let now = self.now;
        let n = self.nodes.get_mut(&ino).ok_or(Error::NotFound)?;
        if n.is(DIR) {
            return Err(Error::NotSupported);
        }
        if !n.is(REG) {
            return Err(Error::NotPermitted);
        }
        n.embedding = Some(words.to_vec());
        n.stale = false;
        n.ctime = now;
        Ok(())
    }
    fn release(&mut self, ino: u64) {
        let n = self.n(ino);
        n.opens -= 1;
        if n.opens == 0 && n.nlink == 0 {
            self.nodes.remove(&ino);
        }
    }
}

/// Compares everything.
fn compare(w: &mut World, m: &Model, rng: &mut Rng) {
    w.run_trims();
    w.check();
    assert_eq!(w.items.info.next_ino, m.next);
    for (ino, n) in &m.nodes {
        let a = w.attr(*ino).unwrap();
        let size = match n.mode & 0o170_000 {
            DIR => n.kids.len(),
            LNK => n.target.len(),
            _ => n.data.len(),
        };
        assert_eq!((a.mode, a.nlink, a.uid, a.gid), (n.mode, n.nlink, n.uid, n.gid), "inode {ino}");
        assert_eq!((a.size, a.blocks), (size as u64, n.map.len() as u64), "inode {ino}");
        assert_eq!((a.atime, a.mtime, a.ctime), (n.atime, n.mtime, n.ctime), "inode {ino}");
        let flags = if n.embedding.is_some() { inode_flags::EMBEDDED } else { 0 }
            | if n.stale { inode_flags::STALE } else { 0 };
        assert_eq!(a.flags, flags);
        for (name, value) in &n.xattrs {
            assert_eq!(&w.bytes(&Op::GetXattr { ino: *ino, name: name.clone() }).unwrap(), value);
        }
        let list = w.bytes(&Op::ListXattr { ino: *ino }).unwrap();
        let mut names: Vec<&[u8]> = list.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort();
        let mut want: Vec<&[u8]> = n.xattrs.keys().map(|k| k.as_slice()).collect();
        if let Some(e) = &n.embedding {
            want.push(super::EMBEDDING_XATTR);
            let bytes: Vec<u8> = e.iter().flat_map(|w| w.to_le_bytes()).collect();
            let name = super::EMBEDDING_XATTR.to_vec();
            assert_eq!(w.bytes(&Op::GetXattr { ino: *ino, name }).unwrap(), bytes);
        }
        want.sort();
        assert_eq!(names, want);
        if n.is(DIR) {
            let mut got = w.list(*ino).unwrap();
            got.sort();
            let want: Vec<(Vec<u8>, u64)> = n.kids.iter().map(|(k, v)| (k.clone(), *v)).collect();
            assert_eq!(got, want);
            assert!(matches!(w.run(&Op::Parent { dir: *ino }).unwrap(), Reply::Ino(p) if p == n.parent));
            for (name, kid) in &n.kids {
                assert_eq!(w.lookup(*ino, name).unwrap(), *kid);
            }
        } else if n.is(LNK) {
            assert_eq!(w.bytes(&Op::ReadLink { ino: *ino }).unwrap(), n.target);
        } else if n.is(REG) {
            assert!(w.pread(*ino, 0, n.data.len() + 10).unwrap() == n.data, "contents of {ino}");
            let at = rng.below(n.data.len() as u64 + 2);
            let len = rng.below(9000) as usize;
            let end = (at as usize + len).min(n.data.len());
            let want = n.data.get(at as usize..end).unwrap_or(&[]);
            assert!(w.pread(*ino, at, len).unwrap() == want);
            compare_holes(w, *ino, n, at);
        }
    }
}

fn compare_holes(w: &mut World, ino: u64, n: &Node, at: u64) {
    let size = n.data.len() as u64;
    for hole in [false, true] {
        let find = |at: u64| -> Result<u64, Error> {
            if at >= size {
                return Err(Error::NoSuchOffset);
            }
            let mut b = at / B;
            while b * B < size {
                if n.map.get(&b).copied().unwrap_or(false) != hole {
                    return Ok(at.max(b * B));
                }
                b += 1;
            }
            if hole {
                Ok(size)
            } else {
                Err(Error::NoSuchOffset)
            }
        };
        assert_eq!(w.seek(ino, at, hole), find(at), "seek {at} of {ino}");
        assert_eq!(w.seek(ino, 0, hole), find(0));
    }
    let Reply::Extents(v) = w.run(&Op::Extents { ino, offset: 0, len: 1 << 50, max: 100_000 }).unwrap() else {
        panic!()
    };
    let mut map = BTreeMap::new();
    for e in v {
        for b in 0..e.len / B {
            map.insert(e.logical / B + b, !e.unwritten);
        }
    }
    assert_eq!(map, n.map, "extents of {ino}");
}

fn bytes(rng: &mut Rng, len: u64) -> Vec<u8> {
    let seed = rng.next();
    (0..len).map(|i| (seed.wrapping_mul(i | 1) >> 56) as u8 | 1).collect()
}

fn one(w: &mut World, m: &mut Model, rng: &mut Rng) {
    let long = [b'n'; 255];
    let too_long = [b'n'; 256];
    let name = |rng: &mut Rng| -> Vec<u8> {
        match rng.below(40) {
            0 => long.to_vec(),
            1 => rng.pick(&[&b".vexfs"[..], b"", b".", b"..", b"x/y", &too_long]).to_vec(),
            2..=4 => vec![b'r', b'0' + rng.below(40) as u8],
            _ => vec![b'a' + rng.below(6) as u8],
        }
    };
    let inos: Vec<u64> = m.nodes.keys().copied().collect();
    let pick = |rng: &mut Rng, m: &Model, kind: u32| -> u64 {
        let some: Vec<u64> = m.nodes.iter().filter(|(_, n)| n.is(kind)).map(|(i, _)| *i).collect();
        // Now and then the wrong kind, or one that is not there.
        match rng.below(25) {
            0 => rng.pick(&inos),
            1 => rng.below(m.next + 3) + 1,
            _ if some.is_empty() => 1,
            _ => rng.pick(&some),
        }
    };
    w.now = Time { sec: w.now.sec + rng.below(3) as i64, nsec: rng.below(1_000_000_000) as u32 };
    m.now = w.now;
    w.auto_trim = !rng.chance(6);
    if rng.chance(20) {
        w.checkpoint();
    }
    let dir = pick(rng, m, DIR);
    let file = pick(rng, m, REG);
    let n = name(rng);
    let (op, want) = match rng.below(100) {
        0..=15 => {
            let kind = rng.pick(&[REG, REG, REG, DIR, DIR, 0o010_000, 0o140_000]);
            let mode = kind | rng.pick(&[0o644, 0o755, 0o2775, 0o4755, 0o600]);
            let want = m.make(dir, &n, mode, b"");
            (Op::Make { dir, name: n, mode, uid: 1, gid: 2, rdev: 0 }, want)
        }
        16..=17 => {
            let most = if rng.chance(4) { 4095 } else { 40 };
            let target = vec![b't'; 1 + rng.below(most) as usize];
            let want = m.make(dir, &n, LNK | 0o777, &target);
            (Op::Symlink { dir, name: n, target, uid: 1, gid: 2 }, want)
        }
        18..=21 => {
            let want = m.link(file, dir, &n);
            (Op::Link { ino: file, dir, name: n }, want)
        }
        22..=28 => {
            let want = m.unlink(dir, &n);
            (Op::Unlink { dir, name: n }, want)
        }
        29..=31 => {
            let want = m.rmdir(dir, &n);
            (Op::Rmdir { dir, name: n }, want)
        }
        32..=47 => {
            let new_dir = if rng.chance(3) { dir } else { pick(rng, m, DIR) };
            let new_name = name(rng);
            let flags = rng.pick(&[0, 0, 0, 0, 1, 2, 2, 3, 8]);
            let want = m.rename(dir, &n, new_dir, &new_name, flags);
            (Op::Rename { dir, name: n, new_dir, new_name, flags }, want)
        }
        48..=67 => {
            let size = m.nodes.get(&file).map_or(0, |n| n.data.len() as u64);
            let offset = match rng.below(4) {
                0 => size,
                1 => rng.below(size + 1),
                2 => rng.below(200) * B,
                _ => rng.below(200_000),
            };
            let len = match rng.below(30) {
                0 => 1_000_000 + rng.below(1_700_000),
                1..=5 => rng.below(100_000),
                6..=10 => (1 + rng.below(5)) * B,
                _ => rng.below(6000),
            };
            let offset = offset.min(3_000_000);
            let data = bytes(rng, len);
            let kill_suid = rng.chance(2);
            let want = m.write(file, offset, &data, kill_suid);
            (Op::Write { ino: file, offset, data, kill_suid, times: None }, want)
        }
        68..=75 => {
            let size = m.nodes.get(&file).map_or(0, |n| n.data.len() as u64);
            let to = match rng.below(5) {
                0 => 0,
                1 => size,
                2 => rng.below(100) * B,
                _ => rng.below(size * 3 / 2 + 2).min(4_000_000),
            };
            let want = m.truncate(file, to);
            (Op::SetAttr { ino: file, set: SetAttr { size: Some(to), ..SetAttr::default() } }, want)
        }
        76..=83 => {
            let mode = rng.pick(&[0, 1, 3, 3, 0x10, 0x11, 2, 0x20]);
            let offset = if rng.chance(2) { rng.below(100) * B } else { rng.below(400_000) };
            let len = match rng.below(10) {
                0 => 0,
                1 => 1 + rng.below(2_000_000),
                2..=4 => (1 + rng.below(20)) * B,
                _ => 1 + rng.below(50_000),
            };
            let want = m.fallocate(file, mode, offset, len);
            (Op::Fallocate { ino: file, mode, offset, len }, want)
        }
        84..=87 => {
            let ino = pick(rng, m, DIR);
            let set = match rng.below(4) {
                0 => SetAttr { mode: Some(rng.pick(&[0o2755, 0o700, 0o6777])), ..SetAttr::default() },
                1 => SetAttr { uid: Some(5), gid: Some(rng.below(9) as u32), ..SetAttr::default() },
                2 => SetAttr { mtime: Some(Time { sec: -5, nsec: 999_999_999 }), ..SetAttr::default() },
                _ => SetAttr { atime: Some(Time { sec: i64::MAX, nsec: 0 }), ..SetAttr::default() },
            };
            let want = m.set_attr(ino, &set);
            (Op::SetAttr { ino, set }, want)
        }
        88..=92 => {
            let ino = rng.pick(&inos);
            let name = rng.pick(&[&b"user.a"[..], b"user.b", b"trusted.c", b"user.long", b"bad.x"]).to_vec();
            if rng.chance(4) {
                let want = m.remove_xattr(ino, &name);
                (Op::RemoveXattr { ino, name }, want)
            } else {
                let len = rng.pick(&[0, 3, 900, 992, 1000, 3000, 20_000]) + rng.below(30);
                let value = bytes(rng, len);
                let flags = rng.pick(&[0, 0, 1, 2]);
                let want = m.set_xattr(ino, &name, &value, flags);
                (Op::SetXattr { ino, name, value, flags }, want)
            }
        }
        93..=94 => {
            let words: Vec<u32> = (0..1 + rng.below(600)).map(|i| (i as f32 + 1.5).to_bits()).collect();
            let value = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let want = m.embed(file, &words);
            (Op::SetXattr { ino: file, name: super::EMBEDDING_XATTR.to_vec(), value, flags: 0 }, want)
        }
        95..=97 => {
            let ino = rng.pick(&inos);
            m.n(ino).opens += 1;
            (Op::Open { ino }, Ok(()))
        }
        _ => {
            let Some(ino) = m.nodes.iter().find(|(_, n)| n.opens > 0).map(|(i, _)| *i) else { return };
            m.release(ino);
            (Op::Release { ino }, Ok(()))
        }
    };
    let got = w.run(&op);
    assert_eq!(got.as_ref().map(|_| ()).map_err(|e| *e), want, "{:.200}", std::format!("{op:?}"));
    if let (Op::Write { data, .. }, Ok(Reply::Written(n))) = (&op, &got) {
        assert_eq!(*n, data.len());
    }
}

/// Runs a history and returns the world as it is at the end.
fn history(seed: u64, ops: usize, one_in: u64) -> World {
    let mut rng = Rng(seed);
    let mut w = World::new(16_384, seed, one_in);
    w.run_max = rng.pick(&[1, 3, 20, 1 << 20]);
    w.ignore_place = rng.chance(4);
    let mut m = Model::new(w.now);
    for i in 0..ops {
        one(&mut w, &mut m, &mut rng);
        if i % 40 == 0 || rng.chance(60) {
            compare(&mut w, &m, &mut rng);
        }
    }
    compare(&mut w, &m, &mut rng);
    // Everything goes: nothing may stay behind.
    let open: Vec<(u64, u32)> = m.nodes.iter().map(|(i, n)| (*i, n.opens)).collect();
    for (ino, n) in open {
        for _ in 0..n {
            w.run(&Op::Release { ino }).unwrap();
        }
    }
    w
}

fn remove_all(w: &mut World) {
    let mut dirs = vec![(ROOT, 0, Vec::new())];
    let mut at = 0;
    while at < dirs.len() {
        let dir = dirs[at].0;
        for (name, ino) in w.list(dir).unwrap() {
            if w.attr(ino).unwrap().mode & 0o170_000 == DIR {
                dirs.push((ino, dir, name));
            } else {
                w.unlink(dir, &name).unwrap();
            }
        }
        at += 1;
    }
    for (_, dir, name) in dirs.into_iter().skip(1).rev() {
        w.run(&Op::Rmdir { dir, name }).unwrap();
    }
    w.run_trims();
    w.check();
    assert_eq!(w.used(), 0);
    let left: Vec<_> = w.items.map.keys().filter(|k| k.object != ROOT).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn agrees_with_the_model() {
    for seed in 0..8 {
        let mut w = history(seed, 1200, 0);
        remove_all(&mut w);
    }
}

#[test]
fn misses_change_nothing() {
    for seed in 100..104 {
        let calm = history(seed, 500, 0);
        let missing = history(seed, 500, 7);
        assert!(missing.steps > calm.steps * 5 / 4, "{} {}", missing.steps, calm.steps);
        assert!(calm.items.map == missing.items.map, "seed {seed}: other items after reruns");
    }
}
