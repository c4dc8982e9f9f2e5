// SPDX-License-Identifier: GPL-2.0-only
//! The reference model: what a volume must contain, in the plainest data structures. It owns the state
//! of names, inodes, contents and collections, says which errors an operation must give, and compares
//! itself with what was read back from a volume.

mod apply;
mod content;
mod must;

use crate::act::{Act, VecAct};
use crate::vectors::Coll;
pub use content::Content;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use vexfs_core::error::Error;
use vexfs_core::op::{self, Ino, Time};

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// Largest file offset that the model uses.
pub const S_IFMT: u32 = 0o170_000;
/// Type bits of a regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Type bits of a directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Type bits of a symlink.
pub const S_IFLNK: u32 = 0o120_000;
/// `S_IFCHR`.
pub const S_IFCHR: u32 = 0o020_000;
/// The attribute by which an embedding can be read and written.
pub const EMBEDDING_XATTR: &[u8] = b"user.vexfs.embedding";

/// A time that is known to lie within bounds (nanoseconds since 1970).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    /// Not before.
    pub lo: i128,
    /// Not after.
    pub hi: i128,
}

impl When {
    /// Exactly `t`.
    pub fn at(t: Time) -> When {
        let x = i128::from(t.sec) * 1_000_000_000 + i128::from(t.nsec);
        When { lo: x, hi: x }
    }

    /// The smallest bounds that hold both.
    pub fn hull(self, o: When) -> When {
        When { lo: self.lo.min(o.lo), hi: self.hi.max(o.hi) }
    }

    /// Whether all of `o` is possible.
    pub fn holds(self, o: When) -> bool {
        self.lo <= o.lo && o.hi <= self.hi
    }
}

/// What an inode is.
#[derive(Clone)]
pub enum Body {
    /// A regular file.
    File(Content),
    /// A directory.
    Dir {
        /// Its parent.
        parent: Ino,
        /// Names and inodes.
        entries: BTreeMap<Vec<u8>, Ino>,
    },
    /// A symlink.
    Link(Vec<u8>),
    /// A fifo, socket or device.
    Special,
}

/// An inode.
#[derive(Clone)]
pub struct Node {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u64,
    /// Hard links.
    pub nlink: u32,
    /// Last access.
    pub atime: When,
    /// Last change of contents.
    pub mtime: When,
    /// Last change.
    pub ctime: When,
    /// Creation.
    pub btime: When,
    /// What it is.
    pub body: Body,
    /// Extended attributes, the embedding not among them.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The embedding, f32 bits.
    pub embedding: Option<Rc<Vec<u32>>>,
    /// Whether the contents changed after the embedding was set; `None`: either is right.
    pub stale: Option<bool>,
    /// The collection that it is.
    pub coll: Option<Coll>,
    /// How often it is open.
    pub opens: u32,
    /// Of handles; 0: not known.
    pub generation: u64,
}

impl Node {
    /// Size as stat(2) shows it.
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(c) => c.size,
            Body::Dir { entries, .. } => entries.len() as u64,
            Body::Link(t) => t.len() as u64,
            Body::Special => 0,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir { .. })
    }

    /// Whether it is a directory with names or bulk records in it.
    pub fn is_full(&self) -> bool {
        self.entries().is_some_and(|e| !e.is_empty()) || self.coll.as_ref().is_some_and(|c| !c.records.is_empty())
    }

    /// The contents of a regular file.
    pub fn content(&self) -> Option<&Content> {
        match &self.body {
            Body::File(c) => Some(c),
            _ => None,
        }
    }

    /// The entries of a directory.
    pub fn entries(&self) -> Option<&BTreeMap<Vec<u8>, Ino>> {
        match &self.body {
            Body::Dir { entries, .. } => Some(entries),
            _ => None,
        }
    }

    fn entries_mut(&mut self) -> Option<&mut BTreeMap<Vec<u8>, Ino>> {
        match &mut self.body {
            Body::Dir { entries, .. } => Some(entries),
            _ => None,
        }
    }

    /// Everything but entries and records is as in `o`, which was read from a volume.
    fn same(&self, o: &Node) -> Result<(), String> {
        let differ = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
            Err(format!("{what}: expected {a:?}, found {b:?}"))
        };
        if self.mode != o.mode {
            return Err(format!("mode: expected {:o}, found {:o}", self.mode, o.mode));
        }
        if (self.uid, self.gid, self.rdev) != (o.uid, o.gid, o.rdev) {
            return differ("uid, gid, rdev", &(self.uid, self.gid, self.rdev), &(o.uid, o.gid, o.rdev));
        }
        if self.nlink != o.nlink {
            return differ("links", &self.nlink, &o.nlink);
        }
        if self.size() != o.size() {
            return differ("size", &self.size(), &o.size());
        }
        for (what, a, b) in [
            ("atime", self.atime, o.atime),
            ("mtime", self.mtime, o.mtime),
            ("ctime", self.ctime, o.ctime),
            ("btime", self.btime, o.btime),
        ] {
            if !a.holds(b) {
                return differ(what, &a, &b);
            }
        }
        match (&self.body, &o.body) {
            (Body::File(a), Body::File(b)) if !a.same(b) => return Err(format!("contents: {}", describe(a, b))),
            (Body::Link(a), Body::Link(b)) if a != b => return differ("target", a, b),
            (Body::Dir { parent: a, .. }, Body::Dir { parent: b, .. }) if a != b => return differ("parent", a, b),
            _ => {}
        }
        if self.xattrs != o.xattrs {
            let names = |n: &Node| n.xattrs.iter().map(|(k, v)| (text(k), v.len())).collect::<Vec<_>>();
            return differ("xattrs (name, length)", &names(self), &names(o));
        }
        if self.embedding != o.embedding {
            return differ("embedding", &self.embedding, &o.embedding);
        }
        if let (Some(a), Some(b)) = (self.stale, o.stale) {
            if a != b && self.embedding.is_some() {
                return differ("embedding stale", &a, &b);
            }
        }
        match (&self.coll, &o.coll) {
            (None, None) => Ok(()),
            (Some(a), Some(b)) => a.same(b),
            (a, b) => differ("is a collection", &a.is_some(), &b.is_some()),
        }
    }
}

