// SPDX-License-Identifier: GPL-2.0-only
//! The judge. It reads a whole volume back into a [`State`], finds the moment of the acknowledged history
//! that explains it, and compares every reply with the model.

use crate::act::{Act, VecAct};
use crate::frames;
use crate::model::{
    text, Body, Content, Known, Node, Obj, State, When, EMBEDDING_XATTR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG,
};
use crate::vectors::{self, Coll, Learned, Record};
use std::collections::btree_map;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use vexfs_core::error::Error;
use vexfs_core::op::{self, Attr, Cred, Ino, Op, Reply, ROOT};
use vexfs_core::proto::wire;

/// Something that is not as it must be.
pub type Res<T> = Result<T, String>;

/// A change in the order of acknowledgement.
#[derive(Clone)]
pub struct Entry {
    /// The operation.
    pub act: Act,
    /// What its reply told.
    pub known: Known,
    /// How many changes had been acknowledged when it was submitted.
    pub at: usize,
    /// It was acknowledged as durable.
    pub must: bool,
}

/// What has happened since the last moment that is certainly on the disk.
#[derive(Clone, Default)]
pub struct History {
    /// The state that is certainly on the disk.
    pub base: State,
    /// Number of changes that went into it.
    pub folded: usize,
    /// Acknowledged changes after it.
    pub entries: Vec<Entry>,
    /// Changes that were not acknowledged and may have happened.
    pub maybe: Vec<Entry>,
}

impl History {
    /// Number of changes acknowledged so far.
    pub fn len(&self) -> usize {
        self.folded + self.entries.len()
    }

    /// Whether nothing was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `n` changes are durable.
    pub fn durable(&mut self, n: usize) {
        let count = n.saturating_sub(self.folded).min(self.entries.len());
        for e in self.entries.drain(..count) {
            self.base.apply(&e.act, &e.known);
        }
        self.folded += count;
    }

    /// Finds the moment at which the model is as `seen`. `complete`: nothing acknowledged may be missing.
    /// Gives back that state and the unacknowledged changes that are in it.
    pub fn explain(&self, seen: &State, complete: bool) -> Res<(State, Vec<Entry>)> {
        let mut cur = self.base.clone();
        let mut diff = cur.differences(seen);
        let mut best: Option<(usize, State, BTreeSet<Obj>)> = None;
        let mut answer = None;
        for k in 0..=self.entries.len() {
            if !complete || k == self.entries.len() {
                let reached = self.folded + k;
                let late = &self.entries[k..];
                if late.iter().filter(|e| e.must).all(|e| e.at <= reached) {
                    // Requests of several steps may have got a part of their way before what was acknowledged
                    // sooner; a batch is not promised to be atomic.
                    let begun = late.iter().filter(|e| e.must || (e.at <= reached && e.act.has_steps()));
                    let floats: Vec<&Entry> = begun.chain(self.maybe.iter().filter(|e| e.at <= reached)).collect();
                    let (state, left, found) = settle(&cur, &diff, &floats, seen);
                    if left.is_empty() {
                        answer = Some((state, found));
                    } else if best.as_ref().is_none_or(|b| left.len() <= b.2.len()) {
                        best = Some((k, state, left));
                    }
                }
            }
            if let Some(e) = self.entries.get(k) {
                let touched = cur.apply(&e.act, &e.known);
                recompare(&cur, seen, touched, &mut diff);
            }
        }
        if let Some((mut state, found)) = answer {
            state.close_all();
            return Ok((state, found));
        }
        let Some((k, state, left)) = best else { return Err("no moment of the history can be right".into()) };
        let mut msg = format!(
            "the volume is at no moment of the acknowledged history ({} changes durable, {} more acknowledged, {} under way{}); \
             nearest is the moment after {} of those, with {} differences:",
            self.folded,
            self.entries.len(),
            self.maybe.len(),
            if complete { "; every acknowledged one has to be there" } else { "" },
            k,
            left.len()
        );
        for obj in left.iter().take(6) {
            if let Err(e) = state.same(seen, obj) {
                msg += &format!("\n    {e}");
            }
        }
        for e in self.maybe.iter() {
            msg += &format!("\n    under way: {}", e.act.line());
        }
        let from = k.saturating_sub(4);
        for (i, e) in self.entries.iter().enumerate().skip(from).take(8) {
            msg += &format!("\n    {} {}: {}", if i < k { "before" } else { "after" }, i, e.act.line());
        }
        Err(msg)
    }
}

