// SPDX-License-Identifier: GPL-2.0-only
//! The operations: each request of the kernel becomes operations of the volume. Requests are answered on the
//! thread that read them, except those that may wait long (see [`Pool`]).
//!
//! All changes of the volume go through this mount, so the kernel may cache names, attributes and data without
//! a time limit; what requests on the control file change is taken out of its cache explicitly.

use crate::control::{self, directory_of, is_control};
use crate::convert::{credentials, errno, file_attr, time};
use crate::shared::{attr_reply, control_attr, new_name, old_name, Entry, Shared, NO_TTL, TTL};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::SystemTime;
use vexfs_core::op::{Attr, Op, Reply, SetAttr};
use vexfs_core::proto::wire;
use vexfs_core::Error;
use vexfs_embedded::now;

/// Largest write request.
pub(crate) const WRITE_MAX: u32 = 1 << 20;

/// The file system as the kernel sees it.
pub(crate) struct Fs(pub(crate) Arc<Shared>);

fn empty(reply: ReplyEmpty, r: Result<Reply, Error>) {
    match r {
        Ok(_) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

fn entry(reply: ReplyEntry, r: Result<Attr, Error>) {
    match r {
        Ok(a) => reply.entry(&TTL, &file_attr(&a), Generation(a.generation)),
        Err(e) => reply.error(errno(e)),
    }
}

fn xattr(reply: ReplyXattr, r: Result<Vec<u8>, Error>, size: u32) {
    match r {
        Ok(v) if size == 0 => reply.size(v.len() as u32),
        Ok(v) if v.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(v) => reply.data(&v),
        Err(e) => reply.error(errno(e)),
    }
}

fn bytes(r: Result<Reply, Error>) -> Result<Vec<u8>, Error> {
    match r? {
        Reply::Bytes(b) => Ok(b),
        _ => Err(Error::Corrupt),
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            // An older kernel does without.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let s = &self.0;
        let dir = parent.0;
        let name = name.as_bytes();
        if directory_of(dir).is_some() {
            return reply.error(Errno::ENOTDIR);
        }
        if is_control(name) {
            return match s.attr(Op::GetAttr { ino: dir }) {
                Ok(a) if a.mode & libc::S_IFMT == libc::S_IFDIR => {
                    reply.entry_with_ttls(&NO_TTL, &TTL, &control_attr(&a), Generation(a.generation));
                }
                Ok(_) => reply.error(Errno::ENOTDIR),
                Err(e) => reply.error(errno(e)),
            };
        }
        // `.` and `..` are looked up by whoever turns a handle into a path (NFS).
        let found = match name {
            b"." => s.attr(Op::GetAttr { ino: dir }),
            b".." => s.call(Op::Parent { dir }).and_then(|r| match r {
                Reply::Ino(ino) => s.attr(Op::GetAttr { ino }),
                other => attr_reply(other),
            }),
            _ => s.attr(Op::Lookup { dir, name: name.to_vec() }),
        };
        match found {
            Err(Error::NotFound) if name.len() <= 255 => {
                // Inode 0: the kernel may remember that there is no such name.
                let mut none = control_attr(&Attr::default());
                none.ino = INodeNo(0);
                reply.entry(&TTL, &none, Generation(0));
            }
            other => entry(reply, other),
        }
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.getattr(ino.0) {
            Ok((a, ttl)) => reply.attr(&ttl, &a),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let s = self.0.clone();
        if directory_of(ino.0).is_some() {
            // A shell that truncates the file before it writes to it is welcome to.
            return match (mode, uid, gid) {
                (None, None, None) => self.getattr(req, ino, None, reply),
                _ => reply.error(Errno::EPERM),
            };
        }
        let at = |t: Option<TimeOrNow>| {
            t.map(|t| match t {
                TimeOrNow::SpecificTime(t) => time(t),
                TimeOrNow::Now => now(),
            })
        };
        let set = SetAttr {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            size,
            atime: at(atime),
            mtime: at(mtime),
            btime: crtime.map(time),
            ctime: ctime.map(time),
            accessed: None,
            // Whoever may not give a file away leaves no set-id bit on it. (The kernel's own flag for
            // truncation does not come through `fuser`; being root stands for CAP_FSETID.)
            kill_suid: uid.is_some() || gid.is_some() || size.is_some() && req.uid() != 0,
        };
        let ino = ino.0;
        let run = move || match s.change(Op::SetAttr { ino, set }).and_then(attr_reply) {
            Ok(a) => reply.attr(&TTL, &file_attr(&a)),
            Err(e) => reply.error(errno(e)),
        };
        if size.is_some() {
            self.0.pool.run(run);
        } else {
            run();
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match bytes(self.0.call(Op::ReadLink { ino: ino.0 })) {
            Ok(target) => {
                self.0.accessed(ino.0);
                reply.data(&target);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        entry(reply, self.0.make(req, parent.0, name, mode, umask, rdev));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mode = libc::S_IFDIR | mode & 0o7777;
        entry(reply, self.0.make(req, parent.0, name, mode, umask, 0));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let r = old_name(parent.0, name).and_then(|name| self.0.change(Op::Unlink { dir: parent.0, name }));
        empty(reply, r);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let r = match old_name(parent.0, name) {
            Err(Error::NotPermitted) => Err(Error::NotDirectory),
            Err(e) => Err(e),
            Ok(name) => self.0.change(Op::Rmdir { dir: parent.0, name }),
        };
        empty(reply, r);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let r = new_name(parent.0, link_name).and_then(|name| {
            let target = target.as_os_str().as_bytes().to_vec();
            attr_reply(self.0.change(Op::Symlink { dir: parent.0, name, target, uid: req.uid(), gid: req.gid() })?)
        });
        entry(reply, r);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (dir, new_dir) = (parent.0, newparent.0);
        let r = old_name(dir, name).and_then(|name| {
            let new_name = old_name(new_dir, newname)?;
            self.0.change(Op::Rename { dir, name, new_dir, new_name, flags: flags.bits() })
        });
        empty(reply, r);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        if directory_of(ino.0).is_some() {
            return reply.error(Errno::EPERM);
        }
        let r = new_name(newparent.0, newname)
            .and_then(|name| attr_reply(self.0.change(Op::Link { ino: ino.0, dir: newparent.0, name })?));
        entry(reply, r);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let s = &self.0;
        if let Some(dir) = directory_of(ino.0) {
            let fh = s.sessions.open(dir, credentials(req));
            return reply.opened(FileHandle(fh), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_STREAM);
        }
        let ino = ino.0;
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        if writes && s.host.read_only() {
            return reply.error(Errno::EROFS);
        }
        if let Err(e) = s.open_inode(ino) {
            return reply.error(errno(e));
        }
        if flags.0 & libc::O_TRUNC != 0 {
            let kill_suid = req.uid() != 0;
            let set = SetAttr { size: Some(0), kill_suid, ..SetAttr::default() };
            let s = s.clone();
            return self.0.pool.run(move || match s.change(Op::SetAttr { ino, set }) {
                Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
                Err(e) => {
                    s.release_inode(ino);
                    reply.error(errno(e));
                }
            });
        }
        if flags.0 & libc::O_ACCMODE != libc::O_WRONLY {
            s.opened(ino);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if directory_of(ino.0).is_some() {
            return match self.0.sessions.get(fh.0) {
                Some(session) if session.is_busy() => {
                    self.0.pool.run(move || reply.data(&session.read(size as usize)));
                }
                Some(session) => reply.data(&session.read(size as usize)),
                None => reply.error(Errno::EBADF),
            };
        }
        match bytes(self.0.call(Op::Read { ino: ino.0, offset, len: size as usize })) {
            Ok(data) => {
                self.0.accessed(ino.0);
                reply.data(&data);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        if directory_of(ino.0).is_some() {
            let len = data.len() as u32;
            return self.control(fh, data, false, move |r| match r {
                Ok(()) => reply.written(len),
                Err(e) => reply.error(Errno::from_i32(e)),
            });
        }
        let kill_suid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.0.change(Op::Write { ino: ino.0, offset, data, kill_suid, times: None }) {
            Ok(Reply::Written(n)) => reply.written(n as u32),
            Ok(_) => reply.error(Errno::EIO),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back that close(2) would have to write; the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if directory_of(ino.0).is_some() {
            self.0.sessions.close(fh.0);
        } else {
            self.0.release_inode(ino.0);
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let s = self.0.clone();
        self.0.pool.run(move || match s.host.read_only() {
            true => reply.ok(),
            false => empty(reply, s.call(Op::Sync)),
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.open_inode(ino.0) {
            Ok(()) => {
                self.0.opened(ino.0);
                reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let add = |e: &Entry| reply.add(INodeNo(e.ino), e.cookie, e.kind, OsStr::from_bytes(&e.name));
        match self.0.list(ino.0, offset, false, add) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let add = |e: &Entry| {
            let (attr, generation) = self.0.entry_attr(e);
            let name = OsStr::from_bytes(&e.name);
            reply.add(INodeNo(e.ino), e.cookie, name, &TTL, &attr, Generation(generation))
        };
        match self.0.list(ino.0, offset, true, add) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.0.release_inode(ino.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.0.call(Op::StatFs) {
            Ok(Reply::StatFs(f)) => {
                // There is no table of inodes: every free block could hold some.
                let files = f.inodes.saturating_add(f.free);
                reply.statfs(f.blocks, f.free, f.available, files, f.free, 4096, 255, 4096);
            }
            Ok(_) => reply.error(Errno::EIO),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if directory_of(ino.0).is_some() {
            return reply.error(Errno::EPERM);
        }
        let op =
            Op::SetXattr { ino: ino.0, name: name.as_bytes().to_vec(), value: value.to_vec(), flags: flags as u32 };
        empty(reply, self.0.change(op));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if directory_of(ino.0).is_some() {
            return reply.error(Errno::ENODATA);
        }
        let op = Op::GetXattr { ino: ino.0, name: name.as_bytes().to_vec() };
        xattr(reply, bytes(self.0.call(op)), size);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if directory_of(ino.0).is_some() {
            return xattr(reply, Ok(Vec::new()), size);
        }
        let list = bytes(self.0.call(Op::ListXattr { ino: ino.0 })).map(|names| {
            if req.uid() == 0 {
                return names;
            }
            // `trusted.` is shown to the superuser only, as everywhere.
            let shown = names.split_inclusive(|b| *b == 0).filter(|n| !n.starts_with(b"trusted."));
            shown.flatten().copied().collect()
        });
        xattr(reply, list, size);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if directory_of(ino.0).is_some() {
            return reply.error(Errno::EPERM);
        }
        let op = Op::RemoveXattr { ino: ino.0, name: name.as_bytes().to_vec() };
        empty(reply, self.0.change(op));
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // Permissions are the kernel's business (default_permissions is always on).
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = libc::S_IFREG | mode & 0o7777;
        let made = self.0.make(req, parent.0, name, mode, umask, 0).and_then(|a| {
            self.0.open_inode(a.ino)?;
            Ok(a)
        });
        match made {
            Ok(a) => reply.created(
                &TTL,
                &file_attr(&a),
                Generation(a.generation),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if directory_of(ino.0).is_some() {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let s = self.0.clone();
        let (ino, user) = (ino.0, req.uid() != 0);
        self.0.pool.run(move || {
            let r = s.change(Op::Fallocate { ino, mode: mode as u32, offset, len: length }).and_then(|r| {
                if user {
                    s.change(Op::SetAttr { ino, set: SetAttr { kill_suid: true, ..SetAttr::default() } })?;
                }
                Ok(r)
            });
            empty(reply, r);
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        // A negative offset is past no data.
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.0.call(Op::Seek { ino: ino.0, offset, hole }) {
            Ok(Reply::Offset(at)) => reply.offset(at as i64),
            Ok(_) => reply.error(Errno::EIO),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies through the page cache then.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: fuser::IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        // A piece of a request: how it comes where nothing can be opened for writing. That the mount is read-only
        // need not mean that the volume is (after a remount): nothing but reads goes this way.
        if directory_of(ino.0).is_none() || cmd != wire::ioctl_request(in_data.len()) {
            return reply.error(Errno::ENOTTY);
        }
        self.control(fh, in_data.to_vec(), true, move |r| match r {
            Ok(()) => reply.ioctl(0, &[]),
            Err(e) => reply.error(Errno::from_i32(e)),
        });
    }
}

impl Fs {
    /// Takes a piece of a request in, and carries out what it completes; on a thread of the pool, for that may wait.
    fn control(
        &self,
        fh: FileHandle,
        data: Vec<u8>,
        reads_only: bool,
        end: impl FnOnce(Result<(), i32>) + Send + 'static,
    ) {
        let Some(session) = self.0.sessions.get(fh.0) else { return end(Err(libc::EBADF)) };
        let s = self.0.clone();
        self.0.pool.run(move || {
            let mut stale = Vec::new();
            let r = session.write(&data, |cred, frame| {
                let (out, changed) = control::carry_out(&s.host, session.dir, cred, frame, reads_only);
                if !changed.is_empty() {
                    s.changes.fetch_add(1, Ordering::Relaxed);
                    stale.extend(changed);
                }
                out
            });
            s.forget_attrs(&stale);
            end(r);
        });
    }
}
