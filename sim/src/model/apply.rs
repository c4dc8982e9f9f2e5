// SPDX-License-Identifier: GPL-2.0-only
//! What operations do to a state.

use super::*;

impl State {
    /// Carries out an operation that succeeded. Gives back what it may have changed.
    pub fn apply(&mut self, act: &Act, known: &Known) -> Vec<Obj> {
        let when = known.when;
        let mut touched = Vec::new();
        match act {
            Act::Make { dir, name, mode, uid, gid, rdev } => {
                let Some(ino) = known.ino else { return touched };
                let body = match mode & S_IFMT {
                    S_IFREG => Body::File(Content::default()),
                    S_IFDIR => Body::Dir { parent: *dir, entries: BTreeMap::new() },
                    _ => Body::Special,
                };
                self.make(*dir, Some(name), ino, *mode, (*uid, *gid), *rdev, body, known, &mut touched);
            }
            Act::Tmpfile { dir, mode, uid, gid } => {
                let Some(ino) = known.ino else { return touched };
                let body = Body::File(Content::default());
                self.make(*dir, None, ino, *mode, (*uid, *gid), 0, body, known, &mut touched);
            }
            Act::Symlink { dir, name, target, uid, gid } => {
                let Some(ino) = known.ino else { return touched };
                let body = Body::Link(target.clone());
                self.make(*dir, Some(name), ino, S_IFLNK | 0o777, (*uid, *gid), 0, body, known, &mut touched);
            }
            Act::Link { ino, dir, name } => {
                self.put_entry(*dir, name, *ino, when, &mut touched);
                if let Some(n) = self.node_mut(*ino) {
                    n.nlink += 1;
                    n.ctime = when;
                }
                touched.push(Obj::Node(*ino));
            }
            Act::Unlink { dir, name } | Act::Rmdir { dir, name } => {
                if let Some(ino) = self.take_entry(*dir, name, when, &mut touched) {
                    self.drop_link(*dir, ino, when, &mut touched);
                }
            }
            Act::Rename { dir, name, new_dir, new_name, flags } => {
                let same = self.entry(*dir, name) == self.entry(*new_dir, new_name);
                self.rename((*dir, name), (*new_dir, new_name), *flags, when, &mut touched);
                if let (op::RENAME_WHITEOUT, Some(ino), false) = (*flags, known.ino, same) {
                    let Some(owner) = self.node(*dir).map(|d| (d.uid, d.gid)) else { return touched };
                    self.make(*dir, Some(name), ino, S_IFCHR, owner, 0, Body::Special, known, &mut touched);
                }
            }
            Act::SetAttr { ino, set } => {
                touched.push(Obj::Node(*ino));
                let Some(n) = self.node_mut(*ino) else { return touched };
                if let Some(m) = set.mode {
                    n.mode = (n.mode & S_IFMT) | (m & !S_IFMT);
                }
                n.uid = set.uid.unwrap_or(n.uid);
                n.gid = set.gid.unwrap_or(n.gid);
                if set.kill_suid {
                    kill_suid(n);
                }
                n.ctime = n.ctime.hull(when);
                if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
                    n.ctime = when;
                }
                if let Some(size) = set.size {
                    if let Body::File(c) = &mut n.body {
                        let changes = size != c.size;
                        c.resize(size);
                        n.mtime = if changes { when } else { n.mtime.hull(when) };
                        n.ctime = if changes { when } else { n.ctime.hull(when) };
                        n.stale = if changes { Some(true) } else { n.stale.filter(|s| *s) };
                    }
                }
                n.atime = set.atime.map_or(n.atime, When::at);
                n.mtime = set.mtime.map_or(n.mtime, When::at);
                n.btime = set.btime.map_or(n.btime, When::at);
                n.ctime = set.ctime.map_or(n.ctime, When::at);
            }
            Act::SetXattr { ino, name, value, .. } => {
                touched.push(Obj::Node(*ino));
                let Some(n) = self.node_mut(*ino) else { return touched };
                n.ctime = when;
                if name == EMBEDDING_XATTR {
                    n.embedding = Some(Rc::new(words(value)));
                    n.stale = Some(false);
                } else {
                    n.xattrs.insert(name.clone(), value.clone());
                }
            }
            Act::RemoveXattr { ino, name } => {
                touched.push(Obj::Node(*ino));
                let Some(n) = self.node_mut(*ino) else { return touched };
                n.ctime = when;
                if name == EMBEDDING_XATTR {
                    n.embedding = None;
                } else {
                    n.xattrs.remove(name);
                }
            }
            Act::Write { ino, offset, data, kill } => {
                touched.push(Obj::Node(*ino));
                let Some(n) = self.node_mut(*ino) else { return touched };
                if data.is_empty() {
                    n.mtime = n.mtime.hull(when);
                    n.ctime = n.ctime.hull(when);
                    return touched;
                }
                if *kill {
                    kill_suid(n);
                }
                n.mtime = when;
                n.ctime = when;
                n.stale = Some(true);
                if let Body::File(c) = &mut n.body {
                    c.write(*offset, data);
                }
            }
            Act::Fallocate { ino, mode, offset, len } => {
                touched.push(Obj::Node(*ino));
                let Some(n) = self.node_mut(*ino) else { return touched };
                n.mtime = n.mtime.hull(when);
                n.ctime = n.ctime.hull(when);
                n.stale = n.stale.filter(|s| *s);
                if let Body::File(c) = &mut n.body {
                    let end = offset + len;
                    if mode & (op::FALLOC_PUNCH_HOLE | op::FALLOC_ZERO_RANGE) != 0 {
                        c.zero(*offset, end);
                    }
                    if mode & op::FALLOC_KEEP_SIZE == 0 {
                        c.size = c.size.max(end);
                    }
                }
            }
            Act::Open { ino } => {
                if let Some(n) = self.node_mut(*ino) {
                    n.opens += 1;
                }
            }
            Act::Release { ino } => {
                if let Some(n) = self.node_mut(*ino) {
                    n.opens = n.opens.saturating_sub(1);
                }
                self.bury(*ino);
            }
            Act::Vec { dir, req, .. } => self.apply_vec(*dir, req, known, &mut touched),
            _ => {}
        }
        touched
    }

    #[allow(clippy::too_many_arguments)]
    fn make(
        &mut self,
        dir: Ino,
        name: Option<&[u8]>,
        ino: Ino,
        mut mode: u32,
        (uid, mut gid): (u32, u32),
        rdev: u64,
        body: Body,
        known: &Known,
        touched: &mut Vec<Obj>,
    ) {
        let when = known.when;
        let is_dir = mode & S_IFMT == S_IFDIR;
        if let Some(d) = self.node(dir) {
            if d.mode & 0o2000 != 0 {
                gid = d.gid;
                if is_dir {
                    mode |= 0o2000;
                }
            }
        }
        let node = Node {
            mode,
            uid,
            gid,
            rdev,
            nlink: if is_dir { 2 } else { u32::from(name.is_some()) },
            atime: when,
            mtime: when,
            ctime: when,
            btime: when,
            body,
            xattrs: BTreeMap::new(),
            embedding: None,
            stale: Some(false),
            coll: None,
            opens: u32::from(name.is_none()),
            generation: known.generation,
        };
        self.nodes.insert(ino, Rc::new(node));
        touched.push(Obj::Node(ino));
        let Some(name) = name else { return };
        self.put_entry(dir, name, ino, when, touched);
        if is_dir {
            if let Some(d) = self.node_mut(dir) {
                d.nlink += 1;
            }
        }
    }

    fn put_entry(&mut self, dir: Ino, name: &[u8], ino: Ino, when: When, touched: &mut Vec<Obj>) {
        if let Some(d) = self.node_mut(dir) {
            if let Some(e) = d.entries_mut() {
                e.insert(name.to_vec(), ino);
            }
            d.mtime = when;
            d.ctime = when;
        }
        touched.push(Obj::Entry(dir, name.to_vec()));
        touched.push(Obj::Node(dir));
    }

    fn take_entry(&mut self, dir: Ino, name: &[u8], when: When, touched: &mut Vec<Obj>) -> Option<Ino> {
        touched.push(Obj::Entry(dir, name.to_vec()));
        touched.push(Obj::Node(dir));
        let d = self.node_mut(dir)?;
        d.mtime = when;
        d.ctime = when;
        d.entries_mut()?.remove(name)
    }

    /// The inode lost its name in `dir`.
    fn drop_link(&mut self, dir: Ino, ino: Ino, when: When, touched: &mut Vec<Obj>) {
        touched.push(Obj::Node(ino));
        let Some(n) = self.node_mut(ino) else { return };
        n.ctime = when;
        if n.is_dir() {
            n.nlink = 0;
            if let Some(c) = n.coll.take() {
                touched.extend(c.records.keys().map(|id| Obj::Record(ino, *id)));
            }
            if let Some(d) = self.node_mut(dir) {
                d.nlink -= 1;
            }
        } else {
            n.nlink -= 1;
        }
        self.bury(ino);
    }

    fn bury(&mut self, ino: Ino) {
        if self.node(ino).is_some_and(|n| n.nlink == 0 && n.opens == 0) {
            self.nodes.remove(&ino);
        }
    }

    fn rename(
        &mut self,
        (dir, name): (Ino, &[u8]),
        (new_dir, new_name): (Ino, &[u8]),
        flags: u32,
        when: When,
        touched: &mut Vec<Obj>,
    ) {
        let (Some(ino), target) = (self.entry(dir, name), self.entry(new_dir, new_name)) else { return };
        let is_dir = |s: &State, i| s.node(i).is_some_and(Node::is_dir);
        if target == Some(ino) {
            for i in [ino, dir, new_dir] {
                touched.push(Obj::Node(i));
                if let Some(n) = self.node_mut(i) {
                    n.ctime = n.ctime.hull(when);
                    n.mtime = n.mtime.hull(when);
                }
            }
            return;
        }
        let mut moved = vec![(ino, new_dir)];
        self.take_entry(dir, name, when, touched);
        if let Some(t) = target {
            self.take_entry(new_dir, new_name, when, touched);
            if flags == op::RENAME_EXCHANGE {
                self.put_entry(dir, name, t, when, touched);
                moved.push((t, dir));
            } else {
                self.drop_link(new_dir, t, when, touched);
            }
        }
        self.put_entry(new_dir, new_name, ino, when, touched);
        for (i, to) in moved {
            let from = if to == dir && i != ino { new_dir } else { dir };
            touched.push(Obj::Node(i));
            let dir_moved = is_dir(self, i);
            if let Some(n) = self.node_mut(i) {
                n.ctime = n.ctime.hull(when);
                if let Body::Dir { parent, .. } = &mut n.body {
                    *parent = to;
                    n.mtime = n.mtime.hull(when);
                }
            }
            if dir_moved && from != to {
                if let Some(d) = self.node_mut(from) {
                    d.nlink -= 1;
                }
                if let Some(d) = self.node_mut(to) {
                    d.nlink += 1;
                }
            }
        }
    }
}