fn recompare(cur: &State, seen: &State, touched: Vec<Obj>, diff: &mut BTreeSet<Obj>) {
    for obj in touched {
        if cur.same(seen, &obj).is_ok() {
            diff.remove(&obj);
        } else {
            diff.insert(obj);
        }
    }
}

/// Applies those of the floating changes that bring the state nearer to what was seen.
fn settle(cur: &State, diff: &BTreeSet<Obj>, floats: &[&Entry], seen: &State) -> (State, BTreeSet<Obj>, Vec<Entry>) {
    let mut found = Vec::new();
    if diff.is_empty() || floats.is_empty() || diff.len() > 2000 {
        return (cur.clone(), diff.clone(), found);
    }
    let (mut state, mut left) = (cur.clone(), diff.clone());
    let mut open: Vec<&Entry> = floats.to_vec();
    loop {
        let before = open.len();
        open.retain(|e| {
            if let Some(known) = resolve(&e.act, e, &state, seen) {
                if !state.clone().apply(&e.act, &known).iter().any(|o| left.contains(o)) {
                    return true;
                }
            }
            let variants = std::iter::once(e.act.clone()).chain(e.act.parts(&state).into_iter().rev());
            for act in variants {
                let Some(known) = resolve(&act, e, &state, seen) else { continue };
                let mut s = state.clone();
                let touched = s.apply(&act, &known);
                let mut l = left.clone();
                recompare(&s, seen, touched, &mut l);
                // What others change as well (the directory's count of entries) may only fit when all are in.
                let shared = e.act.shared();
                let own =
                    |x: &BTreeSet<Obj>| x.iter().filter(|o| !shared.contains(o)).cloned().collect::<BTreeSet<Obj>>();
                let (a, b) = (own(&l), own(&left));
                if (a.len() < b.len() && a.is_subset(&b)) || (l.len() < left.len() && l.is_subset(&left)) {
                    (state, left) = (s, l);
                    found.push(Entry { act, known, at: e.at, must: e.must });
                    return false;
                }
            }
            true
        });
        if left.is_empty() || open.len() == before {
            return (state, left, found);
        }
    }
}

/// What the reply of a change without a reply would have told, as far as the volume shows it.
fn resolve(act: &Act, e: &Entry, state: &State, seen: &State) -> Option<Known> {
    let mut known = e.known;
    match act {
        Act::Make { dir, name, .. } | Act::Symlink { dir, name, .. } if known.ino.is_none() => {
            let ino = seen.entry(*dir, name)?;
            if state.nodes.contains_key(&ino) {
                return None;
            }
            known.ino = Some(ino);
        }
        Act::Rename { dir, name, flags: op::RENAME_WHITEOUT, .. } if known.ino.is_none() => {
            known.ino = seen.entry(*dir, name).filter(|ino| !state.nodes.contains_key(ino));
        }
        Act::Vec { dir, req: VecAct::Insert { ids: None, .. }, .. } if known.first_id.is_none() => {
            let records = |s: &State| -> Option<BTreeSet<u64>> {
                Some(s.node(*dir)?.coll.as_ref()?.records.keys().copied().collect())
            };
            let old = records(state)?;
            known.first_id = Some(*records(seen)?.iter().find(|id| !old.contains(id))?);
        }
        _ => {}
    }
    Some(known)
}

fn when(t: vexfs_core::op::Time) -> When {
    When::at(t)
}