/// A name for people.
pub fn text(b: &[u8]) -> String {
    let s = String::from_utf8_lossy(b);
    if s.len() > 40 {
        format!("{}…({} bytes)", s.chars().take(20).collect::<String>(), b.len())
    } else {
        s.into_owned()
    }
}

fn describe(a: &Content, b: &Content) -> String {
    if a.size != b.size {
        return format!("size: expected {}, found {}", a.size, b.size);
    }
    let blocks: BTreeSet<u64> = a.blocks.keys().chain(b.blocks.keys()).chain(b.rotten.iter()).copied().collect();
    let mut out = String::new();
    for x in blocks {
        let zero = Rc::new([0; 4096]);
        let (p, q) = (a.blocks.get(&x).unwrap_or(&zero), b.blocks.get(&x).unwrap_or(&zero));
        if b.rotten.contains(&x) && !a.rotten.contains(&x) {
            out += &format!("block {x} cannot be read; ");
        } else if p != q && !a.rotten.contains(&x) {
            let at = p.iter().zip(q.iter()).position(|(p, q)| p != q).unwrap_or(0);
            let n = p.iter().zip(q.iter()).filter(|(p, q)| p != q).count();
            out += &format!(
                "block {x}: {n} bytes differ, the first at {at}: expected {:02x}, found {:02x}; ",
                p[at], q[at]
            );
        }
    }
    out
}

/// What is compared on its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obj {
    /// An inode without its entries and records.
    Node(Ino),
    /// A name in a directory.
    Entry(Ino, Vec<u8>),
    /// A bulk record of a collection.
    Record(Ino, u64),
}

/// The state of a volume.
#[derive(Clone, Default)]
pub struct State {
    /// Inodes by number.
    pub nodes: BTreeMap<Ino, Rc<Node>>,
}

/// What an operation's reply told, and when it ran.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Number of the inode that was made.
    pub ino: Option<Ino>,
    /// Generation of the inode that was made; 0: not known.
    pub generation: u64,
    /// First id of an insert without ids.
    pub first_id: Option<u64>,
    /// Bounds of the time at which it ran.
    pub when: When,
}

type Must = Result<(), &'static [Error]>;

impl State {
    /// A fresh volume.
    pub fn fresh(root: Node) -> State {
        let mut s = State::default();
        s.nodes.insert(op::ROOT, Rc::new(root));
        s
    }

