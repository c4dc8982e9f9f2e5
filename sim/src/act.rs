// SPDX-License-Identifier: GPL-2.0-only
//! Operations as the simulator sees them: values that can be repeated, compared and printed. It owns the
//! list of operation kinds for the statistics, the translation into the core's operations, and what each
//! operation may not run beside ([`Lock`]s), so that results do not depend on the order of those in flight.

use crate::frames;
use crate::model::{text, Obj, State, EMBEDDING_XATTR, S_IFDIR, S_IFMT, S_IFREG};
use crate::vectors::{Attrs, Filter};
use std::rc::Rc;
use vexfs_core::op::{self, Cred, Ino, Op, SetAttr};
use vexfs_core::proto::wire;

/// An operation.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Act {
    Lookup { dir: Ino, name: Vec<u8> },
    GetAttr { ino: Ino },
    ByHandle { ino: Ino, generation: u64 },
    ReadLink { ino: Ino },
    ReadDir { dir: Ino, max: usize, attrs: bool },
    Parent { dir: Ino },
    Read { ino: Ino, offset: u64, len: usize },
    Seek { ino: Ino, offset: u64, hole: bool },
    Extents { ino: Ino, offset: u64, len: u64 },
    GetXattr { ino: Ino, name: Vec<u8> },
    ListXattr { ino: Ino },
    StatFs,
    Make { dir: Ino, name: Vec<u8>, mode: u32, uid: u32, gid: u32, rdev: u64 },
    Symlink { dir: Ino, name: Vec<u8>, target: Vec<u8>, uid: u32, gid: u32 },
    Tmpfile { dir: Ino, mode: u32, uid: u32, gid: u32 },
    Link { ino: Ino, dir: Ino, name: Vec<u8> },
    Unlink { dir: Ino, name: Vec<u8> },
    Rmdir { dir: Ino, name: Vec<u8> },
    Rename { dir: Ino, name: Vec<u8>, new_dir: Ino, new_name: Vec<u8>, flags: u32 },
    SetAttr { ino: Ino, set: SetAttr },
    SetXattr { ino: Ino, name: Vec<u8>, value: Vec<u8>, flags: u32 },
    RemoveXattr { ino: Ino, name: Vec<u8> },
    Write { ino: Ino, offset: u64, data: Rc<Vec<u8>>, kill: bool },
    Fallocate { ino: Ino, mode: u32, offset: u64, len: u64 },
    Open { ino: Ino },
    Release { ino: Ino },
    Vec { dir: Ino, req: VecAct, durable: bool },
    Sync,
    Checkpoint,
    Discard,
}

/// A request of the protocol.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum VecAct {
    Create { dim: u32, metric: u32, index: u32, m: u32, ef_construction: u32, seed: u64, model: Vec<u8> },
    Info,
    Drop,
    Reindex { index: u32 },
    Insert { ids: Option<Vec<u64>>, vectors: Vec<Rc<Vec<u32>>>, attrs: Option<Vec<Attrs>>, if_absent: bool },
    Get { ids: Vec<u64> },
    Delete { ids: Vec<u64> },
    DeleteWhere { filter: Filter },
    Update { ids: Vec<u64>, attrs: Vec<Attrs>, replace: bool },
    Search { queries: Vec<Rc<Vec<u32>>>, k: u32, filter: Option<Filter>, radius: Option<u64>, exact: bool, ef: u32 },
    List { filter: Option<Filter>, max: u32 },
    Embed { ino: Ino, name: Option<Vec<u8>>, words: Rc<Vec<u32>> },
    Unembed { ino: Ino },
    GetEmbedding { ino: Ino },
    Sync,
    Collections,
    Stats,
}

/// Kinds of operations, for the table of coverage.
pub const KINDS: [&str; 52] = [
    "lookup",
    "getattr",
    "byhandle",
    "readlink",
    "readdir",
    "parent",
    "read",
    "seek",
    "extents",
    "getxattr",
    "listxattr",
    "statfs",
    "create",
    "mkdir",
    "mknod",
    "symlink",
    "tmpfile",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "rename-noreplace",
    "rename-exchange",
    "rename-whiteout",
    "setattr",
    "truncate",
    "setxattr",
    "removexattr",
    "write",
    "fallocate",
    "punch",
    "zero-range",
    "open",
    "release",
    "sync",
    "checkpoint",
    "discard",
    "v-create",
    "v-info",
    "v-drop",
    "v-reindex",
    "v-insert",
    "v-insert-durable",
    "v-get",
    "v-delete",
    "v-delete-where",
    "v-update",
    "v-search",
    "v-list",
    "v-embed",
    "v-unembed",
    "v-other",
];