/// An inode from its attributes, without body.
pub fn node_of(a: &Attr, body: Body) -> Node {
    Node {
        mode: a.mode,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        nlink: a.nlink,
        atime: when(a.atime),
        mtime: when(a.mtime),
        ctime: when(a.ctime),
        btime: when(a.btime),
        body,
        xattrs: BTreeMap::new(),
        embedding: None,
        stale: Some(a.flags & vexfs_core::format::inode_flags::STALE != 0),
        coll: None,
        opens: 0,
        generation: a.generation,
    }
}

/// Carries out one operation and waits for its reply.
pub trait Ask {
    /// Asks the volume.
    fn ask(&mut self, op: Op) -> Res<Result<Reply, Error>>;
}

fn good(what: &dyn Fn() -> String, r: Result<Reply, Error>) -> Res<Reply> {
    r.map_err(|e| format!("{}: {e}", what()))
}

macro_rules! expect {
    ($r:expr, $p:pat => $v:expr) => {
        match $r {
            $p => $v,
            other => return Err(format!("a reply of the wrong kind: {other:?}")),
        }
    };
}

/// Reads everything back.
/// The flag says that a vector could not be read.
pub fn observe(v: &mut dyn Ask) -> Res<(State, bool)> {
    let mut damaged = false;
    let mut s = State::default();
    let mut todo = vec![(ROOT, ROOT)];
    let mut extents: Vec<(u64, u64, Ino)> = Vec::new();
    while let Some((dir, parent)) = todo.pop() {
        let a = attr(v, dir)?;
        if a.mode & S_IFMT != S_IFDIR {
            return Err(format!("inode {dir} has an entry as a directory, its mode is {:o}", a.mode));
        }
        let said = expect!(good(&|| format!("parent of {dir}"), v.ask(Op::Parent { dir })?)?, Reply::Ino(p) => p);
        if said != parent {
            return Err(format!("directory {dir} is in {parent}, and says that its parent is {said}"));
        }
        let mut entries = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let op = Op::ReadDir { dir, cookie, max: 4096, attrs: false };
            let page = expect!(good(&|| format!("readdir of {dir}"), v.ask(op)?)?, Reply::Entries(p) => p);
            let Some(last) = page.last() else { break };
            if last.cookie <= cookie {
                return Err(format!("readdir of {dir}: the cookie went from {cookie} to {}", last.cookie));
            }
            cookie = last.cookie;
            for e in page {
                if entries.insert(e.name.clone(), e.ino).is_some() {
                    return Err(format!("name {:?} is twice in directory {dir}", text(&e.name)));
                }
                let found = v.ask(Op::Lookup { dir, name: e.name.clone() })?;
                let a =
                    expect!(good(&|| format!("lookup of {:?} in {dir}", text(&e.name)), found)?, Reply::Attr(a) => a);
                if a.ino != e.ino || u32::from(e.dtype) != (a.mode & S_IFMT) >> 12 {
                    return Err(format!("readdir and lookup of {:?} in {dir} differ: {e:?}, {a:?}", text(&e.name)));
                }
                if s.nodes.contains_key(&e.ino) && a.mode & S_IFMT == S_IFDIR {
                    return Err(format!("directory {} has two names", e.ino));
                }
                if a.mode & S_IFMT == S_IFDIR {
                    todo.push((e.ino, dir));
                } else if let btree_map::Entry::Vacant(place) = s.nodes.entry(e.ino) {
                    place.insert(Rc::new(read_inode(v, &a, &mut extents)?));
                }
            }
        }
        let mut n = node_of(&a, Body::Dir { parent, entries });
        attributes(v, dir, &mut n)?;
        if a.size != n.size() {
            return Err(format!("directory {dir} says that it has {} entries, it has {}", a.size, n.size()));
        }
        if a.flags & vexfs_core::format::inode_flags::COLLECTION != 0 {
            let (c, bad) = collection(v, dir)?;
            n.coll = Some(c);
            damaged |= bad;
        }
        s.nodes.insert(dir, Rc::new(n));
    }
    extents.sort_unstable();
    for w in extents.windows(2) {
        if w[0].1 > w[1].0 {
            return Err(format!("inodes {} and {} share blocks: {:?} {:?}", w[0].2, w[1].2, w[0], w[1]));
        }
    }
    Ok((s, damaged))
}

