// SPDX-License-Identifier: GPL-2.0-only
//! The control file `.vexfs`: it resolves by name in every directory and is never listed. Each open is a
//! session of its own: what is written are frames of the protocol, cut anywhere; what is read are the
//! frames of the replies. A request is carried out by the write that completes it, with the credentials of the open.

use crate::bindings as c;
use crate::env;
use crate::inode;
use crate::sb::{self, Fs};
use crate::sync::Mutex;
use crate::vfs::{blank, code, count, Inode, KResult, Table, EBUSY, EFAULT, EINTR, EINVAL, ENOMEM, EPERM, S_IFREG};
use alloc::vec::Vec;
use core::ptr::NonNull;
use kernel::ffi::{c_char, c_int, c_uint};
use vexfs_core::coll;
use vexfs_core::mem;
use vexfs_core::op::{Cred, Ino, Op, Reply};
use vexfs_core::proto::{wire, Batch};
use vexfs_core::Error;

/// Bit that makes the control file's inode number from its directory's. Inode numbers of the volume count
/// up from 1 and never come near it.
const BIT: u64 = 1 << 62;
/// Replies that wait to be read; a session that does not read them may not go on asking.
const UNREAD_MAX: usize = wire::FRAME_MAX;
/// Most bytes of requests that are not complete and replies that are not read, in all sessions of one user but root: so much,
/// or an eighth of memory, but at least one request. Anybody may open a control file as often as file descriptors last.
const USER_MAX: u64 = 4 * wire::FRAME_MAX as u64;
/// Bytes that are copied from a caller in one go.
const PIECE: usize = 256 << 10;
/// Most groups of a user.
const GROUPS_MAX: u32 = 65_536;

/// Inode number of the control file of `dir`.
pub(crate) fn ino(dir: Ino) -> u64 {
    dir | BIT
}

/// Whether an inode number is a control file's.
pub(crate) fn is_control(ino: u64) -> bool {
    ino & BIT != 0
}

/// Whether `name` is the control file's.
pub(crate) fn is_name(name: &[u8]) -> bool {
    name == wire::CONTROL_FILE.as_bytes()
}

pub(crate) static INODE: Table<c::inode_operations> =
    Table(c::inode_operations { getattr: Some(getattr), setattr: Some(setattr), listxattr: Some(list), ..blank() });

pub(crate) static FILE: Table<c::file_operations> = Table(c::file_operations {
    open: Some(open),
    release: Some(release),
    read: Some(read),
    write: Some(write),
    llseek: Some(c::noop_llseek),
    ..blank()
});

struct Buffers {
    /// The request so far.
    request: Vec<u8>,
    /// Replies, and how much of them has been read.
    replies: Vec<u8>,
    read: usize,
    /// What is noted of it in `Fs::sessions`.
    noted: usize,
}

/// One open of a control file.
struct Session {
    dir: Ino,
    cred: Cred,
    buffers: Mutex<Buffers>,
}

unsafe extern "C" fn getattr(
    idmap: *mut c::mnt_idmap,
    path: *const c::path,
    stat: *mut c::kstat,
    mask: u32,
    flags: c_uint,
) -> c_int {
    // SAFETY: as the VFS calls it; the result is there afterwards.
    unsafe {
        let r = inode::getattr(idmap, path, stat, mask, flags);
        (*stat).mode = (S_IFREG | 0o666) as _;
        r
    }
}

/// A shell that truncates the file before it writes to it is welcome to.
unsafe extern "C" fn setattr(_idmap: *mut c::mnt_idmap, _d: *mut c::dentry, a: *mut c::iattr) -> c_int {
    // SAFETY: the VFS passes what to change.
    let asks = unsafe { (*a).ia_valid } & (c::ATTR_MODE | c::ATTR_UID | c::ATTR_GID);
    code(if asks == 0 { Ok(()) } else { Err(EPERM) })
}

unsafe extern "C" fn list(_d: *mut c::dentry, _buffer: *mut c_char, _size: usize) -> isize {
    0
}

