// SPDX-License-Identifier: GPL-2.0-only
//! What all requests of a mount share: the volume, the sessions, which inodes are open; and the operations that are
//! more than one operation of the volume.

use crate::control::{control_ino, directory_of, is_control, Sessions};
use crate::convert::{entry_type, file_attr, system_time};
use crate::options::{Atime, MountOptions};
use crate::pool::Pool;
use fuser::{FileAttr, FileType, INodeNo, Notifier, Request};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use vexfs_core::op::{Attr, Ino, Op, Reply, SetAttr};
use vexfs_core::Error;
use vexfs_embedded::{now, Host};

/// Names and attributes stay right until the kernel itself changes them.
pub(crate) const TTL: Duration = Duration::from_secs(24 * 3600);
/// The control file has nothing to cache.
pub(crate) const NO_TTL: Duration = Duration::ZERO;
/// Cookies below this are `.` and `..`; those of the volume begin here.
const COOKIES: u64 = 256;
/// relatime: an access time older than this is renewed anyway.
const RELATIME_SECONDS: i64 = 24 * 3600;

const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) options: MountOptions,
    pub(crate) pool: Pool,
    /// Set when the session stands.
    pub(crate) notifier: OnceLock<Notifier>,
    /// Counts changes; the committer compares it with what it saw last.
    pub(crate) changes: AtomicU64,
    pub(crate) sessions: Sessions,
    /// How often each inode is open, to release them when the mount ends.
    opens: Mutex<HashMap<Ino, u64>>,
}

impl Shared {
    pub(crate) fn new(host: Host, options: MountOptions) -> Shared {
        Shared {
            host,
            options,
            pool: Pool::default(),
            notifier: OnceLock::new(),
            changes: AtomicU64::new(0),
            sessions: Sessions::default(),
            opens: Mutex::default(),
        }
    }

    pub(crate) fn call(&self, op: Op) -> Result<Reply, Error> {
        self.host.call(op)
    }

    /// Carries out a change.
    pub(crate) fn change(&self, op: Op) -> Result<Reply, Error> {
        if self.host.read_only() {
            return Err(Error::ReadOnly);
        }
        let reply = self.host.call(op)?;
        self.changes.fetch_add(1, Ordering::Relaxed);
        if self.options.sync {
            self.host.call(Op::Sync)?;
        }
        Ok(reply)
    }

    pub(crate) fn attr(&self, op: Op) -> Result<Attr, Error> {
        attr_reply(self.call(op)?)
    }

    pub(crate) fn getattr(&self, ino: u64) -> Result<(FileAttr, Duration), Error> {
        if let Some(dir) = directory_of(ino) {
            return Ok((control_attr(&self.attr(Op::GetAttr { ino: dir })?), NO_TTL));
        }
        // The kernel asks about an inode that it holds; if that is gone it has to look up again.
        let a = self.attr(Op::GetAttr { ino }).map_err(|e| if e == Error::NotFound { Error::Stale } else { e })?;
        Ok((file_attr(&a), TTL))
    }

    pub(crate) fn open_inode(&self, ino: Ino) -> Result<(), Error> {
        self.call(Op::Open { ino })?;
        *self.opens.lock().unwrap_or_else(PoisonError::into_inner).entry(ino).or_default() += 1;
        Ok(())
    }