    /// The inode.
    pub fn node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino).map(|n| &**n)
    }

    /// The inode, to change it.
    pub fn node_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.nodes.get_mut(&ino).map(Rc::make_mut)
    }

    /// The inode that a name stands for.
    pub fn entry(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        self.node(dir)?.entries()?.get(name).copied()
    }

    /// Everything that can be compared.
    pub fn objects(&self) -> impl Iterator<Item = Obj> + '_ {
        self.nodes.iter().filter(|(_, n)| n.nlink > 0).flat_map(|(ino, n)| {
            let entries = n.entries().into_iter().flatten().map(|(name, _)| Obj::Entry(*ino, name.clone()));
            let records = n.coll.iter().flat_map(|c| c.records.keys()).map(|id| Obj::Record(*ino, *id));
            std::iter::once(Obj::Node(*ino)).chain(entries).chain(records)
        })
    }

    /// Compares one thing with what was read from a volume.
    pub fn same(&self, o: &State, obj: &Obj) -> Result<(), String> {
        let live = |s: &State, ino: Ino| s.nodes.get(&ino).filter(|n| n.nlink > 0).cloned();
        match obj {
            Obj::Node(ino) => match (live(self, *ino), live(o, *ino)) {
                (None, None) => Ok(()),
                (Some(a), Some(b)) => a.same(&b).map_err(|e| format!("inode {ino}: {e}")),
                (Some(_), None) => Err(format!("inode {ino} is missing")),
                (None, Some(_)) => Err(format!("inode {ino} should not exist")),
            },
            Obj::Entry(dir, name) => {
                let (a, b) = (self.entry(*dir, name), o.entry(*dir, name));
                if a == b {
                    Ok(())
                } else {
                    Err(format!("name {:?} in directory {dir}: expected inode {a:?}, found {b:?}", text(name)))
                }
            }
            Obj::Record(dir, id) => {
                let get = |s: &State| Some(s.node(*dir)?.coll.as_ref()?.records.get(id)?.clone());
                match (get(self), get(o)) {
                    (None, None) => Ok(()),
                    (Some(a), Some(b)) if a == b => Ok(()),
                    (a, b) => Err(format!("record {id} of collection {dir}: expected {a:?}, found {b:?}")),
                }
            }
        }
    }

    /// All differences from what was read.
    pub fn differences(&self, o: &State) -> BTreeSet<Obj> {
        self.objects().chain(o.objects()).filter(|x| self.same(o, x).is_err()).collect()
    }

    fn is_below(&self, mut dir: Ino, top: Ino) -> bool {
        loop {
            if dir == top {
                return true;
            }
            match self.node(dir).map(|n| &n.body) {
                Some(Body::Dir { parent, .. }) if *parent != dir => dir = *parent,
                _ => return false,
            }
        }
    }

    fn dir(&self, dir: Ino) -> Result<&BTreeMap<Vec<u8>, Ino>, &'static [Error]> {
        match self.node(dir) {
            None => Err(&[Error::NotFound, Error::Stale]),
            Some(n) => n.entries().ok_or(&[Error::NotDirectory]),
        }
    }

    fn name(name: &[u8]) -> Must {
        if name.len() > 255 {
            return Err(&[Error::NameTooLong]);
        }
        Ok(())
    }

    fn new_name(&self, dir: Ino, name: &[u8]) -> Must {
        let entries = self.dir(dir)?;
        State::name(name)?;
        if self.node(dir).is_some_and(|n| n.nlink == 0) {
            return Err(&[Error::NotFound, Error::Stale]);
        }
        if entries.contains_key(name) {
            return Err(&[Error::Exists]);
        }
        Ok(())
    }

    fn old_name(&self, dir: Ino, name: &[u8]) -> Result<(Ino, &Node), &'static [Error]> {
        let entries = self.dir(dir)?;
        State::name(name)?;
        let ino = *entries.get(name).ok_or(&[Error::NotFound] as &[Error])?;
        Ok((ino, self.node(ino).ok_or(&[] as &[Error])?))
    }

    fn file(&self, ino: Ino) -> Result<&Content, &'static [Error]> {
        let n = self.node(ino).ok_or(&[Error::NotFound, Error::Stale] as &[Error])?;
        match &n.body {
            Body::File(c) => Ok(c),
            Body::Dir { .. } => Err(&[Error::IsDirectory]),
            _ => Err(&[Error::Invalid, Error::NotSupported, Error::NotPermitted]),
        }
    }

    fn exists(&self, ino: Ino) -> Result<&Node, &'static [Error]> {
        self.node(ino).ok_or(&[Error::NotFound, Error::Stale])
    }

    /// After a crash or a restart nothing is open, and inodes without a name are gone.
    pub fn close_all(&mut self) {
        self.nodes.retain(|_, n| n.nlink > 0);
        for n in self.nodes.values_mut() {
            if n.opens > 0 {
                Rc::make_mut(n).opens = 0;
            }
        }
    }

    /// The files with an embedding in a collection of that dimension: (inode, embedding).
    pub fn embedded(&self, dir: Ino) -> Vec<(Ino, Rc<Vec<u32>>)> {
        let mut out: Vec<(Ino, Rc<Vec<u32>>)> = Vec::new();
        if let Some(entries) = self.node(dir).and_then(Node::entries) {
            for ino in entries.values() {
                if let Some(e) = self.node(*ino).and_then(|n| n.embedding.clone()) {
                    if !out.iter().any(|(i, _)| i == ino) {
                        out.push((*ino, e));
                    }
                }
            }
        }
        out.sort_by_key(|(i, _)| *i);
        out
    }

    /// Whether anything is rotten within what a search or a walk may read.
    pub fn any_rotten(&self) -> bool {
        self.nodes.values().any(|n| n.content().is_some_and(|c| !c.rotten.is_empty()))
    }

    fn must_vec(&self, dir: Ino, req: &VecAct) -> Must {
        crate::vectors::must(self, dir, req)
    }

    fn apply_vec(&mut self, dir: Ino, req: &VecAct, known: &Known, touched: &mut Vec<Obj>) {
        crate::vectors::apply(self, dir, req, known, touched);
    }
}

fn words(b: &[u8]) -> Vec<u32> {
    b.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap_or_default())).collect()
}

fn kill_suid(n: &mut Node) {
    if n.is_dir() {
        return;
    }
    n.mode &= !0o4000;
    if n.mode & 0o010 != 0 {
        n.mode &= !0o2000;
    }
}