unsafe extern "C" fn open(i: *mut c::inode, f: *mut c::file) -> c_int {
    // SAFETY: the VFS passes the inode of a control file and the file that is being opened.
    code(unsafe {
        (|| {
            Inode::new(i).fs().up()?;
            let dir = Inode::new(i).ino() & !BIT;
            let session = mem::Box::try_new(Session {
                dir,
                cred: credentials(f)?,
                buffers: Mutex::new(Buffers { request: Vec::new(), replies: Vec::new(), read: 0, noted: 0 }),
            });
            let session = session.map_err(|_| ENOMEM)?;
            session.buffers.init();
            (*f).private_data = mem::Box::into_raw(session).as_ptr().cast();
            Ok(())
        })()
    })
}

unsafe extern "C" fn release(_i: *mut c::inode, f: *mut c::file) -> c_int {
    // SAFETY: the last use of a file of `open`.
    unsafe {
        if let Some(p) = NonNull::new((*f).private_data.cast::<Session>()) {
            let s = mem::Box::from_raw(p);
            let noted = s.buffers.lock().noted;
            note(Fs::of(c::vexfs_file_sb(f)), s.cred.uid, noted, 0);
        }
    }
    0
}

/// A session of `uid` that held `before` bytes holds `now` bytes. False: there is no memory to note it.
fn note(fs: &Fs, uid: u32, before: usize, now: usize) -> bool {
    let mut all = fs.sessions.lock();
    let uid = u64::from(uid);
    let held = all.get(uid).copied().unwrap_or(0).saturating_add(now).saturating_sub(before);
    if held == 0 {
        all.remove(uid);
        return true;
    }
    match all.get_mut(uid) {
        Some(h) => {
            *h = held;
            true
        }
        None => all.insert(uid, held).is_ok(),
    }
}

/// Whether sessions of `uid` may take nothing more in.
fn is_spent(fs: &Fs, uid: u32) -> bool {
    // SAFETY: a question to the kernel without conditions.
    let most = (unsafe { c::vexfs_memory() } / 8).clamp(wire::FRAME_MAX as u64, USER_MAX);
    uid != 0 && fs.sessions.lock().get(u64::from(uid)).is_some_and(|h| *h as u64 > most)
}

unsafe fn session<'a>(f: *mut c::file) -> &'a Session {
    // SAFETY: a file of `open` that was not released.
    unsafe { &*(*f).private_data.cast::<Session>() }
}

/// Who opened the file.
unsafe fn credentials(f: *mut c::file) -> KResult<Cred> {
    // SAFETY: a file with its credentials, which do not change.
    unsafe {
        let mut cred = Cred::default();
        c::vexfs_file_ids(f, &mut cred.uid, &mut cred.gid);
        let n = c::vexfs_file_groups(f, core::ptr::null_mut(), 0).min(GROUPS_MAX);
        mem::resize(&mut cred.groups, n as usize, 0).map_err(|_| ENOMEM)?;
        c::vexfs_file_groups(f, cred.groups.as_mut_ptr(), n);
        Ok(cred)
    }
}

unsafe extern "C" fn read(f: *mut c::file, to: *mut c_char, size: usize, _pos: *mut c::loff_t) -> isize {
    // SAFETY: the VFS passes a file of `open` and memory of the caller.
    count(unsafe { give(Fs::of(c::vexfs_file_sb(f)), session(f), to, size) })
}

/// Gives the caller what there is of replies.
unsafe fn give(fs: &Fs, s: &Session, to: *mut c_char, size: usize) -> KResult<usize> {
    fs.up()?;
    let mut b = s.buffers.lock_killable().ok_or(EINTR)?;
    let rest = b.replies.get(b.read..).unwrap_or_default();
    let rest = rest.get(..size).unwrap_or(rest);
    let n = rest.len();
    // SAFETY: as for `read`; the function checks the caller's memory.
    if n > 0 && !unsafe { c::vexfs_copy_to_user(to.cast(), rest.as_ptr().cast(), n) } {
        return Err(EFAULT);
    }
    b.read += n;
    if b.read == b.replies.len() {
        b.replies = Vec::new();
        b.read = 0;
        s.note(fs, &mut b);
    }
    Ok(n)
}