/// How an operation uses something: two uses of one thing can run at once if both read or both add to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Looks at it.
    Read,
    /// Changes it in a way that does not depend on the order of other additions.
    Add,
    /// Needs it alone.
    Own,
}

/// What operations can collide on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// An inode.
    Ino(Ino),
    /// A name in a directory.
    Name(Ino, Vec<u8>),
    /// The records of a collection.
    Coll(Ino),
    /// One record.
    Record(Ino, u64),
    /// The shape of the directory tree.
    Tree,
}

/// A use of a thing.
pub type Lock = (Thing, Mode);

/// Whether two sets of uses exclude each other.
pub fn collide(a: &[Lock], b: &[Lock]) -> bool {
    a.iter().any(|(t, m)| b.iter().any(|(u, n)| t == u && !(m == n && *m != Mode::Own)))
}

impl Act {
    /// Its index in [`KINDS`].
    pub fn kind(&self) -> usize {
        let name = match self {
            Act::Lookup { .. } => "lookup",
            Act::GetAttr { .. } => "getattr",
            Act::ByHandle { .. } => "byhandle",
            Act::ReadLink { .. } => "readlink",
            Act::ReadDir { .. } => "readdir",
            Act::Parent { .. } => "parent",
            Act::Read { .. } => "read",
            Act::Seek { .. } => "seek",
            Act::Extents { .. } => "extents",
            Act::GetXattr { .. } => "getxattr",
            Act::ListXattr { .. } => "listxattr",
            Act::StatFs => "statfs",
            Act::Make { mode, .. } => match mode & S_IFMT {
                S_IFREG => "create",
                S_IFDIR => "mkdir",
                _ => "mknod",
            },
            Act::Symlink { .. } => "symlink",
            Act::Tmpfile { .. } => "tmpfile",
            Act::Link { .. } => "link",
            Act::Unlink { .. } => "unlink",
            Act::Rmdir { .. } => "rmdir",
            Act::Rename { flags, .. } => match *flags {
                op::RENAME_NOREPLACE => "rename-noreplace",
                op::RENAME_EXCHANGE => "rename-exchange",
                op::RENAME_WHITEOUT => "rename-whiteout",
                _ => "rename",
            },
            Act::SetAttr { set, .. } if set.size.is_some() => "truncate",
            Act::SetAttr { .. } => "setattr",
            Act::SetXattr { .. } => "setxattr",
            Act::RemoveXattr { .. } => "removexattr",
            Act::Write { .. } => "write",
            Act::Fallocate { mode, .. } if mode & op::FALLOC_PUNCH_HOLE != 0 => "punch",
            Act::Fallocate { mode, .. } if mode & op::FALLOC_ZERO_RANGE != 0 => "zero-range",
            Act::Fallocate { .. } => "fallocate",
            Act::Open { .. } => "open",
            Act::Release { .. } => "release",
            Act::Sync => "sync",
            Act::Checkpoint => "checkpoint",
            Act::Discard => "discard",
            Act::Vec { req, durable, .. } => match req {
                VecAct::Create { .. } => "v-create",
                VecAct::Info => "v-info",
                VecAct::Drop => "v-drop",
                VecAct::Reindex { .. } => "v-reindex",
                VecAct::Insert { .. } if *durable => "v-insert-durable",
                VecAct::Insert { .. } => "v-insert",
                VecAct::Get { .. } => "v-get",
                VecAct::Delete { .. } => "v-delete",
                VecAct::DeleteWhere { .. } => "v-delete-where",
                VecAct::Update { .. } => "v-update",
                VecAct::Search { .. } => "v-search",
                VecAct::List { .. } => "v-list",
                VecAct::Embed { .. } => "v-embed",
                VecAct::Unembed { .. } => "v-unembed",
                _ => "v-other",
            },
        };
        KINDS.iter().position(|k| *k == name).unwrap_or(0)
    }

