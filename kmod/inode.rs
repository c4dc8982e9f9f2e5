// SPDX-License-Identifier: GPL-2.0-only
//! Inodes: from the core into the kernel's cache and back: making, filling, writing times, eviction, attributes.
//!
//! Of a regular file the VFS owns size and times while it is in the cache (data may be waiting to be written); of
//! everything else the core does. An inode that loses its last name is counted as open in the core
//! from before that until it leaves the cache.

use crate::bindings as c;
use crate::sb::{attr_of, Fs};
use crate::vfs::{
    blank, code, err_ptr, ok, Dentry, Inode, KResult, Own, Table, VexInode, EINVAL, ENOENT, ENOMEM, S_IFDIR, S_IFIFO,
    S_IFLNK, S_IFREG,
};
use crate::{control, dir, file, page, xattr};
use core::ptr::{addr_of_mut, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::ffi::{c_char, c_int, c_void};
use vexfs_core::mem;
use vexfs_core::op::{Attr, Ino, Op, SetAttr, Time};

static CACHE: AtomicPtr<c::kmem_cache> = AtomicPtr::new(null_mut());

unsafe extern "C" fn init_once(p: *mut c_void) {
    // SAFETY: a fresh object of the cache.
    unsafe { c::inode_init_once(p.cast::<c::inode>()) }
}

/// Makes the cache of inodes.
pub(crate) fn make_cache() -> KResult<()> {
    // SAFETY: a constructor for objects of this size.
    let cache = unsafe { c::vexfs_inode_cache(core::mem::size_of::<VexInode>() as u32, Some(init_once)) };
    if cache.is_null() {
        return Err(ENOMEM);
    }
    CACHE.store(cache, Ordering::Release);
    Ok(())
}

/// Gives the cache back.
pub(crate) fn drop_cache() {
    // SAFETY: no superblock is left; inodes that are freed behind RCU are waited for first.
    unsafe {
        c::vexfs_rcu_barrier();
        c::kmem_cache_destroy(CACHE.load(Ordering::Acquire));
    }
}

pub(crate) unsafe extern "C" fn alloc(s: *mut c::super_block) -> *mut c::inode {
    // SAFETY: the cache lives as long as the module; the part of the inode is the VFS's to fill, the rest is filled here.
    unsafe {
        let p = c::vexfs_alloc_inode(s, CACHE.load(Ordering::Acquire)).cast::<VexInode>();
        if !p.is_null() {
            addr_of_mut!((*p).own).write(Own::default());
        }
        p.cast()
    }
}

/// Called after a grace period: path walks may have looked at the link target until now.
pub(crate) unsafe extern "C" fn free(i: *mut c::inode) {
    // SAFETY: an inode of `alloc` that nobody refers to; a symlink's target is its own.
    unsafe {
        if u32::from((*i).i_mode) & crate::vfs::S_IFMT == S_IFLNK {
            c::vexfs_kfree((*i).__bindgen_anon_4.i_link.cast());
        }
        c::kmem_cache_free(CACHE.load(Ordering::Acquire), i.cast());
    }
}

/// The inode `ino`, with a reference.
///
/// # Safety
/// A filled superblock.
pub(crate) unsafe fn get(s: *mut c::super_block, ino: Ino) -> KResult<Inode> {
    // SAFETY: as the caller promises.
    let p = unsafe { c::iget_locked(s, ino as _) };
    if p.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: an inode with a reference.
    let i = unsafe { Inode::new(p) };
    // SAFETY: as above.
    if !unsafe { c::vexfs_inode_is_new(p) } {
        return Ok(i);
    }
    // Only now: what was known before may be older than what an eviction has just written.
    let r = i.fs().attr(Op::GetAttr { ino }).and_then(|a| fill(i, &a));
    // SAFETY: a new inode: it becomes visible, or fails for all who wait for it.
    unsafe {
        match r {
            Ok(()) => c::unlock_new_inode(p),
            Err(_) => c::iget_failed(p),
        }
    }
    r.map(|()| i)
}

/// The same for an inode that was just made, with its attributes.
pub(crate) unsafe fn made(s: *mut c::super_block, a: &Attr) -> KResult<Inode> {
    // SAFETY: as for `get`.
    unsafe {
        let p = c::iget_locked(s, a.ino as _);
        if p.is_null() {
            return Err(ENOMEM);
        }
        let i = Inode::new(p);
        if c::vexfs_inode_is_new(p) {
            match fill(i, a) {
                Ok(()) => c::unlock_new_inode(p),
                Err(e) => {
                    c::iget_failed(p);
                    return Err(e);
                }
            }
        }
        Ok(i)
    }
}

/// Fills a new inode.
fn fill(i: Inode, a: &Attr) -> KResult<()> {
    let p = i.raw();
    // SAFETY: a new inode is its maker's alone.
    unsafe {
        (*p).i_mode = a.mode as u16;
        c::vexfs_set_ids(p, a.uid, a.gid);
        (*p).i_generation = a.generation as u32;
        // An inode without names is in the cache while it is open.
        c::set_nlink(p, a.nlink);
    }
    i.set_atime(a.atime);
    i.set_mtime(a.mtime);
    i.set_ctime(a.ctime);
    i.set_size(a.size);
    i.set_blocks(a.blocks);
    let x = i.ext();
    x.set_known([a.atime, a.mtime, a.ctime]);
    x.btime.set(a.btime);
    x.generation.store(a.generation, Ordering::Relaxed);
    // SAFETY: as above; the tables are statics.
    unsafe {
        match a.mode & crate::vfs::S_IFMT {
            S_IFREG => {
                (*p).i_op = file::INODE.get();
                (*p).__bindgen_anon_3.i_fop = file::FILE.get();
                (*(*p).i_mapping).a_ops = page::OPERATIONS.get();
                c::vexfs_large_folios(p);
            }
            S_IFDIR => {
                (*p).i_op = dir::INODE.get();
                (*p).__bindgen_anon_3.i_fop = dir::FILE.get();
            }
            S_IFLNK => {
                (*p).i_op = SYMLINK.get();
                let mut target = i.fs().bytes(Op::ReadLink { ino: a.ino })?;
                mem::push(&mut target, 0).map_err(|_| ENOMEM)?;
                let copy = c::vexfs_kmemdup(target.as_ptr().cast(), target.len());
                if copy.is_null() {
                    // `free` must not take what is not there.
                    (*p).i_mode = S_IFREG as u16;
                    return Err(ENOMEM);
                }
                (*p).__bindgen_anon_4.i_link = copy.cast::<c_char>();
            }
            _ => {
                (*p).i_op = SPECIAL.get();
                c::vexfs_init_special(p, a.mode, a.rdev as u32);
            }
        }
    }
    Ok(())
}

/// Looks an inode's attributes up again, after a change of them by the core. The inode is locked: otherwise a change of
/// somebody else that comes between the look and the note of it would be undone here.
pub(crate) fn reload(i: Inode) {
    reload_links(i, 0);
}

/// The same after a change by which the inode has `more` links (negative: fewer). If the look fails, for want of memory, the
/// old attributes stay, which are only a copy; but on the number of links depends what becomes of the inode.
pub(crate) fn reload_links(i: Inode, more: i32) {
    match i.fs().attr(Op::GetAttr { ino: i.ino() }) {
        Ok(a) => i.refresh(&a),
        Err(_) => i.set_nlink(i.nlink().saturating_add_signed(more)),
    }
}

/// The same for who has not locked it.
pub(crate) fn reload_unlocked(i: Inode) {
    i.lock();
    reload(i);
    i.unlock();
}

/// After a rename of it. Of a directory that stays in its directory the VFS does not lock the inode; only its time
/// has changed.
pub(crate) fn moved(i: Inode) {
    if !i.is_dir() {
        return reload(i);
    }
    if let Ok(a) = i.fs().attr(Op::GetAttr { ino: i.ino() }) {
        let [_, _, ctime] = i.times();
        if a.ctime > ctime {
            i.set_ctime(a.ctime);
        }
    }
}

/// Leaves the cache.
pub(crate) unsafe extern "C" fn evict(p: *mut c::inode) {
    // SAFETY: the last use of an inode; its superblock is there.
    unsafe {
        let i = Inode::new(p);
        c::truncate_inode_pages_final(&mut (*p).i_data);
        c::clear_inode(p);
        if i.ext().is_held() {
            let fs = i.fs();
            // It is removed now; while the file system is frozen that waits.
            c::vexfs_start_intwrite(fs.sb());
            fs.host().release(i.ino());
            c::vexfs_end_intwrite(fs.sb());
        }
    }
}

/// Writes times that the core does not have yet.
pub(crate) unsafe extern "C" fn write_inode(p: *mut c::inode, _wbc: *mut c::writeback_control) -> c_int {
    // SAFETY: a live inode.
    let i = unsafe { Inode::new(p) };
    if control::is_control(i.ino()) || i.nlink() == 0 {
        return 0;
    }
    code(push_times(i))
}

/// The same, for who asks.
pub(crate) fn push_times(i: Inode) -> KResult<()> {
    let now = i.times();
    let [atime, mtime, ctime] = now;
    let known = i.ext().known();
    if now == known {
        return Ok(());
    }
    let changed = i.is_reg() && (mtime != known[1] || ctime != known[2]);
    let mut set = SetAttr { accessed: Some(atime), ..SetAttr::default() };
    if changed {
        set.mtime = Some(mtime);
        set.ctime = Some(ctime);
    } else if atime == known[0] {
        return Ok(());
    }
    match i.fs().change(None, Op::SetAttr { ino: i.ino(), set }) {
        Ok(_) => {
            i.ext().set_known(if changed { now } else { [atime, known[1], known[2]] });
            Ok(())
        }
        // It went meanwhile.
        Err(ENOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// stat(2).
pub(crate) unsafe extern "C" fn getattr(
    idmap: *mut c::mnt_idmap,
    path: *const c::path,
    stat: *mut c::kstat,
    mask: u32,
    _flags: kernel::ffi::c_uint,
) -> c_int {
    // SAFETY: the VFS passes a path of ours and a place for the result.
    unsafe {
        let i = match Dentry::new((*path).dentry).positive() {
            Ok(i) => i,
            Err(e) => return -e,
        };
        c::generic_fillattr(idmap, mask, i.raw(), stat);
        let s = &mut *stat;
        let x = i.ext();
        s.result_mask |= c::STATX_BTIME;
        s.btime = c::timespec64 { tv_sec: x.btime.get().sec, tv_nsec: x.btime.get().nsec as _ };
        if i.is_reg() && !control::is_control(i.ino()) {
            // What waits to be written counts, so that nobody takes the file for a hole.
            if let Ok(a) = i.fs().attr(Op::GetAttr { ino: i.ino() }) {
                let whole = s.size.cast_unsigned().div_ceil(4096);
                let pending = x.pending.load(Ordering::Relaxed);
                let blocks = a.blocks.max(a.blocks.saturating_add(pending).min(whole.max(a.blocks)));
                s.blocks = blocks.saturating_mul(8);
            }
        }
    }
    0
}

/// chmod(2), chown(2), utimensat(2), truncate(2).
pub(crate) unsafe extern "C" fn setattr(idmap: *mut c::mnt_idmap, d: *mut c::dentry, a: *mut c::iattr) -> c_int {
    // SAFETY: the VFS passes a dentry of ours whose inode is locked, and what to change.
    code(unsafe {
        match Dentry::new(d).positive() {
            Ok(i) => ok(c::setattr_prepare(idmap, d, a)).and_then(|()| set(i, a)),
            Err(e) => Err(e),
        }
    })
}

fn time(t: &c::timespec64) -> Time {
    Time { sec: t.tv_sec, nsec: t.tv_nsec as u32 }
}

unsafe fn set(i: Inode, change: *mut c::iattr) -> KResult<()> {
    // SAFETY: the caller passes what to change.
    let a = unsafe { &*change };
    let has = |bit: u32| a.ia_valid & bit != 0;
    let mut s = SetAttr::default();
    if has(c::ATTR_MODE) {
        s.mode = Some(u32::from(a.ia_mode) & 0o7777);
    }
    if has(c::ATTR_UID) {
        // SAFETY: a live inode, ids of the kernel.
        s.uid = Some(unsafe { c::vexfs_vfsuid(i.raw(), change) });
    }
    if has(c::ATTR_GID) {
        // SAFETY: as above.
        s.gid = Some(unsafe { c::vexfs_vfsgid(i.raw(), change) });
    }
    if has(c::ATTR_ATIME) {
        s.atime = Some(time(&a.ia_atime));
    }
    if has(c::ATTR_MTIME) {
        s.mtime = Some(time(&a.ia_mtime));
    }
    let resize = has(c::ATTR_SIZE);
    if resize {
        if !i.is_reg() {
            return Err(EINVAL);
        }
        s.size = Some(a.ia_size.cast_unsigned());
    }
    let attr = match s.size {
        Some(size) => page::resize(i, size, s)?,
        None => attr_of(i.fs().change(None, Op::SetAttr { ino: i.ino(), set: s })?)?,
    };
    i.refresh(&attr);
    if s.mtime.is_some() || resize {
        i.set_mtime(attr.mtime);
    }
    if s.atime.is_some() {
        i.set_atime(attr.atime);
    }
    if s.mode.is_some() {
        // The core has changed the ACL with the mode.
        // SAFETY: a live inode.
        unsafe { c::forget_cached_acl(i.raw(), c::ACL_TYPE_ACCESS as c_int) };
    }
    Ok(())
}

static SYMLINK: Table<c::inode_operations> = Table(c::inode_operations {
    get_link: Some(c::simple_get_link),
    getattr: Some(getattr),
    setattr: Some(setattr),
    listxattr: Some(xattr::list),
    ..blank()
});

static SPECIAL: Table<c::inode_operations> = Table(c::inode_operations {
    getattr: Some(getattr),
    setattr: Some(setattr),
    listxattr: Some(xattr::list),
    get_inode_acl: Some(xattr::get_acl),
    set_acl: Some(xattr::set_acl),
    ..blank()
});

/// The control file of a directory, with a reference.
pub(crate) unsafe fn control(dir: Inode) -> KResult<Inode> {
    // SAFETY: the superblock of a live inode.
    unsafe {
        let p = c::iget_locked(dir.sb(), control::ino(dir.ino()) as _);
        if p.is_null() {
            return Err(ENOMEM);
        }
        let i = Inode::new(p);
        let [_, mtime, ctime] = dir.times();
        if c::vexfs_inode_is_new(p) {
            // To the VFS it is a pipe, so that it can be written to on a read-only mount, where searching is
            // allowed; `control::getattr` shows it as the regular file that it is everywhere else.
            (*p).i_mode = (S_IFIFO | 0o666) as u16;
            c::set_nlink(p, 1);
            (*p).i_generation = (*dir.raw()).i_generation;
            let x = i.ext();
            x.btime.set(dir.ext().btime.get());
            x.generation.store(dir.ext().generation.load(Ordering::Relaxed), Ordering::Relaxed);
            (*p).i_op = control::INODE.get();
            (*p).__bindgen_anon_3.i_fop = control::FILE.get();
            c::unlock_new_inode(p);
        }
        let (mut uid, mut gid) = (0, 0);
        c::vexfs_ids(dir.raw(), &mut uid, &mut gid);
        c::vexfs_set_ids(p, uid, gid);
        i.set_atime(mtime);
        i.set_mtime(mtime);
        i.set_ctime(ctime);
        i.ext().set_known(i.times());
        Ok(i)
    }
}

/// The inode that a handle names, as an error pointer or a dentry.
pub(crate) unsafe fn by_handle(s: *mut c::super_block, ino: Ino, generation: u64) -> *mut c::dentry {
    // SAFETY: a filled superblock.
    unsafe {
        let fs = Fs::of(s);
        if control::is_control(ino) {
            return err_ptr(crate::vfs::ESTALE);
        }
        match fs.call(Op::ByHandle { ino, generation }).and_then(|_| get(s, ino)) {
            Ok(i) => c::d_obtain_alias(i.raw()),
            Err(ENOENT) => err_ptr(crate::vfs::ESTALE),
            Err(e) => err_ptr(e),
        }
    }
}