    pub(crate) fn release_inode(&self, ino: Ino) {
        {
            let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
            match opens.get_mut(&ino) {
                Some(n) if *n > 1 => *n -= 1,
                Some(_) => {
                    opens.remove(&ino);
                }
                None => return,
            }
        }
        let _ = self.call(Op::Release { ino });
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Releases what the kernel did not when the mount ended.
    pub(crate) fn release_all(&self) {
        let opens = std::mem::take(&mut *self.opens.lock().unwrap_or_else(PoisonError::into_inner));
        for (ino, n) in opens {
            for _ in 0..n {
                let _ = self.call(Op::Release { ino });
            }
        }
    }

    /// The mode of a new file: the umask does not apply where the directory has a default ACL.
    pub(crate) fn masked(&self, dir: Ino, mode: u32, umask: u32) -> u32 {
        let acl = self.call(Op::GetXattr { ino: dir, name: ACL_DEFAULT.to_vec() });
        if acl.is_ok() {
            mode
        } else {
            mode & !(umask & 0o777)
        }
    }

    /// Keeps the access time after an open for reading: reads from the kernel's cache do not come here.
    pub(crate) fn opened(&self, ino: Ino) {
        if self.accessed(ino) {
            self.forget_attrs(&[ino]);
        }
    }

    /// Keeps the access time after a read; says whether it changed.
    pub(crate) fn accessed(&self, ino: Ino) -> bool {
        if self.host.read_only() || self.options.atime == Atime::Never {
            return false;
        }
        let Ok(a) = self.attr(Op::GetAttr { ino }) else { return false };
        let now = now();
        let due = match self.options.atime {
            Atime::Never => false,
            Atime::Always => true,
            Atime::Relative => {
                a.atime <= a.mtime || a.atime <= a.ctime || now.sec.saturating_sub(a.atime.sec) >= RELATIME_SECONDS
            }
        };
        if due {
            // That the time was kept is no reason to fail the read.
            let set = SetAttr { accessed: Some(now), ..SetAttr::default() };
            let _ = self.change(Op::SetAttr { ino, set });
        }
        due
    }

    /// Has the kernel ask for these inodes' attributes again.
    pub(crate) fn forget_attrs(&self, inodes: &[Ino]) {
        if let Some(n) = self.notifier.get() {
            for ino in inodes {
                let _ = n.inval_inode(INodeNo(*ino), -1, 0);
            }
        }
    }

    pub(crate) fn make(
        &self,
        req: &Request,
        dir: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Attr, Error> {
        let name = new_name(dir, name)?;
        let mode = self.masked(dir, mode, umask);
        let op = Op::Make { dir, name, mode, uid: req.uid(), gid: req.gid(), rdev: u64::from(rdev) };
        attr_reply(self.change(op)?)
    }

    /// Up to `max` bytes of entries behind `offset`, with `.` and `..`.
    fn entries(&self, dir: u64, offset: u64, max: usize, attrs: bool) -> Result<Vec<Entry>, Error> {
        let mut all = Vec::new();
        if offset < 1 {
            all.push(Entry { ino: dir, kind: FileType::Directory, cookie: 1, name: b".".to_vec(), attr: None });
        }
        if offset < 2 {
            let ino = match self.call(Op::Parent { dir }) {
                Ok(Reply::Ino(p)) => p,
                _ => dir,
            };
            all.push(Entry { ino, kind: FileType::Directory, cookie: 2, name: b"..".to_vec(), attr: None });
        }
        let cookie = if offset < COOKIES { 0 } else { offset };
        match self.call(Op::ReadDir { dir, cookie, max, attrs })? {
            Reply::Entries(found) => {
                all.extend(found.into_iter().map(|e| Entry {
                    ino: e.ino,
                    kind: entry_type(e.dtype),
                    cookie: e.cookie,
                    name: e.name,
                    attr: e.attr,
                }));
                Ok(all)
            }
            _ => Err(Error::Corrupt),
        }
    }

    /// Hands the entries behind `offset` to `add` until that says that no more fit. An error that comes later than
    /// the first entries ends the list; the next call meets it again.
    pub(crate) fn list(
        &self,
        dir: u64,
        offset: u64,
        attrs: bool,
        mut add: impl FnMut(&Entry) -> bool,
    ) -> Result<(), Error> {
        let mut at = offset;
        loop {
            let entries = match self.entries(dir, at, 4096, attrs) {
                Err(e) if at == offset => return Err(e),
                entries => entries.unwrap_or_default(),
            };
            for e in &entries {
                at = e.cookie;
                if !is_control(&e.name) && add(e) {
                    self.accessed(dir);
                    return Ok(());
                }
            }
            if entries.is_empty() {
                self.accessed(dir);
                return Ok(());
            }
        }
    }

    /// The attributes of an entry as READDIRPLUS gives them, and the inode's generation. (The kernel takes none
    /// from `.` and `..`.)
    pub(crate) fn entry_attr(&self, e: &Entry) -> (FileAttr, u64) {
        let ask = || self.attr(Op::GetAttr { ino: e.ino }).ok();
        match e.attr.or_else(|| if e.cookie >= COOKIES { ask() } else { None }) {
            Some(a) => (file_attr(&a), a.generation),
            None => {
                let mut a = control_attr(&Attr::default());
                a.kind = e.kind;
                a.ino = INodeNo(e.ino);
                (a, 0)
            }
        }
    }
}

/// An entry of a directory.
pub(crate) struct Entry {
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    pub(crate) cookie: u64,
    pub(crate) name: Vec<u8>,
    attr: Option<Attr>,
}

pub(crate) fn attr_reply(r: Reply) -> Result<Attr, Error> {
    match r {
        Reply::Attr(a) => Ok(a),
        _ => Err(Error::Corrupt),
    }
}

/// What stat(2) shows of the control file of a directory.
pub(crate) fn control_attr(dir: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(control_ino(dir.ino)),
        size: 0,
        blocks: 0,
        atime: system_time(dir.mtime),
        mtime: system_time(dir.mtime),
        ctime: system_time(dir.ctime),
        crtime: system_time(dir.btime),
        kind: FileType::RegularFile,
        perm: 0o666,
        nlink: 1,
        uid: dir.uid,
        gid: dir.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A name that is to be used by an entry: the control file's is not.
pub(crate) fn new_name(dir: u64, name: &OsStr) -> Result<Vec<u8>, Error> {
    let name = name.as_bytes();
    if directory_of(dir).is_some() {
        return Err(Error::NotDirectory);
    }
    if is_control(name) {
        return Err(Error::Exists);
    }
    Ok(name.to_vec())
}

/// A name of an entry that is to go or to move: the control file does neither.
pub(crate) fn old_name(dir: u64, name: &OsStr) -> Result<Vec<u8>, Error> {
    match new_name(dir, name) {
        Err(Error::Exists) => Err(Error::NotPermitted),
        other => other,
    }
}