    /// Whether it only reads.
    pub fn reads(&self) -> bool {
        match self {
            Act::Lookup { .. }
            | Act::GetAttr { .. }
            | Act::ByHandle { .. }
            | Act::ReadLink { .. }
            | Act::ReadDir { .. }
            | Act::Parent { .. }
            | Act::Read { .. }
            | Act::Seek { .. }
            | Act::Extents { .. }
            | Act::GetXattr { .. }
            | Act::ListXattr { .. }
            | Act::StatFs => true,
            Act::Vec { req, .. } => wire::op::is_read(req.code()),
            _ => false,
        }
    }

    /// Whether it is about durability and not about state.
    pub fn syncs(&self) -> bool {
        matches!(self, Act::Sync | Act::Checkpoint | Act::Discard | Act::Vec { req: VecAct::Sync, .. })
    }

    /// The core's operation.
    pub fn op(&self) -> Op {
        match self.clone() {
            Act::Lookup { dir, name } => Op::Lookup { dir, name },
            Act::GetAttr { ino } => Op::GetAttr { ino },
            Act::ByHandle { ino, generation } => Op::ByHandle { ino, generation },
            Act::ReadLink { ino } => Op::ReadLink { ino },
            Act::ReadDir { dir, max, attrs } => Op::ReadDir { dir, cookie: 0, max, attrs },
            Act::Parent { dir } => Op::Parent { dir },
            Act::Read { ino, offset, len } => Op::Read { ino, offset, len },
            Act::Seek { ino, offset, hole } => Op::Seek { ino, offset, hole },
            Act::Extents { ino, offset, len } => Op::Extents { ino, offset, len, max: 1 << 16 },
            Act::GetXattr { ino, name } => Op::GetXattr { ino, name },
            Act::ListXattr { ino } => Op::ListXattr { ino },
            Act::StatFs => Op::StatFs,
            Act::Make { dir, name, mode, uid, gid, rdev } => Op::Make { dir, name, mode, uid, gid, rdev },
            Act::Symlink { dir, name, target, uid, gid } => Op::Symlink { dir, name, target, uid, gid },
            Act::Tmpfile { dir, mode, uid, gid } => Op::Tmpfile { dir, mode, uid, gid },
            Act::Link { ino, dir, name } => Op::Link { ino, dir, name },
            Act::Unlink { dir, name } => Op::Unlink { dir, name },
            Act::Rmdir { dir, name } => Op::Rmdir { dir, name },
            Act::Rename { dir, name, new_dir, new_name, flags } => Op::Rename { dir, name, new_dir, new_name, flags },
            Act::SetAttr { ino, set } => Op::SetAttr { ino, set },
            Act::SetXattr { ino, name, value, flags } => Op::SetXattr { ino, name, value, flags },
            Act::RemoveXattr { ino, name } => Op::RemoveXattr { ino, name },
            Act::Write { ino, offset, data, kill } => {
                Op::Write { ino, offset, data: data.to_vec(), kill_suid: kill, times: None }
            }
            Act::Fallocate { ino, mode, offset, len } => Op::Fallocate { ino, mode, offset, len },
            Act::Open { ino } => Op::Open { ino },
            Act::Release { ino } => Op::Release { ino },
            Act::Sync => Op::Sync,
            Act::Checkpoint => Op::Checkpoint,
            Act::Discard => Op::Discard { offset: 0, len: u64::MAX, min: 0 },
            Act::Vec { dir, req, durable } => {
                let frame = frames::encode(&req, durable);
                let cred = Cred::default();
                if wire::op::is_read(req.code()) {
                    Op::Query { dir, cred, frame }
                } else {
                    Op::Request { dir, cred, frame }
                }
            }
        }
    }