fn attr(v: &mut dyn Ask, ino: Ino) -> Res<Attr> {
    let a = expect!(good(&|| format!("getattr of {ino}"), v.ask(Op::GetAttr { ino })?)?, Reply::Attr(a) => a);
    if a.ino != ino {
        return Err(format!("getattr of {ino} answered about {}", a.ino));
    }
    Ok(a)
}

fn read_inode(v: &mut dyn Ask, a: &Attr, extents: &mut Vec<(u64, u64, Ino)>) -> Res<Node> {
    let ino = a.ino;
    let body = match a.mode & S_IFMT {
        S_IFREG => {
            let op = Op::Extents { ino, offset: 0, len: u64::MAX, max: 1 << 20 };
            let list = expect!(good(&|| format!("extents of {ino}"), v.ask(op)?)?, Reply::Extents(e) => e);
            let mut c = Content { size: a.size, ..Content::default() };
            for e in &list {
                extents.push((e.physical, e.physical + e.len, ino));
                if !e.unwritten {
                    read_range(v, ino, e.logical, (e.logical + e.len).min(a.size), &mut c)?;
                }
            }
            Body::File(c)
        }
        S_IFLNK => {
            let op = Op::ReadLink { ino };
            Body::Link(expect!(good(&|| format!("readlink of {ino}"), v.ask(op)?)?, Reply::Bytes(b) => b))
        }
        _ => Body::Special,
    };
    let mut n = node_of(a, body);
    if a.size != n.size() {
        return Err(format!("inode {ino} says that its size is {}, it is {}", a.size, n.size()));
    }
    attributes(v, ino, &mut n)?;
    Ok(n)
}

fn read_range(v: &mut dyn Ask, ino: Ino, from: u64, to: u64, c: &mut Content) -> Res<()> {
    let mut at = from;
    while at < to {
        let len = (to - at).min(256 << 10) as usize;
        match v.ask(Op::Read { ino, offset: at, len })? {
            Ok(Reply::Bytes(b)) => {
                if b.len() != len {
                    return Err(format!("read of {len} bytes at {at} of inode {ino} gave {}", b.len()));
                }
                let size = c.size;
                c.write(at, &b);
                c.size = size;
            }
            Ok(other) => return Err(format!("a reply of the wrong kind: {other:?}")),
            Err(Error::Corrupt | Error::Io) if len > 4096 => {
                // Which blocks is it?
                let mut p = at;
                while p < at + len as u64 {
                    let n = (4096 - p % 4096).min(at + len as u64 - p);
                    read_range(v, ino, p, p + n, c)?;
                    p += n;
                }
            }
            Err(Error::Corrupt | Error::Io) => {
                c.rotten.insert(at / 4096);
            }
            Err(e) => return Err(format!("read of {len} bytes at {at} of inode {ino}: {e}")),
        }
        at += len as u64;
    }
    Ok(())
}

fn attributes(v: &mut dyn Ask, ino: Ino, n: &mut Node) -> Res<()> {
    let list = good(&|| format!("listxattr of {ino}"), v.ask(Op::ListXattr { ino })?)?;
    let list = expect!(list, Reply::Bytes(b) => b);
    for name in list.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let op = Op::GetXattr { ino, name: name.to_vec() };
        let value = good(&|| format!("getxattr {:?} of {ino}", text(name)), v.ask(op)?)?;
        let value = expect!(value, Reply::Bytes(b) => b);
        if name == EMBEDDING_XATTR {
            let words = value.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap_or_default()));
            n.embedding = Some(Rc::new(words.collect()));
        } else if n.xattrs.insert(name.to_vec(), value).is_some() {
            return Err(format!("inode {ino} lists the attribute {:?} twice", text(name)));
        }
    }
    Ok(())
}