unsafe extern "C" fn write(f: *mut c::file, from: *const c_char, size: usize, _pos: *mut c::loff_t) -> isize {
    // SAFETY: the VFS passes a file of `open` and memory of the caller.
    count(unsafe {
        let s = session(f);
        let fs = Fs::of(c::vexfs_file_sb(f));
        let mut done = 0;
        (|| {
            let mut b = s.buffers.lock_killable().ok_or(EINTR)?;
            let mut piece: Vec<u8> = mem::filled(size.min(PIECE), 0).map_err(|_| ENOMEM)?;
            while done < size {
                let n = (size - done).min(PIECE);
                let Some(part) = piece.get_mut(..n) else { return Err(EINVAL) };
                if !c::vexfs_copy_from_user(part.as_mut_ptr().cast(), from.add(done).cast(), n) {
                    return Err(EFAULT);
                }
                s.take(fs, f, &mut b, part)?;
                done += n;
            }
            Ok(size)
        })()
    })
}

impl Session {
    /// Notes what the session holds now. False: there is no memory to note it.
    fn note(&self, fs: &Fs, b: &mut Buffers) -> bool {
        let held = b.request.capacity() + b.replies.capacity();
        let done = held == b.noted || note(fs, self.cred.uid, b.noted, held);
        if done {
            b.noted = held;
        }
        done
    }

    /// Takes a piece of a request in.
    unsafe fn take(&self, fs: &Fs, f: *mut c::file, b: &mut Buffers, mut data: &[u8]) -> KResult<()> {
        while !data.is_empty() {
            fs.up()?;
            if b.replies.len() - b.read > UNREAD_MAX || is_spent(fs, self.cred.uid) {
                return Err(EBUSY);
            }
            // First the length, then the rest of the frame.
            let want = match b.request.first_chunk::<4>() {
                None => 4,
                Some(len) => u32::from_le_bytes(*len) as usize,
            };
            if b.request.len() >= 4 && !(wire::RequestHead::SIZE..=wire::FRAME_MAX).contains(&want) {
                b.request = Vec::new();
                self.note(fs, b);
                return Err(EINVAL);
            }
            let n = want.saturating_sub(b.request.len()).min(data.len());
            let (part, rest) = data.split_at(n);
            mem::extend(&mut b.request, part).map_err(|_| ENOMEM)?;
            if !self.note(fs, b) {
                b.request = Vec::new();
                return Err(ENOMEM);
            }
            data = rest;
            if want > 4 && b.request.len() == want {
                let frame = core::mem::take(&mut b.request);
                // SAFETY: the open file of this session.
                let reply = unsafe { self.carry_out(fs, f, frame)? };
                if b.read == b.replies.len() {
                    b.replies = reply;
                    b.read = 0;
                } else {
                    mem::extend(&mut b.replies, &reply).map_err(|_| ENOMEM)?;
                }
                self.note(fs, b);
            }
        }
        Ok(())
    }

    /// Carries out one frame.
    #[inline(never)]
    unsafe fn carry_out(&self, fs: &Fs, f: *mut c::file, frame: Vec<u8>) -> KResult<Vec<u8>> {
        let head = wire::RequestHead::parse(&frame).unwrap_or_default();
        if let Some(batch) = Batch::of(&frame, self.cred.uid == 0) {
            match self.search(fs, &batch) {
                Ok(Some(reply)) => return Ok(reply),
                // As a whole, so that what is wrong is told with its number.
                Ok(None) => {}
                Err(e) => return self.refusal(&frame, e),
            }
        }
        let cred = self.cred().map_err(|_| ENOMEM)?;
        // What an error is answered with.
        let start = frame.get(..wire::RequestHead::SIZE).unwrap_or_default();
        let short = mem::to_vec(start).map_err(|_| ENOMEM)?;
        let r = if wire::op::is_read(head.op) {
            fs.host().request(Op::Query { dir: self.dir, cred, frame })
        } else {
            // SAFETY: the open file of this session; its mount counts as being written to meanwhile.
            unsafe { self.change(fs, f, cred, frame) }
        };
        match r {
            Ok(Reply::Bytes(b)) => Ok(b),
            Ok(_) => self.refusal(&short, Error::Corrupt),
            Err(e) => self.refusal(&short, e),
        }
    }

