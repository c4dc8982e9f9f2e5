// SPDX-License-Identifier: GPL-2.0-only
//! Directories: looking names up, listing, making, removing and moving them. The VFS holds the locks of the
//! directories concerned.

use crate::bindings as c;
use crate::sb::attr_of;
use crate::vfs::{
    blank, bytes, check, code, err_ptr, Dentry, Inode, KResult, Table, EEXIST, EINVAL, EIO, ENAMETOOLONG, ENOENT,
    ENOMEM, ENOTDIR, EPERM, S_IFDIR, S_IFMT, S_IFREG,
};
use crate::{compat, control, file, inode, ioctl, xattr};
use alloc::vec::Vec;
use core::ptr::null_mut;
use kernel::ffi::{c_char, c_int, c_uint};
use vexfs_core::mem;
use vexfs_core::op::{Attr, Op, Reply, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT};

/// Bytes of entries that are read in one go.
const LIST_BYTES: usize = 32 << 10;
/// Positions below this are `.` and `..`; those of the volume begin here.
const COOKIES: u64 = 256;

pub(crate) static INODE: Table<c::inode_operations> = Table(c::inode_operations {
    lookup: Some(lookup),
    create: Some(create),
    link: Some(link),
    unlink: Some(unlink),
    symlink: Some(symlink),
    mkdir: Some(compat::mkdir),
    rmdir: Some(rmdir),
    mknod: Some(mknod),
    tmpfile: Some(tmpfile),
    rename: Some(rename),
    getattr: Some(inode::getattr),
    setattr: Some(inode::setattr),
    listxattr: Some(xattr::list),
    get_inode_acl: Some(xattr::get_acl),
    set_acl: Some(xattr::set_acl),
    ..blank()
});

pub(crate) static FILE: Table<c::file_operations> = Table(c::file_operations {
    llseek: Some(llseek),
    read: Some(c::generic_read_dir),
    iterate_shared: Some(iterate),
    unlocked_ioctl: Some(ioctl::ioctl),
    compat_ioctl: Some(ioctl::ioctl),
    fsync: Some(file::fsync),
    ..blank()
});

/// A copy of a name.
pub(crate) fn name(d: Dentry) -> KResult<Vec<u8>> {
    mem::to_vec(d.name()).map_err(|_| ENOMEM)
}

/// A name for a new entry: the control file's is not free.
fn new_name(d: Dentry) -> KResult<Vec<u8>> {
    if control::is_name(d.name()) {
        return Err(EEXIST);
    }
    name(d)
}

/// A name of an entry that is to go or to move: the control file does neither.
fn old_name(d: Dentry) -> KResult<Vec<u8>> {
    if control::is_name(d.name()) {
        return Err(EPERM);
    }
    name(d)
}

unsafe extern "C" fn lookup(dir: *mut c::inode, d: *mut c::dentry, _flags: c_uint) -> *mut c::dentry {
    // SAFETY: the VFS passes a locked directory and a dentry in it without inode; d_splice_alias takes the reference.
    unsafe {
        let (dir, dentry) = (Inode::new(dir), Dentry::new(d));
        let found = match dentry.name() {
            _ if dir.fs().is_shut() => Err(EIO),
            n if n.len() > 255 => Err(ENAMETOOLONG),
            n if control::is_name(n) => inode::control(dir),
            _ => name(dentry)
                .and_then(|name| dir.fs().attr(Op::Lookup { dir: dir.ino(), name }))
                .and_then(|a| inode::get(dir.sb(), a.ino)),
        };
        let p = match found {
            Ok(i) => i.raw(),
            Err(ENOENT) => null_mut(),
            Err(e) => err_ptr(e),
        };
        c::d_splice_alias(p, d)
    }
}

/// The mode of a new inode: the umask does not apply where the directory has a default ACL.
unsafe fn masked(dir: Inode, mode: u32) -> KResult<u32> {
    // SAFETY: a live directory; the ACL is released again.
    unsafe {
        let acl = check(c::get_inode_acl(dir.raw(), c::ACL_TYPE_DEFAULT as c_int))?;
        if acl.is_null() {
            return Ok(mode & !(c::vexfs_umask() & 0o777));
        }
        c::vexfs_acl_release(acl);
        Ok(mode)
    }
}

/// Makes an inode with a name.
unsafe fn make(dir: *mut c::inode, d: *mut c::dentry, mode: u32, rdev: u64) -> KResult<()> {
    // SAFETY: the VFS passes a locked directory and a negative dentry in it.
    unsafe {
        let (dir, dentry) = (Inode::new(dir), Dentry::new(d));
        let name = new_name(dentry)?;
        let mode = masked(dir, mode)?;
        let op = Op::Make { dir: dir.ino(), name, mode, uid: c::vexfs_fsuid(), gid: c::vexfs_fsgid(), rdev };
        let a = attr_of(dir.fs().change(None, op)?)?;
        inode::reload_links(dir, i32::from(mode & S_IFMT == S_IFDIR));
        show(dir, d, &a)?;
        settled(dir)
    }
}