    /// What it must not run beside.
    pub fn locks(&self, s: &State) -> Vec<Lock> {
        use Mode::{Add, Own, Read};
        let mut l: Vec<Lock> = Vec::new();
        let child = |dir: &Ino, name: &[u8]| s.entry(*dir, name);
        let colls = |l: &mut Vec<Lock>, ino: Ino| {
            for (dir, n) in &s.nodes {
                if n.entries().is_some_and(|e| e.values().any(|i| *i == ino)) {
                    l.push((Thing::Coll(*dir), Add));
                }
            }
        };
        match self {
            Act::Lookup { dir, name } => {
                l.push((Thing::Name(*dir, name.clone()), Read));
                l.extend(child(dir, name).map(|c| (Thing::Ino(c), Read)));
                // What is no directory says so for as long as it is there.
                if s.node(*dir).is_some_and(|n| !n.is_dir()) {
                    l.push((Thing::Ino(*dir), Read));
                }
            }
            Act::GetAttr { ino }
            | Act::ByHandle { ino, .. }
            | Act::ReadLink { ino }
            | Act::Parent { dir: ino }
            | Act::Read { ino, .. }
            | Act::Seek { ino, .. }
            | Act::Extents { ino, .. }
            | Act::GetXattr { ino, .. }
            | Act::ListXattr { ino } => l.push((Thing::Ino(*ino), Read)),
            Act::ReadDir { dir, attrs, .. } => {
                l.push((Thing::Ino(*dir), Read));
                if *attrs {
                    let children = s.node(*dir).and_then(|n| n.entries());
                    l.extend(children.into_iter().flatten().map(|(_, c)| (Thing::Ino(*c), Read)));
                }
            }
            Act::StatFs | Act::Sync | Act::Checkpoint | Act::Discard => {}
            Act::Make { dir, name, .. } | Act::Symlink { dir, name, .. } => {
                l.push((Thing::Name(*dir, name.clone()), Own));
                l.push((Thing::Ino(*dir), Add));
            }
            Act::Tmpfile { dir, .. } => l.push((Thing::Ino(*dir), Read)),
            Act::Link { ino, dir, name } => {
                l.push((Thing::Name(*dir, name.clone()), Own));
                l.push((Thing::Ino(*dir), Add));
                l.push((Thing::Ino(*ino), Own));
                l.push((Thing::Coll(*dir), Add));
            }
            Act::Unlink { dir, name } | Act::Rmdir { dir, name } => {
                l.push((Thing::Name(*dir, name.clone()), Own));
                l.push((Thing::Ino(*dir), Add));
                l.extend(child(dir, name).map(|c| (Thing::Ino(c), Own)));
                l.push((Thing::Coll(*dir), Add));
                if let Act::Rmdir { .. } = self {
                    l.extend(child(dir, name).map(|c| (Thing::Coll(c), Own)));
                }
            }
            Act::Rename { dir, name, new_dir, new_name, .. } => {
                let (a, b) = (child(dir, name), child(new_dir, new_name));
                for (d, n, c) in [(dir, name, a), (new_dir, new_name, b)] {
                    l.push((Thing::Name(*d, n.clone()), Own));
                    l.push((Thing::Ino(*d), Add));
                    l.push((Thing::Coll(*d), Add));
                    l.extend(c.map(|c| (Thing::Ino(c), Own)));
                }
                for c in [a, b].into_iter().flatten() {
                    if s.node(c).is_some_and(|n| n.is_dir()) {
                        l.push((Thing::Tree, Own));
                        l.push((Thing::Coll(c), Own));
                    }
                }
            }
            Act::SetAttr { ino, .. } | Act::Write { ino, .. } | Act::Fallocate { ino, .. } => {
                l.push((Thing::Ino(*ino), Own));
                colls(&mut l, *ino);
            }
            Act::SetXattr { ino, .. } | Act::RemoveXattr { ino, .. } => {
                l.push((Thing::Ino(*ino), Own));
                colls(&mut l, *ino);
            }
            Act::Open { ino } | Act::Release { ino } => l.push((Thing::Ino(*ino), Own)),
            Act::Vec { dir, req, .. } => match req {
                VecAct::Create { .. } | VecAct::Drop | VecAct::Reindex { .. } => {
                    l.push((Thing::Ino(*dir), Own));
                    l.push((Thing::Coll(*dir), Own));
                }
                VecAct::Insert { ids, .. } => {
                    l.push((Thing::Ino(*dir), Add));
                    l.push((Thing::Coll(*dir), if ids.is_some() { Add } else { Own }));
                    l.extend(ids.iter().flatten().map(|id| (Thing::Record(*dir, *id), Own)));
                }
                VecAct::Delete { ids } | VecAct::Update { ids, .. } => {
                    l.push((Thing::Ino(*dir), Add));
                    l.push((Thing::Coll(*dir), Add));
                    for id in ids {
                        if *id >= wire::FILE_ID_BASE {
                            l.push((Thing::Ino(*id - wire::FILE_ID_BASE), Own));
                            colls(&mut l, *id - wire::FILE_ID_BASE);
                        } else {
                            l.push((Thing::Record(*dir, *id), Own));
                        }
                    }
                }
                VecAct::DeleteWhere { .. } => {
                    l.push((Thing::Ino(*dir), Add));
                    l.push((Thing::Coll(*dir), Own));
                }
                VecAct::Get { .. } | VecAct::Search { .. } | VecAct::List { .. } | VecAct::Info => {
                    l.push((Thing::Ino(*dir), Read));
                    l.push((Thing::Coll(*dir), Read));
                }
                VecAct::Embed { ino, .. } | VecAct::Unembed { ino } => {
                    l.push((Thing::Ino(*ino), Own));
                    colls(&mut l, *ino);
                }
                VecAct::GetEmbedding { ino } => l.push((Thing::Ino(*ino), Read)),
                VecAct::Collections | VecAct::Stats | VecAct::Sync => l.push((Thing::Ino(*dir), Read)),
            },
        }
        // One operation may use a thing twice: the stronger use counts.
        let strongest: Vec<Lock> = l
            .iter()
            .map(|(t, m)| {
                let mixed = l.iter().any(|(u, n)| t == u && m != n);
                (t.clone(), if mixed { Own } else { *m })
            })
            .collect();
        strongest
    }