/// Sends a frame and gives back the reply's.
fn request(v: &mut dyn Ask, dir: Ino, frame: Vec<u8>) -> Res<Vec<u8>> {
    let r = v.ask(Op::Query { dir, cred: Cred::default(), frame })?;
    let b = expect!(good(&|| format!("request to {dir}"), r)?, Reply::Bytes(b) => b);
    let (head, _) = frames::reply(&b)?;
    if head.status != 0 {
        let message = String::from_utf8_lossy(b.get(wire::ReplyHead::SIZE..).unwrap_or_default()).into_owned();
        return Err(format!("request {} to {dir}: error {}: {message}", wire::op::name(head.op), head.status));
    }
    Ok(b)
}

fn collection(v: &mut dyn Ask, dir: Ino) -> Res<(Coll, bool)> {
    let mut damaged = false;
    let b = request(v, dir, frames::encode(&VecAct::Info, false))?;
    let (info, mut coll) = frames::info(&mut frames::reply(&b)?.1)?;
    let mut files = Vec::new();
    let mut cursor = 0;
    let mut last = None;
    while cursor != wire::LIST_END {
        let b = request(v, dir, frames::list_page(cursor, 50))?;
        let (page, next) = frames::records(&mut frames::reply(&b)?.1)?;
        for r in page {
            if last.is_some_and(|l| l >= r.id) {
                return Err(format!("list of {dir} is not in order: {} after {last:?}", r.id));
            }
            last = Some(r.id);
            damaged |= r.damaged;
            if r.id >= wire::FILE_ID_BASE {
                files.push((r.id - wire::FILE_ID_BASE, r.flags & wire::record_flags::UNINDEXED == 0));
            } else {
                coll.records.insert(r.id, Rc::new(Record { vector: Rc::new(r.vector), attrs: r.attrs }));
            }
        }
        if next <= cursor && next != wire::LIST_END {
            return Err(format!("list of {dir}: the cursor went from {cursor} to {next}"));
        }
        cursor = next;
    }
    if info.records != coll.records.len() as u64 {
        return Err(format!(
            "collection {dir} says that it has {} records, it has {}",
            info.records,
            coll.records.len()
        ));
    }
    coll.files = Some(files);
    Ok((coll, damaged))
}

/// The file records of every collection are the embedded files that it links.
pub fn check_files(s: &State, seen: &State) -> Res<()> {
    for (dir, n) in &seen.nodes {
        let Some(c) = &n.coll else { continue };
        if c.populating {
            continue;
        }
        let want: Vec<(Ino, bool)> = s
            .embedded(*dir)
            .into_iter()
            .map(|(i, w)| (i, w.len() == c.dim as usize && vectors::admit(Some(c.metric), &w).is_ok()))
            .collect();
        if c.files.as_deref().unwrap_or_default() != want {
            return Err(format!(
                "collection {dir} lists the files {:?} (inode, searched); with an embedding it has {want:?}",
                c.files
            ));
        }
    }
    Ok(())
}

/// What a good reply tells about the state that the model does not know.
#[derive(Default)]
pub struct Told {
    /// The inode that was made.
    pub ino: Option<Ino>,
    /// Its generation.
    pub generation: u64,
    /// Of requests.
    pub learned: Learned,
    /// Bytes that a write wrote, if not all.
    pub short: Option<usize>,
}