/// Gives a new inode to its dentry. Without memory for it the dentry goes, so that the name is looked up.
unsafe fn show(dir: Inode, d: *mut c::dentry, a: &Attr) -> KResult<()> {
    // SAFETY: as for `make`; the dentry takes the reference over.
    unsafe {
        match inode::made(dir.sb(), a) {
            Ok(i) => {
                c::d_instantiate(d, i.raw());
                Ok(())
            }
            Err(e) => {
                c::d_drop(d);
                Err(e)
            }
        }
    }
}

/// On a mount or in a directory that asks for it, a change of names is durable when it returns.
fn settled(dir: Inode) -> KResult<()> {
    // SAFETY: a live directory.
    if unsafe { c::vexfs_is_dirsync(dir.raw()) } {
        dir.fs().sync()?;
    }
    Ok(())
}

unsafe extern "C" fn create(
    _idmap: *mut c::mnt_idmap,
    dir: *mut c::inode,
    d: *mut c::dentry,
    mode: c::umode_t,
    _excl: bool,
) -> c_int {
    // SAFETY: as for `make`.
    code(unsafe { make(dir, d, u32::from(mode) & 0o7777 | S_IFREG, 0) })
}

/// See [`compat::mkdir`].
pub(crate) unsafe fn mkdir(dir: *mut c::inode, d: *mut c::dentry, mode: c::umode_t) -> c_int {
    // SAFETY: as for `make`.
    code(unsafe { make(dir, d, u32::from(mode) & 0o7777 | S_IFDIR, 0) })
}

unsafe extern "C" fn mknod(
    _idmap: *mut c::mnt_idmap,
    dir: *mut c::inode,
    d: *mut c::dentry,
    mode: c::umode_t,
    dev: c::dev_t,
) -> c_int {
    // SAFETY: as for `make`.
    code(unsafe { make(dir, d, u32::from(mode), u64::from(c::vexfs_encode_dev(dev))) })
}

/// A file without a name: the core counts it as open from the start, until it leaves the cache.
unsafe extern "C" fn tmpfile(
    _idmap: *mut c::mnt_idmap,
    dir: *mut c::inode,
    f: *mut c::file,
    mode: c::umode_t,
) -> c_int {
    // SAFETY: the VFS passes a directory and a file that is being opened, with a dentry that has no name.
    let r = unsafe {
        let dir = Inode::new(dir);
        (|| {
            let mode = masked(dir, u32::from(mode) & 0o7777 | S_IFREG)?;
            let op = Op::Tmpfile { dir: dir.ino(), mode, uid: c::vexfs_fsuid(), gid: c::vexfs_fsgid() };
            let a = attr_of(dir.fs().change(None, op)?)?;
            match inode::made(dir.sb(), &a) {
                Ok(i) => {
                    i.ext().hold();
                    c::d_mark_tmpfile(f, i.raw());
                    c::d_instantiate(c::vexfs_file_dentry(f), i.raw());
                    Ok(())
                }
                Err(e) => {
                    dir.fs().host().release(a.ino);
                    Err(e)
                }
            }
        })()
    };
    // SAFETY: as above.
    unsafe { c::vexfs_finish_open(f, code(r)) }
}

unsafe extern "C" fn symlink(
    _idmap: *mut c::mnt_idmap,
    dir: *mut c::inode,
    d: *mut c::dentry,
    target: *const c_char,
) -> c_int {
    // SAFETY: the VFS passes a locked directory, a negative dentry in it and a string.
    code(unsafe {
        let (dir, dentry) = (Inode::new(dir), Dentry::new(d));
        new_name(dentry).and_then(|name| {
            let target = mem::to_vec(bytes(target)).map_err(|_| ENOMEM)?;
            let (uid, gid) = (c::vexfs_fsuid(), c::vexfs_fsgid());
            let a = attr_of(dir.fs().change(None, Op::Symlink { dir: dir.ino(), name, target, uid, gid })?)?;
            inode::reload(dir);
            show(dir, d, &a)?;
            settled(dir)
        })
    })
}

unsafe extern "C" fn link(old: *mut c::dentry, dir: *mut c::inode, d: *mut c::dentry) -> c_int {
    // SAFETY: the VFS passes a positive dentry, a locked directory and a negative dentry in it; the inode is locked.
    code(unsafe {
        let (dir, dentry) = (Inode::new(dir), Dentry::new(d));
        Dentry::new(old).positive().and_then(|i| {
            if control::is_control(i.ino()) {
                return Err(EPERM);
            }
            let a =
                attr_of(dir.fs().change(None, Op::Link { ino: i.ino(), dir: dir.ino(), name: new_name(dentry)? })?)?;
            let times = i.nlink() == 0 && i.times() != i.ext().known();
            i.refresh(&a);
            if times {
                // While it had no name they were nobody's business.
                c::vexfs_mark_dirty_sync(i.raw());
            }
            inode::reload(dir);
            c::ihold(i.raw());
            c::d_instantiate(d, i.raw());
            settled(dir)
        })
    })
}