    /// Whether it may have done a part of its work when it fails: what fallocate(2) allows itself, and requests
    /// about many records. `done`: how many of them the reply says are done, if it says so.
    pub fn fails_halfway(&self, done: Option<u64>) -> bool {
        match self {
            Act::Fallocate { .. } => true,
            _ => done != Some(0) && self.has_steps(),
        }
    }

    /// Whether it may take several transactions, each of which can be the last before a crash.
    pub fn has_steps(&self) -> bool {
        match self {
            Act::Fallocate { .. } => true,
            Act::Vec { req, .. } => matches!(
                req,
                VecAct::Insert { .. } | VecAct::Delete { .. } | VecAct::DeleteWhere { .. } | VecAct::Update { .. }
            ),
            _ => false,
        }
    }

    /// What it changes together with others that may run beside it.
    pub fn shared(&self) -> Vec<Obj> {
        match self {
            Act::Make { dir, .. }
            | Act::Symlink { dir, .. }
            | Act::Link { dir, .. }
            | Act::Unlink { dir, .. }
            | Act::Rmdir { dir, .. } => vec![Obj::Node(*dir)],
            Act::Rename { dir, new_dir, .. } => vec![Obj::Node(*dir), Obj::Node(*new_dir)],
            Act::Vec { dir, req: VecAct::Insert { .. } | VecAct::Delete { .. } | VecAct::Update { .. }, .. } => {
                vec![Obj::Node(*dir)]
            }
            _ => Vec::new(),
        }
    }

