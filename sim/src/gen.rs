// SPDX-License-Identifier: GPL-2.0-only
//! Draws operations that make sense in the state that the model is in, and now and then some that do not.

use crate::act::{Act, VecAct, KINDS};
use crate::model::{Body, State, EMBEDDING_XATTR, S_IFDIR, S_IFREG};
use crate::rng::Rng;
use crate::swarm::Config;
use crate::vectors::{Attrs, Cmp, Filter, Val};
use std::rc::Rc;
use vexfs_core::op::{self, Ino, SetAttr, Time};
use vexfs_core::proto::wire;

/// Index kinds of collections.
const INDEXES: [u32; 5] = [wire::index::FLAT, wire::index::HNSW, wire::index::IVF, wire::index::PQ, wire::index::LSH];

/// Draws one operation. `None`: the kind that was drawn makes no sense now.
pub fn draw(s: &State, cfg: &Config, r: &mut Rng) -> Option<Act> {
    let kind = KINDS[r.weighted(&cfg.weights)];
    let g = Gen { s, cfg };
    if let Some(v) = kind.strip_prefix("v-") {
        return g.vector(v, r);
    }
    g.file(kind, r)
}

struct Gen<'a> {
    s: &'a State,
    cfg: &'a Config,
}

impl Gen<'_> {
    fn dirs(&self) -> Vec<Ino> {
        self.s.nodes.iter().filter(|(_, n)| n.is_dir() && n.nlink > 0).map(|(i, _)| *i).collect()
    }

    fn files(&self) -> Vec<Ino> {
        self.s.nodes.iter().filter(|(_, n)| n.content().is_some()).map(|(i, _)| *i).collect()
    }

    fn one(v: &[Ino], r: &mut Rng) -> Option<Ino> {
        if v.is_empty() {
            return None;
        }
        Some(*r.pick(v))
    }

    fn any(&self, r: &mut Rng) -> Ino {
        if r.chance(1, 60) {
            return 1 << 40;
        }
        let all: Vec<Ino> = self.s.nodes.keys().copied().collect();
        *r.pick(&all)
    }

    /// A file most of the time, else anything.
    fn a_file(&self, r: &mut Rng) -> Option<Ino> {
        if r.chance(1, 30) {
            return Some(self.any(r));
        }
        Gen::one(&self.files(), r)
    }

    fn name(r: &mut Rng) -> Vec<u8> {
        match r.below(40) {
            0 => vec![b'x'; 255],
            1 => {
                let n = r.range(100, 254) as usize;
                vec![b'y'; n]
            }
            2 => vec![0xff, 0xfe, b'\n', b' '],
            3 => "ünïcödé".as_bytes().to_vec(),
            4 if r.chance(1, 4) => vec![b'z'; 256],
            _ => format!("n{}", r.below(24)).into_bytes(),
        }
    }

    /// A name that exists (most of the time) and its directory.
    fn old(&self, r: &mut Rng, want: impl Fn(&Body) -> bool) -> Option<(Ino, Vec<u8>)> {
        let dirs = self.dirs();
        if r.chance(1, 25) {
            let d = if r.chance(1, 4) { self.any(r) } else { Gen::one(&dirs, r)? };
            return Some((d, Gen::name(r)));
        }
        let mut all = Vec::new();
        for d in dirs {
            for (name, ino) in self.s.node(d)?.entries()? {
                if self.s.node(*ino).is_some_and(|n| want(&n.body)) {
                    all.push((d, name.clone()));
                }
            }
        }
        if all.is_empty() {
            return None;
        }
        Some(r.pick(&all).clone())
    }

    fn unused(&self, r: &mut Rng) -> Option<(Ino, Vec<u8>)> {
        let d = if r.chance(1, 40) { self.any(r) } else { Gen::one(&self.dirs(), r)? };
        // A free name if one is found quickly.
        for _ in 0..3 {
            let n = Gen::name(r);
            if self.s.entry(d, &n).is_none() {
                return Some((d, n));
            }
        }
        Some((d, Gen::name(r)))
    }

    fn offset(&self, ino: Ino, r: &mut Rng) -> u64 {
        let size = self.s.node(ino).map_or(0, |n| n.size());
        match r.below(10) {
            0 => 0,
            1..=3 => r.below(size + 1),
            4 | 5 => size,
            6 => r.below(64) * 4096,
            7 => r.below(64 * 4096),
            8 => size / 4096 * 4096,
            _ if r.chance(1, 8) => r.below(1 << 40),
            _ => r.below(1 << 20),
        }
    }

    fn time(r: &mut Rng) -> Time {
        match r.below(4) {
            0 => Time { sec: -(r.below(1 << 35) as i64), nsec: r.below(1_000_000_000) as u32 },
            1 => Time { sec: r.below(1 << 35) as i64, nsec: 999_999_999 },
            _ => Time { sec: r.below(2_000_000_000) as i64, nsec: r.below(1_000_000_000) as u32 },
        }
    }

    fn data(&self, r: &mut Rng) -> Vec<u8> {
        let n = match r.below(12) {
            0 => 0,
            1..=4 => r.range(1, 300),
            5..=7 => r.range(1, 3) * 4096,
            8 | 9 => r.range(1, 20_000),
            10 => r.range(1, 70_000),
            _ if self.cfg.big => r.range(1, 400_000),
            _ => r.range(1, 130_000),
        };
        if r.chance(1, 12) {
            return vec![0; n as usize];
        }
        r.bytes(n as usize)
    }

    fn file(&self, kind: &str, r: &mut Rng) -> Option<Act> {
        let ids = |r: &mut Rng| (r.below(4) as u32 * 500, r.below(4) as u32 * 300);
        let full = self.s.nodes.len() >= self.cfg.inodes;
        Some(match kind {
            "lookup" => {
                let (dir, name) = self.old(r, |_| true)?;
                Act::Lookup { dir, name }
            }
            "getattr" => Act::GetAttr { ino: self.any(r) },
            "byhandle" => {
                let ino = self.any(r);
                let known = self.s.node(ino).map_or(1, |n| n.generation);
                Act::ByHandle { ino, generation: if r.chance(1, 6) { known + 1 } else { known } }
            }
            "readlink" => {
                let links: Vec<Ino> =
                    self.s.nodes.iter().filter(|(_, n)| matches!(n.body, Body::Link(_))).map(|(i, _)| *i).collect();
                let ino = if r.chance(1, 20) { self.any(r) } else { Gen::one(&links, r)? };
                Act::ReadLink { ino }
            }
            "readdir" => Act::ReadDir {
                dir: Gen::one(&self.dirs(), r)?,
                max: *r.pick(&[200, 4096, 1 << 20]),
                attrs: r.chance(1, 2),
            },
            "parent" => Act::Parent { dir: Gen::one(&self.dirs(), r)? },
            "read" => {
                let ino = self.a_file(r)?;
                Act::Read { ino, offset: self.offset(ino, r), len: r.below(100_000) as usize }
            }
            "seek" => {
                let ino = self.a_file(r)?;
                Act::Seek { ino, offset: self.offset(ino, r), hole: r.chance(1, 2) }
            }
            "extents" => {
                let ino = self.a_file(r)?;
                Act::Extents { ino, offset: 0, len: 1 << 50 }
            }
            "getxattr" | "removexattr" => {
                let ino = self.any(r);
                let there: Vec<Vec<u8>> =
                    self.s.node(ino).map(|n| n.xattrs.keys().cloned().collect()).unwrap_or_default();
                let name =
                    if there.is_empty() || r.chance(1, 8) { self.xattr(ino, r)? } else { r.pick(&there).clone() };
                if kind == "getxattr" {
                    Act::GetXattr { ino, name }
                } else {
                    Act::RemoveXattr { ino, name }
                }
            }
            "listxattr" => Act::ListXattr { ino: self.any(r) },
            "statfs" => Act::StatFs,
            "create" | "mkdir" | "mknod" => {
                if full {
                    return None;
                }
                let (dir, name) = self.unused(r)?;
                let bits = match r.below(8) {
                    0 => 0o4755,
                    1 => 0o2770,
                    _ => r.below(0o1000) as u32,
                };
                let (uid, gid) = ids(r);
                let (ty, rdev) = match kind {
                    "create" => (S_IFREG, 0),
                    "mkdir" => (S_IFDIR, 0),
                    _ => *r.pick(&[(0o010_000, 0), (0o140_000, 0), (0o020_000, 0x103), (0o060_000, 0x0800_0001)]),
                };
                Act::Make { dir, name, mode: ty | bits, uid, gid, rdev }
            }
            "symlink" => {
                if full {
                    return None;
                }
                let (dir, name) = self.unused(r)?;
                let (uid, gid) = ids(r);
                let n = *r.pick(&[1, 20, 900, 1500, 4000]);
                Act::Symlink { dir, name, target: vec![b't'; n], uid, gid }
            }
            "tmpfile" => {
                if full {
                    return None;
                }
                let (uid, gid) = ids(r);
                let dir = if r.chance(1, 20) { self.any(r) } else { Gen::one(&self.dirs(), r)? };
                Act::Tmpfile { dir, mode: S_IFREG | r.below(0o1000) as u32, uid, gid }
            }
            "link" => {
                let (dir, name) = self.unused(r)?;
                // Those without a name get one more often than others get another.
                let nameless: Vec<Ino> = self.files().into_iter().filter(|i| self.s.nodes[i].nlink == 0).collect();
                let ino = match r.below(20) {
                    0 => self.any(r),
                    1..=8 if !nameless.is_empty() => *r.pick(&nameless),
                    _ => self.a_file(r)?,
                };
                Act::Link { ino, dir, name }
            }
            "unlink" => {
                let odd = r.chance(1, 20);
                let (dir, name) = self.old(r, |b| odd || !matches!(b, Body::Dir { .. }))?;
                Act::Unlink { dir, name }
            }
            "rmdir" => {
                let odd = r.chance(1, 20);
                let (dir, name) = self.old(r, |b| match b {
                    Body::Dir { entries, .. } => entries.is_empty() || odd,
                    _ => odd,
                })?;
                Act::Rmdir { dir, name }
            }
            "rename" | "rename-noreplace" | "rename-exchange" | "rename-whiteout" => {
                let (dir, name) = self.old(r, |_| true)?;
                let flags = match kind {
                    "rename" => 0,
                    "rename-noreplace" => op::RENAME_NOREPLACE,
                    "rename-whiteout" => op::RENAME_WHITEOUT,
                    _ => op::RENAME_EXCHANGE,
                };
                let exists = flags == op::RENAME_EXCHANGE || r.chance(1, 2);
                let (new_dir, new_name) = if exists { self.old(r, |_| true)? } else { self.unused(r)? };
                Act::Rename { dir, name, new_dir, new_name, flags }
            }
            "setattr" => {
                let mut set = SetAttr { kill_suid: r.chance(1, 4), ..SetAttr::default() };
                if r.chance(1, 2) {
                    set.mode = Some(r.below(0o10000) as u32);
                    set.kill_suid = false;
                }
                if r.chance(1, 3) {
                    (set.uid, set.gid) = (Some(r.below(3000) as u32), Some(r.below(3000) as u32));
                }
                if r.chance(1, 3) {
                    (set.atime, set.mtime) = (Some(Gen::time(r)), Some(Gen::time(r)));
                }
                if r.chance(1, 6) {
                    (set.btime, set.ctime) = (Some(Gen::time(r)), Some(Gen::time(r)));
                }
                Act::SetAttr { ino: self.any(r), set }
            }
            "truncate" => {
                let ino = self.a_file(r)?;
                let size = self.offset(ino, r);
                let mut set = SetAttr { size: Some(size), ..SetAttr::default() };
                if r.chance(1, 5) {
                    set.mtime = Some(Gen::time(r));
                }
                Act::SetAttr { ino, set }
            }
            "setxattr" => {
                let ino = self.any(r);
                if r.chance(1, 6) && self.s.node(ino).is_some_and(|n| n.content().is_some()) {
                    let v = self.embedding(ino, r);
                    let value = v.iter().flat_map(|w| w.to_le_bytes()).collect();
                    return Some(Act::SetXattr { ino, name: EMBEDDING_XATTR.to_vec(), value, flags: 0 });
                }
                let name = self.xattr(ino, r)?;
                let value = if name == b"user.n" {
                    format!("{}", r.below(40) as i64 - 20).into_bytes()
                } else if name == b"user.s" {
                    (*r.pick(&["a", "b", "c", "true"])).into()
                } else {
                    let n = *r.pick(&[0, 1, 10, 100, 950, 1100, 3000]);
                    r.bytes(n)
                };
                let flags = *r.pick(&[0, 0, 0, op::XATTR_CREATE, op::XATTR_REPLACE]);
                Act::SetXattr { ino, name, value, flags }
            }
            "write" => {
                let ino = self.a_file(r)?;
                Act::Write { ino, offset: self.offset(ino, r), data: Rc::new(self.data(r)), kill: r.chance(1, 3) }
            }
            "fallocate" | "punch" | "zero-range" => {
                let ino = self.a_file(r)?;
                let mode = match kind {
                    "punch" => op::FALLOC_PUNCH_HOLE | op::FALLOC_KEEP_SIZE,
                    "zero-range" => *r.pick(&[op::FALLOC_ZERO_RANGE, op::FALLOC_ZERO_RANGE | op::FALLOC_KEEP_SIZE]),
                    _ => *r.pick(&[0, op::FALLOC_KEEP_SIZE]),
                };
                let len = match r.below(4) {
                    0 => r.range(1, 4096),
                    1 => r.range(1, 10) * 4096,
                    2 if self.cfg.big && kind == "fallocate" => r.range(1, 12 << 20),
                    _ => r.range(1, 100_000),
                };
                let mut offset = self.offset(ino, r);
                if kind == "fallocate" {
                    offset = offset.min(1 << 22);
                }
                Act::Fallocate { ino, mode, offset, len }
            }
            "open" => Act::Open { ino: Gen::one(&self.files(), r)? },
            "release" => {
                let open: Vec<Ino> = self.s.nodes.iter().filter(|(_, n)| n.opens > 0).map(|(i, _)| *i).collect();
                Act::Release { ino: Gen::one(&open, r)? }
            }
            "sync" => Act::Sync,
            "checkpoint" => Act::Checkpoint,
            "discard" => Act::Discard,
            _ => return None,
        })
    }

    fn xattr(&self, ino: Ino, r: &mut Rng) -> Option<Vec<u8>> {
        let n = self.s.node(ino)?;
        let user = n.content().is_some() || n.is_dir();
        let all: &[&str] = if user {
            &["user.n", "user.s", "user.a", "user.b", "trusted.t", "security.x", "user.c"]
        } else {
            &["trusted.t", "security.x", "trusted.u"]
        };
        Some(r.pick(all).as_bytes().to_vec())
    }

    fn vec_of(dim: usize, r: &mut Rng) -> Vec<u32> {
        match r.below(40) {
            0 => vec![0; dim],
            1 if r.chance(1, 3) => vec![f32::NAN.to_bits(); dim],
            // Small whole numbers make exact ties.
            2..=25 => (0..dim).map(|_| (r.below(9) as f32 - 4.0).to_bits()).collect(),
            _ => (0..dim).map(|_| ((r.below(1 << 24) as f32) / (1 << 20) as f32 - 8.0).to_bits()).collect(),
        }
    }

    /// An embedding for a file: of the dimension of a collection that it is in, most of the time.
    fn embedding(&self, ino: Ino, r: &mut Rng) -> Vec<u32> {
        let mut dims: Vec<usize> = Vec::new();
        for n in self.s.nodes.values() {
            if let (Some(e), Some(c)) = (n.entries(), &n.coll) {
                if e.values().any(|i| *i == ino) {
                    dims.push(c.dim as usize);
                }
            }
        }
        let dim = if dims.is_empty() || r.chance(1, 8) { r.range(2, 16) as usize } else { *r.pick(&dims) };
        Gen::vec_of(dim, r)
    }

    fn attrs(r: &mut Rng, removals: bool) -> Attrs {
        let mut a = Attrs::new();
        if r.chance(2, 3) {
            a.insert("n".into(), Val::I64(r.below(40) as i64 - 20));
        }
        if r.chance(1, 2) {
            a.insert("f".into(), Val::F64(r.below(80) as f64 / 4.0 - 10.0));
        }
        if r.chance(1, 2) {
            a.insert("s".into(), Val::Str((*r.pick(&["a", "b", "c"])).into()));
        }
        if r.chance(1, 3) {
            a.insert("t".into(), Val::Bool(r.chance(1, 2)));
        }
        if r.chance(1, 20) {
            let n = r.range(500, 4000) as usize;
            a.insert("long".into(), Val::Str("l".repeat(n)));
        }
        if removals && r.chance(1, 3) {
            a.insert("n".into(), Val::None);
        }
        a
    }

    fn value(r: &mut Rng) -> Val {
        match r.below(4) {
            0 => Val::I64(r.below(40) as i64 - 20),
            1 => Val::F64(r.below(80) as f64 / 4.0 - 10.0),
            2 => Val::Str((*r.pick(&["a", "b", "c"])).into()),
            _ => Val::Bool(r.chance(1, 2)),
        }
    }

    fn filter(r: &mut Rng, depth: u32) -> Filter {
        let name = |r: &mut Rng| (*r.pick(&["n", "f", "s", "t", "n"])).to_string();
        match r.below(if depth == 0 { 6 } else { 9 }) {
            0..=3 => {
                let c = *r.pick(&[Cmp::Eq, Cmp::Ne, Cmp::Lt, Cmp::Le, Cmp::Gt, Cmp::Ge]);
                let n = name(r);
                let v = match n.as_str() {
                    "n" | "f" if r.chance(3, 4) => {
                        if r.chance(1, 2) {
                            Val::I64(r.below(40) as i64 - 20)
                        } else {
                            Val::F64(r.below(80) as f64 / 4.0 - 10.0)
                        }
                    }
                    _ => Gen::value(r),
                };
                // Order has no meaning for truth values: the language refuses it.
                let c = if matches!(v, Val::Bool(_)) && c != Cmp::Ne { Cmp::Eq } else { c };
                Filter::Test(n, c, v)
            }
            4 => Filter::In(name(r), (0..r.range(1, 5)).map(|_| Gen::value(r)).collect()),
            5 => Filter::Exists(name(r)),
            6 => Filter::Not(Box::new(Gen::filter(r, depth - 1))),
            7 => Filter::And(Box::new(Gen::filter(r, depth - 1)), Box::new(Gen::filter(r, depth - 1))),
            _ => Filter::Or(Box::new(Gen::filter(r, depth - 1)), Box::new(Gen::filter(r, depth - 1))),
        }
    }

    fn vector(&self, kind: &str, r: &mut Rng) -> Option<Act> {
        let colls: Vec<Ino> =
            self.s.nodes.iter().filter(|(_, n)| n.coll.is_some() && n.nlink > 0).map(|(i, _)| *i).collect();
        if kind == "create" {
            if colls.len() >= 5 && !r.chance(1, 10) {
                return None;
            }
            let index = *r.pick(&INDEXES);
            let hnsw = index == wire::index::HNSW;
            let req = VecAct::Create {
                dim: r.range(2, 16) as u32,
                metric: r.range(1, 3) as u32,
                index,
                m: if hnsw { *r.pick(&[0, 4, 16]) } else { 0 },
                ef_construction: if hnsw { *r.pick(&[0, 40]) } else { 0 },
                seed: r.u64(),
                model: (*r.pick(&["", "test-model"])).into(),
            };
            return Some(Act::Vec { dir: Gen::one(&self.dirs(), r)?, req, durable: r.chance(1, 6) });
        }
        let dir = if r.chance(1, 40) { Gen::one(&self.dirs(), r)? } else { Gen::one(&colls, r)? };
        let coll = self.s.node(dir)?.coll.as_ref();
        let dim = if r.chance(1, 40) { 3 } else { coll.map_or(4, |c| c.dim as usize) };
        let mut durable = r.chance(1, 6);
        let some_ids = |r: &mut Rng| -> Vec<u64> {
            let there: Vec<u64> = coll.map(|c| c.records.keys().copied().collect()).unwrap_or_default();
            let mut ids: Vec<u64> = Vec::new();
            for _ in 0..r.range(1, 8) {
                let id = if there.is_empty() || r.chance(1, 8) { r.below(300) } else { *r.pick(&there) };
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            ids
        };
        let children = |r: &mut Rng| -> Option<(Vec<u8>, Ino)> {
            let e: Vec<(Vec<u8>, Ino)> = self
                .s
                .node(dir)?
                .entries()?
                .iter()
                .filter(|(_, i)| self.s.node(**i).is_some_and(|n| n.content().is_some()))
                .map(|(n, i)| (n.clone(), *i))
                .collect();
            if e.is_empty() {
                return None;
            }
            Some(r.pick(&e).clone())
        };
        let req = match kind {
            "info" => VecAct::Info,
            "drop" => VecAct::Drop,
            "reindex" => VecAct::Reindex { index: *r.pick(&INDEXES) },
            "insert" | "insert-durable" => {
                durable = kind == "insert-durable";
                let n = match r.below(4) {
                    0 => 1,
                    1 => r.range(1, 60),
                    _ => r.range(1, 10),
                } as usize;
                // Some put the same few records again and again: each takes the place of the one before.
                let again = r.chance(1, 8);
                let n = if again { n * 4 } else { n };
                let ids = if !again && r.chance(1, 4) {
                    None
                } else {
                    let mut ids: Vec<u64> = Vec::new();
                    while ids.len() < n {
                        let id = match again {
                            true => r.below(3),
                            false if r.chance(1, 30) => r.below(1 << 63),
                            false => r.below(300),
                        };
                        if again || !ids.contains(&id) {
                            ids.push(id);
                        }
                    }
                    Some(ids)
                };
                let vectors = (0..n).map(|_| Rc::new(Gen::vec_of(dim, r))).collect();
                let attrs = r.chance(1, 2).then(|| (0..n).map(|_| Gen::attrs(r, false)).collect());
                VecAct::Insert { if_absent: !again && ids.is_some() && r.chance(1, 6), ids, vectors, attrs }
            }
            "get" => VecAct::Get { ids: some_ids(r) },
            "delete" => {
                let mut ids = some_ids(r);
                if r.chance(1, 10) {
                    if let Some((_, ino)) = children(r) {
                        ids.push(wire::FILE_ID_BASE + ino);
                    }
                }
                VecAct::Delete { ids }
            }
            "delete-where" => VecAct::DeleteWhere { filter: Gen::filter(r, 2) },
            "update" => {
                let ids = some_ids(r);
                let replace = r.chance(1, 2);
                VecAct::Update { attrs: ids.iter().map(|_| Gen::attrs(r, !replace)).collect(), ids, replace }
            }
            "search" => VecAct::Search {
                queries: (0..r.range(1, 3)).map(|_| Rc::new(Gen::vec_of(dim, r))).collect(),
                k: *r.pick(&[1, 3, 10, 100]),
                filter: r.chance(1, 2).then(|| Gen::filter(r, 2)),
                radius: r.chance(1, 5).then(|| (r.below(200) as f64 / 2.0 - 10.0).to_bits()),
                exact: r.chance(1, 6),
                ef: *r.pick(&[0, 1, 10, 100, 1000]),
            },
            "list" => VecAct::List { filter: r.chance(1, 2).then(|| Gen::filter(r, 2)), max: *r.pick(&[1, 5, 1000]) },
            "embed" => {
                let (name, ino) = children(r)?;
                let words = Rc::new(self.embedding(ino, r));
                VecAct::Embed { ino, name: r.chance(1, 2).then_some(name), words }
            }
            "unembed" => VecAct::Unembed { ino: children(r)?.1 },
            _ => match r.below(4) {
                0 => VecAct::GetEmbedding { ino: children(r)?.1 },
                1 => VecAct::Sync,
                2 => VecAct::Collections,
                _ => VecAct::Stats,
            },
        };
        if wire::op::is_read(req.code()) {
            durable = false;
        }
        Some(Act::Vec { dir, req, durable })
    }
}