/// The inode to be held open over a change that takes a name from it, if that may be its last.
fn hold(victim: Inode) -> Option<u64> {
    (!victim.ext().is_held() && (victim.is_dir() || victim.nlink() <= 1)).then_some(victim.ino())
}

/// A name of `victim` was taken away; of a directory the only one.
fn gone(victim: Inode) {
    let links = if victim.is_dir() { victim.nlink().cast_signed() } else { 1 };
    inode::reload_links(victim, -links);
}

unsafe fn remove(dir: *mut c::inode, d: *mut c::dentry, op: fn(u64, Vec<u8>) -> Op) -> KResult<()> {
    // SAFETY: the VFS passes a locked directory and a positive dentry in it whose inode is locked.
    unsafe {
        let (dir, dentry) = (Inode::new(dir), Dentry::new(d));
        let victim = dentry.positive()?;
        let name = old_name(dentry)?;
        let held = hold(victim);
        dir.fs().change(held, op(dir.ino(), name))?;
        if held.is_some() {
            victim.ext().hold();
        }
        gone(victim);
        inode::reload_links(dir, -i32::from(victim.is_dir()));
        settled(dir)
    }
}

unsafe extern "C" fn unlink(dir: *mut c::inode, d: *mut c::dentry) -> c_int {
    // SAFETY: as for `remove`.
    code(unsafe { remove(dir, d, |dir, name| Op::Unlink { dir, name }) })
}

unsafe extern "C" fn rmdir(dir: *mut c::inode, d: *mut c::dentry) -> c_int {
    // SAFETY: as for `remove`.
    code(unsafe {
        match remove(dir, d, |dir, name| Op::Rmdir { dir, name }) {
            Err(EPERM) => Err(ENOTDIR),
            r => r,
        }
    })
}

unsafe extern "C" fn rename(
    _idmap: *mut c::mnt_idmap,
    old_dir: *mut c::inode,
    old: *mut c::dentry,
    new_dir: *mut c::inode,
    new: *mut c::dentry,
    flags: c_uint,
) -> c_int {
    if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) != 0 {
        return -EINVAL;
    }
    // SAFETY: the VFS passes locked directories with dentries in them.
    code(unsafe {
        let (dir, new_dir) = (Inode::new(old_dir), Inode::new(new_dir));
        let (old, new) = (Dentry::new(old), Dentry::new(new));
        (|| {
            let moved = old.positive()?;
            let op = Op::Rename {
                dir: dir.ino(),
                name: old_name(old)?,
                new_dir: new_dir.ino(),
                new_name: old_name(new)?,
                flags,
            };
            let other = new.inode();
            let exchange = flags & RENAME_EXCHANGE != 0;
            let held = other.filter(|_| !exchange).and_then(hold);
            dir.fs().change(held, op)?;
            if let Some(v) = other {
                if held.is_some() {
                    v.ext().hold();
                }
                if exchange {
                    inode::moved(v);
                } else {
                    gone(v);
                }
            }
            inode::moved(moved);
            // Links of the directories: their subdirectories.
            let came = i32::from(moved.is_dir());
            let went = i32::from(other.is_some_and(Inode::is_dir));
            if new_dir == dir {
                inode::reload_links(dir, if exchange { 0 } else { -went });
            } else {
                inode::reload_links(dir, if exchange { went - came } else { -came });
                inode::reload_links(new_dir, came - went);
            }
            settled(dir)
        })()
    })
}

unsafe extern "C" fn llseek(f: *mut c::file, offset: c::loff_t, whence: c_int) -> c::loff_t {
    // Positions are hashes: all 63 bits.
    // SAFETY: the VFS passes an open directory.
    unsafe { c::generic_file_llseek_size(f, offset, whence, i64::MAX, 0) }
}

unsafe extern "C" fn iterate(f: *mut c::file, ctx: *mut c::dir_context) -> c_int {
    // SAFETY: the VFS passes an open directory, locked at least for reading, and where entries go.
    code(unsafe {
        let dir = Inode::new(c::vexfs_file_inode(f));
        dir.fs().up().and_then(|()| list(dir, f, ctx))
    })
}

unsafe fn list(dir: Inode, f: *mut c::file, ctx: *mut c::dir_context) -> KResult<()> {
    // SAFETY: as for `iterate`.
    unsafe {
        if !c::vexfs_dir_emit_dots(f, ctx) {
            return Ok(());
        }
        loop {
            let pos = (*ctx).pos.cast_unsigned();
            let cookie = if pos < COOKIES { 0 } else { pos };
            let op = Op::ReadDir { dir: dir.ino(), cookie, max: LIST_BYTES, attrs: false };
            let Reply::Entries(entries) = dir.fs().call(op)? else { return Err(EIO) };
            if entries.is_empty() {
                return Ok(());
            }
            for e in &entries {
                let name = e.name.as_ptr().cast::<c_char>();
                if !c::vexfs_dir_emit(ctx, name, e.name.len() as c_int, e.ino, u32::from(e.dtype)) {
                    return Ok(());
                }
                (*ctx).pos = e.cookie.cast_signed();
            }
            crate::env::resched();
        }
    }
}