    /// For an operation of several steps that did not finish: what may have been done instead of all of it.
    pub fn parts(&self, s: &State) -> Vec<Act> {
        match self {
            Act::Fallocate { ino, mode, offset, len } => {
                let mode = match mode & op::FALLOC_ZERO_RANGE {
                    0 => mode | op::FALLOC_KEEP_SIZE,
                    _ => op::FALLOC_PUNCH_HOLE | op::FALLOC_KEEP_SIZE,
                };
                vec![Act::Fallocate { ino: *ino, mode, offset: *offset, len: *len }]
            }
            Act::Write { ino, offset, data, kill } => {
                let mut v = Vec::new();
                let mut cut = (offset / 4096 + 1) * 4096 - offset;
                while cut < data.len() as u64 {
                    let data = Rc::new(data[..cut as usize].to_vec());
                    v.push(Act::Write { ino: *ino, offset: *offset, data, kill: *kill });
                    cut += 4096;
                }
                v
            }
            Act::Vec { dir, req, durable } => {
                let part = |req| Act::Vec { dir: *dir, req, durable: *durable };
                match req {
                    VecAct::Insert { ids, vectors, attrs, if_absent } => (1..vectors.len())
                        .map(|n| {
                            part(VecAct::Insert {
                                ids: ids.as_ref().map(|x| x[..n].to_vec()),
                                vectors: vectors[..n].to_vec(),
                                attrs: attrs.as_ref().map(|x| x[..n].to_vec()),
                                if_absent: *if_absent,
                            })
                        })
                        .collect(),
                    VecAct::DeleteWhere { filter } => {
                        let coll = s.node(*dir).and_then(|n| n.coll.as_ref());
                        let all = coll.into_iter().flat_map(|c| c.records.iter());
                        let ids: Vec<u64> = all.filter(|(_, r)| filter.matches(&r.attrs)).map(|(id, _)| *id).collect();
                        (1..ids.len()).map(|n| part(VecAct::Delete { ids: ids[..n].to_vec() })).collect()
                    }
                    VecAct::Delete { ids } => {
                        (1..ids.len()).map(|n| part(VecAct::Delete { ids: ids[..n].to_vec() })).collect()
                    }
                    VecAct::Update { ids, attrs, replace } => (1..ids.len())
                        .map(|n| {
                            let (ids, attrs) = (ids[..n].to_vec(), attrs[..n].to_vec());
                            part(VecAct::Update { ids, attrs, replace: *replace })
                        })
                        .collect(),
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }

    /// Whether it sets an embedding through the attribute.
    pub fn embeds_by_xattr(&self) -> bool {
        matches!(self, Act::SetXattr { name, .. } if name == EMBEDDING_XATTR)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        match self {
            Act::Write { ino, offset, data, kill } => {
                format!("write inode {ino} offset {offset} length {} kill_suid {kill}", data.len())
            }
            Act::SetXattr { ino, name, value, flags } => {
                format!("setxattr inode {ino} {} length {} flags {flags}", text(name), value.len())
            }
            Act::Make { dir, name, mode, uid, gid, .. } => {
                format!("make {:?} in {dir} mode {mode:o} uid {uid} gid {gid}", text(name))
            }
            Act::Rename { dir, name, new_dir, new_name, flags } => {
                format!("rename {:?} in {dir} to {:?} in {new_dir} flags {flags}", text(name), text(new_name))
            }
            Act::Unlink { dir, name } => format!("unlink {:?} in {dir}", text(name)),
            Act::Rmdir { dir, name } => format!("rmdir {:?} in {dir}", text(name)),
            Act::Link { ino, dir, name } => format!("link inode {ino} as {:?} in {dir}", text(name)),
            Act::Symlink { dir, name, target, .. } => {
                format!("symlink {:?} in {dir} to {} bytes", text(name), target.len())
            }
            Act::Vec { dir, req, durable } => {
                let mut s = format!("{:?}", req);
                if s.len() > 300 {
                    s = format!("{}…", s.chars().take(300).collect::<String>());
                }
                format!("request to {dir}: {s}{}", if *durable { " durable" } else { "" })
            }
            other => format!("{other:?}"),
        }
    }
}

impl VecAct {
    /// Its number in the protocol.
    pub fn code(&self) -> u16 {
        use wire::op as o;
        match self {
            VecAct::Create { .. } => o::CREATE,
            VecAct::Info => o::INFO,
            VecAct::Drop => o::DROP,
            VecAct::Reindex { .. } => o::REINDEX,
            VecAct::Insert { .. } => o::INSERT,
            VecAct::Get { .. } => o::GET,
            VecAct::Delete { .. } => o::DELETE,
            VecAct::DeleteWhere { .. } => o::DELETE_WHERE,
            VecAct::Update { .. } => o::UPDATE_ATTRS,
            VecAct::Search { .. } => o::SEARCH,
            VecAct::List { .. } => o::LIST,
            VecAct::Embed { .. } | VecAct::Unembed { .. } => o::EMBED,
            VecAct::GetEmbedding { .. } => o::GET_EMBEDDING,
            VecAct::Sync => o::SYNC,
            VecAct::Collections => o::COLLECTIONS,
            VecAct::Stats => o::STATS,
        }
    }
}