    fn cred(&self) -> Result<Cred, Error> {
        Ok(Cred { uid: self.cred.uid, gid: self.cred.gid, groups: mem::to_vec(&self.cred.groups)? })
    }

    /// The frame that says what was wrong with a request.
    fn refusal(&self, frame: &[u8], e: Error) -> KResult<Vec<u8>> {
        coll::error_frame(frame, e, 0).map_err(|_| ENOMEM)
    }

    /// Carries out a search part by part, so that changes get their turn. None: to be carried out as a whole.
    fn search(&self, fs: &Fs, batch: &Batch<'_>) -> Result<Option<Vec<u8>>, Error> {
        let mut replies = Vec::new();
        for i in 0..batch.parts() {
            let op = Op::Query { dir: self.dir, cred: self.cred()?, frame: batch.request(i)? };
            match fs.host().request(op)? {
                Reply::Bytes(b) => mem::push(&mut replies, b)?,
                _ => return Err(Error::Corrupt),
            }
            env::resched();
        }
        batch.reply(&replies)
    }

    #[inline(never)]
    unsafe fn change(&self, fs: &Fs, f: *mut c::file, cred: Cred, frame: Vec<u8>) -> Result<Reply, Error> {
        sb::writable(fs).map_err(|_| Error::ReadOnly)?;
        // SAFETY: the open file of this session; given back below.
        if unsafe { c::mnt_want_write_file(f) } != 0 {
            return Err(Error::ReadOnly);
        }
        let stale = self.changed_inodes(fs, &frame);
        let r = if fs.is_shut() {
            Err(Error::Aborted)
        } else {
            fs.host().request(Op::Request { dir: self.dir, cred, frame })
        };
        if let Err(e) = &r {
            fs.failed(*e);
        }
        for ino in stale.into_iter().flatten() {
            // SAFETY: the superblock of a mount in use; the reference is given back.
            unsafe {
                let p = c::ilookup(fs.sb(), ino as _);
                if !p.is_null() {
                    inode::reload_unlocked(Inode::new(p));
                    c::iput(p);
                }
            }
        }
        // SAFETY: taken above.
        unsafe { c::mnt_drop_write_file(f) };
        r
    }

    /// Inodes whose attributes a request changes behind the VFS's back. Without memory for the list they are shown
    /// as they were until they are looked at anew.
    fn changed_inodes(&self, fs: &Fs, frame: &[u8]) -> Result<Vec<Ino>, Error> {
        let mut stale = Vec::new();
        mem::push(&mut stale, self.dir)?;
        let Some(head) = wire::RequestHead::parse(frame) else { return Ok(stale) };
        let body = frame.get(wire::RequestHead::SIZE..).unwrap_or_default();
        match head.op {
            wire::op::EMBED => {
                let Some(e) = wire::Embed::parse(body) else { return Ok(stale) };
                let name = body.get(wire::Embed::SIZE..).and_then(|b| b.get(..e.name_len as usize));
                if e.ino != 0 {
                    mem::push(&mut stale, e.ino)?;
                } else if let Some(name) = name.filter(|n| !n.is_empty() && n.len() <= 255) {
                    let op = Op::Lookup { dir: self.dir, name: mem::to_vec(name)? };
                    if let Ok(Reply::Attr(a)) = fs.host().call(op) {
                        mem::push(&mut stale, a.ino)?;
                    }
                }
            }
            wire::op::DELETE => {
                let ids = body.get(wire::Ids::SIZE..).unwrap_or_default();
                for id in ids.chunks_exact(8).filter_map(|c| c.try_into().ok().map(u64::from_le_bytes)) {
                    if let Some(ino) = id.checked_sub(wire::FILE_ID_BASE) {
                        mem::push(&mut stale, ino)?;
                    }
                }
            }
            _ => {}
        }
        Ok(stale)
    }
}