/// Compares a good reply with the model, which is in the state before the operation.
pub fn check_reply(s: &State, act: &Act, reply: &Reply, lossy: bool) -> Res<Told> {
    let mut told = Told::default();
    let wrong = || Err(format!("a reply of the wrong kind: {reply:?}"));
    let same_attr = |ino: Ino, a: &Attr| -> Res<()> {
        let Some(n) = s.node(ino) else { return Ok(()) };
        if a.ino != ino {
            return Err(format!("expected inode {ino}, found {a:?}"));
        }
        let seen = node_of(a, n.body.clone());
        let times = |n: &Node| [n.atime, n.mtime, n.ctime, n.btime];
        let plain = |n: &Node| (n.mode, n.uid, n.gid, n.rdev, n.nlink);
        if plain(n) != plain(&seen) || a.size != n.size() {
            return Err(format!("inode {ino}: expected {:?} size {}, found {a:?}", plain(n), n.size()));
        }
        for (x, y) in times(n).into_iter().zip(times(&seen)) {
            if !x.holds(y) {
                return Err(format!("inode {ino}: expected times {:?}, found {:?}", times(n), times(&seen)));
            }
        }
        let flags = a.flags & vexfs_core::format::inode_flags::COLLECTION != 0;
        if flags != n.coll.is_some() {
            return Err(format!("inode {ino}: is a collection: {flags}"));
        }
        Ok(())
    };
    match (act, reply) {
        (Act::Lookup { dir, name }, Reply::Attr(a)) => {
            same_attr(s.entry(*dir, name).unwrap_or(0), a)?;
        }
        (Act::GetAttr { ino }, Reply::Attr(a)) => same_attr(*ino, a)?,
        (Act::ByHandle { ino, .. }, Reply::Attr(a)) => same_attr(*ino, a)?,
        (Act::ReadLink { ino }, Reply::Bytes(b)) => {
            if !matches!(s.node(*ino).map(|n| &n.body), Some(Body::Link(t)) if t == b) {
                return Err(format!("readlink of {ino} gave {:?}", text(b)));
            }
        }
        (Act::ReadDir { dir, max, attrs }, Reply::Entries(list)) => {
            let want = s.node(*dir).and_then(Node::entries).cloned().unwrap_or_default();
            let mut seen = BTreeSet::new();
            for e in list {
                if want.get(&e.name) != Some(&e.ino) || !seen.insert(e.name.clone()) {
                    return Err(format!("readdir of {dir}: entry {e:?} is twice or should not exist"));
                }
                match (&e.attr, attrs) {
                    (Some(a), true) => same_attr(e.ino, a)?,
                    (None, false) => {}
                    _ => return Err("readdir: attributes were or were not asked for".into()),
                }
            }
            // Small pages may end early, large ones may not.
            if seen.len() < want.len() && (*max >= 1 << 20 || list.is_empty()) {
                return Err(format!("readdir of {dir} gave {} of {} entries", seen.len(), want.len()));
            }
        }
        (Act::Parent { dir }, Reply::Ino(p)) => {
            if !matches!(s.node(*dir).map(|n| &n.body), Some(Body::Dir { parent, .. }) if parent == p) {
                return Err(format!("parent of {dir} is said to be {p}"));
            }
        }
        (Act::Read { ino, offset, len }, Reply::Bytes(b)) => {
            let Some(c) = s.node(*ino).and_then(Node::content) else { return wrong() };
            let want = c.read(*offset, *len);
            let end = offset + b.len() as u64;
            if *b != want && !(b.len() == want.len() && c.rotten_in(*offset, end)) {
                let at = b.iter().zip(&want).position(|(x, y)| x != y);
                return Err(format!(
                    "read of inode {ino} at {offset}, {len} bytes: expected {} bytes, found {}, first difference at {at:?}",
                    want.len(),
                    b.len()
                ));
            }
            if *b != want {
                return Err(format!("read of inode {ino} at {offset} gave wrong bytes of a damaged block"));
            }
        }
        (Act::Seek { ino, offset, hole }, Reply::Offset(o)) => {
            let Some(c) = s.node(*ino).and_then(Node::content) else { return wrong() };
            let first = |from: u64| c.blocks.range(from / 4096..).next().map(|(b, _)| *b);
            let fine = if *o < *offset || *o > c.size {
                false
            } else if *hole {
                *o == c.size || !c.blocks.contains_key(&(o / 4096))
            } else {
                // Nothing but zeros may be skipped.
                *o < c.size && first(*offset).is_none_or(|b| b >= o / 4096)
            };
            if !fine {
                return Err(format!("seek of inode {ino} from {offset}, hole {hole}: {o}"));
            }
        }
        (Act::Extents { ino, offset, len }, Reply::Extents(list)) => {
            let Some(c) = s.node(*ino).and_then(Node::content) else { return wrong() };
            for b in c.blocks.keys().filter(|b| **b * 4096 >= *offset && **b * 4096 < offset.saturating_add(*len)) {
                let at = b * 4096;
                if !list.iter().any(|e| !e.unwritten && e.logical <= at && at + 4096 <= e.logical + e.len) {
                    return Err(format!("block {b} of inode {ino} is in no written extent: {list:?}"));
                }
            }
            if list.windows(2).any(|w| w[0].logical + w[0].len > w[1].logical) {
                return Err(format!("extents of inode {ino} overlap: {list:?}"));
            }
        }
        (Act::GetXattr { ino, name }, Reply::Bytes(b)) => {
            let Some(n) = s.node(*ino) else { return wrong() };
            let embedding =
                || n.embedding.as_ref().map(|e| e.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>());
            let want = if name == EMBEDDING_XATTR { embedding() } else { n.xattrs.get(name).cloned() };
            if want.as_ref() != Some(b) {
                return Err(format!("getxattr {:?} of {ino}: wrong value of {} bytes", text(name), b.len()));
            }
        }
        (Act::ListXattr { ino }, Reply::Bytes(b)) => {
            let Some(n) = s.node(*ino) else { return wrong() };
            let mut want: Vec<&[u8]> = n.xattrs.keys().map(Vec::as_slice).collect();
            if n.embedding.is_some() {
                want.push(EMBEDDING_XATTR);
            }
            want.sort_unstable();
            let mut got: Vec<&[u8]> = b.split(|x| *x == 0).filter(|x| !x.is_empty()).collect();
            got.sort_unstable();
            if got != want {
                return Err(format!("listxattr of {ino}: expected {want:?}, found {got:?}"));
            }
        }
        (Act::StatFs, Reply::StatFs(f)) => {
            if f.free > f.blocks || f.available > f.free {
                return Err(format!("statfs makes no sense: {f:?}"));
            }
        }
        (Act::Make { dir, mode, .. }, Reply::Attr(a)) => {
            if s.nodes.contains_key(&a.ino) {
                return Err(format!("a new inode has the number of an old one: {}", a.ino));
            }
            if (a.mode & !0o2000) != (mode & !0o2000) || s.node(*dir).is_none() {
                return Err(format!("make with mode {mode:o} gave {a:?}"));
            }
            (told.ino, told.generation) = (Some(a.ino), a.generation);
        }
        (
            Act::Symlink { .. } | Act::Tmpfile { .. } | Act::Rename { flags: op::RENAME_WHITEOUT, .. },
            Reply::Attr(a),
        ) => {
            if s.nodes.contains_key(&a.ino) {
                return Err(format!("a new inode has the number of an old one: {}", a.ino));
            }
            (told.ino, told.generation) = (Some(a.ino), a.generation);
        }
        (Act::Link { ino, .. }, Reply::Attr(a)) if a.ino == *ino => {}
        (Act::SetAttr { ino, .. }, Reply::Attr(a)) if a.ino == *ino => {}
        (Act::SetAttr { .. }, Reply::Done) => {}
        (Act::Write { data, .. }, Reply::Written(n)) => {
            if *n > data.len() || (*n == 0 && !data.is_empty()) {
                return Err(format!("write of {} bytes wrote {n}", data.len()));
            }
            told.short = (*n < data.len()).then_some(*n);
        }
        (Act::Vec { dir, req, .. }, Reply::Bytes(b)) => {
            let (_, mut c) = frames::reply(b)?;
            told.learned = vectors::check(s, *dir, req, &mut c, lossy)?;
        }
        (
            Act::Unlink { .. }
            | Act::Rmdir { .. }
            | Act::Rename { .. }
            | Act::SetXattr { .. }
            | Act::RemoveXattr { .. }
            | Act::Fallocate { .. }
            | Act::Open { .. }
            | Act::Release { .. }
            | Act::Sync
            | Act::Checkpoint
            | Act::Discard,
            Reply::Done,
        ) => {}
        (Act::Discard, Reply::Offset(_)) => {}
        _ => return wrong(),
    }
    Ok(told)
}
